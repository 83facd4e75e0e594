"""Build the site, and with --pdf one PDF of the whole book, from the notebooks as they are stored.

    pip install -e ".[docs]"
    npm ci --prefix docs        # MathJax, reveal.js and onnxruntime-web; then no network is needed
    python tools/build_site.py                  # _site/html/index.html
    python tools/build_site.py --pdf            # and _site/html/simulus-nb.pdf: needs Chromium

No notebook is run. The site loads nothing from elsewhere: it can be read from a folder, or served
by `python -m http.server -d _site/html`. Published on the branch `gh-pages`, its links to Colab
find their notebooks there. Pages that have been translated (tools/translations.py) stand in a
folder of their language, _site/html/zh."""
import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nbformat

import play_site
import site_pages as pages
import translations
from make_student import exercises, for_students

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
MODULES = DOCS / "node_modules"


def ready() -> None:
    "Say in one line what is missing."
    if not (importlib.util.find_spec("sphinx") and importlib.util.find_spec("myst_nb")):
        sys.exit('The site needs Sphinx: pip install -e ".[docs]"')
    if not all((MODULES / name).is_dir() for name in ("mathjax", "reveal.js")):
        sys.exit("The site needs MathJax and reveal.js: npm ci --prefix docs")
    if missing := play_site.missing():
        sys.exit(missing)


def write(path: Path, text: str) -> None:
    "A file and its folder. One that says the same already is not touched: Sphinx then skips it."
    path.parent.mkdir(parents=True, exist_ok=True)
    if not (path.exists() and path.read_text(encoding="utf8") == text):
        path.write_text(text, encoding="utf8")


def known_of(book: pages.Book) -> dict:
    "What Sphinx's settings and our part of it need to know of the book."
    s = book.settings
    return {
        "title": s["title"], "author": s["author"], "copyright": s["copyright"],
        "version": s["version"], "git_url": s["git_url"], "license": "Apache-2.0",
        "equations": {n: stem for n, (stem, _) in book.equations.items()},
        "chapters": book.labels(), "names": book.names(),
    }


def lay_out(book: pages.Book, source: Path) -> None:
    "The pages as Sphinx reads them."
    write(source / "book.json", json.dumps(known_of(book)))
    for chapter in book.chapters:
        write(source / f"{chapter.stem}.ipynb", nbformat.writes(pages.page(chapter, book)))
    for part, chapters in pages.parts(book).items():
        if part:
            write(source / f"{pages.part_name(part)}.md", pages.part_page(part, chapters))
    write(source / "play.md", play_site.page())
    write(source / "symbols.md", pages.symbols_page(book))
    write(source / "metrics.md", pages.metrics_page(book))
    write(source / "api" / "index.md", pages.api_index(book))
    for module in book.exports:
        path = ROOT / book.settings["lib_path"] / f"{module}.py"
        text = path.read_text(encoding="utf8")
        write(source / "api" / f"{module}.md", pages.api_page(module, text, book))
    for folder in pages.folders():
        for path in folder.glob("*.md"):
            write(source / folder.name / path.name, pages.folder_page(path, book))
        drop = shutil.ignore_patterns("*.md", "*.json")
        shutil.copytree(folder, source / folder.name, ignore=drop, dirs_exist_ok=True)
    shutil.copytree(ROOT / "nbs" / "images", source / "images", dirs_exist_ok=True)
    write(source / "_static" / "equations.js", equations(book))


def equations(book: pages.Book, home: pages.Book | None = None) -> str:
    "What a mention of an equation shows, as a script; `home` is the English book."
    names = {c.stem: c.name for c in [*(home or book).chapters, *book.chapters]}
    shown = {n: {"tex": tex, "where": names[stem]} for n, (stem, tex) in book.equations.items()}
    text = f"window.EQUATIONS = {json.dumps(shown)};\n"
    if book.edition:
        text += f"window.WORDS = {json.dumps(book.edition.pages.get(translations.SITE, {}))};\n"
    return text


def lay_out_edition(book: pages.Book, home: pages.Book, source: Path) -> None:
    "The pages of a translation as Sphinx reads them; what they lack is found in the folder above."
    known = known_of(home) | {"language": book.edition.language, "above": "../"}
    known["words"] = book.edition.pages.get(translations.SITE, {})
    write(source / "book.json", json.dumps(known))
    for chapter in book.chapters:
        write(source / f"{chapter.stem}.ipynb", nbformat.writes(pages.page(chapter, book)))
    shutil.copytree(ROOT / "nbs" / "images", source / "images", dirs_exist_ok=True)
    write(source / "_static" / "equations.js", equations(book, home))


def add_files(book: pages.Book, out: Path) -> None:
    "What is no page: MathJax, notebooks to take away, plain text, slides, a game to play."
    import make_slides
    scripts, fonts = MODULES / "mathjax" / "es5", "output/chtml/fonts/woff-v2"
    place = out / "_static" / "mathjax"
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(scripts / "tex-chtml-full.js", place)
    shutil.copytree(scripts / fonts, place / fonts, dirs_exist_ok=True)
    shutil.copy(MODULES / "mathjax" / "LICENSE", place)
    for chapter in book.chapters:
        name = f"{chapter.stem}.ipynb"
        write(out / "notebooks" / name, nbformat.writes(chapter.notebook))
        write(out / "colab" / name, nbformat.writes(pages.for_colab(chapter.notebook, book)))
        write(out / "text" / f"{chapter.stem}.md", pages.as_text(chapter))
        if exercises(chapter.notebook)[1]:
            write(out / "students" / name, nbformat.writes(for_students(chapter.notebook)))
    for folder in pages.folders():
        for path in folder.glob("*.md"):
            write(out / "text" / folder.name / path.name, path.read_text(encoding="utf8"))
    write(out / "llms.txt", pages.llms(book))
    write(out / ".nojekyll", "")
    make_slides.add(book, out)
    play_site.add(out / "_static" / "play")


def run_sphinx(source: Path, site: Path, cache: Path, strict: bool = True) -> None:
    "Pages to HTML; stops at a warning."
    command = [sys.executable, "-m", "sphinx", "-q", "-j", "auto", "-b", "html"]
    command += ["-W", "--keep-going"] if strict else []
    command += ["-c", str(DOCS), "-d", str(cache), str(source), str(site)]
    done = subprocess.run(command, env=os.environ | {"BOOK_SOURCE": str(source)})
    if done.returncode:
        sys.exit("Sphinx found the faults above.")


def build_edition(out: Path, home: pages.Book, edition: translations.Edition,
                  strict: bool = True) -> Path:
    "The translated pages in `out`/html/zh, say. Returns that folder."
    source, site = out / f"source-{edition.folder}", out / "html" / edition.folder
    lay_out_edition(pages.translated(home, edition), home, source)
    run_sphinx(source, site, out / f"doctrees-{edition.folder}", strict)
    return site


def build(out: Path, book: pages.Book, strict: bool = True) -> Path:
    "The whole site in `out`/html. Returns that folder."
    source, site = out / "source", out / "html"
    book = replace(book, editions=translations.editions())
    lay_out(book, source)
    run_sphinx(source, site, out / "doctrees", strict)
    add_files(book, site)
    for edition in book.editions:
        build_edition(out, book, edition, strict)
    return site


def main(args=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "_site", help="default: _site")
    parser.add_argument("--pdf", action="store_true", help="print the book to one PDF as well")
    given = parser.parse_args(args)
    ready()
    start, book = time.time(), pages.read_book()
    site = build(given.out.resolve(), book)
    print(f"{len(book.chapters)} notebooks, {len(book.equations)} equations: {site}/index.html "
          f"({time.time() - start:.0f} s)")
    if given.pdf:
        from print_site import print_book
        pdf = site / f"{book.settings['repo']}.pdf"
        print_book(site, pdf, book)
        print(f"{pdf}: {pdf.stat().st_size / 1e6:.1f} MB ({time.time() - start:.0f} s)")


if __name__ == "__main__":
    main()
