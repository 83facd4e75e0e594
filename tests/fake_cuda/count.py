"""What one update of V, M and C costs at Atari's sizes on CUDA, of the core and of variants:
operations, memory traffic, peak memory and products, counted on a CUDA that computes nothing.

    python tests/fake_cuda/count.py                         # beside the stored counts
    python tests/fake_cuda/count.py --by place              # and by place in the library, or by op
    python tests/fake_cuda/count.py --parts c --precision bfloat16 --by both --top 40
    python tests/fake_cuda/count.py --variant atari100k     # the core and the additions of Simulus
    python tests/fake_cuda/count.py --store                 # write counts.json; also with variants

An operation is one call into PyTorch's kernels, views not counted. Its traffic is every tensor that
it reads and every tensor that it writes, once each (of an expanded axis one entry; of an indexed
table what comes out). Backward passes are listed under the line of their forward pass."""
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
from simulus_nb.loop import collect, m_batch, tokenise
from simulus_nb.run_setup import prepare

FILE = Path(__file__).with_name("counts.json")
UNITS = {"ops": "operations", "gbytes": "GB of traffic", "peak_gib": "GiB at the peak",
         "gflop": "GFLOP"}
SLACK = 0.02                            # a fall of more than this share must be stored
STORE = "python tests/fake_cuda/count.py --store"
PRECISIONS = ("bfloat16", "float32")    # in which the core is counted
VARIANTS = {                            # {name: (preset, other settings)}, counted in bfloat16
    "prioritised": ("core", {"train_m.prioritised": 0.3}),
    "curiosity": ("core", {"curiosity.heads": 4}), "atari100k": ("atari100k", {}),
    "attention": ("core", {"world_model.sequence": "attention"}),
    "fsq": ("core", {"tokenizer.image.quantiser": "fsq"}), "simulus-a": ("simulus-a", {})}
# read as much as they give
LITTLE = {"index", "embedding", "gather", "index_select", "take"}
# write as much as they are given
INTO = {"index_put_", "index_put", "index_copy_", "scatter_", "scatter_add_", "index_add_"}
# read nothing
FILLS = {"fill_", "zero_", "exponential_", "random_", "uniform_", "normal_", "bernoulli_"}


def size(x: torch.Tensor) -> int:
    "Bytes in memory, an expanded axis once."
    return prod(n if stride else 1 for n, stride in zip(x.shape, x.stride())) * x.element_size()


def traffic(func, args, kwargs, out) -> int:
    "Bytes read and written by one operation."
    name, (at, names) = fake.short(func), fake.written(func)
    changed = fake.tensors_in([args[i] for i in at if i < len(args)], list(map(kwargs.get, names)))
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
        back = name.endswith("backward")
        x, width = args[0], args[11 if back else 7]
        return 8 * x.shape[0] * x.shape[1] * width * (x.shape[2] + width) * (2 if back else 1)
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
        if rest := [r for _, r in rows[top:]]:
            rows[top:] = [(f"({len(rest)} more)", [sum(column) for column in zip(*rest)])]
        lines = [f"    {n:6d} {b / 1e9:8.3f} {f / 1e9:8.1f}  {name}" for name, (n, b, f) in rows]
        return "\n".join([f"    {'ops':>6} {'GB':>8} {'GFLOP':>8}  {by}", *lines])


def counted(device, name: str, work) -> tuple[Count, dict, object]:
    "Counts of one warm call, in which the host may not wait for the device."
    gc.collect()
    # when Python looks for circles must not decide what is alive at the peak
    gc.disable()
    count, device.peak = Count(), device.live
    device.watchers.append(count)
    with device.no_waiting(name):
        result = work()
    device.watchers.remove(count)
    gc.enable()
    ops, moved, flop = count.total
    numbers = {"ops": ops, "gbytes": round(moved / 1e9, 3),
               "peak_gib": round(device.peak / 2**30, 3), "gflop": round(flop / 1e9, 1)}
    return count, numbers, result


def step_of(run, name: str, batch) -> None:
    "One update, and what a run does with its losses."
    found = getattr(run.learner, f"{name}_step")(batch)
    if "windows" in found:
        run.priorities.record(batch, found["windows"])


def measure(
    device, what: str, parts: str, show, changes: dict,     # what: a precision, or a variant
) -> dict[str, dict]:
    "{part: counts} of one warm update, and of drawing its batch, with some settings changed."
    base, more = VARIANTS.get(what, ("core", {}))
    precision = "bfloat16" if what in VARIANTS else what
    config = preset(base).change(more | {
        "device": "cuda", "precision": precision, "tokenizer.image.perceptual": "random",
        "collect.steps": 48} | changes)
    run, found = prepare(config), {}
    v, c, g = config.train_v, config.train_c, run.generator
    collect(run)
    tokenise(run)
    draw = {"v": lambda: run.replay.frames(v.batch, g),
            "m": lambda: m_batch(run),
            "c": lambda: run.replay.contexts(c.batch, c.burn_in, g)}
    for name in parts:
        step_of(run, name, draw[name]())    # makes tables and the optimiser's moments
        drawn = f"batch of {name}"
        count, found[drawn], batch = counted(device, f"drawing a {drawn}", draw[name])
        show(drawn, count, found[drawn])
        count, found[name], _ = counted(
            device, f"an update of {name}", lambda: step_of(run, name, batch))
        show(name, count, found[name])
        device.forward.clear()
    return found


def compare(found: dict, stored: dict) -> list[str]:
    "What got worse, and what got better and is not stored yet; empty if the file is true."
    lines = []
    for name, parts in found.items():
        for part, numbers in parts.items():
            for key, now in numbers.items():
                before = stored[name][part][key]
                what = f"{part} of {name}: {now:g} {UNITS[key]}, {before:g} stored"
                if now > before * (1 + 1e-9):
                    lines.append(f"worse: {what}")
                elif now < before * (1 - SLACK):
                    lines.append(f"better: {what}; store it with {STORE}")
    return lines


def main() -> None:
    plain = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    p.add_argument("--parts", default="vmc", help="which updates: some of v, m, c")
    p.add_argument("--precision", choices=PRECISIONS, action="append", help="default: both")
    p.add_argument("--variant", choices=VARIANTS, action="append", help="default: the core")
    p.add_argument("--by", choices=("op", "place", "both"), help="print tables")
    p.add_argument("--top", type=int, default=25, help="rows of a table")
    p.add_argument("--store", action="store_true", help="write counts.json")
    p.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON", help="other settings")
    p.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    a = p.parse_args()
    stored = json.loads(FILE.read_text()) if FILE.exists() else {}
    known = stored.get("counts", {}) | stored.get("variants", {})
    found: dict[str, dict] = {}
    changes = {name: json.loads(value) for name, value in (word.split("=", 1) for word in a.set)}
    if changes and a.store:
        p.error("only the published settings are stored")

    def show(part, count, numbers):
        if a.json:
            return
        line = lambda cells: "  ".join(f"{cell:>9} {UNITS[k]}" for k, cell in cells.items())
        print(f"{part:<10} {name:<11}", line({k: f"{now:g}" for k, now in numbers.items()}))
        before = known.get(name, {}).get(part)
        if before and before != numbers:
            share = lambda now, old: now / old - 1 if old else 0.0
            change = {k: f"{share(now, before[k]):+.1%}" for k, now in numbers.items()}
            print(f"{'':<22}", line(change))
        for by in ("op", "place"):
            if a.by in (by, "both"):
                print(count.table(by, a.top))

    with fake.fake_cuda() as device:
        for name in a.variant or a.precision or PRECISIONS:
            found[name] = measure(device, name, a.parts, show, changes)
    version = torch.__version__.split("+")[0]
    broken = [f"{where}: {rule}" for rule, where in device.broken]
    if a.store:
        if sorted(a.parts) != sorted("vmc"):
            p.error("--store stores all parts: leave --parts out")
        kind = "variants" if a.variant else "counts"
        now = stored | {"torch": version, kind: stored.get(kind, {}) | found}
        FILE.write_text(json.dumps(now, indent=1) + "\n")
    if a.json:
        changed = compare(found, known)
        print(json.dumps({"torch": version, "counts": found, "broken": broken, "changed": changed}))
    else:
        print(*broken, sep="\n")


if __name__ == "__main__":
    main()
