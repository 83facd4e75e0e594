"""What teachers get: facts that agree with the chapters, plans and labs that name what is there,
slides that hold each chapter and load nothing, a citation that agrees with the settings."""
import json
import random
import re
import shlex
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

nbformat = pytest.importorskip("nbformat")
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))
import course_facts
import site_pages as pages

TEACH = ROOT / "docs" / "teach"
BOOK = pages.read_book()
BY_LABEL = {c.label: c for c in BOOK.chapters if c.label}
STORED = json.loads((TEACH / "facts.json").read_text(encoding="utf8"))["chapters"]
TODAY = course_facts.facts(BOOK, {})
EXERCISES = {n for fact in TODAY.values() for n in fact["exercises"]}
TEXTS = {path.stem: path.read_text(encoding="utf8") for path in TEACH.glob("*.md")}
AGAIN = "run python tools/course_facts.py"
each_page = pytest.mark.parametrize("name", TEXTS)


# ------------------------------------------------------------------------------------- facts

def test_facts_are_those_of_the_chapters():
    assert list(STORED) == list(TODAY), AGAIN
    for stem, fact in TODAY.items():
        stored = STORED[stem]
        same = ("label", "title", "part", "needs", "exercises")
        assert {k: stored[k] for k in same} == {k: fact[k] for k in same}, f"{stem}: {AGAIN}"
        assert abs(stored["words"] - fact["words"]) <= fact["words"] / 10, f"{stem}: {AGAIN}"
        assert stored["seconds"] is None or stored["seconds"] > 0


def test_what_follows_from_the_facts_is_written():
    for path, text in course_facts.written(STORED).items():
        assert path.read_text(encoding="utf8") == text, f"{path.name}: {AGAIN}"


def test_a_chapter_needs_earlier_ones_only():
    order = list(STORED)
    for stem, fact in STORED.items():
        assert all(order.index(n) < order.index(stem) for n in fact["needs"])


def everything(needs):
    "For each chapter all that it needs, by any way."
    whole = {}
    for stem, found in needs.items():
        whole[stem] = set(found).union(*(whole[n] for n in found))
    return whole


@pytest.mark.parametrize("seed", range(20))
def test_direct_needs_lose_nothing_and_hold_nothing_twice(seed):
    rng = random.Random(seed)
    known = {
        str(i): {"needs": [str(j) for j in range(i) if rng.random() < 0.4]} for i in range(10)
    }
    direct = course_facts.direct(known)
    whole = everything(direct)
    assert whole == everything({stem: fact["needs"] for stem, fact in known.items()})
    for found in direct.values():
        assert not [(n, m) for n in found for m in found if n in whole[m]]


def test_words_are_those_of_the_prose():
    exercise = new_markdown_cell("ten more words", metadata={"tags": ["exercise"]})
    page = new_notebook(cells=[
        new_markdown_cell("# Two words\n\n$$ not = this \\tag{1.1} $$\n\n```\nnor this\n```"),
        new_code_cell("nothing = 'of code'"), exercise, new_markdown_cell("and four more here"),
    ])
    assert course_facts.words(page) == 6


def test_the_picture_shows_each_chapter_and_each_direct_need():
    svg = ElementTree.fromstring(course_facts.picture(STORED))
    named = lambda kind: svg.findall(f".//{{http://www.w3.org/2000/svg}}{kind}")
    shown = {s: fact for s, fact in STORED.items() if fact["label"].isdigit()}
    assert [a.get("href") for a in named("a")] == [f"../{s}.html" for s in shown]
    assert len(named("path")) == sum(map(len, course_facts.direct(shown).values()))
    width, height = map(float, svg.get("viewBox").split()[2:])
    for box in named("rect"):
        x, y, w, h = (float(box.get(k)) for k in ("x", "y", "width", "height"))
        assert 0 <= x <= x + w <= width and 0 <= y <= y + h <= height


def test_a_drawing_becomes_a_part_of_its_page():
    page = pages.folder_page(TEACH / "goals.md", BOOK)
    assert re.search(r'<svg role="group" aria-label="[^"]{20,}"', page)
    assert "](needs.svg)" not in page and "![" not in page


# ------------------------------------------------------------------------------------- pages

@each_page
def test_mentions_are_of_what_is_there(name):
    text = re.sub(r"```.*?```", "", TEXTS[name], flags=re.S)
    assert set(re.findall(rf"\(({pages.NUMBER})\)", text)) <= set(BOOK.equations)
    assert set(re.findall(r"[Cc]hapters? (\d+)", text)) <= set(BY_LABEL)
    asked = re.findall(r"[Ee]xercises?:?\*{0,2} ((?:\d+\.\d+(?:, | and )?)+)", text)
    assert {n for one in asked for n in re.findall(r"\d+\.\d+", one)} <= EXERCISES
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (TEACH / target).exists(), target


@each_page
def test_named_sections_exist(name):
    "chapter 10, *In blocks*: a heading of that chapter."
    for label, rest in re.findall(r"chapter (\d+), ((?:\*[^*]+\*(?:, )?)+)", TEXTS[name]):
        source = "\n".join(c.source for c in BY_LABEL[label].notebook.cells)
        for title in re.findall(r"\*([^*]+)\*", rest):
            assert re.search(rf"^##+ {re.escape(title)}$", source, re.M), (label, title)


def weeks():
    "The sections of the syllabus: title, chapters, exercises."
    line = lambda name: rf"- \*\*{name}:\*\*(.+)\n"
    found = re.findall(
        rf"^### (.+)\n\n{line('Read')}{line('Goals')}{line('Exercises')}{line('Time')}",
        TEXTS["syllabus"], re.M
    )
    return [
        (title, re.findall(r"chapter (\d+)", read), re.findall(r"\d+\.\d+", asked))
        for title, read, _, asked, _ in found
    ]


def test_a_week_asks_for_exercises_of_its_chapters():
    for title, read, asked in weeks():
        assert read and {n.partition(".")[0] for n in asked} <= set(read), title


def test_two_plans_cover_the_course():
    plan = [read for title, read, _ in weeks() if title.startswith("Week ")]
    assert len(plan) == 12 and len([t for t, *_ in weeks() if t.startswith("Day ")]) == 8
    order = [int(label) for read in plan for label in read]
    assert order == sorted(set(order))                              # none twice, none early
    named = set(re.findall(r"[Cc]hapters? (\d+)(?: and (\d+))?", TEXTS["syllabus"]))
    named = {label for pair in named for label in pair}
    assert {str(i) for i in range(24)} <= named


def test_every_chapter_of_the_course_has_goals():
    for label in map(str, range(24)):
        goal = re.search(rf"^- \*\*Chapter {label}\.\*\*((?:.|\n  )+)", TEXTS["goals"], re.M)
        assert 2 <= len(re.findall(r"\*[A-Za-z]+\*", goal[1])) <= 6, label


def test_misunderstandings_say_what_shows_them():
    parts = re.split(r"^\*\*\d+\. ", TEXTS["misunderstandings"], flags=re.M)[1:]
    assert len(parts) >= 15
    for part in parts:
        shows = part.partition("*Show:*")[2]
        assert re.search(r"chapter \d|exercise \d|\(\d", shows), part[:50]


def labs():
    return re.split(r"^## Lab ", TEXTS["labs"], flags=re.M)[1:]


def test_labs_have_a_rubric_of_twenty_points():
    assert len(labs()) == 5
    for lab in labs():
        points = [int(n) for n in re.findall(r"^\| (\d+) \|", lab, re.M)]
        assert sum(points) == 20 and "*Usual mistakes:*" in lab, lab[:40]


def commands():
    "All commands of the pages."
    for text in TEXTS.values():
        blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.S))
        quoted = re.findall(r"`(simulus-nb \w+[^`]*)`", text)
        yield from (line.strip() for line in [*blocks.splitlines(), *quoted] if line.strip())


@pytest.mark.parametrize("command", sorted({c for c in commands() if c.startswith("simulus-nb")}))
def test_commands_are_understood(command):
    from simulus_nb import cli
    assert cli.parse(shlex.split(command)[1:])


def test_settings_that_labs_name_exist():
    from simulus_nb.config import preset
    named = re.findall(r"`--((?:\w|-)+\.[\w.-]+) ([\d.]+)`", TEXTS["labs"])
    assert len(named) >= 3
    for name, value in named:
        preset("catch").change({name.replace("-", "_"): json.loads(value)})


# ------------------------------------------------------------------------------------ slides

class Slides(HTMLParser):
    "Places, links and texts of pictures of a page of slides."

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.loaded, self.alts = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids += [attrs[k] for k in ("id",) if k in attrs]
        if tag == "a":
            self.links.append(attrs["href"])
        else:
            self.loaded += [attrs[k] for k in ("src", "href") if k in attrs]
        self.alts += [attrs.get("alt")] * (tag == "img")


@pytest.fixture(scope="module")
def slides():
    pytest.importorskip("markdown_it")
    pytest.importorskip("mdit_py_plugins")
    import make_slides
    return make_slides


PARTS = [part for part in pages.parts(BOOK) if part and "looking things up" not in part]


@pytest.mark.parametrize("part", PARTS)
def test_slides_hold_each_chapter_of_a_part(part, slides):
    chapters = slides.decks(BOOK)[part]
    assert chapters == pages.parts(BOOK)[part]
    text = slides.deck(part, chapters, BOOK)
    page = Slides(text)
    stems = [c.stem for c in chapters]
    assert [i for i in page.ids if not i.startswith("eq-")] == stems
    numbers = [n for n, (stem, _) in BOOK.equations.items() if stem in stems]
    places = ["eq-" + n.replace(".", "-") for n in numbers]
    assert [i for i in page.ids if i.startswith("eq-")] == places
    sources = ["\n".join(c.source for c in chapter.notebook.cells) for chapter in chapters]
    for sign, title in (("**You will**", "You will</strong>"),
                        ("## What to remember", "<h2>What to remember</h2>")):
        assert text.count(title) == sum(sign in source for source in sources)
    assert {f"../{stem}.html" for stem in stems} <= set(page.links)
    assert page.alts and all(re.match(r"Figure \w+\.\d+\. \w", alt) for alt in page.alts)
    assert text.count("<section") == text.count("</section>")


@pytest.mark.parametrize("part", PARTS)
def test_slides_load_nothing_from_elsewhere(part, slides):
    page = Slides(slides.deck(part, slides.decks(BOOK)[part], BOOK))
    own = r"\.\./_static/[\w/.-]+$|data:image/png;base64,|data:,$"
    assert all(re.match(own, loaded) for loaded in page.loaded)
    known = {c.stem for c in BOOK.chapters}
    for link in page.links:
        found = re.fullmatch(r"\.\./(\w+)\.html(?:#eq-(\w+)-(\w+)|#[\w-]+)?|#/(\w+)", link)
        assert found or link.startswith("https://"), link
        if found:
            assert (found[1] or found[4]) in known
            assert not found[2] or f"{found[2]}.{found[3]}" in BOOK.equations


def test_slides_are_listed():
    listed = re.findall(r'<a href="\.\./slides/([\w-]+)\.html">(.+?)</a>', TEXTS["slides"])
    assert listed == [(pages.part_name(part), part) for part in PARTS]


def test_a_slide_is_made_of_formulas_figures_and_the_summary(slides):
    png = new_output("display_data", {"image/png": "QUJD"})
    notebook = new_notebook(cells=[
        new_markdown_cell("# Sums\n> Of $a < b$.\n\n**You will** add. You need: nothing."),
        new_markdown_cell("## Two\n\nText (10.1).\n\n$$ a < b \\tag{0.1} $$\n\n$$ c \\tag{0.2} $$"),
        new_code_cell("draw()", outputs=[png]),
        new_markdown_cell("*Figure 0.1. A `sum` of $a$.* More."),
        new_markdown_cell("Four.\n\n$$ d \\tag{0.3} $$", metadata={"tags": ["solution"]}),
        new_markdown_cell("## What to remember"), new_markdown_cell("- All of (10.1)."),
        new_markdown_cell("## What goes wrong\n\nMuch."),
    ])
    known = {"0.1": ("00_sums", ""), "0.2": ("00_sums", ""), "10.1": ("10_retention", "")}
    book = pages.Book([], known, {}, {})
    text = slides.of_chapter(pages.Chapter("00_sums", "0", "Sums", "", "", notebook), book)
    title, formulas, figure, summary = text.split("<h2>")[1:]
    assert title.startswith("0. Sums</h2>") and "<strong>You will</strong> add." in title
    assert "nothing" not in title and r"\(a &lt; b\)" in title
    assert "a &lt; b \\tag{0.1}" in formulas and 'href="../00_sums.html#eq-0-2"' in formulas
    assert 'alt="Figure 0.1. A sum of a."' in figure and "base64,QUJD" in figure
    assert r"<code>sum</code> of <span" in figure and "More" not in figure
    assert '<a href="../10_retention.html#eq-10-1">(10.1)</a>' in summary
    assert "0.3" not in text and "Much" not in text


# ---------------------------------------------------------------------------------- citation

def test_the_citation_agrees_with_the_settings():
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf8"))
    s = BOOK.settings
    assert cited["cff-version"] == "1.2.0" and cited["type"] == "software"
    assert str(cited["version"]) == s["version"] and cited["repository-code"] == s["git_url"]
    assert cited["license"] == "Apache-2.0" and s["license"] == "apache2"
    assert cited["title"].startswith(s["title"]) and s["description"] in cited["abstract"]
    assert cited["authors"] == [{"name": s["author"]}]
    assert cited["keywords"] == s["keywords"].split()
    readme = (ROOT / "README.md").read_text(encoding="utf8")
    for paper in cited["references"]:
        people = [f"{one['given-names']} {one['family-names']}" for one in paper["authors"]]
        assert f"- {', '.join(people)}: *{paper['title']}*" in readme and paper["url"] in readme
    assert f"version {s['version']}" in TEXTS["reuse"]
