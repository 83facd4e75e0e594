"""The code of the book, the library, the tests and the tools keeps the rules of pyproject.toml."""
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ruff")

ROOT = Path(__file__).resolve().parents[1]


def ruff(*args, text=None):
    "Exit code and output of a check with the settings of the repository."
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", *args]
    done = subprocess.run(command, cwd=ROOT, input=text, capture_output=True, encoding="utf8")
    return done.returncode, done.stdout + done.stderr


def test_code_keeps_the_rules():
    code, said = ruff("--output-format=concise", "nbs", "simulus_nb", "tests", "tools", "setup.py")
    assert code == 0, said


@pytest.mark.parametrize(
    "text,rule",
    [
        ("x = 1" + " + 1" * 24 + "\n", "E501"), ("if 1: pass\n", "E701"),
        ("x = 1; y = 2\n", "E702"), ("x = 1;\n", "E703"), ("print(x)\n", "F821"),
        ("import os\n", "F401"),
    ],
)
@pytest.mark.parametrize("folder", ["nbs", "tests", "tools"])
def test_a_breach_is_found(folder, text, rule):
    code, said = ruff("--stdin-filename", f"{folder}/new.py", "-", text=text)
    assert code == 1 and rule in said
    assert ruff("--stdin-filename", f"{folder}/new.py", "-", text="x = 1\n")[0] == 0
