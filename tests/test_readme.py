"""README.md is what tools/render_readme.py makes of the preface, and everything it points to is
there."""
import importlib.util
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from simulus_nb.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"

spec = importlib.util.spec_from_file_location("render_readme", ROOT / "tools" / "render_readme.py")
render_readme = importlib.util.module_from_spec(spec)
spec.loader.exec_module(render_readme)

TARGET = re.compile(r"\]\(([^)\s]+)\)")


def relative(text):
    "Targets of links and pictures that are files of the repository."
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    return [t for t in TARGET.findall(prose) if not re.match(r"[a-z]+:|#", t)]


def test_readme_is_rendered():
    text, pictures = render_readme.render(ROOT / "nbs" / "index.ipynb")
    assert README.read_text(encoding="utf8") == text, "run python tools/render_readme.py"
    assert pictures
    for name, data in pictures.items():
        assert (ROOT / "nbs" / name).read_bytes() == data, (
            f"nbs/{name} is old: run python tools/render_readme.py"
        )


def test_every_task_has_its_line_near_the_top():
    lines = README.read_text(encoding="utf8").splitlines()
    starts = [next(i for i, x in enumerate(lines) if x.startswith(f"| {name}, ")) for name in TASKS]
    assert starts == list(range(starts[0], starts[0] + len(TASKS))) and starts[0] < 40


def test_links_exist():
    found = relative(README.read_text(encoding="utf8"))
    assert len(found) > 50                          # chapters, many times; pictures; the license
    assert not [t for t in found if not (ROOT / t).exists()]


def test_every_chapter_is_in_the_roadmap():
    "And with its module, if it writes one."
    rows = {
        m[1]: set(re.findall(r"`(\w+)`", m[2]))
        for m in re.finditer(
            r"^\| (?:\d\d|[A-Z])? ?\| \[.*?\]\(nbs/(\S+)\) \|.*\|([^|]*)\|$",
            README.read_text(encoding="utf8"), re.M
        )
    }
    assert set(rows) == {p.name for p in ROOT.glob("nbs/[0-9A-Z]*.ipynb")}
    assert list(rows) == sorted(rows)               # the order of reading is that of the files
    for name, modules in rows.items():
        text = (ROOT / "nbs" / name).read_text(encoding="utf8")
        exported = re.findall(r"#\| (?:default_exp|exports?) (\w+)", text)
        assert set(exported) == modules, name


def test_pictures_are_pictures():
    pictures = re.findall(r"!\[([^]]+)\]\(([^)\s]+)\)", README.read_text(encoding="utf8"))
    assert len(pictures) >= 2
    assert all((ROOT / path).read_bytes().startswith(b"\x89PNG") for _, path in pictures)


def test_test_command_is_marked():
    "`.ci/run` and people find the command in the block after the mark."
    commands = re.findall(
        r"<!-- test-command -->\n```(?:bash|sh)?\n(.+?)\n```", README.read_text(encoding="utf8"),
        re.S
    )
    assert len(commands) == 1
    assert all(word in commands[0] for word in ("pip install", "nbdev_test", "pytest"))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("[a](10_retention.ipynb)", "[a](nbs/10_retention.ipynb)"),
        (
            "![a](images/dream.png) and [b](../LICENSE)",
            "![a](nbs/images/dream.png) and [b](LICENSE)"
        ),
        (
            "[a](https://example.org/x) [b](#symbols) [c](mailto:x@example.org)",
            "[a](https://example.org/x) [b](#symbols) [c](mailto:x@example.org)",
        ),
        (
            "[a](b)\n```python\nx[0](b)\n```\n[a](b)",
            "[a](nbs/b)\n```python\nx[0](b)\n```\n[a](nbs/b)"
        ),
    ],
)
def test_links_start_from_the_root(text, expected):
    assert render_readme.from_root(text) == expected


def test_rendering_a_small_notebook(tmp_path):
    shown = new_output("display_data", {"image/png": "iVBORw==", "text/plain": "<Figure>"})
    cells = [
        new_markdown_cell("# T\n\n[one](a.ipynb)"),
        new_code_cell("#| hide\nsecret = 1"),
        new_code_cell(
            "1 + 1", outputs=[new_output("execute_result", {"text/plain": "2"}, execution_count=1)]
        ),
        new_code_cell(
            "#| echo: false\n#| label: drawing\n#| fig-alt: A line.\nplot()", outputs=[shown]
        ),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "x.ipynb")
    text, pictures = render_readme.render(tmp_path / "x.ipynb")
    assert (
        text
        == "# T\n\n[one](nbs/a.ipynb)\n\n```python\n1 + 1\n```\n\n    2\n\n![A "
           "line.](nbs/images/drawing.png)\n"
    )
    assert pictures == {"images/drawing.png": b"\x89PNG"}

    cells[-1].outputs = []
    nbformat.write(new_notebook(cells=cells), tmp_path / "x.ipynb")
    with pytest.raises(ValueError, match="run the notebook"):
        render_readme.render(tmp_path / "x.ipynb")
