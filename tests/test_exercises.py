"""The exercises: every check takes the solution, and refuses the stub and plausible wrong answers
with a message that does not show the solution; the section at the end of a chapter has its form."""
import ast
import builtins
import json
import random
import re
import sys
import traceback
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt

nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))
import make_student

PAGES = sorted((ROOT / "nbs").glob("[0-9][0-9]_*.ipynb"))
WRONG = ROOT / "tests" / "wrong_answers"
NOTEBOOKS = {path: nbformat.read(path, as_version=4) for path in PAGES}
FOUND = {path: make_student.exercises(notebook) for path, notebook in NOTEBOOKS.items()}
ALL = [(path, exercise) for path, (_, found) in FOUND.items() for exercise in found]
each = pytest.mark.parametrize(
    "path, exercise", ALL, ids=[f"{path.stem}-{exercise.number}" for path, exercise in ALL]
)
chapters = pytest.mark.parametrize(
    "path", [path for path in PAGES if FOUND[path][1]], ids=lambda p: p.stem
)
ENOUGH = 4                                                  # exercises of a chapter that has any
LEAST_WRONG = 2                                             # wrong answers to each
HEADINGS = [
    "What to remember", "What goes wrong", "Exercises", "Five quick questions", "Further reading"
]


def wrong_answers(path):
    "{'12.2': {'forgets the last step': source}} of a chapter."
    stored, found = WRONG / f"{path.stem}.py", {}
    if stored.exists():
        text = stored.read_text(encoding="utf8")
        for number, what, source in re.findall(
            r"^# %% (\d+\.\d+) +(.+)\n((?:(?!# %%).*(?:\n|\Z))*)", text, re.M
        ):
            assert what not in found.setdefault(number, {}), f"two of {number} are called {what!r}"
            found[number][what] = source
    return found


def run(source, names, file):
    exec(compile(source, file, "exec"), names)


def error_of(exercise, answer, names):
    """What the check raises for an answer, and whether the answer's own code had a part in it;
    (None, False) if it is right. `names` is the namespace after the setup cell."""
    names, file = dict(names), f"answer {exercise.number}"
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    run(answer, names, file)
    try:
        run(exercise.check.source, names, f"check {exercise.number}")
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        return error, any(frame.filename == file for frame in frames)
    finally:
        plt.close("all")
    return None, False


def telling(exercise):
    "The lines of a solution that give it away, without blanks."
    lines = [re.sub(r"\s", "", line.split("  #")[0]) for line in exercise.solution]
    return [line for line in lines if len(line) > 15]


@pytest.fixture
def setup(path, monkeypatch):
    "The namespace after the setup cell of a chapter, in the folder of the notebooks."
    monkeypatch.chdir(ROOT / "nbs")
    matplotlib.use("Agg")
    names = {"__name__": "exercise"}
    run(FOUND[path][0], names, "setup")
    return names


@each
def test_solution_passes(path, exercise, setup):
    for _ in range(3):                                      # checks draw other numbers each time
        error, _ = error_of(exercise, exercise.answer.source, setup)
        assert error is None, repr(error)


@each
def test_stub_fails(path, exercise, setup):
    error, _ = error_of(exercise, exercise.stub, setup)
    assert isinstance(error, (NotImplementedError, AssertionError)), repr(error)


@pytest.mark.filterwarnings("ignore")                      # wrong answers may divide by zero
@each
def test_wrong_answers_fail(path, exercise, setup):
    """With a message of the check, or an error in the answer itself: what goes wrong inside the
    check would tell a student nothing."""
    answers = wrong_answers(path).get(exercise.number, {})
    assert len(answers) >= LEAST_WRONG, f"{WRONG.name}/{path.stem}.py has only {list(answers)}"
    for what, source in answers.items():
        assert name_of(source) == name_of(exercise.answer.source), what
        error, own = error_of(exercise, source, setup)
        assert error is not None, f"passes: {what}"
        said = str(error)
        assert own or isinstance(error, AssertionError), f"{what}: {error!r} inside the check"
        assert said.strip(), f"{what}: refused without a word"
        assert not [t for t in telling(exercise) if t in re.sub(r"\s", "", said)], (what, said)


def name_of(source):
    "The name of the one function that a cell defines."
    body = ast.parse(source).body
    assert len(body) == 1 and isinstance(body[0], ast.FunctionDef), "one function, nothing else"
    return body[0].name


@each
def test_answer_cell_has_its_form(path, exercise):
    source, number = exercise.answer.source, exercise.number
    assert source.startswith(f"# @title Exercise {number}\n")
    assert exercise.answer.metadata.get("cellView") == "form"
    assert 1 <= len(exercise.solution) <= 12
    for version in (source, exercise.stub):
        assert name_of(version) and ast.get_docstring(ast.parse(version).body[0])
    assert "SOLUTION" not in exercise.stub and "raise NotImplementedError" in exercise.stub


@each
def test_check_cell_has_its_form(path, exercise):
    name = f"check_{exercise.chapter}_{exercise.place}"
    body = ast.parse(exercise.check.source).body
    made = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
    assert name in made and ast.get_docstring(made[name])
    call = body[-1]
    assert isinstance(call, ast.Expr) and isinstance(call.value, ast.Call)
    assert ast.unparse(call) == f"{name}({name_of(exercise.answer.source)})"


@each
def test_nothing_gives_the_answer_away(path, exercise):
    """Neither the text (unless it shows code with a fault), nor the check, nor what is left of the
    answer cell holds a line of it."""
    text = "" if exercise.kind.startswith("find") else exercise.text.source
    for part in (text, exercise.check.source, exercise.stub):
        assert not [t for t in telling(exercise) if t in re.sub(r"\s", "", part)]


@each
def test_names_come_from_the_setup_cell(path, exercise):
    "It alone imports, and no exercise needs another one or the rest of the notebook."
    cells = [FOUND[path][0], exercise.answer.source, exercise.check.source]
    trees = [ast.parse(source) for source in cells]
    later = [n for tree in trees[1:] for n in ast.walk(tree)]
    assert not [n for n in later if isinstance(n, (ast.Import, ast.ImportFrom))], (
        "imports belong in the setup cell"
    )
    nodes = [n for tree in trees for n in ast.walk(tree)]
    known = set(dir(builtins)) | {n.arg for n in nodes if isinstance(n, ast.arg)}
    known |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    known |= {n.name for n in nodes if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    known |= {n.name for n in nodes if isinstance(n, ast.ExceptHandler)}
    known |= {(n.asname or n.name).split(".")[0] for n in nodes if isinstance(n, ast.alias)}
    used = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    assert used <= known, f"from elsewhere in the notebook: {sorted(used - known)}"


@chapters
def test_exercises_are_numbered_and_of_several_kinds(path):
    setup, found = FOUND[path]
    assert [(e.chapter, e.place) for e in found] == [
        (int(path.stem[:2]), i) for i in range(1, len(found) + 1)
    ]
    assert len(found) >= ENOUGH
    kinds = [e.kind.split()[0].strip(",") for e in found]
    assert set(kinds) <= set(make_student.KINDS) and len(set(kinds)) >= 3, kinds
    assert r"\tag" not in "".join(e.text.source + e.explanation.source for e in found)


@chapters
def test_each_wrong_answer_belongs_to_an_exercise(path):
    assert set(wrong_answers(path)) == {e.number for e in FOUND[path][1]}


def test_wrong_answers_belong_to_a_chapter():
    assert {p.stem for p in WRONG.glob("*.py")} == {p.stem for p in PAGES if FOUND[p][1]}


@chapters
def test_chapter_ends_with_what_a_reader_takes_along(path):
    """Five lines to remember, a table of what goes wrong, the exercises, five questions with
    folded answers, further reading: in this order, at the end."""
    parts = re.split(
        r"^## (.+)\n*", "\n\n".join(c.source for c in NOTEBOOKS[path].cells), flags=re.M
    )
    headings, texts = parts[1::2][-5:], parts[2::2][-5:]
    assert headings == HEADINGS
    items = lambda text: len(re.findall(r"^(?:- |\d+\. )", text, re.M))
    rows = re.findall(r"^\|", texts[1], re.M)
    assert items(texts[0]) == 5 and 2 + 3 <= len(rows) <= 2 + 5
    assert len(re.findall(r"<details>\s*<summary>.+?</summary>", texts[3], re.S)) == 5
    assert texts[3].count("</details>") == 5 and 3 <= items(texts[4]) <= 6


MARKED = '''# @title Exercise 4.1
def twice(x):
    "Number; gives a number. Hint: add."
    ### BEGIN SOLUTION
    # what it is worth
    y = x + x

    return y
    ### END SOLUTION'''


def page():
    "A notebook with one exercise and one cell before it."
    code, text = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell
    tags = lambda *names, **more: {"tags": list(names), **more}
    made = nbformat.v4.new_output("stream", text="4\n")
    hidden = tags("exercise", "solution", "hide-cell", cellView="form")
    return nbformat.v4.new_notebook(cells=[
        code("2 + 2", outputs=[made], execution_count=1),
        code("import math", metadata=tags("exercise-setup")),
        text("**Exercise 4.1 (derive, 5 minutes).** Double it.", metadata=tags("exercise")),
        code(MARKED, metadata=hidden),
        code("assert twice(2) == 4", outputs=[made], metadata=tags("check")),
        text("Twice is once and once more.", metadata=tags("solution", "hide-cell")),
        text("## Further reading"),
    ])


def test_stub_tells_the_size_and_keeps_the_rest():
    setup, (one,) = make_student.exercises(page())
    assert setup == "import math" and (one.number, one.kind, one.minutes) == ("4.1", "derive", 5)
    assert one.solution == ["y = x + x", "return y"]
    assert one.stub == "\n".join(MARKED.splitlines()[:3] + [
        "    # Your turn: about 2 lines.", '    raise NotImplementedError("exercise 4.1")'
    ])


@pytest.mark.parametrize("solutions", [False, True])
def test_student_notebook(tmp_path, solutions):
    "Only solutions, explanations and outputs go; nbgrader finds its marks; the book is untouched."
    before, book = page(), page()
    made = make_student.for_students(book, solutions)
    nbformat.validate(made)
    assert [c.source for c in book.cells] == [c.source for c in before.cells]
    changed = [i for i, (a, b) in enumerate(zip(before.cells, made.cells)) if a.source != b.source]
    assert changed == ([] if solutions else [3, 5])
    assert not any(c.get("outputs") or c.get("execution_count") for c in made.cells)
    graded = [c.metadata["nbgrader"] for c in made.cells[2:6]]
    text, answer, check, notes = graded
    marks = ("grade", "solution", "locked")
    assert [[c[m] for m in marks] for c in graded] == [
        [False, False, True], [False, True, False], [True, False, True], [True, True, False]
    ]
    assert check["points"] == 5 and notes["points"] == 0 and "points" not in answer
    assert len({c["grade_id"] for c in graded}) == 4
    assert all(c["schema_version"] == 3 and c["task"] is False for c in graded)
    assert not {"solution", "hide-cell"} & set(made.cells[3].metadata["tags"])
    assert "cellView" not in made.cells[3].metadata and "nbgrader" not in made.cells[0].metadata


@pytest.mark.parametrize("spoil, said", [
    (lambda c: c.pop(4), "expected one setup cell"),
    (lambda c: c.pop(1), "expected one setup cell"),
    (lambda c: c[2].update(source="**Exercise 4.1.** Double it."), "kind, M minutes"),
    (lambda c: c[3].update(source=MARKED.replace("### END", "# END")), "between the two marks"),
    (lambda c: c[3].update(metadata={"tags": ["exercise", "solution"]}), "tags"),
    (lambda c: c[2].update(metadata={"tags": ["check"]}), "markdown with the tags"),
])
def test_broken_form_is_refused(spoil, said):
    notebook = page()
    spoil(notebook.cells)
    with pytest.raises(make_student.FormError, match=said):
        make_student.exercises(notebook)


def test_command_writes_notebooks_and_what_they_read(tmp_path, capsys):
    source, out = tmp_path / "03_three.ipynb", tmp_path / "term"
    nbformat.write(page(), source)
    make_student.main([str(source), "--out", str(out)])
    assert "Your turn" in (out / source.name).read_text() and (out / "results").is_dir()
    assert "1 exercises" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        make_student.main([str(source), "--out", str(ROOT / "nbs")])


def test_the_tags_survive_cleaning():
    clean = pytest.importorskip("nbdev.clean")
    settings = (ROOT / "settings.ini").read_text(encoding="utf8")
    keys = re.search(r"^allowed_cell_metadata_keys = (.*)$", settings, re.M)
    notebook = json.loads(nbformat.writes(page()))
    notebook["cells"][3]["metadata"]["scrolled"] = True
    wanted = [c["metadata"] for c in json.loads(nbformat.writes(page()))["cells"]]
    clean.clean_nb(notebook, allowed_cell_metadata_keys=keys[1].split())
    assert [c["metadata"] for c in notebook["cells"]] == wanted


def test_every_chapter_of_the_course_has_exercises():
    course = [path for path in PAGES if int(path.name[:2]) < 24]
    counts = {path.stem: len(FOUND[path][1]) for path in course}
    assert len(course) == 24 and min(counts.values()) >= ENOUGH, counts
    assert sum(counts.values()) >= 120, counts
