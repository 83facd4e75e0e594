"""The first minutes on a GPU, in order of value, each part into a file that stays.

    python tools/gpu_tables.py --minutes 9 [--out DIR] [--only tests bench/float32] [--commit HASH]
    python tools/gpu_tables.py --small --device cpu --out DIR       # the same path in toy sizes

1. tests: `pytest -m gpu`; those that compile come last of all;
2. three-epochs: the published Atari-100K settings on Breakout with all stages from the first
   epoch on, eager, then as graphs, and whether both said the same;
3. bench: `simulus_nb.bench` at these settings, one precision or switch after the other;
4. profile: one update of V, M and C, kernel by kernel.

A part is a process of its own with a time limit: its share of the minutes, and what the parts
before it left over. A part that fails, hangs or is killed costs only itself, and its last words are
recorded. Ctrl-C or SIGTERM end the part in progress and everything after it. Files:
`OUT/<what>-<date>.json`; `entries` holds one object for each part.
"""

import argparse
import faulthandler
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a bare machine has the library's folder, not the library installed

from simulus_nb.bench import Bench, bench, compare_table, variants
from simulus_nb.config import Config, preset
from simulus_nb.files import write_atomic
from simulus_nb.agent import pick_device
from simulus_nb.run_folder import circumstances
from simulus_nb.trainer import Trainer

LEAST = 5.0  # seconds under which no part is begun
SPARE = 10.0  # seconds of the minutes that no part gets: starting, ending, writing
GRACE = 3.0  # seconds between the wish that a part ends and its end
SMALL = {
    "train_v.batch": 2,
    "train_m.batch": 4,
    "train_c.batch": 4,
    "train_c.burn_in": 4,
    "train_c.horizon": 4,
    "world_model.retnet.layers": 2,
    "world_model.retnet.width": 32,
    "controller.width": 32,
    "tokenizer.image.channels": 8,
    "tokenizer.image.code_dim": 32,
    "collect.capacity": 2_000,
    "collect.steps": 20,
}
UPDATES = {"train_v.steps": 20, "train_m.steps": 20, "train_c.steps": 20}
FEWER = {"train_v.steps": 2, "train_m.steps": 2, "train_c.steps": 2}

Keep = Callable[[dict], None]  # what a part calls with all it has found so far


# ------------------------------------------------------------ files


def put(path: Path, name: str, **values: Any) -> None:
    "Set fields of one entry of a file; the file is whole at every moment."
    found = (
        json.loads(path.read_text(encoding="utf8"))
        if path.exists()
        else {"what": what_of(path), "entries": {}}
    )
    found["entries"].setdefault(name, {}).update(values)
    write_atomic(path, json.dumps(found, indent=1) + "\n")


def what_of(path: Path) -> str:
    "The kind of measurement: `three-epochs-2026-01-31-2.json` holds three-epochs."
    return path.stem.split("-20")[0]


def fresh(folder: Path, what: str, day: date) -> Path:
    "A file that is not there yet: what an earlier run has found is never overwritten."
    names = (f"{what}-{day}{suffix}.json" for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
    return next(folder / name for name in names if not (folder / name).exists())


def entry(path: Path, name: str) -> dict:
    "What is known of a part; {} if it has not begun."
    return (
        json.loads(path.read_text(encoding="utf8"))["entries"].get(name, {})
        if path.exists()
        else {}
    )


# ------------------------------------------------------------ the parts


def published(device: str, small: bool, **changes: Any) -> Config:
    "Atari-100K as published, but for the perceptual loss, whose weights would have to be fetched."
    base = {"device": device, "tokenizer.image.perceptual": "random"} | (SMALL if small else {})
    return preset("atari100k").change({**base, **changes})


class Watcher:
    "A plugin of pytest that keeps what is known after every test."

    def __init__(self, keep: Keep):
        self.keep, self.outcomes, self.running = keep, {}, []

    def found(self) -> dict:
        "How often each outcome, then every test."
        kinds = [one["outcome"] for one in self.outcomes.values()]
        return dict(
            counts={kind: kinds.count(kind) for kind in sorted(set(kinds))},
            running=self.running,
            tests=self.outcomes,
        )

    def note(self, name: str, outcome: str, seconds: float, said: str) -> None:
        self.outcomes[name] = dict(
            outcome=outcome, seconds=round(seconds, 2), said=last_words(said, 25)
        )
        self.keep(self.found())

    def pytest_runtest_logstart(self, nodeid: str, location: tuple) -> None:
        self.running.append(nodeid)
        self.keep(self.found())

    def pytest_runtest_logfinish(self, nodeid: str, location: tuple) -> None:
        if nodeid in self.running:
            self.running.remove(nodeid)

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" or report.outcome != "passed":
            why = (
                report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr or ""
            )
            self.note(report.nodeid, report.outcome, report.duration, str(why))

    def pytest_collectreport(self, report) -> None:
        if report.failed:
            self.note(report.nodeid, "not collected", 0.0, str(report.longrepr))


def gpu_tests(device: str, small: bool, keep: Keep, which: str) -> dict:
    "The tests marked `gpu` whose names fit the expression `which`."
    import pytest

    files = [
        p
        for p in sorted((ROOT / "tests").glob("test_*.py"))
        if "mark.gpu" in p.read_text(encoding="utf8")
    ]
    watcher = Watcher(keep)
    workers = ["-n", "4"] if device == "cuda" else []
    options = [
        "-q",
        "-m",
        "gpu",
        "-k",
        which,
        "-p",
        "no:cacheprovider",
        "--continue-on-collection-errors",
        *workers,
    ]
    code = pytest.main([*options, f"--rootdir={ROOT}", *map(str, files)], plugins=[watcher])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        raise RuntimeError(f"pytest ended with {code!r}: {watcher.found()['counts']}")
    return watcher.found()


def three_epochs(device: str, small: bool, keep: Keep, graphs: bool) -> dict:
    "All stages three times over, then a checkpoint; without CUDA `graphs` changes nothing."
    config = published(
        device,
        small,
        **{
            "epochs": 3,
            "learn_on": 0,
            "train_v.start": 0,
            "train_m.start": 0,
            "train_c.start": 0,
            "evaluation.every": 0,
            "graphs": graphs and device == "cuda",
            **(FEWER if small else UPDATES),
        },
    )
    found = dict(graphs=config.graphs, precision=config.precision, stage="", history=[])
    with tempfile.TemporaryDirectory() as folder:
        run = Trainer(config, Path(folder) / "run", progress=False)
        while run.epoch < config.epochs:
            found["history"].append(
                run.run_epoch(lambda stage: keep(found | {"stage": f"{run.epoch} {stage}"}))
            )
        keep(found | {"stage": "checkpoint"})
        run.save(run.folder.checkpoint)
        run.state.worlds.close()
    return found | {"stage": "over"}


def bench_variant(device: str, small: bool, keep: Keep, changes: dict) -> dict:
    "What `simulus-nb bench` measures, with one set of switches."
    return bench(published(device, small, **changes), 1 if small else 10)


def profile(device: str, small: bool, keep: Keep) -> dict:
    "Where the time of one update of V, M and C goes: the heaviest kernels, launches, share."
    cuda = device == "cuda"
    kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * cuda
    stand, found = Bench(published(device, small)), {}

    def once(work: Callable) -> float:
        if cuda:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    for name in "VMC":
        work = stand.parts()[name][0]
        seconds = [once(work) for _ in range(4)][-1]
        with torch.profiler.profile(activities=kinds) as seen:
            once(work)
        found[name] = heaviest(seen.key_averages(), cuda, seconds)
        keep(found)
    stand.state.worlds.close()
    return found


def heaviest(events, cuda: bool, seconds: float) -> dict:
    "The 25 heaviest kernels (CPU: operations) of an update; unobserved it takes `seconds`."
    own = [e for e in events if not cuda or e.device_type == torch.autograd.DeviceType.CUDA]
    spent = {e.key: e.self_device_time_total if cuda else e.self_cpu_time_total for e in own}
    busy = sum(spent.values()) / 1e6
    top = sorted(own, key=lambda e: -spent[e.key])[:25]
    launches = (
        sum(e.count for e in events if "LaunchKernel" in e.key)
        if cuda
        else sum(e.count for e in own)
    )
    return dict(
        seconds=seconds,
        busy_seconds=busy,
        busy_share=busy / seconds,
        launches=launches,
        kernels=[
            dict(
                name=e.key[:120],
                microseconds=round(spent[e.key], 1),
                calls=e.count,
                share=round(spent[e.key] / 1e6 / busy, 4),
            )
            for e in top
        ],
    )


# ------------------------------------------------------------ comparing


def is_close(a: Any, b: Any, rtol: float, atol: float) -> bool:
    "Whether two metrics are equal but for rounding."
    if not (isinstance(a, (int, float)) and isinstance(b, (int, float))):
        return a == b
    return a == b or a != a and b != b or abs(a - b) <= atol + rtol * max(abs(a), abs(b))


def compare_histories(a: list[dict], b: list[dict], rtol: float = 0.02, atol: float = 0.02) -> dict:
    "Whether two runs said the same in every epoch, and which metric differed first."
    first, largest = None, {}
    for epoch, (x, y) in enumerate(zip(a, b)):
        for name in dict.fromkeys([*x, *y]):
            if name.startswith("seconds"):
                continue
            u, v = x.get(name), y.get(name)
            if first is None and not is_close(u, v, rtol, atol):
                first = dict(epoch=epoch, metric=name, values=[u, v])
            if isinstance(u, (int, float)) and isinstance(v, (int, float)):
                largest[name] = max(largest.get(name, 0.0), abs(u - v) / max(abs(u), abs(v), atol))
    if first is None and len(a) != len(b):
        first = dict(epoch=min(len(a), len(b)), metric="number of epochs", values=[len(a), len(b)])
    return dict(
        equal=first is None and bool(a),
        first_difference=first,
        epochs=[len(a), len(b)],
        rtol=rtol,
        atol=atol,
        largest_relative_differences=dict(sorted(largest.items(), key=lambda item: -item[1])[:10]),
    )


# ------------------------------------------------------------ who comes when, and for how long


@dataclass(frozen=True)
class Part:
    "One entry of one file."

    what: str  # names the file
    name: str  # names the entry
    seconds: float  # its share of nine minutes
    work: Callable[[str, bool, Keep], dict]  # (device, small, keep) -> everything it has found

    def __str__(self) -> str:
        return f"{self.what}/{self.name}"


def parts(device: str) -> list[Part]:
    "In order of value; what compiles comes late, since it takes minutes."
    slow = "compil or variant"
    among = variants(torch.device(device))
    later = [name for name in among if "compile" in name]
    sooner = sorted(
        (name for name in among if name not in later),
        key=lambda name: ("graphs" in name, "bfloat16" in name),
    )
    bench_part = lambda name, seconds: Part(
        "bench", name, seconds, partial(bench_variant, changes=among[name])
    )
    return [
        Part("tests", "quick", 95, partial(gpu_tests, which=f"not ({slow})")),
        Part("three-epochs", "eager", 75, partial(three_epochs, graphs=False)),
        Part("three-epochs", "graphs", 60, partial(three_epochs, graphs=True)),
        *(bench_part(name, 35) for name in sooner),
        Part("profile", "updates", 35, profile),
        *(bench_part(name, 70 if "graphs" not in name else 15) for name in later),
        Part("tests", "compiled", 40, partial(gpu_tests, which=slow)),
    ]


def allowance(shares: list[float], i: int, elapsed: float, total: float) -> float:
    "Seconds that part `i` may take: its share of `total`, and what those before it left."
    return max(0.0, total * sum(shares[: i + 1]) / sum(shares) - elapsed)


def one_after_the_other(
    todo: list[Part],
    total: float,  # seconds for all of them
    do: Callable[[Part, float], None],  # runs a part for so many seconds at most
    leave_out: Callable[[Part], None],  # notes that there was no time for it
    clock: Callable[[], float] = time.monotonic,
) -> None:
    "Every part within its allowance."
    begin, shares = clock(), [part.seconds for part in todo]
    for i, part in enumerate(todo):
        seconds = allowance(shares, i, clock() - begin, total)
        if seconds < LEAST:
            leave_out(part)
        else:
            do(part, seconds)


# ------------------------------------------------------------ one part in this process


def perform(part: Part, path: Path, device: str, small: bool, commit: str | None = None) -> bool:
    "Do a part's work here and now, keeping all it says in its entry. Whether it succeeded."
    facts = (
        circumstances(
            published(device, small), pick_device(device), command_of(part, device, small)
        )
        | software()
    )
    facts["git_commit"] = commit or facts["git_commit"]
    put(path, part.name, small=small, begun=time.strftime("%Y-%m-%d %H:%M:%S"), circumstances=facts)
    try:
        result = part.work(device, small, lambda found: put(path, part.name, result=found))
        put(path, part.name, ended="done", result=result)
    except Exception:  # with the whole chain: what ends a recording hides why
        put(path, part.name, ended="failed", said=last_words(traceback.format_exc()))
    if torch.cuda.is_initialized():
        peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        put(path, part.name, peak_bytes=peaks[0], peak_reserved_bytes=peaks[1])
    return entry(path, part.name)["ended"] == "done"


def software() -> dict:
    "Versions that `circumstances` does not know."
    cudnn = torch.backends.cudnn.version() if torch.version.cuda else None
    return dict(
        cuda=torch.version.cuda, cudnn=cudnn, processor=platform.processor(), cores=os.cpu_count()
    )


def command_of(part: Part, device: str, small: bool) -> str:
    "What anybody would type for this part alone."
    return shlex.join(
        [
            "python",
            "tools/gpu_tables.py",
            "--only",
            str(part),
            "--device",
            device,
            *["--small"] * small,
        ]
    )


def last_words(text: str, lines: int = 30) -> str:
    "The end of what was said, without the places of this machine."
    for place in (ROOT, sys.prefix):
        text = text.replace(f"{place}{os.sep}", "")
    return "\n".join(line[:300] for line in text.splitlines()[-lines:])


# ------------------------------------------------------------ one part in a process of its own


class Stop(BaseException):
    "Somebody wants all of this to end."


@contextmanager
def stoppable():
    "Inside, SIGTERM and Ctrl-C are `Stop`."
    numbers = (signal.SIGINT, signal.SIGTERM)

    def stop(number, frame):
        for n in numbers:
            signal.signal(n, signal.SIG_IGN)  # said once is enough
        raise Stop

    old = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def end(process: subprocess.Popen) -> None:
    "Of a process and those it has started: first a wish, then without asking."
    for number in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        try:
            if os.name == "posix":
                os.killpg(process.pid, number)
            else:
                process.terminate()
            process.wait(GRACE)
        except (ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
            pass


def supervise(command: list[str], path: Path, name: str, seconds: float) -> None:
    "Run a part's process for so long at most, and complete its entry."
    put(path, name, ended="running", allowed_seconds=round(seconds, 1))
    begin, group = time.monotonic(), dict(preexec_fn=os.setpgrp) if os.name == "posix" else {}
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(places), "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryFile() as log:
        process, how = (
            subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log, **group), None
        )
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            how = "ran out of time"
        except Stop:
            how = "stopped"
            raise
        finally:
            end(process)  # it, or what it has left behind
            log.seek(0)
            said = last_words(log.read().decode(errors="replace"))
            before = entry(path, name)
            if before["ended"] == "running":  # it could not say so itself
                how = how or f"died: exit code {process.returncode}"
                put(path, name, ended=how, said=said)
            put(path, name, seconds=round(time.monotonic() - begin, 1))


# ------------------------------------------------------------ all of it


def brief(part: Part, found: dict) -> str:
    "One line, or a few, for somebody who watches."
    result, lines = found.get("result", {}), [
        f"{part}: {found.get('ended')} after {found.get('seconds', 0)} s"
    ]
    if part.what == "tests" and "counts" in result:
        bad = [
            f"  {kind}: {name}"
            for name, one in result["tests"].items()
            if (kind := one["outcome"]) not in ("passed", "skipped")
        ]
        lines += [
            f"  {result['counts']}",
            *bad,
            *(f"  in progress: {name}" for name in result["running"]),
        ]
    if part.what == "three-epochs" and result.get("history"):
        last = result["history"][-1]
        lines.append(
            "  last epoch: "
            + ", ".join(f"{k} {last[k]:.4g}" for k in last if k.endswith(("loss", "critic")))
        )
    if part.what == "bench" and "run_seconds" in result:
        lines += [
            "  " + line for line in compare_table({"variants": {part.name: result}}).splitlines()
        ]
    if part.what == "profile":
        lines += [
            f"  {k}: {1e3 * one['seconds']:.1f} ms, busy {one['busy_share']:.0%}, "
            f"{one['launches']} launches"
            for k, one in result.items()
        ]
    if found.get("ended") not in ("done", "left out"):
        lines += ["  | " + line for line in found.get("said", "").splitlines()[-8:]]
    return "\n".join(lines)


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    "What the command line says."
    a = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    a.add_argument(
        "--out", type=Path, default=ROOT / "nbs" / "results" / "gpu", help="folder of the files"
    )
    a.add_argument("--minutes", type=float, default=9, help="for all parts together")
    a.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    a.add_argument("--small", action="store_true", help="toy sizes")
    a.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="WHAT",
        help="parts or files: tests, bench/float32, ...",
    )
    a.add_argument("--commit", help="of the code, where git does not know")
    a.add_argument("--part", help=argparse.SUPPRESS)  # for the process of one part
    a.add_argument("--into", type=Path, help=argparse.SUPPRESS)  # and its file
    a.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    return a.parse_args(arguments)


def child(a: argparse.Namespace) -> int:
    "The process of one part."
    words = os.fdopen(
        os.dup(sys.stderr.fileno()), "w"
    )  # pytest puts its own file in the place of stderr
    faulthandler.enable(words)
    faulthandler.dump_traceback_later(
        max(1.0, a.seconds - 2), file=words
    )  # a part that hangs says where
    if hasattr(signal, "alarm"):
        signal.alarm(int(a.seconds + 3 * GRACE))  # should nobody be left to end it
    part = next(p for p in parts(a.device) if str(p) == a.part)
    return 0 if perform(part, a.into, a.device, a.small, a.commit) else 1


def main(arguments: list[str] | None = None) -> int:
    "0 if every part is done, 1 if something failed or was left out, 2 if it was stopped."
    a = options(arguments)
    if a.part:
        return child(a)
    begin = time.monotonic()
    todo = [p for p in parts(a.device) if not a.only or p.what in a.only or str(p) in a.only]
    if not todo:
        print(
            f"no such part: {' '.join(a.only)}; there are {', '.join(map(str, parts(a.device)))}",
            file=sys.stderr,
        )
        return 1
    a.out.mkdir(parents=True, exist_ok=True)
    paths = {p.what: fresh(a.out.resolve(), p.what, date.today()) for p in todo}
    shared = [
        "--device",
        a.device,
        *["--small"] * a.small,
        *(["--commit", a.commit] if a.commit else []),
    ]
    here = [
        sys.executable,
        str(Path(__file__).relative_to(ROOT) if Path(__file__).is_relative_to(ROOT) else __file__),
    ]

    def say(part: Part) -> None:
        print(
            f"{time.monotonic() - begin:6.0f} s  {brief(part, entry(paths[part.what], part.name))}",
            flush=True,
        )

    def do(part: Part, seconds: float) -> None:
        own = ["--part", str(part), "--into", str(paths[part.what]), "--seconds", f"{seconds:.1f}"]
        supervise([*here, *own, *shared], paths[part.what], part.name, seconds)
        say(part)

    def leave_out(part: Part) -> None:
        put(paths[part.what], part.name, ended="left out", said="no time was left", seconds=0)
        say(part)

    stopped = False
    with stoppable():
        try:
            one_after_the_other(todo, 60 * a.minutes - SPARE, do, leave_out)
        except Stop:
            stopped = True
    if "three-epochs" in paths:
        compare_epochs(paths["three-epochs"])
    print(
        "\n".join(
            f"{time.monotonic() - begin:6.0f} s  {path}" for path in paths.values() if path.exists()
        ),
        flush=True,
    )
    ended = [entry(paths[p.what], p.name).get("ended") for p in todo]
    return 2 if stopped else 0 if set(ended) == {"done"} else 1


def compare_epochs(path: Path) -> None:
    "Add whether eager steps and graphs said the same, as far as both have come."
    histories = [
        entry(path, name).get("result", {}).get("history", []) for name in ("eager", "graphs")
    ]
    if all(histories):
        found = compare_histories(*histories)
        put(path, "comparison", ended="done", result=found)
        how = "agree" if found["equal"] else f"differ first in {found['first_difference']}"
        print(f"three-epochs: eager and graphs {how}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
