"""No word that codespell knows to be misspelt, in the notebooks and in everything beside them."""
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("codespell_lib")

ROOT = Path(__file__).resolve().parents[1]
OTHERS = ["README.md", "CHANGELOG.md", "settings.ini", "setup.py", "tests", "tools", "docs/*.py",
          "docs/static", "docs/*/*.md"]


def misspelt(*paths):
    "What codespell says of files, with the settings of the repository."
    command = [sys.executable, "-m", "codespell_lib", "--toml", ROOT / "pyproject.toml", *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf8")
    return done.stdout + done.stderr


def test_notebooks_are_spelt_right(tmp_path):
    for path in (ROOT / "nbs").glob("**/*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf8"))["cells"]
        text = "\n\n".join("".join(c["source"]) for c in cells)
        (tmp_path / f"{path.stem}.txt").write_text(text, encoding="utf8")
    assert misspelt(tmp_path) == ""


def test_all_else_is_spelt_right():
    paths = [p for pattern in OTHERS for p in sorted(ROOT.glob(pattern))]
    assert misspelt(*paths) == ""


def test_a_wrong_word_is_found(tmp_path):
    (tmp_path / "page.txt").write_text("It will recie" "ve a token.", encoding="utf8")
    assert "rece" "ive" in misspelt(tmp_path)
