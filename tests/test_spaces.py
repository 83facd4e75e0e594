"""Spaces: whatever a Gymnasium space can sample becomes arrays of the promised shape and type, and
actions survive their tokens."""
import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces as gs
from hypothesis import given, settings
from hypothesis import strategies as st

from simulus_nb.spaces import ActionSpec, Modality, ObsSpec, TokenGroup, TokenLayout
from simulus_nb.validation import KINDS, UserError

QUICK = settings(deadline=None, max_examples=30)
side, few, start = st.integers(1, 5), st.integers(1, 6), st.integers(-5, 5)

discrete = st.builds(lambda n, s: gs.Discrete(n, start=s), few, start)
binary = st.builds(gs.MultiBinary, st.one_of(few, st.tuples(side, side)))
multi = st.builds(
    lambda shape, seed: gs.MultiDiscrete(
        np.random.default_rng(seed).integers(1, 7, shape),
        start=np.random.default_rng(seed + 1).integers(-3, 4, shape)
    ),
    st.one_of(st.tuples(side), st.tuples(side, side), st.tuples(side, side, side)),
    st.integers(0, 99),
)
box = st.builds(
    lambda shape, low, width, dtype: gs.Box(low, low + width, tuple(shape), dtype),
    st.lists(side, max_size=3), start, few,
    st.sampled_from([np.float32, np.float64, np.int8, np.int64])
)
image = st.builds(
    lambda h, w, c: gs.Box(0, 255, (h, w, c) if c else (h, w), np.uint8), st.integers(8, 12),
    st.integers(8, 12), st.sampled_from([0, 1, 3])
)
leaf = st.one_of(discrete, binary, multi, box, image)
nested = st.recursive(
    leaf,
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from("abcd"), inner, min_size=1, max_size=3).map(gs.Dict),
        st.lists(inner, min_size=1, max_size=3).map(gs.Tuple)
    ),
    max_leaves=5,
)


def batched(samples):
    "A list of equal nested observations -> one, each leaf with a leading axis."
    if isinstance(samples[0], dict):
        return {k: batched([s[k] for s in samples]) for k in samples[0]}
    if isinstance(samples[0], tuple):
        return tuple(batched(list(s)) for s in zip(*samples))
    return np.stack(samples)


@QUICK
@given(nested, st.integers(0, 99))
def test_any_sample_flattens(space, seed):
    space.seed(seed)
    spec = ObsSpec.from_space(space)
    samples = [space.sample() for _ in range(3)]
    flat = [spec.flatten(o) for o in samples]
    for m in spec.modalities:
        x = flat[0][m.key]
        assert m.kind in KINDS and x.shape == m.shape
        assert x.dtype == {"image": np.uint8, "vector": np.float32}.get(m.kind, np.int64)
        if m.kind in ("categorical", "grid"):
            assert (x >= 0).all() and (x < np.array(m.nvec)).all() and len(m.nvec) == m.shape[-1]
    together = spec.flatten(batched(samples), batch=True)
    for key, x in together.items():
        assert np.array_equal(x, np.stack([f[key] for f in flat]))
    back = ObsSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert back == spec and hash(back) == hash(spec)


@QUICK
@given(nested, st.integers(0, 99))
def test_categories_are_raw_minus_start(space, seed):
    space.seed(seed)
    spec, o = ObsSpec.from_space(space), space.sample()
    for m in spec.modalities:
        raw = o
        for key in m.path:
            raw = raw[key]
        value = spec.flatten(o)[m.key] + (np.array(m.start) if m.start else 0)
        assert np.array_equal(value.reshape(m.raw_shape), np.asarray(raw).astype(value.dtype))


@pytest.mark.parametrize("space, kind, shape, nvec", [
    (gs.Box(0, 255, (84, 84, 3), np.uint8), "image", (84, 84, 3), ()),
    (gs.Box(0, 255, (84, 84), np.uint8), "image", (84, 84, 1), ()),
    (gs.Box(0, 255, (7, 7, 3), np.uint8), "grid", (7, 7, 3), (256,) * 3),
    (gs.Box(0, 1, (10, 10, 4), bool), "grid", (10, 10, 4), (2,) * 4),
    (gs.Box(0, 255, (128,), np.uint8), "categorical", (128,), (256,) * 128),
    (gs.Box(-(2**31), 2**31 - 1, (2,), np.int32), "vector", (2,), ()),
    (gs.Box(-1, 1, (2, 3)), "vector", (6,), ()),
    (gs.Box(-1, 1, ()), "vector", (1,), ()),
    (gs.Discrete(16), "categorical", (1,), (16,)),
    (gs.MultiBinary((2, 2)), "categorical", (4,), (2,) * 4),
    (gs.MultiDiscrete([[2, 3], [4, 5]]), "grid", (2, 2, 1), (5,)),
])
def test_inferred_kinds(space, kind, shape, nvec):
    (m,) = ObsSpec.from_space(space).modalities
    assert (m.key, m.kind, m.shape, m.nvec) == ("obs", kind, shape, nvec)


def test_nested_keys_and_overrides():
    space = gs.Dict(
        a=gs.Tuple([gs.Discrete(3), gs.Dict(b=gs.Box(0, 255, (8, 8), np.uint8))]), note=gs.Text(4),
        ram=gs.Box(0, 255, (4,), np.uint8)
    )
    spec = ObsSpec.from_space(space, {"note": "drop", "ram": "vector", "a/1/b": "grid"})
    assert [(m.key, m.kind) for m in spec.modalities] == [
        ("a/0", "categorical"), ("a/1/b", "grid"), ("ram", "vector")
    ]
    o = spec.flatten({**space.sample(), "note": "left out"})
    assert o["ram"].dtype == np.float32 and o["a/1/b"].shape == (8, 8, 1)


@pytest.mark.parametrize(
    "space, overrides, says",
    [
        (gs.Text(5), None, "Text"), (gs.Sequence(gs.Discrete(2)), None, "Sequence"),
        (gs.Graph(gs.Box(0, 1), None), None, "Graph"),
        (gs.OneOf([gs.Discrete(2), gs.Discrete(3)]), None, "OneOf"),
        (gs.Box(0, 10**6, (4, 4), np.int32), None, "vector"),
        (gs.Box(0, 255, (3, 84, 84), np.uint8), None, "colour first"),
        (gs.Box(0, 1, (64, 64, 3)), None, "tokens"), (gs.Box(0, 1, (4,)), {"key": "grid"}, "grid"),
        (gs.Box(0, 1, (4,)), {"key": "image"}, "uint8"),
        (gs.Discrete(3), {"key": "sound"}, "sound"), (gs.Discrete(3), {"keys": "drop"}, "keys"),
        (gs.Discrete(3), {"key": "drop"}, "no observation")
    ],
)
def test_spaces_refused(space, overrides, says):
    with pytest.raises(UserError, match=says) as e:
        ObsSpec.from_space(gs.Dict(key=space), overrides)
    assert "key" in str(e.value) and "\n" not in str(e.value)


def test_joined_keys_must_differ():
    with pytest.raises(UserError, match="same once joined"):
        ObsSpec.from_space(gs.Dict({"a/b": gs.Discrete(2), "a": gs.Dict(b=gs.Discrete(2))}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"v": [np.nan, 0]}, {"v": [0, np.inf]}, {"v": [1e39, 0]}, {"v": [0, 0, 0]}, {"c": 3},
        {"c": 0}, {"c": 1.5}, {"c": np.nan}, {"g": [[0, 0], [0, 2]]}, {"g": [[0, -1], [0, 0]]},
        {"i": np.full((8, 8), 256)}, {"i": np.full((8, 8), -1)}, {"i": np.zeros((8, 9), np.uint8)}
    ],
)
def test_bad_values_name_the_key(wrong):
    space = gs.Dict(
        v=gs.Box(-1, 1, (2,)), c=gs.Discrete(2, start=1), g=gs.MultiDiscrete([[2, 2], [2, 2]]),
        i=gs.Box(0, 255, (8, 8), np.uint8)
    )
    spec = ObsSpec.from_space(space)
    with pytest.raises(UserError, match=f"'{next(iter(wrong))}'"):
        spec.flatten({**space.sample(), **wrong})


def test_missing_key_is_named():
    spec = ObsSpec.from_space(gs.Dict(x=gs.Discrete(2), y=gs.Discrete(2)))
    with pytest.raises(UserError, match="'y' is missing"):
        spec.flatten({"x": 0})
    with pytest.raises(UserError, match="unknown kind"):
        Modality("x", "sound", (3,))
    with pytest.raises(UserError, match="category counts"):
        Modality("x", "grid", (3, 3, 2), nvec=(4,))


action_space = st.one_of(
    discrete,
    binary,
    multi,
    st.builds(
        lambda shape, low, width, dtype: gs.Box(low, low + width, tuple(shape), dtype),
        st.lists(side, min_size=0, max_size=2), st.floats(-100, 100), st.floats(0.1, 50),
        st.sampled_from([np.float32, np.float64])
    ),
)


@QUICK
@given(action_space, st.integers(2, 60), st.integers(0, 99))
def test_actions_survive_their_tokens(space, levels, seed):
    space.seed(seed)
    spec = ActionSpec.from_space(space, levels)
    actions = [space.sample() for _ in range(5)]
    tokens = spec.encode(np.stack(actions))
    back = spec.decode(tokens)
    assert (
        tokens.shape == (5, spec.count)
        and tokens.dtype == np.int64
        and (tokens < np.array(spec.nvec)).all()
        and (tokens >= 0).all()
    )
    assert spec.vocab == max(spec.nvec)
    assert np.array_equal(spec.encode(back), tokens)
    if spec.kind == "discrete":
        assert all(type(x) is int for x in back) and back == [int(x) for x in actions]
    else:
        assert back.dtype == space.dtype and all(space.contains(x) for x in back)
        half = (
            (space.high - space.low).astype(float) / (levels - 1) / 2
            if spec.kind == "continuous"
            else 0
        )
        assert (
            np.abs(np.stack(actions).astype(float) - back)
            <= half + 1e-4 * (spec.kind == "continuous")
        ).all()
    again = ActionSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again == spec and hash(again) == hash(spec)


def test_every_action_token_is_valid_in_its_space():
    space = gs.Box(np.array([-0.1, 0.3], np.float32), np.array([0.7, 1e6], np.float32))
    spec = ActionSpec.from_space(space)
    actions = spec.decode(np.arange(51)[:, None].repeat(2, 1))
    assert all(space.contains(x) for x in actions)
    assert (actions[0] == space.low).all() and (actions[-1] == space.high).all()


def test_whole_number_box_actions_are_exact():
    spec = ActionSpec.from_space(gs.Box(-2, 3, (2,), np.int32))
    assert spec.kind == "multidiscrete" and spec.nvec == (6, 6)
    assert spec.decode(spec.encode([[-2, 3]])).tolist() == [[-2, 3]]


@pytest.mark.parametrize(
    "space",
    [
        gs.Box(-np.inf, np.inf, (2,)), gs.Dict(a=gs.Discrete(2)), gs.Tuple([gs.Discrete(2)]),
        gs.Text(3), gs.Discrete(10**6)
    ],
)
def test_action_spaces_refused(space):
    with pytest.raises(UserError, match="action space"):
        ActionSpec.from_space(space)


def test_actions_refused():
    spec = ActionSpec.from_space(gs.Box(-1, 1, (2,)))
    for bad in ([[0, np.nan]], [[0, 1.1]], [[0, 0, 0]], [0, 0]):
        with pytest.raises(UserError, match="action"):
            spec.encode(bad)
    for bad in ([[51, 0]], [[-1, 0]], [[0]]):
        with pytest.raises(UserError, match="action token"):
            spec.decode(bad)
    with pytest.raises(UserError, match="action"):
        ActionSpec.from_space(gs.Discrete(3)).encode([3])
    with pytest.raises(UserError, match="levels"):
        ActionSpec.from_space(gs.Box(-1, 1, (2,)), levels=1)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1", "Blackjack-v1"])
def test_classic_environments_step_with_decoded_actions(env_id):
    env = gym.make(env_id)
    obs, _ = env.reset(seed=0)
    spec, actions = (
        ObsSpec.from_space(env.observation_space), ActionSpec.from_space(env.action_space)
    )
    spec.flatten(obs)
    obs, *_ = env.step(actions.decode(np.zeros((1, actions.count), int))[0])
    assert {k: x.shape for k, x in spec.flatten(obs).items()} == {
        m.key: m.shape for m in spec.modalities
    }


def test_vector_environments_take_decoded_batches():
    for env_id in ("CartPole-v1", "Pendulum-v1"):
        envs = gym.make_vec(env_id, 3, vectorization_mode="sync")
        spec, actions = (
            ObsSpec.from_space(envs.single_observation_space),
            ActionSpec.from_space(envs.single_action_space)
        )
        envs.reset(seed=0)
        obs, *_ = envs.step(actions.decode(np.full((3, actions.count), 1)))
        assert spec.flatten(obs, batch=True)["obs"].shape == (3, *spec.modalities[0].shape)


groups = st.lists(
    st.tuples(st.integers(1, 6), st.lists(st.integers(2, 9), min_size=1, max_size=3)), min_size=1,
    max_size=4
)


@QUICK
@given(groups, st.lists(st.integers(1, 3), max_size=2))
def test_layout_splits_and_joins(groups, lead):
    layout = TokenLayout(
        tuple(TokenGroup(f"m{i}", "grid", k, tuple(v)) for i, (k, v) in enumerate(groups))
    )
    z = torch.arange(int(np.prod(lead)) * layout.S).view(*lead, layout.S)
    parts = layout.split(z)
    for g in layout.groups:
        assert parts[g.key].shape == (*lead, g.count, len(g.vocab)) and g.symbols == g.count * len(
            g.vocab
        )
        assert torch.equal(z[..., layout.slices()[g.key]], parts[g.key].flatten(-2))
    assert torch.equal(layout.join(parts), z)
    assert np.array_equal(layout.join(layout.split(z.numpy())), z.numpy())
    assert (
        layout.S == sum(g.symbols for g in layout.groups)
        and layout.K == sum(k for k, _ in groups)
        and hash(layout)
    )
    with pytest.raises(UserError):
        layout.split(z[..., 1:])
