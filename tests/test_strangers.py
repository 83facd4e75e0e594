"""Ids, options and pictures as strangers give them: each works, or is refused in one line that says
what to do."""
import json
import re
import sys
from importlib.util import find_spec

import gymnasium
import numpy as np
import pytest
import torch
from ale_py.env import AtariEnv
from gymnasium import spaces as gs
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from simulus_nb.agent import Agent
from simulus_nb.atari import ATARI, FIXED, AtariProtocol
from simulus_nb.catch import CATCH, OPTIONS, check_options
from simulus_nb.cli import main
from simulus_nb.collect import Collector
from simulus_nb.config import Config, catch, preset_for
from simulus_nb.controller import ControllerConfig
from simulus_nb.envs import RUN_GIVES, ResizeImages, is_minigrid, make_env
from simulus_nb.evaluate import Evaluation, game_name
from simulus_nb.ids import atari_game, registered
from simulus_nb.registry import find_env, needs_extra, raw_make
from simulus_nb.retnet import RetNetConfig
from simulus_nb.run_setup import env_maker, infer_specs
from simulus_nb.spaces import ActionSpec, ObsSpec, UserError, picture_parts, resize
from simulus_nb.terminal import score_text
from simulus_nb.tokenizer import TokenizerConfig
from simulus_nb.vqvae import VQVAEConfig
from simulus_nb.world_model import WorldModelConfig

SOME = settings(
    max_examples=60, deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow]
)
PONG = (
    "ALE/Pong-v5", "ale_py:ALE/Pong-v5", "PongNoFrameskip-v4", "PongNoFrameskip-v0", "Pong-v4",
    "Pong-v0", "ALE/Pong", "Pong"
)


def refusal(call, *args, **kwargs):
    "The message of the UserError that the call must raise: one line."
    with pytest.raises(UserError) as e:
        call(*args, **kwargs)
    assert len(str(e.value).splitlines()) == 1 and e.value.__suppress_context__ | (
        e.value.__context__ is None
    )
    return str(e.value)


class World(gymnasium.Env):
    "Shows `seen`, whatever its space says."
    action_space = gs.Discrete(2)

    def __init__(self, space, seen=None):
        self.observation_space, self.seen = space, seen

    def reset(self, *, seed=None, options=None):
        return self.seen, {}


# ---------------------------------------------------------------- options

@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_has_its_type_and_range(name):
    kind, *ends = OPTIONS[name]
    right = (
        [True, False, np.True_]
        if kind is bool
        else ["a"]
        if kind is str
        else [*ends, np.int64(ends[1])]
    )
    wrong = [
        None, [], {}, [1], {"a": 1}, float("nan"), float("inf"), np.array([1]), np.zeros((9, 9)),
        object()
    ]
    if ends:
        wrong += [str(ends[0]), "", True, False, ends[0] - 1, ends[1] + 1] + [
            float(ends[0]), 2.5, 1e300
        ] * (kind is int)
    wrong += [0, 1, 0.0, 1.5, "no", "false", ""] * (kind is bool) + [0, 1.5, True] * (kind is str)
    for value in right:
        check_options(**{name: value})
    for value in wrong:
        assert refusal(check_options, **{name: value}).startswith(f"option {name} must be ")


VALUES = st.sampled_from(
    [
        None, True, False, -1, 0, 1, 2, 3, 7, 40, 10**12, 1.0, 1.5, float("nan"), "", "2", "no",
        "rgb", "ram", "human", "rgb_array", [], [1, 2], {}, {"a": 1}, "é\n"
    ]
)
NAMES = sorted(
    {
        *OPTIONS, *FIXED, *ATARI, "seed", "id", "spec", "kwargs", "self", "options",
        "sutton_barto_reward", "x y", "ä"
    }
    - {"training", "render_mode"}
)
WORLDS = ["ALE/Pong-v5", "PongNoFrameskip-v4", CATCH, "simulus/Parcels-v0", "CartPole-v1"] + [
    "MiniGrid-Empty-5x5-v0"
] * (find_spec("minigrid") is not None)
THEIRS = {"MiniGrid-Empty-5x5-v0": {"size"}}        # its own value, checked by nobody but itself


@settings(SOME, max_examples=150)
@given(
    st.sampled_from(WORLDS), st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3),
    st.booleans()
)
@example("ALE/Pong-v5", {"mode": 1, "difficulty": 0, "full_action_space": True}, True)
@example("CartPole-v1", {"id": "x"}, True)
@example("MiniGrid-Empty-5x5-v0" if len(WORLDS) == 6 else CATCH, {"nonsense": 1}, True)
def test_any_options_make_a_world_that_plays_or_one_line(world, options, training):
    assume(not THEIRS.get(world, set()) & set(options) and "human" not in options.values())
    try:
        env = make_env(world, training=training, **options)
    except UserError as e:
        assert len(str(e).splitlines()) == 1 and any(name in str(e) for name in options)
        return
    env.reset(seed=0)
    env.step(env.action_space.sample())
    assert not set(options) - {*OPTIONS, *ATARI, "sutton_barto_reward"} and not (
        atari_game(world) and set(options) & set(FIXED) - {"action_repeat"}
    )
    env.close()


@pytest.mark.parametrize("name", RUN_GIVES)
def test_what_a_run_gives_itself_is_no_option_of_the_world(name):
    for env in (CATCH, "ALE/Pong-v5", "CartPole-v1"):
        message = refusal(env_maker, catch().change({"env": env, "env_options": {name: 1}}), True)
        assert name in message and RUN_GIVES[name] in message
    assert (
        "--" not in RUN_GIVES[name]
        or RUN_GIVES[name].split("--")[1].split(".")[0].replace("-", "_")
        in Config.__dataclass_fields__
    )


def test_options_that_are_honoured():
    assert make_env("ALE/Pong-v5", full_action_space=True).action_space.n == 18
    env = make_env("ALE/Pong-v5", full_action_space=True, noop_max=0)
    assert (
        list(env.buttons) == list(env.ale.getLegalActionSet())
        and env.buttons[0] == make_env("ALE/Pong-v5").buttons[0]
    )
    assert (
        not make_env("ALE/Pong-v5", clip_reward=False).clip_reward
        and make_env("ALE/Pong-v5", frame_skip=np.int64(2)).frame_skip == 2
    )
    assert make_env("ALE/Breakout-v5", mode=4, difficulty=1).unwrapped.spec.kwargs["mode"] == 4
    assert "4" in refusal(make_env, "ALE/Breakout-v5", mode=5) and "0, 1" in refusal(
        make_env, "ALE/Breakout-v5", difficulty=2
    )
    for name in FIXED:
        assert (
            name in (message := refusal(make_env, "PongNoFrameskip-v4", **{name: 4}))
            and FIXED[name] in message
        )


class Base(gymnasium.Env):
    def __init__(self, level=0, render_mode=None):
        self.level = level


class Greedy(Base):
    """Takes any option and passes it on, has one that it needs, and one of a name that elsewhere is
    Atari's."""
    observation_space, action_space, metadata = (
        gs.Discrete(2), gs.Discrete(2), {"render_modes": ["rgb_array"]}
    )

    def __init__(self, goal, frame_skip=1, **more):
        self.goal, self.frame_skip = goal, frame_skip
        super().__init__(**more)
        if goal == "fail":
            raise TypeError("unsupported operand type(s)")

    def reset(self, *, seed=None, options=None):
        return 0, {}


def test_options_of_a_world_of_ones_own_reach_it():
    gymnasium.register("S/Greedy-v0", entry_point=Greedy)
    made = make_env("S/Greedy-v0", goal=None, frame_skip=2.5)
    # null is a value; the name is the world's here
    assert made.unwrapped.goal is None and made.unwrapped.frame_skip == 2.5
    assert "goal" in refusal(make_env, "S/Greedy-v0") and "nonsense" in refusal(
        make_env, "S/Greedy-v0", goal=1, nonsense=2
    )
    assert "rgb_array" in refusal(make_env, "S/Greedy-v0", goal=1, render_mode="ansi")
    with pytest.raises(TypeError, match="unsupported operand"):     # its own mistake stays its own
        make_env("S/Greedy-v0", goal="fail")
    message = refusal(make_env, CATCH, heigth=3)
    assert "heigth" in message and "rows, cols, size, look" in message


# ---------------------------------------------------------------- ids

@pytest.mark.parametrize(
    "env_id, say",
    [
        ("LunarLander-v2", "LunarLander-v3"),
        ("Pendulum-v0", "Pendulum-v1"),
        ("Taxi-v2", "Taxi-v"),
        ("CliffWalking-v0", "CliffWalking-v1"),
        ("CartPole-v9", "CartPole-v1"),
        ("cartpole-v1", "CartPole-v1"),
        ("ALE/Pong-v4", "ALE/Pong-v5"),
        ("ale/pong-v5", "ALE/Pong-v5"),
        ("PongDeterministic-v4", "Pong-v4"),
        ("Pong-ramNoFrameskip-v4", "Pong-v4"),
        ("Acrobot_v1", "Acrobot-v1"),
        *[
            (odd, "CartPole-v1")
            for odd in (
                ":CartPole-v1", "x::CartPole-v1", ".x:CartPole-v1", "a b:CartPole-v1", "CartPole-v",
                "CartPole-v1 "
            )
        ],
        *[
            (odd, "pprint_registry")
            for odd in (
                "my env", "", " ", "-v1", "/", "a/b/c-v1", ":", "::", "a:b:c", "x\0:y", "\udc80",
                "é\n-v0", "zz" * 10**5, None, 3, b"x"
            )
        ],
    ],
)
def test_ids_of_yesterday_and_malformed_ones(env_id, say):
    message = refusal(find_env, env_id)
    assert message.startswith("there is no environment") and say in message and len(message) < 400
    message.encode("utf8")                                  # a lone half of a letter is written out
    assert refusal(make_env, env_id) == message and (
        env_id is None or "pprint" in say or registered(say) or registered(say.removesuffix("-v"))
    )


@SOME
@given(st.text(max_size=12).filter(lambda s: ":" not in s))
def test_any_text_is_an_id_or_one_line(env_id):
    try:
        assert find_env(env_id).id.startswith(env_id)
    except UserError as e:
        assert len(str(e).splitlines()) == 1
    assert atari_game(env_id) is None or registered(env_id)
    assert isinstance(preset_for(env_id), str)


@pytest.mark.parametrize(
    "place",
    [
        "gone_module:X", "json:NotThere", "json", "json:decoder", "a b:c", ":", "json:",
        "json.nowhere:X", "tests..x:Y", ".x:Y"
    ],
)
def test_a_registration_that_leads_nowhere(place):
    gymnasium.register("S/Gone-v0", entry_point=place)
    message = refusal(make_env, "S/Gone-v0")
    assert message.startswith("S/Gone-v0") and place.partition(":")[0] in message


@pytest.mark.parametrize(
    "env_id,file,says",
    [
        ("json:Mine-v0", "json.py", f"json is {json.__file__}, not the one of this folder: rename"),
        ("json:Mine-v0", "json/__init__.py", f"json is {json.__file__}, not the one of this"),
        ("time:Mine-v0", "time.py", "time is part of Python, not the one of this folder: rename"),
        ("json:#####", "other.py", "gymnasium.pprint_registry"),
        ("stranger_here:#####", "stranger_here.py", "gymnasium.pprint_registry"),
        ("my-world:Mine-v0", "my-world.py", "cannot be a module's name: rename its file, perhaps "
         "my_world.py"),
        ("sub/mine:Mine-v0", "sub/mine.py", "sub/mine is a path: go to that folder"),
        ("stranger_py.py:Mine-v0", "stranger_py.py", "leave out .py, the module is called stranger_"
         "py"),
        ("stranger_none.py:Mine-v0", "other.py", "leave out .py"),
        ("stranger_none.a:Mine-v0", "other.py", "nor Python has a module stranger_none: go to the "
         "folder of stranger_none.py, or install it"),
    ],
)
def test_a_module_of_another_name_or_place(env_id, file, says, tmp_path, monkeypatch):
    "One line that says which file was read, or what to call it."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])        # as the command does
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("")
    message = refusal(find_env, env_id)
    assert env_id in message and says in message and "Qbert" not in message
    for name in ("stranger_here", "stranger_py"):
        sys.modules.pop(name, None)


def test_a_module_that_fails_is_told_from_one_that_is_missing(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in {
        "needs_more": "import not_there_at_all", "old_name": "from json import not_there_at_all",
        "divides": "1 / 0", "broken": "def ("
    }.items():
        (tmp_path / f"stranger_{name}.py").write_text(text)
    message = refusal(make_env, "stranger_missing:X-v0")
    assert "neither the current folder nor Python has a module stranger_missing: " in message
    message = refusal(make_env, "stranger_needs_more:X-v0")
    assert (
        "stranger_needs_more:X-v0 needs a package that is not installed" in message
        and "not_there_at_all" in message
        and message.endswith("while importing stranger_needs_more)")
    )
    for name, kind in {
        "old_name": ImportError, "divides": ZeroDivisionError, "broken": SyntaxError
    }.items():
        with pytest.raises(kind) as e:                  # the module's own error, and whose it is
            make_env(f"stranger_{name}:X-v0")
        assert (
            not isinstance(e.value, UserError)
            and e.value.of_world == f"stranger_{name}:X-v0 failed while importing stranger_{name}"
        )
        gymnasium.register("S/Fails-v0", entry_point=f"stranger_{name}:X")
        with pytest.raises(kind):
            make_env("S/Fails-v0")


# ---------------------------------------------------------------- one world, several names

@pytest.mark.parametrize("env_id", PONG)
def test_atari_is_known_by_its_registration(env_id):
    one, other = make_env("ALE/Pong-v5"), make_env(env_id)
    assert type(other) is AtariProtocol and (other.reset(seed=1)[0] == one.reset(seed=1)[0]).all()
    for action in (2, 3, 0, 5) * 3:
        (a, *rest), (b, *same) = one.step(action), other.step(action)
        assert (a == b).all() and rest == same
    assert (
        atari_game(env_id) == "pong"
        and game_name(env_id) == "Pong"
        and preset_for(env_id) == "atari100k"
    )
    assert "human-normalised" in score_text(env_id, Evaluation((1.0,), (1,)))


class Child(AtariEnv):
    "A world of one's own that is an Atari game."


def test_registrations_of_ones_own():
    gymnasium.register("S/MyPong-v0", entry_point=Child, kwargs={"game": "pong"})
    gymnasium.register(
        "S/Ram-v0", entry_point="ale_py:AtariEnv", kwargs={"game": "pong", "obs_type": "ram"}
    )
    gymnasium.register(
        "S/Hard-v0", entry_point="ale_py.env:AtariEnv", kwargs={"game": "pong", "difficulty": 9}
    )
    gymnasium.register("S/Pong-v0", entry_point="simulus_nb.catch:Catch")
    assert type(make_env("S/MyPong-v0")) is AtariProtocol and game_name("S/MyPong-v0") == "Pong"
    assert "obs_type" in refusal(make_env, "S/Ram-v0") and "0, 1, 2, 3" in refusal(
        make_env, "S/Hard-v0"
    )
    assert (
        atari_game("S/Pong-v0") is None
        and make_env("S/Pong-v0").action_space.n == 3
        and preset_for("S/Pong-v0") == "small"
    )
    for namesake in ("S/Pong-v0", "elsewhere/Pong-v0", "module:Pong-v7"):
        assert "not one of the 26" in refusal(game_name, namesake) and "human" not in score_text(
            namesake, Evaluation((1.0,), (1,))
        )


@pytest.mark.skipif(find_spec("minigrid") is None, reason="needs minigrid")
def test_minigrid_is_known_by_its_class():
    from minigrid.envs import EmptyEnv
    from minigrid.wrappers import RGBImgObsWrapper
    gymnasium.register("S/Room-v0", entry_point=lambda **k: EmptyEnv(size=5, **k))
    gymnasium.register("S/Seen-v0", entry_point=lambda **k: RGBImgObsWrapper(EmptyEnv(size=5, **k)))
    plain = make_env("MiniGrid-Empty-5x5-v0").observation_space
    assert plain["image"].nvec.max() == 11
    for env_id in ("minigrid:MiniGrid-Empty-5x5-v0", "MiniGrid-Empty-5x5", "S/Room-v0"):
        assert make_env(env_id).observation_space == plain
    assert not is_minigrid(raw_make("S/Seen-v0")) and picture_parts(
        make_env("S/Seen-v0").observation_space
    )
    assert (
        preset_for("minigrid:MiniGrid-Empty-5x5-v0") == "minigrid"
        and needs_extra("minigrid:MiniGrid-Empty-5x5-v0") == "MiniGrid-"
    )


# ---------------------------------------------------------------- pictures

def forms(x):
    "The same bytes, handed over in other ways."
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    wide[..., ::2] = x
    views = {
        "reversed": np.flip(np.flip(x).copy()), "every other": wide[..., ::2],
        "Fortran": np.asfortranarray(x), "last axis": x[..., ::-1].copy()[..., ::-1]
    }
    types = {
        kind: x.astype(kind)
        for kind in (
            "float64", "float32", "float16", "int64", "int8" if x.max() < 128 else "int16", "uint64"
        )
    }
    others = {
        "list": x.tolist(), "tensor": torch.from_numpy(x),
        "float tensor": torch.from_numpy(x).double()
    }
    if x.ndim == 2 or x.shape[-1] in (3, 4):
        others["PIL"] = Image.fromarray(x)
    fixed = x.copy()
    fixed.setflags(write=False)
    return {**views, **types, **others, "read-only": fixed}


SHAPES = st.tuples(st.integers(8, 40), st.integers(8, 40), st.sampled_from([0, 1, 3, 4])).map(
    lambda s: s if s[2] else s[:2]
)


@SOME
@given(SHAPES, st.integers(1, 40), st.integers(0, 99), st.sampled_from(["bare", "dict", "tuple"]))
def test_a_picture_in_any_form_is_the_picture_it_means(shape, size, seed, where):
    x = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    box, pick = (
        gs.Box(0, 255, shape, np.uint8),
        {"bare": lambda o: o, "dict": lambda o: o["a"]["b"], "tuple": lambda o: o[1][0]}[where]
    )
    put = {
        "bare": lambda v: v, "dict": lambda v: {"a": {"b": v, "c": 0}}, "tuple": lambda v: (0, (v,))
    }[where]
    space = {
        "bare": box, "dict": gs.Dict(a=gs.Dict(b=box, c=gs.Discrete(2))),
        "tuple": gs.Tuple((gs.Discrete(2), gs.Tuple((box,))))
    }[where]
    want = resize(x, size)
    for name, form in forms(x).items():
        env = ResizeImages(World(space, put(form)), size)
        seen = env.reset()[0]
        assert seen in env.observation_space and (pick(seen) == want).all(), name
        again = ObsSpec.from_space(space).flatten(put(form), resize=None)
        assert all(s > 0 for s in next(a for a in again.values() if a.dtype == np.uint8).strides)


@SOME
@given(SHAPES, st.integers(0, 99))
def test_what_is_no_picture_is_refused_before_pil_sees_it(shape, seed):
    x = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    space, one = gs.Dict(eye=gs.Box(0, 255, shape, np.uint8)), np.array(x, float)
    env = ResizeImages(World(space), 16)

    def show(seen):
        env.unwrapped.seen = seen
        return refusal(env.reset)

    for off in (-1.0, 256.0, 0.5, np.nan, np.inf, 1e300):
        one.flat[seed % one.size] = off
        message = show({"eye": one})
        assert message.startswith("the world World gave ") and "in reset()" in message
        assert f"observation 'eye' (ndarray of float64, shape {shape}): " in message
    black_and_white = (x > 128).astype(float)
    black_and_white.flat[0] = 1
    for wrong in (
        x / 255, (x / 255).tolist(), black_and_white, black_and_white.astype(bool),
        x.astype(np.int64) - 256, x[None], x[1:], x[:, 1:], x.T[:-1], x[..., None], x[:0],
        x.astype(complex), x.astype(str), b"bytes", "text", None, {}, [], [[1], [2, 3]], object(),
        np.array(None), torch.rand(3)
    ):
        message = show({"eye": wrong})
        assert "observation 'eye'" in message and f"{type(wrong).__name__} " in message
    for gone in ({}, {"ear": x}, x, None, []):
        assert "observation 'eye'" in show(gone)


def test_resize_takes_pictures_only_and_channels_apart():
    x = np.random.default_rng(0).integers(0, 256, (21, 17, 6), dtype=np.uint8)
    for channels in range(1, 7):
        assert (
            resize(x[..., :channels], 8)
            == np.stack([resize(x[..., i], 8) for i in range(channels)], -1)
        ).all()
    for wrong in (x / 255, x.astype(int), x[0, 0], x[None], x[:0], None, "x"):
        assert "resize takes uint8 pictures" in refusal(resize, wrong, 8)


# ---------------------------------------------------------------- the advice of the chapter on
# spaces

def box(shape, dtype, high):
    return gs.Box(0, high, shape, dtype)


AXES = st.lists(st.sampled_from([1, 2, 3, 4, 6, 8, 32, 84]), max_size=3).map(tuple)
LEAF = st.one_of(
    st.builds(
        box, AXES, st.sampled_from([np.uint8, np.uint8, np.uint8, np.int64, np.float32]),
        st.sampled_from([1, 254, 255])
    ),
    st.sampled_from(
        [
            gs.Text(5), gs.Discrete(10**6), gs.MultiDiscrete([10**6, 2]),
            gs.Sequence(gs.Discrete(2)), gs.Box(0, 9, (0,)), gs.Box(0, 255, (70, 70, 70), np.uint8),
            gs.Box(0, 255, (5000,), np.uint8), gs.Box(0, 10**9, (9, 9), np.int64)
        ]
    ),
)


@settings(SOME, max_examples=200)
@given(
    st.one_of(
        LEAF,
        st.dictionaries(
            st.sampled_from(["a", "rgb", "it's", "x y"]), LEAF, min_size=1, max_size=3
        ).map(gs.Dict),
    ),
    st.data(),
)
@example(gs.Box(0, 255, (84, 84, 6), np.uint8), None)
@example(gs.Box(0, 255, (3, 32, 32), np.uint8), None)
@example(gs.Box(0, 255, (3, 84, 84), np.uint8), None)
def test_advice_taken_literally_works_or_leads_on(space, data):
    kinds, heard = {}, set()
    for _ in range(8):
        try:
            spec = ObsSpec.from_space(space, kinds)
            break
        except UserError as e:
            message = str(e)
        assert message not in heard                 # never the same complaint after its own advice
        heard.add(message)
        advice = re.findall(r"overrides=\{(.+?): \"(\w+)\"\} \(--obs-kinds \1 \2\)", message)
        if not advice:
            assert (
                "no observation is left" in message
                or "in a wrapper" in message
                or "convert it there" in message
            )
            return
        key, kind = advice[0] if data is None else data.draw(st.sampled_from(advice))
        kinds[eval(key)] = kind
    env = ResizeImages(World(space), 32, kinds)                 # both readers of the space agree
    small = ObsSpec.from_space(env.observation_space, kinds)
    assert [(m.key, m.kind) for m in small.modalities] == [(m.key, m.kind) for m in spec.modalities]
    assert all(m.shape[:2] == (32, 32) for m in small.modalities if m.kind == "image")


def test_kinds_of_a_run_reach_the_resizing():
    for shape, kind in (((84, 84, 6), "image"), ((3, 32, 32), "grid")):
        gymnasium.register(
            "S/Stack-v0",
            entry_point=lambda shape=shape: World(
                gs.Dict(eye=gs.Box(0, 255, shape, np.uint8)), {"eye": np.zeros(shape, np.uint8)}
            ),
        )
        config = catch().change({"env": "S/Stack-v0"})
        assert f"--obs-kinds 'eye' {kind}" in refusal(infer_specs, config)
        (m,) = infer_specs(config.change({"obs_kinds": {"eye": kind}}))[0].modalities
        assert (m.key, m.kind, m.shape) == ("eye", kind, (32, 32, 6) if kind == "image" else shape)


# ---------------------------------------------------------------- an agent looks for itself

def test_an_agent_acts_on_what_the_world_itself_shows(tmp_path):
    space = gs.Dict(eye=gs.Box(0, 255, (96, 64, 1), np.uint8), speed=gs.Box(-1, 1, (2,)))
    shown = ResizeImages(World(space), 32)
    sizes = [
        TokenizerConfig(image=VQVAEConfig(image_size=32, code_dim=8, vocab=16)),
        WorldModelConfig(retnet=RetNetConfig(width=16, heads=2, layers=1)),
        ControllerConfig(width=16, channels=(4, 4))
    ]
    Agent(
        ObsSpec.from_space(shown.observation_space), ActionSpec.from_space(gs.Discrete(7)), *sizes
    ).save(tmp_path / "agent")
    agent, x, speed = (
        Agent.load(tmp_path / "agent"),
        np.random.default_rng(0).integers(0, 256, (96, 64, 1), dtype=np.uint8), np.ones(2)[::-1]
    )

    def act(eye, speed=speed):
        agent.reset()
        torch.manual_seed(0)
        return agent.act({"eye": eye, "speed": speed})

    for seed in range(5):
        x = np.random.default_rng(seed).integers(0, 256, (96, 64, 1), dtype=np.uint8)
        small = resize(x, 32)
        assert {act(form) for form in (*forms(x).values(), *forms(small).values())} == {act(small)}
    for wrong in (x / 255, x[..., 0], x[None], np.repeat(x, 3, -1), x[:0], None, "x"):
        assert "observation 'eye'" in refusal(act, wrong)
    assert "observation 'speed'" in refusal(act, x, speed=np.ones(3))


# ---------------------------------------------------------------- on the command line

@pytest.mark.parametrize(
    "words, says",
    [
        (["--env", "LunarLander-v2"], "LunarLander-v3"),
        (["--env", ":"], "ids look like"),
        (["--env", ""], "ids look like"),
        (["--env-options", '{"image_size": 64}'], "--tokenizer.image.image-size"),
        (["--env-options", '{"action_repeat": 1.5}'], "action_repeat must be a whole number"),
        (["--env-options", '{"rows": "8"}'], "rows must be a whole number"),
        (["--env-options", '{"training": false}'], "training"),
        (
            ["--env", "ALE/Pong-v5", "--env-options", '{"clip_reward": "no"}'],
            "clip_reward must be true or false"
        ),
        (["--env", "PongNoFrameskip-v4", "--env-options", '{"obs_type": "ram"}'], "obs_type"),
    ],
)
def test_commands_refuse_in_one_line(words, says, tmp_path, capsys):
    assert main(["train", "--out", str(tmp_path / "run"), *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and says in lines[0] and "Traceback" not in lines[0]


FORM = np.dtype([("b", float), ("camera", np.uint8, (8, 8))])
ODD_CONTAINERS = [          # the space, what comes in its place
    (gs.Dict(a=gs.Box(0, 1, (2,))), np.zeros((), FORM)),
    (gs.Dict(a=gs.Box(0, 1, (2,))), type("Odd", (), {"__getitem__": lambda self, k: 1 / 0})()),
    (gs.Dict(camera=gs.Box(0, 255, (8, 8), np.uint8)), np.zeros((), FORM)),
    (gs.Tuple([gs.Box(0, 255, (8, 8), np.uint8)] * 2),
     np.array([np.zeros((8, 8), np.uint8), None, 1], object)),
]


@pytest.mark.parametrize("space,seen", ODD_CONTAINERS)
def test_a_container_of_another_make_is_one_line(space, seen):
    spec = ObsSpec.from_space(space)
    lines = []
    for run in (lambda: Collector([lambda: World(space, seen)], spec, ActionSpec("discrete", (2,))),
                lambda: ResizeImages(World(space, seen), 4).reset()):
        try:
            run()
        except UserError as e:
            lines.append(str(e))
    assert lines and all("the world World gave" in x and "\n" not in x for x in lines)


@pytest.mark.parametrize("space", [gs.Box(0, 1, (0,)), gs.Text(3), gs.Graph(gs.Discrete(2), None)])
def test_a_bare_space_has_no_key_to_drop(space):
    assert "drop" not in refusal(ObsSpec.from_space, space)
    assert "--obs-kinds 'a' drop" in refusal(ObsSpec.from_space, gs.Dict(a=space))
