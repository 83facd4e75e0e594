"The loop: what each stage may touch, resuming, and other environments through the same code."
import copy
import json
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch

from simulus_nb.agent import Agent
from simulus_nb.checkpoint import buffer_state
from simulus_nb.config import preset
from simulus_nb.learner import Learner
from simulus_nb.loop import learn_c, learn_m, learn_v, make_agent, run_epoch
from simulus_nb.run_folder import RunFolder
from simulus_nb.run_log import plot_history
from simulus_nb.run_setup import infer_specs, prepare
from simulus_nb.spaces import UserError
from simulus_nb.trainer import Trainer


def toy(**changes):
    "Catch at a size that runs in a second."
    c = preset("catch")
    c = replace(
        c, epochs=3, save_every=1, threads=1, seed=3,
        collect=replace(c.collect, steps=40, capacity=400),
        train_v=replace(c.train_v, start=0, steps=2, batch=4),
        train_m=replace(c.train_m, start=0, steps=2, batch=3),
        train_c=replace(c.train_c, start=1, steps=2, batch=3, scale_window=4),
        evaluation=replace(c.evaluation, episodes=2, num_envs=2, every=0)
    )
    return replace(c, **changes)


def comparable(folder):
    "Metrics without clock readings."
    return [
        {k: v for k, v in r.items() if not k.startswith("seconds")}
        for r in RunFolder(folder).history()
    ]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return Trainer(toy(), tmp_path_factory.mktemp("run") / "a", progress=False).train()


@pytest.fixture(scope="module")
def finished_with_attention(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "attention"
    return Trainer(with_attention(), folder, progress=False).train()


def with_attention():
    return toy().change({"world_model.sequence": "attention", "world_model.attention.fade": True,
                         "train_m.reward_weight": 2.0})


@pytest.mark.parametrize("stop", [1, 2])
def test_resume_equals_uninterrupted(finished, tmp_path, stop):
    "Stopped after any epoch and taken up by a new object, a run ends with the same everything."
    check_resume(toy(), finished, tmp_path, stop)


def test_resume_with_attention(finished_with_attention, tmp_path):
    check_resume(with_attention(), finished_with_attention, tmp_path, 2)
    names = list(finished_with_attention.agent.world_model.state_dict())
    assert any(name.startswith("attention.layers.0.") for name in names)


def check_resume(config, finished, tmp_path, stop):
    torch.manual_seed(99)
    first = Trainer(config, tmp_path / "b", progress=False)
    log, seen = first.log, []

    def stopping(record, writer):
        log(record, writer)
        seen.append(record)
        if len(seen) == stop + 1:
            raise KeyboardInterrupt

    first.log = stopping
    with pytest.raises(KeyboardInterrupt):
        first.train()
    torch.rand(7)                               # other random numbers in between must not matter
    second = Trainer(None, tmp_path / "b", resume=True, progress=False)
    assert second.epoch == stop and len(second.folder.history()) == stop
    second.train()
    for name, value in finished.agent.state_dict().items():
        assert torch.equal(value, second.agent.state_dict()[name]), name
    for name, value in buffer_state(finished.replay).items():
        assert torch.equal(value, buffer_state(second.replay)[name]), name
    for name, optimizer in finished.learner.optimizers.items():
        again = second.learner.optimizers[name].state_dict()["state"]
        for i, slots in optimizer.state_dict()["state"].items():
            assert all(torch.equal(slots[k], again[i][k]) for k in slots), (name, i)
    assert comparable(finished.folder.path) == comparable(tmp_path / "b")
    assert finished.result == second.result


def test_seed_decides(finished, tmp_path):
    "The same seed gives the same run, another seed another."
    same = Trainer(toy(), tmp_path / "same", progress=False).train()
    other = Trainer(toy(seed=4), tmp_path / "other", progress=False).train()
    assert (
        comparable(same.folder.path)
        == comparable(finished.folder.path)
        != comparable(other.folder.path)
    )


def test_interim_evaluation_changes_nothing_else(finished, tmp_path):
    "Evaluating in between leaves the random streams of training alone."
    config = toy()
    often = Trainer(
        replace(config, evaluation=replace(config.evaluation, every=1, interim=2)),
        tmp_path / "often", progress=False
    ).train()
    for name, value in finished.agent.state_dict().items():
        assert torch.equal(value, often.agent.state_dict()[name]), name
    assert all("evaluation/return" in r for r in often.folder.history())


def test_run_folder(finished):
    "Every promised file is there and readable."
    f = finished.folder
    assert (
        json.loads(f.manifest.read_text())["seed"] == 3 and RunFolder(f.path).read_config() == toy()
    )
    assert {p.name for p in f.media.iterdir()} >= {"curves.png", "dream.png", "dream.mp4"} and list(
        f.path.glob("events.*")
    )
    assert json.loads(f.evaluation.read_text())["episodes"] == 2
    assert all(np.isfinite(v) for r in f.history() for v in r.values())
    plot_history(f.history())
    agent = Agent.load(f.checkpoint)
    for name, value in finished.agent.state_dict().items():
        assert torch.equal(value, agent.state_dict()[name]), name


def test_cut_metrics_line_is_dropped(finished, tmp_path):
    "A last line that a crash cut short is not read."
    f = RunFolder(tmp_path)
    f.metrics.write_text(finished.folder.metrics.read_text()[:-5])
    assert len(f.history()) == len(finished.folder.history()) - 1


def test_refusals(finished, tmp_path):
    with pytest.raises(UserError, match="already holds a run.*--resume"):
        Trainer(toy(), finished.folder.path)
    with pytest.raises(UserError, match="holds no run"):
        Trainer(None, tmp_path / "nothing", resume=True)
    with pytest.raises(UserError, match="not available"):
        Trainer(toy(device="mps" if torch.cuda.is_available() else "cuda"), tmp_path / "gpu")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write"):
        Trainer(toy(), tmp_path / "file" / "run")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        Trainer(None, tmp_path / "damaged", resume=True)


def test_only_m_sees_rewards():
    "Falsify every stored reward and end after M has learnt: C's updates are the same."
    def c_after(change):
        run = prepare(toy())
        for _ in range(2):
            run_epoch(run)
        change(run.replay)
        learn_c(run, 2)
        return torch.nn.utils.parameters_to_vector(run.agent.controller.parameters())

    def falsify(replay):
        replay.reward.fill_(1e5)
        replay.done.logical_not_()

    def retokenise(replay):
        replay.tokens.zero_()

    assert torch.equal(c_after(lambda replay: None), c_after(falsify))
    assert not torch.equal(c_after(lambda replay: None), c_after(retokenise))


def test_each_stage_moves_its_own_part():
    run = prepare(toy())
    run_epoch(run)
    names = {learn_v: "tokenizer.", learn_m: "world_model.", learn_c: "controller."}
    for stage, prefix in names.items():
        before = copy.deepcopy(run.agent.state_dict())
        stage(run, 2)
        moved = {
            k.split(".")[0] + "."
            for k, v in run.agent.state_dict().items()
            if not torch.equal(v, before[k])
        }
        assert moved == {prefix}


@pytest.mark.parametrize(
    "env, envs",
    [("CartPole-v1", 1), ("Pendulum-v1", 2), ("FrozenLake-v1", 3), ("simulus/Catch-v0", 2)]
)
def test_other_environments(tmp_path, env, envs):
    """Vectors, continuous actions and categories run through the same loop, with several
    environments too."""
    c = toy(env=env)
    c = replace(
        c, collect=replace(c.collect, num_envs=envs),
        env_options={"max_episode_steps": 25} if "Catch" not in env else {}
    )
    trainer = Trainer(c, tmp_path / "run", progress=False).train()
    assert trainer.env_steps >= 120 and all(
        np.isfinite(v) for r in trainer.folder.history() for v in r.values()
    )
    world = gymnasium.make(env)
    obs, _ = world.reset(seed=0)
    agent = Agent.load(tmp_path / "run" / "checkpoint")
    for _ in range(3):
        action = agent.act(obs)
        assert world.action_space.contains(action) or world.action_space.contains(
            np.asarray(action, world.action_space.dtype)
        )
        obs, *_ = world.step(action)


def test_a_tracker_hears_what_metrics_jsonl_holds(tmp_path, monkeypatch):
    """Weights & Biases and trackio are asked only if wanted, and told every epoch's numbers; what
    is not installed is said before anything is written."""
    import sys
    import types
    from simulus_nb.config import flat
    said = []
    fake = types.SimpleNamespace(
        init=lambda **kw: said.append(("init", kw)),
        log=lambda record, step: said.append(("log", step, dict(record))),
        finish=lambda: said.append(("finish",))
    )
    monkeypatch.setitem(sys.modules, "trackio", fake)
    monkeypatch.setitem(sys.modules, "wandb", None)                 # as if it were not installed
    tiny = preset("catch").change(
        {
            "epochs": 2, "collect.steps": 40, "train_v.start": 0, "train_v.steps": 1,
            "train_m.start": 9, "train_c.start": 9, "evaluation.every": 0, "evaluation.episodes": 1,
            "evaluation.num_envs": 1
        }
    )
    with pytest.raises(UserError, match="--log wandb .*pip install wandb"):
        Trainer(tiny.change({"log": "wandb"}), tmp_path / "a", progress=False)
    assert not (tmp_path / "a").exists()
    config = tiny.change({"log": "trackio"})
    trainer = Trainer(config, tmp_path / "b", progress=False).train()
    history = trainer.folder.history()
    assert said[0] == ("init", dict(project="simulus-nb", name="b", config=flat(config))) and said[
        -1
    ] == ("finish",)
    assert [(step, record) for _, step, record in said[1:-1]] == [
        (r["env_steps"], r) for r in history
    ] and len(history) == 2
    said.clear()
    Trainer(tiny, tmp_path / "c", progress=False).train()
    assert not said


@pytest.mark.parametrize("stage", "vmc")
def test_weight_decay_takes_all_of_v_and_c_but_only_matrices_of_m(stage):
    "With gradients of zero AdamW only decays: by 1 - lr * decay, or not at all."
    config = toy().change(
        {f"train_{s}.weight_decay": 0.5 for s in "vmc"} | {f"train_{s}.lr": 0.1 for s in "vmc"}
    )
    agent = make_agent(config, *infer_specs(config))
    learner = Learner(agent, config)
    module = {"v": agent.tokenizer, "m": agent.world_model, "c": agent.controller}[stage]
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    matrices = {f"{name}.weight" for name, m in module.named_modules() if isinstance(m, kinds)}
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    learner.optimizers[stage].step()
    for name, p in module.named_parameters():
        factor = 1 - 0.1 * 0.5 if stage != "m" or name in matrices else 1
        assert torch.allclose(p, factor * before[name], rtol=1e-6, atol=0), name
    assert matrices < set(before) and any(
        before[name].abs().sum() > 0 for name in set(before) - matrices
    )
