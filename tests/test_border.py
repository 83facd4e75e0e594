"What a world may return, what it is told otherwise, whose an error is, and whose score counts."
import pickle
from dataclasses import dataclass
from fractions import Fraction

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.registration import WrapperSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from test_every_world import TOY

from simulus_nb.border import Border, WorldError, WorldWarning, checked_reward, checked_step, number
from simulus_nb.collect import Collector
from simulus_nb.config import preset
from simulus_nb.envs import make_env
from simulus_nb.evaluate import RandomAgent, evaluate
from simulus_nb.lockstep import EpisodeScore, Lane, scored
from simulus_nb.loop import judge, run_epoch
from simulus_nb.registry import EXTRAS, built, raw_make
from simulus_nb.run_setup import infer_specs, prepare
from simulus_nb.spaces import ActionSpec, ObsSpec, UserError
from simulus_nb.trainer import Trainer


class World(gymnasium.Env):
    """Episodes of 4 to 8 steps, reward 1 a step; `does` holds a function to be called instead of
    something."""
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space, action_space = spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2)

    def __init__(self, render_mode=None, **does):
        self.render_mode, self.does = render_mode, does
        self.act("init")

    def act(self, call, *usual):
        return self.does[call](*usual) if call in self.does else usual

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.length = 0, int(self.np_random.integers(4, 9))
        return self.act("reset", np.zeros(3, np.float32), {})

    def step(self, action):
        self.t += 1
        return self.act(
            "step", np.full(3, self.t / 10, np.float32), 1.0, self.t >= self.length, False, {}
        )

    def render(self):
        return self.act("render", np.zeros((8, 8, 3), np.uint8))[0]

    def close(self):
        self.act("close")


gymnasium.register("tests/World-v0", entry_point=World, max_episode_steps=100)
SPECS = ObsSpec.from_space(World.observation_space), ActionSpec.from_space(World.action_space)
STILL = lambda obs, starts: np.zeros((len(starts), 1), int)
CONFIG = preset("small").change({**TOY, "env": "tests/World-v0"})


def play(make, n):
    collector = Collector([make] * n, *SPECS)
    return collector.collect(STILL, 30 * n)[1]


def given_vector(make, mode):
    return Collector(SyncVectorEnv([make] * 2, autoreset_mode=mode), *SPECS).collect(STILL, 60)[1]


PATHS = {
    "one": lambda make: play(make, 1), "two": lambda make: play(make, 2),
    "evaluate": lambda make: evaluate(RandomAgent(*SPECS), [make] * 2, episodes=4),
    "given": lambda make: given_vector(make, AutoresetMode.NEXT_STEP),
}
MAKERS = {      # by id, with Gymnasium's wrappers between; and the bare class
    "id": lambda **does: lambda: make_env("tests/World-v0", **does),
    "class": lambda **does: lambda: World(**does),
}
WAYS = [("id", path) for path in PATHS] + [("class", path) for path in PATHS if path != "given"]


def put(i, value):
    "A step that returns `value` in place i."
    return lambda *usual: (*usual[:i], value, *usual[i + 1:])


STEPS = {  # what step returns, a part of the line
    "reward None": (put(1, None), "the reward None"),
    "reward text": (put(1, "1.0"), "the reward '1.0'"),
    "reward bytes": (put(1, b"1"), "reward b'1'"),
    "reward complex": (put(1, 1 + 1j), r"reward \(1\+1j\)"),
    "reward nan": (put(1, np.float64("nan")), "reward nan"),
    "reward inf": (put(1, np.inf), "reward inf"),
    "reward (1,)": (put(1, np.ones(1)), r"reward array\(\[1"),
    "reward (2,)": (put(1, np.ones(2)), "reward array"),
    "reward list": (put(1, [1.0]), r"reward \[1.0\]"),
    "reward tensor": (put(1, torch.ones(1)), "reward tensor"),
    "reward huge": (put(1, 10**400), "the reward 1000"),
    "reward dict": (put(1, {"a": 1}), "the reward {"),
    "done None": (put(2, None), "terminated = None"),
    "done text": (put(2, "False"), "terminated = 'False'"),
    "done nan": (put(2, float("nan")), "terminated = nan"),
    "done (1,)": (put(2, np.array([True])), r"terminated = array\(\[ True"),
    "done two": (put(2, 2), "terminated = 2"),
    "cut None": (put(3, None), "truncated = None"),
    "cut dict": (put(3, {}), "truncated = {}"),
    "info None": (put(4, None), "info = None"),
    "info list": (put(4, []), r"info = \[\]"),
    "four": (lambda o, r, d, t, i: (o, r, d, i), "4 values"),
    "six": (lambda *o: (*o, 1), "6 values"),
    "nothing": (lambda *o: None, "returned None"),
    "array": (lambda *o: np.zeros(5), r"returned array\("),
    "observation only": (lambda *o: o[0], r"returned array\("),
    "obs None": (put(0, None), "gave None in step.*real numbers"),
    "obs wide": (put(0, np.zeros(4)), r"gave array.* in step.*shape \(4,\)\): expected \(3,\)"),
    "obs nan": (put(0, np.full(3, np.nan)), "in step.*NaN"),
    "obs text": (put(0, "up"), "gave 'up' in step"),
    "obs dict": (put(0, {"a": 1}), "gave {'a': 1} in step"),
    "exit": (lambda *o: exit(3), r"ended the program with SystemExit\(3\)"),
}
RESETS = {
    "no info": (lambda o, i: o, r"returned array\("),
    "info None": (lambda o, i: (o, None), r"returned \(array.*None\)"),
    "none": (lambda o, i: None, "returned None"), "three": (lambda o, i: (o, i, 1), r"returned \("),
    "obs None": (lambda o, i: (None, i), r"gave None in reset\(\)"),
    "obs wide": (lambda o, i: (np.zeros(4), i), r"in reset\(\).*shape \(4,\)\): expected \(3,\)"),
    "exit": (lambda o, i: exit(), "ended the program")
}


def refused(run, name, call, say):
    with pytest.raises(WorldError, match=say) as e:
        run()
    line = str(e.value)
    assert "\n" not in line and f"the world {name} " in line and f"{call}()" in line, line
    assert str(pickle.loads(pickle.dumps(e.value))) == line
    return e.value


def refused_or_marked(e):
    assert isinstance(e, WorldError) or e.of_world.startswith("tests/World-v0 failed in")


@pytest.mark.parametrize("maker,path", WAYS)
@pytest.mark.parametrize("kind", STEPS)
def test_a_wrong_step_is_one_line(kind, maker, path):
    wrong, say = STEPS[kind]
    # Gymnasium joins observations before anybody sees them
    if path == "given" and kind[:3] == "obs":
        with pytest.raises(Exception) as e:
            PATHS[path](MAKERS[maker](step=wrong))
        return refused_or_marked(e.value)
    e = refused(
        lambda: PATHS[path](MAKERS[maker](step=wrong)),
        {"id": "tests/World-v0", "class": "World"}[maker], "step", say
    )
    assert kind != "exit" or isinstance(e.__cause__, SystemExit)


@pytest.mark.parametrize("maker,path", WAYS)
@pytest.mark.parametrize("kind", RESETS)
def test_a_wrong_reset_is_one_line(kind, maker, path):
    wrong, say = RESETS[kind]
    if path == "given" and kind[:3] == "obs":
        with pytest.raises(Exception) as e:
            PATHS[path](MAKERS[maker](reset=wrong))
        return refused_or_marked(e.value)
    refused(
        lambda: PATHS[path](MAKERS[maker](reset=wrong)),
        {"id": "tests/World-v0", "class": "World"}[maker], "reset", say
    )


class NoSeed(World):
    def reset(self):
        return np.zeros(3, np.float32), {}


class NoOptions(World):
    def reset(self, seed=None):
        return np.zeros(3, np.float32), {}


@pytest.mark.parametrize(
    "old,say", [(NoSeed, "takes no 'seed'"), (NoOptions, "takes no 'options'")]
)
@pytest.mark.parametrize("path", [p for p in PATHS if p != "given"])
def test_a_reset_of_old_habits(old, say, path):
    refused(lambda: PATHS[path](old), old.__name__, "reset", say)


@given(
    where=st.integers(1, 4),
    wrong=st.one_of(
        st.none(), st.text(), st.binary(), st.complex_numbers(), st.lists(st.floats(), max_size=3),
        st.floats(allow_nan=True).map(lambda x: np.array([x])), st.dates(), st.sets(st.integers()),
        st.just(np.datetime64("2026-01-01")), st.just(torch.tensor(1j))
    ),
)
@settings(deadline=None, max_examples=60)
def test_what_is_no_number_no_truth_and_no_dict_never_passes(where, wrong):
    out = list((0, 1.0, False, False, {}))
    out[where] = wrong
    with pytest.raises(WorldError):
        checked_step(tuple(out), "x")


@given(
    x=st.floats(-1e30, 1e30),
    form=st.sampled_from(
        [
            float, np.float64, np.array, torch.tensor, Fraction,
            lambda x: torch.tensor(x, dtype=torch.float64, requires_grad=True)
        ]
    ),
    flag=st.booleans(),
    flag_form=st.sampled_from([bool, int, float, np.bool_, np.int8, np.array, torch.tensor]),
)
@settings(deadline=None, max_examples=60)
def test_numbers_of_every_make_pass_as_plain_ones(x, form, flag, flag_form):
    out = checked_step((0, form(x), flag_form(flag), flag_form(not flag), {"a": 1}), "x")
    assert out == (0, pytest.approx(x), flag, not flag, {"a": 1}) and [
        type(v) for v in out[1:4]
    ] == [float, bool, bool]
    assert checked_reward(form(x)) == number(form(x)) == out[1]


@dataclass(frozen=True)
class Frozen(Exception):
    why: str


ERRORS = [
    FileNotFoundError(2, "No such file", "level.json"), PermissionError(13, "denied"),
    OSError(28, "No space left on device"), BrokenPipeError(32, "Broken pipe"),
    ConnectionResetError(104, "reset"), TimeoutError("slow"), EOFError("gone"), MemoryError(),
    TypeError("got an unexpected keyword argument 'colour'"), ValueError("two\nlines"),
    KeyError("k"), AssertionError(), RecursionError(), StopIteration(), ImportError("no module"),
    UnicodeDecodeError("utf8", b"x", 0, 1, "bad"), Frozen("why"),
    gymnasium.error.ResetNeeded("early")
]


def fails(error):
    def the_worlds_own_frame(*usual):
        raise error
    return the_worlds_own_frame


def is_its_own(caught, error, name, call):
    assert caught.value is error and error.of_world == f"{name} failed in {call}()"
    assert caught.traceback[-1].name == "the_worlds_own_frame"
    del error.__dict__["of_world"]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("call", ["reset", "step"])
def test_the_worlds_own_errors_pass_and_say_whose_they_are(error, call):
    for maker, path in WAYS:
        with pytest.raises(type(error)) as caught:
            PATHS[path](MAKERS[maker](**{call: fails(error)}))
        is_its_own(caught, error, {"id": "tests/World-v0", "class": "World"}[maker], call)


@pytest.mark.parametrize(
    "error", [e for e in ERRORS if not isinstance(e, ImportError)], ids=lambda e: type(e).__name__
)
def test_errors_of_a_constructor_and_of_a_picture(error):
    with pytest.raises(type(error)) as caught:
        raw_make("tests/World-v0", init=fails(error))
    is_its_own(caught, error, "tests/World-v0", "__init__")
    env = make_env("tests/World-v0", render=fails(error), render_mode="rgb_array")
    env.reset()
    with pytest.raises(type(error)) as caught:
        env.render()
    is_its_own(caught, error, "tests/World-v0", "render")


@pytest.mark.parametrize("call", ["init", "reset", "step", "render", "close"])
def test_an_interruption_stays_one(call):
    stop = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt) as caught:
        env = make_env("tests/World-v0", render_mode="rgb_array", **{call: fails(stop)})
        env.reset(), env.step(0), env.render(), env.close()
    assert caught.value is stop and not hasattr(stop, "of_world")


class Plain(World):
    def __init__(self, colour=None):
        super().__init__()
        if colour == "none":
            self.paint(colour=colour)


gymnasium.register("tests/Plain-v0", entry_point=Plain)
gymnasium.register("tests/Loose-v0", entry_point=lambda **given: Plain(**given))
gymnasium.register("tests/No-v0", entry_point=lambda: "no world")
gymnasium.register("tests/Spaceless-v0", entry_point=type("Spaceless", (gymnasium.Env,), {}))


@pytest.mark.parametrize("world", ["Plain", "Loose"])
def test_only_what_does_not_fit_the_arguments_is_a_wrong_option(world):
    for wrong in ({"size": 3}, {"render_mode": "rgb_array"}):
        with pytest.raises(UserError, match="does not take these options.*" + "|".join(wrong)) as e:
            raw_make(f"tests/{world}-v0", **wrong)
        assert "\n" not in str(e.value)
    with pytest.raises(AttributeError) as e:
        raw_make(f"tests/{world}-v0", colour="none")
    assert e.value.of_world == f"tests/{world}-v0 failed in __init__()"


@pytest.mark.parametrize(
    "world,say",
    [("No", "'no world'; expected a gymnasium.Env"), ("Spaceless", "observation_space is None")]
)
def test_an_entry_point_that_makes_no_world(world, say):
    refused(lambda: make_env(f"tests/{world}-v0"), f"tests/{world}-v0", "__init__", say)


@pytest.mark.parametrize(
    "error", [RuntimeError("two\nlines"), OSError(9, "bad"), SystemExit(3), KeyError("k")],
    ids=lambda e: type(e).__name__
)
def test_a_failing_close_is_a_notice(error):
    env = make_env("tests/World-v0", close=fails(error))
    env.reset()
    with pytest.warns(WorldWarning, match=r"tests/World-v0 failed in close\(\)") as notices:
        env.close()
    assert len(notices) == 1 and "\n" not in str(notices[0].message)
    with pytest.warns(WorldWarning):
        assert (
            len(
                evaluate(
                    RandomAgent(*SPECS), [lambda: World(close=fails(error))], episodes=2
                ).returns
            )
            == 2
        )
    with pytest.warns(WorldWarning):
        collector = Collector(SyncVectorEnv([lambda: World(close=fails(error))]), *SPECS)
        collector.close()


# ---------------------------------------------------------------- the border is in the right place
# and in nobody's way

class Twice(gymnasium.Wrapper):
    "An entry point's own wrapper."
    def step(self, action):
        return self.env.step(action)


gymnasium.register(
    "tests/Chain-v0", entry_point=lambda **does: Twice(World(**does)), max_episode_steps=3
)
gymnasium.register(
    "tests/Timed-v0", entry_point=World, order_enforce=False, max_episode_steps=9,
    additional_wrappers=(gymnasium.wrappers.TimeAwareObservation.wrapper_spec(),)
)


@pytest.mark.parametrize(
    "env_id,chain",
    [
        ("Chain", ["TimeLimit", "OrderEnforcing", "Border", "Twice"]),
        ("Timed", ["TimeAwareObservation", "TimeLimit", "Border"])
    ],
)
def test_the_border_stands_around_what_the_entry_point_returns(env_id, chain):
    env, kinds = raw_make(f"tests/{env_id}-v0"), []
    while isinstance(env, gymnasium.Wrapper):
        kinds.append(type(env).__name__)
        env = env.env
    assert kinds == chain and type(env) is World


@pytest.mark.parametrize(
    "env_id", ["tests/World-v0", "CartPole-v1", "ALE/Pong-v5", "simulus/Catch-v0"]
)
def test_gymnasium_does_not_notice_the_border(env_id):
    ours, plain = raw_make(env_id), gymnasium.make(env_id, disable_env_checker=True)
    assert (
        ours.spec == plain.spec
        and ours.unwrapped.spec == plain.unwrapped.spec
        and type(ours.unwrapped) is type(plain.unwrapped)
    )
    assert type(gymnasium.make(ours.spec).unwrapped) is type(plain.unwrapped)
    assert ours.metadata == plain.metadata and ours.has_wrapper_attr(
        "ale"
    ) == plain.has_wrapper_attr("ale") == env_id.startswith("ALE")
    assert np.array_equal(ours.reset(seed=3)[0], plain.reset(seed=3)[0])
    for action in (0, 1, 1):
        assert all(np.array_equal(a, b) for a, b in zip(ours.step(action), plain.step(action)))


def test_ways_of_drawing_are_still_gymnasiums_business():
    films = make_env("tests/World-v0", render_mode="rgb_array_list")
    films.reset(), films.step(0)
    assert len(films.render()) == 2 and films.unwrapped.render_mode == "rgb_array"


def test_a_border_is_put_where_there_is_none_and_once():
    border_of = lambda env: str(env).count("Border")
    assert (
        border_of(scored(World()))
        == border_of(Lane(World(), SPECS[0]))
        == border_of(scored(scored(World())))
        == border_of(make_env("tests/World-v0"))
        == 1
    )
    assert isinstance(scored(World()), EpisodeScore) and isinstance(scored(World()).env, Border)


# ---------------------------------------------------------------- whole runs

@pytest.mark.parametrize(
    "does,call,say",
    [
        (dict(step=STEPS["four"][0]), "step", "4 values"),
        (dict(step=STEPS["reward (1,)"][0]), "step", "reward array"),
        (dict(step=STEPS["done text"][0]), "step", "terminated = 'False'"),
        (dict(step=STEPS["obs wide"][0]), "step", "shape"),
        (dict(reset=RESETS["no info"][0]), "reset", "returned array"),
        (dict(init=lambda: exit(1)), "__init__", "ended the program")
    ],
)
def test_a_run_is_told_in_one_line(does, call, say, tmp_path):
    refused(
        lambda: Trainer(
            CONFIG.change({"env": "mine"}), tmp_path / "run", progress=False,
            make_env=lambda: World(**does)
        ).train(),
        "python:mine",
        call,
        say,
    )


@pytest.mark.parametrize("call", ["init", "reset", "step"])
@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file"), BrokenPipeError(32, "Broken pipe"), TypeError("t"),
        MemoryError()
    ],
    ids=lambda e: type(e).__name__,
)
def test_a_run_raises_the_worlds_own_error(call, error, tmp_path):
    with pytest.raises(type(error)) as caught:
        Trainer(
            CONFIG.change({"env": "mine"}), tmp_path / "run", progress=False,
            make_env=lambda: World(**{call: fails(error)})
        ).train()
    is_its_own(caught, error, "python:mine", "__init__" if call == "init" else call)


def test_a_factory_that_does_not_take_the_options():
    with pytest.raises(UserError, match="python:mine does not take these options.*size"):
        infer_specs(
            CONFIG.change({"env": "python:mine", "env_options": {"size": 3}}), lambda: World()
        )
    assert infer_specs(
        CONFIG.change({"env": "python:mine", "env_options": {"name": 3, "call": 4}}),
        lambda name, call: World()
    ) == infer_specs(CONFIG)


@pytest.mark.filterwarnings("ignore")          # Gymnasium prints the worker's traceback as warnings
def test_an_error_in_a_process_of_its_own_says_whose_it_is():
    collector = Collector(
        [lambda: World(step=fails(FileNotFoundError(2, "No such file")))] * 2, *SPECS,
        processes=True
    )
    with pytest.raises(FileNotFoundError) as caught:
        collector.collect(STILL, 4)
    refused(
        lambda: Collector([lambda: World(step=lambda *o: None)], *SPECS, processes=True).collect(
            STILL, 4
        ),
        "World",
        "step",
        "returned None",
    )
    assert caught.value.of_world == "World failed in step()"


# ---------------------------------------------------------------- whose score counts

def lies(*, every=True, **entries):
    return lambda o, r, d, t, i: (o, r, d, t, {**i, **(entries if every or d else {})})


LIES = {
    "numbers": lies(episode_return=1000.0, episode_length=1),
    "whole numbers": lies(episode_return=1000, episode_length=1),
    "at the end": lies(every=False, episode_return=1000.0, episode_length=1),
    "text": lies(episode_return="x", episode_length=None),
    "arrays": lies(episode_return=np.ones(2), episode_length=np.ones(3)),
    "masks": lies(episode_return=7.0, _episode_return=True),
    "gymnasium's": lies(episode={"r": 5.0, "l": 2}, lives=3),
    "final": lies(final_info={"episode_return": 9.0}, every=True),
    "one part": lies(episode_return=np.nan)
}


def true_scores(n):
    "Lengths of the first episodes of environments 0 to n - 1, by their own random numbers."
    found = []
    for i in range(n):
        env, lengths = World(), []
        env.reset(seed=i)
        for _ in range(3):
            lengths.append(env.length)
            env.reset()
        found.append(lengths)
    return found


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("num_envs", [1, 2, 3])
@pytest.mark.parametrize("mode", [None, *AutoresetMode])
@pytest.mark.parametrize("maker", MAKERS)
def test_a_world_that_boasts_changes_no_score(lie, num_envs, mode, maker):
    if lie == "final" and mode is AutoresetMode.SAME_STEP and num_envs > 1:
        pytest.skip("Gymnasium's own vector environment cannot join these entries")
    make = MAKERS[maker](step=LIES[lie])
    envs = (
        [make] * num_envs if mode is None else SyncVectorEnv([make] * num_envs, autoreset_mode=mode)
    )
    stats = Collector(envs, *SPECS).collect(STILL, 40 * num_envs)[1]
    for i, lengths in enumerate(true_scores(num_envs)):
        mine = [s for s in stats if s.env == i]
        assert [s.length for s in mine][:3] == lengths and all(s.return_ == s.length for s in mine)
    assert sum(s.length for s in stats) <= 40 * num_envs + num_envs


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("maker", MAKERS)
def test_a_world_that_boasts_changes_no_evaluation(lie, maker):
    result = evaluate(RandomAgent(*SPECS), [MAKERS[maker](step=LIES[lie])] * 2, episodes=5)
    assert (
        result.returns == result.lengths and 4 <= min(result.lengths) and max(result.lengths) <= 8
    )
    cut = evaluate(RandomAgent(*SPECS), [MAKERS[maker](step=LIES[lie])], episodes=2, max_steps=3)
    assert cut.returns == (3.0, 3.0)


class Boasts(gymnasium.Wrapper):
    "Somebody's wrapper around an environment of ours."
    def step(self, action):
        *out, info = self.env.step(action)
        return *out, {**info, "episode_return": -1e6, "episode_length": 1}


@pytest.mark.parametrize("mode", [None, *AutoresetMode])
def test_a_wrapper_outside_changes_no_score(mode):
    make = lambda: Boasts(make_env("tests/World-v0"))
    stats = Collector(
        [make] * 2 if mode is None else SyncVectorEnv([make] * 2, autoreset_mode=mode), *SPECS
    ).collect(STILL, 60)[1]
    assert len(stats) >= 6 and all(s.return_ == s.length >= 4 for s in stats)
    assert min(evaluate(RandomAgent(*SPECS), [make], episodes=3).returns) >= 4


def test_reporting_and_silent_environments_side_by_side():
    "In a vector environment each lane is scored in its own way."
    makes = [lambda: make_env("tests/World-v0"), World]
    stats = Collector(SyncVectorEnv(makes), *SPECS).collect(STILL, 60)[1]
    for i, lengths in enumerate(true_scores(2)):
        assert [s.length for s in stats if s.env == i][:3] == lengths


@pytest.mark.parametrize("num_envs", [1, 3])
def test_a_run_counts_true_episodes(num_envs):
    run = prepare(
        CONFIG.change(
            {"env": "python:mine", "collect.num_envs": num_envs, "collect.steps": 60, "epochs": 1}
        ),
        lambda: World(step=LIES["numbers"]),
    )
    record = run_epoch(run)
    assert record["env/return"] == record["env/length"] and 4 <= record["env/length"] <= 8
    assert 60 / 8 - num_envs <= record["env/episodes"] <= 60 / 4
    result = judge(run)
    assert result.returns == result.lengths


def test_info_of_make_env_carries_the_score_at_the_end_and_only_there():
    env = make_env("tests/World-v0", step=LIES["numbers"])
    env.reset(seed=0)
    told = [env.step(0)[4] for _ in range(env.unwrapped.length)]
    assert all("episode_return" not in info and "episode_length" not in info for info in told[:-1])
    assert told[-1]["episode_return"] == told[-1]["episode_length"] == len(told)


IMPORTED = {     # what a module does while it is imported, what is raised
    "import sys; sys.exit(0)": WorldError, "exit('no licence')": WorldError,
    "raise SystemExit": WorldError, "1 / 0": ZeroDivisionError
}


@pytest.mark.parametrize("text", IMPORTED)
@pytest.mark.parametrize("extra", [False, True])
def test_a_module_that_ends_the_program_while_imported(text, extra, tmp_path, monkeypatch):
    (tmp_path / "quits_x1.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(EXTRAS, "Quits-", ("quits_x1", None, "quits"))
    name = "Quits-v0" if extra else "quits_x1:X-v0"
    with pytest.raises(IMPORTED[text]) as e:
        make_env(name)
    if IMPORTED[text] is WorldError:
        assert f"the world {name} broke" in str(e.value) and "\n" not in str(e.value)
        assert "while importing quits_x1: it ended the program" in str(e.value)
    else:
        assert e.value.of_world == f"{name} failed while importing quits_x1"


class ReadOnly(World):
    spec = property(lambda self: None)


class Unwrapped(World):
    unwrapped = property(lambda self: None)


def no_wrapper(env):
    raise KeyError("wrapper")


REGISTERED = {
    "no steps": dict(max_episode_steps=0), "text steps": dict(max_episode_steps="100"),
    "half steps": dict(max_episode_steps=1.5), "read-only": dict(entry_point=ReadOnly),
    "unwrapped": dict(entry_point=Unwrapped),
    "wrapper": dict(additional_wrappers=(WrapperSpec("No", "test_border:no_wrapper", {}),)),
}


@pytest.mark.parametrize("kind", REGISTERED)
def test_what_gymnasium_makes_of_an_odd_registration_names_the_world(kind):
    gymnasium.register("tests/Odd-v0", **dict(entry_point=World) | REGISTERED[kind])
    try:
        with pytest.raises(Exception) as e:
            raw_make("tests/Odd-v0")
        assert "tests/Odd-v0" in (getattr(e.value, "of_world", None) or str(e.value))
    finally:
        del gymnasium.registry["tests/Odd-v0"]


class Helper:
    def reset(self):
        "Takes nothing."


class CallsHelper(World):
    def reset(self, *, seed=None, options=None):
        Helper().reset(seed=seed)


class Old(World):
    def reset(self):
        return super().reset()


@pytest.mark.parametrize("wrap", [lambda env: env, gymnasium.Wrapper])
def test_a_helper_without_a_seed_is_not_the_world_without_one(wrap):
    with pytest.raises(TypeError) as e:
        Border(wrap(CallsHelper())).reset(seed=1)
    assert e.value.of_world == "CallsHelper failed in reset()"
    refused(lambda: Border(wrap(Old())).reset(seed=1), "Old", "reset", "it takes no 'seed'")


class NeedsHelper(World):
    def __init__(self, size=1, render_mode=None):
        self.helper = (lambda: None)(size=size)


def test_a_helper_that_refuses_an_option_is_the_worlds_own_error():
    gymnasium.register("tests/NeedsHelper-v0", entry_point=NeedsHelper)
    with pytest.raises(TypeError) as e:
        raw_make("tests/NeedsHelper-v0", size=3)
    assert e.value.of_world == "tests/NeedsHelper-v0 failed in __init__()"


@pytest.mark.parametrize("wrap", [lambda env: env, EpisodeScore, gymnasium.Wrapper])
def test_one_environment_handed_out_twice_is_refused(wrap):
    env = World()
    with pytest.raises(UserError, match="the same environment twice: make a new one"):
        play(lambda: wrap(env), 2)
    play(lambda: wrap(env), 1)


@pytest.mark.parametrize("create", ["tests/World-v0", World(), 3])
def test_a_make_env_that_is_no_function(create):
    with pytest.raises(UserError, match="make_env must be a function") as e:
        built(create, "mine", {})
    assert "\n" not in str(e.value)


class Many(gymnasium.vector.VectorEnv):
    "Two worlds; `says` replaces something of what it returns, or is one of its attributes."
    def __init__(self, **says):
        self.num_envs, self.metadata, self.says = 2, {"autoreset_mode": "SameStep"}, says
        self.single_observation_space, self.single_action_space = (
            World.observation_space, World.action_space
        )
        for name in {"metadata", "spec"} & set(says):
            setattr(self, name, says[name])

    def reset(self, *, seed=None, options=None):
        return self.says.get("first", np.zeros((2, 3))), {}

    def step(self, actions):
        say, x = self.says.get, np.zeros((2, 3))
        info = {"final_obs": x, "final_info": {}} | say("info", {})
        return say("obs", x), say("reward", np.ones(2)), np.ones(2, bool), np.zeros(2, bool), info


MANY = {
    "first": dict(first=np.zeros((3, 3))), "obs": dict(obs=np.zeros((1, 3))),
    "no metadata": dict(metadata=None), "mode": dict(metadata={"autoreset_mode": "sometimes"}),
    "mode list": dict(metadata={"autoreset_mode": []}),
    "short final": dict(info={"final_obs": np.zeros((1, 3))}),
    "short list": dict(info={"final_obs": [np.zeros(3)]}),
    "no final": dict(info={"final_obs": None}),
    "final info": dict(info={"final_info": None}), "ragged": dict(reward=[[1.0], [1.0, 2.0]]),
    "grad": dict(reward=torch.ones(2, requires_grad=True)), "few": dict(reward=[1.0]),
}


@pytest.mark.parametrize("kind", MANY)
def test_a_vector_environment_of_wrong_rows_or_habits_is_one_line(kind):
    with pytest.raises(UserError) as e:
        Collector(Many(**MANY[kind]), *SPECS).collect(STILL, 10)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("spec", [None, "text", {"id": 1}, 3])
def test_an_odd_spec_leaves_a_vector_environment_its_class_as_name(spec):
    collector = Collector(Many(spec=spec), *SPECS)
    assert collector.name == "Many" and len(collector.collect(STILL, 10)[1]) == 10
