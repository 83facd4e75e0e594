"""Lists of what differs from the published agent: numbered without gaps, and all of them on the
page of chapter 37."""
import json
import re
from pathlib import Path

import pytest

NBS = Path(__file__).parents[1] / "nbs"
PAGES = sorted(NBS.glob("[0-9A-Z]*.ipynb"))
ITEM = re.compile(r"\*\*D(\d+|[A-Z])\.(\d+)\b")
# chapters that build what the published agent has too
PARTS = tuple(map(str, (1, 2, 3, 6, 7, 8, 11, 14, 15, 16, 17, 18, 20, 21, 22)))


def cells(path):
    return json.loads(path.read_text(encoding="utf8"))["cells"]


def markdown(path):
    return "\n".join("".join(c["source"]) for c in cells(path) if c["cell_type"] == "markdown")


def items(path):
    "(chapter, number, line) of every labelled item on a page."
    return [
        (m[1], int(m[2]), line)
        for line in markdown(path).splitlines()
        for m in ITEM.finditer(line)
    ]


def shown():
    "The list that chapter 37 has printed."
    page = cells(NBS / "37_atari.ipynb")
    found = [
        c for c in page if c["cell_type"] == "code" and "differences_listed" in "".join(c["source"])
    ]
    assert len(found) == 1
    return "".join(
        "".join(x["data"]["text/markdown"]) for x in found[0]["outputs"] if "data" in x
    ).splitlines()


@pytest.mark.parametrize("path", [p for p in PAGES if items(p)], ids=lambda p: p.stem)
def test_items_carry_their_chapter_and_have_no_gaps(path):
    found = items(path)
    assert [(chapter, number) for chapter, number, _ in found] == [
        (path.name.split("_")[0].lstrip("0"), i) for i in range(1, len(found) + 1)
    ]


def test_every_part_of_the_agent_has_a_list():
    assert set(PARTS) <= {chapter for path in PAGES for chapter, *_ in items(path)}


def test_the_chapter_on_atari_shows_every_item_as_its_chapter_has_it():
    listed = [line for path in PAGES for *_, line in items(path)]
    assert [line for line in shown() if ITEM.search(line)] == listed, "run nbs/37_atari.ipynb again"
    assert all(f"]({path.name})" in "\n".join(shown()) for path in PAGES if items(path))
