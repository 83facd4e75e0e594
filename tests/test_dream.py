"""Dreams: a perfect model dreams the truth, drift follows its formula, pictures say what is
imagined, DreamEnv is a Gymnasium environment."""
import json
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from gymnasium import spaces as gs
from gymnasium.error import ClosedEnvironmentError, ResetNeeded
from gymnasium.utils import env_checker, passive_env_checker
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space, iterate
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from hypothesis import given, settings
from hypothesis import strategies as st

from simulus_nb import dream
from simulus_nb.agent import Agent
from simulus_nb.catch import Catch
from simulus_nb.cli import parse
from simulus_nb.collect import Collector
from simulus_nb.config import flat
from simulus_nb.controller import ControllerConfig, sample_categorical
from simulus_nb.dream import DreamEnv, action_space, observation_space, raw_observation
from simulus_nb.evaluate import RandomAgent, evaluate
from simulus_nb.film import (
    CONTEXT, IMAGINED, dream_media, dream_video, error_figure, error_picture, film_strip,
    picture
)
from simulus_nb.imagination import dream_step, imagine
from simulus_nb.open_loop import difference, error_curves, open_loop, token_accuracy, whole_windows
from simulus_nb.replay import ReplayBuffer, Segment
from simulus_nb.retnet import RetNetConfig
from simulus_nb.spaces import ActionSpec, Modality, ObsSpec, UserError
from simulus_nb.tokenizer import MultiModalTokenizer, TokenizerConfig
from simulus_nb.vqvae import VQVAEConfig
from simulus_nb.world_model import Prediction, WorldModelConfig

SETTINGS = settings(deadline=None, max_examples=20)
SIZES = dict(
    tokenizer=TokenizerConfig(
        VQVAEConfig(image_size=16, channels=8, stages=2, code_dim=8, vocab=16, perceptual="none")
    ),
    world_model=WorldModelConfig(RetNetConfig(width=16, heads=2, layers=2, dropout=0.0)),
    controller=ControllerConfig(width=8, channels=(8, 8), embedding=8),
)
MIXED = gs.Dict(
    {
        "eye": gs.Box(0, 255, (16, 16, 3), np.uint8), "arm": gs.Box(-9, 9, (3,), np.float32),
        "inside": gs.Tuple((gs.Discrete(4, start=1), gs.Box(0, 2, (3, 4, 2), np.int64)))
    }
)


class Mixed(gymnasium.Env):
    "Random observations of every kind; the episode ends after seven steps, or three."
    observation_space, action_space = MIXED, gs.MultiDiscrete([3, 2])
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.end = 0, int(self.np_random.choice([3, 7]))
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}
    def step(self, action):
        self.t += 1
        return self.observation_space.sample(), float(action[0]), self.t == self.end, False, {}


def small_catch():
    return Catch(rows=6, cols=4, size=16)


def world(make=small_catch, steps=120, seed=0, num_envs=2, sequence="retnet"):
    "An untrained agent and a replay of random play."
    env = make()
    specs = ObsSpec.from_space(env.observation_space), ActionSpec.from_space(env.action_space)
    torch.manual_seed(seed)
    model = replace(SIZES["world_model"], sequence=sequence)
    agent = Agent(*specs, **SIZES | {"world_model": model}).eval()
    # livelier than a fresh model: its answers depend on what it saw
    for p in agent.world_model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.3)
    for p in agent.controller.actor.parameters():
        torch.nn.init.normal_(p)
    replay = ReplayBuffer(1_000, specs[0], specs[1].count, agent.tokenizer.layout.S, num_envs)
    policy = RandomAgent(*specs).policy(num_envs, generator=torch.Generator().manual_seed(seed))
    for i, rows in enumerate(
        Collector([make] * num_envs, *specs, seed=seed).collect(policy, steps)[0]
    ):
        replay.extend(i, rows)
    replay.set_tokens(replay.filled(), agent.tokenizer.encode(replay.gather_obs(replay.filled())))
    return agent, replay


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class Clock:
    "Perfect but for probability eps, with which its hand points anywhere."
    reward = SimpleNamespace(decode=lambda logits: logits)
    def __init__(self, n, eps):
        spec = ObsSpec((Modality("hand", "categorical", (1,), (n,)),))
        self.n, self.eps, self.tokenizer = n, eps, MultiModalTokenizer(spec)
        self.layout, self.world_model = self.tokenizer.layout, self
    def remember(self, z, action, mask=None):
        return torch.zeros(1, len(z))
    def __call__(self, z, action, state=None, mask=None, first=1):
        after = ((z + action) % self.n)[:, first - 1:]
        p = (1 - self.eps) * torch.nn.functional.one_hot(after, self.n).double() + self.eps / self.n
        return Prediction(
            {"hand": p.log()[..., None, :]}, after[..., 0].double(),
            100 * (after[..., 0] == 0).double() - 50
        ), torch.zeros(1, len(z))


def clock_segment(n, B, T, seed):
    g = generator(seed)
    action = torch.randint(3, (B, T, 1), generator=g)
    z = torch.cat([torch.randint(n, (B, 1, 1), generator=g), action[:, :-1]], 1).cumsum(1) % n
    after = (z + action)[..., 0] % n
    return Segment(
        z, action, after.float(), after == 0, torch.ones(B, T, dtype=torch.bool),
        torch.zeros(B, T, dtype=torch.long)
    )


@SETTINGS
@given(st.integers(2, 9), st.integers(2, 8), st.data())
def test_a_perfect_model_dreams_the_truth(n, T, data):
    context = data.draw(st.integers(1, T - 1))
    s = clock_segment(n, 4, T, T)
    loop = open_loop(Clock(n, 0.0), s, context)
    assert torch.equal(loop.dream, s.z) and torch.equal(loop.forced, s.z)
    assert (
        torch.equal(loop.obs["dream"]["hand"], s.z)
        and (loop.error()["hand"] == 0).all()
        and (loop.drift() == 0).all()
    )
    assert torch.equal(loop.reward.float(), loop.real_reward) and torch.equal(
        loop.done > 0.5, loop.real_done
    )
    assert (
        loop.counts.all() and loop.accuracy.min() == 1 and loop.accuracy.shape == (4, T - context)
    )


@pytest.mark.parametrize("n, eps", [(2, 0.3), (7, 0.1), (12, 0.5)])
def test_drift_of_a_clock_has_its_closed_form(n, eps):
    loop = open_loop(Clock(n, eps), clock_segment(n, 20_000, 9, 1), 2, generator(1))
    k = torch.arange(1, 8)
    expected = 1 / n + (1 - 1 / n) * (1 - eps) ** k
    assert (loop.mean(loop.accuracy) - expected).abs().max() < 0.015
    assert (loop.mean(1 - loop.error()["hand"]) - expected).abs().max() < 0.02
    assert torch.allclose(loop.forced_accuracy, torch.tensor(1 - eps + eps / n).double())
    assert loop.drift()[0] == 0 and (loop.drift()[2:] > 0).all()


@SETTINGS
@given(st.sampled_from([small_catch, Mixed]), st.integers(1, 5), st.integers(0, 10**6))
def test_first_step_is_teacher_forced_and_the_past_is_kept(make, context, seed):
    agent, replay = world(make)
    agent.double()
    s = replay.segments(3, 6, 1, generator(seed))
    loop = open_loop(agent, s, context, generator(seed))
    keep = loop.counts[:, 0]
    assert torch.allclose(loop.accuracy[keep, 0], loop.forced_accuracy[keep, 0], rtol=1e-9)
    assert torch.equal(
        loop.dream[keep, : context + 1], loop.forced[keep, : context + 1]
    ) and torch.equal(loop.dream[:, :context], s.z[:, :context])
    # the dream never looks at what really came after its context
    changed = Segment(**vars(s) | {"z": s.z.clone()})
    changed.z[:, context:] = torch.randint(
        3, changed.z[:, context:].shape, generator=generator(seed)
    )
    other = open_loop(agent, changed, context, generator(seed))
    assert torch.equal(other.dream[:, context:], loop.dream[:, context:]) and torch.equal(
        other.reward, loop.reward
    )


def test_teacher_forced_accuracy_is_that_of_single_steps():
    agent, replay = world(Mixed)
    agent.double()
    s = whole_windows(replay, 3, 5, generator())
    loop = open_loop(agent, s, 2)
    for p, t in enumerate((2, 3, 4)):
        answer, _ = agent.world_model(s.z[:, :t], s.action[:, :t], first=t)
        assert torch.allclose(
            token_accuracy(agent.tokenizer.layout, answer, s.z[:, t : t + 1])[:, 0],
            loop.forced_accuracy[:, p], rtol=1e-9
        )


def test_actions_steer_the_dream_and_seeds_fix_it():
    agent, replay = world()
    s = whole_windows(replay, 8, 6, generator())
    a, b, c = (open_loop(agent, s, 1, generator(i)) for i in (0, 0, 1))
    assert torch.equal(a.dream, b.dream) and not torch.equal(a.dream, c.dream)
    # the default is seed 0, not the global generator
    assert torch.equal(open_loop(agent, s, 1).dream, a.dream)
    turned = Segment(**vars(s) | {"action": 2 - s.action})
    assert not torch.equal(open_loop(agent, turned, 1, generator()).reward, a.reward)


def test_padding_does_not_count():
    agent, replay = world(Mixed)
    s = whole_windows(replay, 30, 12, generator())
    # trimmed to the longest; the fullest first
    assert s.mask.shape[1] == 8 and not s.mask.all() and s.mask[0].all()
    loop = open_loop(agent, s, 2)
    assert torch.equal(loop.counts, s.mask[:, 2:])
    assert torch.allclose(loop.mean(loop.reward)[-1], loop.reward[s.mask[:, -1], -1].mean())
    with pytest.raises(UserError, match="1 <= context < 8"):
        open_loop(agent, s, 8)


def test_distance_by_kind():
    image, vector, grid = (
        Modality("i", "image", (2, 2, 3)), Modality("v", "vector", (2,)),
        Modality("g", "grid", (1, 2, 2), (3, 3))
    )
    a, b = torch.zeros(2, 2, 3, dtype=torch.uint8), torch.full((2, 2, 3), 51, dtype=torch.uint8)
    assert torch.allclose(difference(image, a, b), torch.tensor(0.2)) and torch.equal(
        difference(image, a, b), difference(image, b, a)
    )
    assert torch.allclose(
        difference(vector, torch.tensor([np.e - 1, 1 - np.e]), torch.zeros(2)), torch.ones(2)
    )
    assert difference(
        grid, torch.tensor([[[0, 1], [2, 2]]]), torch.tensor([[[0, 2], [2, 2]]])
    ).flatten().tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    "m, x",
    [
        (Modality("i", "image", (8, 8, 1)), np.arange(64).reshape(8, 8, 1).astype(np.uint8)),
        (Modality("i", "image", (10, 8, 4)), np.zeros((10, 8, 4), np.uint8)),
        (Modality("v", "vector", (5,)), np.array([1, -2, 0, 300, -4], np.float32)),
        (Modality("v", "vector", (300,)), np.ones(300, np.float32)),
        (Modality("c", "categorical", (6,), (9,) * 6), np.arange(6)),
        (Modality("g", "grid", (3, 4, 2), (5, 7)), np.ones((3, 4, 2), np.int16))
    ],
)
def test_every_kind_has_a_picture(m, x):
    y = picture(m, x, x, 64)
    assert y.dtype == np.uint8 and y.ndim == 3 and y.shape[2] == 3 and 40 <= max(y.shape[:2]) <= 96
    other = x.copy()
    other[..., 0] = (other[..., 0] + 1) % 5 if m.kind != "image" else 90
    assert not np.array_equal(picture(m, other, x, 64), picture(m, x, x, 64))
    assert (error_picture(m, other, x, 64) != error_picture(m, x, x, 64)).any()


@pytest.mark.parametrize("make, rows", [(small_catch, 4), (Mixed, 4 + 4 + 3 + 3)])
def test_film_strip_borders_and_captions(make, rows):
    agent, replay = world(make)
    s = whole_windows(replay, 2, 6, generator())
    real, loop = replay.gather_obs(s.index), open_loop(agent, s, 2)
    figure = film_strip(loop, real, row=1)
    axes = np.array(figure.axes).reshape(rows, 6)
    edge = [
        [tuple(round(255 * v) for v in ax.spines["left"].get_edgecolor()[:3]) for ax in line]
        for line in axes
    ]
    for line, labels in zip(edge, [ax.get_ylabel() for ax in axes[:, 0]]):
        made_up = labels.endswith(("dream", "|error|"))
        assert line == [CONTEXT] * 2 + [IMAGINED if made_up else CONTEXT] * 4
    assert [ax.get_title() for ax in axes[0]] == list("123456") and axes[
        -1, 1
    ].get_xlabel().startswith("given")
    assert (
        f"r {loop.reward[1, 0]:.2f}"[-4:] in axes[-1, 2].get_xlabel()
        and f"end {loop.done[1, 3]:.2f}" in axes[-1, 5].get_xlabel()
    )


def test_film_stops_where_the_episode_does():
    agent, replay = world(Mixed)
    s = whole_windows(replay, 30, 12, generator())
    row = int(s.mask.sum(1).argmin())
    assert len(
        film_strip(open_loop(agent, s, 2), replay.gather_obs(s.index), row).axes
    ) == 14 * int(s.mask[row].sum())


@pytest.mark.parametrize("make", [small_catch, Mixed])
def test_video_is_readable_and_small(tmp_path, make):
    agent, replay = world(make)
    s = whole_windows(replay, 2, 6, generator())
    path = dream_video(
        open_loop(agent, s, 2), replay.gather_obs(s.index), tmp_path / "x.mp4", fps=4
    )
    frames = imageio.mimread(path, format="FFMPEG")
    assert len(frames) == 2 * (6 + 2) and path.stat().st_size < 1_000_000
    height, width, _ = frames[0].shape
    assert height % 16 == width % 16 == 0
    def most(frame, colour):
        return (np.abs(frame.astype(int) - colour).max(-1) < 50).sum()
    assert most(frames[0], IMAGINED) < most(frames[3], IMAGINED) / 5 and most(
        frames[0], CONTEXT
    ) > 1.5 * most(frames[3], CONTEXT)


@pytest.mark.parametrize("make, steps", [(small_catch, 60), (Mixed, 60), (small_catch, 3)])
def test_media(tmp_path, make, steps):
    agent, replay = world(make, steps=steps)
    before, state = {k: v.clone() for k, v in agent.state_dict().items()}, torch.get_rng_state()
    files = dream_media(agent, replay, tmp_path / "media", dreams=2)
    assert {p.name for p in files.values()} == {
        "dream.png", "dream.mp4", "dream-error.png"
    } and all(0 < p.stat().st_size < 1_000_000 for p in files.values())
    # only looks
    assert torch.equal(state, torch.get_rng_state()) and all(
        torch.equal(before[k], v) for k, v in agent.state_dict().items()
    )


def test_media_encodes_afresh(tmp_path):
    agent, replay = world()
    files = dream_media(agent, replay, tmp_path / "a", dreams=1)
    replay.tokens.zero_()                                      # as if V had learnt since
    torch.manual_seed(7)                                       # and the global dice do not matter
    assert (
        dream_media(agent, replay, tmp_path / "b", dreams=1)["film"].read_bytes()
        == files["film"].read_bytes()
    )


def test_media_needs_two_observations(tmp_path):
    agent, replay = world(steps=2)                             # one row for each environment
    with pytest.raises(UserError, match="two observations"):
        dream_media(agent, replay, tmp_path)


@SETTINGS
@given(st.integers(1, 6), st.integers(2, 12), st.integers(0, 10**6))
def test_whole_windows_are_different_and_in_one_episode(count, length, seed):
    _, replay = world(Mixed)
    s = whole_windows(replay, count, length, generator(seed))
    assert (
        1 <= len(s.z) <= count
        and len(s.index[:, 0].unique()) == len(s.z)
        and s.mask[:, 0].all()
        and s.mask[0].all()
    )
    assert s.mask.shape[1] == min(length, 8)
    assert (s.mask[:, 1:] <= s.mask[:, :-1]).all()             # padding only at the end
    for index, mask in zip(s.index, s.mask):
        assert (
            len(replay.start[index[mask]].unique()) == 1
            and (replay.position[index[mask]].diff() == 1).all()
        )


def test_error_curves_begin_at_the_reconstruction():
    agent, replay = world(Mixed)
    s = whole_windows(replay, 12, 7, generator())
    real, loop = replay.gather_obs(s.index), open_loop(agent, s, 3)
    for key, lines in error_curves(loop, real).items():
        assert torch.equal(
            lines["dream"][:, :3].nan_to_num(), lines["V"][:, :3].nan_to_num()
        ) and torch.equal(lines["V"].isnan(), ~s.mask)
        # triangle inequality
        assert ((lines["dream"][:, 3:] - loop.error()[key]).abs() <= lines["V"][:, 3:] + 1e-5)[
            s.mask[:, 3:]
        ].all()
    assert len(error_figure(loop, real).axes) == 4
    few = loop.first(2)
    assert (
        torch.equal(few.dream, loop.dream[:2])
        and torch.equal(few.error()["arm"], loop.error()["arm"][:2])
        and few.context == 3
    )


TREES = [
    gs.Box(0, 255, (16, 16, 3), np.uint8),
    gs.Box(0, 255, (16, 16), np.uint8),
    gs.Discrete(5, start=2),
    gs.Box(-np.inf, np.inf, (2, 3)),
    gs.MultiDiscrete([[2, 3], [4, 5]]),
    gs.Dict(
        {
            "a": gs.Tuple(
                (
                    gs.Discrete(3),
                    gs.Dict(
                        {
                            "x": gs.Box(-np.inf, np.inf, ()),
                            "y": gs.MultiDiscrete([3, 4], start=[1, -1])
                        }
                    ),
                )
            ),
            "b": gs.Box(0, 255, (16, 16, 1), np.uint8),
        }
    ),
]

@pytest.mark.parametrize("tree", TREES)
def test_spaces_are_rebuilt(tree):
    spec = ObsSpec.from_space(tree)
    rebuilt = observation_space(spec)
    # 2-D whole numbers are read as a map: one count per channel
    if not (isinstance(tree, gs.MultiDiscrete)):
        assert rebuilt == tree
    assert ObsSpec.from_space(rebuilt) == spec or spec.modalities[0].kind == "grid"
    tree.seed(0)
    flat = spec.flatten(tree.sample())
    raw = raw_observation(spec, {k: x[None] for k, x in flat.items()})
    again = spec.flatten(raw, batch=True)
    assert all(np.array_equal(again[k][0], flat[k]) for k in flat)


@pytest.mark.parametrize(
    "space",
    [
        gs.Discrete(3), gs.Discrete(4, start=-1), gs.MultiDiscrete([3, 5]),
        gs.Box(-2, 3, (2,), np.float32), gs.Box(-2, 3, (2, 2), np.float64)
    ],
)
def test_action_spaces_are_rebuilt(space):
    assert action_space(ActionSpec.from_space(space)) == space


LEAVES = [
    gs.Box(-3, 3, (2,), np.float64), gs.Box(-3, 3, (2,), np.float16), gs.Box(0, 4, (3,), np.int8),
    gs.Box(0, 200, (3,), np.uint8), gs.Box(-100, 100, (2,), np.int8), gs.MultiBinary(4),
    gs.Box(0, 1, (3,), bool), gs.Box(0, 9, (4, 5, 2), np.uint8),
    gs.MultiDiscrete([3, 4], dtype=np.int32), gs.Box(2, 9, (), np.int16), gs.Discrete(4, start=-2)
]

@pytest.mark.parametrize("leaf", LEAVES, ids=str)
def test_number_formats_come_back(leaf):
    leaf.seed(0)
    spec, batch = ObsSpec.from_space(leaf), np.stack([leaf.sample() for _ in range(3)])
    spec = ObsSpec.from_json(json.loads(json.dumps(spec.to_json())))
    raw = raw_observation(spec, spec.flatten(batch, batch=True))
    # float64 goes through float32
    assert raw.dtype == leaf.dtype and (
        np.allclose(raw, batch, rtol=1e-6) if leaf.dtype.kind == "f" else np.array_equal(raw, batch)
    )
    assert all(
        x in leaf and x in observation_space(spec) for x in iterate(batch_space(leaf, 3), raw)
    ) and raw in batch_space(observation_space(spec), 3)


def test_dicts_with_numbers_for_keys_come_back():
    inner = gs.Tuple((gs.Discrete(3), gs.Dict({0: gs.Discrete(2), 1: gs.MultiBinary(2)})))
    tree = gs.Dict({0: inner, 1: gs.Box(-np.inf, np.inf, (2,))})
    spec = ObsSpec.from_json(json.loads(json.dumps(ObsSpec.from_space(tree).to_json())))
    rebuilt = observation_space(spec)
    assert (
        isinstance(rebuilt, gs.Dict)
        and isinstance(rebuilt[0], gs.Tuple)
        and isinstance(rebuilt[0][1], gs.Dict)
    )
    batch = batch_space(tree, 2).sample()
    back = raw_observation(spec, spec.flatten(batch, batch=True))
    assert back in batch_space(tree, 2) and env_checker.data_equivalence(back, batch, exact=True)
    old = {
        "modalities": [
            {k: v for k, v in m.items() if k not in ("in_dict", "raw_dtype")}
            for m in spec.to_json()["modalities"]
        ]
    }
    # written by an earlier release
    assert (
        ObsSpec.from_json(old).flatten(batch, batch=True).keys()
        == spec.flatten(batch, batch=True).keys()
    )
    with pytest.raises(UserError, match="in_dict"):
        Modality("a/b", "vector", (2,), in_dict=(True,))


@pytest.mark.parametrize("make", [small_catch, Mixed])
def test_dream_env_is_a_gymnasium_environment(make):
    agent, replay = world(make)
    env = DreamEnv(agent, replay, num_envs=3, horizon=4, context=3)
    assert (
        env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
        and env.unwrapped is env
        and env.num_envs == 3
    )
    obs, info = env.reset(seed=1)
    assert obs in env.observation_space and info == {}
    env.action_space.seed(0)
    over, age = np.zeros(3, bool), np.zeros(3, int)
    for _ in range(30):
        obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert obs in env.observation_space
        assert (
            reward.shape == terminated.shape == truncated.shape == (3,)
            and reward.dtype == np.float64
            and terminated.dtype == truncated.dtype == bool
        )
        assert (
            not (terminated & truncated).any()
            and not ((terminated | truncated) & over).any()
            and (reward[over] == 0).all()
        )
        age = np.where(over, 0, age + 1)
        assert (truncated == (age == 4) & ~terminated).all()
        over = terminated | truncated
    env.close()


def test_gymnasium_wrappers_work():
    agent, replay = world()
    env = RecordEpisodeStatistics(DreamEnv(agent, replay, num_envs=3, horizon=4))
    env.reset(seed=0)
    lengths = []
    for _ in range(20):
        *_, info = env.step(env.action_space.sample())
        if "episode" in info:
            lengths += info["episode"]["l"][info["_episode"]].tolist()
    assert lengths and max(lengths) <= 4


class ClockEnv(gymnasium.Env):
    "A hand on a dial of 7; the episode ends when it points to 0. It starts where `starts` says."
    observation_space, action_space, starts = gs.Box(0, 6, (1,), np.int8), gs.Discrete(3), None
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.hand = self.starts.pop(0) if self.starts else int(self.np_random.integers(1, 7))
        return np.array([self.hand], np.int8), {}
    def step(self, action):
        self.hand = (self.hand + int(action)) % 7
        return np.array([self.hand], np.int8), float(self.hand), self.hand == 0, False, {}


class ClockAgent(Clock):
    "Dreams of it, without an error."
    device = torch.device("cpu")
    def __init__(self):
        super().__init__(7, 0.0)
        self.obs_spec, self.action_spec = (
            ObsSpec.from_space(ClockEnv.observation_space),
            ActionSpec.from_space(ClockEnv.action_space)
        )
        self.tokenizer = MultiModalTokenizer(self.obs_spec)
        self.layout = self.tokenizer.layout
    def remember(self, z, action, mask=None):
        return torch.zeros(1, len(z), 1, 1, 1)
    def __call__(self, z, action, state=None, mask=None, first=1):
        p, _ = super().__call__(z, action, state, mask, first)
        return Prediction({"obs": p.obs["hand"]}, p.reward, p.done), torch.zeros(1, len(z), 1, 1, 1)


def clock_dream(mode, n=3, horizon=5, **kwargs):
    agent = ClockAgent()
    replay = ReplayBuffer(500, agent.obs_spec, 1, 1, 1)
    policy = RandomAgent(agent.obs_spec, agent.action_spec).policy(1, generator=generator())
    replay.extend(
        0,
        Collector([ClockEnv], agent.obs_spec, agent.action_spec, seed=0).collect(policy, 100)[0][0]
    )
    return DreamEnv(agent, replay, n, horizon, context=2, autoreset_mode=mode, **kwargs)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_perfect_dream_is_the_vector_environment_itself(mode):
    """Everything that Gymnasium's own SyncVectorEnv returns, in each way of beginning anew, infos
    included."""
    dream, rng = clock_dream(mode), np.random.default_rng(0)
    starts, log = [[] for _ in range(3)], []
    def note(obs, fresh):               # where dreams began, for the real clocks to begin there too
        for i in np.flatnonzero(fresh):
            starts[i].append(int(obs[i, 0]))
    obs, info = dream.reset(seed=4)
    note(obs, np.ones(3, bool))
    log.append((obs, info))
    over = np.zeros(3, bool)
    actions = rng.integers(0, 3, (60, 3))
    for a in actions:
        if mode is AutoresetMode.DISABLED and over.any():
            obs, info = dream.reset(options={"reset_mask": over})
            note(obs, over)
            log.append((obs, info))
        out = dream.step(a)
        note(
            out[0],
            over
            if mode is AutoresetMode.NEXT_STEP
            else (out[2] | out[3]) & (mode is AutoresetMode.SAME_STEP),
        )
        over = out[2] | out[3]
        log.append(out)
    def make(i):
        env = ClockEnv()
        env.starts = starts[i]
        return gymnasium.wrappers.TimeLimit(env, 5)
    real = SyncVectorEnv([lambda i=i: make(i) for i in range(3)], autoreset_mode=mode)
    for name in ("observation_space", "single_observation_space"):
        assert (
            getattr(dream, name).shape == getattr(real, name).shape
            and getattr(dream, name).dtype == getattr(real, name).dtype
        )
    assert (
        dream.action_space == real.action_space
        and dream.metadata["autoreset_mode"] == real.metadata["autoreset_mode"]
    )
    want = [real.reset(seed=4)]
    over = np.zeros(3, bool)
    for a in actions:
        if mode is AutoresetMode.DISABLED and over.any():
            want.append(real.reset(options={"reset_mask": over}))
        obs, reward, terminated, truncated, info = real.step(a)
        # TimeLimit says both at once; a dream says how it was
        want.append((obs, reward.copy(), terminated.copy(), truncated & ~terminated, info))
        over = want[-1][2] | want[-1][3]
    assert len(want) == len(log)
    for a, b in zip(log, want):
        assert env_checker.data_equivalence(a, b, exact=True), (a, b)
    assert (
        sum(x[2].sum() for x in want if len(x) == 5) > 5
        and sum(x[3].sum() for x in want if len(x) == 5) > 5
    )


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, "SameStep"])
@pytest.mark.parametrize("make", [small_catch, Mixed])
def test_gymnasium_checks(make, mode, tokens, recwarn):
    "What Gymnasium's checker for single environments asks holds for the batch, too."
    agent, replay = world(make)
    env = DreamEnv(agent, replay, num_envs=3, horizon=4, autoreset_mode=mode, tokens=tokens)
    env_checker.check_reset_seed_determinism(env)
    env_checker.check_reset_options(env)
    env_checker.check_reset_return_type(env)
    passive_env_checker.env_reset_passive_checker(env, seed=1)
    for space, kind in (
        (env.observation_space, "observation"), (env.action_space, "action"),
        (env.single_observation_space, "observation")
    ):
        passive_env_checker.check_space(space, kind, lambda *a: None)
    for _ in range(12):
        obs, *rest = env.step(env.action_space.sample())
        passive_env_checker.check_obs(obs, env.observation_space, "step")
        if "final_obs" in rest[-1]:
            assert (rest[-1]["_final_obs"] == rest[1] | rest[2]).all()
            assert all(
                (o in env.single_observation_space) if over else o is None
                for o, over in zip(rest[-1]["final_obs"], rest[-1]["_final_obs"])
            )
    assert not [
        w for w in recwarn if "gymnasium" in str(w.filename) and "float" not in str(w.message)
    ]


class One(gymnasium.Env):
    "A single dream as an ordinary environment."
    metadata, render_mode = {"render_modes": []}, None
    def __init__(self, dreams):
        self.dreams, self.observation_space, self.action_space = (
            dreams, dreams.single_observation_space, dreams.single_action_space
        )
    def only(self, obs):
        return next(iterate(self.dreams.observation_space, obs))
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        obs, info = self.dreams.reset(seed=seed, options=options)
        return self.only(obs), info
    def step(self, action):
        obs, reward, terminated, truncated, info = self.dreams.step(np.array([action]))
        return self.only(obs), float(reward[0]), bool(terminated[0]), bool(truncated[0]), info


@pytest.mark.parametrize("make", [small_catch, Mixed])
def test_gymnasium_check_env(make, recwarn):
    "The whole checker, on one dream."
    agent, replay = world(make)
    env_checker.check_env(One(DreamEnv(agent, replay, 1, horizon=9)), skip_render_check=True)
    # bounds of vectors are unknown; the environment is not registered
    allowed = ("infinity", "spec", "different")
    assert not [
        str(w.message) for w in recwarn if not any(word in str(w.message) for word in allowed)
    ]


@pytest.mark.parametrize("rows", [0, 1, 3, 5])
def test_there_is_one_action_for_each_dream(rows):
    env = DreamEnv(*world(), num_envs=4)
    env.reset(seed=0)
    before = env.z.clone(), env.age.copy(), env.generator.get_state()
    with pytest.raises(UserError, match=f"^actions: {rows} rows, this DreamEnv has 4 dreams$"):
        env.step(np.zeros(rows, np.int64))
    assert torch.equal(env.z, before[0]) and (env.age == before[1]).all()
    assert torch.equal(env.generator.get_state(), before[2])


@pytest.mark.parametrize("tokens", [False, True])
def test_what_was_returned_stays(tokens):
    "Later steps and new dreams write into nothing that was handed out."
    agent, replay = world()
    env = DreamEnv(agent, replay, num_envs=4, horizon=2, tokens=tokens, autoreset_mode="SameStep")
    kept = [env.reset(seed=0)[0]] + [env.step([0, 1, 2, 0])[0] for _ in range(5)]
    again = DreamEnv(agent, replay, num_envs=4, horizon=2, tokens=tokens, autoreset_mode="SameStep")
    assert np.array_equal(kept[0], again.reset(seed=0)[0]) and all(
        np.array_equal(o, again.step([0, 1, 2, 0])[0]) for o in kept[1:]
    )


def test_tokens_decode_to_the_observation():
    agent, replay = world(Mixed)
    seen, bare = (DreamEnv(agent, replay, 3, 4, tokens=t) for t in (False, True))
    (a, _), (b, _) = seen.reset(seed=2), bare.reset(seed=2)
    for _ in range(9):
        assert b in bare.observation_space and b.shape == (3, agent.tokenizer.layout.S)
        back = raw_observation(
            agent.obs_spec,
            {k: x.numpy() for k, x in agent.tokenizer.decode(torch.from_numpy(b)).items()}
        )
        assert env_checker.data_equivalence(a, back, exact=True)
        action = seen.action_space.sample()
        (a, *_), (b, *_) = seen.step(action), bare.step(action)


def test_order_of_calls():
    env = clock_dream("Disabled")
    with pytest.raises(ResetNeeded):
        env.step([0, 0, 0])
    with pytest.raises(ResetNeeded):
        env.reset(options={"reset_mask": np.array([True, True, False])})
    env.reset(options={})
    for bad in (
        np.array([True]), np.ones((1, 3), bool), np.array([1, 1, 0]), [True, True, True],
        np.zeros(3, bool)
    ):
        with pytest.raises(UserError, match="reset_mask"):
            env.reset(options={"reset_mask": bad})
    for _ in range(5):
        over = np.logical_or(*env.step([0, 0, 0])[2:4])
    assert over.all()
    with pytest.raises(ResetNeeded, match="have ended"):
        env.step([0, 0, 0])
    before = env.z.clone()
    obs, _ = env.reset(options={"reset_mask": np.array([True, False, True])})
    assert obs[1] == before[1].numpy() and env.over.tolist() == [False, True, False]
    env.close(), env.close()
    for call in (env.reset, lambda: env.step([0, 0, 0])):
        with pytest.raises(ClosedEnvironmentError):
            call()
    with pytest.raises(ValueError):
        clock_dream("Never")


@pytest.mark.parametrize("sequence", ["retnet", "attention"])
def test_prepared_beginnings_change_nothing(monkeypatch, sequence):
    """The same dreams whether a moment is prepared once or each time; and M and V are asked once
    for each."""
    agent, replay = world(sequence=sequence)
    first, second = DreamEnv(agent, replay, 4, 3), DreamEnv(agent, replay, 4, 3)
    actions = [np.full(4, t % 3) for t in range(40)]
    a = [x.tobytes() for x in [first.reset(seed=1)[0]] + [first.step(x)[0] for x in actions]]
    second.reset(seed=1)
    second.start.prepare(torch.arange(len(second.start.rows)))
    monkeypatch.setattr(second.start, "prepare", None)         # never again
    second.generator.manual_seed(1)
    second.z, second.memory = second.start.draw(4, second.generator)
    b = [
        x.tobytes()
        for x in [second.form(second.see(second.z))] + [second.step(x)[0] for x in actions]
    ]
    # rounding may differ with the batch, and then dice fall otherwise
    assert a[0] == b[0] and np.mean([x == y for x, y in zip(a, b)]) > 0.9
    assert (
        not first.start.known.all()
        and len(DreamEnv(agent, replay, 2, beginnings=7).reset()[0]) == 2
    )


@pytest.mark.parametrize("sequence", ["retnet", "attention"])
def test_where_memories_are_too_large_their_tokens_are_kept(monkeypatch, sequence):
    "The same dreams, and no memory of M beside that of the dreams themselves."
    agent, replay = world(sequence=sequence)
    agent.double()
    kept, read = DreamEnv(agent, replay, 4, 3), DreamEnv(agent, replay, 4, 3)
    a = [kept.reset(seed=1)[0]] + [kept.step(np.full(4, t % 3))[0] for t in range(20)]
    size = len(kept.start.rows) * kept.start.memory[:, :1].nbytes
    monkeypatch.setattr(dream, "KEPT", size - 1)
    b = [read.reset(seed=1)[0]] + [read.step(np.full(4, t % 3))[0] for t in range(20)]
    assert all((x == y).all() for x, y in zip(a, b))
    assert read.start.memory is None and torch.allclose(read.memory, kept.memory, atol=1e-9)
    assert sum(x.nbytes for x in (read.start.rows, read.start.known, *read.start.steps)) < size
    monkeypatch.setattr(dream, "KEPT", size)
    assert DreamEnv(agent, replay, 4, 3).reset(seed=1)[0].tolist() == a[0].tolist()


def test_dreams_begin_in_real_moments():
    agent, replay = world()
    env = DreamEnv(agent, replay, num_envs=4, horizon=1)
    stored = {tuple(z) for z in agent.tokenizer.encode(replay.gather_obs(replay.filled())).tolist()}
    env.reset(seed=0)
    for t in range(6):                                  # horizon 1: every second call begins anew
        if t % 2 == 0:
            assert all(tuple(z) in stored for z in env.z.tolist())
        env.step(env.action_space.sample())


def rollout(env, seed, actions):
    first, _ = env.reset(seed=seed)
    return [first.tobytes()] + [b"".join(x.tobytes() for x in env.step(a)[:4]) for a in actions]


def test_dream_env_is_determined_by_its_seed():
    agent, replay = world()
    env, actions = (
        DreamEnv(agent, replay, num_envs=3, horizon=4), [np.full(3, t % 3) for t in range(12)]
    )
    a = rollout(env, 5, actions)
    torch.manual_seed(99)
    assert (
        rollout(env, 5, actions)
        == a
        == rollout(DreamEnv(agent, replay, num_envs=3, horizon=4, seed=1), 5, actions)
    )
    assert rollout(env, 6, actions) != a


@pytest.mark.parametrize("sequence", ["retnet", "attention"])
def test_steps_equal_those_of_imagine(sequence):
    agent, replay = world(Mixed, sequence=sequence)
    env, dice = DreamEnv(agent, replay, num_envs=4, horizon=50), generator(3)
    env.reset(seed=3)
    dream = imagine(
        agent.world_model, agent.controller, replay.contexts(4, env.context, dice), 6, dice
    )
    z, memory, state, by_env = env.z.clone(), env.memory.clone(), dream.start, generator()
    by_env.set_state(env.generator.get_state())
    for t in range(5):                                         # the function
        logits, _, state = agent.controller.step(z, state)
        action = sample_categorical(logits, by_env)
        state = agent.controller.act(action, state)
        assert torch.equal(z, dream.z[:, t]) and torch.equal(action, dream.action[:, t])
        z, reward, done, memory = dream_step(agent.world_model, z, action, memory, by_env)
        assert torch.allclose(reward, dream.reward[:, t], atol=1e-4) and torch.equal(
            done.float(), dream.done[:, t]
        )
    state, going = dream.start, np.ones(4, bool)
    for t in range(5):                              # and the environment, until dreams begin anew
        logits, _, state = agent.controller.step(env.z, state)
        action = sample_categorical(logits, env.generator)
        state = agent.controller.act(action, state)
        assert torch.equal(env.z[going], dream.z[going, t])
        _, reward, terminated, _, _ = env.step(agent.action_spec.decode(action.numpy()))
        assert (
            np.allclose(reward[going], dream.reward[going, t].numpy(), atol=1e-4)
            and (terminated == dream.done[:, t].numpy().astype(bool))[going].all()
        )
        going &= ~terminated
        if not going.all():
            break  # a new dream draws from the same dice


def test_dream_env_refuses_nonsense():
    agent, replay = world()
    for wrong in (dict(num_envs=0), dict(horizon=0), dict(context=1)):
        with pytest.raises(UserError, match="DreamEnv needs"):
            DreamEnv(agent, replay, **wrong)
    empty = ReplayBuffer(10, agent.obs_spec, 1, agent.tokenizer.layout.S)
    with pytest.raises(UserError, match="empty"):
        DreamEnv(agent, empty).reset()


BOOK = Path(__file__).resolve().parents[1] / "nbs"

@pytest.mark.parametrize("name", ["catch-dream", "rain-dream"])
def test_stored_worlds_are_whole_and_small(name):
    "Checksums are verified on loading; tools/inside_the_dream.py makes them."
    folder = BOOK / "data" / name
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 1_500_000
    agent = Agent.load(folder)
    z = torch.zeros(2, agent.tokenizer.layout.S, dtype=torch.long)
    after, reward, done, _ = dream_step(
        agent.world_model, z, torch.ones(2, 1, dtype=torch.long),
        agent.world_model.remember(z[:, None], torch.ones(2, 1, 1, dtype=torch.long)), generator()
    )
    assert after.shape == z.shape and reward.isfinite().all() and done.dtype == torch.bool


def test_the_printed_command_has_the_settings_of_the_stored_world():
    "The chapter prints it, the record holds the settings, the agent its sizes."
    page = (BOOK / "31_inside_the_dream.ipynb").read_text(encoding="utf8")
    cells = json.loads(page)["cells"]
    text = next(t for c in cells if "simulus-nb train" in (t := "".join(c["source"])))
    printed = text.split("```")[1].replace("\\\n", " ").strip().splitlines()
    config = parse(shlex.split(printed[0])[1:]).config
    stored = json.loads((BOOK / "results" / "dream-ppo.json").read_text())["world"]["settings"]
    now = json.loads(json.dumps(flat(config)))
    assert {k: now[k] for k in stored if k in now} == {k: v for k, v in stored.items() if k in now}
    # what has another name now: steps are collected in every epoch, as they were
    assert set(stored) - set(now) == {"collect.epochs", "tokenizer.image.codebook"}
    assert config.collecting == config.epochs == stored["collect.epochs"]
    made = Agent.load(BOOK / "data" / "catch-dream")
    assert made.tokenizer.config.image == config.tokenizer.image
    assert made.world_model.config.retnet == config.world_model.retnet
    # and the script's option is the folder that the command writes
    assert printed[1].split()[-1] == printed[0].split()[-1]


def test_the_stored_agent_is_whole_and_plays():
    "The one that the quickstart loads; beside it stands what made it."
    folder = BOOK / "data" / "catch-agent"
    made = json.loads((folder / "made.json").read_text())
    assert made["preset"] == "catch" and made["mean_return"] > 0.9
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 3_500_000
    assert {p.suffix for p in folder.rglob("*") if p.is_file()} <= {".json", ".safetensors", ""}
    assert evaluate(Agent.load(folder), [Catch] * 10, episodes=30).mean > 0.8


def test_what_learnt_in_the_dream_plays_the_real_game():
    "The stored experiment: PPO of another library, five seeds, against random play."
    stored = json.loads((BOOK / "results" / "dream-ppo.json").read_text())
    scores = [np.mean(r["returns"]) for r in stored["runs"] if r["observation"] == "tokens"]
    assert (
        len(scores) == 5
        and min(scores) > 0.5
        and stored["random"]["mean"] < -0.4
        and min(stored["speed"]["found"].values()) > 0.8
    )
