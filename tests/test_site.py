"""The site: what its pages are made of; and, where Sphinx and Chromium are installed, the site
itself, opened and checked."""
import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))
import check_site
import site_pages as pages

from simulus_nb.metrics import METRICS

BOOK = pages.read_book()
PAGES = {c.stem: pages.page(c, BOOK) for c in BOOK.chapters}
EACH = pytest.mark.parametrize("chapter", BOOK.chapters, ids=lambda c: c.stem)


def shown(page):
    "The cells of a page that are not removed."
    return [c for c in page.cells if "remove-cell" not in c.metadata.get("tags", [])]


@EACH
def test_pages_show_no_directive_and_keep_all_else(chapter):
    page = PAGES[chapter.stem]
    nbformat.validate(page)
    assert not [c.source for c in shown(page) if re.search(r"^#\|", c.source, re.M)]
    before = {c.id: c for c in chapter.notebook.cells}
    for cell in page.cells:
        if cell.cell_type == "code" and cell.id in before:
            assert cell.source in before[cell.id].source or "### BEGIN" in before[cell.id].source
            assert len(cell.outputs) == len(before[cell.id].outputs)
    assert set(before) <= {c.id for c in page.cells}


@EACH
def test_every_picture_has_its_caption_as_text(chapter):
    for cell in PAGES[chapter.stem].cells:
        if any("image/png" in o.get("data", {}) for o in cell.get("outputs", [])):
            told = cell.metadata["book"]["alt"]
            unnumbered = chapter.stem in ("index", "Y_gallery")
            assert re.match(r"Figure \w+\.\d+\. \w", told) or unnumbered and len(told) > 20


@pytest.mark.parametrize(
    "source, tags",
    [
        ("#| hide\nx = 1", {"remove-cell"}), ("#| default_exp spaces", {"remove-cell"}),
        ("#| echo: false\nx = 1", {"remove-input"}), ("#| export\nimport torch", {"hide-input"}),
        ("#| exports\nx = 1", set()), ("#| exports border\n#| notest\nx = 1", set()),
        ("x = 1", set()), ("", {"remove-cell"}),
    ],
)
def test_directives_become_tags(source, tags):
    code, found = pages.without_directives(source)
    assert pages.tags_of(found, code) == tags
    assert code == (source.split("\n")[-1] if "=" in source or "import" in source else "")


def test_equations_are_all_known():
    tags = {
        tag
        for c in BOOK.chapters for cell in c.notebook.cells if cell.cell_type == "markdown"
        for tag in re.findall(rf"\\tag\{{({pages.NUMBER})\}}", cell.source)
    }
    assert set(BOOK.equations) == tags and len(tags) > 200


def test_every_chapter_has_its_place():
    listed = [c.stem for chapters in pages.parts(BOOK).values() for c in chapters]
    assert sorted(listed) == sorted(c.stem for c in BOOK.chapters if c.stem != "index")
    assert [c.stem for c in pages.parts(BOOK)[""]] == ["000_quickstart"]
    text = pages.llms(BOOK)
    assert all(f"(text/{stem}.md)" in text for stem in listed)


@pytest.mark.parametrize("module", BOOK.exports)
def test_each_public_name_leads_to_the_cell_that_writes_it_and_back(module):
    text = (ROOT / BOOK.settings["lib_path"] / f"{module}.py").read_text(encoding="utf8")
    found = {e.name: e for e in BOOK.exports[module]}
    functions = re.findall(r"^(?:def|class) ([A-Za-z]\w*)", text, re.M)
    assert set(functions) <= set(found) == set(pages.public(text))
    cells = {c.stem: {x.id: x.source for x in c.notebook.cells} for c in BOOK.chapters}
    page = pages.api_page(module, text, BOOK)
    for e in found.values():
        if e.stem in cells:
            assert re.search(rf"\b{e.name}\b", cells[e.stem][e.cell])
            assert f"../{e.stem}.html#cell-{e.cell}" in page and f"id='{e.name}'" in page


def test_the_library_is_shown_without_bodies():
    text = (
        'class A(B):\n    "What A is."\n    x: int = 1    # rows\n\n    def f(\n        self,\n'
        '        y: int,    # (B,)\n    ) -> int:\n        "What f does."\n'
        "        return secret(y)\n\n    def _own(self):\n        return secret(1)\n"
    )
    told = pages.outline(ast.parse(text).body[0], text.splitlines())
    assert "secret" not in told and "_own" not in told
    for line in ("class A(B):", "x: int = 1    # rows", "y: int,    # (B,)", '"What f does."'):
        assert line in told


def test_links_leave_the_site_only_for_the_repository():
    home = "https://github.com/simulus-nb/simulus-nb/blob/main"
    made = lambda text: pages.links(text, BOOK)
    assert made("[a](../LICENSE)") == f"[a]({home}/LICENSE)"
    assert made("[a](../simulus_nb/pop.py#L7)") == f"[a]({home}/simulus_nb/pop.py#L7)"
    assert made("[a](results/x.json)") == f"[a]({home}/nbs/results/x.json)"
    assert made("[a](#In-practice)") == "[a](#in-practice)"
    for same in ("[a](10_retention.ipynb)", "![a](images/dream.png)", "[a](https://x.org)",
                 "`[a](../LICENSE)`", "```\n[a](../LICENSE)\n```", "`` ` [a](../LICENSE) ``"):
        assert made(same) == same


def test_a_folder_of_docs_is_a_part_beside_the_notebooks(tmp_path):
    home = "https://github.com/simulus-nb/simulus-nb/blob/main"
    folder = tmp_path / "docs" / "clubs"
    folder.mkdir(parents=True)
    (tmp_path / "docs" / "play").mkdir()
    (folder / "index.md").write_text(
        "# For clubs\n\n- [B](b.md), (8.1)\n- [A](a.md) and [B](b.md)\n\n![e](e.svg) "
        "[c](../../nbs/10_retention.ipynb#A) ![d](../../nbs/images/dream.png) [f](../../LICENSE) "
        "[g](../guide/g.md)"
    )
    assert pages.folders(tmp_path) == [folder]
    text = pages.folder_page(folder / "index.md", BOOK)
    for said in ("(8.1)", "[c](../10_retention.ipynb#a)", "![d](../images/dream.png)",
                 "![e](e.svg)", f"[f]({home}/LICENSE)", "[g](../guide/g.md)", "\n\nb\na\n```\n"):
        assert said in text
    listed = [f"\n{f.name}/index\n" for f in pages.folders()]
    assert all(line in pages.toctree(BOOK) for line in listed)


@pytest.mark.parametrize(
    "symbol, latex, yes",
    [
        ("z_t", r"z_t = \mathrm{enc}(o_t)", True), ("z_t", r"z_{t} + 1", True),
        ("z_t", r"z_t^a", False), ("z_t^a", r"z_t^a", True), ("z", r"z_t", False),
        ("d", r"\lambda", False), ("K", r"K_a", False), ("K", r"x^K", False), ("K", r"K + 1", True),
        (r"\hat r_t", r"(\hat{r}_t)", True),
    ],
)
def test_symbols_are_found_in_equations(symbol, latex, yes):
    assert pages.uses(symbol, latex) == yes


def test_the_table_of_letters_names_equations():
    rows = [r for r in pages.symbols_page(BOOK).splitlines() if r.startswith("| $")]
    numbers = {n for r in rows for n in re.findall(rf"\(({pages.NUMBER})\)", r.split("|")[-2])}
    assert len(rows) > 60 and len(numbers) > 100 and numbers <= set(BOOK.equations)


def test_what_is_laid_out_lists_and_links_to_pages_that_are_there(tmp_path):
    import build_site
    build_site.lay_out(BOOK, tmp_path)
    sources = [*tmp_path.rglob("*.ipynb"), *tmp_path.rglob("*.md")]
    assert len(sources) > 100
    for path in sources:
        text = path.read_text(encoding="utf8")
        if path.suffix == ".ipynb":
            told = nbformat.reads(text, 4).cells
            text = "\n\n".join(c.source for c in told if c.cell_type == "markdown")
        for names in re.findall(r"^```{toctree}\n:hidden:\n\n(.+?)\n```$", text, re.M | re.S):
            for name in names.splitlines():
                assert any((path.parent / f"{name}.{s}").exists() for s in ("md", "ipynb")), name
        text = re.sub(r"^```.*?^```|`[^`\n]+`", "", text, flags=re.M | re.S)
        for target in re.findall(r"\]\(([\w./-]+\.(?:md|ipynb|png|svg))(?:#[^)]*)?\)", text):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


def test_every_metric_stands_in_the_glossary():
    rows = [r for r in pages.metrics_page(BOOK).splitlines() if r.startswith("| `")]
    keys = [re.match(r"\| `([^`]+)`", r)[1] for r in rows]
    assert keys == list(METRICS)
    for row in rows:
        numbers = re.findall(rf"\(({pages.NUMBER})\)", row.split("|")[3])
        assert set(numbers) <= set(BOOK.equations)
        assert re.search(r"\[\w+\]\((\w+)\.ipynb\) \|$", row)[1] in BOOK.labels().values()


def exercise():
    "A chapter with one exercise, as a notebook."
    tagged = lambda make, source, *tags: make(source, metadata={"tags": list(tags)})
    return new_notebook(cells=[
        new_markdown_cell("# Sums\n> Of two."),
        tagged(new_code_cell, "from math import inf", "exercise-setup"),
        tagged(new_markdown_cell, "**Exercise 0.1 (derive, 5 minutes).** Add.", "exercise"),
        tagged(
            new_code_cell,
            "# @title Exercise 0.1\ndef add(a, b):\n    'Both.'\n    ### BEGIN SOLUTION\n"
            "    return a + b\n    ### END SOLUTION", "exercise", "solution", "hide-cell"
        ),
        tagged(new_code_cell, "assert add(1, 2) == 3", "check"),
        tagged(new_markdown_cell, "Because $1 + 2 = 3$.", "solution", "hide-cell"),
    ])


def test_a_solution_is_folded_below_its_stub():
    chapter = pages.Chapter("00_sums", "0", "Sums", "", "", exercise())
    cells = pages.page(chapter, BOOK).cells
    title, setup, text, stub, answer, check, why = cells
    assert "return a + b" not in stub.source and "raise NotImplementedError" in stub.source
    assert "hide-cell" not in stub.metadata.get("tags", []) and "def add" in stub.source
    assert "return a + b" in answer.source and "hide-cell" in answer.metadata["tags"]
    assert not re.search(r"###|@title", stub.source + answer.source)
    assert re.match(r"<details.*<summary>.*Because.*</details>$", why.source, re.S)
    assert title.source.startswith("# 0. Sums\n") and "students/00_sums.ipynb" in title.source


def test_folded_answers_are_read_as_markdown():
    made = pages.unfold_details("x\n<details><summary>Is $a$ so?</summary>Yes, `a`.</details>\n")
    lines = "x", "<details>", "<summary>", "Is $a$ so?", "</summary>", "Yes, `a`.", "</details>"
    assert [line for line in made.splitlines() if line] == list(lines)
    for text in ("Is $a$ so?", "Yes, `a`."):
        assert f"\n\n{text}\n\n" in made


@EACH
def test_a_notebook_for_colab_only_gets_a_first_cell(chapter):
    made = pages.for_colab(chapter.notebook, BOOK)
    nbformat.validate(made)
    first, *rest = made.cells
    compile(first.source, chapter.stem, "exec")
    assert rest == chapter.notebook.cells
    extras = pages.needed_extras(chapter.notebook)
    assert all(f"extras_{extra}" in BOOK.settings for extra in extras)
    assert f"HOME + \"{'[' + ','.join(extras) + ']' if extras else ''}\"" in first.source


def test_colab_keeps_its_own_torch(tmp_path, monkeypatch):
    torch, run = pytest.importorskip("torch"), []
    def fake(command, check):
        run.append(command)
        if command[0] == "git":
            (tmp_path / command[-1] / "nbs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", fake)
    monkeypatch.setattr(sys, "path", [*sys.path])
    exec(pages.for_colab(BOOK.chapters[1].notebook, BOOK).cells[0].source, {})
    assert [c[0] for c in run] == ["git", sys.executable]
    kept = (tmp_path / "kept.txt").read_text().splitlines()
    assert f"torch=={torch.__version__}" in kept and run[1][-4:-2] == ["-c", "kept.txt"]
    assert Path.cwd() == tmp_path / BOOK.settings["repo"] / "nbs"


def test_extras_are_found_in_code_only():
    page = new_notebook(cells=[new_markdown_cell("minigrid"), new_code_cell("import ray")])
    assert pages.needed_extras(page) == ["sweep"]


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "_static").mkdir()
    (tmp_path / "_static" / "equations.js").write_text('window.EQUATIONS = {"1.1": {}};\n')
    (tmp_path / "a.html").write_text(
        '<a href="b.html#x">1</a> <a href="b.html#y">2</a> <a href="c.html">3</a> '
        '<img src="no.png" alt="n"> <img src="b.html"> <script src="https://x.org/a.js"></script>'
    )
    (tmp_path / "b.html").write_text('<p id="x"></p> <a href="#x">1</a> <a href="//x.org">2</a>')
    faults = check_site.check_links(tmp_path)
    for said in ("#y", "c.html", "no.png", "1 pictures", "https://x.org/a.js", "(1.1)"):
        assert len([f for f in faults if said in f]) == 1
    assert len(faults) == 6


# --------------------------------------------------------------------------- the built site

missing = [n for n in ("sphinx", "myst_nb", "sphinx_book_theme") if not importlib.util.find_spec(n)]
if not (ROOT / "docs" / "node_modules" / "mathjax").is_dir():
    missing.append("mathjax (npm ci --prefix docs)")
built = pytest.mark.skipif(bool(missing), reason=f"to build the site install {', '.join(missing)}")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The whole site."
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, str(ROOT / "tools" / "build_site.py"), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, encoding="utf8")
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "html"


@built
def test_every_link_of_the_site_leads_somewhere(site):
    assert check_site.check_links(site) == []


@built
def test_mentions_of_equations_are_links(site):
    text = (site / "12_pop.html").read_text(encoding="utf8")
    assert 'href="10_retention.html#eq-8-8">(10.8)</a>' in text
    assert re.search(r'<span class="c1"># .*href="#eq-10-\d+\w?">\(10', text)
    assert re.search(r'href="api/retention.html#\w+"', text)


@built
def test_the_chinese_pages(site):
    text = (site / "zh" / "00_spaces.html").read_text(encoding="utf8")
    assert '<html lang="zh-CN"' in text and "一台嗡嗡响的机器" in text
    assert 'href="../05_vector_tokens.html#eq-5-7">(5.7)</a>' in text
    assert 'href="../api/spaces.html#ObsSpec"' in text and 'href="#eq-0-4">(0.4)</a>' in text
    preface = (site / "zh" / "index.html").read_text(encoding="utf8")
    assert 'href="../10_retention.html">Retention</a>' in preface
    assert 'href="../28_multimodal.html">第 28 章</a>' in preface
    assert 'href="00_spaces.html">' in preface and 'href="../00_spaces.html"' not in preface
    assert not list((site / "zh").glob("**/mathjax/*"))
    assert {p.stem for p in (site / "zh").glob("*_*.html")} == {"000_quickstart", "00_spaces"}


@built
@pytest.mark.skipif(bool(check_site.no_browser()), reason=check_site.no_browser() or "-")
def test_pages_in_chromium(site):
    names = ["10_retention.html", "symbols.html", "api/retention.html", "zh/00_spaces.html"]
    assert check_site.check(site, names, axe=check_site.AXE.exists()) == []
