"""tools/mutate.py spoils exactly what it says, and tells a check that looks from one that does
not."""
import ast
import importlib.util
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("mutate", ROOT / "tools" / "mutate.py")
mutate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutate)


@pytest.mark.parametrize(
    "line, expected",
    [
        ("y = a + b", {"y = a - b", "y = a"}), ("y = a * 2", {"y = a / 2", "y = a * 3"}),
        ("y = -a", {"y = a"}), ("y = a < b", {"y = a > b"}), ("y = a <= b", {"y = a < b"}),
        ("y = f(a)", set()), ("y = 0.5", {"y = 1.5"}), ("y = γ - c", {"y = γ + c", "y = γ"}),
        ("y = (a - b) * c", {"y = (a + b) * c", "y = (a) * c", "y = (a - b) / c"}),
    ],
)
def test_every_way_to_spoil_a_line(line, expected):
    before, after = "x = 1 + 1\n", "\nz = 2 * x\n"
    found = mutate.spoilt(before + line + after, 2)
    assert {f.removeprefix(before).removesuffix(after) for f in found} == expected


def test_the_book_offers_many_and_all_are_python():
    found = [m for p in sorted((ROOT / "nbs").glob("0*_*.ipynb")) for m in mutate.mutants(p)]
    assert len({(m.chapter, m.cell, m.line) for m, _ in found}) > 50
    assert all(ast.parse(source) and m.before != m.after for m, source in found)


@pytest.mark.parametrize("cell, module", [
    ("#| export\nx = 1", "own"), ("#| exports other\nx = 1", "other"), ("x = 1", ""),
    ("#| hide\n#| exports\nx = 1", "own"), ("# exports\nx = 1", ""),
])
def test_where_a_cell_goes(cell, module):
    assert mutate.module_of(cell, "own") == module
