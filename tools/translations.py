"""The text of the pages as messages for translators, and what has been translated.

    python tools/translations.py                        # what is missing or out of date, and where
    python tools/translations.py --merge                # the changed English into the .po files
    python tools/translations.py --add zh_CN 01_envs    # begin a page, or a language
    python tools/translations.py --pot                  # templates of all pages: _site/gettext

A message is a heading, a paragraph, an item of a list, a cell of a table, or what a picture is told
by. It is known by its English words, however its lines are broken; where code has printed it, its
numbers are places, {0}, {1}, ..., so a page can be run again. Formulas and code are no messages.
docs/locale/LANGUAGE/LC_MESSAGES/PAGE.po holds the translation of nbs/PAGE.ipynb, site.po the words
that the site itself adds, terms.tsv how the notions are called. `tools/build_site.py` makes the
pages that are there.

After a change of the English, run it with --merge: what changed is marked `fuzzy` there, with the
old text above it, and listed with its line. Mend the translation, delete the mark. Until then the
site shows that paragraph in English. Exit code: 1 if anything is out of date."""
import argparse
import copy
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
LOCALE = ROOT / "docs" / "locale"
SITE = "site"                                               # of the words below
WORDS = (
    "Open in Colab", "Open in Binder", "Download", "Download without solutions", "A solution",
    "Why", "Show the {type}", "Hide the {type}", "Chapters of", "this part",
    "Licensed under {license}.",
)
WAS = "Was: "                                               # in the .po files
ITEM = re.compile(r"[ \t]*(?:[-*+]|\d+\.)[ \t]+")
HEAD = re.compile(rf"#{{1,6}}[ \t]+|>[ \t]?|{ITEM.pattern}|")
TAG = re.compile(r"(<!--.*?-->|</?(?:details|summary|span|div|p|br|video|img)\b[^>]*>)")
BREAK = re.compile(rf"\s*(?:```|~~~|\$\$|\||<|>|#{{1,6}}[ \t])|{ITEM.pattern}|\s*$")
ALT = re.compile(r"^(#\|[ \t]*fig-alt:[ \t]*)(\S.*)$", re.M)
NUMBER = re.compile(r"(?<![\w.])[+\-−]?\d+(?:[.,:\-]\d+)*")
# what is the same in all languages: formulas, code, where links lead, marks of HTML, places
SAME = re.compile(
    r"(?<!\\)\$[^$]+\$|(`+)(?!`).+?(?<!`)\1(?!`)|\]\([^)\s]*\)|<[^>]+>|\{\d+\}|https?://\S+"
)


# ------------------------------------------------------------------------------- pages to messages

def has_words(message: str) -> bool:
    "Whether anything is left to translate."
    return bool(re.search(r"[^\W\d_]{2,}", SAME.sub(" ", message)))


def split_row(line: str) -> Iterator[tuple[str, str]]:
    "The cells of a row of a table."
    for cell in re.split(r"((?<!\\)\|)", line):
        space = len(cell) - len(cell.lstrip())
        text = cell.strip()
        yield cell[:space], ""
        yield text, text if has_words(text) else ""
        yield cell[space + len(text):], ""


def split(source: str) -> Iterator[tuple[str, str]]:
    """Markdown as a sequence of (text as it stands, message); the message is empty where there is
    nothing to translate. Joined, the texts are the source."""
    lines, i = source.splitlines(keepends=True), 0
    while i < len(lines):
        start, line, bare = i, lines[i], lines[i].strip()
        i += 1
        if bare.startswith(("```", "~~~")):
            while i < len(lines) and not lines[i].strip().startswith(bare[:3]):
                i += 1
            i += 1
            yield "".join(lines[start:i]), ""
        elif bare.startswith("$$"):
            while not "".join(lines[start:i]).rstrip().endswith("$$", 4) and i < len(lines):
                i += 1
            yield "".join(lines[start:i]), ""
        elif bare.startswith("|"):
            yield from [(line, "")] if re.fullmatch(r"[|\s:-]+", bare) else split_row(line)
        elif bare.startswith("<"):
            for text in TAG.split(line):
                inner = text.strip()
                yield text, inner if inner and not TAG.match(inner) and has_words(inner) else ""
        elif not bare:
            yield line, ""
        else:
            head = HEAD.match(line)[0]
            quote, texts = head.startswith(">"), [line[len(head):]]
            while i < len(lines) and head[:1] != "#" and (
                lines[i].startswith(">") if quote else not BREAK.match(lines[i])
            ):
                texts.append(re.sub(r"^>[ \t]?", "", lines[i]) if quote else lines[i])
                i += 1
            raw, message = "".join(lines[start:i])[len(head):], " ".join("".join(texts).split())
            end = raw[len(raw.rstrip("\n")):]
            yield head, ""
            yield raw.rstrip("\n"), message if has_words(message) else ""
            yield end, ""


def with_places(message: str) -> tuple[str, list[str]]:
    "A printed message with places for its numbers, and the numbers."
    numbers = NUMBER.findall(message)
    count = iter(range(len(numbers)))
    return NUMBER.sub(lambda m: f"{{{next(count)}}}", message), numbers


def rewrite(source: str, say: Callable[[str], str | None], printed: bool = False) -> str:
    "Markdown with each message replaced by what `say` makes of it; None keeps the English."
    made = []
    for text, message in split(source):
        numbers = []
        if message and printed:
            message, numbers = with_places(message)
        told = say(message) if message else None
        if told and numbers:
            told = re.sub(r"\{(\d+)\}", lambda m: numbers[int(m[1])], told)
        made.append(told or text)
    return "".join(made)


def walk(notebook: NotebookNode, say: Callable[[str, str], str | None]) -> NotebookNode:
    "A notebook with every message replaced by say(cell id, message)."
    made = copy.deepcopy(notebook)
    for cell in made.cells:
        here = lambda message, cell=cell: say(cell.id, message)
        if cell.cell_type == "markdown":
            cell.source = rewrite(cell.source, here)
        elif cell.cell_type == "code" and not re.search(r"^#\|[ \t]*hide\b", cell.source, re.M):
            cell.source = ALT.sub(lambda m: m[1] + (here(m[2].strip()) or m[2]), cell.source)
            for output in cell.outputs:
                if "text/markdown" in (data := output.get("data", {})):
                    data["text/markdown"] = rewrite(data["text/markdown"], here, printed=True)
    return made


@cache
def read_page(page: str) -> NotebookNode:
    "The notebook of a page."
    return nbformat.v4.reads((ROOT / "nbs" / f"{page}.ipynb").read_text(encoding="utf8"))


def messages(page: str) -> dict[str, list[str]]:
    "The messages of a page, in order, with the cells in which they stand."
    if page == SITE:
        return {word: [] for word in WORDS}
    found = {}
    walk(read_page(page), lambda cell, message: found.setdefault(message, []).append(cell))
    return found


# ------------------------------------------------------------------------------------- .po files

def template(page: str, language: str | None = None):
    "The messages of a page as a catalogue of Babel's, not translated."
    from babel.messages.catalog import Catalog
    about = f"# Messages of {page}; they may be used as simulus-nb may."
    made = Catalog(
        language, project="simulus-nb", version="book", header_comment=about, fuzzy=False,
        last_translator="The simulus-nb authors", language_team=language or "none",
        msgid_bugs_address="https://github.com/simulus-nb/simulus-nb/issues"
    )
    for message, cells in messages(page).items():
        places = [(f"nbs/{page}.ipynb#{cell}", None) for cell in dict.fromkeys(cells)]
        made.add(message, locations=places)
    return made


def po_file(language: str, page: str) -> Path:
    "Where a translation is kept."
    return LOCALE / language / "LC_MESSAGES" / f"{page}.po"


def load(path: Path):
    "A .po file as a catalogue of Babel's."
    from babel.messages.pofile import read_po
    with path.open("rb") as file:
        return read_po(file)


def was(message) -> str:
    "The English words that a translation was made for, if they are others today."
    told = " ".join(message.user_comments)
    return told.removeprefix(WAS) if told.startswith(WAS) else ""


def merged(language: str, page: str):
    "A .po file with the messages that the page has today."
    have = load(po_file(language, page))
    have.update(template(page), update_creation_date=False)
    for m in have:
        if m.fuzzy and m.previous_id:                       # Babel's own mark is not read again
            m.user_comments = [WAS + m.previous_id[0]]
        elif was(m) and not m.fuzzy:
            m.user_comments = []
    return have


def save(catalogue, path: Path) -> None:
    "A catalogue as a file; texts that are no longer on the page are left out."
    from babel.messages.pofile import write_po
    path.parent.mkdir(parents=True, exist_ok=True)
    for message in catalogue:
        message.flags -= {"python-format", "python-brace-format"}       # '95 % interval' is neither
    with path.open("wb") as file:
        write_po(file, catalogue, width=100, ignore_obsolete=True)


def fresh(catalogue) -> dict[str, str]:
    "The messages whose translation is up to date, with it."
    return {m.id: m.string for m in catalogue if m.id and m.string and not m.fuzzy}


def languages() -> dict[str, list[str]]:
    "The pages that have been begun, by language."
    return {
        folder.name: sorted(p.stem for p in folder.glob("LC_MESSAGES/*.po"))
        for folder in sorted(LOCALE.iterdir()) if folder.is_dir()
    }


def difference(old: str, new: str, width: int = 50) -> str:
    "Two versions of a message, from where they differ."
    same = next((i for i, (a, b) in enumerate(zip(old, new)) if a != b), min(len(old), len(new)))
    start = max(0, same - 15)
    cut = lambda text: ("…" if start else "") + text[start:start + width]
    return f'"{cut(old)}" became "{cut(new)}"'


def faults(language: str, page: str) -> list[str]:
    "One line for each message of a page without a translation that is up to date."
    path, found = po_file(language, page), []
    have = load(path)
    if set(messages(page)) <= set(fresh(have)):
        return []
    lines = {m.id: m.lineno for m in have}
    for m in merged(language, page):
        if m.id and not (m.string and not m.fuzzy):
            old = was(m)
            line = lines.get(m.id) or lines.get(old) or 1
            told = difference(old, m.id) if old else f'not translated: "{m.id[:70]}"'
            place = ", ".join(name for name, _ in m.locations) or "the site's own words"
            found.append(f"{os.path.relpath(path, ROOT)}:{line}: {place}: {told}")
    return found


# ------------------------------------------------------------------------------------- translated

@dataclass
class Edition:
    "The pages in one language: messages and their translations by page."
    language: str                                           # zh_CN
    pages: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def tag(self) -> str:
        "As HTML writes it: zh-CN."
        return self.language.replace("_", "-")

    @property
    def folder(self) -> str:
        "Of the site: zh."
        return self.language.partition("_")[0]

    @property
    def name(self) -> str:
        "What its readers call the language."
        from babel import Locale
        return Locale.parse(self.language).get_language_name()

    @property
    def stems(self) -> list[str]:
        "Its notebooks."
        return [page for page in self.pages if page != SITE]

    def word(self, text: str) -> str:
        "A word of the site."
        return self.pages.get(SITE, {}).get(text, text)

    def notebook(self, page: str, notebook: NotebookNode) -> NotebookNode:
        "A page in this language; what is not translated stays English."
        known = self.pages[page]
        return walk(notebook, lambda cell, message: known.get(message))


def editions() -> list[Edition]:
    "All that has been translated."
    return [
        Edition(language, {page: fresh(load(po_file(language, page))) for page in pages})
        for language, pages in languages().items()
    ]


def main(args=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--merge", action="store_true", help="take over what changed in English")
    parser.add_argument("--add", nargs="+", metavar=("LANGUAGE", "PAGE"), help="begin pages")
    parser.add_argument("--pot", nargs="?", type=Path, const=ROOT / "_site" / "gettext",
                        metavar="FOLDER", help="write templates; default: _site/gettext")
    given = parser.parse_args(args)
    if given.pot:
        for page in [SITE, *sorted(p.stem for p in (ROOT / "nbs").glob("*.ipynb"))]:
            save(template(page), given.pot / f"{page}.pot")
        print(f"templates: {given.pot}")
    if given.add:
        language, *pages = given.add
        for page in [SITE, *pages]:
            if not po_file(language, page).exists():
                save(template(page, language), po_file(language, page))
    total = 0
    for language, pages in languages().items():
        for page in pages:
            if given.merge:
                save(merged(language, page), po_file(language, page))
            found = faults(language, page)
            total += len(found)
            print("\n".join([*found, f"{language}, {page}: {len(found)} out of date"]))
    sys.exit(bool(total))


if __name__ == "__main__":
    main()
