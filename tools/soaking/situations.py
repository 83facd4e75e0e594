"A random world, a folder, the commands tried there, and what must hold after each of them."
import json
import random
import shlex
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from simulus_nb.checkpoint import load_checkpoint

from .commands import Outcome, Started, Trouble, world_id

TINY = shlex.split("""--preset small --epochs 3 --save-every 1 --threads 1 --device cpu
  --collect.steps 12 --collect.num-envs 2 --collect.capacity 120 --tokenizer.image.image-size 16
  --tokenizer.image.stages 2 --tokenizer.image.code-dim 8 --tokenizer.image.vocab 16
  --world-model.retnet.width 16 --world-model.retnet.layers 1 --controller.width 16
  --controller.channels 4 4 --controller.embedding 8 --train-v.batch 4 --train-v.steps 1
  --train-v.start 0 --train-m.batch 4 --train-m.steps 2 --train-m.start 0 --train-m.segment 4
  --train-c.batch 4 --train-c.steps 1 --train-c.start 1 --train-c.horizon 3 --train-c.burn-in 2
  --train-c.scale-window 2 --evaluation.episodes 2 --evaluation.num-envs 2 --evaluation.every 0
  --evaluation.interim 1""")
VALID = {   # settings that only change what a tiny run does
    "--epochs": "2 3 4", "--save-every": "1 2 3", "--seed": "0 1 2147483647", "--learn-on": "0 1",
    "--collect.steps": "5 12 20", "--collect.num-envs": "1 2 3", "--collect.epsilon": "0 1",
    "--train-v.steps": "0 2", "--train-c.critic-first": "0 1", "--train-c.start": "0 1 9",
    "--evaluation.every": "0 1 2", "--evaluation.num-envs": "1 2 5", "--precision": "auto float32",
    "--evaluation.temperature": "0 0.5 3", "--world-model.retnet.dropout": "0 0.2",
    "--tokenizer.vector-levels": "5 51", "--tokenizer.action-levels": "3 21",
    "--env-options": '{} {"max_episode_steps":3} {"action_repeat":2}'}


def strict(text: str):
    "JSON by the letter: no NaN, no Infinity."
    def refuse(word):
        raise ValueError(f"{word} is no JSON")
    return json.loads(text, parse_constant=refuse)


def epochs_of(folder: Path) -> list[dict]:
    "The whole lines of metrics.jsonl; a kill may leave half a line."
    path = folder / "metrics.jsonl"
    lines = path.read_text("utf8").splitlines(keepends=True) if path.exists() else []
    return [strict(line) for line in lines if line.endswith("\n")]


def saved(folder: Path):
    "The checkpoint of a run, its damage an error; None if there is none."
    if not list(folder.glob("checkpoint/save-*")):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_checkpoint(folder / "checkpoint")


def contents(folder: Path) -> dict:
    "All that a run ends with, clocks and commands left out."
    timeless = lambda d: {k: v for k, v in d.items() if not k.startswith(("seconds", "command"))}
    found = saved(folder)
    tensors = {f"{g}/{k}": t for g, members in found.tensors.items() if g != "metrics"
               for k, t in members.items()}
    names = ("config.json", "evaluation.json", "evaluation-best.json")
    files = {n: timeless(strict((folder / n).read_text())) for n in names if (folder / n).exists()}
    return {**tensors, **files, "meta": timeless(found.meta),
            "metrics": [timeless(r) for r in epochs_of(folder)]}


def same(a, b) -> bool:
    "Equal, bit by bit."
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return a == b


def tree(folder: Path) -> dict[str, bytes]:
    "Every file below a folder; links are not followed."
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*"))
            if p.is_file() and not p.is_symlink()}


class Situation:
    "A random world, a folder, and the commands that are tried there."

    def __init__(
        self,
        kind: str,
        turn: int,                      # how many of its kind came before
        rng: random.Random,             # all chance comes from here
        root: Path,                     # an empty folder of its own
        limit: float,                   # seconds after which a command hangs
    ):
        self.kind, self.turn, self.rng, self.root, self.limit = kind, turn, rng, root, limit
        self.world = dict(seed=self.rng.randrange(10**6))
        self.folder, self.outside = root / "run", root / "outside"
        self.outside.mkdir()
        (self.outside / "precious.txt").write_text("not yours")
        self.before = tree(self.outside)
        self.options: list[str] = []
        self.counts, self.violations, self.log, self.truth = Counter(), [], [], None

    # -------- commands

    def train(self, *more: str) -> list[str]:
        "The words of this situation's training."
        env = ["--env", world_id(self.world), "--out", str(self.folder)]
        return ["train", *TINY, *env, *self.options, *more]

    def start(self, argv: list[str], trouble: Trouble = Trouble()) -> Started:
        "Begin a command."
        self.log.append(argv)
        return Started(argv, self.world, trouble, self.root / "logs" / str(len(self.log)))

    def run(self, argv: list[str], trouble: Trouble = Trouble(), allowed: Sequence[int] = (0,),
            folder: Path | None = None) -> Outcome:
        "Run a command and judge how it ended and what it left."
        return self.judge(self.start(argv, trouble).finish(self.limit), trouble, allowed, folder)

    def judge(self, o: Outcome, trouble: Trouble, allowed: Sequence[int],
              folder: Path | None = None) -> Outcome:
        "What holds after every command."
        self.counts["commands"] += 1
        self.counts[o.kind] += 1
        last = o.said[-1] if o.said else ""
        heard = trouble.stream not in ("no stderr", "neither")
        if o.code is None:
            self.violate(o, f"hung for {self.limit:g} s")
        elif o.code not in allowed:
            self.violate(o, f"ended with {o.code}, not {' or '.join(map(str, allowed))}: {last}")
        if "Traceback (most recent" in o.err and not o.named:
            self.violate(o, f"a traceback without a name: {last}")
        elif o.code == 1 and not o.named and heard:
            self.violate(o, f"the last line does not name the world and the call: {last}")
        notices = ("simulus-nb: no curves", "simulus-nb: no dream")
        said = [line for line in o.said if not line.startswith(notices)]
        if o.code == 2 and heard and (len(said) != 1 or not last.startswith("simulus-nb: ")):
            self.violate(o, f"{len(said)} lines of complaint: {' / '.join(said[-3:])}")
        clean = o.code == 0 and o.argv[0] == "train" and "--help" not in o.argv
        self.check_folder(o, folder or self.folder, clean and "evaluation  " in o.out)
        return o

    def check_folder(self, o: Outcome, folder: Path, clean: bool) -> None:
        "Nothing lost, nothing twice, strict JSON, nothing touched outside."
        if tree(self.outside) != self.before:
            self.violate(o, "files outside of the run folder were touched")
            self.before = tree(self.outside)
        if self.kind == "folders" or folder.is_symlink() or not folder.is_dir():
            return
        try:
            records, found = epochs_of(folder), saved(folder)
            for path in folder.rglob("*.json"):
                ".partial" in str(path) or strict(path.read_text("utf8"))
        except Exception as e:
            return self.violate(o, f"a file is damaged: {type(e).__name__}: {e}")
        numbers = [int(r["epoch"]) for r in records]
        if numbers != list(range(len(numbers))):
            self.violate(o, f"the epochs in metrics.jsonl are {numbers}")
        if "last checkpoint" in o.out + o.err and "--resume" in o.out + o.err and found is None:
            self.violate(o, "it speaks of a checkpoint, and there is none")
        self.check_saves(o, folder, numbers, found)
        if clean:
            missing = [n for n in ("manifest.json", "evaluation.json") if not (folder / n).exists()]
            stale = [p.name for p in folder.rglob("*") if "partial" in p.name]
            if missing or stale or found is None or len(numbers) != found.meta["epoch"]:
                self.violate(o, f"not a clean end: missing {missing}, stale {stale}")

    def check_saves(self, o: Outcome, folder: Path, numbers: list[int], found) -> None:
        "Every checkpoint that was due is there, and all its numbers are finite."
        config = json.loads((folder / "config.json").read_text()) if numbers or found else {}
        due = (len(numbers) - 1) // config["save_every"] * config["save_every"] if numbers else 0
        if due > 0 and (found is None or found.meta["epoch"] < due):
            self.violate(o, f"{len(numbers)} epochs are logged, epoch {due} was not saved")
        bad = [k for k, t in (found.tensors["agent"] if found else {}).items()
               if t.is_floating_point() and not t.isfinite().all()]
        if bad:
            self.violate(o, f"a save holds numbers that are not finite: {bad[0]}")

    def violate(self, o: Outcome | None, what: str) -> None:
        "Note what should not be."
        command = " ".join([o.argv[0], *(w[:40] for w in o.argv[-3:])]) if o else ""
        self.violations.append(f"{command}: {what}".replace(str(self.root), "ROOT")[:400])

    # -------- comparisons

    def reference(self) -> Outcome:
        "The same run, by nobody disturbed."
        folder, self.folder = self.folder, self.root / "reference"
        done = self.run(self.train(), folder=self.folder)
        self.truth, self.folder = (self.folder if done.code == 0 else None), folder
        return done

    def compare(self, o: Outcome) -> None:
        "The run must have ended as the reference did."
        if self.truth is None or o.code != 0:
            return
        try:
            a, b = contents(self.folder), contents(self.truth)
        except Exception as e:
            return self.violate(o, f"nothing to compare: {type(e).__name__}: {e}")
        differ = sorted({k for k in a | b if k not in a or k not in b or not same(a[k], b[k])})
        if differ:
            return self.violate(o, f"it ended otherwise than undisturbed: {', '.join(differ[:4])}")
        self.counts["identical"] += 1

    def some_options(self, most: int = 4) -> None:
        "A few settings that are all right."
        for name in self.rng.sample(list(VALID), self.rng.randint(0, most)):
            self.options += [name, self.rng.choice(VALID[name].split())]
