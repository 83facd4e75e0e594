"Runs that people steer: saving changes nothing, another device, a longer budget, the best agent kept, losses that explode, and a user's own code."
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file

from simulus_nb.checkpoint import CheckpointWarning, file_digest, manifest_digest
from simulus_nb.config import preset
from simulus_nb.trainer import Trainer


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    "Pictures and videos take longer than the runs."
    monkeypatch.setattr("simulus_nb.trainer.dream_media", lambda *args, **kwargs: {})
    monkeypatch.setattr("simulus_nb.trainer.plot_history", lambda history: Figure(figsize=(1, 1)))


def toy(**changes):
    "Three epochs of a world at the size of a second."
    c = preset("small").change({
        "env": "simulus/Catch-v0", "epochs": 3, "save_every": 1000, "threads": 1, "seed": 3, "device": "cpu",
        "collect.steps": 34, "collect.num_envs": 2, "collect.capacity": 400,
        "tokenizer.image.code_dim": 8, "tokenizer.image.vocab": 16, "tokenizer.image.stages": 4,
        "world_model.retnet.width": 16, "world_model.retnet.layers": 1, "controller.width": 16,
        "train_v.start": 0, "train_v.steps": 2, "train_v.batch": 4, "train_m.start": 0, "train_m.steps": 2,
        "train_m.batch": 3, "train_c.start": 1, "train_c.steps": 2, "train_c.batch": 3, "train_c.horizon": 4,
        "evaluation.episodes": 2, "evaluation.num_envs": 2, "evaluation.every": 0})
    return c.change({name.replace("__", "."): value for name, value in changes.items()})


def state(trainer):
    "Everything that a run has come to: tensors by name, plain values, metrics without clocks."
    tensors, meta = trainer.snapshot()
    flat = {f"{group}/{name}": x for group, members in tensors.items() if group != "metrics" for name, x in members.items()}
    metrics = [{k: v for k, v in r.items() if not k.startswith("seconds")} for r in trainer.folder.history()]
    return flat, {k: v for k, v in meta.items() if k not in ("seconds", "config")}, metrics


def assert_equal(a, b):
    "Bit for bit."
    (left, *plain), (right, *others) = state(a), state(b)
    assert plain == others and left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


# ---------------------------------------------------------------- saving changes nothing

@pytest.mark.parametrize("env, options", [("simulus/Catch-v0", {}), ("CartPole-v1", {}), ("Pendulum-v1", {"max_episode_steps": 21})])
def test_how_often_a_run_is_saved_changes_nothing(tmp_path, env, options):
    "Saved after every epoch, taken up again after every epoch, or never: the same run; games that are open at a save go on."
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
    assert int(ends.sum()) < len(ends) and any(len(x) for x in rarely.played)          # something is open


class DeafWriter:
    "Instead of TensorBoard."
    def add_scalar(self, *args):
        pass


def test_only_the_open_game_is_played_again(tmp_path, monkeypatch):
    "Taking up a run costs the steps of the games in progress, however many there were before."
    trainer = Trainer(toy(save_every=1, collect__steps=200), tmp_path / "run", progress=False).train()
    from simulus_nb.trainer import Games
    steps, step = [0], Games.step
    monkeypatch.setattr(Games, "step", lambda self, action: (steps.__setitem__(0, steps[0] + 1), step(self, action))[1])
    again = Trainer(None, tmp_path / "run", resume=True, progress=False)
    assert again.games == trainer.games and min(again.games) > 10 and steps[0] == sum(map(len, trainer.played)) < 60
    assert again.env_steps == 600


# ---------------------------------------------------------------- another device

def on_another_device(folder, kind="cuda", said=True):
    "Make the newest save look as if it had been written on another kind of device."
    save = max((folder / "checkpoint").glob("save-*"))
    tensors = load_file(save / "random.safetensors")
    tensors["generator"] = torch.zeros({"cuda": 16, "mps": 44, "cpu": 5056}[kind], dtype=torch.uint8)
    save_file(tensors, save / "random.safetensors")
    meta = json.loads((save / "meta.json").read_text())
    assert meta["device"] == "cpu"
    meta.update({"device": kind} if said else {})
    if not said:
        del meta["device"]
    for group in meta["optimizers"].values():
        for settings in group["param_groups"]:
            settings["capturable"] = kind == "cuda"
    (save / "meta.json").write_text(json.dumps(meta))
    files = {p.name: {"size": p.stat().st_size, "sha256": file_digest(p)} for p in sorted(save.iterdir()) if p.name != "manifest.json"}
    (save / "manifest.json").write_text(json.dumps({"format": 1, "files": files, "digest": manifest_digest(files)}))


@pytest.mark.parametrize("kind, said", [("cuda", True), ("cuda", False), ("mps", True)])
def test_a_run_goes_on_on_another_kind_of_device(tmp_path, kind, said):
    "Weights, buffer and open games stay, random numbers start anew, the same ones each time; one line says so."
    c, ends = toy(save_every=1, epochs=2), []
    for name in "ab":
        first = Trainer(c, tmp_path / name, progress=False)
        first.log(first.run_epoch(), DeafWriter())
        first.save(first.folder.checkpoint)
        before, *plain = state(first)
        on_another_device(first.folder.path, kind, said)
        torch.rand(3)
        with pytest.warns(CheckpointWarning, match="another kind of device.*new random numbers") as caught:
            again = Trainer(None, tmp_path / name, resume=True, progress=False)
        assert len(caught) == 1 and "\n" not in str(caught[0].message)
        after, *others = state(again)
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert {"random/torch", "random/generator"} <= changed and all(x.startswith("random/") for x in changed) and plain == others
        ends.append(again.train())
    assert_equal(*ends)


def test_a_run_on_the_same_device_says_nothing(tmp_path, recwarn):
    Trainer(toy(epochs=1), tmp_path / "run", progress=False).train()
    Trainer(None, tmp_path / "run", resume=True, progress=False)
    assert not [w for w in recwarn if w.category is CheckpointWarning]
