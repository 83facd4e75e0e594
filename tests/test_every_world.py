"""The whole agent, for two epochs at toy size, in every kind of world: collect, learn V, M and C,
evaluate, save, load, act."""
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces as gs

from simulus_nb.agent import Agent
from simulus_nb.config import preset
from simulus_nb.loop import judge, run_epoch
from simulus_nb.run_setup import env_maker, prepare

TOY = {
    "epochs": 2, "threads": 1, "device": "cpu", "learn_on": 0, "collect.steps": 24,
    "collect.capacity": 200, "collect.num_envs": 2, "tokenizer.image.image_size": 16,
    "tokenizer.image.channels": 8, "tokenizer.image.stages": 2, "tokenizer.image.code_dim": 8,
    "tokenizer.image.vocab": 16, "tokenizer.grid_patch": 2, "world_model.retnet.width": 16,
    "world_model.retnet.layers": 1, "controller.width": 16, "controller.channels": [8, 8],
    "controller.embedding": 8, "train_v.batch": 4, "train_v.steps": 1, "train_v.start": 0,
    "train_m.batch": 4, "train_m.segment": 4, "train_m.steps": 2, "train_m.start": 0,
    "train_c.batch": 4, "train_c.burn_in": 2, "train_c.horizon": 3, "train_c.steps": 1,
    "train_c.start": 0, "train_c.scale_window": 2, "evaluation.episodes": 2,
    "evaluation.num_envs": 2
}


class Everything(gymnasium.Env):
    "Every kind of observation at once, nested; a factored action."
    observation_space = gs.Dict(
        {
            "camera": gs.Box(0, 255, (20, 24, 3), np.uint8),
            "grey": gs.Box(0, 255, (16, 16), np.uint8),
            "note": gs.Text(8),
            "body": gs.Dict(
                {
                    "pose": gs.Box(-np.inf, np.inf, (2, 2), np.float64),
                    "gear": gs.Discrete(3, start=-1)
                }
            ),
            "rest": gs.Tuple(
                (
                    gs.MultiDiscrete([2, 5]),
                    gs.MultiBinary(3),
                    gs.Box(
                        np.zeros((3, 5, 2), np.int8), np.full((3, 5, 2), [3, 1], np.int8),
                        dtype=np.int8
                    ),
                )
            ),
        }
    )
    action_space = gs.MultiDiscrete([3, 2, 4], start=[-1, 0, 1])
    left = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.left = int(self.np_random.integers(2, 9))
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.left -= 1
        return self.observation_space.sample(), float(action[0]), self.left == 0, self.left == 4, {}


gymnasium.register("tests/Everything-v0", entry_point=Everything)


def newest(name):
    "The highest version of a Gymnasium environment that is registered."
    versions = [
        s.version for s in gymnasium.registry.values() if s.namespace is None and s.name == name
    ]
    return f"{name}-v{max(versions)}"


WORLDS = {  # id: (what its tokens are, settings of its own)
    newest("CartPole"): ("vector", {}),
    newest("Pendulum"): ("vector", {}),
    newest("Acrobot"): ("vector", {}),
    newest("MountainCarContinuous"): ("vector", {}),
    newest("FrozenLake"): ("categorical", {}),
    newest("Taxi"): ("categorical", {}),
    newest("Blackjack"): ("categorical", {}),
    newest("CliffWalking"): ("categorical", {}),
    "MiniGrid-DoorKey-5x5-v0": ("categorical grid", {}),
    "MinAtar/SpaceInvaders-v1": ("grid", {}),
    "dm_control/cartpole-balance-v0": (
        "vector", {"env_options": {"action_repeat": 2, "max_episode_steps": 40}}
    ),
    "dm_control/walker-walk-v0": (
        "vector", {"env_options": {"action_repeat": 2, "max_episode_steps": 40}}
    ),
    "ALE/Breakout-v5": ("image", {"env_options": {"max_episode_steps": 40}}),
    "simulus/Parcels-v0": ("categorical image vector", {}),
    "simulus/Memory-v0": ("categorical", {}),
    "simulus/Rooms-v0": ("grid", {}),
    "tests/Everything-v0": ("categorical grid image vector", {"obs_kinds": {"note": "drop"}}),
}


@pytest.mark.parametrize("env", WORLDS)
def test_the_whole_agent(env, tmp_path):
    for start, module in (
        ("MiniGrid", "minigrid"), ("MinAtar", "minatar"), ("dm_control", "dm_control")
    ):
        if env.startswith(start):
            pytest.importorskip(module)
    kinds, own = WORLDS[env]
    config = preset("small").change(
        {
            **TOY,
            "env": env,
            **(
                {"env_options": {"max_episode_steps": 40}}
                if own.get("env_options") is None and env != "tests/Everything-v0"
                else {}
            ),
            **own,
        }
    )
    run = prepare(config)
    agent = run.agent
    assert {m.kind for m in agent.obs_spec.modalities} == set(kinds.split())
    before = {name: [p.clone() for p in part.parameters()] for name, part in agent.named_children()}
    records = [run_epoch(run) for _ in range(2)]
    assert all(np.isfinite(v) for r in records for v in r.values())
    moved = {
        name: any(not torch.equal(p, q) for p, q in zip(before[name], part.parameters()))
        for name, part in agent.named_children()
    }
    # only pictures have a V to learn
    assert moved == {"tokenizer": "image" in kinds, "world_model": True, "controller": True}
    assert run.env_steps == 48 == run.replay.steps
    several = len(agent.obs_spec.modalities) > 1
    assert {k for k in records[-1] if k.startswith("m/obs/")} == (
        {f"m/obs/{m.key}" for m in agent.obs_spec.modalities} if several else set()
    )

    result = judge(run)
    assert len(result.returns) == 2 and min(result.lengths) >= 1
    agent.save(tmp_path)
    loaded = Agent.load(tmp_path)
    world = env_maker(config, training=False)()
    obs, _ = world.reset(seed=1)
    for t in range(3):
        action = agent.act(obs, temperature=0)
        assert np.array_equal(
            action, loaded.act(obs, temperature=0)
        ) and world.action_space.contains(action)
        obs, _, terminated, truncated, _ = world.step(action)
        if terminated or truncated:
            break
    world.close()


def test_a_world_of_the_users_own(tmp_path, monkeypatch, capsys):
    """From the command line, by module and id, with a key that is no observation dropped; without
    writing code for this library."""
    from simulus_nb.cli import main
    (tmp_path / "lamp_package.py").write_text('''
import gymnasium, numpy as np
from gymnasium import spaces
class Lamp(gymnasium.Env):
    observation_space = spaces.Dict({"light": spaces.Box(0.0, 9.0, (2,)), "label": spaces.Text(5)})
    action_space = spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed); self.t = 0
        return {"light": np.ones(2, np.float32), "label": "x"}, {}
    def step(self, action):
        self.t += 1
        obs = {"light": np.full(2, self.t, np.float32), "label": "y"}
        return obs, float(action), self.t == 5, False, {}
gymnasium.register("Lamp-v0", entry_point=Lamp)
''')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    line = ["train", "--env", "lamp_package:Lamp-v0"]
    for name, value in TOY.items():
        values = value if isinstance(value, list) else [value]
        line += [f"--{name.replace('_', '-')}", *map(str, values)]
    assert main(line) != 0                      # text has no tokens, and the line says what to do
    said = capsys.readouterr().err
    assert "label" in said and "--obs-kinds" in said and "Traceback" not in said
    assert main([*line, "--obs-kinds", "label", "drop"]) == 0
    assert (tmp_path / "runs/lamp_package-Lamp-v0-seed0/evaluation.json").exists()
