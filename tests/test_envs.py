"""The default world, the Atari-100K rules on the real emulator, the adapters of other worlds, and
the collector."""
import os
import subprocess
import sys
import warnings
from collections import Counter
from functools import partial
from importlib.util import find_spec

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from simulus_nb.atari import AtariProtocol
from simulus_nb.catch import CATCH, LOOKS, Catch
from simulus_nb.collect import Collector, Rows
from simulus_nb.envs import ActionRepeat, MiniGridSpaces, ResizeImages, make_env, missions
from simulus_nb.evaluate import RandomAgent, evaluate
from simulus_nb.ids import OURS
from simulus_nb.lockstep import EpisodeScore
from simulus_nb.spaces import ActionSpec, Modality, ObsSpec, UserError, resize


def raw_ale(game, **kwargs):
    return gymnasium.make(
        f"ALE/{game}-v5", frameskip=1, repeat_action_probability=0.0, full_action_space=False,
        **kwargs
    )


def catch_spec():
    env = Catch()
    return ObsSpec.from_space(env.observation_space), ActionSpec.from_space(env.action_space)


# ---------------------------------------------------------------- Catch

@pytest.mark.parametrize(
    "kwargs",
    [{}, {"rows": 8, "cols": 8, "size": 40}, {"rows": 2, "cols": 2, "size": 16, "look": "paper"}]
)
def test_catch_passes_the_checker(kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(CATCH, render_mode="rgb_array", **kwargs).unwrapped)


def catch_return(env, column, actions):
    env.reset(seed=0)
    env.ball[1], total = column, 0.0
    for n, action in enumerate(actions, 1):
        _, reward, terminated, truncated, _ = env.step(action(env) if callable(action) else action)
        total += reward
        assert not truncated
        if terminated:
            return total, n


@pytest.mark.parametrize("rows,cols", [(10, 5), (8, 8), (5, 9), (2, 2), (3, 4)])
def test_catch_best_and_blind_returns(rows, cols):
    env = Catch(rows=rows, cols=cols)
    towards = [lambda e: 1 + np.sign(e.ball[1] - e.paddle)] * rows
    assert all(catch_return(env, c, towards) == (1.0, rows - 1) for c in range(cols))
    # exact value of the random policy: forward over the paddle's column
    p = np.eye(cols)[cols // 2]
    for _ in range(rows - 1):
        q = np.zeros(cols)
        for i in range(cols):
            for move in (-1, 0, 1):
                q[np.clip(i + move, 0, cols - 1)] += p[i] / 3
        p = q
    value = sum((p[c] - (1 - p[c])) / cols for c in range(cols))
    assert value == pytest.approx(2 / cols - 1)
    for blind in (0, 1, 2):                     # and of each constant policy, by playing every ball
        assert np.mean(
            [catch_return(env, c, [blind] * rows)[0] for c in range(cols)]
        ) == pytest.approx(value)


def test_catch_random_policy_simulated():
    env, rng, total = Catch(size=10), np.random.default_rng(0), []
    env.reset(seed=0)
    for _ in range(3000):
        env.reset()
        over = False
        while not over:
            _, reward, over, _, _ = env.step(rng.integers(3))
        total.append(reward)
    assert abs(np.mean(total) + 0.6) < 4.5 * 0.8 / 3000**0.5


def test_catch_picture_shows_ball_and_paddle():
    env = Catch(rows=10, cols=5, size=50, look="moss")
    frame, _ = env.reset(seed=4)
    row, col = env.ball
    assert (frame[5 * row:5 * row + 5, 10 * col:10 * col + 10] == LOOKS["moss"][1]).all()
    assert (frame[45:, 20:30] == LOOKS["moss"][2]).all()
    assert (frame == LOOKS["moss"][0]).all(-1).sum() == 2500 - 100


@pytest.mark.parametrize("kwargs", [{"rows": 1}, {"cols": 1}, {"size": 9}, {"look": "neon"}])
def test_catch_refuses_nonsense(kwargs):
    with pytest.raises(UserError):
        Catch(**kwargs)


# ---------------------------------------------------------------- Atari

@pytest.mark.parametrize("game", ["Pong", "Breakout"])
@pytest.mark.parametrize("skip", [1, 2, 4])
def test_skip_max_and_reward_equal_frame_by_frame(game, skip):
    fast = AtariProtocol(
        raw_ale(game), noop_max=0, frame_skip=skip, life_loss_done=False, clip_reward=False
    )
    slow, rng = raw_ale(game), np.random.default_rng(0)
    first, _ = fast.reset(seed=3)
    assert (first == resize(slow.reset(seed=3)[0], 64)).all()
    for action in rng.integers(fast.action_space.n, size=250):
        obs, reward, over, _, _ = fast.step(action)
        steps = [slow.step(action) for _ in range(skip)]
        if over:
            break
        assert reward == sum(s[1] for s in steps)
        assert (obs == resize(np.max([s[0] for s in steps[-2:]], 0), 64)).all()
    assert fast.steps > 30


def test_clip_is_the_sign_and_the_score_is_raw():
    env, rng = make_env("ALE/MsPacman-v5"), np.random.default_rng(0)
    env.reset(seed=0)
    total, clipped, info = 0.0, [], {}
    while "episode_return" not in info:
        _, reward, terminated, truncated, info = env.step(rng.integers(env.action_space.n))
        clipped.append(reward)
        assert reward == np.sign(info["raw_reward"])
        before, ended = env.score, terminated or truncated
        total += info["raw_reward"]
        if ended and "episode_return" not in info:
            env.reset()
            total += env.score - before             # what the no-op step between two lives earned
    assert set(clipped) <= {-1.0, 0.0, 1.0} and max(clipped) == 1.0
    assert info["episode_return"] == total > sum(clipped) and info["episode_length"] == len(clipped)


def test_life_loss_ends_the_episode_but_not_the_game():
    env, rng = make_env("ALE/Breakout-v5", noop_max=0), np.random.default_rng(0)
    env.reset(seed=0)
    lives, ends = 5, 0
    while True:
        _, _, terminated, truncated, info = env.step(rng.integers(4))
        if not terminated:
            assert info["lives"] == lives
            continue
        ends, lives = ends + 1, lives - 1
        assert info["lives"] == lives and not truncated
        if lives == 0:
            break
        assert "episode_return" not in info
        frame = env.ale.getEpisodeFrameNumber()
        env.reset()
        # one no-op step, same game
        assert env.ale.getEpisodeFrameNumber() == frame + 4 and env.ale.lives() == lives
    assert ends == 5 and "episode_return" in info
    env.reset()
    assert env.ale.lives() == 5 and env.ale.getEpisodeFrameNumber() == 0 and env.score == 0


def test_evaluation_plays_the_whole_game_raw():
    env, rng = make_env("ALE/Breakout-v5", training=False), np.random.default_rng(0)
    env.reset(seed=0)
    assert env.ale.getEpisodeFrameNumber() == 1         # one no-op frame
    rewards, terminated = [], False
    while not terminated:
        _, reward, terminated, _, info = env.step(rng.integers(4))
        rewards.append(reward)
    assert info["lives"] == 0 and info["episode_return"] == sum(rewards)


def test_a_reset_in_the_middle_of_a_life_starts_a_new_game():
    env = make_env("ALE/Breakout-v5", noop_max=0)
    env.reset(seed=0)
    for _ in range(9):
        env.step(1)
    env.reset()
    assert env.ale.getEpisodeFrameNumber() == 0 and env.ale.lives() == 5 and env.steps == 0


def test_noops_are_one_to_noop_max():
    env = make_env("ALE/Pong-v5", noop_max=6)
    env.reset(seed=0)
    seen = set()
    for _ in range(60):
        env.reset()
        seen.add(env.ale.getEpisodeFrameNumber())
    assert seen == {1, 2, 3, 4, 5, 6}
    env = make_env("ALE/Pong-v5")
    assert env.noop_max == 30
    starts = [env.reset(seed=s) and env.ale.getEpisodeFrameNumber() for s in range(12)]
    # seeded
    assert starts == [env.reset(seed=s) and env.ale.getEpisodeFrameNumber() for s in range(12)]
    assert len(set(starts)) > 4 and 1 <= min(starts) and max(starts) <= 30


def test_step_and_frame_limits_truncate():
    env = make_env("ALE/Pong-v5", max_episode_steps=20)
    env.reset(seed=0)
    ends = [env.step(0)[2:4] for _ in range(20)]
    assert ends == [(False, False)] * 19 + [(False, True)]
    # 1 no-op + 20 skips
    env = make_env("ALE/Pong-v5", training=False, max_num_frames_per_episode=81)
    env.reset(seed=0)
    ends = [env.step(0)[2:4] for _ in range(20)]
    assert ends == [(False, False)] * 19 + [(False, True)]
    limit = lambda training: make_env("ALE/Pong-v5", training=training).ale.getInt(
        "max_num_frames_per_episode"
    )
    assert (limit(True), limit(False)) == (20_000, 108_000)
    assert (
        make_env("ALE/Pong-v5").max_steps
        is make_env("ALE/Pong-v5", training=False).max_steps
        is None
    )
    env = make_env("ALE/Pong-v5", max_num_frames_per_episode=4_000)
    assert env.ale.getInt("max_num_frames_per_episode") == 4_000        # the caller's word counts


def test_a_training_game_is_truncated_after_20000_frames_and_not_before():
    env = make_env("ALE/Breakout-v5")
    env.reset(seed=1)
    noops, steps = env.ale.getEpisodeFrameNumber(), 0
    assert 1 <= noops <= 30
    while env.ale.getEpisodeFrameNumber() < 20_000 - 8:
        steps += 1
        # nobody launches the ball
        assert [env.ale.act(env.buttons[0]) for _ in range(4)] == [
            0
        ] * 4 and not env.ale.game_over()
    ends, limit = [], -(-(20_000 - noops) // 4)
    for step in range(steps + 1, limit + 1):
        ends.append((step, *env.step(0)[2:4]))
    assert ends[-1] == (limit, False, True) and all(end[1:] == (False, False) for end in ends[:-1])
    assert env.ale.getEpisodeFrameNumber() == 20_000 and env.ale.lives() == 5
    env.reset()                                             # a new game, not the next life
    assert env.ale.getEpisodeFrameNumber() <= 30


def test_frames_of_lost_lives_count_towards_the_limit_of_a_training_game():
    env, rng = make_env("ALE/Breakout-v5", max_num_frames_per_episode=600), np.random.default_rng(0)
    env.reset(seed=0)
    noops, steps, lives, truncated = env.ale.getEpisodeFrameNumber(), 0, 0, False
    while not truncated:
        _, _, terminated, truncated, _ = env.step(rng.integers(4))
        steps, lives = steps + 1, lives + (terminated and not truncated)
        if terminated and not truncated:
            env.reset()                                     # one no-op step of four frames
    assert lives >= 1 and steps == -(-(600 - noops) // 4) - lives


def test_the_step_limit_counts_the_whole_game_over_its_lives():
    env, rng = make_env("ALE/Breakout-v5", max_episode_steps=80), np.random.default_rng(0)
    env.reset(seed=0)
    truncated, steps, lives = False, 0, 0
    while not truncated:
        _, _, terminated, truncated, info = env.step(rng.integers(4))
        steps, lives = steps + 1, lives + terminated
        if terminated and not truncated:
            env.reset()
    assert steps == 80 == info["episode_length"] and lives >= 1


def test_no_sticky_actions():
    def states():
        env = make_env("ALE/Pong-v5", noop_max=0)
        env.reset(seed=1)
        return [env.step(a)[0] for a in np.random.default_rng(0).integers(6, size=60)]
    env = make_env("ALE/Pong-v5")
    assert env.ale.getFloat("repeat_action_probability") == 0.0
    assert all((a == b).all() for a, b in zip(states(), states()))


def test_image_size_and_render():
    env = make_env("ALE/Pong-v5", image_size=32, render_mode="rgb_array")
    assert env.reset(seed=0)[0].shape == (32, 32, 3) == env.observation_space.shape
    assert env.render().shape == (210, 160, 3)


# ---------------------------------------------------------------- other ids, and mistakes

@pytest.mark.parametrize(
    "env_id,say",
    [
        ("ALE/Pang-v5", "ALE/Pong-v5"), ("CartPoll-v1", "CartPole-v1"), ("simulus/Catsh-v0", CATCH),
        ("zzz", "pprint_registry"), ("nowhere:Thing-v0", "nowhere")
    ],
)
def test_a_misspelt_id_is_a_user_error_with_a_hint(env_id, say):
    with pytest.raises(UserError, match=say) as e:
        make_env(env_id)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "env_id,package,extra",
    [
        ("MiniGrid-Empty-5x5-v0", "minigrid", "minigrid"),
        ("BabyAI-GoToObj-v0", "minigrid", "minigrid"),
        ("MinAtar/Breakout-v1", "minatar", "minatar"),
        ("dm_control/cheetah-run-v0", "shimmy", "dmc"),
        ("simulus/Craftax-Symbolic-v1", "craftax", "craftax"),
        ("simulus/Craftax-Classic-Symbolic-v1", "craftax", "craftax")
    ],
)
def test_a_missing_extra_names_the_command(env_id, package, extra, monkeypatch):
    monkeypatch.setattr("simulus_nb.envs.gymnasium.registry", {})
    for name in (package, f"{package}.gym", f"{package}.registration", "jax"):
        monkeypatch.setitem(__import__("sys").modules, name, None)      # as if not installed
    with pytest.raises(UserError, match=rf"pip install \"simulus-nb\[{extra}\]\""):
        make_env(env_id)
    monkeypatch.undo()
    if env_id in OURS:                              # registered, but its module cannot be imported
        for name in ("jax", "craftax", f"simulus_nb.{OURS[env_id].split(':')[0]}"):
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(UserError, match=rf"pip install \"simulus-nb\[{extra}\]\""):
            make_env(env_id)


@pytest.mark.parametrize(
    "call",
    [
        lambda: make_env("CartPole-v1", rows=3), lambda: make_env(CATCH, rows=1),
        lambda: make_env("ALE/Pong-v5", frame_skip=0), lambda: make_env("ALE/Pong-v5", nonsense=1),
        lambda: make_env("ALE/Pong-v5", action_repeat=2), lambda: make_env(CATCH, action_repeat=0),
        lambda: make_env(CATCH, max_episode_steps=0),
        lambda: make_env("ALE/Pong-v5", max_episode_steps=-1)
    ],
)
def test_wrong_options_are_user_errors(call):
    with pytest.raises(UserError):
        call()


def test_plain_ids_report_scores_and_obey_the_step_limit():
    env = make_env("CartPole-v1", max_episode_steps=5)
    env.reset(seed=0)
    *_, (_, _, terminated, truncated, info) = [
        env.step(0) if i % 2 else env.step(1) for i in range(5)
    ]
    assert (
        truncated
        and not terminated
        and info["episode_return"] == 5.0
        and info["episode_length"] == 5
    )
    env.reset()
    assert env.score == 0.0


def test_catch_is_drawn_at_the_image_size_not_blurred():
    frame, _ = make_env(CATCH, image_size=64, rows=8).reset(seed=0)
    assert frame.shape == (64, 64, 3) and len(np.unique(frame.reshape(-1, 3), axis=0)) == 3


@pytest.mark.parametrize("shape", [(96, 80, 3), (40, 60, 1), (50, 50), (48, 48, 4)])
def test_pictures_in_a_dict_are_resized_and_maps_are_not(shape):
    class Two(gymnasium.Env):
        observation_space = spaces.Dict(
            eye=spaces.Box(0, 255, shape, np.uint8), map=spaces.Box(0, 255, (7, 7, 3), np.uint8),
            body=spaces.Box(-1, 1, (4,))
        )
        action_space = spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return self.observation_space.sample(), {}

    env = ResizeImages(Two(), 32)
    obs, _ = env.reset()
    assert obs in env.observation_space and obs["eye"].shape == (32, 32, *shape[2:])
    assert (
        env.observation_space["map"].shape == (7, 7, 3)
        and obs["map"].shape == (7, 7, 3)
        and obs["body"].shape == (4,)
    )


def test_what_is_no_picture_passes_the_resizing_untouched():
    class Mixed(gymnasium.Env):
        observation_space = spaces.Dict(
            eye=spaces.Box(0, 255, (40, 40, 3), np.uint8), note=spaces.Text(9),
            pair=spaces.Tuple((spaces.Discrete(3), spaces.Box(-1, 1, (2, 2)))),
            square=spaces.Box(-1, 1, (32, 32))
        )
        action_space = spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            self.observation_space.seed(3)
            return self.observation_space.sample(), {}

    raw, env = Mixed().reset()[0], ResizeImages(Mixed(), 32)
    obs, _ = env.reset()
    assert (
        obs in env.observation_space
        and obs["eye"].shape == (32, 32, 3)
        and obs["note"] == raw["note"]
    )
    assert (obs["pair"][1] == raw["pair"][1]).all() and (obs["square"] == raw["square"]).all()


# ---------------------------------------------------------------- action repeat

@pytest.mark.parametrize("repeat", [1, 2, 5])
def test_action_repeat_holds_the_action_and_adds_rewards(repeat):
    env, raw, rng = (
        make_env("Pendulum-v1", action_repeat=repeat), gymnasium.make("Pendulum-v1"),
        np.random.default_rng(0)
    )
    assert (env.reset(seed=1)[0] == raw.reset(seed=1)[0]).all()
    total, length, truncated = 0.0, 0, False
    while not truncated:
        action = rng.uniform(-2, 2, 1).astype(np.float32)
        obs, reward, terminated, truncated, info = env.step(action)
        inner = [raw.step(action) for _ in range(repeat)]
        assert (
            reward == pytest.approx(sum(step[1] for step in inner), rel=1e-12)
            and (obs == inner[-1][0]).all()
        )
        assert (terminated, truncated) == inner[-1][2:4]
        total, length = total + reward, length + 1
    assert length == 200 // repeat == info["episode_length"] and info[
        "episode_return"
    ] == pytest.approx(total)


@given(repeat=st.integers(1, 4), action=st.integers(0, 1))
@settings(deadline=None, max_examples=8)
def test_action_repeat_stops_where_an_episode_ends(repeat, action):
    env, raw = ActionRepeat(gymnasium.make("CartPole-v1"), repeat), gymnasium.make("CartPole-v1")
    env.reset(seed=0), raw.reset(seed=0)
    steps = 1
    while not raw.step(action)[2]:
        steps += 1
    rewards, over = [], False
    while not over:
        _, reward, over, _, _ = env.step(action)
        rewards.append(reward)
    assert (
        sum(rewards) == steps
        and rewards[:-1] == [repeat] * (len(rewards) - 1)
        and len(rewards) == -(-steps // repeat)
    )


@pytest.mark.parametrize("repeat,limit", [(1, 7), (2, 7), (3, 1)])
def test_the_step_limit_counts_agent_steps(repeat, limit):
    env = make_env("Pendulum-v1", action_repeat=repeat, max_episode_steps=limit)
    env.reset(seed=0)
    ends = [env.step(np.zeros(1, np.float32))[2:] for _ in range(limit)]
    assert [end[1] for end in ends] == [False] * (limit - 1) + [True] and ends[-1][2][
        "episode_length"
    ] == limit


# ---------------------------------------------------------------- MiniGrid, MinAtar, the control
# suite

def random_play(env, steps, check):
    rng = np.random.default_rng(0)
    check(env.reset(seed=0)[0])
    for _ in range(steps):
        obs, _, terminated, truncated, _ = env.step(rng.integers(env.action_space.n))
        check(obs)
        if terminated or truncated:
            check(env.reset()[0])


@pytest.mark.parametrize(
    "task,mission",
    [
        ("Empty-Random-6x6", None), ("DoorKey-5x5", None), ("GoToDoor-5x5", 6),
        ("Fetch-5x5-N2", 60), ("PutNear-6x6-N2", 324), ("KeyCorridorS3R1", 6)
    ],
)
def test_minigrid_shows_nothing_outside_the_narrowed_space(task, mission):
    pytest.importorskip("minigrid")
    env = make_env(f"MiniGrid-{task}-v0", image_size=64)
    spec, seen = ObsSpec.from_space(env.observation_space), Counter()
    grid = next(m for m in spec.modalities if m.key == "image")
    assert (grid.kind, grid.shape, grid.nvec) == ("grid", (7, 7, 3), (11, 6, 4))
    assert env.observation_space.spaces.get("mission") == (mission and spaces.Discrete(mission))

    def check(obs):
        assert obs in env.observation_space
        read = spec.flatten(obs)
        assert (read["image"] == obs["image"]).all()
        if mission:         # the number stands for the sentence that the world itself has in mind
            assert (
                missions(env.unwrapped.observation_space["mission"])[obs["mission"]]
                == env.unwrapped.mission
            )
            seen[obs["mission"]] += 1

    random_play(env, 500, check)
    assert not mission or len(seen) > 1


def test_minigrid_full_view_holds_the_agents_direction():
    pytest.importorskip("minigrid")
    from minigrid.core import constants
    from minigrid.wrappers import FullyObsWrapper

    from simulus_nb.envs import category_counts
    env = MiniGridSpaces(
        FullyObsWrapper(gymnasium.make("MiniGrid-Empty-8x8-v0")), category_counts(constants)
    )
    spec, directions = ObsSpec.from_space(env.observation_space), set()
    # 8 x 8 x 3 raw would be a picture
    assert [m.kind for m in spec.modalities if m.key == "image"] == ["grid"]

    def check(obs):
        assert obs in env.observation_space and spec.flatten(obs)
        directions.add(int(obs["image"][obs["image"][..., 0] == 10][0, 2]))

    random_play(env, 60, check)
    assert directions == {0, 1, 2, 3}


def test_babyai_missions_are_refused_with_advice_and_can_be_dropped():
    pytest.importorskip("minigrid")
    make = partial(make_env, "BabyAI-GoToLocalS5N2-v0", image_size=64)
    env = make()
    assert missions(env.observation_space["mission"]) is None
    with pytest.raises(UserError, match="mission.*drop"):
        ObsSpec.from_space(env.observation_space)
    spec, actions = (
        ObsSpec.from_space(env.observation_space, overrides={"mission": "drop"}),
        ActionSpec.from_space(env.action_space)
    )
    rng = np.random.default_rng(0)
    collector = Collector([make] * 2, spec, actions)
    streams, _ = collector.collect(lambda obs, starts: rng.integers(7, size=(2, 1)), 60)
    assert all(set(rows.obs) == {"direction", "image"} and len(rows) >= 30 for rows in streams)


class MissionSpace(spaces.Text):
    def __init__(self, mission_func, ordered_placeholders):
        super().__init__(200)
        self.mission_func, self.ordered_placeholders = mission_func, ordered_placeholders


def test_missions_are_counted_ordered_and_limited():
    assert missions(MissionSpace(lambda: "go", None)) == ["go"]
    assert missions(MissionSpace(lambda a, b: f"{a} {b}", [["b", "a"], ["y", "x"]])) == [
        "a x", "a y", "b x", "b y"
    ]
    assert missions(MissionSpace(lambda a, b: a, [["b", "a"], ["y", "x"]])) == ["a", "b"]
    many = [str(n) for n in range(64)]
    assert len(missions(MissionSpace(lambda a, b: f"{a} {b}", [many, many]))) == 4096
    assert missions(MissionSpace(lambda a, b: f"{a} {b}", [many, [*many, "x"]])) is None


def test_an_unannounced_mission_is_a_user_error():
    class Liar(gymnasium.Env):
        observation_space = spaces.Dict(
            image=spaces.Box(0, 255, (7, 7, 3), np.uint8),
            mission=MissionSpace(lambda a: f"go {a}", [["left", "right"]])
        )
        action_space = spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return {"image": np.zeros((7, 7, 3), np.uint8), "mission": "go home"}, {}

    with pytest.raises(UserError, match="go home"):
        MiniGridSpaces(Liar(), (11, 6, 4)).reset()


@pytest.mark.parametrize(
    "game,channels,actions", [("Breakout-v1", 4, 3), ("Breakout-v0", 4, 6), ("Seaquest-v1", 10, 6)]
)
def test_minatar_is_a_grid_of_truth_values(game, channels, actions):
    pytest.importorskip("minatar")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)     # of v0
        env = make_env(f"MinAtar/{game}", image_size=64)
    spec = ObsSpec.from_space(env.observation_space)
    assert [(m.kind, m.shape, m.nvec) for m in spec.modalities] == [
        ("grid", (10, 10, channels), (2,) * channels)
    ]
    assert env.action_space.n == actions

    def check(obs):
        assert obs in env.observation_space and (spec.flatten(obs)["obs"] == obs).all()

    random_play(env, 150, check)


@pytest.mark.parametrize(
    "task,shapes,joints",
    [
        ("cartpole-balance", {"position": 3, "velocity": 2}, 1),
        ("walker-walk", {"orientations": 14, "height": 1, "velocity": 9}, 6),
        ("reacher-easy", {"position": 2, "to_target": 2, "velocity": 2}, 2)
    ],
)
def test_control_suite_spaces_seeds_and_truncation(task, shapes, joints):
    pytest.importorskip("shimmy")
    make = partial(make_env, f"dm_control/{task}-v0", action_repeat=2)
    env, twin = make(), make()
    spec, actions = (
        ObsSpec.from_space(env.observation_space), ActionSpec.from_space(env.action_space)
    )
    assert {m.key: m.shape[0] for m in spec.modalities} == shapes and {
        m.kind for m in spec.modalities
    } == {"vector"}
    assert actions.nvec == (51,) * joints and actions.kind == "continuous"
    rng, rewards = np.random.default_rng(0), []
    same = lambda a, b: all(
        (x == y).all() for x, y in zip(spec.flatten(a).values(), spec.flatten(b).values())
    )
    assert same(env.reset(seed=5)[0], twin.reset(seed=5)[0]) and not same(
        env.reset(seed=5)[0], twin.reset(seed=6)[0]
    )
    twin.reset(seed=5)
    for t in range(500):                                    # 1,000 steps of the simulator
        action = actions.decode(rng.integers(51, size=(1, joints)))[0]
        obs, reward, terminated, truncated, info = env.step(action)
        rewards.append(reward)
        assert (
            not terminated
            and truncated == (t == 499)
            and all(np.isfinite(x).all() for x in spec.flatten(obs).values())
        )
        if t < 20:
            assert same(obs, twin.step(action)[0])
    assert info["episode_length"] == 500 and info["episode_return"] == pytest.approx(sum(rewards))
    assert same(env.reset()[0], twin.reset()[0])            # the second episode is seeded too


def test_our_ids_are_registered_without_an_extra_and_the_control_suite_is_quiet():
    assert (
        {
            CATCH, "simulus/Parcels-v0", "simulus/Memory-v0", "simulus/Rooms-v0",
            "simulus/Craftax-Symbolic-v1", "simulus/Craftax-Classic-Symbolic-v1"
        }
        == set(OURS)
        <= set(gymnasium.registry)
    )
    code = (
        "import sys, simulus_nb.envs as e; print([m for m in ('jax', 'craftax', 'minigrid', "
        "'minatar', 'shimmy', 'dm_control', 'simulus_nb.parcels', 'simulus_nb.memory', "
        "'simulus_nb.rooms') if m in sys.modules])"
    )
    if find_spec("shimmy"):
        code += "; e.make_env('dm_control/cartpole-balance-v0').reset(seed=0)"
    env = {k: v for k, v in os.environ.items() if k != "DISPLAY"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "[]"
    assert "GLFW" not in done.stderr and "DISPLAY" not in done.stderr


# ---------------------------------------------------------------- Collector

def looker(obs, starts):
    return obs["obs"].astype(np.int64).sum((1, 2, 3))[:, None] // 97 % 3


def equal(a, b):
    return all(
        (getattr(a, n) == getattr(b, n)).all() for n in ("action", "reward", "done", "last")
    ) and all((a.obs[k] == b.obs[k]).all() for k in a.obs)


@given(
    num_envs=st.integers(1, 4), seed=st.integers(0, 99),
    cuts=st.lists(st.integers(1, 30), min_size=1, max_size=3)
)
@settings(deadline=None, max_examples=20)
def test_many_environments_give_the_streams_of_one_each(num_envs, seed, cuts):
    make = lambda: make_env(CATCH, rows=6, image_size=12)
    obs_spec, action_spec = (
        ObsSpec.from_space(make().observation_space), ActionSpec.from_space(make().action_space)
    )
    many = Collector([make] * num_envs, obs_spec, action_spec, seed)
    ones = [Collector([make], obs_spec, action_spec, seed + i) for i in range(num_envs)]
    for n in cuts:
        streams, stats = many.collect(looker, n * num_envs)
        for i, one in enumerate(ones):
            (alone,), own = one.collect(looker, n)
            assert equal(streams[i], alone)
            assert [(s.return_, s.length) for s in stats if s.env == i] == [
                (s.return_, s.length) for s in own
            ]


def test_rows_tell_the_truth():
    obs_spec, action_spec = catch_spec()
    make = lambda: make_env(CATCH)
    rng, asked = np.random.default_rng(0), []

    def policy(obs, starts):
        asked.append((obs["obs"].copy(), starts.copy(), rng.integers(3, size=(2, 1))))
        return asked[-1][2]

    collector = Collector([make] * 2, obs_spec, action_spec, seed=3)
    streams, stats = collector.collect(policy, 61)      # rounded up to 62
    assert len(asked) == 31
    for i, rows in enumerate(streams):
        acting = ~rows.last
        assert acting.sum() == 31 and rows.last.sum() == 31 // 9
        assert (rows.obs["obs"][acting] == np.stack([a[0][i] for a in asked])).all()
        assert (rows.action[acting] == np.stack([a[2][i] for a in asked])).all()
        # starts: where an episode begins
        assert [a[1][i] for a in asked] == [t % 9 == 0 for t in range(31)]
        # the row before a final observation is done
        assert (rows.done == np.append(rows.last[1:], False)).all()
        assert not rows.action[rows.last].any() and not rows.reward[rows.last].any()
        env = make()            # play the same actions again: every observation and reward is right
        obs, _ = env.reset(seed=3 + i)
        for row in range(len(rows)):
            assert (rows.obs["obs"][row] == obs).all()
            if rows.last[row]:
                obs, _ = env.reset()
                continue
            obs, reward, terminated, _, _ = env.step(int(rows.action[row, 0]))
            assert (reward, terminated) == (rows.reward[row], rows.done[row])
    assert len(stats) == 6 and all(s.length == 9 and abs(s.return_) == 1 for s in stats)


def test_truncation_is_not_termination_but_keeps_the_final_observation():
    make = lambda: make_env("CartPole-v1", max_episode_steps=4)
    obs_spec, action_spec = (
        ObsSpec.from_space(make().observation_space), ActionSpec.from_space(make().action_space)
    )
    (rows,), stats = Collector([make], obs_spec, action_spec).collect(
        lambda o, s: np.array([[len(o)]]), 8
    )
    assert (
        not rows.done.any()
        and np.flatnonzero(rows.last).tolist() == [4, 9]
        and [s.length for s in stats] == [4, 4]
    )


def test_stats_count_whole_games_and_unwrapped_environments_are_scored_too():
    env = make_env("ALE/Breakout-v5")
    rng = np.random.default_rng(0)
    collector = Collector(
        [lambda: make_env("ALE/Breakout-v5")], ObsSpec.from_space(env.observation_space),
        ActionSpec.from_space(env.action_space)
    )
    (rows,), stats = collector.collect(lambda o, s: rng.integers(4, size=(1, 1)), 500)
    assert rows.done.sum() == rows.last.sum() > len(stats) >= 1
    obs_spec, action_spec = catch_spec()
    collector = Collector([Catch], obs_spec, action_spec)
    assert isinstance(collector.envs.envs[0].env, EpisodeScore)
    assert len(collector.collect(lambda o, s: np.ones((1, 1), int), 18)[1]) == 2


def test_restart_gives_the_same_beginning():
    obs_spec, action_spec = catch_spec()
    collector = Collector([Catch] * 2, obs_spec, action_spec, seed=5)
    first, _ = collector.collect(looker, 40)
    collector.restart(5)
    again, _ = collector.collect(looker, 40)
    assert all(equal(a, b) for a, b in zip(first, again))


# ---------------------------------------------------------------- Collector on vector environments

class Odd(gymnasium.Env):
    """Random episode lengths; terminations, truncations and both at once; nested observations, two
    of whose keys the spec drops."""
    observation_space = spaces.Dict(
        body=spaces.Dict(
            speed=spaces.Box(-np.inf, np.inf, (2,), np.float64), mode=spaces.Discrete(7, start=-3)
        ),
        eye=spaces.Box(0, 255, (8, 9, 3), np.uint8),
        note=spaces.Text(20),
        web=spaces.Graph(spaces.Box(0, 1, (1,)), None),
    )
    action_space = spaces.Discrete(4, start=2)

    def look(self):
        self.eye[:] = self.np_random.integers(256, size=self.eye.shape)
        web = spaces.GraphInstance(np.zeros((self.age % 3, 1), np.float32), None, None)
        return {
            "body": {
                "speed": self.np_random.normal(size=2), "mode": int(self.np_random.integers(-3, 4))
            },
            "eye": self.eye if self.reuse else self.eye.copy(),
            "note": f"age {self.age}",
            "web": web,
        }

    def __init__(self, reuse=False, info=False):
        self.eye, self.reuse, self.info, self.played = (
            np.zeros((8, 9, 3), np.uint8), reuse, info, []
        )

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.age, self.end, self.way = (
            0, int(self.np_random.integers(1, 8)), int(self.np_random.integers(3))
        )
        return self.look(), {"ragged": np.zeros(self.end)} if self.info else {}

    def step(self, action):
        self.played.append(int(action))
        assert action in self.action_space
        self.age, over = self.age + 1, self.age + 1 == self.end
        reward = float(self.np_random.normal()) + action
        return self.look(), reward, over and self.way != 1, over and self.way != 0, {}


ODD_SPEC = (
    ObsSpec.from_space(Odd.observation_space, overrides={"note": "drop", "web": "drop"}),
    ActionSpec.from_space(Odd.action_space)
)


class Count(gymnasium.Env):
    "Shows the number of the step; ends after `length` of them."
    observation_space, action_space = spaces.Discrete(100), spaces.Discrete(2)

    def __init__(self, length=3, truncate=False):
        self.length, self.truncate = length, truncate

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return 0, {}

    def step(self, action):
        self.t += 1
        over = self.t == self.length
        return self.t, 1.0, over and not self.truncate, over and self.truncate, {}


COUNT_SPEC = ObsSpec.from_space(Count.observation_space), ActionSpec.from_space(Count.action_space)


def hashing(actions):
    "A policy that is a function of each observation alone."
    def policy(obs, starts):
        total = sum(np.abs(x.astype(np.float64)).reshape(len(x), -1).sum(1) for x in obs.values())
        return (np.floor(total * 7.0) % actions).astype(np.int64)[:, None]
    return policy


WORLDS = {  # name: (constructor, specs, number of actions)
    "catch": (partial(make_env, CATCH, rows=5, image_size=10), None, 3),
    "cartpole": (partial(make_env, "CartPole-v1", max_episode_steps=12), None, 2),
    "odd": (Odd, ODD_SPEC, 4),
    "count": (Count, COUNT_SPEC, 2),
}


def world(name):
    make, specs, actions = WORLDS[name]
    env = make()
    return (
        make,
        specs
        or (ObsSpec.from_space(env.observation_space), ActionSpec.from_space(env.action_space)),
        hashing(actions),
    )


def joined(parts):
    cat = lambda name: np.concatenate([getattr(p, name) for p in parts])
    return Rows(
        {k: np.concatenate([p.obs[k] for p in parts]) for k in parts[0].obs}, cat("action"),
        cat("reward"), cat("done"), cat("last")
    )


def gather(collector, policy, cuts):
    "Rows and scores of each environment over several calls."
    calls = [collector.collect(policy, n) for n in cuts]
    scores = [
        [(s.return_, s.length) for _, stats in calls for s in stats if s.env == i]
        for i in range(collector.num_envs)
    ]
    return [joined([streams[i] for streams, _ in calls]) for i in range(collector.num_envs)], scores


def alone(make, specs, seed, policy, steps):
    "What one environment gives by itself."
    (rows,), (scores,) = gather(Collector([make], *specs, seed=seed), policy, [steps])
    return rows, scores


def close(a, b):
    return len(a) == len(b) and np.allclose(a, b, rtol=1e-12)


def approved(a, b):
    return equal(a, b) and len(a) == len(b) and all(a.obs[k].dtype == b.obs[k].dtype for k in a.obs)


@given(
    name=st.sampled_from(sorted(WORLDS)), mode=st.sampled_from([None, *AutoresetMode]),
    num_envs=st.integers(1, 4), seed=st.integers(0, 999),
    cuts=st.lists(st.integers(1, 30), min_size=1, max_size=3)
)
@settings(deadline=None, max_examples=25)
def test_every_autoreset_mode_gives_the_rows_of_one_environment_each(
    name, mode, num_envs, seed, cuts
):
    make, specs, policy = world(name)
    envs = (
        [make] * num_envs if mode is None else SyncVectorEnv([make] * num_envs, autoreset_mode=mode)
    )
    collector = Collector(envs, *specs, seed=seed)
    streams, scores = gather(collector, policy, cuts)
    played = [int((~rows.last).sum()) for rows in streams]
    if mode is not AutoresetMode.NEXT_STEP:
        assert played == [sum(-(-n // num_envs) for n in cuts)] * num_envs
    assert sum(cuts) <= sum(played) < sum(cuts) + num_envs * len(cuts)
    for i, (rows, found) in enumerate(zip(streams, scores)):
        if played[i]:
            expected, own = alone(make, specs, seed + i, policy, played[i])
            assert approved(rows, expected) and close(found, own)
    collector.close()


@pytest.mark.parametrize(
    "name,mode",
    [
        ("odd", None), ("catch", None), *(("odd", mode) for mode in AutoresetMode),
        *(("cartpole", mode) for mode in AutoresetMode)
    ],
)
def test_processes_give_the_same_rows(name, mode):
    make, specs, policy = world(name)
    if mode is None:
        collector = Collector([make] * 2, *specs, seed=4, processes=True)
    else:                                                   # gymnasium shares no memory for graphs
        collector = Collector(
            AsyncVectorEnv([make] * 2, shared_memory=name != "odd", autoreset_mode=mode), *specs,
            seed=4
        )
    streams, scores = gather(collector, policy, [31, 2, 40])
    for i, rows in enumerate(streams):
        expected, own = alone(make, specs, 4 + i, policy, int((~rows.last).sum()))
        assert approved(rows, expected) and close(scores[i], own)
    collector.close()
    assert collector.envs.closed


def test_an_environment_that_reuses_its_memory_loses_no_final_observation():
    fresh, reused = (
        Collector([partial(Odd, reuse=reuse, info=True)] * 2, *ODD_SPEC, seed=1)
        for reuse in (False, True)
    )
    for a, b in zip(fresh.collect(hashing(4), 100)[0], reused.collect(hashing(4), 100)[0]):
        assert approved(a, b) and a.last.sum() > 5


@pytest.mark.parametrize("mode", [None, *AutoresetMode])
@pytest.mark.parametrize("truncate", [False, True])
def test_final_observations_are_kept_and_truncation_is_not_done(mode, truncate):
    lengths = [1, 3, 4]
    makes = [partial(Count, n, truncate) for n in lengths]
    collector = Collector(
        makes if mode is None else SyncVectorEnv(makes, autoreset_mode=mode), *COUNT_SPEC
    )
    streams, stats = collector.collect(lambda obs, starts: np.ones((3, 1), int), 90)
    for i, (n, rows) in enumerate(zip(lengths, streams)):
        # 0, 1, ..., n, again: no observation is missing or doubled
        t = np.arange(len(rows)) % (n + 1)
        assert (rows.obs["obs"][:, 0] == t).all() and (rows.last == (t == n)).all()
        assert (
            (rows.done == ((t == n - 1) & (not truncate))).all()
            and (rows.action[:, 0] == (t < n)).all()
            and (rows.reward == (t < n)).all()
        )
        assert [(s.return_, s.length) for s in stats if s.env == i] == [(n, n)] * int(
            rows.last.sum()
        )


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_rows_hold_the_actions_that_were_played_and_starts_tell_where_episodes_begin(mode):
    vector, rng, asked = SyncVectorEnv([Odd] * 3, autoreset_mode=mode), np.random.default_rng(0), []

    def policy(obs, starts):
        asked.append((obs["body/speed"].copy(), starts.copy()))
        return rng.integers(4, size=(3, 1))

    collector = Collector(vector, *ODD_SPEC)
    streams, _ = collector.collect(policy, 120)
    for i, rows in enumerate(streams):
        assert vector.envs[i].played == (rows.action[~rows.last, 0] + 2).tolist()
        first = np.append(True, rows.last[:-1]) & ~rows.last        # rows that begin an episode
        begun = [speed[i] for speed, starts in asked if starts[i]]
        assert (rows.obs["body/speed"][first] == np.stack(begun)[: first.sum()]).all() and 0 <= len(
            begun
        ) - first.sum() <= 1
        speeds = {tuple(x) for x in rows.obs["body/speed"]}
        # the policy saw nothing but what became a row
        assert all(tuple(speed[i]) in speeds for speed, _ in asked)


def test_a_lane_may_have_no_rows_in_a_call():
    # NEXT_STEP
    collector = Collector(SyncVectorEnv([partial(Count, n) for n in (1, 9)]), *COUNT_SPEC)
    act = lambda obs, starts: np.zeros((2, 1), int)
    assert [len(rows) for rows in collector.collect(act, 2)[0]] == [2, 1]
    streams, stats = collector.collect(act, 1)
    assert [len(rows) for rows in streams] == [0, 1] and not stats
    assert (
        streams[0].obs["obs"].shape == (0, 1)
        and streams[0].action.shape == (0, 1)
        and streams[0].obs["obs"].dtype == np.int64
    )
    assert [len(rows) for rows in collector.collect(act, 2)[0]] == [2, 1]


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_lost_lives_are_no_scores_in_any_mode(mode):
    make = partial(make_env, "ALE/Breakout-v5", image_size=16, noop_max=4)
    # serve, then stand still
    env, policy = make(), lambda obs, starts: np.where(starts[:, None], 1, 0)
    specs = ObsSpec.from_space(env.observation_space), ActionSpec.from_space(env.action_space)
    streams, scores = gather(
        Collector(SyncVectorEnv([make] * 2, autoreset_mode=mode), *specs, seed=2), policy,
        [100, 300]
    )
    for i, rows in enumerate(streams):
        expected, own = alone(make, specs, 2 + i, policy, int((~rows.last).sum()))
        assert approved(rows, expected) and scores[i] == own and len(own) < rows.last.sum()
    assert any(scores)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_the_emulators_own_vector_environment(mode):
    vector = gymnasium.make_vec(
        "ALE/Breakout-v5", num_envs=2, autoreset_mode=mode, img_height=24, img_width=24,
        grayscale=False, stack_num=1, use_fire_reset=False, noop_max=0, reward_clipping=False
    )
    specs = (
        ObsSpec((Modality("obs", "image", (24, 24, 3), raw_shape=(1, 24, 24, 3)),)),
        ActionSpec.from_space(vector.single_action_space)
    )
    fire = lambda obs, starts: np.where(starts[:, None], 1, hashing(4)(obs, starts))
    collector = Collector(vector, *specs, seed=3)
    streams, stats = collector.collect(fire, 500)
    assert stats and sum(rows.last.sum() for rows in streams) == len(stats)
    for i, rows in enumerate(streams):
        ends = np.flatnonzero(rows.last)
        parts = [part for part in np.split(rows.reward, ends + 1)][:len(ends)]
        assert [(s.return_, s.length) for s in stats if s.env == i] == [
            (part.sum(), len(part) - 1) for part in parts
        ]
        assert (rows.done == np.append(rows.last[1:], False)).all() and (
            rows.obs["obs"][ends] != rows.obs["obs"][(ends + 1) % len(rows)]
        ).any((1, 2, 3)).all()
    collector.close()


class Batch(VectorEnv):
    """Two worlds stepped at once, final observations batched in a dict, no sub-environments; ends
    every third step."""
    def __init__(self, keep=True, **metadata):
        self.metadata, self.keep, self.num_envs = metadata, keep, 2
        self.single_observation_space, self.single_action_space = (
            spaces.Dict(t=spaces.Discrete(9)), spaces.Discrete(2)
        )
        self.observation_space, self.action_space = (
            spaces.Dict(t=spaces.MultiDiscrete([9, 9])), spaces.MultiDiscrete([2, 2])
        )
        self.t = np.zeros(2, np.int64)                      # one array for ever: it is overwritten

    def reset(self, *, seed=None, options=None):
        self.t[:] = 0, 1
        return {"t": self.t}, {}

    def step(self, actions):
        self.t += 1
        ended = self.t == 3
        info = {"final_obs": {"t": self.t.copy()}} if self.keep and ended.any() else {}
        self.t[ended] = 0
        return {"t": self.t}, np.ones(2, np.float32), ended, np.zeros(2, bool), info


def batch_collector(*args, **kwargs):
    env = Batch(*args, **kwargs)
    return Collector(
        env, ObsSpec.from_space(env.single_observation_space),
        ActionSpec.from_space(env.single_action_space)
    )


def test_a_vector_environment_of_another_make():
    collector = batch_collector(autoreset_mode="SameStep")
    streams, stats = collector.collect(lambda obs, starts: np.zeros((2, 1), int), 20)
    assert streams[0].obs["t"][:, 0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert streams[1].obs["t"][:, 0].tolist() == [1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert [(s.return_, s.length, s.env) for s in stats] == [
        (2, 2, 1), (3, 3, 0), (3, 3, 1), (3, 3, 0), (3, 3, 1), (3, 3, 0)
    ]


def test_a_vector_environment_must_say_how_it_restarts_and_keep_final_observations():
    with pytest.raises(UserError, match="autoreset_mode"):
        batch_collector()
    with pytest.raises(UserError, match="final_obs"):
        batch_collector(keep=False, autoreset_mode=AutoresetMode.SAME_STEP).collect(
            lambda obs, starts: np.zeros((2, 1), int), 20
        )


class Broken(Count):
    def __init__(self, what):
        super().__init__()
        self.what, self.observation_space = what, spaces.Dict(x=spaces.Box(-1, 1, (2,)))

    def reset(self, **kwargs):
        if self.what == "action space" and getattr(self, "t", 0):
            self.action_space = spaces.Discrete(5)
        super().reset(**kwargs)
        return {"x": np.zeros(2, np.float32)}, {}

    def step(self, action):
        _, reward, *rest = super().step(action)
        seen = {
            "shape": {"x": np.zeros(self.t + 1, np.float32)}, "key": {},
            "nan": {"x": np.full(2, np.nan, np.float32)}
        }
        return (
            seen.get(self.what, {"x": np.zeros(2, np.float32)}),
            self.what if isinstance(self.what, float) else reward, *rest
        )


@pytest.mark.parametrize(
    "what,say",
    [
        (float("nan"), "reward nan"), (float("-inf"), "reward -inf"), (1e39, "reward 1e\\+39"),
        ("shape", "'x'.*shape"), ("key", "'x' is missing"), ("nan", "'x'.*NaN"),
        ("action space", "action space changed")
    ],
)
@pytest.mark.parametrize("num_envs", [1, 2])
def test_a_broken_environment_is_met_with_one_clear_line(what, say, num_envs):
    specs = ObsSpec.from_space(Broken(what).observation_space), COUNT_SPEC[1]
    with pytest.raises(UserError, match=say) as e:
        Collector([partial(Broken, what)] * num_envs, *specs).collect(
            lambda obs, starts: np.zeros((num_envs, 1), int), 20
        )
    assert "\n" not in str(e.value)


def test_rewards_that_are_no_numbers_are_refused_in_vector_environments_and_in_evaluation():
    make = partial(Broken, float("nan"))
    specs = ObsSpec.from_space(make().observation_space), COUNT_SPEC[1]
    with pytest.raises(UserError, match="reward nan"):
        Collector(SyncVectorEnv([make] * 2), *specs).collect(
            lambda obs, starts: np.zeros((2, 1), int), 2
        )
    with pytest.raises(UserError, match="reward nan"):
        evaluate(RandomAgent(*specs), [lambda: EpisodeScore(make())], episodes=1)
