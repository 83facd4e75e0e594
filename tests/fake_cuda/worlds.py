"""A whole run at toy size on a CUDA that computes nothing: play, updates of V, M and C, a stop in
the middle, a resumed run to its end with evaluation and media, then the saved agent and dreams.
`python tests/fake_cuda/worlds.py catch [--graphs]` prints what broke a rule as one JSON object."""
import argparse
import contextlib
import json
import tempfile
import warnings
from collections import Counter
from functools import wraps
from pathlib import Path

import fake                             # before torch
import numpy as np
import torch

from simulus_nb import checkpoint, film, interrupt, learner, priorities, replay, resume, trainer
from simulus_nb.agent import Agent, Policy
from simulus_nb.config import preset
from simulus_nb.dream import DreamEnv
from simulus_nb.run_setup import env_maker

WORLDS = {"catch": ("catch", {}), "cartpole": ("small", {}),
          "attention": ("catch", {"world_model.sequence": "attention"}),
          "parcels": ("small", {"env": "simulus/Parcels-v0"}),
          "additions": ("small", {
              "env": "simulus/Parcels-v0", "curiosity.heads": 2, "train_m.prioritised": 0.5,
              "tokenizer.image.quantiser": "fsq", "tokenizer.image.levels": [4, 4],
              "world_model.sequence": "attention", "world_model.attention.fade": True,
              "train_m.reward_weight": 3.0, "curiosity.only_collecting": True,
              "epochs": 3, "learn_on": 1}),
          "minigrid": ("minigrid", {}), "pendulum": ("control", {})}
TOY = {
    "epochs": 2, "save_every": 1, "threads": 1, "device": "cuda", "collect.steps": 24,
    "collect.num_envs": 2, "collect.capacity": 400, "tokenizer.image.channels": 8,
    "tokenizer.image.code_dim": 8, "tokenizer.image.vocab": 16, "world_model.retnet.layers": 2,
    "train_v.start": 0, "train_m.start": 0, "train_m.segment": 5, "train_m.context": 2,
    "train_c.start": 0, "train_c.critic_first": 1, "train_c.horizon": 4, "train_c.burn_in": 3,
    "evaluation.episodes": 2, "evaluation.num_envs": 2, "evaluation.every": 2,
    "evaluation.interim": 2}


def around(owner, name):
    "A decorator: f(method, self, *args) in place of the method."
    def decorate(f):
        method = getattr(owner, name)
        changed = lambda self, *args, **kwargs: f(method, self, *args, **kwargs)
        setattr(owner, name, wraps(method)(changed))
    return decorate


def watch_updates(device) -> None:
    """No update waits for the device but the first of its kind, which makes tables; nor does
    drawing a batch once the lists of rows are made."""
    for name in ("v_step", "m_step", "c_step"):
        @around(learner.Learner, name)
        def step(method, self, *args, name=name):
            warm = self.__dict__.setdefault("seen", set())
            key = name, *args[1:]
            if key not in warm:
                warm.add(key)
                return method(self, *args)
            with device.no_waiting(f"a warm {name}"):
                return method(self, *args)
    for name in ("frames", "segments", "contexts"):
        @around(replay.ReplayBuffer, name)
        def draw(method, self, *args, name=name, **kwargs):
            self.lists()
            with device.no_waiting(f"replay.{name}"):
                return method(self, *args, **kwargs)
    for name in ("segments", "record"):
        @around(priorities.Priorities, name)
        def by_loss(method, self, *args, name=name):
            self.losses()
            with device.no_waiting(f"priorities.{name}"):
                return method(self, *args)


def at_most(device, before: Counter, n: int, what: str) -> None:
    "No more than so many copies and synchronisations since `before`."
    waits = device.waits - before
    if waits.total() > n:
        each = "; ".join(f"{where}: {wait}" for wait, where in waits)
        device.refuse(f"{waits.total()} copies and synchronisations in {what}, not {n}: {each}")


def watch_play(device) -> None:
    """A step of play copies observations and `reset` to the device and actions back; it asks
    once whether vectors are finite. No more."""
    @around(Policy, "__call__")
    def play(method, self, obs, reset):
        before = device.waits.copy()
        action = method(self, obs, reset)
        vectors = sum(m.kind == "vector" for m in self.agent.obs_spec.modalities)
        at_most(device, before, len(obs) + 2 + vectors, "a step of play")
        return action


class Here(contextlib.AbstractContextManager):
    "A pool of threads that works in this one: others know nothing of the device."

    def __init__(self, threads: int):
        pass

    def __exit__(self, *exception):
        pass

    def map(self, work, items):
        return map(work, items)


def watch_dreams(device) -> None:
    """A step of `DreamEnv` in which no dream ends copies actions to the device; rewards, ends
    and observations back. No more, but for the agent's first."""
    @around(DreamEnv, "step")
    def step(method, self, actions):
        before = device.waits.copy()
        goes_on = not self.over.any() and (self.age + 1 < self.horizon).all()
        warm, self.agent.dreamt = getattr(self.agent, "dreamt", False), True
        out = method(self, actions)
        if warm and goes_on:
            at_most(device, before, 3 + len(self.agent.obs_spec.modalities), "a step of DreamEnv")
        return out


def without_numbers() -> None:
    """What the library reads back of its own saves and draws would be zeros; here it is taken to
    be sound."""
    checkpoint.ThreadPoolExecutor = Here
    checkpoint.check_saved = lambda *args: None
    resume.is_stored = lambda *args: True
    film.whole_windows = lambda buffer, count, length, generator=None: buffer.segments(
        3, min(length, 5), generator=generator)


def stop_after(steps: int) -> None:
    "Ask for a stop during M's first stage."
    seen = [0]

    @around(learner.Learner, "m_step")
    def step(method, self, *args):
        seen[0] += 1
        if seen[0] == steps:
            interrupt.Signals.active.asked = True
        return method(self, *args)


def the_whole_agent(config, folder: Path) -> None:
    "Everything that a user does with a run."
    try:
        trainer.Trainer(config, folder, progress=False).train()
        raise AssertionError("the run was not stopped")
    except interrupt.Stopped:
        pass
    run = trainer.Trainer(None, folder, resume=True, progress=False)
    assert run.device.type == "cuda" and run.cursor.stage == "m"
    assert run.cursor.values[0]["loss"].is_cuda
    run.train()
    media = {p.name for p in (folder / "media").iterdir()}
    assert media >= {"curves.png", "dream.png", "dream.mp4", "dream-error.png"}
    again = trainer.Trainer(None, folder, resume=True, progress=False)
    assert again.train().result == run.result
    assert torch.equal(again.state.generator.get_state(), run.state.generator.get_state())

    agent = Agent.load(folder, device="cuda")
    assert all(p.is_cuda for p in agent.parameters()) and all(b.is_cuda for b in agent.buffers())
    world = env_maker(config, training=False)()
    obs, _ = world.reset(seed=0)
    for temperature in (1.0, 0.0):
        assert world.action_space.contains(agent.act(obs, temperature=temperature))
    for mode in ("NextStep", "SameStep"):
        env = DreamEnv(agent, run.replay, num_envs=3, horizon=3, autoreset_mode=mode)
        env.reset(seed=0)
        for _ in range(4):
            obs, *_ = env.step(env.action_space.sample())
        env.reset(options={"reset_mask": np.array([True, False, False])})
        env.close()
    agent.load_parts(folder).save(folder / "agent")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("world", choices=WORLDS)
    p.add_argument("--graphs", action="store_true", help="with recordings as CUDA graphs")
    a = p.parse_args()
    warnings.simplefilter("ignore")
    name, changes = WORLDS[a.world]
    # three before a recording, the recording, a replay
    updates = 5 if a.graphs else 2
    sizes = {"steps": updates, "batch": 4}
    steps = {f"train_{part}.{key}": n for part in "vmc" for key, n in sizes.items()}
    config = preset(name).change({**TOY, **steps, "graphs": a.graphs, **changes})
    with fake.fake_cuda() as device, tempfile.TemporaryDirectory() as folder:
        watch_updates(device)
        watch_play(device)
        watch_dreams(device)
        without_numbers()
        stop_after(updates - 1)
        the_whole_agent(config, Path(folder) / "run")
    waits = {f"{where}: {what}": n for (what, where), n in device.waits.most_common()}
    broken = [f"{where}: {rule}" for rule, where in device.broken]
    print(json.dumps({"broken": broken, "recordings": device.recorded,
                      "doubles": list(device.doubles), "waits": waits}))


if __name__ == "__main__":
    main()
