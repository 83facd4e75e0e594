"""Write the notebooks of the course for students: solutions become stubs, outputs are cleared.

    python tools/make_student.py                            # all chapters with exercises
    python tools/make_student.py nbs/15_returns.ipynb --out term/week5
    python tools/make_student.py --solutions --out source   # for `nbgrader generate_assignment`

What stands between `### BEGIN SOLUTION` and `### END SOLUTION` is replaced by its number of lines
and an error, explanations by room for notes; all else stays. The cells carry the metadata of
nbgrader (schema 3): answers are solutions, checks are locked tests worth as many points as the
exercise has minutes, notes are graded by hand. With `--solutions` nothing is cut, for nbgrader
cuts at the same marks itself. The folders that the chapters read from are copied beside them."""
import argparse
import copy
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("data", "images", "results")                     # of nbs/, read by the chapters
# by the first word of an exercise's kind
KINDS = ("derive", "predict", "break", "find", "extend")
# the parts of the section: the tags of each, and its kind of cell
PARTS = {
    "setup": ({"exercise-setup"}, "code"),
    "text": ({"exercise"}, "markdown"),
    "answer": ({"exercise", "solution", "hide-cell"}, "code"),
    "check": ({"check"}, "code"),
    "explanation": ({"solution", "hide-cell"}, "markdown"),
}
TAGS = set().union(*(tags for tags, _ in PARTS.values()))
HEAD = re.compile(r"\*\*Exercise (\d+)\.(\d+) \(([^)]+), (\d+) minutes\)\.\*\* ")
SOLUTION = re.compile(
    r"^([ \t]*)### BEGIN SOLUTION[ \t]*\n(.*?)^[ \t]*### END SOLUTION[ \t]*$", re.M | re.S
)


class FormError(ValueError):
    "An exercise that does not have the agreed form."


@dataclass
class Exercise:
    "One exercise: its number (chapter, place), its kind, its minutes, and its four cells."
    chapter: int
    place: int
    kind: str
    minutes: int
    text: NotebookNode
    answer: NotebookNode
    check: NotebookNode
    explanation: NotebookNode

    @property
    def number(self) -> str:
        return f"{self.chapter}.{self.place}"

    @property
    def solution(self) -> list[str]:
        "The lines between the marks, without those that are empty or only a comment."
        lines = (line.strip() for line in SOLUTION.search(self.answer.source)[2].splitlines())
        return [line for line in lines if line and not line.startswith("#")]

    @property
    def stub(self) -> str:
        "The answer cell as a student gets it."
        lines = f"{len(self.solution)} line{'s' * (len(self.solution) > 1)}"
        cut = lambda m: (
            f"{m[1]}# Your turn: about {lines}.\n"
            f'{m[1]}raise NotImplementedError("exercise {self.number}")'
        )
        return SOLUTION.sub(cut, self.answer.source)


def part(cell: NotebookNode) -> str:
    "Which part of the section a cell is, by its tags; the empty string for all other cells."
    tags = TAGS & set(cell.metadata.get("tags", []))
    found = [name for name, (own, _) in PARTS.items() if own == tags]
    if tags and not (found and PARTS[found[0]][1] == cell.cell_type):
        raise FormError(f"cell {cell.id}: {cell.cell_type} with the tags {sorted(tags)}")
    return found[0] if found else ""


def exercises(notebook: NotebookNode) -> tuple[str, list[Exercise]]:
    """The source of the setup cell and the exercises of a notebook, in order; ("", []) for one
    without. FormError says where a notebook does not have the form."""
    cells = [(part(cell), cell) for cell in notebook.cells if part(cell)]
    if not cells:
        return "", []
    order, found = list(PARTS)[1:], []
    names = [name for name, _ in cells]
    if names[0] != "setup" or names[1:] != order * (len(names) // 4):
        raise FormError(f"expected one setup cell, then {', '.join(order)} each time; got {names}")
    for i in range(1, len(cells), 4):
        four = {name: cell for name, cell in cells[i:i + 4]}
        head = HEAD.match(four["text"].source)
        if not head:
            raise FormError(
                f"cell {four['text'].id}: begin with **Exercise c.n (kind, M minutes).** "
            )
        if len(SOLUTION.findall(four["answer"].source)) != 1:
            raise FormError(f"cell {four['answer'].id}: one solution between the two marks")
        found.append(Exercise(int(head[1]), int(head[2]), head[3], int(head[4]), **four))
    return cells[0][1].source, found


def grading(name: str, exercise: Exercise) -> dict:
    "nbgrader's metadata of one part of an exercise."
    points = {"check": exercise.minutes, "explanation": 0}
    marks = {
        "schema_version": 3, "grade_id": f"{name}-{exercise.chapter}-{exercise.place}",
        "grade": name in points, "solution": name in ("answer", "explanation"),
        "locked": name in ("text", "check"), "task": False,
    }
    return marks | ({"points": points[name]} if name in points else {})


def for_students(notebook: NotebookNode, solutions: bool = False) -> NotebookNode:
    "A copy of a notebook without outputs and, unless `solutions`, without solutions."
    page = copy.deepcopy(notebook)
    for exercise in exercises(page)[1]:
        if not solutions:
            exercise.answer.source = exercise.stub
            exercise.explanation.source = "*Your notes.*"
        for name in list(PARTS)[1:]:
            cell = getattr(exercise, name)
            cell.metadata["nbgrader"] = grading(name, exercise)
            if name in ("answer", "explanation"):           # open, for there is nothing to hide
                cell.metadata.pop("cellView", None)
                cell.metadata["tags"] = [
                    t for t in cell.metadata["tags"] if t not in ("solution", "hide-cell")
                ]
    for cell in page.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return page


def main(args=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all with exercises")
    parser.add_argument("--out", type=Path, default=Path("students"), help="default: students")
    parser.add_argument("--solutions", action="store_true", help="keep them, for nbgrader")
    given = parser.parse_args(args)
    out = given.out.resolve()
    if out == ROOT / "nbs":
        parser.error("--out is the folder of the book; name another one")
    out.mkdir(parents=True, exist_ok=True)
    for path in given.notebooks or sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        try:
            notebook = nbformat.read(path, as_version=4)
            setup, found = exercises(notebook)
        except (OSError, ValueError) as error:
            sys.exit(f"{path}: {error}")
        if found:
            nbformat.write(for_students(notebook, given.solutions), out / path.name)
            print(f"{given.out / path.name}: {len(found)} exercises")
    for name in FOLDERS:
        shutil.copytree(ROOT / "nbs" / name, out / name, dirs_exist_ok=True)


if __name__ == "__main__":
    main()
