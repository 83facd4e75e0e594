"""CPU time of small presets with this library and with an earlier one, side by side.

    git worktree add ../before COMMIT
    python tools/small_speed.py ../before --store

Two processes of one thread take turns, so that what else the machine does meets both alike; what
is counted is the time of the processor, not of the clock. Both have the settings of the earlier
presets; what those could not set is as the earlier code did it."""
import argparse
import json
import os
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
FILE = HOME / "nbs" / "results" / "small-speed.json"
PRESETS = ("catch", "small", "minigrid", "control")
PARTS = ("play", "encode", "batch of V", "V", "batch of M", "M", "batch of C", "C", "dream")
PRODUCTS = {"aten::" + name for name in (
    "mm", "addmm", "bmm", "baddbmm", "mkldnn_convolution", "convolution_backward",
    "mkldnn_rnn_layer", "mkldnn_rnn_layer_backward")}
UNITS = {"play": 16, "encode": 1_000}       # about so many in one call
# settings that came later, as the earlier code did it; and earlier ones that are called otherwise
LATER = {"controller.value": "histogram", "train_c.average": 1.0, "tokenizer.vector_waves": False}
GONE = {"collect.epochs", "tokenizer.image.codebook"}


def worker() -> None:
    """Answer lines [what, preset, ...], what being one of `use` (settings; answers the preset's),
    `counts` (of the parts in a run), `time` (part, calls: CPU milliseconds of one), `ops` and
    `products` (part: how many operations, and the share of its time, Python's part in it, that is
    spent in products; the profiler slows down the rest, so the share is rather too low)."""
    import time

    import torch
    from torch.profiler import ProfilerActivity, profile, record_function
    from torch.utils._python_dispatch import TorchDispatchMode

    from simulus_nb.bench import Bench, run_counts
    from simulus_nb.config import PRESETS, flat

    class Count(TorchDispatchMode):
        n = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.n += 1
            return func(*args, **(kwargs or {}))

    counts, stands = {}, {}

    def use(preset: str, settings: dict | None) -> dict:
        own = flat(PRESETS[preset]())
        before = settings or own
        assert {*before} - {*own} <= GONE, {*before} - {*own} - GONE
        context = {"train_c.context": before["train_c.burn_in"]}        # M once read all of it
        changes = {**LATER, **context, **before, "threads": 1, "device": "cpu"}
        torch.manual_seed(0)
        config = PRESETS[preset]().change({k: v for k, v in changes.items() if k in own})
        counts[preset], stands[preset] = run_counts(config), Bench(config).parts()
        return own

    def spent(preset: str, part: str, calls: int) -> float | None:
        if part not in stands[preset]:
            return None
        work, units = stands[preset][part]
        begin = time.process_time()
        for _ in range(calls):
            work()
        return 1e3 * (time.process_time() - begin) / calls / units

    def ops(preset: str, part: str) -> float:
        work, units = stands[preset][part]
        with Count() as seen:
            work()
        return seen.n / units

    def products(preset: str, part: str) -> float:
        work, _ = stands[preset][part]
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            for _ in range(3):
                with record_function("whole"):
                    work()
        events = {e.key: e for e in seen.key_averages()}
        took = sum(e.self_cpu_time_total for name, e in events.items() if name in PRODUCTS)
        return took / events["whole"].cpu_time_total

    answers = {"use": use, "counts": counts.get, "time": spent, "ops": ops, "products": products}
    torch.set_num_threads(1)
    for line in sys.stdin:
        what, *words = json.loads(line)
        print(json.dumps(answers[what](*words)), flush=True)


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
        print(json.dumps(words), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def commit(self) -> str:
        "Of the checkout."
        said = subprocess.run(["git", "-C", str(self.home), "rev-parse", "--short", "HEAD"],
                              capture_output=True, text=True)
        return said.stdout.strip()


def race(libraries: dict[str, Library], preset: str, part: str, repeats: int) -> dict | None:
    "CPU ms of a call: {who: {median, low, high}} over turns, {ratio: ...} of the pairs of turns."
    first = libraries["before"].ask("time", preset, part, 3)
    if first is None:
        return None
    calls = max(1, round(150 / max(first, 0.01) / UNITS.get(part, 1)))
    ms, ops, products = {}, {}, []
    for who, library in libraries.items():
        library.ask("time", preset, part, 3)
        ms[who], ops[who] = [], library.ask("ops", preset, part)
    for turn in range(repeats):
        for who in sorted(libraries, reverse=turn % 2):
            ms[who].append(libraries[who].ask("time", preset, part, calls))
        products.append(libraries["now"].ask("products", preset, part))
    ratios = [a / b for a, b in zip(ms["now"], ms["before"])]
    spread = lambda x: dict(median=statistics.median(x), low=min(x), high=max(x))
    return {who: spread(x) | {"ops": ops[who]} for who, x in ms.items()} | {
        "ratio": spread(ratios), "products": spread(products)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", nargs="?", type=Path, help="a checkout of the earlier library")
    parser.add_argument("--presets", nargs="+", default=list(PRESETS))
    parser.add_argument("--parts", nargs="+", default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--store", action="store_true", help=f"write {FILE.name}")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker()
    from simulus_nb.bench import run_seconds            # a worker imports the library it measures
    from simulus_nb.origin import processor

    libraries = {"before": Library(args.before), "now": Library(HOME)}
    found = {"commit": {who: one.commit() for who, one in libraries.items()},
             "machine": processor(), "repeats": args.repeats,
             "date": datetime.now(UTC).date().isoformat(), "parts": {}, "count": {}}
    for preset in args.presets:
        settings = libraries["before"].ask("use", preset, None)
        libraries["now"].ask("use", preset, settings)
        found["count"][preset] = libraries["now"].ask("counts", preset)
        for part in args.parts:
            one = race(libraries, preset, part, args.repeats)
            if one is None:
                continue
            found["parts"].setdefault(preset, {})[part] = one
            b, n, r = one["before"], one["now"], one["ratio"]
            print(f"{preset:9}{part:11}{b['median']:9.2f} ->{n['median']:9.2f} ms   ratio "
                  f"{r['median']:.2f} ({r['low']:.2f}-{r['high']:.2f})   operations "
                  f"{b['ops']:.0f} -> {n['ops']:.0f}, products {one['products']['median']:.0%}",
                  flush=True)
            if args.store:                                  # row by row: an interruption is no loss
                FILE.write_text(json.dumps(found, indent=1) + "\n")
        timed = found["parts"][preset]
        count = {part: n for part, n in found["count"][preset].items() if part in timed}
        seconds = {who: run_seconds(count, {part: timed[part][who]["median"] for part in count})
                   / 1e3 for who in libraries}
        print(f"{preset:9}run        {seconds['before']:9.0f} ->{seconds['now']:9.0f} s    ratio "
              f"{seconds['now'] / seconds['before']:.2f}", flush=True)


if __name__ == "__main__":
    main()
