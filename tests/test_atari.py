"""The whole Atari path at the smallest size: a run on Boxing, its folder, and what resuming does to
it."""
import json
import math
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from simulus_nb.agent import Agent
from simulus_nb.checkpoint import CheckpointWarning
from simulus_nb.config import Config, cost, preset
from simulus_nb.envs import make_env
from simulus_nb.interrupt import Stopped
from simulus_nb.run_folder import RunFolder
from simulus_nb.run_setup import env_maker
from simulus_nb.trainer import Trainer

TINY = {
    "env": "ALE/Boxing-v5", "env_options": {"max_num_frames_per_episode": 400}, "device": "cpu",
    "threads": 1, "epochs": 2, "save_every": 1, "learn_on": 1, "collect.steps": 40,
    "train_v.steps": 2, "train_v.batch": 4, "train_m.steps": 2, "train_m.batch": 2,
    "train_c.steps": 1, "train_c.batch": 2, "train_c.start": 0, "evaluation.episodes": 3,
    "evaluation.num_envs": 2
}


def tiny() -> Config:
    return preset("atari-smoke").change(TINY)


def records(folder: Path) -> list[dict]:
    "metrics.jsonl without its clock."
    return [
        {k: v for k, v in line.items() if not k.startswith("seconds")}
        for line in RunFolder(folder).history()
    ]


def contents(folder: Path) -> dict[str, bytes]:
    "Every file but TensorBoard's and the manifest, whose command differs."
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*"))
            if p.is_file() and "tfevents" not in p.name and p != folder / "manifest.json"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Trainer:
    return Trainer(
        tiny(), tmp_path_factory.mktemp("atari") / "boxing", progress=False, command="test"
    ).train()


def test_every_file_is_there(finished):
    folder = finished.folder
    for path in (
        folder.config, folder.metrics, folder.manifest, folder.evaluation,
        folder.checkpoint / "LATEST", folder.media / "curves.png", folder.media / "dream.png",
        folder.media / "dream.mp4"
    ):
        assert path.stat().st_size > 0, path
    assert list(folder.path.glob("events.out.tfevents*"))
    assert folder.read_config() == tiny()
    manifest = json.loads(folder.manifest.read_text())
    assert (manifest["command"], manifest["env"], manifest["env_steps"], manifest["epochs"]) == (
        "test", "ALE/Boxing-v5", 40, 2
    )


def test_metrics_are_finite_and_of_every_stage(finished):
    first, second = finished.folder.history()
    assert all(math.isfinite(x) for record in (first, second) for x in record.values())
    for record in (first, second):
        assert {
            "v/loss", "m/obs", "m/reward", "m/done", "c/actor", "c/critic", "c/entropy"
        } <= record.keys()
    assert "seconds/env" in first and "seconds/env" not in second   # the second epoch only learns
    assert first["env_steps"] == second["env_steps"] == cost(tiny())["env_steps"]
    # C begins with a uniform policy over Boxing's 18 actions
    assert abs(first["c/entropy"] - math.log(18)) < 0.1
    assert abs(first["m/obs"] - math.log(64)) < 0.5  # and M with a nearly uniform guess of 64 codes


def test_evaluation_plays_whole_games_under_the_evaluation_rules(finished):
    result = finished.result
    assert len(result.returns) == 3 and all(math.isfinite(r) for r in result.returns)
    assert all(95 <= n <= 100 for n in result.lengths)      # 400 frames less the no-op, four a step
    report = json.loads(finished.folder.evaluation.read_text())
    assert report["returns"] == list(result.returns) and report["mean"] == pytest.approx(
        np.mean(result.returns)
    )
    training, testing = env_maker(tiny(), training=True)(), env_maker(tiny(), training=False)()
    assert (training.clip_reward, training.life_loss_done, training.noop_max) == (True, True, 30)
    assert (testing.clip_reward, testing.life_loss_done, testing.noop_max) == (False, False, 1)


def test_replay_holds_what_was_played(finished):
    replay = finished.replay
    assert replay.steps == finished.env_steps == 40
    rewards = replay.reward[replay.filled()]
    assert torch.equal(rewards, rewards.sign())                         # training hears signs only
    tokens = replay.tokens[replay.filled()].long()
    seen = finished.agent.tokenizer.encode(replay.gather_obs(replay.filled()))
    # V has not moved since the last round of tokens
    assert tokens.shape == (len(rewards), 16) and torch.equal(tokens, seen)


def test_an_evaluation_game_is_truncated_after_108000_frames_and_not_before():
    # a game of Breakout does not begin until a button is pressed
    env = make_env("ALE/Breakout-v5", training=False)
    env.reset(seed=0)
    while env.ale.getEpisodeFrameNumber() < 108_000 - 8:
        env.ale.act(env.buttons[0])
    assert env.step(0)[2:4] == (False, False)
    _, _, terminated, truncated, info = env.step(0)
    assert (
        (terminated, truncated, env.ale.getEpisodeFrameNumber()) == (False, True, 108_000)
        and info["lives"] == 5
        and info["episode_return"] == 0
    )


def test_checkpoint_is_an_agent_that_plays(finished):
    agent, env = Agent.load(finished.folder.path), make_env("ALE/Boxing-v5", training=False)
    for name, x in finished.agent.state_dict().items():
        assert torch.equal(x, agent.state_dict()[name]), name
    obs, _ = env.reset(seed=0)
    for _ in range(5):
        action = agent.act(obs.copy(), temperature=0.0)
        assert env.action_space.contains(action)
        obs = env.step(action)[0]


def test_resuming_a_finished_run_changes_nothing(finished):
    folder = finished.folder.path
    before, weights = (
        contents(folder), {k: v.clone() for k, v in finished.agent.state_dict().items()}
    )
    again = Trainer(None, folder, resume=True, progress=False, command="again").train()
    assert again.epoch == 2 and again.result == finished.result
    assert all(torch.equal(x, again.agent.state_dict()[name]) for name, x in weights.items())
    after = contents(folder)
    assert after.keys() == before.keys()            # saves, metrics, evaluation, pictures and video
    changed = [name for name in before if after[name] != before[name]]
    assert changed in ([], ["run.lock"])            # who was there last


def test_interrupted_run_ends_like_an_uninterrupted_one(finished, tmp_path):
    first = Trainer(tiny(), tmp_path / "cut", progress=False, command="test")
    record = first.run_epoch()
    with open(first.folder.metrics, "w") as f:
        f.write(json.dumps(record) + "\n")
    first.save(first.folder.checkpoint)
    del first
    second = Trainer(None, tmp_path / "cut", resume=True, progress=False, command="test")
    while second.epoch < second.config.epochs:
        with open(second.folder.metrics, "a") as f:
            f.write(json.dumps(second.run_epoch()) + "\n")
    assert records(tmp_path / "cut") == records(finished.folder.path)
    assert all(
        torch.equal(x, second.agent.state_dict()[name])
        for name, x in finished.agent.state_dict().items()
    )


def test_a_game_stopped_in_the_middle_goes_on(finished, tmp_path):
    """Ctrl-C while M learns: the game's actions are played again, and the run ends like the one
    that nobody stopped."""
    first = Trainer(tiny(), tmp_path / "cut", progress=False, command="test")
    m_step = first.learner.m_step
    first.learner.m_step = lambda *batch: signal.raise_signal(signal.SIGINT) or m_step(*batch)
    with pytest.raises(Stopped):
        first.train()
    assert (
        first.cursor.stage == "m"
        and len(first.cursor.values) == 1
        and sum(map(len, first.state.worlds.played)) == 40
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        second = Trainer(None, tmp_path / "cut", resume=True, progress=False, command="test")
    boards = [run.state.worlds.collector.obs["obs"] for run in (first, second)]
    assert np.array_equal(*boards)
    second.train()
    assert (
        records(tmp_path / "cut") == records(finished.folder.path)
        and second.result == finished.result
    )
    assert all(
        torch.equal(x, second.agent.state_dict()[name])
        for name, x in finished.agent.state_dict().items()
    )
