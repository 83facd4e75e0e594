"""Does a check notice when an equation is computed wrongly?

    python tools/mutate.py [--count 40] [--seed 0] [--chapters 10 14] [--json FILE]

Takes lines of the library that cite an equation, `# Eq. (10.1)`, by chance, spoils each in one
way (another sign, another comparison, a number one larger, a term left out), and runs the chapter
with the spoilt line, and if that passes the tests of the module. Prints each alteration with what
noticed it, and the share that was noticed. What nothing notices is a check to be written, or a
change that makes no difference: look at it. About half a minute for each.
"""
import argparse
import ast
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
CITES = re.compile(r"#.*\bEqs?\.? ?\(((?:\d+|[A-Z])\.\d+[a-z]?)\)")
OTHER = {                                           # what an operator is replaced by
    ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"),
    ast.Lt: ("<", ">"), ast.Gt: (">", "<"), ast.LtE: ("<=", "<"), ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="),
}


# runs a notebook as nbdev_test does
CHAPTER = """import sys
from pathlib import Path
from nbdev.test import test_nb
sys.exit(not test_nb(Path(sys.argv[1]), skip_flags=["notest"])[0])
"""


@dataclass
class Mutant:
    "One altered line."
    chapter: str        # file name of the notebook
    module: str         # that the line goes to
    cell: str           # id of the cell
    line: int           # of the cell, from 1
    equation: str       # that the line cites
    before: str
    after: str
    noticed: str = ""   # by "chapter", by "tests", or by nothing


def spoilt(source: str, line: int) -> list[str]:
    """All ways to spoil one line of a source, from 1: sources that differ in one operator, one
    number or one term, and still are Python."""
    lines = source.splitlines(keepends=True)
    starts = [sum(map(len, lines[:i])) for i in range(len(lines))]
    # columns of ast count bytes
    at = lambda row, col: starts[row - 1] + len(lines[row - 1].encode()[:col].decode())
    begin, end = lambda n: at(n.lineno, n.col_offset), lambda n: at(n.end_lineno, n.end_col_offset)
    edits = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.BinOp) and node.left.end_lineno == line:
            pairs = [(node.left, node.op, node.right)]
            if isinstance(node.op, (ast.Add, ast.Sub)):
                edits.append((begin(node), end(node), source[begin(node.left): end(node.left)]))
        elif isinstance(node, ast.Compare) and node.left.end_lineno == line:
            pairs = [(node.left, node.ops[0], node.comparators[0])]
        else:
            pairs = []
        for left, op, right in pairs:
            if type(op) in OTHER:
                was, now = OTHER[type(op)]
                i = source.find(was, end(left), begin(right))
                edits += [(i, i + len(was), now)] if i >= 0 else []
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            if node.lineno == line:
                edits.append((begin(node), end(node), repr(node.value + 1)))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and node.lineno == line:
            edits.append((begin(node), end(node), source[begin(node.operand): end(node.operand)]))
    found = []
    for a, b, text in edits:
        new = source[:a] + text + source[b:]
        try:
            if ast.dump(ast.parse(new)) != ast.dump(ast.parse(source)) and new not in found:
                found.append(new)
        except SyntaxError:                         # a bracket was cut in two
            continue
    return found


def module_of(source: str, default: str) -> str:
    "The module that a cell is exported to; the empty string for a cell that is not exported."
    found = re.search(r"^#\|\s*exports?\b *(\w*)", source, re.M)
    return (found[1] or default) if found else ""


def mutants(path: Path) -> list[tuple[Mutant, str]]:
    "All alterations of the cited lines that a notebook exports, with the source of the cell."
    notebook, found = nbformat.read(path, 4), []
    everything = "\n".join(c.source for c in notebook.cells)
    default = re.search(r"#\| default_exp (\w+)", everything)
    for cell in notebook.cells:
        module = cell.cell_type == "code" and module_of(cell.source, default[1] if default else "")
        if not module:
            continue
        for i, line in enumerate(cell.source.splitlines(), 1):
            cited = CITES.search(line)
            for new in spoilt(cell.source, i) if cited and line.split("#")[0].strip() else []:
                # the first line that is not as it was
                pairs = zip(cell.source.splitlines(), new.splitlines())
                before, after = next((a.strip(), b.strip()) for a, b in pairs if a != b)
                found.append(
                    (Mutant(path.name, module, cell.id, i, cited[1], before, after), new)
                )
    return found


def whole(mutant: Mutant) -> str:
    "The cell of an alteration as it is in the book."
    notebook = nbformat.read(ROOT / "nbs" / mutant.chapter, 4)
    return next(c.source for c in notebook.cells if c.id == mutant.cell)


def run(command: list[str], folder: Path, package: Path, limit: int) -> bool:
    "Whether a command ends well within `limit` seconds, with a copy of the package in front."
    paths = f"{package}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    env = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, cwd=folder, env=env, timeout=limit, capture_output=True)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def notice(mutant: Mutant, source: str, limit: int) -> str:
    "What notices an alteration: 'chapter', 'tests' or the empty string."
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "repository"
        skip = shutil.ignore_patterns(".git", "runs", "__pycache__", ".*", "results")
        shutil.copytree(ROOT, copy, ignore=skip)
        (copy / "nbs" / "results").symlink_to(ROOT / "nbs" / "results")
        path = copy / "nbs" / mutant.chapter
        notebook = nbformat.read(path, 4)
        next(c for c in notebook.cells if c.id == mutant.cell).source = source
        nbformat.write(notebook, path)
        export = "from nbdev.doclinks import nbdev_export; nbdev_export()"
        if not run([sys.executable, "-c", export], copy, copy, limit):
            raise RuntimeError(f"could not export {path.name}")
        if not run([sys.executable, "-c", CHAPTER, str(path)], copy / "nbs", copy, limit):
            return "chapter"
        tests = copy / "tests" / f"test_{mutant.module}.py"
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(tests)]
        return "tests" if tests.exists() and not run(command, copy, copy, limit) else ""


def main() -> None:
    "Draw, spoil, run, report."
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=40, help="alterations to try")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--chapters", nargs="*", default=[""], help="beginnings of file names")
    parser.add_argument("--limit", type=int, default=300, help="seconds that one check may take")
    parser.add_argument("--json", type=Path, help="file for the results")
    options = parser.parse_args()
    pages = sorted((ROOT / "nbs").glob("[0-9A-Z]*_*.ipynb"))
    lines = {}                                      # one alteration of each cited line is enough
    for page in pages:
        if page.name.startswith(tuple(options.chapters)):
            for mutant, source in mutants(page):
                lines.setdefault((page.name, mutant.cell, mutant.line), []).append((mutant, source))
    draw = random.Random(options.seed)
    drawn = draw.sample(sorted(lines), min(options.count, len(lines)))
    done, sound = [], {}
    for key in drawn:
        mutant, source = draw.choice(lines[key])
        if key[0] not in sound:                     # a chapter that fails anyway notices nothing
            sound[key[0]] = not notice(mutant, whole(mutant), options.limit)
        if not sound[key[0]]:
            print(f"{key[0]} or its tests fail as they are: left out", flush=True)
            continue
        mutant.noticed = notice(mutant, source, options.limit)
        done.append(mutant)
        print(f"({mutant.equation}) {mutant.module}: {mutant.before}\n    -> {mutant.after}\n"
              f"    noticed by: {mutant.noticed or 'NOTHING'}", flush=True)
        if options.json:
            options.json.write_text(json.dumps([asdict(m) for m in done], indent=1) + "\n", "utf8")
    caught = sum(bool(m.noticed) for m in done)
    print(f"{caught} of {len(done)} alterations were noticed, of {len(lines)} cited lines")


if __name__ == "__main__":
    main()
