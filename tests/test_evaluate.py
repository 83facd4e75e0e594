"""Evaluation: quotas, no bias from lengths, repeatability, statistics of episodes against NumPy and
SciPy, and the common scale."""
import json
import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces as gs
from hypothesis import given, settings
from hypothesis import strategies as st

from simulus_nb.evaluate import (
    ATARI_SCORES, Evaluation, RandomAgent, evaluate, game_name, human_normalised, quotas
)
from simulus_nb.lockstep import score_report
from simulus_nb.spaces import ActionSpec, ObsSpec, UserError


class Survive(gymnasium.Env):
    "Episodes of geometric length; return = length. Expected return 1 / stop."
    observation_space = gs.Box(-1, 1e6, (2,), np.float32)
    action_space = gs.MultiDiscrete([3, 2])
    def __init__(self, log=None, stop=0.1, report=False):
        self.log, self.stop, self.report, self.closed = (
            log if log is not None else [], stop, report, False
        )
        if report:
            self.reports_score = True                           # as the library's own wrappers say
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.t, self.over = seed, 0, False
        self.log.append(self)
        return np.array([0, seed % 1000], np.float32), {}
    def step(self, action):
        assert not self.over and self.action_space.contains(np.asarray(action)), (
            "stepped after the end, or a wrong action"
        )
        self.t += 1
        self.over = bool(self.np_random.random() < self.stop)
        return (
            np.array([self.t, self.seed % 1000], np.float32), 1.0, self.over, False,
            {"episode_return": 100.0} if self.over and self.report else {}
        )
    def close(self):
        self.closed = True


def random_agent(env):
    return RandomAgent(
        ObsSpec.from_space(env.observation_space), ActionSpec.from_space(env.action_space)
    )


PLAYER = random_agent(Survive())


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 9))
def test_exact_quota(episodes, n):
    q = quotas(episodes, n)
    assert q.sum() == episodes and (q == [math.ceil((episodes - i) / n) for i in range(n)]).all()
    logs = [[] for _ in range(n)]
    result = evaluate(
        PLAYER, [lambda log=log: Survive(log) for log in logs], episodes=episodes, seed=1
    )
    # resets = episodes: none started in vain, none dropped
    assert [len(log) for log in logs] == q.tolist()
    assert len(result.returns) == len(result.lengths) == episodes and result.returns == tuple(
        map(float, result.lengths)
    )
    assert all(env.closed for log in logs for env in log)


def test_same_episodes_on_any_number_of_environments():
    # lengths here depend on the episode's seed alone, so the seeds are what is compared
    results = [evaluate(PLAYER, [Survive] * n, episodes=30, seed=4) for n in (1, 3, 8, 50)]
    assert len({r.returns for r in results}) == 1
    assert evaluate(PLAYER, [Survive] * 3, episodes=10, seed=4).returns == results[0].returns[:10]
    assert evaluate(PLAYER, [Survive] * 3, episodes=30, seed=5) != results[0]
    assert len(set(results[0].returns)) > 3


def test_unbiased_where_length_is_return():
    result = evaluate(PLAYER, [Survive] * 16, episodes=1600, seed=0)
    assert abs(result.mean - 10) < 4 * result.sem and 0.15 < result.sem < 0.35
    # the loop that stops at the E-th end, on the same distribution: clearly biased, by Eq. (22.3)
    lengths = np.random.default_rng(0).geometric(0.1, (3000, 16, 60)).astype(float)
    order = np.argsort(lengths.cumsum(-1).reshape(3000, -1), axis=1, kind="stable")[:, :64]
    first = np.take_along_axis(lengths.reshape(3000, -1), order, 1).mean()
    assert first < 9 and abs(first - (10 - 15 / 64 * lengths.var() / 10)) < 0.5


def test_repeatable_with_a_noisy_policy():
    class Score(Survive):
        "Return depends on the actions."
        def step(self, action):
            obs, _, over, cut, info = super().step(action)
            return obs, float(action[0]), over, cut, info
    a, b, c = (evaluate(PLAYER, [Score] * 4, episodes=20, seed=s) for s in (0, 0, 1))
    assert a == b and a != c


def test_global_randomness_untouched():
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    evaluate(PLAYER, [Survive] * 2, episodes=4)
    assert (
        torch.equal(torch.get_rng_state(), before[0])
        and (np.random.get_state()[1] == before[1]).all()
    )


def test_policy_sees_what_it_should():
    calls = []
    class Watcher(RandomAgent):
        def policy(self, num_envs, temperature=1.0, epsilon=0.0, generator=None):
            assert (num_envs, temperature, epsilon) == (3, 0.25, 0.0) and isinstance(
                generator, torch.Generator
            )
            inner = super().policy(num_envs, temperature, epsilon, generator)
            def act(obs, reset):
                assert (
                    obs["obs"].shape == (3, 2)
                    and reset.dtype == bool
                    and not torch.is_grad_enabled()
                )
                calls.append((obs["obs"][:, 0].copy(), reset.copy()))
                return inner(obs, reset)
            return act
    evaluate(
        Watcher(PLAYER.obs_spec, PLAYER.action_spec), [Survive] * 3, episodes=11, temperature=0.25
    )
    assert calls[0][1].all() and sum(reset.sum() for _, reset in calls) == 11
    # a flag is set exactly with an episode's first observation
    assert all((reset == (t == 0)).all() for t, reset in calls)


def test_raw_score_and_cut():
    class Raw(gymnasium.Wrapper):
        "A wrapper of ours that knows better, as Atari's with its clipped rewards does."
        reports_score = True
        def step(self, action):
            obs, reward, terminated, truncated, info = self.env.step(action)
            return (
                obs, reward, terminated, truncated,
                info | (score_report(100.0, 3) if terminated else {})
            )
    reported = evaluate(PLAYER, [lambda: Raw(Survive())] * 2, episodes=6)
    assert reported.returns == (100.0,) * 6                     # that score, not the sum of rewards
    own = evaluate(PLAYER, [lambda: Survive(report=True)] * 2, episodes=6)
    assert own.returns == own.lengths == reported.lengths  # what a world itself says does not count
    cut = evaluate(PLAYER, [lambda: Survive(stop=0.0)] * 2, episodes=5, max_steps=7)
    assert cut.lengths == (7,) * 5 and cut.returns == (7.0,) * 5 and cut.capped == 5


def test_environments_are_closed_after_an_error():
    made = []
    class Broken(Survive):
        def __init__(self):
            super().__init__()
            made.append(self)
        def step(self, action):
            raise RuntimeError("broken")
    with pytest.raises(RuntimeError, match="broken"):
        evaluate(PLAYER, [Broken] * 3, episodes=5)
    assert len(made) == 3 and all(e.closed for e in made)
    for bad in (dict(env_fns=[], episodes=3), dict(env_fns=[Survive], episodes=0)):
        with pytest.raises(UserError, match="at least one"):
            evaluate(PLAYER, **bad)


@pytest.mark.parametrize(
    "space",
    [
        gs.Discrete(4), gs.Discrete(3, start=-1), gs.MultiDiscrete([2, 5]),
        gs.Box(-2, 3, (2,), np.float32)
    ],
)
def test_random_agent_covers_its_space_evenly(space):
    spec = ActionSpec.from_space(space)
    act = RandomAgent(PLAYER.obs_spec, spec).policy(
        4000, generator=torch.Generator().manual_seed(0)
    )
    tokens = act({}, np.ones(4000, bool))
    assert tokens.shape == (4000, spec.count) and all(
        space.contains(a if isinstance(space, gs.Box) else np.asarray(a, dtype=np.int64)[()])
        for a in spec.decode(tokens)[:50]
    )
    for k, n in enumerate(spec.nvec):
        counts = np.bincount(tokens[:, k], minlength=n)
        assert len(counts) == n and np.abs(counts - 4000 / n).max() < 6 * (4000 / n) ** 0.5


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_evaluation_statistics(values):
    from scipy.stats import sem                                       # SciPy: tests only
    e = Evaluation(tuple(values), tuple(range(1, len(values) + 1)))
    assert e.mean == pytest.approx(np.mean(values), rel=1e-12, abs=1e-9)
    if len(values) > 1:
        assert e.std == pytest.approx(np.std(values, ddof=1)) and e.sem == pytest.approx(
            sem(values), abs=1e-12
        )
    else:
        assert math.isnan(e.sem)
    d = json.loads(json.dumps(e.to_json(), allow_nan=False))          # strict JSON
    assert (
        d["episodes"] == len(values)
        and d["returns"] == values
        and d["lengths"] == list(e.lengths)
        and (d["sem"] is None) == (len(values) == 1)
    )


def test_human_normalised():
    assert human_normalised("ALE/Pong-v5", -20.7) == 0 and human_normalised("Pong", 14.6) == 1
    assert np.allclose(human_normalised("Breakout", np.array([1.7, 30.5, 59.3])), [0, 1, 2])
    for game in ATARI_SCORES:
        snake = "".join("_" * (i > 0 and c.isupper()) + c.lower() for i, c in enumerate(game))
        assert {
            game_name(f)
            for f in (
                game, f"ALE/{game}-v5", f"{game}NoFrameskip-v4", f"{game}Deterministic-v0", snake
            )
        } == {game}
    for wrong in ("ALE/Tetris-v5", "", "Pon", "CartPole-v1"):
        with pytest.raises(UserError, match="not one of the 26"):
            game_name(wrong)


def test_atari_seeds_are_accepted():
    from simulus_nb.envs import make_env
    make = lambda: make_env("ALE/Pong-v5", training=False)
    env = make()
    player = random_agent(env)
    env.close()
    a = evaluate(player, [make] * 2, episodes=2, max_steps=30)
    assert a.lengths == (30, 30) and a == evaluate(player, [make] * 2, episodes=2, max_steps=30)


@pytest.mark.parametrize(
    "odd",
    [
        {"returns": ["1", "2"]}, {"returns": [1.0, None]}, {"returns": [[1.0], 2.0]},
        {"returns": [1.0, 10**400]}, {"returns": [1.0, math.nan]}, {"returns": [True, 2.0]},
        {"returns": [1.0]}, {"returns": []}, {"returns": 3}, {"returns": None},
        {"returns": [], "lengths": []}, {"lengths": [3, -1]}, {"lengths": [3, 2.5]},
        {"lengths": [3, 10**400]}, {"lengths": "34"}, {"capped": "1"}, {"capped": None},
        {"capped": 3}, {"capped": -1}, {"capped": 0.5},
    ],
)
def test_what_is_no_evaluation_is_a_value_error(odd):
    whole = Evaluation((1.0, 2.0), (3, 4), 1).to_json()
    assert Evaluation.from_json(whole) == Evaluation((1.0, 2.0), (3, 4), 1)
    with pytest.raises(ValueError, match="no evaluation"):
        Evaluation.from_json(whole | odd)
