"""Slides of each part of the book, made of its chapters: for reveal.js, in one file for each part.

    python tools/make_slides.py             # into _site/html/slides, where the site has been built

A chapter gives its title, what one will do in it, its numbered equations and its figures in order
under the headings they stand below, and what to remember. `build_site.py` calls this. A file loads
nothing but what lies in the site, and can be shown from a folder."""
import argparse
import html
import re
import shutil
from pathlib import Path

from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin

import site_pages as pages

ROOT = Path(__file__).resolve().parent.parent
REVEAL = ROOT / "docs" / "node_modules" / "reveal.js"
FILES = ("dist/reveal.js", "dist/reveal.css", "LICENSE")
TOGETHER = 3                            # equations on one slide, at most
OF_EXERCISES = {"exercise-setup", "exercise", "solution", "check"}
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><link rel="icon" href="data:,">
<link rel="stylesheet" href="../_static/reveal/reveal.css">
<link rel="stylesheet" href="../_static/slides.css">
<script>window.MathJax = {{chtml: {{matchFontHeight: false}}, options: {{enableMenu: false,
ignoreHtmlClass: "reveal", processHtmlClass: "math"}}}};</script>
<script defer src="../_static/mathjax/tex-chtml-full.js"></script>
<script defer src="../_static/reveal/reveal.js"></script>
<script defer src="../_static/slides.js"></script></head>
<body><main class="reveal"><div class="slides">
{slides}
</div></main></body></html>
"""


def formula(latex: str, settings: dict) -> str:
    "LaTeX as MathJax finds it."
    start, end = (r"\[", r"\]") if settings["display_mode"] else (r"\(", r"\)")
    return f'<span class="math">{start}{html.escape(latex.strip())}{end}</span>'


MARKDOWN = MarkdownIt("commonmark").enable("table")
dollarmath_plugin(MARKDOWN, renderer=formula, double_inline=True)


def equation_place(number: str, book: pages.Book) -> str:
    "Where an equation stands on the site, seen from the slides."
    return f"../{book.equations[number][0]}.html#eq-{number.replace('.', '-')}"


def shown(source: str, book: pages.Book, inline: bool = False) -> str:
    "Markdown of a chapter as HTML; links and mentions of equations lead into the site."
    text = (MARKDOWN.renderInline if inline else MARKDOWN.render)(source.strip())
    text = re.sub(r'href="(\w+)\.ipynb', r'href="../\1.html', text)
    def mention(found):
        if not found["number"] or found["number"] not in book.equations:
            return found[0]
        return f'<a href="{equation_place(found["number"], book)}">{found[0]}</a>'
    other = r"<a .*?</a>|<code>.*?</code>|<[^>]+>|\\[(\[].*?\\[)\]]"
    return re.sub(rf"{other}|\((?P<number>{pages.NUMBER})\)", mention, text, flags=re.S)


def section(title: str, body: str, place: str = "") -> str:
    "One slide."
    place = f' id="{place}"' if place else ""
    return f"<section{place}><h2>{title}</h2>\n{body}\n</section>"


def of_equations(heading: str, found: list[tuple[str, str]], book: pages.Book) -> list[str]:
    "Slides with the equations below one heading, each with its number as a link."
    slides = []
    for i in range(0, len(found), TOGETHER):
        rows = [
            f'<div class="math" id="eq-{n.replace(".", "-")}">\\[{html.escape(latex)}\\]</div>'
            f'<p class="number"><a href="{equation_place(n, book)}">derived at ({n})</a></p>'
            for n, latex in found[i:i + TOGETHER]
        ]
        slides.append(section(heading, "\n".join(rows)))
    return slides


def of_pictures(heading: str, cell, alt: str, caption: str) -> list[str]:
    "A slide for each picture that a cell has drawn."
    data = [o["data"]["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})]
    return [
        section(heading, f'<figure><img alt="{html.escape(alt)}" src="data:image/png;base64,'
                f'{"".join(one.split())}"><figcaption>{caption}</figcaption></figure>')
        for one in data
    ]


def of_chapter(chapter: pages.Chapter, book: pages.Book) -> str:
    "All slides of a chapter, one below the other."
    notebook = chapter.notebook
    prose = "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    will = re.search(r"\*\*You will\*\*.*?(?=You\s+need:|\n\n|\Z)", prose, re.S)
    summary = re.search(r"^## What to remember\n(.*?)(?=^## |\Z)", prose, re.S | re.M)
    about = re.search(r"^> (.+)", notebook.cells[0].source, re.M)
    body = "\n".join([
        f'<p class="about">{shown(about[1], book, inline=True)}</p>' if about else "",
        shown(will[0], book) if will else "",
        f'<p><a href="../{chapter.stem}.html">The chapter</a></p>',
    ])
    slides = [section(html.escape(chapter.name), body, chapter.stem)]
    heading, found = html.escape(chapter.title), []
    for i, cell in enumerate(notebook.cells):
        if OF_EXERCISES & set(cell.metadata.get("tags", [])):
            continue
        if cell.cell_type == "code":
            if alt := pages.caption(notebook, i):
                slides += of_equations(heading, found, book)
                slides += of_pictures(heading, cell, alt, shown(
                    pages.caption(notebook, i, raw=True), book, inline=True
                ))
                found = []
            continue
        for number, text in pages.landmarks(cell.source):
            if number:
                found.append((number, text))
            else:
                slides += of_equations(heading, found, book)
                heading, found = shown(text, book, inline=True), []
    slides += of_equations(heading, found, book)
    if summary:
        slides.append(section("What to remember", shown(summary[1], book)))
    return "<section>\n" + "\n".join(slides) + "\n</section>"


def decks(book: pages.Book) -> dict[str, list[pages.Chapter]]:
    "Parts with slides: those that derive something."
    derived = {stem for stem, _ in book.equations.values()}
    return {
        part: chapters for part, chapters in pages.parts(book).items()
        if part and derived & {c.stem for c in chapters}
    }


def deck(part: str, chapters: list[pages.Chapter], book: pages.Book) -> str:
    "The slides of a part as a page."
    rows = "\n".join(
        f'<li><a href="#/{c.stem}">{html.escape(c.name)}</a></li>' for c in chapters
    )
    way = "Space goes on, Esc shows all slides, and ?print-pdf behind the address prints them."
    first = section(html.escape(part), f'<ul class="plain">{rows}</ul><p class="about">{way}</p>')
    slides = "\n".join([first, *(of_chapter(c, book) for c in chapters)])
    return PAGE.format(title=html.escape(f"{part}: slides"), slides=slides)


def add(book: pages.Book, site: Path) -> None:
    "Write the slides of all parts into a built site, and what they need."
    for folder in ("slides", "_static/reveal"):
        (site / folder).mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copy(REVEAL / name, site / "_static" / "reveal")
    for part, chapters in decks(book).items():
        path = site / "slides" / f"{pages.part_name(part)}.html"
        path.write_text(deck(part, chapters, book), encoding="utf8")


def main(args=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--site", type=Path, default=ROOT / "_site" / "html")
    add(pages.read_book(), parser.parse_args(args).site)


if __name__ == "__main__":
    main()
