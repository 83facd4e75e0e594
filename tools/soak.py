"""A soak: many tiny runs in random worlds, with random options, kills, full disks, folders of
strangers and worlds that misbehave. After each command it looks for what was lost or hidden.

    python tools/soak.py [--seed 0] [--runs 200] [--workers 2] [--json FILE]
    python tools/soak.py --seed 0 --only 17         one situation again, with all that it printed

Everything follows from the seed; only a signal that comes after so many seconds of computing
comes a little earlier or later each time. The exit code is 1 if anything was violated.
"""
import argparse
import io
import json
import multiprocessing
import os
import random
import resource
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from soaking.kinds import KINDS, SLOTS, turn_of
from soaking.situations import Situation

from simulus_nb import cli

def situation(seed: int, n: int, limit: float, loud: bool = False) -> dict:
    "Try situation `n` in a folder of its own."
    home = tempfile.mkdtemp(prefix="soak-")
    os.environ["HOME"] = home
    kind, begin = SLOTS[n % len(SLOTS)], time.monotonic()
    try:
        s = Situation(kind, turn_of(n), random.Random(f"{seed}/{n}"), Path(home), limit)
        try:
            KINDS[kind](s)
        except Exception as e:                                  # the soak's own, or a file is gone
            s.violate(None, f"the soak stumbled: {type(e).__name__}: {e}")
            if loud:
                raise
        if loud:
            for i, argv in enumerate(s.log, 1):
                files = [s.root / "logs" / str(i) / name for name in ("out", "err")]
                print("$", shlex.join(argv))
                print(*(file.read_text("utf8", "replace") for file in files if file.exists()))
        return dict(n=n, kind=kind, counts=dict(s.counts), violations=s.violations,
                    seconds=round(time.monotonic() - begin, 1))
    finally:
        os.chdir("/")
        shutil.rmtree(home, ignore_errors=True)


COLUMNS = ("situations", "commands", "finished", "stopped", "refused", "world's error", "identical",
           "violations")


def table(results: list[dict]) -> dict[str, dict[str, int]]:
    "Counts by kind, and all together."
    rows = {kind: Counter() for kind in [*KINDS, "all"]}
    for r in results:
        for row in (rows[r["kind"]], rows["all"]):
            row.update(r["counts"])
            row.update(situations=1, violations=len(r["violations"]))
    return {kind: {c: row[c] for c in COLUMNS} for kind, row in rows.items() if row["situations"]}


def text_table(rows: dict[str, dict[str, int]]) -> str:
    "The table for a screen."
    head = f"{'':12}" + "".join(f"{c:>15}" for c in COLUMNS)
    return "\n".join([head, *(f"{kind:12}" + "".join(f"{row[c]:>15}" for c in COLUMNS)
                              for kind, row in rows.items())])


def main(argv: Sequence[str] | None = None) -> int:
    "The command; returns its exit code."
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=int, default=200, help="situations to try")
    parser.add_argument("--workers", type=int, default=2, help="tried side by side")
    parser.add_argument("--limit", type=float, default=120, help="seconds until a command hangs")
    parser.add_argument("--only", type=int, nargs="+", help="numbers of situations to try again")
    parser.add_argument("--json", type=Path, help="write the table and all violations to this file")
    a = parser.parse_args(argv)
    torch.set_num_threads(1)
    Figure().savefig(io.BytesIO())                              # what is slow the first time
    cli.parse(["train"])
    begin, numbers, results = time.monotonic(), a.only or range(a.runs), []
    with multiprocessing.get_context("fork").Pool(a.workers) as pool:
        loud = len(numbers) == 1
        jobs = [pool.apply_async(situation, (a.seed, n, a.limit, loud)) for n in numbers]
        for job in jobs:
            results.append(r := job.get())
            for violation in r["violations"]:
                print(f"{r['kind']} {r['n']}: {violation}\n    again: python tools/soak.py "
                      f"--seed {a.seed} --only {r['n']}", flush=True)
        pool.close(), pool.join()
    rows, seconds = table(results), round(time.monotonic() - begin)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = round(used.ru_utime + used.ru_stime)
    print(f"{text_table(rows)}\nseed {a.seed}: {seconds} s, {cpu} s of computing")
    if a.json:
        found = dict(seed=a.seed, runs=len(results), seconds=seconds, cpu_seconds=cpu, kinds=rows,
                     violations=[r for r in results if r["violations"]])
        a.json.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if rows["all"]["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
