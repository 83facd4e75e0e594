"""Random worlds for the soak, each made from its seed alone: any space that Gymnasium can declare,
any action, one thing that is wrong with it or none, and a renderer of any oddity."""
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import gymnasium
import numpy as np
from gymnasium import spaces as gs
from PIL import Image

KEYS = ["a", "b", "a/b", "x y", "pose", "it's", "0", "ключ"]


# ------------------------------------------------------------ spaces

def number_box(rng: random.Random) -> gs.Box:
    "Real numbers, bounded or not."
    low = rng.choice([-np.inf, -1.0, 0.0, -50.0])
    high = rng.choice([np.inf, 1.0, 3.0, 1e4])
    shape = tuple(rng.randint(1, 3) for _ in range(rng.randint(0, 2)))
    return gs.Box(low, high, shape, rng.choice([np.float16, np.float32, np.float64]))


def whole_box(rng: random.Random) -> gs.Box:
    "Small whole numbers: categories, or a map where the shape has two or three sides."
    first, shape = rng.choice([0, 1, -3]), [rng.randint(1, 4) for _ in range(rng.randint(1, 3))]
    dtype = rng.choice([np.int8, np.int32, np.int64])
    return gs.Box(first, first + rng.randint(1, 5), tuple(shape), dtype)


def picture(rng: random.Random) -> gs.Box:
    "Grey or coloured, of any two sides."
    sides = (rng.randint(8, 24), rng.randint(8, 24))
    return gs.Box(0, 255, (*sides, *rng.choice([(), (1,), (3,), (3,)])), np.uint8)


def categories(rng: random.Random) -> gs.MultiDiscrete:
    "Several in a row, or a map of them."
    shape = rng.choice([(2,), (3,), (5,), (3, 3), (4, 3, 2)])
    return gs.MultiDiscrete(np.random.default_rng(rng.randint(0, 999)).integers(1, 6, shape))


LEAVES = [
    number_box, whole_box, picture, categories, picture,
    lambda rng: gs.Discrete(rng.randint(1, 9), start=rng.choice([0, 1, -5, 10**9])),
    lambda rng: gs.MultiBinary(rng.choice([1, 3, 6, (2, 3)])),
    lambda rng: gs.Box(0, 255, (rng.choice([8, 16]),), np.uint8),       # a memory
]
STRANGE = [                             # refused in one line, or read otherwise with --obs-kinds
    lambda rng: gs.Text(5),
    lambda rng: gs.Sequence(gs.Discrete(2)),
    lambda rng: gs.Graph(gs.Box(0, 1), None),
    lambda rng: gs.OneOf([gs.Discrete(2), gs.Discrete(3)]),
    lambda rng: gs.Box(-1, 1, (40, 40), np.float32),                    # too many numbers
    lambda rng: gs.Box(0, 255, (3, 24, 24), np.uint8),                  # colour first
    lambda rng: gs.Box(0, 1, (24, 24, 3), np.float32),                  # a picture in numbers
    lambda rng: gs.Box(0, 2**40, (2,), np.int64),
    lambda rng: gs.Box(0, 1, (0,), np.float32),
]


def observations(
    rng: random.Random,
    strange: float = 0.0,               # share of leaves that are odd
    depth: int = 2,                     # Dicts and Tuples within each other
    usual: list = LEAVES,
) -> gs.Space:
    "A leaf, or a Dict or Tuple of such spaces."
    if depth and rng.random() < 0.45:
        named = rng.random() < 0.7
        if not named and not strange:                           # pictures there are not resized
            usual = [leaf for leaf in usual if leaf is not picture]
        children = [observations(rng, strange, depth - 1, usual) for _ in range(rng.randint(1, 3))]
        return gs.Dict(dict(zip(rng.sample(KEYS, len(children)), children))) if named \
            else gs.Tuple(children)
    return rng.choice(STRANGE if rng.random() < strange else usual)(rng)


def actions(rng: random.Random, strange: float = 0.0) -> gs.Space:
    "One choice, several, or numbers."
    if rng.random() < strange:
        return rng.choice([gs.Dict({"a": gs.Discrete(2)}), gs.Box(-np.inf, np.inf, (1,)),
                           gs.Text(3), gs.Box(0, 5, (2,), np.int64), gs.Box(1, 1, (2,))])
    return rng.choice([
        gs.Discrete(rng.randint(1, 5), start=rng.choice([0, 0, -2, 7])),
        gs.MultiDiscrete([rng.randint(1, 4) for _ in range(rng.randint(1, 3))]),
        gs.MultiBinary(rng.randint(1, 3)),
        gs.Box(-1, 1, (rng.randint(1, 2),), rng.choice([np.float32, np.float64]))])


# ------------------------------------------------------------ what can be wrong

@dataclass(frozen=True)
class Fault:
    "One way to misbehave."
    where: str                          # step, reset, init or close
    act: Callable                       # (world, what it should return) -> what it does return
    wanted: str                         # a key of WANTED

WANTED = {  # exit codes that are right
    "own": (1,),                        # an error of the world's own: named, with its traceback
    "contract": (2,),                   # a wrong return: one line that names the world
    "either": (1, 2),
    "fine": (0,),                       # harmless: the run is the same as without it
    "any": (0, 1, 2),                   # repaired or refused
    "interrupt": (1, 130),
    "dead": (5,),
}


class Unprintable(Exception):
    "An error that fails when it is printed."

    def __str__(self):
        raise RuntimeError("no words")


def raises(kind: type, *facts) -> Callable:
    "A fault that raises."
    def act(world, *out):
        raise kind(*facts)
    return act


def gives(**changed) -> Callable:
    "A step with some of its five values replaced; a function gets the right one."
    def act(world, *out):
        names = ("obs", "reward", "terminated", "truncated", "info")
        new = [changed.get(name, value) for name, value in zip(names, out)]
        return tuple(x(value) if callable(x) else x for x, value in zip(new, out))
    return act


def leaves(obs, change: Callable):
    "An observation with its arrays changed."
    if isinstance(obs, dict):
        return {k: leaves(x, change) for k, x in obs.items()}
    return tuple(leaves(x, change) for x in obs) if isinstance(obs, tuple) else change(obs)


def wide(x):
    "An array of another shape."
    return np.zeros((*np.shape(x), 2), np.asarray(x).dtype)


def lie(world, obs, reward, terminated, truncated, info):
    "Scores that the library did not count."
    mine = {"episode_return": 1e9, "episode_length": -3, "_episode_return": True, "final_obs": 3}
    return obs, reward, terminated, truncated, mine


FAULTS = {
    "raises": Fault("step", raises(RuntimeError, "the simulator crashed\nin two lines"), "own"),
    "raises without a word": Fault("step", raises(AssertionError), "own"),
    "raises KeyError": Fault("step", raises(KeyError, "door"), "own"),
    "raises TypeError": Fault("step", raises(TypeError, "unsupported operand"), "own"),
    "raises StopIteration": Fault("step", raises(StopIteration), "own"),
    "raises MemoryError": Fault("step", raises(MemoryError), "own"),
    "raises RecursionError": Fault("step", raises(RecursionError, "too deep"), "own"),
    "raises Unprintable": Fault("step", raises(Unprintable), "own"),
    "reads what is not there": Fault("step", lambda w, *out: open("assets/level.txt"), "own"),
    "may not read": Fault("step", raises(PermissionError, 13, "Permission denied"), "own"),
    "its disk is full": Fault("step", raises(OSError, 28, "No space left on device"), "own"),
    "its simulator died": Fault("step", raises(BrokenPipeError, 32, "Broken pipe"), "own"),
    "its line broke": Fault("step", raises(ConnectionResetError, 104, "reset by peer"), "own"),
    "its line ended": Fault("step", raises(EOFError), "own"),
    "wants to exit": Fault("step", raises(SystemExit, 3), "either"),
    "wants to exit well": Fault("step", raises(SystemExit), "either"),
    "interrupts": Fault("step", raises(KeyboardInterrupt), "interrupt"),
    "ends the process": Fault("step", lambda w, *out: os._exit(5), "dead"),
    "gives nothing": Fault("step", lambda w, *out: None, "contract"),
    "gives four": Fault("step", lambda w, *out: (*out[:3], out[4]), "contract"),
    "gives six": Fault("step", lambda w, *out: (*out, 0), "contract"),
    "no observation": Fault("step", gives(obs=lambda x: None), "contract"),
    "wrong shape": Fault("step", gives(obs=lambda x: leaves(x, wide)), "contract"),
    "text for arrays": Fault("step", gives(obs=lambda x: leaves(x, lambda a: "x")), "contract"),
    "another structure": Fault("step", gives(obs=lambda x: {"other": x}), "contract"),
    "lists for arrays": Fault("step", gives(
        obs=lambda x: leaves(x, lambda a: np.asarray(a).tolist())), "any"),
    "no reward": Fault("step", gives(reward=lambda x: None), "contract"),
    "NaN for a reward": Fault("step", gives(reward=float("nan")), "contract"),
    "endless reward": Fault("step", gives(reward=float("-inf")), "contract"),
    "text for a reward": Fault("step", gives(reward="much"), "contract"),
    "two rewards": Fault("step", gives(reward=lambda x: np.array([x, x])), "contract"),
    "reward of shape (1,)": Fault("step", gives(reward=lambda x: np.array([x])), "any"),
    "complex reward": Fault("step", gives(reward=1 + 1j), "contract"),
    "float32 reward": Fault("step", gives(reward=np.float32), "fine"),
    "text for done": Fault("step", gives(terminated="False"), "contract"),
    "NaN for done": Fault("step", gives(truncated=float("nan")), "contract"),
    "None for done": Fault("step", gives(terminated=lambda x: None), "any"),
    "numpy's bool": Fault("step", gives(terminated=np.bool_, truncated=np.bool_), "fine"),
    "whole numbers for bool": Fault("step", gives(terminated=int, truncated=int), "any"),
    "no info": Fault("step", gives(info=lambda x: None), "any"),
    "lies in info": Fault("step", lie, "fine"),
    "talks nonsense in info": Fault("step", gives(
        info=lambda x: {"episode_return": "x", "episode_length": None}), "fine"),
    "prints": Fault("step", lambda w, *out: print("debug", flush=True) or out, "fine"),
    "slow": Fault("step", lambda w, *out: time.sleep(0.003) or out, "fine"),
    "reset raises": Fault("reset", raises(RuntimeError, "no level left"), "own"),
    "reset gives the observation": Fault("reset", lambda w, obs, info: obs, "contract"),
    "reset gives nothing": Fault("reset", lambda w, *out: None, "contract"),
    "reset gives three": Fault("reset", lambda w, *out: (*out, 1), "contract"),
    "cannot be made": Fault("init", raises(RuntimeError, "no display"), "own"),
    "cannot be made, TypeError": Fault("init", raises(TypeError, "NoneType + int"), "own"),
    "close raises": Fault("close", raises(RuntimeError, "it is closed already"), "any"),
    "never ends": Fault("step", gives(terminated=False, truncated=False), "any"),
}


# ------------------------------------------------------------ renderers

def grown(world) -> np.ndarray:
    "A frame that is larger each time."
    world.drawn = getattr(world, "drawn", 16) + 3
    return np.zeros((world.drawn, world.drawn, 3), np.uint8)


def frame(*shape: int, dtype=np.uint8) -> Callable:
    "A renderer of one grey frame."
    return lambda world: np.full(shape, 0.5 if np.issubdtype(dtype, np.floating) else 90, dtype)


RGB = {"render_modes": ["rgb_array"], "render_fps": 10}
RENDERERS = {   # name: (metadata, frame of a world)
    "plain": (RGB, frame(32, 48, 3)),
    "no fps": ({**RGB, "render_fps": None}, frame(32, 32, 3)),
    "fps in words": ({**RGB, "render_fps": "many"}, frame(32, 32, 3)),
    "fps 0": ({**RGB, "render_fps": 0}, frame(32, 32, 3)),
    "fps below 0": ({**RGB, "render_fps": -5}, frame(32, 32, 3)),
    "fps nan": ({**RGB, "render_fps": float("nan")}, frame(32, 32, 3)),
    "modes None": ({"render_modes": None}, frame(32, 32, 3)),
    "no metadata": ({}, frame(32, 32, 3)),
    "metadata None": (None, frame(32, 32, 3)),
    "no frame": (RGB, lambda world: None),
    "PIL": (RGB, lambda world: Image.new("RGB", (32, 24))),
    "channels first": (RGB, frame(3, 32, 32)),
    "growing": (RGB, grown),
    "grey": (RGB, frame(32, 32)),
    "grey, one channel": (RGB, frame(32, 32, 1)),
    "with alpha": (RGB, frame(32, 32, 4)),
    "floats": (RGB, frame(32, 32, 3, dtype=np.float32)),
    "list": (RGB, lambda world: [np.zeros((16, 16, 3), np.uint8)] * 2),
    "text": (RGB, lambda world: "+--+\n|  |"),
    "one pixel": (RGB, frame(1, 1, 3)),
    "odd sides": (RGB, frame(17, 33, 3)),
    "no pixel": (RGB, frame(0, 0, 3)),
    "raises": (RGB, raises(RuntimeError, "no display")),
    "draws random numbers": (RGB, lambda w: w.np_random.integers(0, 255, (8, 8, 3), np.uint8)),
}


# ------------------------------------------------------------ the world

class World(gymnasium.Env):
    "Observations from its space, rewards by chance and by action, episodes of a few steps."
    origin, strange, fault, after, taken = 0, 0.0, "", 0, 0

    def __init__(self, render_mode: str | None = None):
        rng = random.Random(self.origin)
        self.observation_space = observations(rng, self.strange)
        self.action_space = actions(rng, self.strange / 2)
        self.longest, self.render_mode = rng.randint(1, 9), render_mode
        self.meet("init")

    def meet(self, where: str, *out):
        "What is returned there, unless the fault's time has come: after so many calls of it."
        fault = FAULTS.get(self.fault)
        if fault is None or fault.where != where:
            return out
        type(self).taken += 1
        if self.taken <= self.after:
            return out
        self.tell()
        return fault.act(self, *out)

    def tell(self) -> None:
        "Called when the world misbehaves."

    def observe(self):
        "Space and world share their random numbers."
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, self.longest + 1))
        return self.meet("reset", self.observe(), {})

    def step(self, action):
        if not self.action_space.contains(action):
            raise AssertionError(f"the agent's action {action!r} is not in {self.action_space}")
        self.left -= 1
        reward = float(self.np_random.integers(-1, 2)) + float(np.sum(np.abs(action)) > 1)
        ended, cut = self.left == 0, self.left == 0 and bool(self.np_random.integers(2))
        return self.meet("step", self.observe(), reward, ended and not cut, cut, {})

    def render(self):
        return RENDERERS[self.renderer][1](self)

    def close(self):
        self.meet("close")


class Undrawn(World):
    "Its constructor takes nothing."

    def __init__(self):
        super().__init__()


def world_class(
    seed: int,
    strange: float = 0.0,               # share of odd spaces
    fault: str = "",                    # a key of FAULTS
    after: int = 0,                     # calls that go well before it shows
    renderer: str = "plain",            # a key of RENDERERS
    takes_render_mode: bool = True,
) -> type[World]:
    "The class of a random world; the same arguments give the same world in every process."
    how = dict(origin=seed, strange=strange, fault=fault, after=after, renderer=renderer)
    base = World if takes_render_mode else Undrawn
    return type("RandomWorld", (base,), how | {"metadata": RENDERERS[renderer][0]})
