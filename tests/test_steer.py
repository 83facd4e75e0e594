"""Runs that people steer: saving changes nothing, another device, a longer budget, the best agent
kept, losses that explode, and a user's own code."""
import json
import math
import os
import random
import re
import signal
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file

from simulus_nb.agent import Agent
from simulus_nb.checkpoint import CheckpointWarning, is_whole, load_checkpoint
from simulus_nb.cli import main
from simulus_nb.config import PRESETS, Config, cost, differences, preset
from simulus_nb.evaluate import Evaluation
from simulus_nb.files import file_digest, manifest_digest
from simulus_nb.games import Games
from simulus_nb.loop import Diverged, check_finite, compare
from simulus_nb.run_folder import RunFolder
from simulus_nb.run_setup import prepare
from simulus_nb.spaces import UserError
from simulus_nb.terminal import announce, summary
from simulus_nb.trainer import Callback, Trainer


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    "Pictures and videos take longer than the runs."
    monkeypatch.setattr("simulus_nb.trainer.dream_media", lambda *args, **kwargs: {})
    monkeypatch.setattr("simulus_nb.trainer.plot_history", lambda history: Figure(figsize=(1, 1)))


def toy(**changes):
    "Three epochs of a world at the size of a second."
    c = preset("small").change(
        {
            "env": "simulus/Catch-v0", "epochs": 3, "save_every": 1000, "threads": 1, "seed": 3,
            "device": "cpu", "collect.steps": 34, "collect.num_envs": 2, "collect.capacity": 400,
            "tokenizer.image.code_dim": 8, "tokenizer.image.vocab": 16, "tokenizer.image.stages": 4,
            "world_model.retnet.width": 16, "world_model.retnet.layers": 1, "controller.width": 16,
            "train_v.start": 0, "train_v.steps": 2, "train_v.batch": 4, "train_m.start": 0,
            "train_m.steps": 2, "train_m.batch": 3, "train_c.start": 1, "train_c.steps": 2,
            "train_c.batch": 3, "train_c.horizon": 4, "evaluation.episodes": 2,
            "evaluation.num_envs": 2, "evaluation.every": 0
        }
    )
    return c.change({name.replace("__", "."): value for name, value in changes.items()})


def state(trainer):
    "Everything that a run has come to: tensors by name, plain values, metrics without clocks."
    tensors, meta = trainer.snapshot()
    flat = {
        f"{group}/{name}": x
        for group, members in tensors.items()
        if group != "metrics"
        for name, x in members.items()
    }
    metrics = [
        {k: v for k, v in r.items() if not k.startswith("seconds")}
        for r in trainer.folder.history()
    ]
    return flat, {k: v for k, v in meta.items() if k not in ("seconds", "config")}, metrics


def assert_equal(a, b):
    "Bit for bit."
    (left, *plain), (right, *others) = state(a), state(b)
    assert plain == others and left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


# ---------------------------------------------------------------- saving changes nothing

@pytest.mark.parametrize(
    "env, options",
    [("simulus/Catch-v0", {}), ("CartPole-v1", {}), ("Pendulum-v1", {"max_episode_steps": 21})]
)
def test_how_often_a_run_is_saved_changes_nothing(tmp_path, env, options):
    """Saved after every epoch, taken up again after every epoch, or never: the same run; games that
    are open at a save go on."""
    c = toy(env=env, env_options=options)
    rarely = Trainer(c, tmp_path / "rarely", progress=False).train()
    often = Trainer(replace(c, save_every=1), tmp_path / "often", progress=False).train()
    assert_equal(rarely, often)
    assert rarely.result == often.result
    pieces = replace(c, save_every=1)
    for epoch in range(c.epochs):
        part = Trainer(pieces, tmp_path / "pieces", resume=True, progress=False)
        assert part.epoch == epoch
        part.log(part.run_epoch(), DeafWriter())
        part.save(part.folder.checkpoint)
    assert_equal(rarely, Trainer(pieces, tmp_path / "pieces", resume=True, progress=False))
    ends = rarely.replay.last[rarely.replay.filled()]
    assert int(ends.sum()) < len(ends)
    assert any(len(x) for x in rarely.state.worlds.played)                      # something is open


class DeafWriter:
    "Instead of TensorBoard."
    def add_scalar(self, *args):
        pass


def test_only_the_open_game_is_played_again(tmp_path, monkeypatch):
    "Taking up a run costs the steps of the games in progress, however many there were before."
    trainer = Trainer(
        toy(save_every=1, collect__steps=200), tmp_path / "run", progress=False
    ).train()
    steps, step = [0], Games.step
    monkeypatch.setattr(
        Games, "step",
        lambda self, action: (steps.__setitem__(0, steps[0] + 1), step(self, action))[1]
    )
    again = Trainer(None, tmp_path / "run", resume=True, progress=False)
    assert (
        again.state.worlds.games == trainer.state.worlds.games
        and min(again.state.worlds.games) > 10
        and steps[0] == sum(map(len, trainer.state.worlds.played)) < 60
    )
    assert again.env_steps == 600


# ---------------------------------------------------------------- another device

def on_another_device(folder, kind="cuda", said=True, config=None, generator=None):
    "Make the newest save look as if it had been written on another kind of device."
    save = max((folder / "checkpoint").glob("save-*"))
    tensors = load_file(save / "random.safetensors")
    tensors["generator"] = (
        torch.zeros({"cuda": 16, "mps": 44}[kind], dtype=torch.uint8)
        if generator is None
        else generator
    )
    save_file(tensors, save / "random.safetensors")
    meta = json.loads((save / "meta.json").read_text())
    assert meta["device"] == "cpu"
    meta.update({"device": kind} if said else {}, **({"config": config} if config else {}))
    if not said:
        del meta["device"]
    for group in meta["optimizers"].values():
        for settings in group["param_groups"]:
            settings["capturable"] = kind == "cuda"
    (save / "meta.json").write_text(json.dumps(meta))
    files = {
        p.name: {"size": p.stat().st_size, "sha256": file_digest(p)}
        for p in sorted(save.iterdir())
        if p.name != "manifest.json"
    }
    (save / "manifest.json").write_text(
        json.dumps({"format": 1, "files": files, "digest": manifest_digest(files)})
    )


@pytest.mark.parametrize("kind, said", [("cuda", True), ("cuda", False), ("mps", True)])
def test_a_run_goes_on_on_another_kind_of_device(tmp_path, kind, said):
    """Weights, buffer and open games stay, random numbers start anew, the same ones each time; one
    line says so."""
    c, ends = toy(save_every=1, epochs=2), []
    for name in "ab":
        first = Trainer(c, tmp_path / name, progress=False)
        first.log(first.run_epoch(), DeafWriter())
        first.save(first.folder.checkpoint)
        before, *plain = state(first)
        on_another_device(first.folder.path, kind, said)
        torch.rand(3)
        with pytest.warns(
            CheckpointWarning, match="another kind of device.*new random numbers"
        ) as caught:
            again = Trainer(None, tmp_path / name, resume=True, progress=False)
        assert len(caught) == 1 and "\n" not in str(caught[0].message)
        after, *others = state(again)
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert (
            {"random/torch", "random/generator"} <= changed
            and all(x.startswith("random/") for x in changed)
            and plain == others
        )
        ends.append(again.train())
    assert_equal(*ends)


def test_a_save_of_an_older_release_can_be_taken_up(tmp_path):
    """Its settings have `collect.epochs`, its episodes one list of actions, and no device is named:
    all is taken up but the open episodes."""
    first = Trainer(toy(epochs=4, learn_on=1, save_every=2), tmp_path / "run", progress=False)
    for _ in range(2):
        first.log(first.run_epoch(), DeafWriter())
    first.save(first.folder.checkpoint)
    before, plain, metrics = state(first)
    config = json.loads(first.folder.config.read_text())
    config["collect"]["epochs"] = config["epochs"] - config.pop("learn_on")
    first.folder.config.write_text(json.dumps(config))
    save = max(first.folder.checkpoint.glob("save-*"))
    episodes = load_file(save / "episodes.safetensors")
    episodes = {k: x for k, x in episodes.items() if k.startswith("policy")} | {
        "actions": torch.zeros(0, 2, 1, dtype=torch.int64)
    }
    save_file(episodes, save / "episodes.safetensors")
    on_another_device(
        first.folder.path, "cpu", said=False, config=config,
        generator=first.state.generator.get_state()
    )
    with pytest.warns(CheckpointWarning, match="older release: new episodes") as caught:
        again = Trainer(None, tmp_path / "run", resume=True, progress=False)
    assert len(caught) == 1 and again.epoch == 2 and again.config == first.config
    after, *_, others = state(again)
    assert metrics == others
    changed = {
        name for name in before if name not in after or not torch.equal(before[name], after[name])
    }
    assert {name.split("/")[0] for name in changed} <= {
        "episodes", "replay"
    } and "replay/reward" not in changed
    again.train()
    assert again.env_steps == 3 * 34 and again.epoch == 4


def test_a_run_on_the_same_device_says_nothing(tmp_path, recwarn):
    Trainer(toy(epochs=1), tmp_path / "run", progress=False).train()
    Trainer(None, tmp_path / "run", resume=True, progress=False)
    assert not [w for w in recwarn if w.category is CheckpointWarning]


# ---------------------------------------------------------------- one budget

def test_an_older_file_of_settings_says_the_same():
    "`collect.epochs` becomes `learn_on`, whatever the numbers, and the schedule stays."
    for total, collecting, learn_on in [(600, 500, 100), (24, 24, 0), (24, 500, 0), (3, 2, 1)]:
        old = preset("catch").to_json()
        del old["learn_on"]
        old["epochs"], old["collect"]["epochs"] = total, collecting
        new = Config.from_json(json.loads(json.dumps(old)))
        assert (new.epochs, new.learn_on, new.collecting) == (
            total, learn_on, min(total, collecting)
        )
        assert Config.from_json(new.to_json()) == new
    old["collect"]["epochs"] = "2"
    with pytest.raises(UserError, match="unknown field collect.epochs"):
        Config.from_json(old)
    with pytest.raises(UserError, match="epochs must be int"):
        Config.from_json({"epochs": "3", "collect": {"epochs": 2}})


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_keep_their_schedules(name):
    """Which epochs collect is what `collect.epochs` said; a budget is counted back to the same
    epochs."""
    c = preset(name)
    old = c.to_json()
    learn_on = old.pop("learn_on")
    old["collect"]["epochs"] = c.epochs - learn_on
    assert Config.from_json(old) == c == c.for_steps(cost(c)["env_steps"]) and c.collecting >= 1
    if name in ("atari100k", "rem"):
        assert (c.epochs, c.collecting, cost(c)["env_steps"]) == (600, 500, 100_000)
    assert c.for_steps(cost(c)["env_steps"] + 1).collecting == c.collecting + 1


@pytest.mark.parametrize("learn_on, every", [(0, 0), (2, 2)])
def test_a_longer_run_equals_one_that_was_meant_to_be_long(tmp_path, learn_on, every):
    """Finished, then given more steps: bit for bit what the larger number gives from the start;
    epochs that only learnt are taken back."""
    c = toy(
        epochs=3 + learn_on, learn_on=learn_on, evaluation__every=every, evaluation__interim=1,
        save_every=2
    )
    once = Trainer(c.for_steps(34 * 5), tmp_path / "once", progress=False).train()
    short = Trainer(c, tmp_path / "twice", progress=False).train()
    assert short.env_steps == 34 * 3 and short.epoch == 3 + learn_on
    longer = Trainer(None, tmp_path / "twice", resume=True, progress=False, steps=34 * 5)
    assert longer.epoch == 3 and longer.folder.read_config().epochs == 5 + learn_on
    if learn_on:                                            # cut off before anything new is saved
        longer = Trainer(None, tmp_path / "twice", resume=True, progress=False)
        assert longer.epoch == 3
    longer.train()
    assert longer.env_steps == 34 * 5 and longer.epoch == 5 + learn_on
    assert_equal(once, longer)
    assert once.result == longer.result and once.best_result == longer.best_result
    collected = [r["env_steps"] for r in longer.folder.history()]
    assert collected == [34 * min(e + 1, 5) for e in range(5 + learn_on)]


def test_lengths_that_are_refused(tmp_path, capsys):
    "One line each; nothing is lost."
    folder = tmp_path / "run"
    Trainer(toy(epochs=4, learn_on=1), folder, progress=False).train()
    kept = lambda p: p.is_file() and "tfevents" not in p.name and p.name != "run.lock"
    before = {p: p.read_bytes() for p in folder.rglob("*") if kept(p)}
    for line, expected in {
        "--steps 34": "has 102 environment steps behind it.*--steps 102",
        "--epochs 9 --learn-on 6": "keeps learn_on = 1.*would collect nothing.*--steps N",
        "--steps 200 --epochs 9": "give one of them", "--steps 0": "steps = 0 is out of range"
    }.items():
        assert main(["train", "--resume", "--out", str(folder), *line.split()]) == 2
        error = capsys.readouterr().err
        assert re.search(expected, error) and error.count("\n") == 1
    assert (
        main(["train", "--preset", "atari100k", "--epochs", "50", "--out", str(tmp_path / "no")])
        == 2
    )
    assert "learn_on = 100 leaves none of 50 epochs" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in folder.rglob("*") if kept(p)} == before


def test_what_a_command_amounts_to_is_said(tmp_path):
    trainer = Trainer(
        toy(epochs=5, learn_on=1, evaluation__every=2, evaluation__interim=7), tmp_path / "run",
        progress=False
    )
    line = announce(trainer)
    for part in (
        "5 epochs (the last 1 only learn)", "136 environment steps", "10 of V, 10 of M, 8 of C",
        "2 of 7 episodes", "one of 2 at the end, for the last agent and for the best",
        str(tmp_path / "run")
    ):
        assert part in line, part
    assert "\n" not in line


# ---------------------------------------------------------------- the best agent

def scripted(monkeypatch, scores):
    "Interim evaluations return these means; the final ones are played."
    play, left, seeds = Trainer.evaluate, list(scores), []

    def evaluate(self, episodes=None, seeds_from=10_000, **kwargs):
        seeds.append(kwargs.get("seeds", seeds_from))
        if kwargs.get("seeds") == 20_000:
            return Evaluation((left.pop(0),), (1,))
        return play(self, episodes)

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    return seeds


def test_the_best_agent_is_kept_beside_the_last(tmp_path, monkeypatch, capsys):
    """Of the interim evaluations; saved, resumed and verified like everything; loaded only if asked
    for; both scores under their names."""
    seeds = scripted(monkeypatch, [1.0, 5.0, 2.0])
    c, weights = toy(save_every=1, evaluation__every=1, evaluation__interim=1), []
    for epoch in range(3):
        part = Trainer(None if epoch else c, tmp_path / "run", resume=bool(epoch), progress=False)
        part.log(part.run_epoch(), DeafWriter())
        part.save(part.folder.checkpoint)
        weights.append({k: v.clone() for k, v in part.agent.state_dict().items()})
    trainer = Trainer(None, tmp_path / "run", resume=True, progress=False).train()
    assert trainer.best == {"epoch": 1, "return": 5.0} and seeds == [20_000] * 3 + [10_000] * 2
    for which, epoch in (("last", 2), ("best", 1)):
        loaded = Agent.load(tmp_path / "run", which=which).state_dict()
        assert all(torch.equal(loaded[k], weights[epoch][k]) for k in loaded), which
    assert any(not torch.equal(weights[1][k], weights[2][k]) for k in weights[1])
    # put back
    assert all(torch.equal(trainer.agent.state_dict()[k], weights[2][k]) for k in weights[2])
    stored = json.loads(trainer.folder.best.read_text())
    assert (stored["epoch"], stored["interim_return"], tuple(stored["returns"])) == (
        1, 5.0, trainer.best_result.returns
    )
    text = summary(trainer.folder, "x", trainer.result)
    assert text.index("last agent") < text.index("best agent") and "from epoch 1, with 5.00" in text
    for which in ("last", "best"):
        assert main(["evaluate", str(tmp_path / "run"), "--which", which, "--device", "cpu"]) == 0
    assert json.loads(trainer.folder.best.read_text())["returns"] == stored["returns"]
    assert json.loads(trainer.folder.evaluation.read_text())["returns"] == list(
        trainer.result.returns
    )
    with pytest.raises(UserError, match="last or best, not 'first'"):
        Agent.load(tmp_path / "run", which="first")
    save = max((tmp_path / "run" / "checkpoint").glob("save-*"))
    os.truncate(save / "best.safetensors", 100)
    with pytest.warns(CheckpointWarning, match="best.safetensors"):
        assert Agent.load(tmp_path / "run", which="best") is not None       # from the save before
    capsys.readouterr()


def test_equals_and_runs_without_a_best(tmp_path, monkeypatch):
    """Of equals the newer is kept; if that is the last agent, nothing is played twice; without
    interim evaluations there is none."""
    seeds = scripted(monkeypatch, [2.0, 3.0, 3.0])
    trainer = Trainer(toy(evaluation__every=1), tmp_path / "run", progress=False).train()
    assert (
        trainer.best["epoch"] == 2
        and trainer.best_result is trainer.result
        and seeds.count(10_000) == 1
    )
    Trainer(toy(epochs=1), tmp_path / "none", progress=False).train()
    assert not (tmp_path / "none" / "evaluation-best.json").exists()
    with pytest.raises(UserError, match="keeps no best agent.*evaluation.every"):
        Agent.load(tmp_path / "none", which="best")


def test_choosing_uses_no_episode_of_the_final_score(tmp_path):
    "Seeds of interim and final episodes have nothing in common."
    asked = []

    class Noting(gymnasium.Wrapper):
        def reset(self, *, seed=None, options=None):
            asked.append(seed)
            return self.env.reset(seed=seed, options=options)

    c = toy(epochs=1, evaluation__every=1, evaluation__interim=20, evaluation__episodes=20)
    run = Trainer(
        c, tmp_path / "run", progress=False,
        make_env=lambda: Noting(gymnasium.make("simulus/Catch-v0", size=32))
    )
    asked.clear()
    compare(run.state, run.judge)
    interim = asked.copy()
    asked.clear()
    run.evaluate()
    assert len({*interim}) == len({*asked}) == 20 and not {*interim} & {*asked}


# ---------------------------------------------------------------- losses that explode

@pytest.mark.parametrize(
    "stage, name",
    [("v", "V, the tokenizer"), ("m", "M, the world model"), ("c", "C, the controller")]
)
def test_a_run_that_explodes_stops_in_one_line(tmp_path, capsys, stage, name):
    """Module, epoch and update are named, the last good checkpoint is whole, and the metrics are
    JSON."""
    c = toy(
        save_every=1,
        epochs=4,
        **{
            f"train_{stage}__lr": 1e6, f"train_{stage}__start": 2, f"train_{stage}__steps": 40,
            f"train_{stage}__clip": 1e30
        },
    )
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    assert main(["train", "--out", str(folder.path), *words(c)]) == 2
    error = capsys.readouterr().err
    assert re.search(
        rf"^simulus-nb: {name}, diverged in epoch [23], update \d+ of 40: "
        rf".*smaller train_{stage}.lr \(it is 1e\+06\)",
        error
    ), error
    assert error.count("\n") == 1 and "Traceback" not in error
    epoch = int(re.search(r"in epoch (\d)", error)[1])
    assert (
        is_whole(folder.checkpoint)
        and load_checkpoint(folder.checkpoint, ()).meta["epoch"] == epoch
    )
    lines = [
        json.loads(line, parse_constant=lambda x: pytest.fail(x))
        for line in folder.metrics.read_text().splitlines()
    ]
    assert len(lines) == epoch
    assert all(
        x.isfinite().all()
        for x in Agent.load(folder.path).state_dict().values()
        if x.is_floating_point()
    )


def words(c):
    "A configuration as options, as far as it differs from its preset."
    options = []
    for name, (value, _) in differences(c, preset("small")).items():
        value = [str(x) for x in value] if isinstance(value, tuple) else [str(value)]
        options += ["--" + name.replace("_", "-"), *value]
    return ["--preset", "small", *options]


def test_the_first_bad_update_is_found(tmp_path):
    "In the list of a stage's metrics; and a parameter that is not finite although all losses were."
    run = prepare(toy())
    good, bad = (
        {"loss": torch.tensor(1.0), "grad_norm": torch.tensor(2.0)},
        {"loss": torch.tensor(1.0), "grad_norm": torch.tensor(math.inf)}
    )
    check_finite(run, "m", [])
    check_finite(run, "m", [good, good])
    with pytest.raises(Diverged, match=r"^M, .*epoch 0, update 3 of 2: m/grad_norm is inf;"):
        check_finite(run, "m", [good, good, bad, bad])
    next(run.agent.world_model.parameters()).data.view(-1)[0] = math.nan
    check_finite(run, "c", [good])
    with pytest.raises(Diverged, match="its parameters are not finite"):
        check_finite(run, "m", [good])


def test_a_stop_does_not_save_what_has_exploded(tmp_path):
    "Ctrl-C between the update that went wrong and the end of its stage."
    trainer = Trainer(toy(save_every=1), tmp_path / "run", progress=False)
    trainer.log(trainer.run_epoch(), DeafWriter())
    trainer.save(trainer.folder.checkpoint)
    saves = sorted(trainer.folder.checkpoint.iterdir())

    def exploding(batch, *how):
        signal.raise_signal(signal.SIGTERM)
        return {"loss": torch.tensor(math.nan)}

    trainer.learner.m_step = exploding
    with pytest.raises(Diverged, match="update 1 of 2: m/loss is nan"):
        trainer.train()
    assert sorted(trainer.folder.checkpoint.iterdir()) == saves


# ---------------------------------------------------------------- a user's own code

class Watch(Callback):
    "Notes what it is told, and uses random numbers."

    def __init__(self, fail_at=None):
        self.seen, self.ended, self.fail_at = [], 0, fail_at

    def on_epoch(self, trainer, record):
        np.random.rand(), random.random(), torch.rand(3)
        assert trainer.epoch == record["epoch"] + 1 == len(trainer.folder.history())
        if record["epoch"] == self.fail_at:
            raise RuntimeError("mine")
        self.seen.append(record["epoch"])

    def on_end(self, trainer):
        assert trainer.result is not None and not trainer.folder.manifest.exists()
        self.ended += 1


def test_callbacks_hear_everything_and_change_nothing(tmp_path):
    """Told every epoch and the end; a run with them equals one without; their errors keep their
    traceback and lose nothing."""
    plain = Trainer(toy(), tmp_path / "plain", progress=False).train()
    watch = Watch()
    assert_equal(
        plain, Trainer(toy(), tmp_path / "watched", progress=False, callbacks=[watch]).train()
    )
    assert (watch.seen, watch.ended) == ([0, 1, 2], 1)
    with pytest.raises(RuntimeError, match="mine") as error:
        Trainer(toy(), tmp_path / "broken", progress=False, callbacks=[Watch(fail_at=1)]).train()
    assert error.traceback[-1].name == "on_epoch"
    second = Watch()
    again = Trainer(None, tmp_path / "broken", resume=True, progress=False, callbacks=[second])
    assert again.epoch == 2
    assert_equal(plain, again.train())
    assert (second.seen, second.ended) == ([2], 1)


class Corridor(gymnasium.Env):
    "A world of somebody's own, that is no Gymnasium id and may break."
    observation_space, action_space = (
        gymnasium.spaces.Box(-1, 1, (2,), np.float32), gymnasium.spaces.Discrete(2)
    )
    steps = [0]

    def __init__(self, length=9, breaks_at=None):
        self.length, self.breaks_at = length, breaks_at

    def observe(self):
        return np.array([self.at / self.length, self.wind], np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.wind, self.t = 0, float(self.np_random.uniform(-0.5, 0.5)), 0
        return self.observe(), {}

    def step(self, action):
        self.steps[0] += 1
        if self.steps[0] == self.breaks_at:
            raise ValueError("the corridor collapsed")
        self.at, self.t = self.at + (1 if action else -1), self.t + 1
        return self.observe(), float(self.at), abs(self.at) == self.length, self.t == 25, {}


def test_an_environment_from_a_function(tmp_path, capsys):
    """Collected from, evaluated in, resumed with the same function; a step that fails keeps its
    traceback and loses nothing."""
    c = toy(env="Corridor", env_options={"length": 7})
    Corridor.steps[0] = 0
    plain = Trainer(c, tmp_path / "plain", progress=False, make_env=Corridor).train()
    assert (
        plain.config.env == "python:Corridor"
        and len(plain.result.returns) == 2
        and plain.state.worlds.envs[0].unwrapped.length == 7
    )
    for breaks_at in (33, 51):
        Corridor.steps[0], folder = 0, tmp_path / f"broken{breaks_at}"
        with pytest.raises(ValueError, match="collapsed") as error:
            Trainer(
                c, folder, progress=False, make_env=lambda length: Corridor(length, breaks_at)
            ).train()
        assert error.traceback[-1].name == "step"
        again = Trainer(None, folder, resume=True, progress=False, make_env=Corridor)
        assert again.env_steps > 0
        assert_equal(plain, again.train())
    with pytest.raises(UserError, match="made by a function.*make_env"):
        Trainer(None, tmp_path / "plain", resume=True, progress=False)
    Trainer(toy(epochs=1), tmp_path / "catch", progress=False).train()
    with pytest.raises(UserError, match="leave make_env out"):
        Trainer(None, tmp_path / "catch", resume=True, progress=False, make_env=Corridor)
    for command in ("train --resume --out", "evaluate"):
        assert main([*command.split(), str(tmp_path / "broken33")]) in (0, 2)
    assert "Trainer(..., make_env=that function)" in capsys.readouterr().err


def test_a_factory_that_fails_leaves_nothing_behind(tmp_path):
    def broken():
        raise KeyError("no key")

    with pytest.raises(KeyError, match="no key") as error:
        Trainer(toy(env="mine"), tmp_path / "run", progress=False, make_env=broken)
    assert error.traceback[-1].name == "broken" and not (tmp_path / "run" / "config.json").exists()


class Flaky(gymnasium.Wrapper):
    "Catch whose simulator fails once, after so many steps of all together."
    left = 10**9

    def __init__(self):
        super().__init__(gymnasium.make("simulus/Catch-v0", size=16))

    def step(self, action):
        Flaky.left -= 1
        if Flaky.left == 0:
            raise ConnectionError("the simulator is gone for a moment")
        return self.env.step(action)


@pytest.mark.parametrize("after", [3, 40, 71])
def test_going_on_after_an_error_of_the_world(tmp_path, monkeypatch, after):
    """The same Trainer, asked to train again, comes to what an unbroken run comes to: no step is
    lost or glued to another game."""
    c = toy(tokenizer__image__image_size=16)
    monkeypatch.setattr(Flaky, "left", 10**9)
    unbroken = Trainer(c, tmp_path / "unbroken", progress=False, make_env=Flaky).train()
    Flaky.left = after
    broken = Trainer(c, tmp_path / "broken", progress=False, make_env=Flaky)
    with pytest.raises(ConnectionError):
        broken.train()
    Flaky.left = 10**9
    assert_equal(unbroken, broken.train())


def test_settings_that_suit_badly_are_said_once_and_the_stored_ones_are_the_base(tmp_path, capsys):
    out, line = (
        str(tmp_path / "run"), "simulus-nb: train_c.context + train_c.horizon - 1 = 31 blocks"
    )
    words = [
        "--env", "CartPole-v1", "--steps", "40", "--collect.steps", "40", "--train-m.steps", "1",
        "--train-c.steps", "1", "--threads", "1", "--device", "cpu", "--evaluation.episodes", "1",
        "--evaluation.every", "0", "--train-c.horizon", "30", "--train-m.batch", "2",
        "--train-c.batch", "2"
    ]
    assert main(["train", *words, "--out", out]) == 0
    said = capsys.readouterr()
    assert said.err.count(line) == 1 and "evaluations: one of 1 at the end;" in said.out
    assert main(["evaluate", out, "--device", "cpu"]) == 0
    assert "SettingsWarning" not in (err := capsys.readouterr().err) and line not in err
    assert main(["train", "--resume", "--out", out, "--learn-on", "1"]) == 2
    # of its own, not of the default world's
    assert "leaves none of 1 epochs" in capsys.readouterr().err
