"""What a teacher wants to know of each chapter, taken from the notebooks: docs/teach/facts.json.

    python tools/course_facts.py                        # words, exercises and what a chapter needs
    python tools/course_facts.py --time                 # and the seconds of all cells: runs them
    python tools/course_facts.py --time 10_retention    # of this one

It also writes what follows from them: the picture of what needs what (docs/teach/needs.svg), the
table in goals.md and the hours in syllabus.md. Without --time the stored seconds stay. They are
seconds of one CPU core, of the kernel and what it starts: a busy machine says nearly the same."""
import argparse
import html
import json
import re
import sys
from datetime import date
from pathlib import Path
from textwrap import wrap

import site_pages as pages
from make_student import exercises

ROOT = Path(__file__).resolve().parent.parent
TEACH = ROOT / "docs" / "teach"
FACTS = TEACH / "facts.json"
LISTS = ("Y", "Z")                      # pages for looking up: nobody runs them to learn
OF_EXERCISES = {"exercise-setup", "exercise", "solution", "check"}
WORDS_A_MINUTE = 100                    # of a text with formulas and code; an assumption
# Boxes of the picture, in its own units.
WIDE, HIGH, ACROSS, DOWN, ABOVE = 118, 46, 130, 102, 20


# ------------------------------------------------------------------------------- from notebooks

def course(notebook, kind: str) -> str:
    "The sources of one kind of cells outside the exercises."
    return "\n\n".join(
        c.source for c in notebook.cells
        if c.cell_type == kind and not OF_EXERCISES & set(c.metadata.get("tags", []))
    )


def words(notebook) -> int:
    "Words of the prose, without display equations and blocks of code."
    left_out = r"\$\$.*?\$\$|^(```|~~~).*?^\1"
    text = re.sub(left_out, " ", course(notebook, "markdown"), flags=re.S | re.M)
    return len(re.findall(r"[^\W\d_][\w'’-]*", text))


def needs(chapter: pages.Chapter, book: pages.Book) -> list[str]:
    "Earlier chapters whose modules its code imports, or whose equations its prose mentions."
    home = {module: exports[0].stem for module, exports in book.exports.items()}
    modules = re.findall(r"(?:from|import) simulus_nb\.(\w+)", course(chapter.notebook, "code"))
    numbers = re.findall(rf"\(({pages.NUMBER})\)", course(chapter.notebook, "markdown"))
    found = {home.get(m) for m in modules} | {book.equations.get(n, ("",))[0] for n in numbers}
    order = [c.stem for c in book.chapters if c.label]
    return [stem for stem in order[:order.index(chapter.stem)] if stem in found]


def facts(book: pages.Book, seconds: dict[str, float]) -> dict[str, dict]:
    "All that is known of each chapter with a number: {notebook: facts}."
    return {
        c.stem: {
            "label": c.label, "title": c.title, "part": c.part, "words": words(c.notebook),
            "needs": needs(c, book),
            "exercises": {e.number: e.minutes for e in exercises(c.notebook)[1]},
            "seconds": seconds.get(c.stem),
        }
        for c in book.chapters if c.label and c.label not in LISTS
    }


def circumstances() -> str:
    "On what the seconds were measured."
    from simulus_nb.origin import processor, versions
    made = versions()
    return (f"{date.today()}, {processor()}, Python {made['python']}, torch {made['torch']}, "
            "one thread")


def time_cells(notebook) -> float:
    "Seconds of one core that all cells take, from a fresh kernel. Nothing is stored."
    from nbclient import NotebookClient
    from nbformat.v4 import new_code_cell
    notebook.cells.append(new_code_cell("import os\nprint(sum(os.times()[:4]))"))
    NotebookClient(
        notebook, timeout=None, kernel_name="python3",
        resources={"metadata": {"path": str(ROOT / "nbs")}},
    ).execute()
    return round(float(notebook.cells.pop().outputs[0].text), 1)


# -------------------------------------------------------------------------------- what follows

def direct(known: dict[str, dict]) -> dict[str, list[str]]:
    "What a chapter needs directly: without what one of these needs itself."
    whole = {}
    for stem, fact in known.items():                    # in reading order
        whole[stem] = set(fact["needs"]).union(*(whole[n] for n in fact["needs"]))
    return {
        stem: [n for n in fact["needs"] if not any(n in whole[m] for m in fact["needs"])]
        for stem, fact in known.items()
    }


def clock(minutes: float) -> str:
    "Minutes for people, to the next five."
    hours, rest = divmod(5 * max(1, round(minutes / 5)), 60)
    return " ".join([f"{hours} h"] * (hours > 0) + [f"{rest} min"] * (rest > 0 or not hours))


def seconds_of(rows: list[dict]) -> str:
    "Measured seconds of the cells of some chapters, or a dash where one was not measured."
    found = [row["seconds"] for row in rows]
    return "–" if None in found else f"{sum(found):,.0f} s"


def table(known: dict[str, dict]) -> str:
    "The chapters with what they need and what they take; a sum for each part."
    link = lambda stem, text: f"[{text}](../../nbs/{stem}.ipynb)"
    cost = lambda rows: (
        f"{sum(r['words'] for r in rows):,} | "
        f"{sum(len(r['exercises']) for r in rows) or '–'} | "
        f"{clock(sum(sum(r['exercises'].values()) for r in rows))} | {seconds_of(rows)} |"
    ).replace("| – | 5 min |", "| – | – |")
    lines = ["| Chapter | Needs directly | Words | Exercises | Their time | Cells |",
             "|---|---|---|---|---|---|"]
    below = direct(known)
    for part in dict.fromkeys(fact["part"] for fact in known.values()):
        inside = {stem: fact for stem, fact in known.items() if fact["part"] == part}
        lines.append(f"| **{part}** | | {cost(list(inside.values()))}")
        for stem, fact in inside.items():
            needed = ", ".join(link(n, known[n]["label"]) for n in below[stem]) or "nothing"
            name = link(stem, f"{fact['label']}. {fact['title']}")
            lines.append(f"| {name} | {needed} | {cost([fact])}")
    return "\n".join(lines)


def with_table(text: str, known: dict[str, dict]) -> str:
    "goals.md with the table of today between its marks."
    between = r"(?<=<!-- facts -->\n).*(?=<!-- end -->)"
    return re.sub(between, lambda m: f"\n{table(known)}\n\n", text, flags=re.S)


def with_hours(text: str, known: dict[str, dict]) -> str:
    "syllabus.md with the time of each week, from its chapters and its exercises."
    by_label = {fact["label"]: fact for fact in known.values()}
    minutes = {n: m for fact in known.values() for n, m in fact["exercises"].items()}
    def fill(found):
        labels = re.findall(r"(?:chapter|appendix) (\w+)", found["read"])
        read = [by_label[label] for label in labels]
        reading = clock(sum(row["words"] for row in read) / WORDS_A_MINUTE)
        asked = re.findall(r"\d+\.\d+", found["asked"])
        tasks = clock(sum(minutes[n] for n in asked)) if asked else "none"
        time = f"reading {reading}, exercises {tasks}, cells {seconds_of(read)}"
        return f"{found['head']}- **Time:** {time}"
    read, asked = r"- \*\*Read:\*\*(?P<read>[^#]*?)", r"^- \*\*Exercises:\*\*(?P<asked>[^#]*?)"
    return re.sub(rf"(?P<head>{read}{asked})^- \*\*Time:.*?$", fill, text, flags=re.S | re.M)


def picture(known: dict[str, dict]) -> str:
    """The chapters with a number as boxes, a row for each part, and lines to what they need
    directly: SVG in the colours of the page that shows it. A box leads to its chapter."""
    shown = {stem: fact for stem, fact in known.items() if fact["label"].isdigit()}
    rows = list(dict.fromkeys(fact["part"] for fact in shown.values()))
    place, filled = {}, dict.fromkeys(rows, 0)
    for stem, fact in shown.items():
        place[stem] = 2 + ACROSS * filled[fact["part"]], DOWN * rows.index(fact["part"]) + ABOVE
        filled[fact["part"]] += 1
    width, height = ACROSS * max(filled.values()), DOWN * len(rows)
    out = [
        f'<svg class="needs" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">',
        "<style>", ".needs { --ink: #24292f; --paper: #ffffff; --line: #6e7781;",
        "  font: 11px sans-serif; min-width: 46rem; width: 100%; }",
        ".needs .part { font-weight: bold; }",
        "@media (prefers-color-scheme: dark) {",
        "  .needs { --ink: #e6edf3; --paper: #161b22; --line: #9198a1; } }",
        ".needs text { fill: var(--pst-color-text-base, var(--ink)); }",
        ".needs rect { fill: var(--pst-color-surface, var(--paper)); }",
        ".needs rect, .needs path { stroke: var(--pst-color-text-muted, var(--line)); }",
        ".needs path { fill: none; opacity: .55; }", ".needs a:hover rect { stroke-width: 3; }",
        "</style>",
    ]
    for stem, needed in direct(shown).items():
        x, y = place[stem]
        for other in needed:
            u, v = place[other]
            if v == y:                                  # in one row: below the boxes
                start, end, deep = u + WIDE * .7, x + WIDE * .3, y + HIGH + 22
                bend = f"C{start:.0f} {deep} {end:.0f} {deep} {end:.0f} {y + HIGH}"
                out.append(f'<path d="M{start:.0f} {y + HIGH}{bend}"/>')
            else:
                start, end, half = u + WIDE / 2, x + WIDE / 2, (v + HIGH + y) / 2
                bend = f"C{start:.0f} {half:.0f} {end:.0f} {half:.0f} {end:.0f} {y}"
                out.append(f'<path d="M{start:.0f} {v + HIGH}{bend}"/>')
    for row, part in enumerate(rows):
        at = f'class="part" x="2" y="{DOWN * row + ABOVE - 6}"'
        out.append(f"<text {at}>{html.escape(part)}</text>")
    for stem, fact in shown.items():
        x, y = place[stem]
        lines = wrap(f"{fact['label']}. {fact['title']}", 19)
        if len(lines) > 3:
            lines = wrap(f"{fact['label']}. {re.split('[:,]', fact['title'])[0]}", 19)
        middle = y + HIGH / 2 + 4 - 6.5 * (len(lines) - 1)
        out.append(f'<a href="../{stem}.html">')
        out.append(f'<rect x="{x}" y="{y}" width="{WIDE}" height="{HIGH}" rx="6"/>')
        for i, line in enumerate(lines):
            at = f'x="{x + WIDE / 2:.0f}" y="{middle + 13 * i:.0f}" text-anchor="middle"'
            out.append(f"<text {at}>{html.escape(line)}</text>")
        out.append("</a>")
    return "\n".join([*out, "</svg>", ""])


# ------------------------------------------------------------------------------------- the files

def written(known: dict[str, dict]) -> dict[Path, str]:
    "What the files that follow from the facts should be."
    goals, syllabus = TEACH / "goals.md", TEACH / "syllabus.md"
    return {
        TEACH / "needs.svg": picture(known),
        goals: with_table(goals.read_text(encoding="utf8"), known),
        syllabus: with_hours(syllabus.read_text(encoding="utf8"), known),
    }


def store(book: pages.Book, seconds: dict[str, float], measured: dict) -> None:
    "Write facts.json and what follows from it."
    known = facts(book, seconds)
    rows = [f"{json.dumps(s)}: {json.dumps(f, ensure_ascii=False)}" for s, f in known.items()]
    rows = ",\n".join(rows)
    text = f'{{"measured": {json.dumps(measured)},\n"chapters": {{\n{rows}\n}}}}\n'
    FACTS.write_text(text, encoding="utf8")
    for file, content in written(known).items():
        file.write_text(content, encoding="utf8")


def main(args=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--time", nargs="*", metavar="NOTEBOOK", help="run these, or all")
    given = parser.parse_args(args)
    book, stored = pages.read_book(), json.loads(FACTS.read_text(encoding="utf8"))
    seconds = {stem: fact["seconds"] for stem, fact in stored["chapters"].items()}
    every = [c for c in book.chapters if c.label and c.label not in LISTS]
    if unknown := set(given.time or []) - {c.stem for c in every}:
        sys.exit(f"no chapter {', '.join(sorted(unknown))} in nbs/")
    timed = every if given.time == [] else [c for c in every if c.stem in (given.time or [])]
    store(book, seconds, stored["measured"])
    for chapter in timed:
        seconds[chapter.stem] = time_cells(chapter.notebook)
        print(f"{chapter.stem}: {seconds[chapter.stem]} s", flush=True)
        store(book, seconds, circumstances())           # what is measured stays, whatever follows


if __name__ == "__main__":
    main()
