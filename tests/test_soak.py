"""The soak in short: every kind of situation once, without a violation; and a library that is
broken on purpose is found out."""
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces as gs

if os.name != "posix":
    pytest.skip("needs fork and signals", allow_module_level=True)

TOOLS = Path(__file__).parents[1] / "tools"
sys.path.append(str(TOOLS))
import soak
from soaking import forked
from soaking.situations import strict
from soaking.worlds import FAULTS, RENDERERS, WANTED, actions, observations, world_class

from simulus_nb import cli, trainer

SHORT = (0, 1, 3, 4, 5, 7, 8, 9, 13, 19, 22)   # one of each kind


def test_every_kind_of_situation(tmp_path):
    "Nothing is violated, and every kind is there."
    done = subprocess.run(
        [
            sys.executable, TOOLS / "soak.py", "--only", *map(str, SHORT), "--workers", "1",
            "--json", tmp_path / "found.json"
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=400,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert (
        found["kinds"].keys() == {*soak.KINDS, "all"}
        and found["violations"] == []
        and found["runs"] == len(SHORT)
    )
    rows = found["kinds"]
    assert (
        all(row["situations"] for row in rows.values())
        and rows["kills"]["identical"] == rows["disks"]["identical"] == 1
    )
    outcomes = ("finished", "stopped", "refused", "world's error")
    assert all(row["commands"] == sum(row[name] for name in outcomes) for row in rows.values())


# ---------------------------------------------------------------- can it fail?

def log_twice():
    log = trainer.Trainer.log
    trainer.Trainer.log = lambda self, *args: [log(self, *args), log(self, *args)]


def forget_to_save():
    trainer.Trainer.save = lambda self, folder: None


def resume_otherwise():
    load = trainer.Trainer.load
    trainer.Trainer.load = lambda self, folder: [
        load(self, folder), self.state.generator.manual_seed(7)
    ]


def write_no_manifest():
    trainer.leave_manifest = lambda self: None


def leave_a_part():
    write = trainer.leave_manifest
    trainer.leave_manifest = lambda self: [
        write(self), (self.folder.path / ".partial-x").write_text("")
    ]


def write_nan():
    write = trainer.leave_manifest
    trainer.leave_manifest = lambda self: [
        write(self), (self.folder.path / "x.json").write_text('{"loss": NaN}')
    ]


def touch_the_neighbour():
    write = trainer.leave_manifest
    trainer.leave_manifest = lambda self: [
        write(self), (self.folder.path.parent / "outside" / "precious.txt").write_text("mine")
    ]


def save_nan():
    snapshot = trainer.Trainer.snapshot
    def spoiled(self):
        tensors, meta = snapshot(self)
        agent = {
            k: t * float("nan") if t.is_floating_point() else t for k, t in tensors["agent"].items()
        }
        return tensors | {"agent": agent}, meta
    trainer.Trainer.snapshot = spoiled


def spoil_a_save():
    write = trainer.leave_manifest
    def spoil(self):
        write(self)
        [os.truncate(p / "agent.safetensors", 100) for p in (self.folder.checkpoint).glob("save-*")]
    trainer.leave_manifest = spoil


def say_two_lines():
    cli.main = lambda argv: print("simulus-nb: no\nsimulus-nb: and no", file=sys.stderr) or 2


def raise_anything():
    cli.main = lambda argv: 1 / 0


def name_no_world():
    cli.main = lambda argv: print("simulus-nb: something failed", file=sys.stderr) or 1


def hang():
    cli.main = lambda argv: time.sleep(60)


KILL, ONCE = 9, 13                      # numbers of situations
SABOTAGE = {  # how the library is broken: (situation, what the soak must say)
    log_twice: (KILL, "epochs in metrics.jsonl are [0, 0,"),
    forget_to_save: (KILL, "was not saved"),
    resume_otherwise: (KILL, "ended otherwise than undisturbed"),
    write_no_manifest: (ONCE, "missing ['manifest.json']"),
    leave_a_part: (ONCE, "stale ['.partial-x']"),
    write_nan: (ONCE, "NaN is no JSON"),
    touch_the_neighbour: (ONCE, "outside of the run folder were touched"),
    save_nan: (ONCE, "not finite"),
    spoil_a_save: (ONCE, "a file is damaged"),
    say_two_lines: (ONCE, "2 lines of complaint"),
    raise_anything: (ONCE, "ZeroDivisionError"),
    name_no_world: (ONCE, "ended with 1"),
    hang: (ONCE, "hung for 1 s"),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    "What the soak finds in each broken library: {name: violations}."
    folder = tmp_path_factory.mktemp("broken")
    done = subprocess.run(
        [sys.executable, __file__, folder], capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {p.stem: json.loads(p.read_text()) for p in folder.glob("*.json")}


@pytest.mark.parametrize("how", [how.__name__ for how in SABOTAGE])
def test_a_broken_library_is_found_out(broken, how):
    (number, what), found = next(v for k, v in SABOTAGE.items() if k.__name__ == how), broken[how]
    assert [r["n"] for r in found["violations"]] == [number]
    assert any(what in text for r in found["violations"] for text in r["violations"]), found[
        "violations"
    ]


def break_all(folder):
    "Break the library in a forked process, each time another way, and soak it."
    soak.cli.parse(["train"])
    for how, (number, _) in SABOTAGE.items():
        def work(report):
            how()
            words = [
                "--only", str(number), "--workers", "1", "--json", f"{folder}/{how.__name__}.json"
            ]
            return soak.main([*words, "--limit", "1" if how is hang else "60"])
        pid, reader = forked.begin(work)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1, how.__name__
        os.close(reader)


# ---------------------------------------------------------------- its worlds

@pytest.mark.parametrize("seed", range(40))
def test_a_world_is_made_from_its_seed_alone(seed):
    a, b = (world_class(seed)() for _ in range(2))
    assert a.observation_space == b.observation_space and a.action_space == b.action_space
    outs = []
    for world in (a, b):
        world.reset(seed=3), world.action_space.seed(1)
        outs.append([])
        while not outs[-1] or not (outs[-1][-1][2] or outs[-1][-1][3]):
            outs[-1].append(world.step(world.action_space.sample()))
        assert all(world.observation_space.contains(out[0]) for out in outs[-1])
    assert len(outs[0]) == len(outs[1]) and str(outs[0]) == str(outs[1])


def test_worlds_of_all_kinds():
    "Within a few hundred seeds there is every space; what is odd is there only if wanted."
    def kinds(space):
        inner = (
            space.spaces.values()
            if isinstance(space, gs.Dict)
            else space.spaces
            if isinstance(space, gs.Tuple)
            else ()
        )
        return {type(space)} | {k for child in inner for k in kinds(child)}
    plain = {k for seed in range(300) for k in kinds(observations(random.Random(seed)))}
    assert plain == {gs.Box, gs.Discrete, gs.MultiDiscrete, gs.MultiBinary, gs.Dict, gs.Tuple}
    assert {
        k for seed in range(300) for k in kinds(observations(random.Random(seed), 0.5))
    } > plain | {gs.Text, gs.Graph}
    assert {type(actions(random.Random(seed))) for seed in range(99)} == {
        gs.Box, gs.Discrete, gs.MultiDiscrete, gs.MultiBinary
    }


def test_faults_show_after_their_time():
    assert {f.where for f in FAULTS.values()} == {"step", "reset", "init", "close"} and {
        f.wanted for f in FAULTS.values()
    } <= WANTED.keys()
    world = world_class(4, fault="NaN for a reward", after=3)()
    rewards = []
    for _ in range(5):
        world.reset(seed=1)
        rewards.append(world.step(world.action_space.sample())[1])
    assert [bool(np.isnan(r)) for r in rewards] == [False] * 3 + [True] * 2
    with pytest.raises(RuntimeError, match="no level left"):
        world_class(4, fault="reset raises")().reset(seed=1)
    assert len({name for name in RENDERERS}) > 20 and world_class(
        1, renderer="growing"
    )().render().shape == (19, 19, 3)


@pytest.mark.parametrize("text", ["NaN", '{"a": Infinity}', "[-Infinity]", "[1", ""])
def test_json_by_the_letter(text):
    with pytest.raises(ValueError):
        strict(text)


if __name__ == "__main__":
    break_all(sys.argv[1])
