"""Random and hostile spaces: whatever Gymnasium can declare is read exactly, or refused in one line
that names the key."""
import json
from functools import reduce
from math import log1p, pi, prod

import numpy as np
import pytest
import torch
from gymnasium import spaces as gs
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from simulus_nb.dream import observation_space, raw_observation
from simulus_nb.scalars import symexp, symlog
from simulus_nb.spaces import ActionSpec, Modality, ObsSpec, UserError
from simulus_nb.tokenizer import MultiModalTokenizer, TokenizerConfig
from simulus_nb.vqvae import VQVAEConfig

SOME = settings(deadline=None, max_examples=30)
TINY = TokenizerConfig(
    image=VQVAEConfig(image_size=8, channels=8, stages=1, code_dim=6, vocab=16, perceptual="none")
)
KEYS = [
    "a/b", "", "obs", "0", "1", "a", "b", "a.b", "x y", "it's", 'say "no"', "a\nb", "type", "ключ",
    "日本", "-1", 0, 1
]
FLOATS, INTS = (
    [np.float16, np.float32, np.float64],
    [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint64]
)
STRANGE = [
    gs.Text(5), gs.Sequence(gs.Discrete(2)), gs.Graph(gs.Box(0, 1), None),
    gs.OneOf([gs.Discrete(2), gs.Discrete(3)])
]


class Custom(gs.Space):
    "A space of somebody's own."


def shapes(most, largest=3):
    return st.lists(st.integers(1, largest), min_size=0, max_size=most).map(tuple)


@st.composite
def float_box(draw):
    low, width = draw(st.integers(-5, 5)), draw(st.integers(0, 9))
    bounds = draw(
        st.sampled_from([(low, low + width), (low, np.inf), (-np.inf, low), (-np.inf, np.inf)])
    )
    return gs.Box(*bounds, draw(shapes(3)), draw(st.sampled_from(FLOATS)))


@st.composite
def int_box(draw):
    dtype, shape = draw(st.sampled_from([bool, *INTS])), draw(shapes(3))
    info = np.iinfo(dtype) if dtype is not bool else None
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    if info is None:
        return gs.Box(0, 1, shape, bool)
    if draw(st.integers(0, 4)) == 0:
        return gs.Box(info.min, info.max - (info.bits == 64), shape, dtype)
    first = draw(st.sampled_from([0 if info.min == 0 else -3, info.max // 2, max(info.min, -100)]))
    low = np.array([first + int(n) for n in rng.integers(0, 3, prod(shape))], dtype).reshape(shape)
    return gs.Box(low, (low + rng.integers(0, 9, shape).astype(dtype)).astype(dtype), shape, dtype)


picture = st.builds(
    lambda c: gs.Box(0, 255, (8, 8, c) if c else (8, 8), np.uint8), st.sampled_from([0, 1, 3, 4])
)
discrete = st.builds(
    lambda n, s: gs.Discrete(n, start=s), st.integers(1, 9),
    st.sampled_from([0, 1, -5, 10**9, 2**53 + 1, -(2**53) - 1, 2**61 + 1])
)
binary = st.builds(
    lambda s: gs.MultiBinary(s),
    st.one_of(st.integers(1, 5), st.tuples(st.integers(1, 3), st.integers(1, 3)))
)
multi = st.builds(
    lambda shape, seed, first, dtype: gs.MultiDiscrete(
        np.random.default_rng(seed).integers(1, 7, shape), dtype=dtype,
        start=np.random.default_rng(seed).integers(0, 4, shape) + first
    ),
    shapes(3).filter(len),
    st.integers(0, 99),
    st.sampled_from([0, -3, 100]),
    st.sampled_from([np.int64, np.int32, np.int8]),
)
leaf = st.one_of(float_box(), int_box(), picture, discrete, binary, multi)
nested = st.recursive(
    leaf,
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from(KEYS), inner, min_size=1, max_size=3).map(gs.Dict),
        st.lists(inner, min_size=1, max_size=3).map(gs.Tuple)
    ),
    max_leaves=6,
)


def observe(space, rng):
    "An element of the space; floats over many orders of magnitude."
    if isinstance(space, gs.Dict):
        return {k: observe(s, rng) for k, s in space.spaces.items()}
    if isinstance(space, gs.Tuple):
        return tuple(observe(s, rng) for s in space.spaces)
    if isinstance(space, gs.Box) and space.dtype.kind == "f":
        x = rng.normal(size=space.shape) * 10 ** rng.uniform(-3, 4)
        return np.clip(np.clip(x, -6e4, 6e4), space.low, space.high).astype(space.dtype)
    if isinstance(space, gs.Box) and space.dtype.kind in "iu":
        span = [int(b) - int(a) for a, b in zip(space.low.flat, space.high.flat)]
        return np.array(
            [int(a) + int(rng.integers(min(n, 2**40) + 1)) for a, n in zip(space.low.flat, span)],
            space.dtype
        ).reshape(space.shape)
    space.seed(int(rng.integers(2**31)))
    return space.sample()


def at(obs, path):
    return reduce(lambda o, key: o[key], path, obs)


def put(obs, path, value):
    "The observation with another value at `path`."
    if not path:
        return value
    items = dict(obs) if isinstance(obs, dict) else list(obs)
    items[path[0]] = put(obs[path[0]], path[1:], value)
    return items if isinstance(obs, dict) else tuple(items)


def without(obs, path):
    "The observation without what is at `path`; of a tuple also without what follows."
    if len(path) > 1:
        return put(obs, path[:1], without(obs[path[0]], path[1:]))
    return (
        {k: v for k, v in obs.items() if k != path[0]} if isinstance(obs, dict) else obs[: path[0]]
    )


def batched(rows):
    if isinstance(rows[0], dict):
        return {k: batched([r[k] for r in rows]) for k in rows[0]}
    if isinstance(rows[0], tuple):
        return tuple(batched(list(r)) for r in zip(*rows))
    return np.stack(rows)


def row(batch, i):
    if isinstance(batch, dict):
        return {k: row(v, i) for k, v in batch.items()}
    return tuple(row(v, i) for v in batch) if isinstance(batch, tuple) else batch[i]


def leaves(space, path=()):
    if isinstance(space, (gs.Dict, gs.Tuple)):
        children = space.spaces.items() if isinstance(space, gs.Dict) else enumerate(space.spaces)
        return [x for key, child in children for x in leaves(child, (*path, key))]
    return [(path, space)]


def name(path):
    return "/".join(map(str, path)) if path else "obs"


def refusal(f, *args):
    "The message of the UserError that `f` must raise: one line."
    with pytest.raises(UserError) as e:
        f(*args)
    assert "\n" not in str(e.value)
    return str(e.value)


def read_spec(space, kind="vector"):
    """The spec, each key that is refused read as numbers (or dropped), as the refusal itself
    proposes."""
    overrides = {}
    keys = [name(path) for path, _ in leaves(space)]
    for _ in range(len(keys) + 1):
        try:
            return ObsSpec.from_space(space, overrides)
        except UserError as e:
            message = str(e)
        assert "\n" not in message
        if len(set(keys)) < len(keys) or "no observation is left" in message:
            assert any(repr(k) in message for k in keys if keys.count(k) > 1) or len(
                overrides
            ) == len(keys)
            reject()
        (key,) = {k for k in keys if message.startswith(f"observation {k!r}:")}
        assert (
            key not in overrides and "overrides={" in message and f"--obs-kinds {key!r}" in message
        )
        overrides[key] = kind
    raise AssertionError(message)


@SOME
@given(nested, st.sampled_from(["vector", "drop"]), st.integers(0, 999))
def test_reads_or_refuses_by_name(space, kind, seed):
    spec, rng = read_spec(space, kind), np.random.default_rng(seed)
    rows = [observe(space, rng) for _ in range(3)]
    flat = [spec.flatten(o) for o in rows]
    where = {name(path): leaf for path, leaf in leaves(space)}
    assert {m.key for m in spec.modalities} <= set(where)
    for m in spec.modalities:
        values = [f[m.key] for f in flat]
        assert all(
            x.shape == m.shape
            and x.dtype == {"image": np.uint8, "vector": np.float32}.get(m.kind, np.int64)
            for x in values
        )
        if m.kind in ("categorical", "grid"):
            assert (
                all((x >= 0).all() and (x < m.nvec).all() for x in values)
                and where[m.key].dtype.kind in "bui"
            )
            for o, x in zip(rows, values):          # exactly, also where a float64 would lose count
                raw = np.asarray(at(o, m.path)).astype(object).reshape(m.shape)
                assert (raw - np.array(m.start, object) == x).all()
    together = spec.flatten(batched(rows), batch=True)
    assert all(np.array_equal(x, np.stack([f[key] for f in flat])) for key, x in together.items())
    assert ObsSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


@SOME
@given(nested, st.integers(0, 999))
def test_tokens_and_back(space, seed):
    spec, rng = read_spec(space), np.random.default_rng(seed)
    V, rows = MultiModalTokenizer(spec, TINY).eval(), [observe(space, rng) for _ in range(3)]
    flat = spec.flatten(batched(rows), batch=True)
    z = V.encode({k: torch.from_numpy(x) for k, x in flat.items()})
    back = {k: x.numpy() for k, x in V.decode(z).items()}
    assert z.shape == (3, V.layout.S) and z.dtype == torch.int64
    for m in spec.modalities:
        x, y = flat[m.key], back[m.key]
        assert y.shape == x.shape and y.dtype == x.dtype
        if m.kind in ("categorical", "grid"):
            assert np.array_equal(x, y)
        if m.kind == "vector":
            u, v = (symlog(torch.from_numpy(w).double()) for w in (x, y))
            half = torch.where(u.abs() < log1p(3), log1p(pi) / 31, (6 - log1p(pi)) / 31) / 2
            assert ((u - v).abs() <= half + 1e-5)[u.abs() <= 6].all()
            # the ends, +-402.4
            assert torch.allclose(v[u.abs() > 6], 6 * u[u.abs() > 6].sign(), atol=1e-5)
    again = V.encode({k: torch.from_numpy(back[k]) for k in back})
    for m in spec.modalities:
        assert m.kind == "image" or torch.equal(
            again[..., V.layout.slices()[m.key]], z[..., V.layout.slices()[m.key]]
        )


@SOME
@given(nested, st.integers(0, 999))
def test_a_dreamt_observation_is_one_of_the_space(space, seed):
    spec, rng = read_spec(space), np.random.default_rng(seed)
    rows = [observe(space, rng) for _ in range(2)]
    flat = spec.flatten(batched(rows), batch=True)
    raw, dreamt, where = raw_observation(spec, flat), observation_space(spec), dict(leaves(space))
    for i in range(2):
        assert dreamt.contains(row(raw, i))
        again = spec.flatten(row(raw, i))
        assert all(np.array_equal(again[k], flat[k][i]) for k in flat)
        for m in spec.modalities:
            x, leaf = at(raw, m.path)[i], where[m.path]
            if m.kind != "vector":
                assert np.array_equal(x, at(rows[i], m.path))
                assert x.dtype == leaf.dtype and leaf.contains(np.asarray(x))


@SOME
@given(nested, st.integers(0, 999), st.data())
def test_what_is_outside_is_refused_by_name(space, seed, data):
    spec, rng = read_spec(space), np.random.default_rng(seed)
    obs = observe(space, rng)
    spec.flatten(obs)
    m = data.draw(st.sampled_from(spec.modalities))
    x = np.asarray(at(obs, m.path))
    def spoilt(value, dtype=object):
        y = x.astype(dtype).reshape(-1)
        y[data.draw(st.integers(0, y.size - 1))] = value
        return y.reshape(x.shape)
    bad = [
        x[None], np.stack([x, x], -1), x.reshape(-1)[:-1], "word", None, {"a": 1}, [[1, 2], [3]],
        x.astype(complex), x.astype(str), spoilt(None), object(), spoilt(np.nan, float),
        spoilt(np.inf, float), spoilt(-np.inf, float)
    ]
    if m.kind == "vector":
        bad += [spoilt(1e39, float), spoilt(-1e300, float)]
    else:
        low, high = (
            (0, 255)
            if m.kind == "image"
            else (min(m.start), max(s + n - 1 for s, n in zip(m.start, m.nvec)))
        )
        bad += (
            [spoilt(v, np.int64) for v in (low - 1, high + 1, -(2**63), 2**63 - 1)]
            + [spoilt(10**30)]
            + [spoilt(low + 0.5, float)] * (abs(low) < 2**50)
        )
        bad += [spoilt(v, np.uint64) for v in (2**64 - 1, 2**63)]
    for value in bad:
        message = refusal(spec.flatten, put(obs, m.path, value))
        assert message.startswith(f"observation {m.key!r}")
    assert repr(m.key) in refusal(
        lambda: spec.flatten(batched([obs, put(obs, m.path, spoilt(np.nan, float))]), batch=True)
    )
    if m.path:
        assert (
            refusal(spec.flatten, without(obs, m.path))
            == f"observation {m.key!r} is missing; build the spec from this environment's space"
        )
        refusal(spec.flatten, None), refusal(spec.flatten, 3)


@SOME
@given(nested, st.integers(0, 999))
def test_other_ways_to_hand_it_over(space, seed):
    "Lists, NumPy scalars, tensors, floats that are whole numbers: the same arrays."
    spec, rng = read_spec(space), np.random.default_rng(seed)
    obs = observe(space, rng)
    want = spec.flatten(obs)
    def convert(o, f):
        if isinstance(o, dict):
            return {k: convert(v, f) for k, v in o.items()}
        return tuple(convert(v, f) for v in o) if isinstance(o, tuple) else f(np.asarray(o))
    tensor = lambda x: torch.from_numpy(np.array(x)) if x.dtype != np.uint64 else x
    forms = [np.ndarray.tolist, lambda x: x[()], tensor, lambda x: np.flip(np.flip(x).copy())]
    if all(
        np.all(np.abs(np.asarray(at(obs, m.path)).astype(object)) < 2**53) for m in spec.modalities
    ):
        forms.append(lambda x: x.astype(np.float64))
    for f in forms:
        got = spec.flatten(convert(obs, f))
        assert all(np.array_equal(got[k], want[k]) and got[k].dtype == want[k].dtype for k in want)


@pytest.mark.parametrize(
    "strange", [*STRANGE, Custom(), Custom((2,), np.float32)], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: (s, "obs"), lambda s: (gs.Dict(note=s), "note"),
        lambda s: (gs.Dict(a=gs.Tuple([gs.Discrete(2), s])), "a/1")
    ],
    ids=["bare", "dict", "deep"],
)
def test_strange_spaces_are_refused_and_can_be_dropped(strange, wrap):
    space, key = wrap(strange)
    message = refusal(ObsSpec.from_space, space)
    assert (
        f"{key!r}" in message
        and type(strange).__name__ in message
        and (f'overrides={{{key!r}: "drop"}}' in message) == (key != "obs")    # a bare space: none
        and (f"--obs-kinds {key!r} drop" in message) == (key != "obs")
    )
    assert key in refusal(ObsSpec.from_space, space, {key: "categorical"})
    if key == "a/1":
        spec = ObsSpec.from_space(space, {key: "drop"})
        assert [m.key for m in spec.modalities] == ["a/0"] and spec.flatten({"a": (1, "anything")})[
            "a/0"
        ] == 1
    else:
        assert "no observation is left" in refusal(ObsSpec.from_space, space, {key: "drop"})
    assert type(strange).__name__ in refusal(ActionSpec.from_space, strange)


huge = np.iinfo(np.int64)

@pytest.mark.parametrize(
    "space, kind, shape",
    [
        (gs.Box(0, 1, (), bool), "categorical", (1,)),
        (gs.Discrete(1), "categorical", (1,)),
        (gs.Box(huge.min, huge.max - 1, (2,), np.int64), "vector", (2,)),
        (gs.Box(0, 2**64 - 1, (), np.uint64), "vector", (1,)),
        (gs.Box(2**60 + 1, 2**60 + 4, (2,), np.int64), "categorical", (2,)),
        (gs.Box(-1, 1, (3,), np.float16), "vector", (3,)),
        (gs.Box(-np.inf, np.inf, (2, 2, 2)), "vector", (8,)),
        (gs.Box(0, np.inf, (2,), np.int32), "vector", (2,)),
        (gs.Box(3, 3, (2,), np.int8), "categorical", (2,)),
        (gs.Box(0, 255, (7, 7, 3), np.uint8), "grid", (7, 7, 3)),
        (gs.Box(0, 255, (7, 9), np.uint8), "grid", (7, 9, 1)),
        (gs.Box(0, 254, (9, 9, 3), np.uint8), "grid", (9, 9, 3)),
        (gs.Box(0, 255, (84, 84), np.uint8), "image", (84, 84, 1)),
        (gs.Box(0, 255, (8, 9, 4), np.uint8), "image", (8, 9, 4)),
        (gs.MultiDiscrete(np.full((2, 2, 2, 2), 3)), "categorical", (16,)),
        (
            gs.MultiDiscrete(
                np.array([200, 5], np.uint8), dtype=np.uint8, start=np.array([100, 1], np.uint8)
            ),
            "categorical",
            (2,),
        ),
    ],
    ids=str,
)
def test_kinds_at_the_edge(space, kind, shape):
    (m,) = ObsSpec.from_space(space).modalities
    assert (m.kind, m.shape) == (kind, shape) and all(type(n) is int for n in (*m.nvec, *m.start))
    for end in ("low", "high"):
        if isinstance(space, gs.Box) and kind in ("categorical", "grid"):
            assert (
                ObsSpec.from_space(space).flatten(getattr(space, end))["obs"]
                == (0 if end == "low" else np.array(m.nvec) - 1)
            ).all()


@pytest.mark.parametrize(
    "space, kind, says",
    [
        (gs.Box(0, 1, (0,)), None, "holds nothing"),
        (gs.Box(0, 1, (0, 3), np.int32), None, "holds nothing"),
        (gs.Box(0, 255, (0, 8, 3), np.uint8), None, "holds nothing"),
        (gs.MultiDiscrete([]), None, "holds nothing"),
        (gs.Box(0, 255, (4, 84, 84), np.uint8), None, "stacked frames"),
        (gs.Box(0, 255, (4, 84, 84), np.uint8), "image", "stacked frames"),
        (gs.Box(0, 255, (2, 84, 84), np.uint8), "image", "stacked frames"),
        (gs.Box(0, 255, (4, 64, 64, 3), np.uint8), None, "tokens"),
        (gs.Box(0, 255, (84, 84, 12), np.uint8), None, "image"),
        (gs.Discrete(3, start=2**63 - 5), None, "too large"), (gs.Discrete(10**7), None, "vector"),
        (gs.Box(0, 9999, (2, 2), np.int32), None, "vector"),
        (gs.Box(0, 1, (2, 2)), "grid", "whole numbers"),
        (gs.Box(0, 1, (2, 2)), "categorical", "whole numbers"), (gs.Discrete(2), "image", "uint8"),
        (gs.Discrete(2), "pixels", "image, vector"), (gs.Discrete(2), None, None),
        (gs.Box(0, 255, (84, 84, 12), np.uint8), "image", None),
        (gs.Box(0, 9999, (2, 2), np.int32), "vector", None),
        (gs.Box(0, 255, (3, 9, 9), np.uint8), "grid", None)
    ],
    ids=str,
)
def test_refused_or_read_as_told(space, kind, says):
    for key in ("camera", "left\neye"):
        space_of, overrides = (
            gs.Dict({key: space, "other": gs.Discrete(2)}), {key: kind} if kind else None
        )
        if says is None:
            assert kind in (
                None,
                dict((m.key, m.kind) for m in ObsSpec.from_space(space_of, overrides).modalities)[
                    key
                ],
            )
        else:
            message = refusal(ObsSpec.from_space, space_of, overrides)
            assert repr(key) in message and says in message
            assert [m.key for m in ObsSpec.from_space(space_of, {key: "drop"}).modalities] == [
                "other"
            ]


def test_keys_that_clash_or_cannot_be_written():
    assert "'a/b'" in refusal(
        ObsSpec.from_space, gs.Dict({"a/b": gs.Discrete(2), "a": gs.Dict(b=gs.Discrete(2))})
    )
    assert "'0'" in refusal(ObsSpec.from_space, gs.Dict({0: gs.Discrete(2), "0": gs.Discrete(2)}))
    assert "tuple" in refusal(ObsSpec.from_space, gs.Dict({("a", 1): gs.Discrete(2)}))
    assert [
        m.key
        for m in ObsSpec.from_space(gs.Dict({"": gs.Discrete(2), "obs": gs.Discrete(3)})).modalities
    ] == ["", "obs"]
    for empty in (gs.Dict(), gs.Tuple(()), gs.Dict(a=gs.Dict())):
        assert "no observation is left" in refusal(ObsSpec.from_space, empty)
    assert "'vector'" in refusal(ObsSpec.from_space, gs.Discrete(2), "vector")
    assert "'obs'" in refusal(ObsSpec.from_space, None)


GOOD = dict(key="m", kind="grid", shape=[2, 2, 1], nvec=[3])
@pytest.mark.parametrize(
    "forged",
    [
        {},
        [],
        None,
        {"modalities": None},
        {"modalities": []},
        {"modalities": [5]},
        {"modalities": [{}]},
        {"modalities": [GOOD, GOOD]},
        *(
            {"modalities": [GOOD | change]}
            for change in (
                dict(colour=1), dict(kind="sound"), dict(kind=[]), dict(shape=[2, 2]),
                dict(shape=[]), dict(shape=None), dict(nvec=[]), dict(nvec=[0]), dict(nvec=[2.5]),
                dict(nvec=["3"]), dict(start=[1, 2]), dict(raw_shape=[5]), dict(path=7),
                dict(shape=[2, -2, -1]), dict(kind="image", shape=[8, 8]),
                dict(kind="vector", shape=[0])
            )
        ),
    ],
    ids=str,
)
def test_forged_observation_specs(forged):
    refusal(ObsSpec.from_json, forged)


def test_numpy_numbers_are_written_as_plain_ones():
    m = Modality("m", "categorical", np.array([2]), nvec=np.array([3, 4]), start=(np.int32(1), 0))
    assert ObsSpec.from_json(json.loads(json.dumps(ObsSpec((m,)).to_json()))) == ObsSpec((m,))
    a = ActionSpec("multidiscrete", np.array([3, 4]))
    assert ActionSpec.from_json(json.loads(json.dumps(a.to_json()))) == a and a.decode(
        [[2, 3]]
    ).tolist() == [[2, 3]]


@st.composite
def box_action(draw):
    "Float and whole-number boxes; bounds of each dimension its own, some of them coinciding."
    shape, dtype = (
        draw(shapes(3)), draw(st.sampled_from([*FLOATS, np.int8, np.int64, np.uint8, bool]))
    )
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    if dtype is bool:
        return gs.Box(0, 1, shape, bool)
    if np.dtype(dtype).kind != "f":
        low = rng.integers(0, 50, shape).astype(dtype)
        return gs.Box(low, low + rng.integers(0, 50, shape).astype(dtype), shape, dtype)
    low = (rng.normal(size=shape) * 10 ** rng.uniform(-2, 2)).astype(dtype)
    width = (
        rng.uniform(0.5, 2, shape)
        * np.maximum(np.abs(low.astype(float)), 0.01)
        * (rng.random(shape) < 0.8)
    )
    return gs.Box(low, np.maximum(low, (low.astype(float) + width).astype(dtype)), shape, dtype)


action = st.one_of(box_action(), discrete, binary, multi)


@settings(deadline=None, max_examples=60)
@given(action, st.integers(2, 60), st.integers(0, 999))
def test_every_action_token_and_back(space, levels, seed):
    spec = ActionSpec.from_space(space, levels)
    sizes = np.array(spec.nvec)
    every = np.minimum(np.arange(spec.vocab)[:, None], sizes - 1)   # each choice of each dimension
    shuffled = np.random.default_rng(seed).integers(0, sizes, (20, spec.count))
    for tokens in (every, shuffled):
        back = spec.decode(tokens)
        assert np.array_equal(spec.encode(back), tokens) and len(back) == len(tokens)
        assert all(space.contains(x if spec.kind == "discrete" else np.asarray(x)) for x in back)
        assert spec.kind == "discrete" or back.dtype == space.dtype
    assert ActionSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    if spec.kind == "continuous":
        first, last = spec.decode(every[:1])[0], spec.decode(every[-1:])[0]
        # the ends are levels, to the bit
        assert np.array_equal(first, space.low) and np.array_equal(last, space.high)
        assert ((sizes == 1) == (space.low == space.high).reshape(-1)).all() and set(spec.nvec) <= {
            1, levels
        }


@settings(deadline=None, max_examples=60)
@given(action, st.integers(2, 60), st.integers(0, 999))
def test_actions_move_half_a_level_at_most(space, levels, seed):
    spec = ActionSpec.from_space(space, levels)
    space.seed(seed)
    raw = np.stack([space.sample() for _ in range(10)])
    back = np.asarray(spec.decode(spec.encode(raw)))
    if spec.kind != "continuous":
        assert np.array_equal(back, raw)
        return
    low, high = space.low.astype(float), space.high.astype(float)
    rounding = 2 * np.finfo(space.dtype).eps * np.maximum(np.abs(low), np.abs(high))
    assert (np.abs(back.astype(float) - raw) <= (high - low) / (levels - 1) / 2 + rounding).all()
    assert np.array_equal(spec.encode(raw), spec.encode(raw.astype(np.float64))) and np.array_equal(
        spec.encode(raw.tolist()), spec.encode(raw)
    )


@SOME
@given(action, st.integers(0, 999), st.data())
def test_actions_outside_are_refused(space, seed, data):
    spec = ActionSpec.from_space(space)
    space.seed(seed)
    raw = np.stack([space.sample() for _ in range(3)])
    j = data.draw(st.integers(0, raw.size - 1))
    def spoilt(value, dtype):
        y = raw.astype(dtype).reshape(-1)
        y[j] = value
        return y.reshape(raw.shape)
    top = float(np.max(space.high)) if isinstance(space, gs.Box) else None
    bad = [
        spoilt(np.nan, float), spoilt(np.inf, float), raw[..., None],
        raw.reshape(-1)[:-1] if raw.ndim > 1 else raw[:, None], raw.astype(str), "left", None,
        [[1, 2], [3]], spoilt(None, object)
    ]
    bad += [spoilt(v, float) for v in ((top + 1, -1e6) if top is not None else (1e18, -1e18))]
    bad += [spoilt(0.5, float)] if spec.kind != "continuous" else []
    for x in bad:
        assert refusal(spec.encode, x).startswith("action")
    tokens = spec.encode(raw)
    for x in (
        tokens[0], tokens[:, :-1], tokens.astype(float) + 0.5, tokens - spec.vocab,
        tokens + spec.vocab, tokens.astype(str), None, [[1], [1, 2]], tokens * np.nan
    ):
        assert refusal(spec.decode, x).startswith("action tokens")


@pytest.mark.parametrize(
    "space, says",
    [
        (gs.Dict(a=gs.Discrete(2)), "Dict"), (gs.Tuple([gs.Discrete(2)]), "Tuple"),
        (gs.Dict(a=gs.Dict(b=gs.MultiBinary(2))), "wrapper"),
        (gs.Box(-np.inf, np.inf, (40, 3)), "finite bounds"),
        (gs.Box(0, np.inf, (2,)), "finite bounds"),
        (gs.Box(-1.7e308, 1.7e308, (1,), np.float64), "finite bounds"),
        (gs.Box(0, 1, (0,)), "0 dimensions"), (gs.MultiDiscrete([]), "0 dimensions"),
        (gs.Box(-1, 1, (100, 100)), "10000 dimensions"),
        (gs.MultiDiscrete(np.full((3, 3), 9999)), "choices"),
        (gs.Box(0, 9999, (30, 30), np.int32), "choices"),
        (gs.Discrete(2, start=2**63 - 4), "choices"),
        (gs.Box(1000, 1001, (1,), np.float16), "float16"),
        (gs.Box(np.float32(1e4), np.float32(1e4 + 0.01), (1,)), "float32"), (None, "NoneType")
    ],
    ids=str,
)
def test_actions_that_cannot_be_tokens(space, says):
    message = refusal(ActionSpec.from_space, space)
    assert message.startswith("action space") and says in message


@pytest.mark.parametrize(
    "forged",
    [
        {},
        None,
        [],
        {"kind": "discrete"},
        {"kind": "swim", "nvec": [2]},
        {"kind": "discrete", "nvec": []},
        {"kind": "discrete", "nvec": [0]},
        {"kind": "discrete", "nvec": [2.5]},
        {"kind": "discrete", "nvec": 3},
        {"kind": "discrete", "nvec": ["3"]},
        {"kind": "multidiscrete", "nvec": [2, 2], "start": [0]},
        {"kind": "multidiscrete", "nvec": [2, 2], "shape": [3]},
        {"kind": "continuous", "nvec": [5]},
        {"kind": "continuous", "nvec": [5], "start": [0.0]},
        {"kind": "discrete", "nvec": [2], "dtype": "sound"},
        {"kind": "discrete", "nvec": [2], "speed": 1},
        {"kind": [], "nvec": [2]},
        *(
            {"kind": "continuous", "nvec": [5], "start": [a], "high": [b]}
            for a, b in (("low", 1.0), (2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf")))
        ),
    ],
    ids=str,
)
def test_forged_action_specs(forged):
    refusal(ActionSpec.from_json, forged)


@pytest.mark.parametrize(
    "dtype, end", [(np.float32, 0.3), (np.float16, 0.3), (np.float64, 0.3), (np.float32, 1e4)]
)
def test_rounded_bounds_are_no_mistake(dtype, end):
    "A bound written in another precision is the same bound; a percent beyond it is not."
    spec = ActionSpec.from_space(gs.Box(-end, end, (1,), dtype))
    for x in (
        np.array([[end], [-end]]), np.array([[end], [-end]], np.float32),
        np.array([[end], [-end]], dtype)
    ):
        assert spec.encode(x).tolist() == [[50], [0]]
    assert "between" in refusal(spec.encode, [[1.01 * end]]) and "between" in refusal(
        spec.encode, [[-1.01 * end]]
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("levels", [2, 7, 51])
def test_rounding_never_leaves_the_bounds(dtype, levels):
    """Thousands of bounds at once: low + step (levels - 1) exceeds high by a last digit in some of
    them, unless it is held back."""
    rng = np.random.default_rng(levels)
    low = rng.normal(size=4000).astype(dtype)
    high = (low + rng.uniform(0.1, 3, 4000)).astype(dtype)
    spec = ActionSpec.from_space(gs.Box(low, high, dtype=dtype), levels)
    back = spec.decode(np.arange(levels)[:, None].repeat(4000, 1))
    assert (
        ((low <= back) & (back <= high)).all()
        and np.array_equal(back[0], low)
        and np.array_equal(back[-1], high)
    )
    a, b = low.astype(np.float64), high.astype(np.float64)
    if dtype is np.float64 and levels > 2:
        # so the bounds above are a real trial
        assert (a + (b - a) / (levels - 1) * (levels - 1) > b).any()


def test_largest_vector_token():
    spec = ObsSpec.from_space(gs.Box(-np.inf, np.inf, (2,)))
    V = MultiModalTokenizer(spec)
    x = V.decode(V.encode({"obs": torch.tensor([3.4e38, -500.0])}))["obs"]
    assert torch.allclose(
        x, torch.stack([symexp(torch.tensor(6.0)), -symexp(torch.tensor(6.0))]), rtol=1e-5
    )
