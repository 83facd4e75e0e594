"""A soak: many tiny runs in random worlds, with random options, kills, full disks, hostile folders and
worlds that misbehave. After every command it looks whether anything was lost, hidden or left hanging.

    python tools/soak.py [--seed 0] [--runs 200] [--workers 2] [--json FILE]
    python tools/soak.py --seed 0 --only 17         one situation again, with all that it printed

Everything follows from the seed. The exit code is 1 if anything was violated.
"""
import argparse
import io
import json
import math
import multiprocessing
import os
import random
import re
import resource
import select
import shlex
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gymnasium
import torch
from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).parent))
import forked
from soak_worlds import FAULTS, RENDERERS, WANTED, world_class

from simulus_nb import cli
from simulus_nb.checkpoint import load_checkpoint
from simulus_nb.config import flat, preset

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
ODD = ["0", "-1", "1.5", "nan", "inf", "-inf", "1e400", "", " ", "x", "ü", "None", "true", "[]", "{}",
       "99999999999999999999", "-0", "0x10", "1e5", "\x00", "\udcff", "a\nb", "--help", "999999999"]
ODD_WORDS = [       # (option, words), besides one odd word for every setting
    ("--env", ["", "CartPole", "CartPole-v99", "LunarLander-v2", "a:b:c", "nowhere:World-v0", ":",
               "soak/World", "ALE/NoSuchGame-v5", "CartPole-v1 ", "os:Nothing-v0", "\n"]),
    ("--env-options", ["{", "[1]", '{"action_repeat":1.5}', '{"action_repeat":"two"}', '{"":1}',
                       '{"max_episode_steps":0}', '{"max_episode_steps":"x"}', '{"image_size":64}',
                       '{"image_size":"x"}', '{"training":false}', '{"render_mode":"human"}',
                       '{"no_such_option":1}', '{"frame_skip":2}', '{"env_id":"x"}', '{"id":3}',
                       '{"max_episode_steps":null}', '{"action_repeat":1e400}',
                       '{"action_repeat":true}', '{"disable_env_checker":7}', '{"clip_reward":"no"}']),
    ("--obs-kinds", ["obs", "obs nothing", "nobody vector", "obs drop", "obs vector obs grid"]),
    ("--out", ["", "/dev/null", "/dev/null/x", "/proc/x", "x" * 300, "~nobody/x", "bad\udcffname"]),
    ("--steps", ["0", "-5", "x", "12"]), ("--resume", [""]), ("--learn-on", ["3", "99"]),
    ("--nonsense", ["1", ""]), ("--preset", ["smal", ""]), ("--log", ["wandb", "x"]),
    ("--device", ["cuda", "mps", "gpu"]), ("--graphs", [""]), ("--precision", ["float8"])]
LENGTHY = ("epochs", "steps", "episodes", "interim", "threads", "log", "compile", "every")
NAMED = re.compile(r"^simulus-nb: the world (\S+) failed in \w+\(\)")
STOPS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
STOPPED = (0, 130, 128 + signal.SIGHUP, 128 + signal.SIGTERM)       # exit codes after one of them
MEMORY = 4 * 2**30                      # bytes that a command may ask for, besides those it begins with


# ------------------------------------------------------------ one command

@dataclass
class Outcome:
    "How a command ended."
    argv: list[str]
    code: int | None                    # exit code, minus a signal's number, None: it hung
    out: str
    err: str
    words: list[str]                    # what the process told: `fault`, and `moments N` at its end

    @property
    def said(self) -> list[str]:
        "Lines on stderr; Python's warnings, of two lines each, do not count."
        lines = self.err.splitlines()
        warned = {i for i, line in enumerate(lines) if re.match(r"\S+:\d+: \w*Warning: ", line)}
        keep = [x for i, x in enumerate(lines) if i not in warned and i - 1 not in warned]
        return [line for line in keep if line.strip()]

    @property
    def named(self) -> bool:
        "Whether the last line names the world and the call that failed."
        return bool(self.said and NAMED.match(self.said[-1]))

    @property
    def moments(self) -> int:
        "Operations on files and steps of the world."
        return next((int(w.split()[1]) for w in self.words if w.startswith("moments")), 0)

    @property
    def kind(self) -> str:
        "A column of the table."
        if self.code == 2:
            return "refused"
        return {0: "finished", 1: "world's error"}.get(self.code, "stopped")


@dataclass(frozen=True)
class Trouble:
    "What befalls one command."
    signals: dict[int, int] = field(default_factory=dict)       # {number of the moment: signal}
    after: Sequence[tuple[float, int]] = ()     # [(seconds of computing, signal)], one by one
    full: int | None = None                     # from this moment on the disk is full
    limit: int | None = None                    # largest file in bytes
    stream: str = ""                            # a key of STREAMS
    pictures: bool = False                      # draw curves and dreams
    world: dict = field(default_factory=dict)   # changes of the world


def rewrap(number: int, encoding: str) -> io.TextIOWrapper:
    "A standard stream in another encoding."
    return io.TextIOWrapper(os.fdopen(number, "wb", closefd=False), encoding, line_buffering=True)


def shut(*numbers: int) -> None:
    "Standard streams as a service may have them: closed, and absent in Python."
    for number in numbers:
        os.close(number)
        setattr(sys, {1: "stdout", 2: "stderr"}[number], None)


def unread() -> None:
    "Nobody reads what is printed."
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)


STREAMS = {
    "": lambda: None, "no stdout": lambda: shut(1), "no stderr": lambda: shut(2),
    "neither": lambda: shut(1, 2), "nobody reads": unread,
    "ASCII": lambda: setattr(sys, "stdout", rewrap(1, "ascii")),
    "cp1252": lambda: setattr(sys, "stdout", rewrap(1, "cp1252")),
    "ASCII errors": lambda: setattr(sys, "stderr", rewrap(2, "ascii"))}


def strike_after(plan: Sequence[tuple[float, int]]) -> None:
    "Send this process signals after so many seconds of its own computing each."
    left = list(plan)

    def strike(*_):
        _, number = left.pop(0)
        if left:
            signal.setitimer(signal.ITIMER_VIRTUAL, left[0][0])
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGVTALRM, strike)
    if left:
        signal.setitimer(signal.ITIMER_VIRTUAL, left[0][0])


def child(argv: list[str], world: dict, trouble: Trouble, log: Path, report: int) -> int:
    "What a forked process does: meet its trouble in the command `argv`."
    os.setpgid(0, 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(log / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    made = world_class(**{**world, **trouble.world})
    count, tell = [0], lambda word: os.write(report, f"{word}\n".encode())
    made.tell = lambda self: tell("fault")
    gymnasium.register(world_id(world), entry_point=made)
    if not trouble.pictures:
        forked.without_pictures()
    moment = forked.moments(trouble.signals, trouble.full, lambda _: count.__setitem__(0, count[0] + 1))
    step = made.step
    made.step = lambda self, action: moment("step") or step(self, action)
    if trouble.limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (trouble.limit, trouble.limit))
    if (pages := Path("/proc/self/statm")).exists():
        most = int(pages.read_text().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    STREAMS[trouble.stream]()
    strike_after(trouble.after)
    try:
        return cli.main(argv)
    finally:
        tell(f"moments {count[0]}")


def world_id(world: dict) -> str:
    "The id under which a world is registered."
    return f"soak/World-{world['seed']}-v0"


class Started:
    "A command that runs in a forked process."

    def __init__(self, argv: list[str], world: dict, trouble: Trouble, log: Path):
        self.argv, self.log = argv, log
        log.mkdir(parents=True)
        self.pid, self.reader = forked.begin(lambda report: child(argv, world, trouble, log, report))

    def wait(self, limit: float, flags: int = 0) -> int | None:
        "The status of `waitpid`; None if nothing happened within `limit` seconds."
        end = time.monotonic() + limit
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG | flags)
            if pid:
                return status
            time.sleep(0.01)
        return None

    def finish(self, limit: float) -> Outcome:
        "Wait for its end, or put one to it."
        status = self.wait(limit)
        if status is None:
            os.killpg(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        code = None if status is None else os.waitstatus_to_exitcode(status)
        words = b""
        while select.select([self.reader], [], [], 0)[0] and (piece := os.read(self.reader, 2**16)):
            words += piece
        os.close(self.reader)
        out, err = ((self.log / n).read_text("utf8", "replace") for n in ("out", "err"))
        return Outcome(self.argv, code, out, err, words.decode().splitlines())


# ------------------------------------------------------------ what must always hold

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


# ------------------------------------------------------------ one situation

class Situation:
    "A random world, a folder, and the commands that are tried there."

    def __init__(self, seed: int, n: int, root: Path, limit: float):
        self.n, self.kind, self.turn = n, SLOTS[n % len(SLOTS)], turn_of(n)
        self.rng, self.root, self.limit = random.Random(f"{seed}/{n}"), root, limit
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
        if o.code == 2 and heard and (len(o.said) != 1 or not last.startswith("simulus-nb: ")):
            self.violate(o, f"{len(o.said)} lines of complaint: {' / '.join(o.said[-3:])}")
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
            [strict(p.read_text("utf8")) for p in folder.rglob("*.json") if ".partial" not in str(p)]
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


# ------------------------------------------------------------ kinds of situations

def spaces(s: Situation) -> None:
    "Any space is read, or refused in one line whose advice leads on; then everything works there."
    s.world["strange"] = s.rng.choice([0, 0, 0.5])
    s.some_options()
    done, pictures = None, Trouble(pictures=True)
    for _ in range(8):
        done = s.run(s.train(), pictures, (0, 2))
        advice = re.search(r"--obs-kinds ('.*?'|\".*?\") (\w+)\)", done.err)
        if done.code == 0 or advice is None:
            break
        key, kind = shlex.split(advice[1])[0], advice[2]
        if done.argv[-2:] == [key, kind]:
            s.violate(done, f"its own advice is refused: {done.said[-1]}")
            break
        words = s.options[s.options.index("--obs-kinds") + 1:] if "--obs-kinds" in s.options else []
        s.options = [*s.options[:len(s.options) - len(words) - bool(words)],
                     "--obs-kinds", *words, key, kind]
    if done.code == 0:
        s.run(["evaluate", str(s.folder)], pictures)
        s.run(["dream", str(s.folder)], pictures)
        before = tree(s.folder)
        again = s.run(s.train("--resume"), pictures)
        if tree(s.folder) != before:
            s.violate(again, "resuming a finished run changed it")


def options(s: Situation) -> None:
    "An odd word somewhere, three times: it works or is refused in one line."
    settings = [n for n in flat(preset("small")) if not n.endswith(LENGTHY)]
    for i in range(3):
        s.folder, s.options = s.root / f"run{i}", []
        s.some_options(2)
        name = "--" + s.rng.choice(settings).replace("_", "-")
        option, word = name, s.rng.choice(ODD)
        if s.rng.random() < 0.5:
            option, words = s.rng.choice(ODD_WORDS)
            word = s.rng.choice(words)
        bare = option in ("--resume", "--graphs")
        s.options += [option, *(word.split() if option == "--obs-kinds" or bare else [word])]
        s.run(s.train(), allowed=(0, 2))


def strikes(s: Situation, moments: int, seconds: float) -> Trouble:
    "A signal at a random moment, perhaps a second one soon after."
    number = s.rng.choice([signal.SIGKILL, *STOPS])
    numbers = [number] * s.rng.choice([1, 1, 2])
    if s.rng.random() < 0.6:
        at = s.rng.randint(1, max(1, moments))
        return Trouble(signals={at + i * s.rng.randint(1, 5): x for i, x in enumerate(numbers)})
    first = s.rng.uniform(0.01, seconds)
    return Trouble(after=[(first if i == 0 else 0.02, x) for i, x in enumerate(numbers)])


def kills(s: Situation) -> None:
    "Killed or stopped up to three times, then taken up again: nobody can tell."
    s.some_options()
    moments = s.reference().moments
    for _ in range(s.rng.randint(1, 3)):
        trouble = strikes(s, moments, 0.8)
        number = [*trouble.signals.values(), *(x for _, x in trouble.after)][0]
        allowed = (0, -signal.SIGKILL) if number == signal.SIGKILL else STOPPED
        done = s.run(s.train("--resume"), trouble, allowed)
        if done.code not in (0, -signal.SIGKILL) and "--resume" not in done.out + done.err:
            s.violate(done, "a stopped run does not say how it goes on")
    s.compare(s.run(s.train("--resume")))


def disks(s: Situation) -> None:
    "No room on the disk, or a file may not grow: one line, and later the run goes on."
    s.some_options()
    moments = s.reference().moments
    trouble = Trouble(full=s.rng.randint(1, max(1, moments)), pictures=s.rng.random() < 0.2)
    if s.rng.random() < 0.4:
        trouble = Trouble(limit=s.rng.choice([2_000, 5_000, 9_000, 20_000, 60_000]))
    done = s.run(s.train(), trouble, (0, 2))
    if done.code == 2 and not re.search("No space left|File too large", done.err):
        s.violate(done, f"it does not say what is wrong with the disk: {done.said[-1:]}")
    s.compare(s.run(s.train("--resume")))


def faults(s: Situation) -> None:
    "A world that misbehaves after a while; mended, the run goes on as if nothing had been."
    name = list(FAULTS)[s.turn % len(FAULTS)]
    fault = FAULTS[name]
    s.some_options(2)
    s.reference()
    after = s.rng.randint(0, {"step": 40, "reset": 9, "init": 3, "close": 3}[fault.where])
    ending = Trouble(world=dict(fault=name, after=after))
    if name == "never ends":                                    # only a limit of one's own helps
        s.options += ["--env-options", '{"max_episode_steps":9}']
    s.log.append([f"# {name}, after {after}"])
    done = s.run(s.train(), ending, (0, *WANTED[fault.wanted]))
    met = "fault" in done.words
    if met and done.code == 0 and 0 not in WANTED[fault.wanted]:
        s.violate(done, f"{name}: nobody noticed")
    if done.code == 2 and world_id(s.world) not in done.err:
        s.violate(done, f"{name}: the line does not name the world: {done.said[-1:]}")
    if met and done.code == 0:
        harmless = s.run(s.train("--resume"))
        return s.compare(harmless) if fault.wanted == "fine" else None
    s.compare(s.run(s.train("--resume")))


def endless(s: Situation) -> None:
    "A trained policy may loop for ever: the evaluation ends by its limit."
    s.options += ["--evaluation.max-steps", "25"]
    never = Trouble(world=dict(fault="never ends"))
    done = s.run(s.train(), never)
    if done.code == 0:
        seen = s.run(["evaluate", str(s.folder)], never)
        lengths = strict((s.folder / "evaluation.json").read_text())["lengths"]
        if max(lengths) > 25:
            s.violate(seen, f"episodes of {lengths} steps, though 25 are the limit")


def renderers(s: Situation) -> None:
    "Whatever a renderer draws, the run finishes and the score is there."
    if s.rng.random() < 0.2:
        s.options += ["--env-options", '{"render_mode":"rgb_array"}']
    for i in range(2):
        name, taken = list(RENDERERS)[(2 * s.turn + i) % len(RENDERERS)], s.rng.random() < 0.8
        s.log.append([f"# {name}", "" if taken else ", takes no render_mode"])
        trouble = Trouble(pictures=True, world=dict(renderer=name, takes_render_mode=taken))
        refusable = s.options and not taken or name == "metadata None"          # by Gymnasium
        allowed = (0, 2) if refusable else (0,)
        if i or s.run(s.train(), trouble, allowed).code == 0:
            seen = s.run(["evaluate", str(s.folder)], trouble, allowed)
            if seen.code == 0 and "evaluation  return" not in seen.out:
                s.violate(seen, "no score was printed")


def pairs(s: Situation) -> None:
    "A second process while the first one stands still in the middle of its work."
    s.some_options(2)
    moments = s.reference().moments
    at = s.rng.randint(max(1, moments // 3), max(1, moments * 9 // 10))
    first = s.start(s.train(), Trouble(signals={at: signal.SIGSTOP}))
    status = first.wait(s.limit, os.WUNTRACED)
    if status is not None and os.WIFSTOPPED(status):
        for argv in s.rng.sample([s.train("--resume"), s.train(), ["evaluate", str(s.folder)],
                                  ["dream", str(s.folder)]], 2):
            two = s.run(argv, allowed=(2,) if argv[0] == "train" else (0, 2))
            if two.code == 0 and argv[0] == "train":
                s.violate(two, "two processes train in one folder")
    if s.rng.random() < 0.5:
        os.killpg(first.pid, signal.SIGKILL)                    # its lock must die with it
        s.judge(first.finish(s.limit), Trouble(), (-signal.SIGKILL,))
        return s.compare(s.run(s.train("--resume")))
    os.killpg(first.pid, signal.SIGCONT)
    s.compare(s.judge(first.finish(s.limit), Trouble(), (0,)))


def link(to: str) -> Callable[[Path, Path], None]:
    "A file or folder of the run replaced by a link to one outside."
    def plant(path: Path, outside: Path) -> None:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.symlink_to(outside / to if not to.startswith("/") else to)
    return plant


def text(content: str) -> Callable[[Path, Path], None]:
    "A file with another content."
    return lambda path, outside: path.write_text(content.replace("OUTSIDE", str(outside)))


def pipe(path: Path, outside: Path) -> None:
    "A named pipe in the place of a file."
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def setting(name: str, value) -> Callable[[Path, Path], None]:
    "Another setting in config.json."
    def plant(path: Path, outside: Path) -> None:
        config = json.loads(path.read_text())
        *groups, last = name.split(".")
        group = config
        for key in groups:
            group = group[key]
        group[last] = value
        path.write_text(json.dumps(config))
    return plant


TRAPS = [   # (what, what is done to it)
    *[(name, plant) for name in ("config.json", "metrics.jsonl", "evaluation.json", "manifest.json",
                                 "checkpoint/LATEST")
      for plant in (pipe, link("/dev/zero"), link("precious.txt"), text("[" * 100_000), text(""))],
    *[(name, link("precious.txt")) for name in (".partial-evaluation.json", ".partial-metrics.jsonl",
                                               "media/dream.mp4", "media/dream.png",
                                               "media/episode.mp4", "media/curves.png", "lock")],
    ("media", link("")), ("checkpoint", link("")), ("media", link("nowhere")),
    *[("config.json", setting(*change)) for change in (
        ("seed", 5), ("env", "CartPole-v1"), ("env_options", {"max_episode_steps": 2}),
        ("env", "burglar:World-v0"), ("world_model.retnet.layers", 10**7), ("controller.width", 10**9),
        ("train_c.loss.gamma", 0.5), ("evaluation.temperature", math.nan), ("epochs", -1))]]


def folders(s: Situation) -> None:
    "A stranger's folder, with links, pipes and lies: one line or no harm, nothing outside is touched."
    if s.run(s.train()).code:
        return
    whole = s.folder
    (whole / "burglar.py").write_text(f"open({str(s.outside / 'broken')!r}, 'w')")
    for i in range(3):
        name, plant = TRAPS[(3 * s.turn + i) % len(TRAPS)]
        s.folder = s.root / f"stranger{i}"
        shutil.copytree(whole, s.folder)
        plant(s.folder / name, s.outside)
        s.log.append([f"# {name}: {plant.__qualname__}"])
        os.chdir(s.folder)                                      # a stranger's code lies there
        sys.path.insert(0, str(s.folder))
        pictures = Trouble(pictures=name.startswith("media"))
        resume = ["train", "--resume", "--epochs", "4", "--out", str(s.folder)]
        play, dream = (["evaluate", str(s.folder)], ["dream", str(s.folder)])
        for argv in s.rng.sample([play, dream, resume], 2):
            s.run(argv, pictures, (0, 2))
        sys.path.remove(str(s.folder))
        os.chdir("/")


def streams(s: Situation) -> None:
    "Streams that are closed, absent or narrow, and folders of any name."
    s.some_options(2)
    stream = list(STREAMS)[s.turn % len(STREAMS)]
    s.folder = s.root / s.rng.choice(["run", "läuft", "走る", "two words", "it's", "n\nl", "-x", "😀"])
    s.log.append([f"# {stream}"])
    done = s.run(s.train(), Trouble(stream=stream), (0, 141) if stream == "nobody reads" else (0,))
    if done.code == 0 and not (s.folder / "manifest.json").exists():
        s.violate(done, "the run is not finished")
    s.run(["train", "--help"], Trouble(stream=stream), (0, 141))


def divergence(s: Situation) -> None:
    "Numbers that explode end the run in one line, and no save holds them."
    part = s.rng.choice("vmc")
    s.options += [f"--train-{part}.lr", s.rng.choice(["1e6", "1e20", "1e38"]), "--epochs", "4",
                  f"--train-{part}.steps", "4", f"--train-{part}.clip", s.rng.choice(["1", "1e30"])]
    s.run(s.train(), allowed=(0, 2))
    s.run(s.train("--resume"), allowed=(0, 2))


KINDS = {f.__name__: f for f in (spaces, options, kills, disks, faults, endless, renderers, pairs,
                                 folders, streams, divergence)}
SLOTS = ("spaces faults kills options renderers disks faults folders pairs kills faults options "
         "spaces streams faults folders kills renderers faults divergence disks faults endless "
         "faults").split()


def turn_of(n: int) -> int:
    "How many situations of the same kind come before situation `n`."
    return sum(SLOTS[i % len(SLOTS)] == SLOTS[n % len(SLOTS)] for i in range(n))


# ------------------------------------------------------------ all of them

def situation(seed: int, n: int, limit: float, loud: bool = False) -> dict:
    "Try situation `n` in a folder of its own."
    home = tempfile.mkdtemp(prefix="soak-")
    os.environ["HOME"] = home
    try:
        s, begin = Situation(seed, n, Path(home), limit), time.monotonic()
        try:
            KINDS[s.kind](s)
        except Exception as e:                                  # of the soak itself, or a file that is gone
            s.violate(None, f"the soak stumbled: {type(e).__name__}: {e}")
            if loud:
                raise
        if loud:
            for i, argv in enumerate(s.log, 1):
                texts = [(s.root / "logs" / str(i) / k) for k in ("out", "err")]
                print("$", shlex.join(argv), *(t.read_text() for t in texts if t.exists()), sep="\n")
        return dict(n=n, kind=s.kind, counts=dict(s.counts), violations=s.violations,
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
    parser.add_argument("--limit", type=float, default=120, help="seconds after which a command hangs")
    parser.add_argument("--only", type=int, nargs="+", help="numbers of situations to try again")
    parser.add_argument("--json", type=Path, help="write the table and all violations to this file")
    a = parser.parse_args(argv)
    torch.set_num_threads(1)
    Figure().savefig(io.BytesIO())                              # what is slow the first time
    cli.parse(["train"])
    begin, numbers, results = time.monotonic(), a.only or range(a.runs), []
    with multiprocessing.get_context("fork").Pool(a.workers) as pool:
        jobs = [pool.apply_async(situation, (a.seed, n, a.limit, len(numbers) == 1)) for n in numbers]
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
