"""Opponents: constants by enumeration, rules at their known values, equal seeds, records that come
back, complaints in one line, and the test of "learnt"."""
import itertools
import json
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces as gs
from hypothesis import given, settings
from hypothesis import strategies as st

from simulus_nb import model_free
from simulus_nb.baselines import PLAYERS, challenge, check_player, who_can
from simulus_nb.model_free import (
    PUBLISHED, ModelFree, Numbers, fitted, numbers, published, whole_rounds
)
from simulus_nb.players import (
    Match, Player, best_of_random, constants, play, rule_player, shortest, way
)
from simulus_nb.search import linear_player
from simulus_nb.records import (
    Record, file_of, interval, lead, learnt, plot, read_record, student, table, write_record
)
from simulus_nb.cli import main, parse
from simulus_nb.catch import CATCH
from simulus_nb.envs import make_env
from simulus_nb.spaces import ObsSpec, UserError


class Prefers(gymnasium.Env):
    "Five steps; each is worth minus the distance of the action from the best one."
    observation_space = gs.Box(-1, 1, (2,), np.float32)

    def __init__(self, space, best):
        self.action_space, self.best = space, np.asarray(best)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        assert self.action_space.contains(np.asarray(action, self.action_space.dtype))
        self.t += 1
        lost = float(np.abs(np.asarray(action) - self.best).sum())
        seen = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return seen, -lost, False, self.t == 5, {}


def match_of(space, best, **changes):
    match = Match("Prefers", lambda training: Prefers(space, best), 200, episodes=6, num_envs=4,
                  every=100, interim=2)
    return replace(match, **changes)


def world(env_id, **changes):
    options = {"image_size": 32} if env_id == CATCH else {}
    match = Match(env_id, lambda training: make_env(env_id, **options), 400, episodes=20)
    return replace(match, **changes)


@pytest.mark.parametrize("space,best", [
    (gs.Discrete(4), 3), (gs.Discrete(3, start=-1), -1), (gs.MultiDiscrete([2, 3]), [1, 2]),
    (gs.MultiBinary(3), [1, 0, 1]), (gs.Box(-2, 2, (1,)), [0]), (gs.Box(-2, 2, (1,)), [2]),
    (gs.Box(-1, 3, (2,)), [3, -1]), (gs.Box(-1, 3, (2, 2)), [[3, -1], [-1, 3]])
], ids=str)
def test_the_best_constant_action_is_found(space, best):
    record = challenge("constant", match_of(space, best))
    assert record.settings["action"] == np.asarray(best).tolist()
    assert record.returns == (0.0,) * 6 and record.settings["tried"] == len(constants(space))


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.floats(-3, 0), st.floats(0.5, 3))
def test_constants_of_a_box(dims, low, high):
    "Centre first; all corners where they are few, else each end of each entry; all inside."
    space = gs.Box(low, high, (dims,), np.float64)
    found = [tuple(a) for a in constants(space)]
    assert found[0] == pytest.approx(((low + high) / 2,) * dims)
    corners = set(itertools.product((low, high), repeat=dims))
    assert (corners <= set(found)) == (dims < 6)
    assert len(found) == 1 + (2**dims if dims < 6 else 2 + 2 * dims)
    assert all(space.contains(np.array(a)) for a in found)


@pytest.mark.parametrize("space", [gs.Box(-np.inf, 1, (1,)), gs.Text(3)], ids=str)
def test_no_constants_without_bounds(space):
    with pytest.raises(UserError, match="no list of constant actions"):
        constants(space)


def test_rules_reach_their_known_values():
    assert challenge("rule", world(CATCH, episodes=60)).returns == (1.0,) * 60
    assert challenge("rule", world("CartPole-v1", episodes=40)).result.mean > 450


@pytest.mark.parametrize("look", ["night", "paper"])
@pytest.mark.parametrize("rows,cols,size", [(10, 5, 32), (6, 7, 21), (16, 8, 48)])
def test_the_rule_of_catch_reads_any_board(look, rows, cols, size):
    "Wherever the paddle can still be below the ball in time."
    make = lambda training: make_env(CATCH, image_size=size, rows=rows, cols=cols, look=look)
    match = Match(CATCH, make, 0, episodes=20)
    assert play(match, rule_player(match).player, 20, 3).returns == (1.0,) * 20


@pytest.mark.parametrize("env_id,least", [
    ("MiniGrid-Empty-6x6-v0", 0.9), ("MiniGrid-DoorKey-5x5-v0", 0.9),
    ("MiniGrid-FourRooms-v0", 0.5), ("MiniGrid-MultiRoom-N2-S4-v0", 0.6)
])
def test_search_finds_the_goal_of_minigrid(env_id, least):
    pytest.importorskip("minigrid")
    record = challenge("rule", world(env_id, episodes=5))
    assert min(record.returns) > least and record.settings["rule"] == "shortest"


def test_a_plan_is_what_happens():
    "The plan made at the beginning leads to the goal, and none of its parts is skipped."
    pytest.importorskip("minigrid")
    for seed in range(4):
        env = make_env("MiniGrid-DoorKey-6x6-v0")
        env.reset(seed=seed)
        plan = way(env)
        for i, action in enumerate(plan):
            assert shortest({"": np.zeros((1, 1))}, [env]) == [way(env)[0]]
            assert len(way(env)) == len(plan) - i
            _, reward, over, _, _ = env.step(action)
            assert over == (i == len(plan) - 1)
        assert reward > 0.9
        env.close()


def test_replay_does_it_again():
    match = match_of(gs.Discrete(3), 2)
    actions, best = best_of_random(match)
    record = challenge("replay", match)
    assert set(record.returns) == {best} == {record.curve[0][1]} and record.steps == 200
    assert best == -sum(abs(int(a) - 2) for a in actions[:5])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["random", "constant", "replay", "search", "ppo", "dqn"])
def test_equal_seeds_equal_records(name):
    "And nobody's random numbers are touched."
    pytest.importorskip("stable_baselines3")
    match = match_of(gs.Discrete(3), 1, steps=300)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two = (challenge(name, match) for _ in range(2))
    still = dict(cpu_seconds=0, wall_seconds=0)
    assert replace(one, **still) == replace(two, **still)
    assert torch.equal(before, torch.get_rng_state())
    other = challenge(name, replace(match, seed=1))
    assert other.returns != one.returns or name != "random"


@pytest.mark.parametrize("name,space,best", [
    ("dqn", gs.Discrete(3), 2), ("dqn-more", gs.Discrete(3, start=1), 1),
    ("ppo", gs.MultiDiscrete([2, 2]), [1, 1]), ("ppo", gs.Box(-2, 2, (1,)), [2]),
    ("sac", gs.Box(-2, 2, (1,)), [1])
], ids=str)
def test_model_free_players(name, space, best):
    "They learn from the match's steps, show a curve, and play actions that the world takes."
    pytest.importorskip("stable_baselines3")
    record = challenge(name, match_of(space, best, updates=2.0))
    assert 192 <= record.steps <= 200 and record.cpu_seconds > 0 and len(record.returns) == 6
    assert [s for s, _ in record.curve[:2]] == pytest.approx([100, 200], abs=8)
    assert record.settings["source"].startswith("defaults of Stable-Baselines3")
    how = record.settings
    assert name != "dqn-more" or how["gradient_steps"] == 2 * how["train_freq"]


def test_dqn_learns_the_best_action():
    pytest.importorskip("stable_baselines3")
    match = match_of(gs.Discrete(2), 1, steps=600, updates=0.5, every=1_000)
    assert challenge("dqn-more", match).result.mean == 0


def test_published_settings_are_arguments_there():
    "Each table is accepted by its algorithm; budgets and schedules are cut to the match."
    pytest.importorskip("stable_baselines3")
    for algorithm, tables in PUBLISHED.items():
        for env in tables:
            space, best = (gs.Box(-1, 1, (1,)), [0]) if env == "Pendulum-" else (gs.Discrete(2), 0)
            match = match_of(space, best, steps=100, env=env + "v1")
            found, source = fitted(algorithm, match)
            assert source and found.keys() >= published(algorithm, match.env)[0].keys()
            assert found.get("buffer_size", 0) <= 100 and found.get("learning_starts", 0) <= 10
            assert 0 < whole_rounds(found, 100) <= 100
            found |= {"frame_stack": 1} if env == "ALE/" else {}
            ModelFree(algorithm, match, found).worlds.close()


class Pictures(gymnasium.Env):
    "A grey picture that counts; three steps."
    action_space = gs.Discrete(2)

    def __init__(self, side):
        self.observation_space = gs.Box(0, 255, (side, side, 3), np.uint8)

    def look(self):
        return np.full(self.observation_space.shape, self.t, np.uint8)

    def reset(self, *, seed=None, options=None):
        self.t = 1
        return self.look(), {}

    def step(self, action):
        self.t += 1
        return self.look(), 0.0, False, self.t == 4, {}


@pytest.mark.parametrize("side,stack", [(36, 1), (36, 4), (8, 1)])
def test_frames_are_stacked_as_in_training(side, stack):
    "What the network reads in evaluation is what it read while learning."
    pytest.importorskip("stable_baselines3")
    match = match_of(None, 0, make=lambda training: Pictures(side), steps=16)
    learner = ModelFree("ppo", match, {"n_steps": 8, "batch_size": 8, "frame_stack": stack})
    train, obs = [learner.worlds.reset()], None
    for _ in range(5):
        train.append(learner.worlds.step(np.array([0]))[0])
    seen = []
    learner.model.predict = lambda x, deterministic: (seen.append(x.copy()), (np.zeros(1, int),))[1]
    act = learner.player().policy(1)
    for t, start in ((1, True), (2, False), (3, False), (1, True), (2, False), (3, False)):
        obs = {learner.obs_spec.modalities[0].key: np.full((1, side, side, 3), t, np.uint8)}
        act(obs, np.array([start]))
    assert all(np.array_equal(a, b) for a, b in zip(train, seen)) and len(seen) == 6
    learner.worlds.close()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**31))
def test_numbers_of_all_kinds(a, b, seed):
    "One-hot rows sum to the number of categories; vectors are unchanged; a batch is its rows."
    space = gs.Dict(v=gs.Box(-5, 5, (a,)), c=gs.MultiDiscrete([a + 1, b]),
                    m=gs.MultiDiscrete(np.full((2, b, 2), 3)))
    space.seed(seed)
    spec, raw = ObsSpec.from_space(space), [space.sample() for _ in range(3)]
    flat = [spec.flatten(o) for o in raw]
    rows = numbers(spec, {k: np.stack([o[k] for o in flat]) for k in flat[0]})
    for row, o, f in zip(rows, raw, flat):
        assert np.array_equal(row, numbers(spec, {k: x[None] for k, x in f.items()})[0])
        assert row.sum() == pytest.approx(o["v"].sum() + 2 + 4 * b, abs=1e-4)
    assert rows.shape == (3, a + a + 1 + b + 3 * 4 * b) and rows.dtype == np.float32


def test_records_read_back_equal(tmp_path):
    record = challenge("constant", match_of(gs.Box(-2, 2, (2,)), [2, -2]), "a command")
    path = write_record(record, tmp_path / "deep" / "er")
    assert read_record(path) == record and record.command == "a command"
    assert file_of("my:Odd/World v1", "constant", 0) == "my-Odd-World-v1-constant-seed0.json"


@pytest.mark.parametrize("change", [
    {"returns": []}, {"returns": [1.0]}, {"seed": "0"}, {"curve": [[1]]}, {"more": 1}, None
], ids=str)
def test_what_is_no_record_is_refused(tmp_path, change):
    path = write_record(challenge("constant", match_of(gs.Discrete(2), 1)), tmp_path)
    content = json.loads(path.read_text()) | change if change else []
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="is no player's record"):
        read_record(path)


def test_complaints_take_one_line(capsys, tmp_path, monkeypatch):
    pytest.importorskip("stable_baselines3")
    for words, said in {
        "--env CartPole-v1 --players nobody": "unknown player 'nobody'",
        "--env Pendulum-v1 --players dqn": "dqn chooses among numbered actions",
        "--env CartPole-v1 --players sac": "sac needs continuous actions",
        "--env Pendulum-v1 --players rule": "no rule is known for Pendulum-v1",
        "--env CartPole-v1 --steps 0": "steps = 0 is out of range",
        "--env Nowhere-v1": "Nowhere-v1", "": "--env",
    }.items():
        assert main(["baselines", *words.split(), "--out", str(tmp_path / "out")]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and said in lines[0]
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(model_free, "import_module", lambda name: __import__("no_such_package"))
    with pytest.raises(UserError, match=r'pip install "simulus-nb\[baselines\]"'):
        check_player("ppo", match_of(gs.Discrete(2), 0))


def test_the_command_writes_a_record_for_each_player(capsys, tmp_path):
    line = f"baselines --env {CATCH} --steps 300 --seed 3 --episodes 10 --out {tmp_path} --players"
    assert main([*line.split(), "constant", "rule"]) == 0
    records = [read_record(path) for path in sorted(tmp_path.iterdir())]
    assert [r.player for r in records] == ["constant", "rule"] and records[0].seed == 3
    assert records[1].returns == (1.0,) * 10 and table(records) in capsys.readouterr().out
    assert records[0].command.startswith("simulus-nb baselines --env")


def test_no_result_is_lost(capsys, tmp_path, monkeypatch):
    "A folder that cannot be written, or a file of other settings, is refused before anybody plays."
    line = f"baselines --env {CATCH} --players constant rule --episodes 5 --out".split()
    (tmp_path / "file").write_text("x")
    assert main([*line, str(tmp_path / "out"), "--steps", "300"]) == 0
    before = {p: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    monkeypatch.setattr("simulus_nb.cli.challenge", lambda *a: pytest.fail("somebody has played"))
    capsys.readouterr()
    for out, steps, said in (("file", 300, "cannot write"), ("out", 400, "with other settings")):
        assert main([*line, str(tmp_path / out), "--steps", str(steps)]) == 2
        error = capsys.readouterr().err
        assert said in error and "choose another folder" in error and error.count("\n") == 1
    assert {p: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    monkeypatch.undo()
    assert main([*line, str(tmp_path / "out"), "--steps", "300"]) == 0          # the same again


class Talks(Prefers):
    "Says something beside what it shows."
    def __init__(self, render_mode=None, extra=0):
        super().__init__(gs.Discrete(2), 1)
        self.observation_space = gs.Dict(say=gs.Text(5), x=gs.Box(0, 1 + extra, (1,)))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return {"say": "hello", "x": np.ones(1, np.float32)}, {}

    def step(self, action):
        return {"say": "hello", "x": np.ones(1, np.float32)}, *super().step(action)[1:]


def test_opponents_get_the_world_of_the_run(capsys, tmp_path):
    "With its options and its kinds of observations; without any, those of the preset."
    gymnasium.register("simulus-test/Talks-v0", Talks, max_episode_steps=5)
    line = ["baselines", "--env", "simulus-test/Talks-v0", "--players", "constant", "--episodes",
            "2", "--out", str(tmp_path)]
    assert main(line) == 2 and "(--obs-kinds 'say' drop)" in capsys.readouterr().err
    assert main([*line, "--obs-kinds", "say", "drop", "--env-options", '{"extra": 1}']) == 0
    record = read_record(next(tmp_path.iterdir()))
    assert record.settings["obs_kinds"] == {"say": "drop"}
    assert record.settings["env_options"] == {"extra": 1}
    options = lambda *words: parse(["baselines", "--env", "Pendulum-v1", *words]).config.env_options
    assert options() == {"action_repeat": 2} and options("--env-options", "{}") == {}


def test_who_can_play_where():
    assert who_can(world("Pendulum-v1")) == ["random", "constant", "replay", "search", "ppo", "sac"]
    assert who_can(world("CartPole-v1")) == [n for n in PLAYERS if n != "sac"]


def test_boxes_of_whole_numbers_get_whole_numbers():
    "PPO and SAC would play fractions there and are refused; who searches rounds."
    space = gs.Box(0, 4, (2,), np.int32)
    match = match_of(space, [1, 3])
    assert who_can(match) == ["random", "constant", "replay", "search"]
    for name in ("ppo", "sac"):
        with pytest.raises(UserError, match="whole numbers"):
            check_player(name, match)
    act = linear_player(match.specs()[0], space, np.full((2, 3), 0.3)).policy(1)
    assert (a := act({"obs": np.ones((1, 2))}, np.ones(1, bool))).tolist() == np.round(a).tolist()
    assert challenge("search", match).settings["tried"] == 20
    strict = Numbers(Prefers(gs.MultiDiscrete([3, 2], dtype=np.int32), [1, 1]), match.specs()[0])
    strict.reset(seed=0)
    assert strict.step(np.array([1, 1], np.int64))[1] == 0.0        # asserts the type of the action


@pytest.mark.parametrize("steps,rounds", [(99, 4), (100, 5), (1, 1), (10_000, 10)])
def test_constants_share_the_budget(steps, rounds):
    "Four actions in episodes of five steps; in turns, so that none is tried more than another."
    record = challenge("constant", match_of(gs.Discrete(4), 2, steps=steps))
    assert record.settings["rounds"] == rounds and record.steps == 20 * rounds
    assert record.settings["action"] == 2


class Side(gymnasium.Env):
    "Ten steps; 1 for each in which the action says on which side of zero the number is."
    observation_space, action_space = gs.Box(-1, 1, (1,)), gs.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.x = 0, self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.x, {}

    def step(self, action):
        right = float(action == (self.x[0] > 0))
        self.t, self.x = self.t + 1, self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.x, right, False, self.t == 10, {}


@pytest.mark.parametrize("seed", range(3))
def test_search_finds_what_no_blind_player_can(seed):
    match = Match("Side", lambda training: Side(), 600, seed=seed, episodes=50, num_envs=5)
    found, blind = (challenge(name, match) for name in ("search", "constant"))
    assert found.steps == 600 and found.settings["tried"] == 30
    assert found.settings["episodes"] == 1 + 3                      # thirty more for the best ten
    assert blind.result.mean < 6.5 and found.result.mean > 8.5


def test_a_players_worlds_are_those_of_its_evaluation():
    match, seen = match_of(gs.Discrete(2), 1), []
    def begin(n, generator, worlds):
        return lambda obs, starts: seen.append((n, list(worlds))) or np.ones(n, int)
    play(match, Player(*match.specs(), begin), 3, 0)
    assert {n for n, _ in seen} == {3} and {len(w) for _, w in seen} == {3}
    assert Numbers(match.make(True), match.specs()[0]).observation_space.shape == (2,)


def invented(player, seed, returns):
    "A record of nothing but returns."
    return Record(player, "World", seed, 0, ((10, 1.0), (20, 2.0)), tuple(returns),
                  (1,) * len(returns), {}, "")


def test_learnt_takes_four_of_five_seeds():
    idle = [invented("constant", s, [0.0, 1.0, 2.0]) for s in range(5)]
    idle += [invented("random", s, [-9.0] * 3) for s in range(5)]
    ours = [invented("ours", s, [1.0, 2.1, 2.9]) for s in range(5)]
    worse = [invented("ours", s, [0.0, 1.1, 1.9]) for s in range(5)]
    assert learnt(ours, idle) and learnt(ours[:4] + worse[4:], idle)
    assert not learnt(ours[:3] + worse[3:], idle) and not learnt(worse, idle)
    assert lead(ours[0], idle[0])[0] == pytest.approx(1.0)
    for bad in (ours + ours, [ours[0], idle[1]]):
        with pytest.raises(UserError, match="one for each seed"):
            learnt(bad, idle)
    with pytest.raises(UserError, match="no record of seed 4"):
        learnt(ours, idle[:4])
    with pytest.raises(UserError, match="nobody to compare with"):
        learnt(ours, ours)
    with pytest.raises(UserError, match="different episodes"):
        lead(ours[0], idle[1])
    assert len(plot(ours + idle).axes[0].lines) == 3 * (5 + 1 + 1)     # seeds, mean, final score


@pytest.mark.parametrize("n", [2, 3, 5, 10, 30])
def test_intervals_are_students(n):
    from scipy.stats import t                                           # SciPy: tests only
    assert student(n) == pytest.approx(t.ppf(0.975, n - 1), rel=1e-3)
    x = np.random.default_rng(n).normal(size=n)
    half = t.ppf(0.975, n - 1) * x.std(ddof=1) / n**0.5
    assert interval(x) == pytest.approx((x.mean(), half), rel=1e-3)
