"""Appendix E at the widths of Atari: the naive agent against this one, piece by piece.

    python tools/performance.py                         # everything but `compiled`
    python tools/performance.py --only peer compiled

The code is that of the appendix: its cells that name this file. One thread, seconds of the
processor, medians of interleaved rounds with the smallest and the largest. Writes
nbs/results/performance.json, part by part, so that an interruption loses nothing; every part
carries its command, commit, versions, machine and date. About two minutes of one core, and one
more for `compiled`."""
import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

import simulus_nb.bench
from simulus_nb.origin import git_commit, processor, versions

NBS = Path(__file__).resolve().parents[1] / "nbs"
FILE = NBS / "results" / "performance.json"
SIZE = {"width": 256, "heads": 4, "layers": 2, "K": 64, "B": 2, "T": 9}
BATCHES = (1, 8, 128)                                   # of the dream step
PARTS = {                           # name: what a cell of that part has and no other cell
    "rates": "R = {", "loop": "pop_reference(net", "nobody reads": "def straightforward",
    "two calls": "def two_calls", "POP": "def tokens", "elementwise": "rotate_reference(q",
    "sampler": "def from_list", "quantiles": "by_sort =", "peer": "retention as peer",
    "compiled": "def compiled_gain"
}
ALWAYS = ("rates", "compiled")                          # what the others need, what defines only


def cells() -> list[str]:
    "The code cells of the appendix that name this file."
    notebook = json.loads((NBS / "E_performance.ipynb").read_text(encoding="utf8"))
    sources = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    return [s for s in sources if f"tools/{Path(__file__).name}" in s.splitlines()[0]]


def part_of(source: str) -> str | None:
    "Whose cell it is; None: everybody's."
    return next((name for name, sign in PARTS.items() if sign in source), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS,
                        default=[name for name in PARTS if name != "compiled"])
    asked = parser.parse_args().only
    torch.set_num_threads(1)
    names = vars(simulus_nb.bench) | {"SIZE": SIZE, "batches": BATCHES, "measured": {}}
    command = " ".join(["python", f"tools/{Path(__file__).name}", *sys.argv[1:]])
    for source in cells():
        name = part_of(source)
        if name not in (None, *ALWAYS, *asked):
            continue
        names["measured"].clear()
        exec(source, names)
        if name not in asked:
            continue
        if name == "compiled":
            found = {preset: names["compiled_gain"](preset) for preset in ("catch", "small")}
        else:
            found = names["rates"] if name == "rates" else dict(names["measured"])
        stored = json.loads(FILE.read_text(encoding="utf8")) if FILE.exists() else {}
        stored[name] = {
            "command": command, "git_commit": git_commit(), "versions": versions(),
            "machine": processor(), "date": datetime.now(UTC).date().isoformat(),
            "size": SIZE, "rates": names["rates"], "found": found
        }
        print(name, json.dumps(found), flush=True)
        FILE.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf8")


if __name__ == "__main__":
    main()
