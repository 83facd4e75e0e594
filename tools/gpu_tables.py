"""The measurements that need a GPU, one after the other, each into a small file of its own.

    python tools/gpu_tables.py --out nbs/results/gpu [--minutes 25] [--device cuda] [--small]

1. `pytest -m gpu`, and three epochs of the published Atari-100K settings;
2. `simulus-nb bench --compare` at these settings: every precision, compiled, as graphs; then the hours of a whole run;
3. a profile of one update of V, M and C: where the time goes, kernel by kernel.

What does not fit into the minutes is left out, and the file says so; a part that fails is recorded with its last words. `--small` walks the same path in toy sizes, on a CPU too.
"""
import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

from simulus_nb.bench import Bench
from simulus_nb.config import preset
from simulus_nb.trainer import circumstances, pick_device

SMALL = ["--train-v.batch", "4", "--train-m.batch", "2", "--train-c.batch", "4", "--world-model.retnet.layers", "2", "--controller.width", "32", "--tokenizer.image.channels", "8",
         "--collect.capacity", "2000", "--collect.steps", "60", "--train-v.steps", "2", "--train-m.steps", "2", "--train-c.steps", "2", "--evaluation.episodes", "1"]


def words(done: subprocess.CompletedProcess) -> str:
    return "\n".join((done.stdout + done.stderr).splitlines()[-25:])


def run(command: list[str], seconds: float) -> dict:
    "A command with a time limit: how it ended, how long it took, its last words."
    begin = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(1, seconds))
        ended, said = done.returncode, words(done)
    except subprocess.TimeoutExpired:
        ended, said = "ran out of time", ""
    return dict(command=" ".join(["simulus-nb", *command[3:]] if command[1] == "-c" else ["python", *command[1:]]), ended=ended, seconds=round(time.perf_counter() - begin, 1), said=said)


def profile(device: str, small: bool) -> dict:
    "Seconds on the device of the heaviest operations of one update each."
    config = preset("atari100k").change({"device": device, "tokenizer.image.perceptual": "random", "collect.capacity": 2_000})
    if small: config = config.change({"train_v.batch": 4, "train_m.batch": 2, "train_c.batch": 4, "world_model.retnet.layers": 2, "controller.width": 32, "tokenizer.image.channels": 8})
    stand, found = Bench(config), {}
    kinds = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * (device == "cuda")
    for name in "VMC":
        work = stand.parts()[name][0]
        for _ in range(3): work()
        with torch.profiler.profile(activities=kinds) as p:
            work()
            if device == "cuda": torch.cuda.synchronize()
        spent = lambda e: e.self_device_time_total if device == "cuda" else e.self_cpu_time_total
        events = sorted(p.key_averages(), key=spent, reverse=True)
        found[name] = dict(calls=sum(e.count for e in events), microseconds={e.key[:80]: [round(spent(e)), e.count] for e in events[:25]})
    stand.collector.close()
    return found


def main() -> None:
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--out", type=Path, required=True)
    a.add_argument("--minutes", type=float, default=25)
    a.add_argument("--device", default="cuda")
    a.add_argument("--small", action="store_true")
    a = a.parse_args()
    until, small, cli = time.monotonic() + 60 * a.minutes, SMALL * a.small, [sys.executable, "-c", "import sys; from simulus_nb.cli import main; sys.exit(main())"]
    a.out.mkdir(parents=True, exist_ok=True)
    facts = circumstances(preset("atari100k").change({"tokenizer.image.perceptual": "random"}), pick_device(a.device), "python tools/gpu_tables.py")

    def keep(what: str, found: dict) -> None:
        path = a.out / f"{what}-{date.today()}.json"
        path.write_text(json.dumps(dict(what=what, circumstances=facts, small=a.small, processor=platform.processor(), **found), indent=1) + "\n", encoding="utf8")
        print(f"{time.monotonic() - until + 60 * a.minutes:6.0f} s  {path}", flush=True)

    left = lambda: until - time.monotonic()
    common = ["--preset", "atari100k", "--device", a.device, "--tokenizer.image.perceptual", "random", *small]
    with tempfile.TemporaryDirectory() as folder:
        keep("tests", run([sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-x" if a.small else "-q"], left()))
        table = Path(folder) / "bench.json"
        done = run([*cli, "bench", *common, "--compare", "--repeats", "1" if a.small else "10", "--json", str(table)], left())
        keep("bench", done | (json.loads(table.read_text()) if table.exists() and table.stat().st_size else {}))
        try:
            keep("profile", profile(a.device, a.small) if left() > 30 else {"ended": "ran out of time"})
        except Exception as e:
            keep("profile", {"ended": f"{type(e).__name__}: {e}"})
        train = run([*cli, "train", *common, "--env", "ALE/Breakout-v5", "--epochs", "3", "--learn-on", "0", "--train-v.start", "0", "--train-m.start", "1", "--train-c.start", "2", "--save-every", "3",
                     "--out", f"{folder}/run"], left())
        metrics = Path(folder) / "run" / "metrics.jsonl"
        keep("three-epochs", train | {"history": [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []})


if __name__ == "__main__":
    main()
