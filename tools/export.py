"""Notebooks to modules, as `nbdev_export` does it, also where one notebook makes several modules.

`#| export files` and `#| exports files` write a cell to `simulus_nb/files.py`. nbdev appends such
cells to a file that another notebook has begun; here the first of them begins the file, and a
string at its top is the docstring of the module."""
import ast
from pathlib import Path

from execnb.nbio import mk_cell
from nbdev.config import add_init, get_config
from nbdev.doclinks import _build_modidx, nbglob
from nbdev.export import nb_export
from nbdev.maker import ModuleMaker

BEGUN: set[Path] = set()                                        # modules of this export so far


def titled(cells) -> list:
    "The cells of a module; a string on top of the first becomes a title with a summary."
    code = cells[0].source
    top = ast.parse(code).body[0]
    if not (isinstance(top, ast.Expr) and isinstance(top.value.value, str)):
        raise SystemExit(f"a module begins with a docstring, not with {code[:60]!r}")
    summary = " ".join(top.value.value.split())
    cells[0].set_source("\n".join(code.splitlines()[top.end_lineno:]).lstrip("\n"))
    return [mk_cell(f"# Module\n\n> {summary}", cell_type="markdown"), *cells]


class Maker(ModuleMaker):
    "A `ModuleMaker` for which the first notebook that writes to a module begins it."

    def __init__(self, dest, name, nb_path, is_new=True, **kwargs):
        self.own, file = is_new, Path(dest) / f"{name}.py"
        super().__init__(dest, name, nb_path, is_new or file not in BEGUN, **kwargs)
        BEGUN.add(file)

    def make(self, cells, all_cells=None, lib_path=None):
        if self.is_new and not self.own:
            cells = titled(list(cells))
        super().make(cells, all_cells, lib_path)


def main() -> None:
    for path in nbglob(as_path=True).sorted("name"):
        nb_export(path, mod_maker=Maker)
    add_init(get_config().lib_path)
    _build_modidx()


if __name__ == "__main__":
    main()
