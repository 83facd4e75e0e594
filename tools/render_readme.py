"""Write README.md, and the pictures that the preface draws, from nbs/index.ipynb.

    python tools/render_readme.py

Edit the notebook and run it before, never README.md. Four things change on the way:
- cells marked `#| hide` are left out;
- of a cell marked `#| echo: false` only the picture stays, as nbs/images/<label>.png with its
  `fig-alt` as text;
- links that start from nbs/ start from the repository's root instead;
- in place of `<!-- results -->` stands the table of all tasks, from the records in
  nbs/results/tasks.
"""
import base64
import posixpath
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from simulus_nb.tasks import overview

ROOT = Path(__file__).resolve().parent.parent
RESULTS = "<!-- results -->"
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s]+)\)")           # relative targets only


def directives(source: str) -> dict[str, str]:
    "The lines `#| name: value` at the top of a cell; a name without a value has the empty string."
    lines = re.match(r"(?:#\|.*\n?)*", source).group().splitlines()
    pairs = (line[2:].partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def from_root(
    text: str,               # Markdown of a notebook cell
    folder: str = "nbs",     # where the notebook is
) -> str:
    "Relative links made relative to the repository; fenced code is left alone."
    parts = re.split(r"(^```.*?^```)", text, flags=re.S | re.M)
    move = lambda m: f"]({posixpath.normpath(posixpath.join(folder, m[1]))})"
    return "".join(p if p.startswith("```") else LINK.sub(move, p) for p in parts)


def picture(cell: NotebookNode) -> bytes:
    "The PNG that a cell shows."
    found = [o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {})]
    if len(found) != 1:
        raise ValueError(
            f"a cell with `#| echo: false` must show exactly one picture, not {len(found)}: "
            "run the notebook and save it"
        )
    return base64.b64decode(found[0])


def render(notebook: Path) -> tuple[str, dict[str, bytes]]:
    """README.md as text, and the pictures to be written beside the notebook: {images/name.png:
    bytes}."""
    nb, cells, pictures = nbformat.read(notebook, as_version=4), [], {}
    for cell in nb.cells:
        marks = directives(cell.source)
        if cell.cell_type == "code" and "hide" in marks:
            continue
        if cell.cell_type == "code" and marks.get("echo") == "false":
            name = f"images/{marks['label']}.png"
            pictures[name] = picture(cell)
            cell = new_markdown_cell(f"![{marks['fig-alt']}]({name})")
        if cell.cell_type == "markdown":
            cell.source = from_root(cell.source)
            if RESULTS in cell.source:
                found = overview(notebook.parent / "results" / "tasks")
                cell.source = cell.source.replace(RESULTS, found)
        cells.append(cell)
    nb.cells, nb.metadata.language_info = cells, {"name": "python"}
    text, _ = MarkdownExporter().from_notebook_node(nb)
    text = re.sub(r"[ \t]+$", "", text, flags=re.M)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n", pictures


def main() -> None:
    "Write the files."
    notebook = ROOT / "nbs" / "index.ipynb"
    text, pictures = render(notebook)
    for name, data in pictures.items():
        path = notebook.parent / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    (ROOT / "README.md").write_text(text, encoding="utf8")


if __name__ == "__main__":
    main()
