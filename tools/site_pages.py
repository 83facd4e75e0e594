"""What the site is made of: the notebooks, rewritten for reading, and the pages that follow from
them. Nothing here runs a notebook, and nothing is written: `build_site.py` does that."""
import ast
import copy
import html
import posixpath
import re
from collections import Counter
from configparser import ConfigParser
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

from make_student import exercises
from translations import Edition

ROOT = Path(__file__).resolve().parent.parent
NUMBER = r"(?:\d+|[A-Z])\.\d+[a-z]?"                # of an equation: 8.1, 8.1a, B.3
# Extras of settings.ini, and what the code of a page that needs one contains.
EXTRAS = {
    "minigrid": r"MiniGrid-|\bminigrid\b",
    "minatar": r"MinAtar/|\bminatar\b",
    "dmc": r"dm_control/|\bdm_control\b|\bshimmy\b",
    "craftax": r"^(?:import|from) craftax\b|\bcraftax/",
    "sweep": r"\bray\b",
    "baselines": r"\bstable_baselines3\b|\bbaselines\b",
    "play": r"\bonnxruntime\b|\bexport_agent\b",
}
# Packages of no extra that the code of a page needs.
BESIDE = {"yet-another-retnet": r"^(?:import|from) yet_another_retnet\b"}
# What a GPU is for where a page shows only a beginning of it.
WHOLE_RUNS = {
    "25_continuous_control": "whole runs on DeepMind Control",
    "27_craftax": "whole runs on Craftax",
    "37_atari": "whole runs on Atari",
}


@dataclass
class Chapter:
    "One notebook: its name, its number ('8', 'B' or ''), title, what it derives, and its part."
    stem: str
    label: str
    title: str
    about: str
    part: str
    notebook: NotebookNode

    @property
    def name(self) -> str:
        "Its title as a heading of the site."
        return f"{self.label}. {self.title}" if self.label else self.title


@dataclass
class Export:
    "A public function, class or constant: its module and name, its code, and where that stands."
    module: str
    name: str
    code: str
    stem: str
    cell: str


@dataclass
class Book:
    "All that a page may point to."
    chapters: list[Chapter]                     # in reading order
    equations: dict[str, tuple[str, str]]       # number: (notebook, LaTeX)
    exports: dict[str, list[Export]]            # module: its public names, in order
    settings: dict[str, str]                    # settings.ini
    edition: Edition | None = None              # the language of its pages, if not English
    editions: list[Edition] = field(default_factory=list)       # of the English book

    def word(self, text: str) -> str:
        "A word that the site adds, in the language of the pages."
        return self.edition.word(text) if self.edition else text

    def has(self, stem: str) -> bool:
        "Whether a notebook is a page here; a translation has only some, the rest is English."
        return not self.edition or stem in self.edition.stems

    def labels(self) -> dict[str, str]:
        "Number of a chapter: its notebook."
        return {c.label: c.stem for c in self.chapters if c.label}

    def names(self) -> dict[str, tuple[str, str]]:
        """Public name: its place on the pages of the library, and the notebook that defines it.
        Names of two modules are left out."""
        found = [e for exports in self.exports.values() for e in exports]
        count = Counter(e.name for e in found)
        return {
            e.name: (f"api/{e.module}.html#{e.name}", e.stem) for e in found if count[e.name] == 1
        }


# ------------------------------------------------------------------------------------ reading

def label_of(stem: str) -> str:
    "'8' for 10_retention, 'B' for B_accelerate, nothing for a page without a number."
    found = re.match(r"(?:0?(\d+)|([A-Z]))_", stem) if stem[:3] != "000" else None
    return (found[1] or found[2]) if found else ""


def landmarks(prose: str) -> list[tuple[str, str]]:
    """The headings and the numbered display equations of Markdown, in order: ("", heading) or
    (number, LaTeX with its tag)."""
    prose, found = re.sub(r"^(```|~~~).*?^\1", "", prose, flags=re.S | re.M), []
    for i, text in enumerate(prose.split("$$")):
        if i % 2 == 0:
            found += [("", title) for title in re.findall(r"^##+ (.+)", text, re.M)]
        elif tag := re.search(rf"\\tag\{{({NUMBER})\}}", text):
            found.append((tag[1], text.strip()))
    return found


def equations(notebook: NotebookNode) -> dict[str, str]:
    "The display equations of a notebook that have a number: {number: LaTeX with its tag}."
    prose = "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    return {number: latex for number, latex in landmarks(prose) if number}


def roadmap(index: NotebookNode) -> list[tuple[str, str, str]]:
    "The table of chapters of the preface as (part, notebook, what it derives), in order."
    table = next(c.source for c in index.cells if c.source.startswith("## The chapters"))
    part, rows = "", []
    for line in table.splitlines():
        if found := re.match(r"\| *\| \*\*(.+?)\*\* \|", line):
            part = found[1]
        elif found := re.match(r"\| *\w* *\| \[.+?\]\((\w+)\.ipynb\) \| (.*?) \|", line):
            rows.append((part, found[1], found[2]))
    return rows


def public(text: str) -> list[str]:
    "The names in `__all__` of a module."
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    return []


def outline(node: ast.stmt, lines: list[str], depth: int = 0) -> str:
    """A function without its body, a class with its fields and its public methods without theirs:
    signatures with their comments, and docstrings, as they stand in the source."""
    if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return "\n".join(lines[node.lineno - 1:node.end_lineno])
    start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    body = node.body
    text = ast.get_docstring(node) is not None
    end = body[0].end_lineno if text else body[0].lineno - 1
    if end < node.lineno:                               # def and body on one line
        end = node.lineno
    shown = ["\n".join(lines[start - 1:end])]
    if isinstance(node, ast.ClassDef):
        for part in body[text:]:
            if isinstance(part, ast.AnnAssign):
                shown.append("\n".join(lines[part.lineno - 1:part.end_lineno]))
            elif isinstance(part, ast.FunctionDef) and (
                part.name[0] != "_" or part.name == "__init__"
            ):
                shown.append("\n" + outline(part, lines, depth + 1))
    return "\n".join(shown)


def read_module(name: str, text: str) -> list[Export]:
    "The public names of a module, each with the notebook and the cell that write it."
    lines = text.splitlines()
    marks = [
        (i, *found.groups())
        for i, line in enumerate(lines, 1)
        if (found := re.match(r"# %% \.\./nbs/(?:\w+/)?(\w+)\.ipynb #(\S+)", line))
    ]
    exports, listed = {}, public(text)
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            own = [node.name]
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = (n for t in targets for n in ast.walk(t))
            own = [n.id for n in names if isinstance(n, ast.Name)]
        else:
            continue
        place = [(stem, cell) for line, stem, cell in marks if line <= node.lineno]
        for one in own:
            if one in listed and place:
                exports[one] = Export(name, one, outline(node, lines), *place[-1])
    return list(exports.values())


def read_book(root: Path = ROOT) -> Book:
    "All chapters, equations and public names of the repository."
    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read(root / "settings.ini", encoding="utf8")
    settings = dict(parser["DEFAULT"])
    read = lambda path: nbformat.v4.reads(path.read_text(encoding="utf8"))
    notebooks = {p.stem: read(p) for p in sorted((root / "nbs").glob("*.ipynb"))}
    places = {stem: (part, about) for part, stem, about in roadmap(notebooks["index"])}
    chapters, numbered = [], {}
    for stem in ["index", *(s for s in notebooks if s != "index")]:
        notebook = notebooks[stem]
        title = re.match(r"# (.+)", notebook.cells[0].source)[1]
        part, about = places.get(stem, ("", ""))
        chapters.append(Chapter(stem, label_of(stem), title, about, part, notebook))
        numbered |= {n: (stem, tex) for n, tex in equations(notebook).items()}
    modules = sorted((root / settings["lib_path"]).glob("*.py"))
    exports = {
        p.stem: found
        for p in modules
        if p.stem[0] != "_" and (found := read_module(p.stem, p.read_text(encoding="utf8")))
    }
    return Book(chapters, numbered, exports, settings)


def translated(book: Book, edition: Edition) -> Book:
    "The pages of the book that have been translated; it may point to all that the book has."
    chapters = []
    for chapter in book.chapters:
        if chapter.stem in edition.stems:
            title = edition.pages[chapter.stem].get(chapter.title, chapter.title)
            chapters.append(replace(chapter, title=title))
    return replace(book, chapters=chapters, edition=edition, editions=[])


# ----------------------------------------------------------------------------------- notebooks

def without_directives(source: str) -> tuple[str, dict[str, str]]:
    "A cell without its lines `#| ...`, and these as {first word: rest}."
    found = {}
    while line := re.match(r"#\|[ \t]*([\w-]+):?[ \t]*(.*)(?:\n|\Z)", source):
        found[line[1]] = line[2].strip()
        source = source[line.end():]
    return source, found


def tags_of(directives: dict[str, str], source: str) -> set[str]:
    "What MyST-NB calls what nbdev's directives ask for."
    tags = set()
    if "hide" in directives or not source.strip():
        tags.add("remove-cell")
    elif directives.get("echo") == "false":
        tags.add("remove-input")
    elif "export" in directives:
        tags.add("hide-input")
    return tags


def plain(text: str) -> str:
    "Markdown of a caption as plain text."
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"\s+", " ", re.sub(r"(?<!\\)[*`$]", "", text)).strip()


def caption(notebook: NotebookNode, i: int, raw: bool = False) -> str:
    """The caption below cell `i`: `*Figure 10.1. ...*` in the next cell or in what it makes; with
    `raw` as Markdown."""
    if i + 1 >= len(notebook.cells):
        return ""
    below = notebook.cells[i + 1]
    said = [below.source] if below.cell_type == "markdown" else [
        o.get("data", {}).get("text/markdown", "") for o in below.outputs
    ]
    found = re.match(r"\*((?:Figure|图) .+?)\*(?:\s|$)", "".join(said).strip(), re.S)
    return (found[1] if raw else plain(found[1])) if found else ""


def unfold_details(source: str) -> str:
    "Blank lines around what stands in <details> and <summary>, so that it is read as Markdown."
    inner = lambda m: f"\n<summary>\n\n{m[1].strip()}\n\n</summary>\n\n"
    source = re.sub(r"<summary>(.*?)</summary>\s*", inner, source, flags=re.S)
    source = re.sub(r"[ \t]*(<details[^>]*>)[ \t]*\n*", r"\n\n\1\n", source)
    return re.sub(r"\s*</details>[ \t]*", "\n\n</details>\n", source)


def links(source: str, book: Book, folder: str = "nbs") -> str:
    """Links of a file in `folder` to files that are no page of the site, such as ../LICENSE, go to
    the repository; places in a page are written as Sphinx writes them, in small letters. From a
    translation one goes to the English pages where there is no other."""
    home = f"{book.settings['git_url']}/blob/{book.settings['branch']}"
    def move(m):
        target, mark, place = (m["target"] or "").partition("#")
        if not m["target"] or re.match(r"[a-z]+:", target):             # code; another site
            return m[0]
        path = posixpath.normpath(posixpath.join(folder, target)) if target else ""
        if shown := re.match(r"nbs/(\w+\.ipynb$|images/.+)", path):     # they stand at the top
            target = "../" * folder.count("/") + shown[1]
            stem = shown[1].removesuffix(".ipynb")
            if stem != shown[1] and not book.has(stem):
                return f"](english:{stem}.html{mark}{place.lower()})"
        if page := re.match(r"docs/([\w-]+/[\w-]+\.(?:md|svg|png))$", path):
            if book.edition:
                return f"](english:{page[1].replace('.md', '.html')}{mark}{place.lower()})"
            target = posixpath.relpath(page[1], folder.removeprefix("docs/").replace("nbs", "."))
        if not target or shown or page:
            return f"]({target}{mark}{place.lower()})"
        return f"]({home}/{path}{'#' if place else ''}{place})"
    code = r"^```.*?^```|(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)"
    return re.sub(rf"{code}|\]\((?P<target>[^)\s]+)\)", move, source, flags=re.S | re.M)


def head_links(chapter: Chapter, book: Book) -> str:
    "The line below the title: open, download, download without solutions, other languages."
    s, stem, home = book.settings, chapter.stem, "../" if book.edition else ""
    colab = f"https://colab.research.google.com/github/{s['user']}/{s['repo']}/blob/gh-pages"
    binder = f"https://mybinder.org/v2/gh/{s['user']}/{s['repo']}/{s['branch']}"
    items = [
        f'<a href="{colab}/colab/{stem}.ipynb">{book.word("Open in Colab")}</a>',
        f'<a href="{binder}?urlpath=lab/tree/nbs/{stem}.ipynb">{book.word("Open in Binder")}</a>',
        f'<a href="{home}notebooks/{stem}.ipynb" download>{book.word("Download")}</a>',
    ]
    if exercises(chapter.notebook)[1]:
        told = book.word("Download without solutions")
        items.append(f'<a href="{home}students/{stem}.ipynb" download>{told}</a>')
    if book.edition:
        items.append(f'<a href="../{stem}.html" lang="en" hreflang="en">English</a>')
    for e in book.editions:
        if stem in e.stems:
            tag = f'lang="{e.tag}" hreflang="{e.tag}"'
            items.append(f'<a href="{e.folder}/{stem}.html" {tag}>{e.name}</a>')
    return f'<p class="page-links">{" · ".join(items)}</p>'


def page(chapter: Chapter, book: Book) -> NotebookNode:
    """A notebook as the site shows it: directives and hidden cells gone, figures with a text,
    solutions folded below a stub, a number before the title, links below it."""
    answers = {e.answer.id: e.stub for e in exercises(chapter.notebook)[1]}
    made = copy.deepcopy(chapter.notebook)
    if book.edition:
        made = book.edition.notebook(chapter.stem, made)
    cells = []
    for i, cell in enumerate(made.cells):
        meta, tags = {"cell": cell.id}, set(cell.metadata.get("tags", []))
        if cell.cell_type == "markdown":
            cell.source = links(unfold_details(cell.source), book)
            if "solution" in tags:
                cell.source = (
                    f"<details class='solution'>\n<summary>{book.word('Why')}</summary>\n\n"
                    f"{cell.source}\n\n</details>"
                )
                tags.discard("hide-cell")
        else:
            cell.source, directives = without_directives(cell.source)
            tags |= tags_of(directives, cell.source)
            meta["alt"] = directives.get("fig-alt") or caption(made, i) or (
                f"Picture made by the code of {chapter.title}"
            )
            for output in cell.outputs:
                data = output.get("data", {})
                if "text/markdown" in data:
                    data["text/markdown"] = links(data["text/markdown"], book)
                if "<video" in data.get("text/html", ""):
                    name = f'<video aria-label="{html.escape(meta["alt"])}" preload="metadata" '
                    data["text/html"] = data["text/html"].replace("<video ", name)
            if cell.id in answers:
                stub = new_code_cell(re.sub(r"\A# @title.*\n", "", answers[cell.id]))
                stub.id, stub.metadata = f"{cell.id}-stub", {"book": {"cell": f"{cell.id}-stub"}}
                cells.append(stub)
                cell.source = re.sub(r"^[ \t]*### (BEGIN|END) SOLUTION[ \t]*\n?", "",
                                     re.sub(r"\A# @title.*\n", "", cell.source), flags=re.M)
        cell.metadata = {"tags": sorted(tags), "book": meta}
        if "solution" in tags:
            told = book.word("A solution")
            cell.metadata["mystnb"] = {"code_prompt_show": told, "code_prompt_hide": told}
        cells.append(cell)
    title, _, rest = cells[0].source.partition("\n")
    named = f"# {chapter.name}" if chapter.label else title
    cells[0].source = f"{named}\n\n{head_links(chapter, book)}\n{rest}"
    if chapter.stem == "index":
        cells.append(new_markdown_cell(toctree(book)))
    made.cells = cells
    made.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"},
                     "language_info": {"name": "python"}}
    return made


def needed_extras(notebook: NotebookNode, known: dict[str, str] = EXTRAS) -> list[str]:
    "The extras of the library without which a notebook does not run; or the packages of `BESIDE`."
    code = "\n".join(c.source for c in notebook.cells if c.cell_type == "code")
    return [name for name, sign in known.items() if re.search(sign, code, re.M)]


COLAB = '''# @title Once, on Colab: install what this chapter needs
# Colab's own torch and what is built for it stay as they are.
import os
import subprocess
import sys
import time
from importlib.metadata import distributions, version

HOME, KEPT = "{repo}", ("torch", "triton", "numpy", "jax", "nvidia-")
if not os.path.isfile("../settings.ini"):           # else it has been run before
    begin = time.time()
    here = {{d.metadata["Name"].lower(): d.version for d in distributions() if d.metadata["Name"]}}
    with open("kept.txt", "w") as file:
        file.writelines(f"{{n}}=={{v}}\\n" for n, v in here.items() if n.startswith(KEPT))
    if not os.path.isdir(HOME):
        subprocess.run(["git", "clone", "-q", "--depth", "1", "{url}", HOME], check=True)
    command = [sys.executable, "-m", "pip", "install", "-q"{more}, "-c", "kept.txt"]
    subprocess.run([*command, "-e", HOME + "{extras}"], check=True)
    os.chdir(os.path.join(HOME, "nbs"))
    sys.path.insert(0, os.path.abspath(".."))
    torch = version("torch")
    assert torch == here.get("torch", torch), "torch has changed: restart, and report this"
    print(f"ready after {{time.time() - begin:.0f}} s, with torch {{torch}}")'''


def for_colab(notebook: NotebookNode, book: Book) -> NotebookNode:
    "A notebook with a first cell that installs the library and what this chapter needs."
    made, extras, s = copy.deepcopy(notebook), needed_extras(notebook), book.settings
    more = "".join(f', "{name}"' for name in needed_extras(notebook, BESIDE))
    code = COLAB.format(
        repo=s["repo"], url=s["git_url"], extras=f"[{','.join(extras)}]" if extras else "",
        more=more
    )
    cell = new_code_cell(code, metadata={"cellView": "form", "tags": ["remove-cell"]})
    cell.id = "colab"
    made.cells.insert(0, cell)
    made.metadata = made.metadata | {
        "kernelspec": {"name": "python3", "display_name": "Python 3"}, "colab": {"provenance": []}
    }
    return made


# --------------------------------------------------------------------------------- other pages

def parts(book: Book) -> dict[str, list[Chapter]]:
    "Chapters by part; those that belong to none come first, under the empty name."
    found = {}
    for chapter in book.chapters:
        if chapter.stem != "index":
            found.setdefault(chapter.part, []).append(chapter)
    return found


def part_name(part: str) -> str:
    "File name of the page of a part."
    return "part-" + re.sub(r"\W+", "-", part.lower()).strip("-")


def part_page(part: str, chapters: list[Chapter]) -> str:
    "A part: its chapters and what they derive."
    rows = []
    for c in chapters:
        count = len(exercises(c.notebook)[1])
        also = f" {count} exercises." if count else ""
        rows.append(f"- [{c.name}]({c.stem}.ipynb): {c.about}.{also}")
    below = hidden([c.stem for c in chapters])
    return f"# {part}\n\n" + "\n".join(rows) + f"\n\n{below}\n"


def toctree(book: Book) -> str:
    "What the side bar lists."
    if book.edition:
        stems = [c.stem for c in book.chapters if c.stem != "index"]
        return "```{toctree}\n:hidden:\n\n" + "\n".join(stems) + "\n```"
    found = parts(book)
    loose = [c.stem for c in found.pop("", [])]
    beside = [f"{folder.name}/index" for folder in folders()]
    entries = [*loose, "play", *map(part_name, found), *beside, "symbols", "metrics", "api/index"]
    return hidden(entries)


def hidden(entries: list[str]) -> str:
    "Pages as Sphinx's list of what stands below a page."
    return "```{toctree}\n:hidden:\n\n" + "\n".join(entries) + "\n```"


def folders(root: Path = ROOT) -> list[Path]:
    """Folders of docs/ that are parts of the side bar beside the notebooks: those with an index.md.
    It is their title and a list of links to their pages, in order."""
    return sorted(path.parent for path in (root / "docs").glob("*/index.md"))


def heading(path: Path) -> str:
    "The title of a page."
    return re.match(r"# (.+)", path.read_text(encoding="utf8"))[1]


def folder_page(path: Path, book: Book) -> str:
    """A page of such a folder as the site shows it; below index.md stand those that it links to. An
    SVG becomes a part of the page: it has the page's colours then, and its links lead somewhere."""
    source = path.read_text(encoding="utf8")
    text = links(source, book, f"docs/{path.parent.name}")
    below = re.findall(r"\]\(([\w-]+)\.md\)", source)
    def drawing(found):
        svg = (path.parent / found[2]).read_text(encoding="utf8").strip()
        named = svg.replace("<svg ", f'<svg role="group" aria-label="{html.escape(found[1])}" ', 1)
        return f'```{{raw}} html\n<div class="drawing">{named}</div>\n```'
    text = re.sub(r"^!\[(.+)\]\(([\w-]+\.svg)\)$", drawing, text, flags=re.M)
    return f"{text}\n{hidden(list(dict.fromkeys(below)))}\n" if path.stem == "index" else text


@cache
def pieces(latex: str) -> list[str]:
    "LaTeX as a list of its commands and letters, without the braces around single ones."
    found = re.findall(r"\\[a-zA-Z]+|\\.|\S", re.sub(r"\\(?:big|bigg|Big|left|right)\b", "", latex))
    out = []
    for piece in found:
        out.append(piece)
        if piece == "}" and len(out) >= 3 and out[-3] == "{":
            out[-3:] = [out[-2]]
    return out


def uses(symbol: str, latex: str) -> bool:
    "Whether an equation contains a symbol; z_t is not part of z_t^a."
    part, whole = pieces(symbol), pieces(latex)
    n = len(part)
    return any(
        whole[i:i + n] == part and whole[i + n:i + n + 1] not in (["_"], ["^"], ["'"])
        and whole[i - 1:i] not in (["_"], ["^"])
        for i in range(len(whole) - n + 1)
    )


def symbols_page(book: Book, limit: int = 6) -> str:
    """The table of letters of the preface, with the first equations that contain each: those of
    its own chapters, then the others."""
    index = next(c for c in book.chapters if c.stem == "index")
    source = next(c.source for c in index.notebook.cells if c.source.startswith("## Symbols"))
    lines = []
    for line in re.sub(r"^## ", "# ", source).splitlines():
        if line.startswith("| Symbol "):
            line += " Equations |"
        elif line.startswith("|---"):
            line += "---|"
        elif line.startswith("| "):
            wanted = re.findall(r"\$([^$]+)\$", re.split(r"(?<!\\) \| ", line[2:])[0])
            found = [
                n for n, (_, tex) in book.equations.items() if any(uses(w, tex) for w in wanted)
            ]
            own = re.findall(r"\]\((\w+)\.ipynb\)", line)           # its chapters come first
            found.sort(key=lambda n: book.equations[n][0] not in own)
            more = ", …" if len(found) > limit else ""
            line += " " + ", ".join(f"({n})" for n in found[:limit]) + more + " |"
        lines.append(line)
    return links("\n".join(lines), book) + "\n"


def metrics_page(book: Book) -> str:
    "The glossary of what a run logs: the table as the chapter that makes it shows it."
    shown = ((chapter, output.get("data", {}).get("text/markdown", ""))
             for chapter in book.chapters for cell in chapter.notebook.cells
             for output in cell.get("outputs", []))
    home, table = next(x for x in shown if x[1].startswith("| key | formula |"))
    stems = book.labels()
    lines = [re.sub(r"\| (\w+) \|$", lambda m: f"| [{m[1]}]({stems[m[1]]}.ipynb) |", line)
             if line.startswith("| `") else line for line in table.splitlines()]
    about = ("All numbers of `metrics.jsonl`, which has a line for every epoch of a run. What to "
             f"do where one is not healthy: [{home.name}]({home.stem}.ipynb).")
    return "# Metrics\n\n" + about + "\n\n" + "\n".join(lines) + "\n"


def api_page(module: str, text: str, book: Book) -> str:
    "A module: for each public name its signature, its docstring and the chapter that derives it."
    names = {c.stem: c.name for c in book.chapters}
    about = ast.get_docstring(ast.parse(text)) or ""
    home = book.exports[module][0].stem if module in book.exports else ""
    lines = [f"# {book.settings['lib_name']}.{module}", "", about, ""]
    stems = list(dict.fromkeys(e.stem for e in book.exports[module] if e.stem in names))
    written = ", ".join(f"[{names[s]}](../{s}.ipynb)" for s in stems or [home])
    lines += [f"Written by {written}.", ""]
    for e in book.exports[module]:
        where = f"../{e.stem}.html#cell-{e.cell}"
        lines += [
            f"<span id='{e.name}'></span>", "", f"## {e.name}", "",
            "````python", e.code, "````", "",
            f"<a href='{where}'>Where it is derived: {html.escape(names.get(e.stem, e.stem))}</a>",
            "",
        ]
    return "\n".join(lines)


def api_index(book: Book) -> str:
    "The list of modules."
    rows = [
        f"| [`{m}`]({m}.md) | {', '.join(f'`{e.name}`' for e in exports)} |"
        for m, exports in book.exports.items()
    ]
    return "\n".join([
        "# The library", "",
        "One page for each module. Each public name links to the chapter that derives it, and the "
        "code of the chapters links back.", "",
        "| Module | Names |", "|---|---|", *rows, "",
        hidden(list(book.exports)), ""
    ])


def as_text(chapter: Chapter) -> str:
    "A chapter as plain Markdown: prose, code and printed results, no pictures."
    out = []
    for cell in chapter.notebook.cells:
        if cell.cell_type == "markdown":
            out.append(cell.source)
            continue
        source, directives = without_directives(cell.source)
        if source.strip() and "hide" not in directives:
            if directives.get("echo") != "false":
                out.append(f"```python\n{source}\n```")
            for output in cell.outputs:
                data = output.get("data", {})
                if output.output_type == "stream":
                    out.append(f"```text\n{output.text.rstrip()}\n```")
                elif "text/markdown" in data:
                    out.append(data["text/markdown"])
                elif "text/plain" in data and "image/png" not in data:
                    out.append(f"```text\n{data['text/plain']}\n```")
    return "\n\n".join(out) + "\n"


def llms(book: Book) -> str:
    "llms.txt: what there is to read, as plain Markdown, one line a chapter."
    s, out = book.settings, []
    out += [f"# {s['title']}", "", f"> {s['description']}", ""]
    out += ["Each chapter as plain Markdown with its formulas in LaTeX, its code and its results."]
    for part, chapters in parts(book).items():
        out += ["", f"## {part or 'First'}", ""]
        out += [f"- [{c.name}](text/{c.stem}.md): {c.about}" for c in chapters]
    for folder in folders():
        out += ["", f"## {heading(folder / 'index.md')}", ""]
        out += [
            f"- [{heading(path)}](text/{folder.name}/{path.name})"
            for path in sorted(folder.glob("*.md")) if path.stem != "index"
        ]
    out += ["", "## Optional", "", "- [The library](api/index.html): every public name"]
    return "\n".join(out) + "\n"
