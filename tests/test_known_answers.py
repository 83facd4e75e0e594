"""Memory and Rooms: their rules, and how well they can be played, computed here in other ways."""
import itertools
from collections import Counter, deque

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from simulus_nb.baselines import Match, play, rule_of, rule_player
from simulus_nb.envs import make_env
from simulus_nb.memory import Memory, best_return, best_within, waits
from simulus_nb.rooms import (
    BEARER, DOOR, GOAL, HEADS, KEY, MOVES, TAILS, WALKER, WALL, Rooms, after, luck, plan,
    random_walk, read_map, steps_to_goal, table
)
from simulus_nb.spaces import UserError


def episode(env, actions, seed):
    "What is shown, and the rewards, of an episode with these actions."
    seen, rewards, over = [env.reset(seed=seed)[0]], [], False
    for a in actions:
        shown, reward, over, cut, _ = env.step(a)
        seen.append(shown)
        rewards.append(reward)
        if over or cut:
            break
    return seen, rewards, over


@pytest.mark.parametrize("name", ["simulus/Memory-v0", "simulus/Rooms-v0"])
def test_the_worlds_keep_the_rules_of_gymnasium(name):
    check_env(make_env(name, render_mode="rgb_array").unwrapped)
    worlds = gymnasium.make_vec(name, num_envs=3)
    seen, _ = worlds.reset(seed=0)
    assert worlds.observation_space.contains(seen)


@pytest.mark.parametrize("world", [Memory, Rooms])
def test_equal_seeds_are_equal_episodes(world):
    first, same, other = (episode(world(), [0] * 40, seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(first, same) and not np.array_equal(first, other)


@pytest.mark.parametrize("world", [Memory, Rooms])
@pytest.mark.parametrize("action", [-1, 4, 0.5, "up", None])
def test_actions_that_do_not_exist_are_refused(world, action):
    env = world()
    env.reset(seed=0)
    with pytest.raises(UserError, match="has the actions 0"):
        env.step(action)


@pytest.mark.parametrize(
    "world,options,said",
    [
        (Memory, {"signals": 2}, "option signals must be a whole number from 3 to 8"),
        (Memory, {"signals": 3.0}, "option signals must be"),
        (Memory, {"delay": 0}, "option delay must be a whole number from 1 to"),
        (Memory, {"delay": (1.5, 3)}, "option delay must be"),
        (Memory, {"delay": "10-30"}, "option delay must be"),
        (Memory, {"delay": (30, 10)}, "delay like 20 or (10, 30)"),
        (Memory, {"delay": (1, 2, 3)}, "delay like 20 or (10, 30)"),
        (Memory, {"delay": []}, "delay like 20 or (10, 30)"),
        (Memory, {"lamps": 1.5}, "option lamps must be a number from 0 to 1"),
        (Rooms, {"side": 1}, "option side must be a whole number from 2"),
        (Rooms, {"coin": 1}, "option coin must be true or false"),
    ],
)
def test_senseless_options_are_refused_in_one_line(world, options, said):
    with pytest.raises(UserError) as e:
        world(**options)
    assert said in str(e.value) and len(str(e.value).splitlines()) == 1


# ---------------------------------------------------------------- Memory

@settings(deadline=None, max_examples=40)
@given(st.integers(3, 8), st.integers(1, 9), st.integers(0, 6), st.integers(0, 10_000))
def test_a_signal_a_wait_a_question(n, least, more, seed):
    env = Memory(signals=n, delay=(least, least + more))
    seen, rewards, over = episode(env, [seed % n] * 99, seed)
    signal, *lamps, question, end = seen
    assert over and least <= len(lamps) <= least + more and question == end
    assert signal < n <= min(lamps) and max(lamps) <= 2 * n < question <= 3 * n
    assert question - 2 * n - 1 != signal                       # the right answer is never struck
    assert not any(rewards[:-1]) and rewards[-1] == (1 if signal == seed % n else -1)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 2), min_size=32, max_size=32))
def test_what_the_player_does_while_it_waits_changes_nothing(seed, actions):
    assert episode(Memory(), actions, seed)[0] == episode(Memory(), [0] * 40, seed)[0]


def test_signal_wait_and_struck_answer_are_drawn_evenly_and_lamps_say_nothing():
    env, lamps = Memory(delay=(2, 5), lamps=1), Counter()
    signals, wait, pairs = Counter(), Counter(), Counter()
    for seed in range(2_400):
        signal, *lit, question, _ = episode(env, [0] * 9, seed)[0]
        signals[signal] += 1
        wait[len(lit)] += 1
        pairs[signal, question - 7] += 1
        lamps[signal, lit[-1]] += 1
    for counts, n in ((signals, 3), (wait, 4), (pairs, 6), (lamps, 9)):
        expected = 2_400 / n
        assert len(counts) == n
        # chi-squared with at most 8 degrees of freedom: p < 0.001
        assert sum((c - expected) ** 2 / expected for c in counts.values()) < 26


def test_lamps_are_lit_as_often_as_asked():
    for lamps in (0, 0.1, 1):
        env = Memory(delay=200, lamps=lamps)
        lit = np.array([episode(env, [0] * 203, seed)[0][1:-2] for seed in range(10)]) != 3
        spread = (lamps * (1 - lamps) / lit.size) ** 0.5
        assert abs(lit.mean() - lamps) <= 4 * spread


def histories(n, least, most):
    "(chance, signal, all observations up to the question) of every course of an episode."
    for D in range(least, most + 1):
        for signal, *lamps in itertools.product(range(n), *[range(n + 1, 2 * n + 1)] * D):
            for j in range(n):
                if j != signal:
                    chance = 1 / (most - least + 1) / n ** (D + 1) / (n - 1)
                    yield chance, signal, (signal, *lamps, 2 * n + 1 + j)


@pytest.mark.parametrize("n", [3, 4])
@pytest.mark.parametrize("delay", [(1, 3), (2, 4)])
def test_bounds_are_those_of_all_histories(n, delay):
    "The best answer to every view, found by listing all that can have led to it."
    def best(view):
        right = Counter()
        for chance, signal, seen in histories(n, *delay):
            right[view(seen), signal] += chance
        views = {y for y, _ in right}
        return 2 * sum(max(right[y, s] for s in range(n)) for y in views) - 1
    assert sum(chance for chance, *_ in histories(n, *delay)) == pytest.approx(1)
    assert best(lambda seen: seen) == pytest.approx(best_return(n))
    assert best(lambda seen: seen[1:]) == pytest.approx(best_return(n, remembers=False))
    assert best(lambda seen: len(seen)) == pytest.approx(best_return(n, False, sees=False))
    for k in range(1, delay[1] + 3):
        assert best(lambda seen: seen[-k:]) == pytest.approx(best_within(n, delay, k))


@given(st.integers(3, 8), st.integers(1, 40), st.integers(0, 40), st.integers(1, 90))
def test_a_longer_memory_is_never_worth_less(n, least, more, k):
    delay = (least, least + more)
    a, b = (best_within(n, delay, i) for i in (k, k + 1))
    blind, sees = best_return(n, False, False), best_return(n, remembers=False)
    values = np.array([-1, blind, sees, a, b, 1])
    assert (np.diff(values) >= -1e-9).all() and blind < sees - 0.01
    assert waits(delay) == waits(list(delay)) == delay
    assert best_within(n, delay, least + 1) == pytest.approx(sees)
    assert best_within(n, delay, least + more + 2) == pytest.approx(1)


# ---------------------------------------------------------------- Rooms

def places(side):
    "All places where a player can be, with every key."
    cells = plan(side)
    for key in np.ndindex(side, side):
        for held, row, col in np.ndindex(2, *cells.shape):
            if cells[row, col] != WALL and (held or (row, col) != key and cells[row, col] != DOOR):
                yield key, (held, row, col)


@pytest.mark.parametrize("side", [2, 3])
@pytest.mark.parametrize("coin", [False, True])
def test_the_map_says_all(side, coin):
    "What follows an action depends on the map and on nothing before it: the world has no memory."
    env, known = Rooms(side=side, coin=coin), {}
    env.reset(seed=0)
    for key, place in places(side):
        env.key, env.place = key, place
        seen = env._look()
        assert env.observation_space.contains(seen)
        shown, where = read_map(seen)
        assert where == place and (place[0] or shown == key)
        for a in range(len(MOVES)):
            env.place = place
            reward, over = env.step(a)[1:3]
            to = after(env.cells, key, place, a)
            assert env.place == to and over == (env.cells[to[1:]] == GOAL) == (reward == 1)
            after_map = (to, to[0] or key)
            assert known.setdefault((shown, where, a), after_map) == after_map


def test_walls_and_the_locked_door_stop_the_player():
    cells = plan(3)
    for key, place in places(3):
        for a in range(len(MOVES)):
            held, row, col = after(cells, key, place, a)
            assert cells[row, col] != WALL and (held or cells[row, col] != DOOR)
            assert abs(row - place[1]) + abs(col - place[2]) <= 1 and held >= place[0]
            assert held == place[0] or (row, col) == key


def search(side, key, start):
    "Steps of the shortest way, by a queue."
    cells, found, queue = plan(side), {start: 0}, deque([start])
    while queue:
        place = queue.popleft()
        if cells[place[1:]] == GOAL:
            return found[place]
        for a in range(len(MOVES)):
            to = after(cells, key, place, a)
            if to not in found:
                found[to] = found[place] + 1
                queue.append(to)


@pytest.mark.parametrize("side", [2, 3, 4])
def test_shortest_ways_are_those_of_a_search(side):
    for key in [(0, 0), (side - 1, side - 1), (side // 2, 0)]:
        h = steps_to_goal(side, key)
        for row, col in itertools.product(range(side), range(side + 1, 2 * side + 1)):
            assert h[0, row, col] == search(side, key, (0, row, col))


def test_luck_is_that_of_all_sequences_of_actions():
    "Chances carried from map to map by the environment itself."
    side, steps = 2, 14
    env, goal, exact = Rooms(side=side), np.zeros(steps + 1), luck(side, steps)[0]
    env.reset(seed=0)
    starts = itertools.product(np.ndindex(2, 2), itertools.product((0, 1), (3, 4)))
    now = {(key, (0, *start)): 1 / 16 for key, start in starts}
    for t in range(1, steps + 1):
        then = Counter()
        goal[t] = goal[t - 1]
        for (key, place), chance in now.items():
            for a in range(4):
                env.key, env.place = key, place
                if env.step(a)[2]:
                    goal[t] += chance / 4
                else:
                    then[key, env.place] += chance / 4
        now = then
    assert np.allclose(goal, exact, atol=1e-12) and 0 < exact[-1] < 0.01


@pytest.mark.parametrize("side", [2, 3])
def test_random_play_is_a_chain(side):
    for key in [(0, 0), (1, 1)]:
        P, leads = random_walk(side, key), table(side, key)
        assert np.allclose(P.sum(1), 1) and (P >= 0).all() and leads.shape == (4, len(P))
    chances, tau = luck(side, 200)
    assert (np.diff(chances) >= -1e-12).all() and tau > (1 - chances).sum()


def test_the_default_rooms_are_hard_for_luck_and_easy_for_who_knows():
    chances, _ = luck(3, 60)
    longest = max(steps_to_goal(3, key)[0, :, 4:7].max() for key in np.ndindex(3, 3))
    assert 0 < chances[60] < 0.01 and longest == 20
    env = make_env("simulus/Rooms-v0")
    env.reset(seed=0)
    assert [env.step(0)[3] for _ in range(60)] == [False] * 59 + [True]
    env = make_env("simulus/Rooms-v0", max_episode_steps=5)
    env.reset(seed=0)
    assert [env.step(0)[3] for _ in range(5)] == [False] * 4 + [True]


def test_the_coin_is_fair_seen_from_one_room_only_and_changes_nothing():
    plain, env, faces = Rooms(), Rooms(coin=True), []
    for seed in range(40):
        a, b = plain.reset(seed=seed)[0], env.reset(seed=seed)[0]
        for action in np.random.default_rng(seed).integers(4, size=40):
            assert np.isin(a, range(BEARER + 1)).all()
            inside = 3 < env.place[2] < 7
            assert (b[0, 3] in (HEADS, TAILS)) == inside and (inside or b[0, 3] == WALL)
            faces += [b[0, 3] == HEADS] * inside
            b[0, 3] = WALL
            assert np.array_equal(a, b) and ((a == WALKER) | (a == BEARER)).sum() == 1
            assert (a == KEY).sum() == 1 - env.place[0]
            a, b = plain.step(action)[0], env.step(action)[0]
    assert abs(np.mean(faces) - 0.5) < 4 * 0.5 / len(faces) ** 0.5
    again = np.mean(np.diff(np.array(faces).astype(int)) == 0)
    assert abs(again - 0.5) < 4 * 0.5 / len(faces) ** 0.5


# ---------------------------------------------------------------- rules

@pytest.mark.parametrize("name,options", [
    ("simulus/Memory-v0", {}), ("simulus/Memory-v0", {"signals": 5, "delay": 3}),
    ("simulus/Rooms-v0", {}), ("simulus/Rooms-v0", {"side": 4, "coin": True})])
def test_the_rule_reaches_the_optimum(name, options):
    match = Match(name, lambda training: make_env(name, **options), steps=0)
    assert rule_of(name) is not None
    assert set(play(match, rule_player(match)[0], 25, seed=3).returns) == {1.0}
