"""Worlds that never end, and simulators of which there is one: evaluation, training and films with
them, and that nothing stays open."""
import json
import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces as gs
from hypothesis import given, settings
from hypothesis import strategies as st

from simulus_nb.cli import main
from simulus_nb.config import preset
from simulus_nb.evaluate import Evaluation, Notice, RandomAgent, close_all, evaluate
from simulus_nb.interrupt import Stopped
from simulus_nb.lockstep import Lockstep, opened
from simulus_nb.recorder import film_episode
from simulus_nb.run_setup import infer_specs, prepare
from simulus_nb.spaces import ActionSpec, ObsSpec
from simulus_nb.terminal import meter, score_text
from simulus_nb.trainer import Callback, Trainer

torch.set_num_threads(1)


class World(gymnasium.Env):
    """Episodes of `length` steps, rewards of 1.

    Of this world `most` may be open at a time: more fail in the constructor, or in `reset`."""
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space, action_space = gs.Box(-1, 1, (3,), np.float32), gs.Discrete(2)
    length, most, where, up, made = 5, 10**6, "init", 0, 0
    def __init__(self, render_mode=None):
        self.render_mode, self.mine = render_mode, False
        type(self).made += 1
        if self.where == "init":
            self.connect()
    def connect(self):
        if not self.mine:
            if type(self).up >= self.most:
                raise OSError(98, "Address already in use")
            type(self).up, self.mine = self.up + 1, True
    def close(self):
        type(self).up, self.mine = self.up - self.mine, False
    def reset(self, *, seed=None, options=None):
        self.connect()
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.random(3, np.float32), {}
    def step(self, action):
        assert self.mine, "played after it was closed"
        self.t += 1
        return self.np_random.random(3, np.float32), 1.0, self.t >= self.length, False, {}
    def render(self):
        return np.zeros((40, 40, 3), np.uint8)


def make(**members):
    return type("World", (World,), {"up": 0, "made": 0, **members})


@pytest.fixture
def register():
    names = []
    def name(cls, as_="Some"):
        names.append(f"simulus-test/{as_}-v0")
        gymnasium.register(names[-1], entry_point=cls, disable_env_checker=True)
        return names[-1]
    yield name
    for one in set(names):
        del gymnasium.registry[one]


AGENT = RandomAgent(
    ObsSpec.from_space(World.observation_space), ActionSpec.from_space(World.action_space)
)
TINY = {
    "epochs": 3, "threads": 1, "device": "cpu", "save_every": 1, "collect.steps": 12,
    "collect.capacity": 60, "world_model.retnet.width": 16, "world_model.retnet.layers": 1,
    "controller.width": 16, "controller.channels": [4, 4], "train_m.batch": 2, "train_m.steps": 1,
    "train_m.start": 0, "train_c.batch": 2, "train_c.steps": 1, "train_c.start": 0,
    "evaluation.episodes": 3, "evaluation.num_envs": 2, "evaluation.every": 1,
    "evaluation.interim": 2, "evaluation.max_steps": 20
}


@pytest.fixture(autouse=True)
def no_media(request, monkeypatch):
    monkeypatch.setattr("simulus_nb.trainer.dream_media", lambda *a, **k: {})
    # is no more than a notice
    monkeypatch.setattr("simulus_nb.trainer.plot_history", lambda *a: 1 / 0)


def train(env, folder, changes=(), **options):
    return Trainer(
        preset("small").change({**TINY, "env": env, **dict(changes)}), folder, progress=False,
        **options
    ).train()


# a limit

@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=9), st.integers(1, 4), st.integers(1, 30))
def test_capped_episodes_are_counted_and_keep_their_return(lengths, n, limit):
    left = list(lengths)
    class Listed(World):
        def reset(self, *, seed=None, options=None):
            self.length = left.pop(0)
            return super().reset(seed=seed)
    result = evaluate(AGENT, [Listed] * n, len(lengths), max_steps=limit)
    assert sorted(result.lengths) == sorted(
        min(x, limit) for x in lengths
    ) and result.returns == tuple(map(float, result.lengths))
    # one that ends by itself at the limit is not cut
    assert result.capped == sum(x > limit for x in lengths)
    assert Evaluation.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert ("were cut after" in score_text("X-v0", result)) == (result.capped > 0)


def test_a_world_without_an_end_is_trained_and_evaluated(register, tmp_path, capsys):
    env = register(make(length=10**9), "Endless")
    run = train(env, tmp_path / "run", {"epochs": 2})
    assert run.result.lengths == (20,) * 3 and run.result.capped == 3 and run.best is not None
    assert run.env_steps == 24 and run.folder.result(2) == run.result
    stored = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert stored["capped"] == 3
    assert main(["train", "--resume", "--out", str(tmp_path / "run")]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--episodes", "2"]) == 0
    out = capsys.readouterr().out
    assert (
        "3 of 3 episodes were cut after 20 steps" in out
        and "2 of 2 episodes were cut" in out
        and "max_episode_steps" in out
        and "episode.mp4" in out
    )
    del stored["capped"]                                            # as earlier releases wrote it
    (tmp_path / "run" / "evaluation.json").write_text(json.dumps(stored))
    assert run.folder.result(2).capped == 0


def test_it_is_told_how_far_an_evaluation_is(monkeypatch):
    clock = iter(np.arange(0, 1e6, 0.4))
    monkeypatch.setattr("simulus_nb.evaluate.time.monotonic", lambda: next(clock))
    told = []
    evaluate(AGENT, [World] * 2, 6, say=told.append)
    assert (
        told
        and len(told) < 15
        and told[0].startswith("evaluation 0/6, step ")
        and all(t.startswith("evaluation ") for t in told)
    )
    with meter() as tell:                                           # no terminal here: not at once
        tell("evaluation 1/2")


# one simulator

@pytest.mark.parametrize("where", ["init", "reset"])
@pytest.mark.parametrize("most, n", [(1, 1), (1, 2), (2, 3)])
def test_a_single_simulator_changes_nothing_that_is_learnt(register, tmp_path, where, most, n):
    """The same run with simulators enough: equal numbers, weights and games; also when it is
    stopped and resumed."""
    def numbers(run):
        rows = [
            {k: v for k, v in r.items() if not k.startswith("seconds")}
            for r in run.folder.history()
        ]
        return rows, run.result.returns, {k: v.clone() for k, v in run.agent.state_dict().items()}
    single, plain = make(most=most, where=where), make()
    alone = {"evaluation.num_envs": n}
    a = train(register(plain), tmp_path / "a", {"evaluation.num_envs": min(n, most)})
    register(single)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        b = train("simulus-test/Some-v0", tmp_path / "b", alone)
    assert single.up == plain.up == 0 and b.judge.alone == (most == 1)
    assert any("next did not open" in str(w.message) for w in heard) == (n > most)
    class Stop(Callback):
        def on_epoch(self, trainer, record):
            raise Stopped
    with pytest.raises(Stopped):
        train("simulus-test/Some-v0", tmp_path / "c", alone, callbacks=[Stop()])
    assert single.up == 0
    c = Trainer(None, tmp_path / "c", resume=True, progress=False).train()
    assert single.up == 0
    (rows, returns, weights), *others = map(numbers, (a, b, c))
    for other in others:
        assert (
            other[0] == rows
            and other[1] == returns
            and all(torch.equal(weights[k], x) for k, x in other[2].items())
        )
    assert (
        main(["evaluate", str(tmp_path / "b"), "--episodes", "2"]) == 0
        and (tmp_path / "b" / "media" / "episode.mp4").exists()
        and single.up == 0
    )


def test_a_world_that_cannot_be_opened_at_all_keeps_its_error(register, tmp_path):
    single = make(most=1)
    run = Trainer(
        preset("small").change({**TINY, "env": register(single)}), tmp_path / "run", progress=False
    )
    single.most = 0
    with pytest.raises(OSError, match="Address already in use"):
        run.train()
    assert single.up == 0
    single.most = 1                                                            # nothing is lost
    assert (
        len(Trainer(None, tmp_path / "run", resume=True, progress=False).train().result.returns)
        == 3
    )


def test_a_finished_trainer_plays_on_when_asked(register, tmp_path):
    cls = make(most=1)
    run = train(register(cls), tmp_path / "run")
    assert cls.up == 0 and len(run.evaluate(2).returns) == 2 and cls.up == 0
    run.collect()
    assert cls.up == 1
    run.state.worlds.close()
    run.state.worlds.close()
    assert cls.up == 0


# nothing stays open

def failing(k, where):
    "A world whose k-th instance fails in its constructor, in `reset`, or in `step`."
    def __init__(self, render_mode=None):
        World.__init__(self, render_mode)
        self.number = self.made
        if where == "init" and self.number == k:
            World.close(self)
            raise ValueError("the world is broken")
    def fail(name):
        def method(self, *args, **kwargs):
            if where == name and self.number == k:
                raise ValueError("the world is broken")
            return getattr(World, name)(self, *args, **kwargs)
        return method
    return make(__init__=__init__, reset=fail("reset"), step=fail("step"))


@pytest.mark.parametrize("where, k", [(w, k) for w in ("init", "reset", "step") for k in (1, 2, 3)])
def test_everything_is_closed_after_an_error(register, tmp_path, where, k):
    cls = failing(k, where)
    config = preset("small").change({**TINY, "env": register(cls), "collect.num_envs": 3})
    makers = [cls] * 3
    if where == "init":
        with pytest.raises(ValueError):
            opened(makers)
        assert cls.up == 0
        cls.made = 0
    if where != "step":
        with pytest.raises(ValueError):
            Lockstep(makers, AGENT.obs_spec, AGENT.action_spec)
        if where == "init":
            assert cls.up == 0
        cls.made = cls.up = 0
    if k == 1 or where == "step":
        with pytest.raises(ValueError):
            evaluate(AGENT, makers, 3)
    else:
        with pytest.warns(Notice, match="broken"):
            assert len(evaluate(AGENT, makers, 3).returns) == 3
    assert cls.up == 0
    cls.made = 0 if (where, k) == ("init", 1) else -1               # one more looks at the spaces
    with pytest.raises(ValueError):
        prepare(config).worlds.collector.collect(
            lambda obs, starts: np.zeros((3, 1), np.int64), 12
        ) if where != "step" else Trainer(config, tmp_path / "run", progress=False).train()
    assert cls.up == 0
    if k == 1:
        cls.made = 0
        assert "broken" in film_episode(AGENT, config, tmp_path / "a.mp4", 1.0, 0) and cls.up == 0
    if (where, k) == ("init", 1):
        cls.made = 0
        with pytest.raises(ValueError):
            infer_specs(config)
        assert cls.up == 0


def test_a_close_that_fails_is_a_notice_and_keeps_no_other_open(register, tmp_path):
    class Bad(World):
        def close(self):
            super().close()
            raise RuntimeError("close failed")
    worlds = [Bad(), World(), Bad()]
    with pytest.warns(Notice, match="a world did not close .RuntimeError: close failed."):
        close_all(worlds)
    assert World.up == Bad.up == 0 or not any(w.mine for w in worlds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(train(register(Bad), tmp_path / "run").result.returns) == 3
