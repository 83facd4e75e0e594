"Dreams: a perfect model dreams the truth, drift follows its formula, pictures say what is imagined, DreamEnv is a Gymnasium environment."
from types import SimpleNamespace

import gymnasium
import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from gymnasium import spaces as gs
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from hypothesis import given, settings
from hypothesis import strategies as st

from simulus_nb.agent import Agent
from simulus_nb.controller import ControllerConfig, sample_categorical
from simulus_nb.dream import (CONTEXT, IMAGINED, DreamEnv, action_space, difference, dream_media, dream_step, dream_video, error_picture, film_strip,
                              observation_space, open_loop, picture, raw_observation, token_accuracy, whole_windows)
from simulus_nb.envs import Catch, Collector
from simulus_nb.evaluate import RandomAgent
from simulus_nb.imagination import imagine
from simulus_nb.replay import ReplayBuffer, Segment
from simulus_nb.retnet import RetNetConfig
from simulus_nb.spaces import ActionSpec, Modality, ObsSpec, UserError
from simulus_nb.tokenizer import MultiModalTokenizer, TokenizerConfig
from simulus_nb.vqvae import VQVAEConfig
from simulus_nb.world_model import Prediction, WorldModelConfig

SETTINGS = settings(deadline=None, max_examples=20)
SIZES = dict(tokenizer=TokenizerConfig(VQVAEConfig(image_size=16, channels=8, stages=2, code_dim=8, vocab=16, perceptual="none")),
             world_model=WorldModelConfig(RetNetConfig(width=16, heads=2, layers=2, dropout=0.0)),
             controller=ControllerConfig(width=8, channels=(8, 8), embedding=8))
MIXED = gs.Dict({"eye": gs.Box(0, 255, (16, 16, 3), np.uint8), "arm": gs.Box(-9, 9, (3,), np.float32),
                 "inside": gs.Tuple((gs.Discrete(4, start=1), gs.Box(0, 2, (3, 4, 2), np.int64)))})


class Mixed(gymnasium.Env):
    "Random observations of every kind; the episode ends after seven steps, or three."
    observation_space, action_space = MIXED, gs.MultiDiscrete([3, 2])
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.end = 0, int(self.np_random.choice([3, 7]))
        if seed is not None: self.observation_space.seed(seed)
        return self.observation_space.sample(), {}
    def step(self, action):
        self.t += 1
        return self.observation_space.sample(), float(action[0]), self.t == self.end, False, {}


def small_catch():
    return Catch(rows=6, cols=4, size=16)


def world(make=small_catch, steps=120, seed=0, num_envs=2):
    "An untrained agent and a replay of random play."
    env = make()
    specs = ObsSpec.from_space(env.observation_space), ActionSpec.from_space(env.action_space)
    torch.manual_seed(seed)
    agent = Agent(*specs, **SIZES).eval()
    for p in agent.world_model.parameters():                   # livelier than a fresh model: its answers depend on what it saw
        if p.ndim > 1: torch.nn.init.normal_(p, std=0.3)
    for p in agent.controller.actor.parameters(): torch.nn.init.normal_(p)
    replay = ReplayBuffer(1_000, specs[0], specs[1].count, agent.tokenizer.layout.S, num_envs)
    policy = RandomAgent(*specs).policy(num_envs, generator=torch.Generator().manual_seed(seed))
    for i, rows in enumerate(Collector([make] * num_envs, *specs, seed=seed).collect(policy, steps)[0]): replay.extend(i, rows)
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
        return Prediction({"hand": p.log()[..., None, :]}, after[..., 0].double(), 100 * (after[..., 0] == 0).double() - 50), torch.zeros(1, len(z))


def clock_segment(n, B, T, seed):
    g = generator(seed)
    action = torch.randint(3, (B, T, 1), generator=g)
    z = torch.cat([torch.randint(n, (B, 1, 1), generator=g), action[:, :-1]], 1).cumsum(1) % n
    after = (z + action)[..., 0] % n
    return Segment(z, action, after.float(), after == 0, torch.ones(B, T, dtype=torch.bool), torch.zeros(B, T, dtype=torch.long))


@SETTINGS
@given(st.integers(2, 9), st.integers(2, 8), st.data())
def test_a_perfect_model_dreams_the_truth(n, T, data):
    context = data.draw(st.integers(1, T - 1))
    s = clock_segment(n, 4, T, T)
    loop = open_loop(Clock(n, 0.0), s, context)
    assert torch.equal(loop.dream, s.z) and torch.equal(loop.forced, s.z)
    assert torch.equal(loop.obs["dream"]["hand"], s.z) and (loop.error()["hand"] == 0).all() and (loop.drift() == 0).all()
    assert torch.equal(loop.reward.float(), loop.real_reward) and torch.equal(loop.done > 0.5, loop.real_done)
    assert loop.counts.all() and loop.accuracy.min() == 1 and loop.accuracy.shape == (4, T - context)


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
    assert torch.equal(loop.dream[keep, :context + 1], loop.forced[keep, :context + 1]) and torch.equal(loop.dream[:, :context], s.z[:, :context])
    changed = Segment(**vars(s) | {"z": s.z.clone()})          # the dream never looks at what really came after its context
    changed.z[:, context:] = torch.randint(3, changed.z[:, context:].shape, generator=generator(seed))
    other = open_loop(agent, changed, context, generator(seed))
    assert torch.equal(other.dream[:, context:], loop.dream[:, context:]) and torch.equal(other.reward, loop.reward)


def test_teacher_forced_accuracy_is_that_of_single_steps():
    agent, replay = world(Mixed)
    agent.double()
    s = whole_windows(replay, 3, 5, generator())
    loop = open_loop(agent, s, 2)
    for p, t in enumerate((2, 3, 4)):
        answer, _ = agent.world_model(s.z[:, :t], s.action[:, :t], first=t)
        assert torch.allclose(token_accuracy(agent.tokenizer.layout, answer, s.z[:, t:t + 1])[:, 0], loop.forced_accuracy[:, p], rtol=1e-9)


def test_actions_steer_the_dream_and_seeds_fix_it():
    agent, replay = world()
    s = whole_windows(replay, 8, 6, generator())
    a, b, c = (open_loop(agent, s, 1, generator(i)) for i in (0, 0, 1))
    assert torch.equal(a.dream, b.dream) and not torch.equal(a.dream, c.dream)
    assert torch.equal(open_loop(agent, s, 1).dream, a.dream)                   # the default is seed 0, not the global generator
    turned = Segment(**vars(s) | {"action": 2 - s.action})
    assert not torch.equal(open_loop(agent, turned, 1, generator()).reward, a.reward)


def test_padding_does_not_count():
    agent, replay = world(Mixed)
    s = whole_windows(replay, 30, 12, generator())
    assert s.mask.shape[1] == 8 and not s.mask.all() and s.mask[0].all()        # trimmed to the longest; the fullest first
    loop = open_loop(agent, s, 2)
    assert torch.equal(loop.counts, s.mask[:, 2:])
    assert torch.allclose(loop.mean(loop.reward)[-1], loop.reward[s.mask[:, -1], -1].mean())
    with pytest.raises(UserError, match="1 <= context < 8"): open_loop(agent, s, 8)


def test_distance_by_kind():
    image, vector, grid = Modality("i", "image", (2, 2, 3)), Modality("v", "vector", (2,)), Modality("g", "grid", (1, 2, 2), (3, 3))
    a, b = torch.zeros(2, 2, 3, dtype=torch.uint8), torch.full((2, 2, 3), 51, dtype=torch.uint8)
    assert torch.allclose(difference(image, a, b), torch.tensor(0.2)) and torch.equal(difference(image, a, b), difference(image, b, a))
    assert torch.allclose(difference(vector, torch.tensor([np.e - 1, 1 - np.e]), torch.zeros(2)), torch.ones(2))
    assert difference(grid, torch.tensor([[[0, 1], [2, 2]]]), torch.tensor([[[0, 2], [2, 2]]])).flatten().tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("m, x", [
    (Modality("i", "image", (8, 8, 1)), np.arange(64).reshape(8, 8, 1).astype(np.uint8)), (Modality("i", "image", (10, 8, 4)), np.zeros((10, 8, 4), np.uint8)),
    (Modality("v", "vector", (5,)), np.array([1, -2, 0, 300, -4], np.float32)), (Modality("v", "vector", (300,)), np.ones(300, np.float32)),
    (Modality("c", "categorical", (6,), (9,) * 6), np.arange(6)), (Modality("g", "grid", (3, 4, 2), (5, 7)), np.ones((3, 4, 2), np.int16))])
def test_every_kind_has_a_picture(m, x):
    y = picture(m, x, x, 64)
    assert y.dtype == np.uint8 and y.ndim == 3 and y.shape[2] == 3 and 40 <= max(y.shape[:2]) <= 96
    other = x.copy(); other[..., 0] = (other[..., 0] + 1) % 5 if m.kind != "image" else 90
    assert not np.array_equal(picture(m, other, x, 64), picture(m, x, x, 64))
    assert (error_picture(m, other, x, 64) != error_picture(m, x, x, 64)).any()


@pytest.mark.parametrize("make, rows", [(small_catch, 4), (Mixed, 4 + 4 + 3 + 3)])
def test_film_strip_borders_and_captions(make, rows):
    agent, replay = world(make)
    s = whole_windows(replay, 2, 6, generator())
    real, loop = replay.gather_obs(s.index), open_loop(agent, s, 2)
    figure = film_strip(loop, real, row=1)
    axes = np.array(figure.axes).reshape(rows, 6)
    edge = [[tuple(round(255 * v) for v in ax.spines["left"].get_edgecolor()[:3]) for ax in line] for line in axes]
    for line, labels in zip(edge, [ax.get_ylabel() for ax in axes[:, 0]]):
        made_up = labels.endswith(("dream", "|error|"))
        assert line == [CONTEXT] * 2 + [IMAGINED if made_up else CONTEXT] * 4
    assert [ax.get_title() for ax in axes[0]] == list("123456") and axes[-1, 1].get_xlabel().startswith("given")
    assert f"r {loop.reward[1, 0]:.2f}"[-4:] in axes[-1, 2].get_xlabel() and f"end {loop.done[1, 3]:.2f}" in axes[-1, 5].get_xlabel()


def test_film_stops_where_the_episode_does():
    agent, replay = world(Mixed)
    s = whole_windows(replay, 30, 12, generator())
    row = int(s.mask.sum(1).argmin())
    assert len(film_strip(open_loop(agent, s, 2), replay.gather_obs(s.index), row).axes) == 14 * int(s.mask[row].sum())


@pytest.mark.parametrize("make", [small_catch, Mixed])
def test_video_is_readable_and_small(tmp_path, make):
    agent, replay = world(make)
    s = whole_windows(replay, 2, 6, generator())
    path = dream_video(open_loop(agent, s, 2), replay.gather_obs(s.index), tmp_path / "x.mp4", fps=4)
    frames = imageio.mimread(path, format="FFMPEG")
    assert len(frames) == 2 * (6 + 2) and path.stat().st_size < 1_000_000
    height, width, _ = frames[0].shape
    assert height % 16 == width % 16 == 0
    def most(frame, colour): return (np.abs(frame.astype(int) - colour).max(-1) < 50).sum()
    assert most(frames[0], IMAGINED) < most(frames[3], IMAGINED) / 5 and most(frames[0], CONTEXT) > 1.5 * most(frames[3], CONTEXT)


@pytest.mark.parametrize("make, steps", [(small_catch, 60), (Mixed, 60), (small_catch, 3)])
def test_media(tmp_path, make, steps):
    agent, replay = world(make, steps=steps)
    before, state = {k: v.clone() for k, v in agent.state_dict().items()}, torch.get_rng_state()
    files = dream_media(agent, replay, tmp_path / "media", dreams=2)
    assert {p.name for p in files.values()} == {"dream.png", "dream.mp4"} and all(0 < p.stat().st_size < 1_000_000 for p in files.values())
    assert torch.equal(state, torch.get_rng_state()) and all(torch.equal(before[k], v) for k, v in agent.state_dict().items())    # only looks


def test_media_encodes_afresh(tmp_path):
    agent, replay = world()
    files = dream_media(agent, replay, tmp_path / "a", dreams=1)
    replay.tokens.zero_()                                      # as if V had learnt since
    torch.manual_seed(7)                                       # and the global dice do not matter
    assert dream_media(agent, replay, tmp_path / "b", dreams=1)["film"].read_bytes() == files["film"].read_bytes()


def test_media_needs_two_observations(tmp_path):
    agent, replay = world(steps=2)                             # one row for each environment
    with pytest.raises(UserError, match="two observations"): dream_media(agent, replay, tmp_path)


@SETTINGS
@given(st.integers(1, 6), st.integers(2, 12), st.integers(0, 10**6))
def test_whole_windows_are_different_and_in_one_episode(count, length, seed):
    _, replay = world(Mixed)
    s = whole_windows(replay, count, length, generator(seed))
    assert 1 <= len(s.z) <= count and len(s.index[:, 0].unique()) == len(s.z) and s.mask[:, 0].all() and s.mask[0].all()
    assert s.mask.shape[1] == min(length, 8)
    assert (s.mask[:, 1:] <= s.mask[:, :-1]).all()             # padding only at the end
    for index, mask in zip(s.index, s.mask):
        assert len(replay.start[index[mask]].unique()) == 1 and (replay.position[index[mask]].diff() == 1).all()


TREES = [gs.Box(0, 255, (16, 16, 3), np.uint8), gs.Box(0, 255, (16, 16), np.uint8), gs.Discrete(5, start=2), gs.Box(-np.inf, np.inf, (2, 3)), gs.MultiDiscrete([[2, 3], [4, 5]]),
         gs.Dict({"a": gs.Tuple((gs.Discrete(3), gs.Dict({"x": gs.Box(-np.inf, np.inf, ()), "y": gs.MultiDiscrete([3, 4], start=[1, -1])}))), "b": gs.Box(0, 255, (16, 16, 1), np.uint8)})]

@pytest.mark.parametrize("tree", TREES)
def test_spaces_are_rebuilt(tree):
    spec = ObsSpec.from_space(tree)
    rebuilt = observation_space(spec)
    if not (isinstance(tree, gs.MultiDiscrete)):               # 2-D whole numbers are read as a map: one count per channel
        assert rebuilt == tree
    assert ObsSpec.from_space(rebuilt) == spec or spec.modalities[0].kind == "grid"
    tree.seed(0)
    flat = spec.flatten(tree.sample())
    raw = raw_observation(spec, {k: x[None] for k, x in flat.items()})
    again = spec.flatten(raw, batch=True)
    assert all(np.array_equal(again[k][0], flat[k]) for k in flat)


@pytest.mark.parametrize("space", [gs.Discrete(3), gs.Discrete(4, start=-1), gs.MultiDiscrete([3, 5]), gs.Box(-2, 3, (2,), np.float32), gs.Box(-2, 3, (2, 2), np.float64)])
def test_action_spaces_are_rebuilt(space):
    assert action_space(ActionSpec.from_space(space)) == space


@pytest.mark.parametrize("make", [small_catch, Mixed])
def test_dream_env_is_a_gymnasium_environment(make):
    agent, replay = world(make)
    env = DreamEnv(agent, replay, num_envs=3, horizon=4, context=3)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP and env.unwrapped is env and env.num_envs == 3
    obs, info = env.reset(seed=1)
    assert obs in env.observation_space and info == {}
    env.action_space.seed(0)
    over, age = np.zeros(3, bool), np.zeros(3, int)
    for _ in range(30):
        obs, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert obs in env.observation_space
        assert reward.shape == terminated.shape == truncated.shape == (3,) and reward.dtype == np.float64 and terminated.dtype == truncated.dtype == bool
        assert not (terminated & truncated).any() and not ((terminated | truncated) & over).any() and (reward[over] == 0).all()
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
        if "episode" in info: lengths += info["episode"]["l"][info["_episode"]].tolist()
    assert lengths and max(lengths) <= 4


def test_dreams_begin_in_real_moments():
    agent, replay = world()
    env = DreamEnv(agent, replay, num_envs=4, horizon=1)
    stored = {tuple(z) for z in agent.tokenizer.encode(replay.gather_obs(replay.filled())).tolist()}
    env.reset(seed=0)
    for t in range(6):                                         # horizon 1: every second call begins anew
        if t % 2 == 0: assert all(tuple(z) in stored for z in env.z.tolist())
        env.step(env.action_space.sample())


def rollout(env, seed, actions):
    first, _ = env.reset(seed=seed)
    return [first.tobytes()] + [b"".join(x.tobytes() for x in env.step(a)[:4]) for a in actions]


def test_dream_env_is_determined_by_its_seed():
    agent, replay = world()
    env, actions = DreamEnv(agent, replay, num_envs=3, horizon=4), [np.full(3, t % 3) for t in range(12)]
    a = rollout(env, 5, actions)
    torch.manual_seed(99)
    assert rollout(env, 5, actions) == a == rollout(DreamEnv(agent, replay, num_envs=3, horizon=4, seed=1), 5, actions)
    assert rollout(env, 6, actions) != a


def test_steps_equal_those_of_imagine():
    agent, replay = world(Mixed)
    env, dice = DreamEnv(agent, replay, num_envs=4, horizon=50), generator(3)
    env.reset(seed=3)
    dream = imagine(agent.world_model, agent.controller, replay.contexts(4, env.context, dice), 6, dice)
    z, memory, state, by_env = env.z.clone(), env.memory.clone(), dream.start, generator()
    by_env.set_state(env.generator.get_state())
    for t in range(5):                                         # the function
        logits, _, state = agent.controller.step(z, state)
        action = sample_categorical(logits, by_env)
        state = agent.controller.act(action, state)
        assert torch.equal(z, dream.z[:, t]) and torch.equal(action, dream.action[:, t])
        z, reward, done, memory = dream_step(agent.world_model, z, action, memory, by_env)
        assert torch.equal(reward, dream.reward[:, t]) and torch.equal(done.float(), dream.done[:, t])
    state, going = dream.start, np.ones(4, bool)
    for t in range(5):                                         # and the environment, until dreams begin anew
        logits, _, state = agent.controller.step(env.z, state)
        action = sample_categorical(logits, env.generator)
        state = agent.controller.act(action, state)
        assert torch.equal(env.z[going], dream.z[going, t])
        _, reward, terminated, _, _ = env.step(agent.action_spec.decode(action.numpy()))
        assert np.array_equal(reward[going], dream.reward[going, t].numpy().astype(np.float64)) and (terminated == dream.done[:, t].numpy().astype(bool))[going].all()
        going &= ~terminated
        if not going.all(): break                              # a new dream draws from the same dice


def test_dream_env_refuses_nonsense():
    agent, replay = world()
    for wrong in (dict(num_envs=0), dict(horizon=0), dict(context=1)):
        with pytest.raises(UserError, match="DreamEnv needs"): DreamEnv(agent, replay, **wrong)
    empty = ReplayBuffer(10, agent.obs_spec, 1, agent.tokenizer.layout.S)
    with pytest.raises(UserError, match="empty"): DreamEnv(agent, empty).reset()
