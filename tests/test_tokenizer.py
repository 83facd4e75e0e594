"V: every kind of modality to tokens and back, and tokens to vectors."
import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces as gs
from hypothesis import given, settings, strategies as st

from simulus_nb.scalars import symlog
from simulus_nb.spaces import ActionSpec, Modality, ObsSpec, TokenGroup, UserError
from simulus_nb.tokenizer import (
    GridCoder, MultiModalTokenizer, TokenEmbedding, TokenizerConfig, action_group, mask_invalid,
    table_offsets, waves
)
from simulus_nb.vqvae import VQVAEConfig

torch.set_num_threads(1)
TINY = VQVAEConfig(image_size=8, channels=8, stages=1, code_dim=6, vocab=16, perceptual="none")


def random_observations(spec: ObsSpec, lead: tuple[int, ...], seed: int) -> dict[str, torch.Tensor]:
    "Observations as `ObsSpec.flatten` returns them, with leading axes `lead`."
    rng, out = np.random.default_rng(seed), {}
    for m in spec.modalities:
        shape = (*lead, *m.shape)
        x = (
            rng.integers(0, 256, shape).astype(np.uint8)
            if m.kind == "image"
            else rng.normal(0, 1, shape).astype(np.float32) * 10 ** rng.uniform(-2, 2)
            if m.kind == "vector"
            else rng.integers(0, m.nvec, shape)
        )
        out[m.key] = torch.from_numpy(np.ascontiguousarray(x))
    return out


@st.composite
def specs(draw):
    "A made-up observation of one to five modalities."
    parts, counts = [], st.integers(1, 4)
    for i, kind in enumerate(
        draw(
            st.lists(
                st.sampled_from(["image", "vector", "categorical", "grid"]), min_size=1, max_size=5
            )
        )
    ):
        n, c = draw(counts), draw(counts)
        if kind == "image":
            parts.append(Modality(f"m{i}", kind, (8, 8, draw(st.sampled_from([1, 3])))))
        elif kind == "vector":
            parts.append(Modality(f"m{i}", kind, (n,)))
        elif kind == "categorical":
            parts.append(
                Modality(
                    f"m{i}", kind, (n,),
                    tuple(draw(st.lists(st.integers(1, 9), min_size=n, max_size=n)))
                )
            )
        else:
            parts.append(
                Modality(
                    f"m{i}", kind, (n, draw(counts), c),
                    tuple(draw(st.lists(st.integers(1, 9), min_size=c, max_size=c)))
                )
            )
    return ObsSpec(tuple(parts))


@settings(deadline=None, max_examples=25)
@given(spec=specs(), lead=st.sampled_from([(), (1,), (3,), (2, 3)]), seed=st.integers(0, 1000))
def test_round_trip_of_any_spec(spec, lead, seed):
    torch.manual_seed(seed)
    V = MultiModalTokenizer(spec, TokenizerConfig(image=TINY)).eval()
    obs = random_observations(spec, lead, seed)
    z = V.encode(obs)
    assert z.shape == (*lead, V.layout.S) and z.dtype == torch.int64
    assert V.layout.K == sum(g.count for g in V.layout.groups) <= V.layout.S
    for g, m in zip(V.layout.groups, spec.modalities):
        part = V.layout.split(z)[g.key]
        assert (part >= 0).all() and (part < torch.tensor(g.vocab)).all()
        assert g.sizes is None or (part[..., 0] < torch.tensor(g.sizes)).all()
    back = V.decode(z)
    for m in spec.modalities:
        x, y = obs[m.key], back[m.key]
        assert y.shape == x.shape
        if m.kind in ("categorical", "grid"):
            assert torch.equal(x, y)
        if m.kind == "image":
            assert y.dtype == torch.uint8
        if m.kind == "vector":
            assert (symlog(x.clamp(-400, 400)) - symlog(y)).abs().max() < 0.074
    exact = [m.key for m in spec.modalities if m.kind != "image"]
    # what was decoded is encoded to the same tokens
    again = V.encode({**obs, **{k: back[k] for k in exact}})
    assert all(
        torch.equal(again[..., V.layout.slices()[k]], z[..., V.layout.slices()[k]]) for k in exact
    )


def test_layout_of_a_nested_space():
    space = gs.Dict(
        {
            "b": gs.Tuple([gs.Discrete(5, start=2), gs.Box(-1, 1, (2,))]),
            "a": gs.Box(0, np.broadcast_to([3, 6], (2, 3, 2)), (2, 3, 2), np.int64)
        }
    )
    spec = ObsSpec.from_space(space)
    V = MultiModalTokenizer(spec)
    groups = {g.key: g for g in V.layout.groups}
    assert groups["a"] == TokenGroup("a", "grid", 6, (4, 7), grid=(2, 3))
    assert groups["b/0"].sizes == (5,) and groups["b/1"].vocab == (125,)
    raw = {"b": (6, np.array([0.0, 1.0], np.float32)), "a": np.arange(12).reshape(2, 3, 2) % 4}
    z = V.encode({k: torch.from_numpy(x) for k, x in spec.flatten(raw).items()})
    parts = V.layout.split(z)
    assert (
        parts["a"].flatten().tolist() == (np.arange(12) % 4).tolist() and parts["b/0"].item() == 4
    )
    assert parts["b/1"][0].item() == 62                             # 0 is the middle of 125 points


def test_user_errors_say_what_to_do():
    spec = ObsSpec.from_space(gs.Dict({"x": gs.Discrete(3), "y": gs.MultiDiscrete([2, 2])}))
    V = MultiModalTokenizer(spec)
    with pytest.raises(UserError, match="'y'.*nothing"):
        V.encode({"x": torch.zeros(2, 1)})
    with pytest.raises(UserError, match="ObsSpec.flatten"):
        V.encode({"x": torch.zeros(2, 1), "y": torch.zeros(2, 3)})
    with pytest.raises(UserError, match="64x64"):
        MultiModalTokenizer(ObsSpec.from_space(gs.Box(0, 255, (32, 32, 3), np.uint8)))


def test_loss_is_the_sum_over_images():
    spec = ObsSpec.from_space(
        gs.Dict(
            {
                "left": gs.Box(0, 255, (8, 8, 3), np.uint8),
                "right": gs.Box(0, 255, (8, 8, 1), np.uint8), "n": gs.Discrete(3)
            }
        )
    )
    torch.manual_seed(0)
    V = MultiModalTokenizer(spec, TokenizerConfig(image=TINY)).eval()
    obs = random_observations(spec, (4,), 0)
    loss, metrics = V.loss(obs)
    assert torch.allclose(loss, sum(V.images()[k].loss(obs[k])[0] for k in ("left", "right")))
    assert set(V.codebooks()) == {"left", "right"} and {"left/pixel", "right/pixel"} <= set(metrics)
    loss.backward()
    assert all(p.grad is not None for p in V.parameters())
    without = MultiModalTokenizer(ObsSpec.from_space(gs.Discrete(3)))
    assert not without.images() and not list(without.parameters())


def test_offsets_give_every_symbol_rows_of_its_own():
    for group, rows in (
        (TokenGroup("a", "categorical", 4, (7,), sizes=(2, 7, 1, 3)), 13),
        (TokenGroup("b", "grid", 6, (4, 2, 5), grid=(2, 3)), 11)
    ):
        begin = table_offsets(group)
        sizes = (
            torch.tensor(group.sizes)[:, None]
            if group.sizes
            else torch.tensor(group.vocab).expand(group.count, -1)
        )
        used = [
            set(range(b, b + n)) for b, n in zip(begin.flatten().tolist(), sizes.flatten().tolist())
        ]
        assert set.union(*used) == set(range(rows))
        if group.sizes:
            assert sum(map(len, used)) == rows  # disjoint
        else:
            assert (begin == begin[0]).all() and sum(map(len, used[:3])) == rows


@settings(deadline=None, max_examples=20)
@given(spec=specs(), seed=st.integers(0, 1000))
def test_embedding_is_lookup_and_average(spec, seed):
    torch.manual_seed(seed)
    V = MultiModalTokenizer(spec, TokenizerConfig(image=TINY)).double()
    z = V.encode(random_observations(spec, (2, 3), seed))
    for g in V.layout.groups:
        book = (lambda: V.codebooks()[g.key]) if g.kind == "image" else None
        embed = TokenEmbedding(g, 6, book).double()
        x = embed(z[..., V.layout.slices()[g.key]])
        assert x.shape == (2, 3, g.count, 6)
        symbols = V.layout.split(z)[g.key]
        for j in range(g.count):
            table = book() if book else embed.rows()
            begin = (
                [0]
                if book or g.kind == "vector"
                else [sum(g.sizes[:j])]
                if g.sizes
                else [sum(g.vocab[:c]) for c in range(len(g.vocab))]
            )
            rows = [table[b + symbols[1, 2, j, c]] for c, b in enumerate(begin)]
            torch.testing.assert_close(
                x[1, 2, j], torch.stack(rows).mean(0), rtol=1e-12, atol=1e-12
            )


def test_codebook_is_read_live_and_never_trained():
    torch.manual_seed(0)
    config = TokenizerConfig(
        image=VQVAEConfig(
            image_size=8, channels=8, stages=1, code_dim=6, vocab=16, perceptual="none",
            quantiser="vq-gradient"
        )
    )
    V = MultiModalTokenizer(ObsSpec.from_space(gs.Box(0, 255, (8, 8, 3), np.uint8)), config)
    vqvae, group = V.images()["obs"], V.layout.groups[0]
    embed, same = (
        TokenEmbedding(group, 10, lambda: vqvae.codebook),
        TokenEmbedding(group, 6, V.codebooks()["obs"].clone)
    )
    z = torch.randint(16, (2, 16))
    embed(z).square().sum().backward()
    assert vqvae.codebook.grad is None and embed.project.weight.grad.abs().sum() > 0
    assert not list(same.parameters()) and not same(z).requires_grad
    before = embed(z)
    with torch.no_grad():
        vqvae.codebook.mul_(2)
    torch.testing.assert_close(embed(z), 2 * before)                # V moved, the reader followed
    # nothing of V is saved with M or C
    assert all(k.startswith("project") for k in embed.state_dict())


def test_state_dict_restores_tokens():
    torch.manual_seed(0)
    spec = ObsSpec.from_space(
        gs.Dict({"image": gs.Box(0, 255, (8, 8, 3), np.uint8), "x": gs.Box(-1, 1, (2,))})
    )
    V, W = (MultiModalTokenizer(spec, TokenizerConfig(image=TINY)).eval() for _ in range(2))
    obs = random_observations(spec, (5,), 1)
    assert not torch.equal(V.encode(obs), W.encode(obs))
    W.load_state_dict(copy.deepcopy(V.state_dict()))
    assert torch.equal(V.encode(obs), W.encode(obs))


def test_action_group():
    assert action_group(ActionSpec.from_space(gs.Discrete(6))) == TokenGroup(
        "action", "categorical", 1, (6,), sizes=(6,)
    )
    g = action_group(ActionSpec.from_space(gs.Box(-1, 1, (3,)), levels=21))
    assert (
        g.count == 3 and g.sizes == (21,) * 3 and table_offsets(g).flatten().tolist() == [0, 21, 42]
    )


@settings(deadline=None, max_examples=20)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5), seed=st.integers(0, 1000),
       dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
def test_mask_invalid(sizes, seed, dtype):
    torch.manual_seed(seed)
    n = max(sizes)
    logits = torch.randn(2, len(sizes), n).to(dtype).requires_grad_()
    out = mask_invalid(logits, tuple(sizes))
    logp = out.double().log_softmax(-1)
    assert not (logp.exp() * logp).isnan().any()                          # entropies are finite
    for j, size in enumerate(sizes):
        assert (logp[:, j, size:].exp() == 0).all() and torch.equal(
            out[:, j, :size], logits[:, j, :size]
        )
    out[..., 0].sum().backward()
    assert (logits.grad[..., 0] == 1).all() and (logits.grad[..., 1:] == 0).all()


def test_mask_made_under_inference_mode_serves_training():
    sizes = (2, 5, 3)
    with torch.inference_mode():
        mask_invalid(torch.zeros(1, 3, 5), sizes)
    logits = torch.zeros(1, 3, 5, requires_grad=True)
    mask_invalid(logits, sizes).softmax(-1)[..., 0].sum().backward()
    assert (logits.grad[0, 0, 2:] == 0).all() and logits.grad.abs().sum() > 0


@settings(deadline=None, max_examples=30)
@given(
    rows=st.integers(1, 7), cols=st.integers(1, 7), p=st.integers(1, 4),
    nvec=st.lists(st.integers(2, 5), min_size=1, max_size=3), seed=st.integers(0, 99)
)
def test_patches_lose_nothing_and_keep_their_place(rows, cols, p, nvec, seed):
    "Eq. (9.6a) for any map and patch: exact both ways, and a cell only touches its own token."
    coder = GridCoder(
        Modality("map", "grid", (rows, cols, len(nvec)), tuple(nvec)), TokenizerConfig(grid_patch=p)
    )
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.integers(0, nvec, (3, rows, cols, len(nvec))))
    z = coder.encode(x)
    g = coder.group
    assert (
        z.shape == (3, g.symbols)
        and g.count == -(-rows // p) * -(-cols // p) == g.grid[0] * g.grid[1]
    )
    assert (z.unflatten(-1, (g.count, -1)) < torch.tensor(g.vocab)).all() and torch.equal(
        coder.decode(z), x
    )
    y, c = int(rng.integers(rows)), int(rng.integers(cols))
    other = x.clone()
    other[:, y, c] = (other[:, y, c] + 1) % torch.tensor(nvec)
    touched = (
        (coder.encode(other) != z)
        .unflatten(-1, (g.count, -1))
        .any(-1)
        .any(0)
        .nonzero()
        .flatten()
        .tolist()
    )
    assert touched == [y // p * g.grid[1] + c // p]


@pytest.mark.parametrize("patch", [1, 2])
def test_embedding_of_cells_is_the_mean_of_looked_up_rows_with_its_gradient(patch):
    "Eq. (9.13): the product with a table of marks equals the lookup, forward and backward."
    torch.manual_seed(0)
    coder = GridCoder(
        Modality("map", "grid", (4, 5, 3), (4, 2, 6)), TokenizerConfig(grid_patch=patch)
    )
    embed = TokenEmbedding(coder.group, 7).double()
    torch.nn.init.normal_(embed.table.weight)
    z = coder.encode(
        torch.from_numpy(np.random.default_rng(0).integers(0, (4, 2, 6), (2, 4, 5, 3)))
    )
    weight = torch.randn(2, coder.group.count, 7, dtype=torch.float64)
    fast = torch.autograd.grad((embed(z) * weight).sum(), embed.table.weight)[0]
    looked_up = embed.table(z.unflatten(-1, (coder.group.count, -1)) + embed.offsets).mean(-2)
    torch.testing.assert_close(embed(z), looked_up, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        fast, torch.autograd.grad((looked_up * weight).sum(), embed.table.weight)[0], rtol=1e-12,
        atol=1e-12
    )


def test_where_tables_begin():
    """Eq. (9.12a): levels have an order, in vectors and continuous actions; Eq. (9.13a): an empty
    cell is zero; categories are independent."""
    torch.manual_seed(0)
    near = lambda rows: torch.nn.functional.cosine_similarity(rows[1:], rows[:-1], dim=-1).mean()
    for n in (1, 2, 7, 125, 1001):
        for fall in (0.0, 1.0):                                 # Eq. (9.12b)
            rows = waves(n, fall=fall)
            assert rows.shape == (n, 32) and (rows.norm(dim=-1) - 1).abs().max() < 1e-5
    assert near(waves(125, fall=1.0)) > near(waves(125)) > 0.9
    levels = TokenEmbedding(
        action_group(ActionSpec.from_space(gs.Box(-1, 1, (2,)), levels=51)), 256
    ).rows()
    choices = TokenEmbedding(
        action_group(ActionSpec.from_space(gs.MultiDiscrete([51, 51]))), 256
    ).rows()
    assert levels.shape == choices.shape == (102, 256)
    assert near(levels[:51]) > 0.7 and near(levels[51:]) > 0.7 and near(choices).abs() < 0.1
    assert torch.nn.functional.cosine_similarity(levels[:51], levels[51:]).abs().max() < 0.5
    ground = TokenEmbedding(TokenGroup("map", "grid", 4, (3, 2), grid=(2, 2)), 16)
    assert (
        not ground(torch.zeros(1, 8, dtype=torch.long)).any()
        and ground.table.weight.any(-1).sum() == 3
    )
