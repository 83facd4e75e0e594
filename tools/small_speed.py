"""CPU time of small presets with this library and with an earlier one, side by side.

    git worktree add ../before COMMIT
    python tools/small_speed.py ../before --store

Two processes of one thread take turns, so that what else the machine does meets both alike; what
is counted is the time of the processor, not of the clock."""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
FILE = HOME / "nbs" / "results" / "small-speed.json"
PRESETS = ("catch", "small", "minigrid", "control")
PARTS = ("play", "V", "M", "C", "dream")


def worker() -> None:
    "Answer lines 'preset part calls' by the CPU milliseconds of a call; 'ops' instead: how many."
    import time

    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    from simulus_nb.bench import Bench, run_counts
    from simulus_nb.config import PRESETS

    class Count(TorchDispatchMode):
        n = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.n += 1
            return func(*args, **(kwargs or {}))

    torch.set_num_threads(1)
    stands = {}
    for line in sys.stdin:
        preset, part, calls = line.split()
        if preset not in stands:
            torch.manual_seed(0)
            config = PRESETS[preset]().change({"threads": 1, "device": "cpu"})
            stands[preset] = Bench(config).parts() | {"counts": run_counts(config)}
        parts = stands[preset]
        if part == "counts":
            answer = parts["counts"]
        elif part not in parts:
            answer = None
        elif calls == "ops":
            with Count() as seen:
                parts[part][0]()
            answer = seen.n / parts[part][1]
        else:
            work, units = parts[part]
            begin = time.process_time()
            for _ in range(int(calls)):
                work()
            answer = 1e3 * (time.process_time() - begin) / int(calls) / units
        print(json.dumps(answer), flush=True)


class Library:
    "A process that imports the library of one checkout."

    def __init__(self, home: Path):
        self.home = home
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, env=os.environ | threads | {"PYTHONPATH": str(home)},
        )

    def ask(self, *words) -> float | dict | None:
        print(*words, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def commit(self) -> str:
        "Of the checkout."
        said = subprocess.run(["git", "-C", str(self.home), "rev-parse", "--short", "HEAD"],
                              capture_output=True, text=True)
        return said.stdout.strip()


def race(libraries: dict[str, Library], preset: str, part: str, repeats: int) -> dict | None:
    "CPU ms of a call: {who: {median, low, high}} over turns, {ratio: ...} of the pairs of turns."
    first = libraries["before"].ask(preset, part, 3)
    if first is None:
        return None
    calls = max(1, round(150 / max(first, 0.01) / (16 if part == "play" else 1)))
    ms, ops = {}, {}
    for who, library in libraries.items():
        library.ask(preset, part, 3)
        ms[who], ops[who] = [], library.ask(preset, part, "ops")
    for turn in range(repeats):
        for who in sorted(libraries, reverse=turn % 2):
            ms[who].append(libraries[who].ask(preset, part, calls))
    ratios = [a / b for a, b in zip(ms["now"], ms["before"])]
    spread = lambda x: dict(median=statistics.median(x), low=min(x), high=max(x))
    return {who: spread(x) | {"ops": ops[who]} for who, x in ms.items()} | {"ratio": spread(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", nargs="?", type=Path, help="a checkout of the earlier library")
    parser.add_argument("--presets", nargs="+", default=list(PRESETS))
    parser.add_argument("--parts", nargs="+", default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--store", action="store_true", help=f"write {FILE.name}")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker()
    libraries = {"before": Library(args.before), "now": Library(HOME)}
    found = {"commit": {who: one.commit() for who, one in libraries.items()},
             "machine": platform.machine(), "repeats": args.repeats,
             "date": datetime.now(UTC).date().isoformat(), "parts": {}, "count": {}}
    for preset in args.presets:
        found["count"][preset] = libraries["now"].ask(preset, "counts", 0)
        for part in args.parts:
            one = race(libraries, preset, part, args.repeats)
            if one is None:
                continue
            found["parts"].setdefault(preset, {})[part] = one
            b, n, r = one["before"], one["now"], one["ratio"]
            print(f"{preset:9}{part:6}{b['median']:9.2f} ->{n['median']:9.2f} ms   ratio "
                  f"{r['median']:.2f} ({r['low']:.2f}-{r['high']:.2f})   operations "
                  f"{b['ops']:.0f} -> {n['ops']:.0f}", flush=True)
            if args.store:                                  # row by row: an interruption is no loss
                FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
