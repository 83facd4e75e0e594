"The default world, the Atari-100K rules on the real emulator, and the collector."
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from simulus_nb.envs import CATCH, LOOKS, AtariProtocol, Catch, Collector, EpisodeScore, ResizeImages, make_env, resize
from simulus_nb.spaces import ActionSpec, ObsSpec, UserError


def raw_ale(game, **kwargs):
    return gymnasium.make(f"ALE/{game}-v5", frameskip=1, repeat_action_probability=0.0, full_action_space=False, **kwargs)


def catch_spec():
    env = Catch()
    return ObsSpec.from_space(env.observation_space), ActionSpec.from_space(env.action_space)


# ---------------------------------------------------------------- Catch

@pytest.mark.parametrize("kwargs", [{}, {"rows": 8, "cols": 8, "size": 40}, {"rows": 2, "cols": 2, "size": 16, "look": "paper"}])
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
    p = np.eye(cols)[cols // 2]                         # exact value of the random policy: forward over the paddle's column
    for _ in range(rows - 1):
        q = np.zeros(cols)
        for i in range(cols):
            for move in (-1, 0, 1):
                q[np.clip(i + move, 0, cols - 1)] += p[i] / 3
        p = q
    value = sum((p[c] - (1 - p[c])) / cols for c in range(cols))
    assert value == pytest.approx(2 / cols - 1)
    for blind in (0, 1, 2):                             # and of each constant policy, by playing every ball
        assert np.mean([catch_return(env, c, [blind] * rows)[0] for c in range(cols)]) == pytest.approx(value)


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
    fast = AtariProtocol(raw_ale(game), noop_max=0, frame_skip=skip, life_loss_done=False, clip_reward=False)
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
            total += env.score - before                 # what the no-op step between two lives earned
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
        assert env.ale.getEpisodeFrameNumber() == frame + 4 and env.ale.lives() == lives    # one no-op step, same game
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
    assert starts == [env.reset(seed=s) and env.ale.getEpisodeFrameNumber() for s in range(12)]       # seeded
    assert len(set(starts)) > 4 and 1 <= min(starts) and max(starts) <= 30


def test_step_and_frame_limits_truncate():
    env = make_env("ALE/Pong-v5", max_episode_steps=20)
    env.reset(seed=0)
    ends = [env.step(0)[2:4] for _ in range(20)]
    assert ends == [(False, False)] * 19 + [(False, True)]
    env = make_env("ALE/Pong-v5", training=False, max_num_frames_per_episode=81)    # 1 no-op + 20 skips
    env.reset(seed=0)
    ends = [env.step(0)[2:4] for _ in range(20)]
    assert ends == [(False, False)] * 19 + [(False, True)]
    assert make_env("ALE/Pong-v5").max_steps == 20_000 and make_env("ALE/Pong-v5", training=False).max_steps is None
    assert make_env("ALE/Pong-v5", training=False).env.spec.kwargs["max_num_frames_per_episode"] == 108_000


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

@pytest.mark.parametrize("env_id,say", [
    ("ALE/Pang-v5", "ALE/Pong-v5"), ("CartPoll-v1", "CartPole-v1"), ("simulus/Catsh-v0", CATCH), ("zzz", "pprint_registry"), ("nowhere:Thing-v0", "nowhere")])
def test_a_misspelt_id_is_a_user_error_with_a_hint(env_id, say):
    with pytest.raises(UserError, match=say) as e:
        make_env(env_id)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("env_id,package,extra", [
    ("MiniGrid-Empty-5x5-v0", "minigrid", "minigrid"), ("BabyAI-GoToObj-v0", "minigrid", "minigrid"),
    ("MinAtar/Breakout-v1", "minatar", "minatar"), ("dm_control/cheetah-run-v0", "shimmy", "dmc")])
def test_a_missing_extra_names_the_command(env_id, package, extra, monkeypatch):
    monkeypatch.setattr("simulus_nb.envs.gymnasium.registry", {})
    for name in (package, f"{package}.gym", f"{package}.registration"):
        monkeypatch.setitem(__import__("sys").modules, name, None)      # as if not installed
    with pytest.raises(UserError, match=rf"pip install \"simulus-nb\[{extra}\]\""):
        make_env(env_id)


@pytest.mark.parametrize("call", [
    lambda: make_env("CartPole-v1", rows=3), lambda: make_env(CATCH, rows=1),
    lambda: make_env("ALE/Pong-v5", frame_skip=0), lambda: make_env("ALE/Pong-v5", nonsense=1)])
def test_wrong_options_are_user_errors(call):
    with pytest.raises(UserError):
        call()


def test_plain_ids_report_scores_and_obey_the_step_limit():
    env = make_env("CartPole-v1", max_episode_steps=5)
    env.reset(seed=0)
    *_, (_, _, terminated, truncated, info) = [env.step(0) if i % 2 else env.step(1) for i in range(5)]
    assert truncated and not terminated and info["episode_return"] == 5.0 and info["episode_length"] == 5
    env.reset()
    assert env.score == 0.0


def test_catch_is_drawn_at_the_image_size_not_blurred():
    frame, _ = make_env(CATCH, image_size=64, rows=8).reset(seed=0)
    assert frame.shape == (64, 64, 3) and len(np.unique(frame.reshape(-1, 3), axis=0)) == 3


@pytest.mark.parametrize("shape", [(96, 80, 3), (40, 60, 1), (50, 50), (48, 48, 4)])
def test_pictures_in_a_dict_are_resized_and_maps_are_not(shape):
    class Two(gymnasium.Env):
        observation_space = spaces.Dict(eye=spaces.Box(0, 255, shape, np.uint8), map=spaces.Box(0, 255, (7, 7, 3), np.uint8), body=spaces.Box(-1, 1, (4,)))
        action_space = spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return self.observation_space.sample(), {}

    env = ResizeImages(Two(), 32)
    obs, _ = env.reset()
    assert obs in env.observation_space and obs["eye"].shape == (32, 32, *shape[2:])
    assert env.observation_space["map"].shape == (7, 7, 3) and obs["map"].shape == (7, 7, 3) and obs["body"].shape == (4,)


# ---------------------------------------------------------------- Collector

def looker(obs, starts):
    return obs["obs"].astype(np.int64).sum((1, 2, 3))[:, None] // 97 % 3


def equal(a, b):
    return all((getattr(a, n) == getattr(b, n)).all() for n in ("action", "reward", "done", "last")) and all((a.obs[k] == b.obs[k]).all() for k in a.obs)


@given(num_envs=st.integers(1, 4), seed=st.integers(0, 99), cuts=st.lists(st.integers(1, 30), min_size=1, max_size=3))
@settings(deadline=None, max_examples=20)
def test_many_environments_give_the_streams_of_one_each(num_envs, seed, cuts):
    make = lambda: make_env(CATCH, rows=6, image_size=12)
    obs_spec, action_spec = ObsSpec.from_space(make().observation_space), ActionSpec.from_space(make().action_space)
    many = Collector([make] * num_envs, obs_spec, action_spec, seed)
    ones = [Collector([make], obs_spec, action_spec, seed + i) for i in range(num_envs)]
    for n in cuts:
        streams, stats = many.collect(looker, n * num_envs)
        for i, one in enumerate(ones):
            (alone,), own = one.collect(looker, n)
            assert equal(streams[i], alone)
            assert [(s.return_, s.length) for s in stats if s.env == i] == [(s.return_, s.length) for s in own]


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
        assert [a[1][i] for a in asked] == [t % 9 == 0 for t in range(31)]      # starts: where an episode begins
        assert (rows.done == np.append(rows.last[1:], False)).all()             # the row before a final observation is done
        assert not rows.action[rows.last].any() and not rows.reward[rows.last].any()
        env = make()                                    # play the same actions again: every observation and reward is right
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
    obs_spec, action_spec = ObsSpec.from_space(make().observation_space), ActionSpec.from_space(make().action_space)
    (rows,), stats = Collector([make], obs_spec, action_spec).collect(lambda o, s: np.array([[len(o)]]), 8)
    assert not rows.done.any() and np.flatnonzero(rows.last).tolist() == [4, 9] and [s.length for s in stats] == [4, 4]


def test_stats_count_whole_games_and_unwrapped_environments_are_scored_too():
    env = make_env("ALE/Breakout-v5")
    rng = np.random.default_rng(0)
    collector = Collector([lambda: env], ObsSpec.from_space(env.observation_space), ActionSpec.from_space(env.action_space))
    (rows,), stats = collector.collect(lambda o, s: rng.integers(4, size=(1, 1)), 500)
    assert rows.done.sum() == rows.last.sum() > len(stats) >= 1
    obs_spec, action_spec = catch_spec()
    collector = Collector([Catch], obs_spec, action_spec)
    assert isinstance(collector.envs[0], EpisodeScore)
    assert len(collector.collect(lambda o, s: np.ones((1, 1), int), 18)[1]) == 2


def test_restart_gives_the_same_beginning():
    obs_spec, action_spec = catch_spec()
    collector = Collector([Catch] * 2, obs_spec, action_spec, seed=5)
    first, _ = collector.collect(looker, 40)
    collector.restart(5)
    again, _ = collector.collect(looker, 40)
    assert all(equal(a, b) for a, b in zip(first, again))
