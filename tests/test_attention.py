"""Attention in the place of retention: one pass = stepping, with a window, a cache of fixed shape,
padding and questions; and the world model on it does what it does on a RetNet."""
from dataclasses import replace

import pytest
import torch
from gymnasium import spaces as gs
from hypothesis import given, settings, strategies as st
from test_pop import changes_nothing_before, rows_stay_apart, same
from test_world_model import CONFIG, close, flat, make as make_retnet, segment
from torch.utils.flop_counter import FlopCounterMode

from simulus_nb.attention import (
    Attention, AttentionConfig, attend, attention_reference, context_bias, may_read, pop_attention,
    question_tiles, shift, what_is_seen
)
from simulus_nb.config import preset
from simulus_nb.pop import pop_reference
from simulus_nb.retnet import RetNet, RetNetConfig, head_decays, rotate_reference, rotation
from simulus_nb.spaces import ActionSpec, UserError
from simulus_nb.world_model import WorldModel, WorldModelConfig, world_model_loss

F64 = torch.float64


def world(B=3, T=4, K=4, K_a=1, layers=2, heads=2, d_k=4, W=3, seed=0, fade=False):
    "A network far from its initialisation, blocks, prediction tokens, and a cache of two blocks."
    torch.manual_seed(seed)
    d = heads * d_k
    net = Attention(
        RetNetConfig(width=d, heads=heads, layers=layers, dropout=0.0, windows=(0.5, 6.0)),
        K + K_a, W, fade
    ).double()
    for p in net.parameters():
        p.data.copy_(torch.randn_like(p) / p.shape[-1] ** 0.5)
    x, xu = torch.randn(B, T, K + K_a, d, dtype=F64), torch.randn(K, d, dtype=F64)
    with torch.no_grad():
        return net, x, xu, net(torch.randn(B, 2, K + K_a, d, dtype=F64))[1]


sizes = dict(
    B=st.integers(1, 3), T=st.integers(1, 5), K=st.integers(1, 5), K_a=st.integers(1, 3),
    layers=st.integers(1, 3), heads=st.integers(1, 2), d_k=st.sampled_from([2, 4]),
    W=st.integers(1, 7), seed=st.integers(0, 10**6), fade=st.booleans()
)


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(1, 12), window=st.integers(1, 14), seed=st.integers(0, 10**6),
    decays=st.one_of(st.none(), st.lists(st.floats(0.01, 1), min_size=2, max_size=2))
)
def test_a_kernel_with_a_bias_is_the_loop(n, window, seed, decays):
    torch.manual_seed(seed)
    q, k, v = torch.randn(3, 2, 2, n, 4, dtype=F64)
    fade = None if decays is None else torch.tensor(decays, dtype=F64).log()
    want = attention_reference(q, k, v, window, fade)
    bias = context_bias(n, 0, window, None, q, None if fade is None else fade[:, None, None])
    assert (bias is None) == (n <= window + 1 and fade is None)
    same(attend(q, k, v, bias), want)


def test_what_fades_is_retention_in_the_exponent():
    "Scores that are 0 leave retention's own weights, shared out; a decay of 1 leaves attention."
    q, v = torch.zeros(1, 3, 9, 2, dtype=F64), torch.randn(1, 3, 9, 2, dtype=F64)
    k, decays = torch.randn(1, 3, 9, 2, dtype=F64), torch.tensor([0.2, 0.9, 1.0], dtype=F64)
    age = (torch.arange(9)[:, None] - torch.arange(9)).clamp(min=0)
    weights = (decays[:, None, None] ** age).tril()
    got = attend(q, k, v, context_bias(9, 0, 9, None, q, decays.log()[:, None, None]))
    same(got, weights / weights.sum(-1, keepdim=True) @ v)
    q = torch.randn(1, 3, 9, 2, dtype=F64)
    got = attend(q, k, v, context_bias(9, 0, 9, None, q, decays.log()[:, None, None]))
    same(got[:, 2], attend(q, k, v)[:, 2])


def test_a_head_without_memory_still_reads_itself():
    "A window of half a block of one token has the decay 0: its logarithm times an age of 0 is 0."
    net = Attention(RetNetConfig(width=8, heads=2, windows=(0.5, 0.5)), 1, 4, fade=True)
    y, state = net(torch.randn(2, 4, 1, 8))
    assert y.isfinite().all() and state.isfinite().all()


@settings(deadline=None, max_examples=30)
@given(**sizes, with_state=st.booleans(), data=st.data())
@torch.no_grad()
def test_one_pass_is_step_by_step(
    B, T, K, K_a, layers, heads, d_k, W, seed, fade, with_state, data
):
    net, x, xu, past = world(B, T, K, K_a, layers, heads, d_k, W, seed, fade)
    past = past if with_state else None
    (yu, S), (want, S_want) = pop_attention(net, x, xu, past), pop_reference(net, x, xu, past)
    assert yu.shape == (B, T, K, heads * d_k)
    assert S.shape == (layers, B, heads, W * (K + K_a), 2 * d_k + 1)
    same(yu, want)
    same(S, S_want)
    same(S, net(x, past)[1])
    first = data.draw(st.integers(1, T + 1))
    some, S_some = pop_attention(net, x, xu, past, first=first)
    same(some, want[:, first - 1:])
    same(S_some, S_want)
    assert pop_attention(net, x, xu, past, first=first, keep=False)[1] is None
    cut = data.draw(st.integers(1, T))          # a segment, then the rest as a dream, step by step
    y, state = pop_attention(net, x[:, :cut], xu, past)
    ys = [y]
    for t in range(cut, T):
        y, state = pop_attention(net, x[:, t:t + 1], xu, state)
        ys.append(y)
    same(torch.cat(ys, 1), want)
    same(state, S_want)


@settings(deadline=None, max_examples=15)
@given(**sizes, size=st.integers(1, 4))
@torch.no_grad()
def test_a_row_may_be_cut_at_any_token(B, T, K, K_a, layers, heads, d_k, W, seed, fade, size):
    net, x, _, past = world(B, T, K, K_a, layers, heads, d_k, W, seed, fade)
    want, S = net(x, past)
    rows, state, outputs = x.flatten(1, 2), past, []
    for part in rows.split(size, 1):
        y, state = net(part[:, None], state)
        outputs.append(y.flatten(1, 2))
    same(torch.cat(outputs, 1).view_as(want), want)
    same(state, S)


@pytest.mark.parametrize("fade", [False, True])
@torch.no_grad()
def test_against_the_whole_network_spelt_out(fade):
    "Without cache, window and blocks: every token at its own position, everything in one square."
    net, x, _, _ = world(B=2, T=3, layers=3, W=9, fade=fade)
    lines = head_decays(2, (0.5, 6.0), 5).log() if fade else None
    stream, n = x.flatten(1, 2), 15
    turn = rotation(torch.arange(n), 4)
    for layer in net.layers:
        q, k, v, gate = layer.qkvg(layer.norm_retention(stream)).chunk(4, -1)
        q, k, v = (y.unflatten(-1, (2, 4)).transpose(1, 2) for y in (q, k, v))
        q, k = rotate_reference(q, *turn), rotate_reference(k, *turn)
        o = attention_reference(q, k, v, n, lines)
        o = torch.nn.functional.layer_norm(o, (4,), eps=1e-6).transpose(1, 2).flatten(2)
        stream = layer.update(stream, o, gate)
    same(net(x)[0].flatten(1, 2), stream)


@settings(deadline=None, max_examples=20)
@given(**sizes, data=st.data())
@torch.no_grad()
def test_padding_is_dropped(B, T, K, K_a, layers, heads, d_k, W, seed, fade, data):
    "In front and behind, turned round or hidden by a bias; rows alone are the truth."
    net, x, xu, _ = world(B, T, K, K_a, layers, heads, d_k, W, seed, fade)
    spans = [sorted(data.draw(st.tuples(st.integers(0, T), st.integers(0, T)))) for _ in range(B)]
    t = torch.arange(T)
    mask = torch.stack([(t >= i) & (t < j) for i, j in spans])
    garbage = torch.where(mask[..., None, None], x, 100 * torch.randn_like(x))
    kept, S = pop_attention(net, garbage, xu, mask=mask)
    turned, _ = pop_attention(net, garbage, xu, mask=mask, keep=False)
    assert kept.isfinite().all() and turned.isfinite().all()
    full = what_is_seen(S, None, 0, 1)[0].view(B, W, -1)
    for row, (i, j) in enumerate(spans):
        if i == j:
            continue
        alone, S_alone = pop_reference(net, x[row:row + 1, i:j], xu)
        same(kept[row:row + 1, i:j], alone)
        same(turned[row:row + 1, i:j], alone)
        if j == T:
            same(S[:, row:row + 1], S_alone)
    last = torch.nn.functional.pad(mask, (max(0, W - T), 0))[:, -W:]
    assert torch.equal(full.all(-1), last) and torch.equal(full.any(-1), last)
    whole = torch.ones(B, T, dtype=torch.bool)
    same(pop_attention(net, x, xu, mask=whole, keep=False)[0], pop_attention(net, x, xu)[0], 1e-12)


@torch.no_grad()
def test_padding_after_a_past_leaves_empty_slots():
    net, x, xu, past = world(W=4)
    nothing = torch.zeros(3, 1, dtype=torch.bool)
    _, S = pop_attention(net, x[:, :1], xu, past, mask=nothing)
    _, other = pop_attention(net, 1 + 5 * torch.randn_like(x[:, :1]), xu, past, mask=nothing)
    same(S, other, 0)
    same(S[..., :-5, :], past[..., 5:, :], 0)
    assert (S[..., -5:, :] == 0).all()
    y, _ = pop_attention(net, x[:, :1], xu, S)
    assert y.isfinite().all()


@torch.no_grad()
def test_zeros_are_the_empty_past_and_rows_can_be_picked():
    net, x, xu, past = world()
    yu, S = pop_attention(net, x, xu)
    y, s = pop_attention(net, x, xu, torch.zeros_like(past))
    same(y, yu)
    same(s, S)
    order = torch.tensor([2, 0, 2, 1])
    yu, S = pop_attention(net, x, xu, past)
    y, s = pop_attention(net, x[order], xu, past[:, order])
    same(y, yu[order])
    same(s, S[:, order])
    mixed = past.clone()                        # dreams of different ages in one tensor
    mixed[:, 1] = 0
    y, _ = pop_attention(net, x, xu, mixed)
    same(y[1:2], pop_attention(net, x[1:2], xu)[0])
    same(y[::2], yu[::2])


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@torch.no_grad()
def test_no_blocks_at_all(keep, masked):
    "A dream may begin with nothing behind it."
    net, x, xu, past = world()
    mask = torch.ones(3, 0, dtype=torch.bool) if masked else None
    for state in (None, past):
        y, S = pop_attention(net, x[:, :0], xu, state, mask, keep=keep)
        assert y.shape == (3, 0, 4, 8)
        if keep:
            same(S, torch.zeros_like(past) if state is None else past)


@torch.no_grad()
def test_nothing_asked_is_remembered():
    net, x, xu, past = world()
    _, S = pop_attention(net, x, xu, past)
    for other in (100 * torch.randn_like(xu), xu[:1], torch.zeros_like(xu)):
        same(pop_attention(net, x, other, past)[1], S)
    same(pop_attention(net, x, xu, past, first=5)[1], S)


@pytest.mark.parametrize("block", range(4))
@pytest.mark.parametrize("W, carried", [(9, False), (9, True), (2, True)])
@torch.no_grad()
def test_causal(block, W, carried):
    net, x, xu, past = world(layers=3, W=W)
    past = past if carried else None
    changes_nothing_before(pop_attention, net, x, xu, past, block)


@torch.no_grad()
def test_rows_never_mix():
    rows_stay_apart(pop_attention, *world())


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("W", [1, 2])
@torch.no_grad()
def test_each_layer_hands_on_one_window(layers, W):
    net, x, _, _ = world(B=1, T=3 * W + 2 + layers * W, K=2, layers=layers, W=W)
    other = x.clone()
    other[0, 0, 0] += torch.randn_like(other[0, 0, 0])
    moved = (net(other)[0] - net(x)[0]).abs().amax(-1).flatten() > 1e-12
    assert moved.nonzero().max() == layers * W * 3


@pytest.mark.parametrize("rows", [1, 5, 12, 64])
@pytest.mark.parametrize("first, slots, W", [(1, 0, 9), (3, 0, 2), (1, 10, 2), (2, 15, 3)])
def test_tiles_cover_every_question_once(rows, first, slots, W):
    T, L, K, like = 5, 5, 4, torch.zeros(1)
    tiles = question_tiles(T, L, K, first, slots, W * L, None, like, rows=rows)
    assert [i for tile in tiles for i in range(tile.which.start, tile.which.stop)] == list(
        range(T + 1 - first)
    )
    for which, keys, bias in tiles:
        assert keys <= slots + T * L and bias.shape[-1] == keys + bias.shape[-2]
        at = [(first + i) * L + p for i in range(which.start, which.stop) for p in range(K)]
        near = may_read(torch.tensor(at), torch.arange(-slots, keys - slots), W * L)
        ends = torch.tensor(at)[:, None] // L * L
        want = near & (torch.arange(-slots, keys - slots) < ends)
        assert torch.equal(bias[0, 0, :, :keys] == 0, want)


@pytest.mark.parametrize("fade", [False, True])
def test_gradients_are_those_of_the_reference(fade):
    net, x, xu, past = world(layers=3, K_a=2, fade=fade)
    inputs = [t.requires_grad_() for t in (x, xu, past)] + list(net.parameters())
    def grads(f):
        yu, S = f(net, x, xu, past)
        g = torch.Generator().manual_seed(1)
        loss = (yu * torch.randn(yu.shape, generator=g, dtype=F64)).sum() + S.square().sum()
        return torch.autograd.grad(loss, inputs, allow_unused=True)
    for a, b in zip(grads(pop_attention), grads(pop_reference)):
        same(a, b)


def test_gradients_of_turned_rows_are_those_of_rows_in_place():
    net, x, xu, _ = world(T=5, W=9)
    t = torch.arange(5)
    mask = torch.stack([(t >= i) & (t < j) for i, j in ((0, 5), (2, 5), (1, 4))])
    inputs = [x.requires_grad_(), xu.requires_grad_(), *net.parameters()]
    def grads(keep):
        y, _ = pop_attention(net, x, xu, mask=mask, keep=keep)
        return torch.autograd.grad((y.square() * mask[..., None, None]).sum(), inputs)
    turned, kept = grads(False), grads(True)
    for a, b in zip(turned, kept):
        same(a, b)
    assert (turned[0][~mask] == 0).all()                    # padding has no say


@torch.no_grad()
def test_shift():
    x, lead = torch.randn(4, 5, 2), torch.tensor([0, 1, 4, 2])
    turned = shift(x, lead)
    for b, n in enumerate(lead.tolist()):
        assert torch.equal(turned[b], x[b].roll(-n, 0))
    assert torch.equal(shift(turned, lead, back=True), x)


def test_operations():
    "Eq. (13.11) of the chapter, against PyTorch's counter, backwards too."
    net, x, xu, _ = world(layers=3, W=9)
    B, T, L, d, K, l, f = *x.shape, len(xu), 3, 4
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        pop_attention(net, x, xu, keep=False)
    matrices = (
        2 * B * T * L * d * d * (l * (5 + 2 * f) - (3 + 2 * f))
        + 2 * B * T * K * d * d * (l * (5 + 2 * f) - 4) + 8 * K * d * d
    )
    asked = T * K * (T * L + T * K)                         # four tokens: all blocks in one call
    reading = 4 * B * d * ((l - 1) * (T * L) ** 2 + l * asked)
    assert counter.get_total_flops() == matrices + reading
    q = torch.randn(2, 2, 6, 4, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        attend(q, q, q).sum().backward()
    assert counter.get_total_flops() == 2 * 2 * 6 * 6 * 4 * 2 * (2 + 5)     # scores made again


def test_mixed_precision():
    net, x, xu, past = (t.float() for t in world())
    yu, S = pop_attention(net, x, xu, past)
    net, x, xu = net.bfloat16(), x.bfloat16(), xu.bfloat16()
    y, s = pop_attention(net, x, xu, past, mask=torch.ones(3, 4, dtype=torch.bool))
    assert s.dtype == torch.bfloat16
    assert (y.float() - yu).square().mean().sqrt() < 0.05 * yu.square().mean().sqrt()
    assert (s.float() - S).square().mean().sqrt() < 0.05 * S.square().mean().sqrt()


@torch.no_grad()
def test_a_long_dream_does_not_drift():
    net, x, xu, _ = world(B=1, T=200, W=2)
    want, _ = pop_attention(net, x, xu)
    net, state, steps = net.float(), None, []
    for block in x.float().split(1, 1):
        y, state = pop_attention(net, block, xu.float(), state)
        steps.append(y)
    error = (torch.cat(steps, 1).double() - want).abs().amax((0, 2, 3))
    assert error[-20:].max() < 3 * error[20:60].max() < 1e-3


def test_what_does_not_fit():
    net, x, xu, _ = world()
    for first in (0, 6):
        with pytest.raises(UserError, match="between 1 and T"):
            pop_attention(net, x, xu, first=first)
    with pytest.raises(UserError, match="must have 5 tokens each, not 4"):
        net(x[:, :, :4])
    with pytest.raises(UserError, match="window of 1 block or more, not 0"):
        Attention(RetNetConfig(width=8, heads=2), 5, 0)


def test_tables_are_made_once_and_in_no_mode():
    net, x, xu, _ = world()
    with torch.inference_mode():
        pop_attention(net, x, xu)
    tab = net.tables(4, 5, x)
    assert tab is net.tables(4, 5, x) and not tab.here[0].is_inference()
    pop_attention(net, x, xu)[0].sum().backward()


@pytest.mark.parametrize("fade", [False, True])
def test_compiles_into_one_graph(fade):
    net, x, xu, past = world(fade=fade)
    mask = torch.tensor([[False, True, True, True]] * 3)
    cases = [(None, mask, 1, False), (past, mask, 2, True), (past, None, 1, True)]
    torch._dynamo.reset()
    for state, m, first, keep in cases:
        want = pop_attention(net, x, xu, state, m, first, keep)
        # tables exist: no break
        compiled = torch.compile(pop_attention, backend="eager", fullgraph=True)
        got = compiled(net, x, xu, state, m, first, keep)
        same(got[0], want[0], 1e-12)
        if keep:
            same(got[1], want[1], 1e-12)


# the world model on it

ACTIONS = ActionSpec.from_space(gs.MultiDiscrete([3, 4]))
ATTENTION = WorldModelConfig(
    CONFIG.retnet, reward_bins=11, sequence="attention", attention=AttentionConfig(6)
)


def make(seed=0, fade=False):
    "V, and M with attention, for a world with every kind of modality."
    V, _ = make_retnet(seed)
    config = replace(ATTENTION, attention=AttentionConfig(6, fade))
    M = WorldModel(V.layout, ACTIONS, config, V.codebooks).double()
    for p in M.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return V, M


@settings(deadline=None, max_examples=8)
@given(T=st.integers(1, 5), B=st.integers(1, 3), first=st.integers(1, 5), seed=st.integers(0, 100),
       fade=st.booleans())
def test_a_world_model_in_one_pass_equals_steps(T, B, first, seed, fade):
    _, M = make(seed, fade)
    assert (M.sequence.fade is not None) == fade
    s, first = segment(M, B, T, seed), min(first, T)
    whole, end = M(s["z"], s["action"], first=first)
    state, steps = None, []
    for t in range(T):
        p, state = M(s["z"][:, t:t+1], s["action"][:, t:t+1], state)
        steps.append(flat(p))
    close(flat(whole), torch.cat(steps, 1)[:, first - 1:])
    close(state, end)
    close(M.remember(s["z"], s["action"]), end)


def test_padding_has_no_say_in_the_loss():
    _, M = make()
    s = segment(M, B=3, T=5)
    s["mask"] = torch.arange(5) >= torch.tensor([0, 2, 3])[:, None]
    loss, _ = world_model_loss(M, **s)
    other = {k: x.clone() for k, x in s.items()}
    other["z"][~s["mask"]] = 0
    other["action"][~s["mask"]] = 1
    assert torch.allclose(world_model_loss(M, **other)[0], loss, rtol=1e-12)
    rows = [{k: x[b:b + 1, i:] for k, x in s.items()} for b, i in enumerate((0, 2, 3))]
    sums = [world_model_loss(M, **row)[1]["reward"] * (row["mask"].sum() - 1) for row in rows]
    mean = sum(sums) / sum(row["mask"].sum() - 1 for row in rows)
    assert torch.allclose(world_model_loss(M, **s)[1]["reward"], mean, rtol=1e-9)


def test_both_models_have_the_same_parameters_and_nothing_else_changes():
    torch.manual_seed(0)
    V, _ = make_retnet()
    torch.manual_seed(0)
    here = WorldModel(V.layout, ACTIONS, CONFIG, V.codebooks)
    torch.manual_seed(0)
    there = WorldModel(V.layout, ACTIONS, ATTENTION, V.codebooks)
    ours = {k.replace("attention.", "retnet."): x for k, x in there.state_dict().items()}
    theirs = here.state_dict()
    assert list(ours) == list(theirs) and all(torch.equal(ours[k], x) for k, x in theirs.items())
    assert any(k.startswith("retnet.layers.0.qkvg") for k in theirs)        # as in older saves
    assert type(here.sequence) is RetNet and type(there.sequence) is Attention


def test_settings_that_do_not_fit():
    attention = preset("catch").change({"world_model.sequence": "attention"})
    assert attention.world_model.attention.window >= attention.train_m.segment
    with pytest.raises(UserError, match="shorter than a segment.*train_m.segment = 21 blocks"):
        attention.change({"train_m.segment": 21})
    preset("catch").change({"train_m.segment": 21})         # with a RetNet nobody minds
    for values in ({"world_model.attention.window": 0}, {"world_model.sequence": "lstm"}):
        with pytest.raises(UserError, match="world_model"):
            preset("catch").change(values)
    for name in ("atari100k", "rem", "dmc", "craftax", "small", "minigrid", "control"):
        preset(name).change({"world_model.sequence": "attention"})
