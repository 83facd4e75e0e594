"""The book itself: numbered equations, each computed by code and checked; notebooks that are
executed, clean and small. Runs nothing."""
import ast
import json
import re
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BOOKS = sorted(p for p in (ROOT / "nbs").glob("*.ipynb") if not p.name.startswith(("_", ".")))
BEGINNINGS = sorted((ROOT / "nbs" / "000_modules").glob("*.ipynb"))
MODULES = sorted((ROOT / "simulus_nb").glob("**/*.py"))
LARGEST = 3 * 2**19                                             # 1.5 MiB
# Pieces of words, so that this file does not find itself.
FORBIDDEN = [
    "/wo" "rk/", "../sha" "red", "/opt/py" "pi", "/opt/whe" "els", "python" "hosted",
    "/tm" "p/", "/ro" "ot/", "/ho" "me/"
]


# of an equation: chapter, then place in it; 8.1, 8.1a, B.3
NUMBER = r"(?:\d+|[A-Z])\.\d+[a-z]?"


def label(path):
    "'8' for 10_retention, 'B' for B_accelerate; None for a page without a number."
    found = re.match(r"(?:0?(\d+)|([A-Z]))_", path.name) if path.name[:3] != "000" else None
    return found and (found[1] or found[2])


def cells(path, kind=None):
    "Cells of a notebook as (kind, source) pairs, or the sources of one kind."
    found = [
        (c["cell_type"], "".join(c["source"]))
        for c in json.loads(path.read_text(encoding="utf8"))["cells"]
    ]
    return found if kind is None else [s for k, s in found if k == kind]


def course(path):
    """Sources of the code cells outside the exercises: what a reader may change proves no equation
    and no function."""
    of_exercises = {"exercise-setup", "exercise", "check"}
    return [
        "".join(c["source"])
        for c in json.loads(path.read_text(encoding="utf8"))["cells"]
        if c["cell_type"] == "code" and not of_exercises & set(c["metadata"].get("tags", []))
    ]


def equations(path):
    "Bodies of the display equations of a notebook, in order."
    prose = "\n\n".join(cells(path, "markdown"))
    parts = prose.split("$$")
    assert len(parts) % 2, f"{path.name}: a $$ without its partner"
    assert r"\[" not in re.sub(r"\\\\\[", "", prose) and r"\begin{equation" not in prose, (
        f"{path.name}: write display equations between $$"
    )
    return parts[1::2]


def tags(path):
    "Numbers of the equations of a notebook: '8.1', '8.2', ..."
    return [t for body in equations(path) for t in re.findall(r"\\tag\{(.*?)\}", body)]


def citations(text):
    "Numbers cited as Eq. (c.n), also in lists: Eqs. (c.1), (c.2) and (c.3)."
    lists = re.findall(
        rf"\bEqs?\.?:?\s*((?:\({NUMBER}\)(?:\s*(?:[,;/=–-]|and|to|or)\s*)*)+)", text
    )
    return {number for one in lists for number in re.findall(NUMBER, one)}


def cited_by_code(text):
    "Numbers in brackets on lines that say Eq. or Eqs.; prose between them is allowed."
    return {
        n
        for line in text.splitlines()
        if re.search(r"\bEqs?\b", line)
        for n in re.findall(rf"\(({NUMBER})\)", line)
    }


def exports(source):
    "Whether a code cell goes into the library."
    return re.search(r"^#\|\s*exports?i?\b", source, re.M) is not None


def checks(source):
    "Whether a code cell is a check: it asserts, and it is no part of the library."
    return not exports(source) and re.search(r"\bassert\b", source) is not None


ALL_TAGS = {t for p in BOOKS for t in tags(p)}
IN_LIBRARY = cited_by_code("\n".join(p.read_text(encoding="utf8") for p in MODULES))
books = pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem)


def test_there_is_a_book():
    assert len(BOOKS) > 20 and len(ALL_TAGS) > 200 and len(MODULES) > 20


@books
def test_equations_are_numbered(path):
    """Every display equation carries one number: chapter, then 1, 2, 3 ...

    in order, with 5a, 5b after 5. So numbers are unique, since chapters are."""
    bodies, numbers = equations(path), tags(path)
    assert not [body for body in bodies if body.count(r"\tag{") != 1]
    if numbers:
        chapter = label(path)
        parts = [re.fullmatch(rf"{chapter}\.(\d+)([a-z]?)", n).groups() for n in numbers]
        order = [(int(n), letter) for n, letter in parts]
        assert order == sorted(set(order))
        assert [n for n, letter in order if not letter] == list(range(1, order[-1][0] + 1))


def test_chapters_have_their_own_number():
    labels = [label(p) for p in BOOKS if p.stem not in ("index", "000_quickstart")]
    assert None not in labels and len(labels) == len(set(labels))


@books
def test_equations_are_computed_and_checked(path):
    code = course(path)
    computed = cited_by_code("\n".join(code)) | IN_LIBRARY
    checked = {
        n for source in code if checks(source) for n in re.findall(rf"\(({NUMBER})\)", source)
    }
    assert set(tags(path)) <= computed, f"no code line cites {sorted(set(tags(path)) - computed)}"
    assert set(tags(path)) <= checked, f"no check cell mentions {sorted(set(tags(path)) - checked)}"


@pytest.mark.parametrize("path", BOOKS + MODULES, ids=lambda p: p.name)
def test_cited_equations_exist(path):
    if path.suffix == ".py":
        found = cited_by_code(path.read_text(encoding="utf8"))
    else:
        found = cited_by_code("\n".join(cells(path, "code"))) | citations(
            "\n\n".join(cells(path, "markdown"))
        )
    assert found <= ALL_TAGS, f"cited, but numbered nowhere: {sorted(found - ALL_TAGS)}"


@books
def test_exported_names_are_checked(path):
    "A public function or class of the library is used in a check cell after its definition."
    sources, missing = course(path), []
    for i, source in enumerate(sources):
        if exports(source):
            later = [s for s in sources[i + 1:] if checks(s)]
            for node in ast.parse(source).body:
                if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith(
                    "_"
                ):
                    if not any(re.search(rf"\b{node.name}\b", s) for s in later):
                        missing.append(node.name)
    assert not missing, f"exported, never checked afterwards: {missing}"


@books
def test_notebook_is_executed_clean_and_small(path):
    notebook = json.loads(path.read_text(encoding="utf8"))
    code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    outputs = [o for c in code for o in c["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert outputs or not any(c["source"] for c in code), (
        "no output is stored: execute the notebook"
    )
    assert all(c["execution_count"] is None for c in code), "clean the notebook: nbdev_clean"
    assert path.stat().st_size < LARGEST
    ids = [c["id"] for c in notebook["cells"]]
    assert len(ids) == len(set(ids))


@books
def test_notebook_opens_with_title(path):
    first = cells(path)[0]
    assert first[0] == "markdown" and re.match(r"# \S.*\n+> \S", first[1]), (
        "begin with `# Title` and a `> line` that says what it is"
    )


@pytest.mark.parametrize(
    "path", [p for p in BOOKS if p.stem not in ("index", "Y_gallery")], ids=lambda p: p.stem
)
def test_figures_are_numbered_and_have_a_caption(path):
    """Below a cell that shows a picture or a film stands its caption, `*Figure 8.1. ...*`, numbered
    in order: a text, or what the next cell makes."""
    page = json.loads(path.read_text(encoding="utf8"))["cells"]
    text = lambda x: "".join(x)
    made = lambda c: [o.get("data", {}) for o in c.get("outputs", [])]
    shows = lambda c: (
        any("image/png" in d or "<video" in text(d.get("text/html", "")) for d in made(c))
        or c["cell_type"] == "markdown" and "![" in text(c["source"])
    )
    says = lambda c: text(c["source"]) if c["cell_type"] == "markdown" else "".join(
        text(d.get("text/markdown", "")) for d in made(c)
    )
    below = [says(b) for c, b in zip(page, page[1:]) if shows(c)]
    numbers = [f"{label(path) or 'Q'}.{i}" for i in range(1, len(below) + 1)]
    bare = [n for n, said in zip(numbers, below) if not said.startswith(f"*Figure {n}.")]
    assert not bare and not shows(page[-1]), f"no caption below the pictures {bare}"


@pytest.mark.parametrize("path", BEGINNINGS, ids=lambda p: p.stem)
def test_a_page_that_begins_a_module_names_where_it_goes_on(path):
    "One module, written by cells of one chapter, which the page links to."
    name = path.stem.removeprefix("000_")
    assert re.findall(r"#\| default_exp (\w+)", "\n".join(cells(path, "code"))) == [name]
    exported = re.compile(rf"^#\|\s*exports? {name}$", re.M)
    homes = [p.name for p in BOOKS if any(exported.search(s) for s in cells(p, "code"))]
    assert re.findall(r"\]\(\.\./(\S+?)\)", "\n".join(cells(path, "markdown"))) == homes


@books
def test_code_cells_are_short(path):
    lengths = [
        len([l for l in source.splitlines() if l.strip() and not l.startswith("#|")])
        for source in cells(path, "code")
    ]
    assert max(lengths, default=0) <= 60


@books
def test_code_compiles_without_warnings(path):
    "For one, a backslash of LaTeX in a string that is not raw: newer Pythons complain."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for source in cells(path, "code"):
            compile(source, path.name, "exec")


@pytest.mark.parametrize(
    "path",
    sorted(
        p
        for pattern in (
            "nbs/**/*.ipynb", "simulus_nb/**/*.py", "tests/*.py", "*.md", "*.ini", "*.toml", "*.py",
            ".ci/*"
        )
        for p in ROOT.glob(pattern)
        if ".ipynb_checkpoints" not in p.parts
    ),
    ids=lambda p: p.name,
)
def test_nothing_points_outside_the_repository(path):
    text = path.read_text(encoding="utf8")
    if path.suffix == ".ipynb":                                 # pictures are random letters
        notebook = json.loads(text)
        for cell in notebook["cells"]:
            for output in cell.get("outputs", []):
                output["data"] = {
                    k: v for k, v in output.get("data", {}).items() if not k.startswith("image/")
                }
        text = json.dumps(notebook)
    assert not [word for word in FORBIDDEN if word in text]


def test_appendix_lists_every_equation():
    "The stored table of `Z_equations` is the one that the notebooks of today give."
    path = ROOT / "nbs" / "Z_equations.ipynb"
    shown = "".join(
        json.dumps(o)
        for c in json.loads(path.read_text(encoding="utf8"))["cells"]
        if c["cell_type"] == "code"
        for o in c["outputs"]
    )
    assert set(re.findall(rf"\*\*\(({NUMBER})\)\*\*", shown)) == ALL_TAGS
