"The kinds of situations: what is tried in each, and what must come of it."
import json
import math
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from simulus_nb.config import flat, preset

from .commands import STREAMS, Trouble, world_id
from .situations import Situation, strict, tree
from .worlds import FAULTS, RENDERERS, WANTED

ODD = ["0", "-1", "1.5", "nan", "inf", "-inf", "1e400", "", " ", "x", "ü", "None", "true", "[]",
       "{}", "99999999999999999999", "-0", "0x10", "1e5", "\x00", "\udcff", "a\nb", "--help",
       "999999999"]
ODD_WORDS = [       # (option, words), besides one odd word for every setting
    ("--env", ["", "CartPole", "CartPole-v99", "LunarLander-v2", "a:b:c", "nowhere:World-v0", ":",
               "soak/World", "ALE/NoSuchGame-v5", "CartPole-v1 ", "os:Nothing-v0", "\n"]),
    ("--env-options", ["{", "[1]", '{"action_repeat":1.5}', '{"action_repeat":"two"}', '{"":1}',
                       '{"max_episode_steps":0}', '{"max_episode_steps":"x"}', '{"image_size":64}',
                       '{"image_size":"x"}', '{"training":false}', '{"render_mode":"human"}',
                       '{"no_such_option":1}', '{"frame_skip":2}', '{"env_id":"x"}', '{"id":3}',
                       '{"max_episode_steps":null}', '{"action_repeat":1e400}',
                       '{"action_repeat":true}', '{"disable_env_checker":7}',
                       '{"clip_reward":"no"}']),
    ("--obs-kinds", ["obs", "obs nothing", "nobody vector", "obs drop", "obs vector obs grid"]),
    ("--out", ["", "/dev/null", "/dev/null/x", "/proc/x", "x" * 300, "~nobody/x", "bad\udcffname"]),
    ("--steps", ["0", "-5", "x", "12"]), ("--resume", [""]), ("--learn-on", ["3", "99"]),
    ("--nonsense", ["1", ""]), ("--preset", ["smal", ""]), ("--log", ["wandb", "x"]),
    ("--device", ["cuda", "mps", "gpu"]), ("--graphs", [""]), ("--precision", ["float8"])]
LENGTHY = ("epochs", "steps", "episodes", "interim", "threads", "log", "compile", "every")
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPED = (0, 130, 128 + signal.SIGHUP, 128 + signal.SIGTERM)       # exit codes after one of them


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
    for i in range(1, s.rng.randint(1, 3) + 1):                 # there is less and less to do
        trouble = strikes(s, moments // i, 0.4 / i)
        number = [*trouble.signals.values(), *(x for _, x in trouble.after)][0]
        allowed = (0, -signal.SIGKILL) if number == signal.SIGKILL else STOPPED
        done = s.run(s.train("--resume"), trouble, allowed)
        once = len(trouble.signals) + len(trouble.after) == 1
        unfinished = s.folder.exists() and not (s.folder / "manifest.json").exists()
        if done.kind == "stopped" and done.code != -signal.SIGKILL and once and unfinished \
                and "--resume" not in done.out + done.err:
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
        if "max_episode_steps" not in seen.out + seen.err:
            s.violate(seen, "it does not say how to end such episodes")


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
        if i == 0 and s.run(s.train(), trouble, allowed).code != 0:
            return
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
        others = [s.train(), ["evaluate", str(s.folder)], ["dream", str(s.folder)]]
        for argv in (s.train("--resume"), s.rng.choice(others)):
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
    *[(name, link("precious.txt")) for name in (
        ".partial-evaluation.json", ".partial-metrics.jsonl", "media/dream.mp4", "media/dream.png",
        "media/episode.mp4", "media/curves.png", "lock")],
    ("media", link("")), ("checkpoint", link("")), ("media", link("nowhere")),
    *[("config.json", setting(*change)) for change in (
        ("seed", 5), ("env", "CartPole-v1"), ("env_options", {"max_episode_steps": 2}),
        ("env", "burglar:World-v0"), ("world_model.retnet.layers", 10**7),
        ("controller.width", 10**9),
        ("train_c.loss.gamma", 0.5), ("evaluation.temperature", math.nan), ("epochs", -1))]]


def folders(s: Situation) -> None:
    "A stranger's folder with links, pipes and lies: one line or no harm, outside is left alone."
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
    names = ["run", "läuft", "走る", "two words", "it's", "n\nl", "-x", "😀"]
    s.folder = s.root / s.rng.choice(names)
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
