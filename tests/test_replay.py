"""Streams in, frames, segments and contexts out: never two episodes mixed, every transition a
target."""
from collections import Counter

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces as gs
from hypothesis import given, settings
from hypothesis import strategies as st

from simulus_nb.checkpoint import buffer_state, restore_buffer
from simulus_nb.collect import Rows
from simulus_nb.replay import ReplayBuffer, RowLists, episode_bounds, row_bytes, windows
from simulus_nb.retnet import RetNetConfig
from simulus_nb.spaces import ActionSpec, Modality, ObsSpec, UserError
from simulus_nb.tokenizer import MultiModalTokenizer, TokenizerConfig
from simulus_nb.world_model import WorldModel, WorldModelConfig, world_model_loss

# environment, episode, step
SPEC = ObsSpec((Modality("label", "categorical", (3,), nvec=(9, 99, 999)),))
SETTINGS = settings(deadline=None, max_examples=30)


def stream(env, lengths, open_steps, truncated=()):
    """One environment's whole history as `Rows`: episodes of these lengths (each with a final
    observation), then an open one."""
    rows = [
        (env, e, t, t == n, t == n - 1 and e not in truncated)
        for e, n in enumerate(lengths)
        for t in range(n + 1)
    ]
    rows += [(env, len(lengths), t, False, False) for t in range(open_steps)]
    x = np.array(rows, np.int64).reshape(-1, 5)
    last, done = x[:, 3].astype(bool), x[:, 4].astype(bool)
    action = np.stack([x[:, 1] % 7, x[:, 2] % 5], 1) * ~last[:, None]
    return Rows({"label": x[:, :3]}, action, (x[:, 2] * 0.5 * ~last).astype(np.float32), done, last)


def part(rows, a, b):
    return Rows(
        {k: x[a:b] for k, x in rows.obs.items()}, rows.action[a:b], rows.reward[a:b],
        rows.done[a:b], rows.last[a:b]
    )


@st.composite
def histories(draw):
    "A buffer filled in several calls, and what each environment did."
    num_envs = draw(st.integers(1, 3))
    buffer = ReplayBuffer(draw(st.integers(2, 40)) * num_envs, SPEC, 2, 3, num_envs)
    truth = []
    for e in range(num_envs):
        lengths = draw(st.lists(st.integers(1, 25), max_size=6))
        truth.append(stream(e, lengths, draw(st.integers(0 if lengths else 1, 9))))
        cuts = sorted(draw(st.lists(st.integers(0, len(truth[e])), max_size=4)))
        for a, b in zip([0, *cuts], [*cuts, len(truth[e])]):
            buffer.extend(e, part(truth[e], a, b))
    label = buffer.obs["label"]
    buffer.set_tokens(
        buffer.filled(),
        torch.stack([label[:, 0], label[:, 1], label[:, 2]], 1)[buffer.filled()] + 1
    )
    return buffer, truth


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@given(histories())
@SETTINGS
def test_the_newest_rows_of_each_environment_are_stored(history):
    buffer, truth = history
    assert len(buffer) == sum(min(len(t), buffer.ring) for t in truth) == len(buffer.filled())
    assert buffer.steps == sum(int((~t.last[-buffer.ring:]).sum()) for t in truth)
    for e, t in enumerate(truth):
        position = np.arange(len(t))[-buffer.ring:]
        at = buffer.rows_of(e, position)
        assert (buffer.obs["label"][at].numpy() == t.obs["label"][position]).all()
        for name in ("action", "reward", "done", "last"):
            assert (getattr(buffer, name)[at].numpy() == getattr(t, name)[position]).all()
        episode = t.obs["label"][:, 1]  # bounds of every row, the slow way, over the whole history
        for p, row in zip(position, at.tolist()):
            mine = np.flatnonzero(episode == episode[p])
            assert (buffer.start[row], buffer.end[row]) == (mine[0], mine[-1])


def check_windows(buffer, s, T):
    assert s.mask.shape == s.index.shape == s.reward.shape == s.done.shape == (len(s.mask), T)
    assert s.z.shape == (len(s.mask), T, 3) and s.action.shape == (len(s.mask), T, 2)
    assert (
        s.z.dtype == s.action.dtype == s.index.dtype == torch.int64
        and s.done.dtype == s.mask.dtype == torch.bool
    )
    label, m = buffer.obs["label"][s.index].long(), s.mask
    both = m[:, 1:] & m[:, :-1]
    # one environment, one episode
    assert (label[:, 1:, :2] == label[:, :-1, :2]).all(-1)[both].all()
    assert (label[:, 1:, 2] == label[:, :-1, 2] + 1)[both].all()                # consecutive steps
    assert (
        m.any(1).all()
        and ((m.int().diff(dim=1) == 1).sum(1) <= 1).all()
        and ((m.int().diff(dim=1) == -1).sum(1) <= 1).all()
    )
    assert (m.int().diff(dim=1) != 0).sum(1).max() <= 2
    assert (s.z[m] == label[m] + 1).all() and (s.action[m] == buffer.action[s.index[m]]).all()
    assert (s.reward[m] == buffer.reward[s.index[m]]).all() and (
        s.done[m] == buffer.done[s.index[m]]
    ).all()
    for x in (s.z, s.action, s.reward, s.done, s.index):                        # padding is zero
        assert not x[~m].any()
    assert not buffer.last[s.index][:, :-1][both].any()     # nothing follows a final observation
    assert torch.isin(s.index[m], buffer.filled()).all()


def transitions(truth, ring):
    "(environment, episode, step) of every transition of which both rows are stored, the slow way."
    found = set()
    for t in truth:
        kept = set(range(max(0, len(t) - ring), len(t)))
        label = t.obs["label"]
        found |= {tuple(label[p]) for p in kept if p + 1 in kept and label[p, 1] == label[p + 1, 1]}
    return found


def all_windows(buffer, T):
    return buffer.window(torch.arange(buffer.count_windows(T)), T)


@given(histories(), st.integers(2, 12), st.data())
@SETTINGS
def test_segments_never_mix_episodes_and_each_shows_a_transition(history, T, data):
    buffer, truth = history
    c = data.draw(st.integers(1, T - 1))
    if not transitions(truth, buffer.ring):
        with pytest.raises(UserError, match="collect some steps"):
            buffer.segments(200, T, c, generator())
        return
    for s in (buffer.segments(200, T, c, generator()), all_windows(buffer, T)):
        check_windows(buffer, s, T)
        assert (s.mask[:, 1:] & s.mask[:, :-1]).any(1).all()


@given(histories(), st.integers(1, 9))
@SETTINGS
def test_contexts_end_where_an_action_follows(history, T):
    buffer, _ = history
    if buffer.steps == 0:
        with pytest.raises(UserError):
            buffer.contexts(3, T)
        return
    s = buffer.contexts(200, T, generator())
    check_windows(buffer, s, T)
    assert s.mask[:, -1].all() and not buffer.last[s.index[:, -1]].any()
    assert (s.mask.int().diff(dim=1) >= 0).all()        # padding on the left only
    full = s.mask.sum(1) == T
    begun = buffer.position[s.index[:, -1]] - torch.maximum(
        buffer.start[s.index[:, -1]], buffer.lists()[2][s.index[:, -1] // buffer.ring]
    )
    assert (full == (begun >= T - 1)).all() and (
        s.mask.sum(1) == torch.clamp(begun + 1, max=T)
    ).all()


@given(histories(), st.sampled_from([2, 3, 10, 20]))
@SETTINGS
def test_every_transition_stands_once_at_every_place(history, T):
    buffer, truth = history
    s = all_windows(buffer, T)
    shows = s.mask[:, 1:] & s.mask[:, :-1]  # the transition that begins at place j - 1
    window, place = torch.nonzero(shows, as_tuple=True)
    label = buffer.obs["label"][s.index[window, place]].tolist()
    count = Counter((*row, j) for row, j in zip(label, place.tolist()))
    assert count == {(*row, j): 1 for row in transitions(truth, buffer.ring) for j in range(T - 1)}
    for c in (1, min(2, T - 1)):  # so both kinds of targets are as frequent
        rows = s.index[:, c - 1:-1][shows[:, c - 1:]]
        observed = Counter(map(tuple, buffer.obs["label"][rows].tolist()))
        assert set(observed.values()) <= {T - c}
    ends = (s.done[:, :-1] & shows).sum(0)  # an end is as likely at each place
    assert (ends == ends[0]).all()


@given(histories(), st.integers(2, 20))
@SETTINGS
def test_padding_is_what_the_chapter_says(history, T):
    buffer, truth = history
    length = Counter(row[:2] for row in transitions(truth, buffer.ring))        # L of every episode
    s = all_windows(buffer, T)
    assert len(s.mask) == sum(L + T - 2 for L in length.values())
    assert s.mask.sum() == sum(T * (L + 1) - 2 for L in length.values())


def test_probabilities_are_those_of_the_chapter():
    T, n = 8, 301
    buffer = ReplayBuffer(400, SPEC, 2, 3)
    buffer.extend(0, stream(0, [300], 0))
    s, draws, windows = buffer.segments(200_000, T, 3, generator(1)), 200_000, 300 + T - 2
    shows = s.mask[:, :-1] & s.mask[:, 1:]
    for j in (0, 4, T - 2):  # places 1, 5, 7 of a target: each transition 1 / W times
        rate = torch.bincount(s.index[:, j][shows[:, j]], minlength=n) / draws * windows
        assert rate[-1] == 0 and (rate[:-1] - 1).abs().max() < 5 * (windows / draws) ** 0.5
    ends = (
        torch.bincount(buffer.contexts(200_000, 4, generator(2)).index[:, -1], minlength=n)
        / 200_000
        * 300
    )
    assert ends[-1] == 0 and (ends[:-1] - 1).abs().max() < 5 * (300 / 200_000) ** 0.5
    frames = (
        torch.bincount(buffer.frames(200_000, generator(3))["label"][:, 2], minlength=n)
        / 200_000
        * n
    )
    assert (frames - 1).abs().max() < 5 * (n / 200_000) ** 0.5


def test_drawing_asks_the_device_for_no_number():
    "On the device `meta` tensors have no values: what needs one, like a copy to the host, fails."
    buffer = ReplayBuffer(60, SPEC, 2, 3, 2)
    buffer.extend(0, stream(0, [5, 1, 9], 3))
    buffer.extend(1, stream(1, [30], 9))
    # found once, after new data came
    buffer._lists = RowLists(*(x.to("meta") for x in buffer.lists()))
    for name in ("action", "tokens", "reward", "done", "last", "position", "start", "end"):
        setattr(buffer, name, getattr(buffer, name).to("meta"))
    buffer.device = torch.device("meta")
    buffer.obs = {k: x.to("meta") for k, x in buffer.obs.items()}
    assert buffer.segments(7, 6, 2).z.shape == (7, 6, 3)
    assert buffer.contexts(7, 4).mask.shape == (7, 4)
    assert buffer.frames(7)["label"].shape == (7, 3)
    with pytest.raises((RuntimeError, NotImplementedError)):
        buffer.position[buffer.done]                                    # what would not do


@given(histories(), st.integers(0, 3))
@SETTINGS
def test_saved_and_loaded_buffers_go_on_alike(history, seed):
    buffer, truth = history
    copy = ReplayBuffer(buffer.capacity, SPEC, 2, 3, buffer.num_envs)
    state = buffer_state(buffer)
    assert all(isinstance(x, torch.Tensor) and x.is_contiguous() for x in state.values())
    assert len(state["obs.label"]) == len(buffer)       # only the filled part
    restore_buffer(copy, state)
    for b in (buffer, copy):
        b.extend(0, stream(0, [3], 2))
    for name, x in buffer.tensors().items():
        assert torch.equal(x[buffer.filled()], copy.tensors()[name][copy.filled()])
    a, b = (x.segments(50, 6, 2, generator(seed)) for x in (buffer, copy))
    assert torch.equal(a.index, b.index) and torch.equal(a.z, b.z) and torch.equal(a.mask, b.mask)
    assert (
        len(buffer) == len(copy)
        and buffer.steps == copy.steps
        and buffer.open_start == copy.open_start
    )


def test_loading_changes_no_saved_tensor_and_survives_safetensors(tmp_path):
    from safetensors.torch import load_file, save_file
    buffer = ReplayBuffer(30, SPEC, 2, 3, 2)
    buffer.extend(0, stream(0, [5, 4], 3))
    buffer.extend(1, stream(1, [20], 4))
    save_file(buffer_state(buffer), tmp_path / "replay.safetensors")
    copy = ReplayBuffer(30, SPEC, 2, 3, 2)
    restore_buffer(copy, load_file(tmp_path / "replay.safetensors"))
    assert all(
        torch.equal(x, y) for x, y in zip(buffer.tensors().values(), copy.tensors().values())
    )
    empty = ReplayBuffer(30, SPEC, 2, 3, 2)
    restore_buffer(empty, buffer_state(ReplayBuffer(30, SPEC, 2, 3, 2)))
    assert len(empty) == 0


@pytest.mark.parametrize("capacity,num_envs", [(40, 1), (20, 2), (30, 3)])
def test_a_state_of_another_shape_is_refused(capacity, num_envs):
    buffer = ReplayBuffer(30, SPEC, 2, 3, 2)
    for e in range(2):
        buffer.extend(e, stream(e, [9, 9], 0))
    with pytest.raises(UserError):
        other = ReplayBuffer(capacity, SPEC, 2, 3, num_envs)
        restore_buffer(other, buffer_state(buffer))


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(0, 50), st.booleans())
@SETTINGS
def test_episode_bounds(last, first, going_on):
    last = np.array(last)
    open_start = max(0, first - 3) if going_on and first else None
    start, end = episode_bounds(last, first, open_start)
    begun = open_start if open_start is not None else first
    for i in range(len(last)):                          # one row after another
        assert start[i] == begun
        tail = np.flatnonzero(last[i:])
        assert end[i] == first + (i + tail[0] if len(tail) else len(last) - 1)
        if last[i]:
            begun = first + i + 1


def test_close_separates_what_comes_next():
    buffer = ReplayBuffer(40, SPEC, 2, 3)
    buffer.extend(0, stream(0, [], 6))
    buffer.close()
    buffer.extend(0, stream(1, [], 6))
    check = buffer.segments(300, 4, 2, generator())
    label = buffer.obs["label"][check.index]
    both = check.mask[:, 1:] & check.mask[:, :-1]
    assert (label[:, 1:, 0] == label[:, :-1, 0])[both].all()
    assert buffer.end[:6].eq(5).all() and buffer.start[6:12].eq(6).all()


def test_memory_of_atari_100k():
    spec = ObsSpec((Modality("obs", "image", (64, 64, 3)),))
    small = ReplayBuffer(50, spec, 1, 64)
    assert (
        small.nbytes
        == 50 * row_bytes(spec, 1, 64)
        == sum(x.element_size() * x.numel() for x in small.tensors().values())
    )
    assert row_bytes(spec, 1, 64) * 100_000 < 1.3e9
    assert (
        small.obs["obs"].dtype == torch.uint8
        and small.tokens.dtype == small.action.dtype == torch.int16
    )


def test_all_kinds_of_observation_round_trip():
    spec = ObsSpec(
        (
            Modality("eye", "image", (8, 8, 3)), Modality("arm", "vector", (4,)),
            Modality("map", "grid", (3, 3, 2), nvec=(5, 4096))
        )
    )
    rng, n = np.random.default_rng(0), 7
    obs = {
        "eye": rng.integers(256, size=(n, 8, 8, 3)).astype(np.uint8),
        "arm": rng.normal(size=(n, 4)).astype(np.float32), "map": rng.integers(4, size=(n, 3, 3, 2))
    }
    obs["map"][..., 1] = 4095
    buffer = ReplayBuffer(10, spec, 1, 5)
    buffer.extend(
        0,
        Rows(
            obs, np.ones((n, 1), np.int64), np.ones(n, np.float32), np.zeros(n, bool),
            np.zeros(n, bool)
        ),
    )
    for k, x in buffer.gather_obs(torch.arange(n)).items():
        assert (x.numpy() == obs[k]).all()
    assert buffer.gather_obs(torch.zeros(2, 3, dtype=torch.long))["eye"].shape == (2, 3, 8, 8, 3)
    assert {k: x.shape[0] for k, x in buffer.frames(4, generator()).items()} == {
        "eye": 4, "arm": 4, "map": 4
    }


@pytest.mark.parametrize("call", [
    lambda b: b.frames(2), lambda b: b.segments(2, 4), lambda b: b.contexts(2, 4),
    lambda b: ReplayBuffer(3, SPEC, 1, 1, num_envs=2)])
def test_mistakes_say_what_to_do(call):
    with pytest.raises(UserError):
        call(ReplayBuffer(10, SPEC, 2, 3))


@pytest.mark.parametrize("length,context", [(4, 4), (4, 0), (1, 1)])
def test_segments_need_room_for_a_target(length, context):
    buffer = ReplayBuffer(10, SPEC, 2, 3)
    buffer.extend(0, stream(0, [4], 0))
    with pytest.raises(UserError, match="context"):
        buffer.segments(2, length, context)


class Coin(gymnasium.Env):
    "A ball falls for `fall` steps; then a coin decides: the game is over, or a new ball falls."
    action_space = gs.Discrete(2)

    def __init__(self, fall):
        self.fall, self.observation_space = fall, gs.Discrete(fall)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.height = 0
        return self.height, {}

    def step(self, action):
        self.height = (self.height + 1) % self.fall
        return self.height, 0.0, self.height == 0 and self.np_random.random() < 0.5, False, {}


def play_coin(fall, games):
    "A buffer full of games of `Coin`, the height as token."
    env = Coin(fall)
    buffer = ReplayBuffer(4 * fall * games, ObsSpec.from_space(env.observation_space), 1, 1)
    for game in range(games):
        heights, done = [env.reset(seed=game)[0]], [False]
        while not done[-1]:
            height, _, end, _, _ = env.step(0)
            heights, done = [*heights, height], [*done, end]
        n = len(heights)
        last, none = np.arange(n) == n - 1, np.zeros((n, 1), np.int64)
        (key,) = buffer.obs
        seen = np.array(heights).reshape(n, *buffer.obs[key].shape[1:])
        ended = np.array([*done[1:], False])
        buffer.extend(0, Rows({key: seen}, none, np.zeros(n, np.float32), ended, last))
        new = buffer.rows_of(0, np.arange(buffer.written[0] - n, buffer.written[0]))
        buffer.set_tokens(new, torch.tensor(heights)[:, None])
    return buffer


def pushed_back(buffer, batch, T, context, generator):
    "The windows as one would draw them first, Eq. (2.6b): inside the episode."
    rows = buffer.filled()
    row = rows[torch.randint(len(rows), (batch,), generator=generator)]
    place = torch.randint(T, (batch,), generator=generator)
    begin = torch.minimum(buffer.position[row] - place, buffer.end[row] - T + 1)
    return windows(buffer, row, torch.maximum(begin, buffer.first_position(row) - context + 1), T)


def end_by_place(s, fall):
    "Share of ends among the landings at each place."
    landing = s.mask[:, :-1] & s.mask[:, 1:] & (s.z[:, :-1, 0] == fall - 1)
    return (s.done[:, :-1] & landing).sum(0) / landing.sum(0)


@pytest.mark.parametrize("fall,T", [(1, 4), (3, 8), (9, 10)])
def test_the_place_does_not_tell_the_end(fall, T):
    buffer = play_coin(fall, 300)
    share = end_by_place(all_windows(buffer, T), fall)
    assert (share == share[0]).all() and abs(share[0] - 0.5) < 5 * 0.5 / 600 ** 0.5
    old = end_by_place(pushed_back(buffer, 20_000, T, 1, generator()), fall).nan_to_num()
    assert old.max() - old.min() > 0.2                                  # this test can fail


def test_a_small_world_model_expects_the_end_wherever_it_stands():
    fall, T, updates = 9, 10, 250
    buffer = play_coin(fall, 300)
    layout = MultiModalTokenizer(ObsSpec.from_space(gs.Discrete(fall)), TokenizerConfig()).layout
    # a ball that lands at place fall - b
    z = (torch.arange(T) + torch.arange(fall)[:, None])[..., None] % fall
    expected = {}
    for name, draw in (("old", pushed_back), ("new", ReplayBuffer.segments)):
        torch.manual_seed(0)
        size = RetNetConfig(width=16, heads=2, layers=1, dropout=0.0, windows=(2.0, 8.0))
        config = WorldModelConfig(size, reward_bins=3)
        M = WorldModel(layout, ActionSpec.from_space(Coin.action_space), config)
        g, optimizer = generator(), torch.optim.AdamW(M.parameters(), 5e-3)
        for update in range(updates):
            for group in optimizer.param_groups:
                group["lr"] = 5e-3 * (1 - update / updates)
            s = draw(buffer, 64, T, 1, g)
            loss, _ = world_model_loss(M, s.z, s.action, s.reward, s.done, s.mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            p = M(z, torch.zeros_like(z))[0].done.sigmoid()                     # (fall, T)
        # at the landing, by its place
        expected[name] = torch.stack([p[fall - j, j - 1] for j in range(1, T)])
    assert (expected["new"] - end_by_place(all_windows(buffer, T), fall)).abs().max() < 0.1
    assert expected["old"][-1] > 0.55 and (expected["old"][:-1] < 0.2).all()
