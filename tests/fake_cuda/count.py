"""What one update of V, M and C costs at Atari's sizes on CUDA: operations, memory traffic, peak memory and products, counted on a CUDA that computes nothing.

    python tests/fake_cuda/count.py                         # beside the stored counts
    python tests/fake_cuda/count.py --by place              # and by place in the library (--by op: by kind of operation)
    python tests/fake_cuda/count.py --parts c --precision bfloat16 --by both --top 40
    python tests/fake_cuda/count.py --store                 # write counts.json

An operation is one call into PyTorch's kernels, views not counted. Its traffic is every tensor that it reads and every tensor that it writes, once each (of an
expanded axis one entry; of an indexed table what comes out). Backward passes are listed under the line of their forward pass."""
import argparse
import gc
import json
from collections import defaultdict
from math import prod
from pathlib import Path

import fake                             # before torch
import torch
from torch.utils.flop_counter import flop_registry

from simulus_nb.config import preset
from simulus_nb.trainer import Stages

FILE = Path(__file__).with_name("counts.json")
UNITS = {"ops": "operations", "gbytes": "GB of traffic", "peak_gib": "GiB at the peak", "gflop": "GFLOP"}
SLACK = 0.02                            # a fall of more than this share must be stored
PRECISIONS = ("bfloat16", "float32")
LITTLE = {"index", "embedding", "gather", "index_select", "take"}                               # read as much as they give
INTO = {"index_put_", "index_put", "index_copy_", "scatter_", "scatter_add_", "index_add_"}     # write as much as they are given
FILLS = {"fill_", "zero_", "exponential_", "random_", "uniform_", "normal_", "bernoulli_"}      # read nothing


def size(x: torch.Tensor) -> int:
    "Bytes in memory, an expanded axis once."
    return prod(n if stride else 1 for n, stride in zip(x.shape, x.stride())) * x.element_size()


def traffic(func, args, kwargs, out) -> int:
    "Bytes read and written by one operation."
    name, (at, names) = fake.short(func), fake.written(func)
    changed = fake.tensors_in([args[i] for i in at if i < len(args)], [kwargs.get(n) for n in names])
    made = [x for x in fake.tensors_in(out) if not any(x is y for y in changed)]
    read = fake.tensors_in(args, [v for k, v in kwargs.items() if k not in names])
    total = lambda xs: sum(map(size, xs))
    if name in INTO:
        return 2 * total(read[1:])
    if name in FILLS:
        return total(changed)
    if name in LITTLE:
        return 2 * total(made)
    if name == "copy_":
        read = read[1:]
    return total(read) + total(made) + total(changed)


def products(func, args, kwargs, out) -> float:
    "Floating-point operations of matrix products, convolutions and LSTMs."
    name = fake.short(func)
    if name.startswith("_cudnn_rnn"):
        x, width = args[0], args[11 if name.endswith("backward") else 7]
        return 8 * x.shape[0] * x.shape[1] * width * (x.shape[2] + width) * (2 if name.endswith("backward") else 1)
    rule = flop_registry.get(func._overloadpacket)
    return rule(*args, **kwargs, out_val=out) if rule else 0


class Count:
    "A watcher of a `Device`: totals, and the same by kind of operation and by place."

    def __init__(self):
        self.by = {"op": defaultdict(lambda: [0, 0, 0]), "place": defaultdict(lambda: [0, 0, 0])}
        self.total = [0, 0, 0]          # operations, bytes, floating-point operations

    def __call__(self, device, func, args, kwargs, out) -> None:
        if not fake.launches(func) or not (fake.tensors_in(out) or fake.written(func)[1]):
            return
        cost = 1, traffic(func, args, kwargs, out), products(func, args, kwargs, out)
        for row in (self.total, self.by["op"][fake.short(func)], self.by["place"][device.where()]):
            for i, x in enumerate(cost):
                row[i] += x

    def table(self, by: str, top: int) -> str:
        "The rows with the most traffic."
        rows = sorted(self.by[by].items(), key=lambda r: -r[1][1])
        lines = [f"    {'ops':>6} {'GB':>8} {'GFLOP':>8}  {by}"]
        lines += [f"    {n:6d} {b / 1e9:8.3f} {f / 1e9:8.1f}  {name}" for name, (n, b, f) in rows[:top]]
        if rest := [r for _, r in rows[top:]]:
            lines.append(f"    {sum(r[0] for r in rest):6d} {sum(r[1] for r in rest) / 1e9:8.3f} {sum(r[2] for r in rest) / 1e9:8.1f}  ({len(rest)} more)")
        return "\n".join(lines)


def counted(device, name: str, work) -> tuple[Count, dict, object]:
    "Counts of one warm call, in which the host may not wait for the device."
    gc.collect()
    gc.disable()                        # when Python looks for circles must not decide what is alive at the peak
    count, device.peak = Count(), device.live
    device.watchers.append(count)
    with device.no_waiting(name):
        result = work()
    device.watchers.remove(count)
    gc.enable()
    ops, moved, flop = count.total
    return count, {"ops": ops, "gbytes": round(moved / 1e9, 3), "peak_gib": round(device.peak / 2**30, 3), "gflop": round(flop / 1e9, 1)}, result


def measure(device, precision: str, parts: str = "vmc", show=lambda name, count, numbers: None) -> dict[str, dict]:
    "{part: counts} of one warm update, of drawing its batch, of a step of play and of making 512 observations tokens."
    config = preset("atari100k").change({"device": "cuda", "precision": precision, "tokenizer.image.perceptual": "random", "collect.steps": 48})
    run, found = Stages(config), {}
    v, m, c, g = config.train_v, config.train_m, config.train_c, run.generator
    run.collect()
    run.tokenise()
    draw = {"v": lambda: run.replay.frames(v.batch, g), "m": lambda: run.replay.segments(m.batch, m.segment, m.context, g),
            "c": lambda: run.replay.contexts(c.batch, c.burn_in, g)}
    for name in parts:
        step = getattr(run.learner, f"{name}_step")
        step(draw[name]())                  # makes tables and the optimiser's moments
        count, found[f"batch of {name}"], batch = counted(device, f"drawing a batch for {name}", draw[name])
        show(f"batch of {name}", count, found[f"batch of {name}"])
        count, found[name], _ = counted(device, f"an update of {name}", lambda: step(batch))
        show(name, count, found[name])
        device.forward.clear()
    return found


def compare(found: dict, stored: dict) -> list[str]:
    "What got worse, and what got better and is not stored yet; empty if the file is true."
    lines = []
    for precision, parts in found.items():
        for part, numbers in parts.items():
            for key, now in numbers.items():
                before = stored[precision][part][key]
                what = f"{part} in {precision}: {now:g} {UNITS[key]}, {before:g} stored"
                if now > before * (1 + 1e-9):
                    lines.append(f"worse: {what}")
                elif now < before * (1 - SLACK):
                    lines.append(f"better: {what}; store it with python tests/fake_cuda/count.py --store")
    return lines


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--parts", default="vmc", help="which updates: some of v, m, c")
    p.add_argument("--precision", choices=PRECISIONS, action="append", help="one or both (default: both)")
    p.add_argument("--by", choices=("op", "place", "both"), help="print tables")
    p.add_argument("--top", type=int, default=25, help="rows of a table")
    p.add_argument("--store", action="store_true", help="write counts.json")
    p.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    a = p.parse_args()
    stored = json.loads(FILE.read_text()) if FILE.exists() else {}
    found: dict[str, dict] = {}

    def show(part, count, numbers):
        if a.json:
            return
        print(f"{part:<10} {precision:<9}", "  ".join(f"{now:>9g} {UNITS[k]}" for k, now in numbers.items()))
        before = stored.get("counts", {}).get(precision, {}).get(part)
        if before and before != numbers:
            print(f"{'':<20}", "  ".join(f"{now / before[k] - 1 if before[k] else 0:>+9.1%} {UNITS[k]}" for k, now in numbers.items()))
        for by in ("op", "place"):
            if a.by in (by, "both"):
                print(count.table(by, a.top))

    with fake.fake_cuda() as device:
        for precision in a.precision or PRECISIONS:
            found[precision] = measure(device, precision, a.parts, show)
    version = torch.__version__.split("+")[0]
    broken = [f"{where}: {rule}" for rule, where in device.broken]
    if a.store:
        if sorted(a.parts) != sorted("vmc") or len(found) != len(PRECISIONS):
            p.error("--store stores everything: leave --parts and --precision out")
        FILE.write_text(json.dumps({"torch": version, "counts": found}, indent=1) + "\n")
    if a.json:
        print(json.dumps({"torch": version, "counts": found, "broken": broken, "changed": compare(found, stored["counts"])}))
    else:
        print(*broken, sep="\n")


if __name__ == "__main__":
    main()
