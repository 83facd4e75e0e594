"""The house: who may import whom, how large a module is, how far a class inherits."""
import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "simulus_nb"
# in the order of reading: 000_quickstart, 00_ to 30_, then the appendices A_ to Z_
CHAPTERS = sorted(p.name for p in (ROOT / "nbs").glob("*.ipynb") if p.stem != "index")
TEXT = {
    p.stem: p.read_text(encoding="utf8")
    for p in sorted(PACKAGE.glob("*.py"))
    if p.stem not in ("__init__", "_modidx")
}
MODULES = pytest.mark.parametrize("name", TEXT)


def home(name):
    "The notebook that writes a module; a page of nbs/000_modules only begins its file."
    found = set(re.findall(r"^# %% \.\./nbs/([^/\s]+\.ipynb)", TEXT[name], re.M))
    assert len(found) == 1, f"{name}.py is written by {sorted(found)}"
    return found.pop()


def imports(text):
    "Our own modules that a module imports, anywhere in it, also inside functions."
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            path = (node.module or "").split(".")
            if node.level and node.module:
                found.add(path[0])
            elif node.level:
                found |= {a.name for a in node.names}
            elif path[0] == "simulus_nb":
                found |= {path[1]} if path[1:] else {a.name for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {
                a.name.split(".")[1] for a in node.names if a.name.startswith("simulus_nb.")
            }
    return found


@MODULES
def test_a_module_imports_only_from_chapters_before_it(name):
    own = CHAPTERS.index(home(name))
    late = [m for m in imports(TEXT[name]) if CHAPTERS.index(home(m)) > own]
    assert not late, f"{name} ({home(name)}) imports {late}, which come later in the book"


def test_no_circles():
    rest = {name: imports(text) for name, text in TEXT.items()}
    while rest:
        free = {name for name, wanted in rest.items() if not wanted & set(rest)}
        assert free, f"a circle among {sorted(rest)}"
        rest = {name: wanted for name, wanted in rest.items() if name not in free}


@pytest.mark.parametrize(
    "text",
    [
        "from .cli import main", "from simulus_nb.cli import main", "import simulus_nb.cli",
        "def f():\n    from .cli import main", "from simulus_nb import cli", "from . import cli"
    ],
)
def test_every_form_of_an_import_is_seen(text):
    assert imports(text) == {"cli"}


@MODULES
def test_no_module_is_more_than_a_twentieth_of_the_house(name):
    total = sum(len(text.splitlines()) for text in TEXT.values())
    assert len(TEXT[name].splitlines()) <= total / 20


def test_no_class_inherits_through_more_than_two_of_ours():
    parents = {}
    for text in TEXT.values():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                parents[node.name] = [
                    b.id if isinstance(b, ast.Name) else b.attr
                    for b in node.bases
                    if isinstance(b, (ast.Name, ast.Attribute))
                ]
    def depth(name):
        return 1 + max((depth(p) for p in parents[name] if p in parents), default=0)
    deep = {name: depth(name) for name in parents if depth(name) > 2}
    assert not deep, f"classes that stand on two or more of our own: {deep}"
