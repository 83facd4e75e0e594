"""The world of many senses: its rules, its exact best returns, and what a player without one sense
can do at most."""
import itertools
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from simulus_nb.parcels import ACTIONS, COLOURS, DRIFTS, Parcels, best_return, drift, pushed
from simulus_nb.spaces import ObsSpec, UserError
from simulus_nb.tokenizer import MultiModalTokenizer, TokenizerConfig
from simulus_nb.vqvae import VQVAEConfig

boards = st.builds(
    dict, rows=st.integers(3, 12), cols=st.integers(3, 9), size=st.sampled_from([12, 32, 47])
)


def play(env, policy, seed=None):
    "One episode: observations, rewards."
    obs, _ = env.reset(seed=seed)
    seen, rewards, over = [obs], [], False
    while not over:
        obs, reward, over, truncated, _ = env.step(policy(env))
        seen.append(obs), rewards.append(reward)
        assert not truncated
    return seen, rewards


def chase(env, gust=True):
    "Towards where the ordered parcel will be; without feeling the gust, towards where it is."
    now = drift(env.wind) if gust else 0
    return int(np.sign(pushed(env.columns, now, env.cols)[env.order] - env.catcher)) + 1


# ---------------------------------------------------------------- the environment

@pytest.mark.parametrize(
    "kwargs", [{}, {"rows": 3, "cols": 3, "size": 9}, {"rows": 10, "cols": 6, "size": 40}]
)
def test_passes_the_checker(kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = Parcels(render_mode="rgb_array", **kwargs)
        env.spec = gymnasium.envs.registration.EnvSpec(
            "Parcels-v0", entry_point="simulus_nb.parcels:Parcels", kwargs=kwargs
        )
        check_env(env)


@pytest.mark.parametrize(
    "kwargs", [{"rows": 2}, {"cols": 2}, {"size": 7}, {"rows": 40}, {"rows": 0, "cols": -1}]
)
def test_silly_boards(kwargs):
    with pytest.raises(UserError, match="Parcels needs|rows must be"):
        Parcels(**kwargs)


@pytest.mark.parametrize("action", [-1, 3, 17])
def test_silly_actions(action):
    env = Parcels()
    env.reset(seed=0)
    with pytest.raises(UserError, match="action"):
        env.step(action)


@settings(deadline=None, max_examples=30)
@given(boards, st.integers(0, 10_000), st.lists(st.integers(0, 2), min_size=11, max_size=11))
def test_an_episode_keeps_the_rules(board, seed, actions):
    env, moves = Parcels(**board), iter(actions)
    env.reset(seed=seed)
    gap, order = np.diff(env.columns)[0], env.order
    seen, rewards = play(env, lambda e: next(moves), seed)
    assert len(rewards) == board["rows"] - 1 and not any(rewards[:-1])
    assert all(env.observation_space.contains(o) for o in seen) and {o["order"] for o in seen} == {
        order
    }
    assert (
        np.diff(env.columns)[0] == gap != 0
        and (0 <= env.columns).all()
        and (env.columns < env.cols).all()
    )
    assert rewards[-1] == int(env.catcher == env.columns[order]) - int(
        env.catcher == env.columns[1 - order]
    )


def test_deterministic_given_the_seed_and_different_otherwise():
    a, b, c = (play(Parcels(), lambda e: 2, seed)[0] for seed in (5, 5, 6))
    for x, y in zip(a, b):
        assert (
            x["order"] == y["order"]
            and np.array_equal(x["picture"], y["picture"])
            and np.array_equal(x["wind"], y["wind"])
        )
    assert any(not np.array_equal(x["wind"], y["wind"]) for x, y in zip(a, c))


def test_picture_shows_both_parcels_and_the_catcher_and_nothing_of_wind_or_order():
    env = Parcels(rows=4, cols=4, size=8)
    env.reset(seed=0)
    env.columns, env.catcher, env.row = np.array([3, 0]), 1, 0
    small = env.render()[::2, ::2]
    assert (
        small.shape == (4, 4, 3)
        and (small[0, 3] == COLOURS[1]).all()
        and (small[0, 0] == COLOURS[2]).all()
        and (small[3, 1] == COLOURS[3]).all()
    )
    before = env.render()
    env.order, env.wind = 1 - env.order, -env.wind
    assert np.array_equal(before, env.render())


# ---------------------------------------------------------------- wind

def test_every_gust_names_its_drift_and_all_drifts_are_alike():
    env, drifts = Parcels(rows=12), []
    for seed in range(60):
        for obs in play(env, lambda e: 1, seed)[0]:
            # never near the thresholds at +-0.5
            assert (
                obs["wind"].shape == (1,)
                and np.abs(obs["wind"] - drift(obs["wind"])).max() <= 0.25 + 1e-6
            )
            drifts.append(drift(obs["wind"]))
    counts = np.bincount(np.array(drifts) + 1, minlength=3)
    expected = len(drifts) / 3
    # chi-squared with 2 degrees of freedom: p = 0.0006
    assert ((counts - expected) ** 2 / expected).sum() < 15


def test_gusts_are_drawn_anew():
    "Nothing can be known of the next gust from the last one."
    env, table = Parcels(rows=12), np.zeros((3, 3))
    for seed in range(80):
        d = [drift(obs["wind"]) + 1 for obs in play(env, lambda e: 1, seed)[0]]
        np.add.at(table, (d[:-1], d[1:]), 1)
    expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    # chi-squared with 4 degrees of freedom: p = 0.0005
    assert ((table - expected) ** 2 / expected).sum() < 20


@given(st.sampled_from(DRIFTS), st.floats(-0.49, 0.49))
def test_drift_is_the_rounded_gust(d, more):
    got = drift(np.array([d + more], np.float32))
    assert got == d and isinstance(got, int)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000))
def test_the_felt_gust_is_the_one_that_blows_next(seed):
    "At every row alike: what an observation says of the wind is what moves its parcels."
    env = Parcels()
    env.reset(seed=seed)
    for _ in range(7):
        before, gust = env.columns, env.wind
        env.step(1)
        assert np.array_equal(env.columns, pushed(before, drift(gust), env.cols))


@given(st.lists(st.integers(0, 5), min_size=2, max_size=2), st.sampled_from(DRIFTS))
def test_pushed_moves_both_or_none(columns, d):
    x = np.array(columns)
    y = pushed(x, d, 6)
    assert (y - x).tolist() in ([0, 0], [d, d]) and 0 <= y.min() and y.max() < 6
    if 0 <= min(columns) + d and max(columns) + d < 6:
        assert (y - x).tolist() == [d, d]


# ---------------------------------------------------------------- how well it can be played

def slow_best(rows, cols, feels_wind):
    "Expectation and maximum, one branch at a time."
    def value(left, a, b, p):
        if left == 0:
            return int(p == a) - int(p == b)
        tree = {}
        for d, m in itertools.product(DRIFTS, ACTIONS):
            x, y = pushed(np.array([a, b]), d, cols)
            tree[d, m] = value(left - 1, x, y, min(max(p + m, 0), cols - 1))
        if feels_wind:
            return sum(max(tree[d, m] for m in ACTIONS) for d in DRIFTS) / 3
        return max(sum(tree[d, m] for d in DRIFTS) / 3 for m in ACTIONS)
    starts = list(itertools.permutations(range(cols), 2))
    return sum(value(rows - 1, a, b, cols // 2) for a, b in starts) / len(starts)


@pytest.mark.parametrize("rows,cols", [(3, 3), (4, 3), (3, 4), (3, 5)])
@pytest.mark.parametrize("feels_wind", [True, False])
def test_best_return_is_that_of_the_full_tree(rows, cols, feels_wind):
    assert best_return(rows, cols, feels_wind) == pytest.approx(
        slow_best(rows, cols, feels_wind), abs=1e-12
    )


@settings(deadline=None, max_examples=20)
@given(st.integers(3, 12), st.integers(3, 9))
def test_wind_is_worth_something_everywhere(rows, cols):
    full, numb = best_return(rows, cols), best_return(rows, cols, feels_wind=False)
    assert 0 < numb < full <= 1


def test_the_default_board():
    assert best_return(8, 4) == pytest.approx(1.0) and best_return(
        8, 4, feels_wind=False
    ) == pytest.approx(11 / 18)
    env = Parcels()
    assert all(play(env, chase, seed)[1][-1] == 1 for seed in range(150))
    numb = [play(env, lambda e: chase(e, gust=False), seed)[1][-1] for seed in range(400)]
    # the bound holds for an obvious player without the sense
    assert np.mean(numb) < 11 / 18 + 4 * np.std(numb) / 20


def test_without_picture_or_order_nothing_can_be_gained():
    """For every sequence of drifts and every last column, the two parcels are equally likely to be
    there."""
    pairs = np.array(list(itertools.permutations(range(4), 2)))
    for drifts in itertools.product(DRIFTS, repeat=5):
        x = pairs
        for d in drifts:
            x = pushed(x, d, 4)
        assert np.array_equal(*(np.bincount(x[:, i], minlength=4) for i in (0, 1)))


# ---------------------------------------------------------------- tokens

def test_one_block_of_tokens():
    env = Parcels()
    spec = ObsSpec.from_space(env.observation_space)
    V = MultiModalTokenizer(
        spec,
        TokenizerConfig(
            image=VQVAEConfig(
                image_size=32, channels=8, stages=3, code_dim=16, vocab=32, perceptual="none"
            )
        ),
    )
    assert {g.key: (g.kind, g.count) for g in V.layout.groups} == {
        "order": ("categorical", 1), "picture": ("image", 16), "wind": ("vector", 1)
    }
    assert V.layout.K == V.layout.S == 18
    quantizer = V.coders[2].quantizer
    for seed in range(40):
        wind = env.reset(seed=seed)[0]["wind"]
        again = quantizer.decode(quantizer.encode(torch.from_numpy(wind))).numpy()
        assert drift(again) == drift(wind)  # rounding to a token never changes what the wind does
