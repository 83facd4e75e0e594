"""Try the first cell of the notebooks for Colab in an environment like Colab's.

    python tools/check_colab.py [--chapter 12_pop] [--torch 2.9.0+cu126]

Makes an empty virtual environment in a temporary folder and pretends that another torch is
installed there: the files are links to this interpreter's, the version is the one given. Then it
runs the cell, word for word, in a folder of its own; what it would clone from GitHub comes from the
last commit here. It checks that nothing of torch has moved, that all requirements are met, and that
a stored agent plays. Needs a network, for the packages."""
import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import site_pages as pages

ROOT = Path(__file__).resolve().parent.parent
PLAYS = """
from simulus_nb.agent import Agent
from simulus_nb.envs import make_env
agent = Agent.load("data/catch-agent")
env = make_env("simulus/Catch-v0", image_size=32)
obs, over = env.reset(seed=1)[0], False
while not over:
    obs, reward, over, *_ = env.step(agent.act(obs, temperature=0.0))
print(f"a stored agent plays: reward {reward:+g}")
"""


def pretend(name: str, version: str, place: Path, torch: str) -> None:
    "A distribution that is there, with another version: links to our files, and a note."
    fits = lambda r: not r.startswith(("torch", "nvidia", "triton", "cuda")) and "extra ==" not in r
    try:
        ours = distribution(name)
        needs = [r for r in ours.requires or () if fits(r)]
        tops = {p.parts[0] for p in ours.files or () if len(p.parts) > 1 and p.parts[0] != ".."}
        for top in tops:
            if not top.endswith(".dist-info"):
                (place / top).symlink_to(ours.locate_file(top))
    except PackageNotFoundError:
        needs = []
    note = place / f"{name}-{version}.dist-info"
    note.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {r}" for r in needs]
    lines += [] if name == "torch" else [f"Requires-Dist: torch=={torch}"]
    (note / "METADATA").write_text("\n".join(lines) + "\n")
    (note / "INSTALLER").write_text("colab\n")
    (note / "RECORD").write_text("")


def colab_like(folder: Path, torch: str, numpy: str) -> Path:
    "The interpreter of a new environment with these versions."
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    ask = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    place = Path(subprocess.check_output([python, "-c", ask], encoding="utf8").strip())
    subprocess.run([python, "-m", "pip", "install", "-q", f"numpy=={numpy}"], check=True)
    # versions that no index has, so that pip could only replace them
    for name, version in {"torch": torch, "torchvision": "0.24.0+cu126"}.items():
        pretend(name, version, place, torch)
    return python


def main(args=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chapter", default="12_pop", help="whose cell: a name of nbs/")
    parser.add_argument("--torch", default="2.9.0+cu126", help="the version that is pretended")
    parser.add_argument("--numpy", default="2.0.2", help="the one that is installed before")
    given = parser.parse_args(args)
    book = pages.read_book()
    chapter = next(c for c in book.chapters if c.stem == given.chapter)
    cell = pages.for_colab(chapter.notebook, book).cells[0].source
    work = Path(tempfile.mkdtemp(prefix="colab-"))
    try:
        python = colab_like(work / "env", given.torch, given.numpy)
        versions = lambda: subprocess.check_output(
            [python, "-c", "from importlib.metadata import version as v; "
             "print(v('torch'), v('torchvision'), v('numpy'))"], encoding="utf8"
        ).split()
        before = versions()
        (work / "content").mkdir()
        (work / "cell.py").write_text(f"{cell}\n{PLAYS}", encoding="utf8")
        env = os.environ | {
            "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_VALUE_0": book.settings["git_url"],
            "GIT_CONFIG_KEY_0": f"url.{ROOT.as_uri()}.insteadOf"
        }
        env.pop("PYTHONPATH", None)
        begin = time.time()
        subprocess.run([python, work / "cell.py"], cwd=work / "content", env=env, check=True)
        seconds = time.time() - begin
        after = versions()
        assert after == before, f"{before} became {after}"
        subprocess.run([python, "-m", "pip", "check"], env=env, check=True)
        spent = os.times()
        print(f"{given.chapter}: {seconds:.0f} s, of the processor "
              f"{spent.children_user + spent.children_system:.0f} s in all; "
              f"torch {after[0]}, torchvision {after[1]} and numpy {after[2]} as before")
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
