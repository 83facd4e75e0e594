"POP: all next frames in one pass = stepping to S_t and asking; nothing asked is remembered."
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.utils.flop_counter import FlopCounterMode

from simulus_nb.pop import pop, pop_reference, project
from simulus_nb.retnet import RetNet, RetNetConfig
from simulus_nb.spaces import UserError

F64 = torch.float64


def world(B=3, T=4, K=4, K_a=1, layers=2, heads=2, d_k=4, seed=0):
    torch.manual_seed(seed)
    d = heads * d_k
    net = RetNet(
        RetNetConfig(width=d, heads=heads, layers=layers, dropout=0.0, windows=(0.7, 3.0)), K + K_a
    ).double()
    for p in net.parameters():
        p.data.copy_(torch.randn_like(p) / p.shape[-1] ** 0.5)
    return (
        net, torch.randn(B, T, K + K_a, d, dtype=F64), torch.randn(K, d, dtype=F64),
        torch.randn(layers, B, heads, d_k, d_k, dtype=F64)
    )


def same(a, b, tol=1e-9):
    assert a.shape == b.shape
    if b.numel():
        assert (a - b).abs().max() <= tol * b.abs().max().clamp(min=1), (a - b).abs().max()


sizes = dict(
    B=st.integers(1, 3), T=st.integers(1, 5), K=st.integers(1, 5), K_a=st.integers(1, 3),
    layers=st.integers(1, 3), heads=st.integers(1, 2), d_k=st.sampled_from([2, 4]),
    seed=st.integers(0, 10**6)
)


@settings(deadline=None, max_examples=30)
@given(**sizes, with_state=st.booleans(), data=st.data())
@torch.no_grad()
def test_one_pass_is_step_by_step(B, T, K, K_a, layers, heads, d_k, seed, with_state, data):
    net, x, xu, past = world(B, T, K, K_a, layers, heads, d_k, seed)
    past = past if with_state else None
    (yu, S), (want, S_want) = pop(net, x, xu, past), pop_reference(net, x, xu, past)
    assert yu.shape == (B, T, K, heads * d_k)
    same(yu, want)
    same(S, S_want)
    same(S, net(x, past)[1])
    first = data.draw(st.integers(1, T + 1))
    some, S_some = pop(net, x, xu, past, first=first)
    same(some, want[:, first - 1 :])
    same(S_some, S_want)
    cut = data.draw(st.integers(1, T))          # a segment, then the rest as a dream, step by step
    y, state = pop(net, x[:, :cut], xu, past)
    ys = [y]
    for t in range(cut, T):
        y, state = pop(net, x[:, t:t + 1], xu, state)
        ys.append(y)
    same(torch.cat(ys, 1), want)
    same(state, S_want)


@settings(deadline=None, max_examples=20)
@given(**sizes, data=st.data())
@torch.no_grad()
def test_padding_in_front_is_dropped(B, T, K, K_a, layers, heads, d_k, seed, data):
    net, x, xu, _ = world(B, T, K, K_a, layers, heads, d_k, seed)
    starts = [data.draw(st.integers(0, T - 1)) for _ in range(B)]
    mask = torch.arange(T) >= torch.tensor(starts)[:, None]
    garbage = torch.where(mask[..., None, None], x, 100 * torch.randn_like(x))
    yu, S = pop(net, garbage, xu, mask=mask)
    for row, start in enumerate(starts):
        alone, S_alone = pop_reference(net, x[row:row + 1, start:], xu)
        same(yu[row : row + 1, start:], alone)
        same(S[:, row : row + 1], S_alone)
    same(pop(net, x, xu, mask=torch.ones(B, T, dtype=torch.bool))[0], pop(net, x, xu)[0], 1e-12)


@torch.no_grad()
def test_padding_after_a_past_only_lets_time_pass():
    net, x, xu, past = world()
    nothing = torch.zeros(3, 2, dtype=torch.bool)
    _, S = pop(net, x[:, :2], xu, past, mask=nothing)
    _, other = pop(net, 1 + 5 * torch.randn_like(x[:, :2]), xu, past, mask=nothing)
    same(S, other)
    # two blocks of five tokens
    same(S.norm(dim=-2), past.norm(dim=-2) * (net.decay ** 10)[:, None])


@torch.no_grad()
def test_nothing_asked_is_remembered():
    net, x, xu, past = world()
    _, S = pop(net, x, xu, past)
    for other in (100 * torch.randn_like(xu), xu[:1], torch.zeros_like(xu)):
        same(pop(net, x, other, past)[1], S)
    same(pop(net, x, xu, past, first=5)[1], S)


def changes_nothing_before(ask, net, x, xu, past, block):
    "An action of `block` moves no earlier prediction, and a question only those to its right."
    yu, _ = ask(net, x, xu, past)
    y = x.clone()
    y[:, block, -1] = torch.randn_like(y[:, block, -1])  # its last token, the action
    moved = (ask(net, y, xu, past)[0] - yu).abs().amax((0, 3))
    assert (moved[:block] < 1e-12).all() and (moved[block:] > 1e-9).all()
    u = xu.clone()
    u[2] = torch.randn_like(u[2])  # a question moves only those to its right
    moved = (ask(net, x, u, past)[0] - yu).abs().amax((0, 1, 3))
    assert (moved[:2] < 1e-12).all() and (moved[2:] > 1e-9).all()


def rows_stay_apart(ask, net, x, xu, past):
    "Each row of a batch is what it is alone."
    yu, S = ask(net, x, xu, past)
    for row in range(len(x)):
        y, s = ask(net, x[row:row + 1], xu, past[:, row:row + 1])
        same(y, yu[row:row + 1])
        same(s, S[:, row:row + 1])



@pytest.mark.parametrize("block", range(4))
@torch.no_grad()
def test_causal(block):
    changes_nothing_before(pop, *world(layers=3), block)


@torch.no_grad()
def test_rows_never_mix():
    rows_stay_apart(pop, *world())


def test_gradients_are_those_of_the_reference():
    net, x, xu, past = world(layers=3, K_a=2)
    inputs = [t.requires_grad_() for t in (x, xu, past)] + list(net.parameters())
    def grads(f):
        yu, S = f(net, x, xu, past)
        g = torch.Generator().manual_seed(1)
        loss = (yu * torch.randn(yu.shape, generator=g, dtype=F64)).sum() + S.square().sum()
        return torch.autograd.grad(loss, inputs, allow_unused=True)
    for a, b in zip(grads(pop), grads(pop_reference)):
        same(a, b)


def test_gradcheck():
    net, x, xu, past = world(B=2, T=2, K=2, layers=2, heads=1, d_k=2)
    f = lambda x, xu, s: pop(net, x, xu, s, mask=torch.tensor([[True, True], [False, True]]))
    assert torch.autograd.gradcheck(
        f, (x.requires_grad_(), xu.requires_grad_(), past.requires_grad_()), atol=1e-4,
        fast_mode=True
    )


@torch.no_grad()
def test_shortcuts_of_project():
    net, x, xu, _ = world()
    layer, n, tab = net.layers[0], 20, net.tables(4, 5, x)
    h = torch.cat([x.flatten(1, 2), xu.repeat(3, 1).expand(3, -1, -1)], 1)
    here, there = tab.here, tuple(t[..., 1:, :4, :] for t in tab.there)
    cx, cu, gate = project(layer, h, here, there)
    assert [y.shape for y in cx] == [(3, 2, 4, 5, 4)] * 3 and [y.shape for y in cu] == [
        (3, 2, 3, 4, 4)
    ] * 3
    assert gate.shape == (3, 32, 8)
    def alike(a, b):
        for y, z in zip(a, b, strict=True):
            same(y.expand_as(z), z)
    fx, fu, fgate = project(layer, h, here, there, xu)
    assert fu[0].shape[0] == 1
    alike(fx, cx), alike(fu, cu), same(fgate, gate)
    kv, lu, lgate = project(layer, h, here, there, last=True)
    alike(kv, cx[1:]), alike(lu, cu), same(lgate, gate[:, n:])
    kv, bu, bgate = project(layer, h, here, there, xu, last=True)   # a network of one layer
    alike(kv, cx[1:]), alike(bu, cu), same(bgate.expand_as(lgate), lgate)


@pytest.mark.parametrize("layers,first", [(1, 1), (1, 3), (2, 2), (3, 5)])
def test_operations(layers, first):
    "Eq. (12.12) of the chapter, against PyTorch's counter."
    net, x, xu, _ = world(layers=layers)
    B, T, L, d, K, h, f = *x.shape, len(xu), 2, 4
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        pop(net, x, xu, first=first)
    l, e, P = layers, d * d // h, T + 1 - first
    want = (
        2 * B * T * L * d * d * (l * (5 + 2 * f) - (3 + 2 * f))
        + 2 * B * P * K * d * d * (l * (5 + 2 * f) - 4)
        + 8 * K * d * d
    )
    want += (
        B * T * ((l - 1) * (4 * L * L * d + 2 * L * e) + 2 * l * L * e)
        + 4 * P * K * K * d * ((l - 1) * B + 1)
        + 2 * l * B * P * K * e
    )
    # the state is kept, whatever is asked
    want += 2 * B * T * ((l - 1) * (T + max(P, 1)) + max(P, 1)) * e
    assert counter.get_total_flops() == want


def test_mixed_precision():
    net, x, xu, past = (t.float() for t in world())
    yu, S = pop(net, x, xu, past)
    net, x, xu = net.bfloat16(), x.bfloat16(), xu.bfloat16()
    y, s = pop(net, x, xu, past, mask=torch.ones(3, 4, dtype=torch.bool))
    assert s.dtype == torch.float32
    assert (y.float() - yu).square().mean().sqrt() < 0.05 * yu.square().mean().sqrt()
    assert (s - S).square().mean().sqrt() < 0.05 * S.square().mean().sqrt()


def test_first_out_of_range():
    net, x, xu, _ = world()
    for first in (0, 6):
        with pytest.raises(UserError, match="between 1 and T"):
            pop(net, x, xu, first=first)


def test_compiles_into_one_graph():
    net, x, xu, past = world()
    mask = torch.tensor([[False, True, True, True]] * 3)
    want = pop(net, x, xu, past, mask, 2)
    torch._dynamo.reset()
    # tables exist: no break
    got = torch.compile(pop, backend="eager", fullgraph=True)(net, x, xu, past, mask, 2)
    same(got[0], want[0], 1e-12)
    same(got[1], want[1], 1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_agrees_with_cpu():
    net, x, xu, past = world(layers=3)
    yu, S = pop(net, x, xu, past)
    y, s = pop(net.cuda(), *(t.cuda() for t in (x, xu, past)))
    same(y.cpu(), yu)
    same(s.cpu(), S)
