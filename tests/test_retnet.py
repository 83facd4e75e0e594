"""RetNet: a row cut anywhere is the same row, positions count from anywhere, and the layer is what
the paper says."""
import copy

import pytest
import torch
from hypothesis import given, settings, strategies as st

from simulus_nb.retention import retention_recurrent
from simulus_nb.retnet import (
    RetNet, RetNetConfig, RetNetLayer, Tables, dropout, head_decays, init_weights, make_tables,
    merge_heads, reframe, rotate, rotate_reference, rotation, to_heads, to_heads_reference
)
from simulus_nb.spaces import UserError

F64 = torch.float64


def network(layers=2, heads=2, d_k=4, block=3, seed=0, windows=(0.7, 3.0), **kw):
    torch.manual_seed(seed)
    net = RetNet(
        RetNetConfig(
            width=heads * d_k, heads=heads, layers=layers, dropout=0.0, windows=windows, **kw
        ),
        block,
    ).double()
    # far from initialisation
    for p in net.parameters():
        p.data.copy_(torch.randn_like(p) / p.shape[-1] ** 0.5)
    return net


def same(a, b, tol=1e-9):
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tol * b.abs().max().clamp(min=1), (a - b).abs().max()


sizes = dict(
    B=st.integers(1, 3), T=st.integers(1, 5), block=st.integers(1, 5), layers=st.integers(1, 3),
    heads=st.integers(1, 3), d_k=st.sampled_from([2, 4, 6]), seed=st.integers(0, 10**6)
)


@settings(deadline=None, max_examples=12)
@given(**sizes, with_state=st.booleans(), data=st.data())
@torch.no_grad()
def test_a_row_can_be_cut_anywhere(B, T, block, layers, heads, d_k, seed, with_state, data):
    net = network(layers, heads, d_k, block, seed)
    x = torch.randn(B, T, block, heads * d_k, dtype=F64)
    past = torch.randn(layers, B, heads, d_k, d_k, dtype=F64) if with_state else None
    Y, S = net(x, past)
    assert Y.shape == x.shape and S.shape == (layers, B, heads, d_k, d_k)
    cut = data.draw(st.integers(0, T))
    state, outs = past, []
    for piece in (x[:, :cut], x[:, cut:]):
        if piece.shape[1]:
            y, state = net(piece, state)
            outs.append(y)
    same(torch.cat(outs, 1), Y)
    same(state, S)
    row, state, start = x.flatten(1, 2), past, 0        # and into uneven pieces, inside blocks too
    outs = []
    while start < T * block:
        n = data.draw(st.integers(1, T * block - start))
        y, state = net(row[:, None, start:start + n], state)
        outs.append(y[:, 0])
        start += n
    same(torch.cat(outs, 1).view_as(Y), Y)
    same(state, S)


@settings(deadline=None, max_examples=30)
@given(
    d_k=st.sampled_from([2, 4, 16, 64]), n=st.integers(0, 2000), m=st.integers(0, 2000),
    shift=st.integers(-(10**5), 10**5), seed=st.integers(0, 10**6)
)
def test_scores_know_only_distance(d_k, n, m, shift, seed):
    q, k = torch.randn(2, 1, d_k, dtype=F64, generator=torch.Generator().manual_seed(seed))
    def score(n, m):
        return (
            rotate(q, *rotation(torch.tensor([n]), d_k))
            * rotate(k, *rotation(torch.tensor([m]), d_k))
        ).sum()
    assert torch.allclose(score(n, m), score(n + shift, m + shift), atol=1e-8)
    assert torch.allclose(score(n, m), score(n - m, 0), atol=1e-8)
    turned = rotate(q, *rotation(torch.tensor([n]), d_k))
    assert torch.allclose(turned.norm(), q.norm())                                      # a rotation
    assert torch.allclose(rotate(turned, *rotation(torch.tensor([-n]), d_k)), q, atol=1e-10)


@pytest.mark.parametrize("mode", ["parallel", "chunkwise"])
@torch.no_grad()
def test_against_yet_another_retnet(mode):
    """Its pairs are neighbours, ours lie half a head apart; its decays are fixed. Both undone, the
    retention branch is the same."""
    ref = pytest.importorskip("yet_another_retnet.retention")
    heads, d_k, block, T = 4, 8, 6, 3
    net = network(layers=1, heads=heads, d_k=d_k, block=block)
    net.decay = ref._build_decay_gammas(num_heads=heads, dtype=F64)
    layer, d = net.layers[0], heads * d_k
    layer.down.weight.zero_()
    layer.down.bias.zero_()  # leaves x + MSR(LN(x))
    theirs = ref.MultiScaleRetention(d, heads, bias=False, dtype=F64)
    perm = torch.stack([torch.arange(d_k // 2), torch.arange(d_k // 2) + d_k // 2], 1).flatten()
    wq, wk, wv, wg = layer.qkvg.weight.chunk(4)
    rename = lambda w: w.view(heads, d_k, d)[:, perm].flatten(0, 1)
    for mine, name in (
        (rename(wq), "q"), (rename(wk), "k"), (wv, "v"), (wg, "g"), (layer.out.weight, "out")
    ):
        getattr(theirs, f"{name}_proj").weight.copy_(mine)
    x = torch.randn(2, T, block, d, dtype=F64)
    normed = layer.norm_retention(x).flatten(1, 2)
    if mode == "parallel":
        want = theirs.forward_parallel(normed, normed, normed)[0]
    else:
        outs, state = [], None
        for t, piece in enumerate(normed.split(block, 1)):
            y, state = theirs.forward_chunkwise(piece, piece, piece, t * block, state)
            outs.append(y)
        want = torch.cat(outs, 1)
    same(net(x)[0], x + want.view_as(x))


@torch.no_grad()
def test_states_are_fading_sums_in_the_frame_of_the_next_token():
    "Layer 1 from its definition: keys at negative positions, -n to -1."
    net = network(layers=1, heads=2, d_k=4, block=3)
    x = torch.randn(2, 4, 3, 8, dtype=F64)
    _, S = net(x)
    layer, n = net.layers[0], 12
    _, k, v, _ = layer.qkvg(layer.norm_retention(x.flatten(1, 2))).chunk(4, -1)
    k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (k, v))
    k = rotate(k, *rotation(torch.arange(-n, 0), 4)) / 2
    same(S[0], retention_recurrent(k, k, v, net.decay)[1])


@settings(deadline=None, max_examples=20)
@given(
    heads=st.integers(1, 8), low=st.floats(0.1, 8), ratio=st.floats(1, 50),
    block=st.integers(1, 100)
)
def test_windows(heads, low, ratio, block):
    decay = head_decays(heads, (low, low * ratio), block)
    assert (
        decay.dtype == F64 and decay.shape == (heads,) and (decay >= 0).all() and (decay < 1).all()
    )
    window = 1 / (1 - decay)
    assert torch.isclose(window[0], torch.tensor(max(1.0, low * block), dtype=F64))
    assert (window.diff() >= -1e-6).all()
    if heads > 1:
        assert torch.isclose(window[-1], torch.tensor(max(1.0, low * ratio * block), dtype=F64))
    if heads > 2 and low * block > 1:
        assert torch.allclose(
            window.log().diff().diff(), torch.zeros(heads - 2, dtype=F64), atol=1e-6
        )


def test_heads_are_cut_turned_and_joined():
    tab = make_tables(head_decays(3, (1., 2.), 2), 4, 2, T=5, n=2, like=torch.zeros(1, dtype=F64))
    assert isinstance(tab, Tables) and tab.here[0].shape == tab.there[1].shape == (2, 1, 1, 5, 2, 2)
    x = torch.randn(2, 10, 36, dtype=F64)
    q, k, v = to_heads(x, 3, tab.here)
    assert q.shape == k.shape == v.shape == (2, 3, 5, 2, 4)
    assert torch.equal(torch.stack(to_heads(x[..., 12:], 3, tab.here)), torch.stack([k, v]))
    for t in range(5):
        for p in range(2):
            at = rotation(torch.tensor([2 * t + p]), 4)
            for head in range(3):
                s = slice(4 * head, 4 * head + 4)
                same(q[:, head, t, p], rotate(x[:, None, 2 * t + p, :12][..., s], *at)[:, 0])
                same(k[:, head, t, p], rotate(x[:, None, 2 * t + p, 12:24][..., s], *at)[:, 0] / 2)
                assert torch.equal(v[:, head, t, p], x[:, 2 * t + p, 24:][..., s])
    merged = merge_heads(v).view(2, 10, 3, 4)
    assert merged.mean(-1).abs().max() < 1e-12 and torch.allclose(
        merged.var(-1, unbiased=False), torch.ones(2, 10, 3, dtype=F64), atol=1e-3
    )
    same(merge_heads(1000 * v), merge_heads(v), 1e-3)
    state = torch.randn(2, 3, 4, 4, dtype=F64)
    back = Tables(tab.decay, tab.here, tab.there, tab.end_cos, -tab.end_sin)
    same(reframe(reframe(state, tab), back), state)


@pytest.mark.parametrize("cut", [1, 5, 8])
@torch.no_grad()
def test_causal_and_rows_never_mix(cut):
    net = network(layers=3)
    x = torch.randn(3, 3, 3, 8, dtype=F64)
    Y, S = net(x)
    y = x.flatten(1, 2).clone()
    y[:, cut:] = torch.randn_like(y[:, cut:])
    moved = (net(y.view_as(x))[0] - Y).flatten(1, 2).abs().amax((0, 2))
    assert (moved[:cut] < 1e-12).all() and (moved[cut:] > 1e-8).all()
    for row in range(3):
        y, s = net(x[row:row + 1])
        same(y, Y[row : row + 1])
        same(s, S[:, row : row + 1])


def test_gradients():
    net = network(layers=2, heads=1, d_k=2, block=2)
    x, s = (
        torch.randn(1, 2, 2, 2, dtype=F64, requires_grad=True),
        torch.randn(2, 1, 1, 2, 2, dtype=F64, requires_grad=True)
    )
    assert torch.autograd.gradcheck(net, (x, s), atol=1e-4)


def test_parameters_and_initialisation():
    for d, heads, layers, ffn in ((8, 2, 1, 4), (12, 3, 3, 2), (64, 4, 5, 4)):
        net = RetNet(RetNetConfig(width=d, heads=heads, layers=layers, ffn=ffn), 5)
        assert sum(p.numel() for p in net.parameters()) == layers * (
            (5 + 2 * ffn) * d * d + (ffn + 5) * d
        )
    init_weights(net)
    assert isinstance(net.layers[0], RetNetLayer)
    assert net.layers[2].qkvg.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for w in (net.layers[2].out.weight, net.layers[2].down.weight):
        assert w.std().item() == pytest.approx(0.02 / 10**0.5, rel=0.05)
    # constants are no weights
    assert set(net.state_dict()) == {n for n, _ in net.named_parameters()}


def test_decays_survive_low_precision():
    "bfloat16 would round every decay of Atari to 1."
    net = RetNet(RetNetConfig(width=16, heads=4, layers=2, dropout=0.0), 65).bfloat16()
    y, s = net(torch.randn(2, 2, 65, 16, dtype=torch.bfloat16))
    assert net.decay.dtype == F64 and (net.decay < 1).all()
    assert y.dtype == torch.bfloat16 and s.dtype == torch.float32
    tab = net.tables(2, 65, y)
    assert (
        tab.end_cos.dtype == tab.decay.block.dtype == torch.float32
        and tab.here[0].dtype == torch.bfloat16
    )
    assert tab.decay.write.dtype == tab.decay.block_low.dtype == torch.bfloat16
    x = torch.randn(2, 2, 65, 16)
    exact, S = net.float()(x)
    y, s = net.bfloat16()(x.bfloat16())
    assert s.dtype == torch.float32
    same(y.float(), exact, 0.05)
    same(s, S, 0.05)


def test_tables_are_shared_and_made_in_no_mode():
    net = network()
    x = torch.randn(1, 2, 3, 8, dtype=F64)
    with torch.inference_mode():
        net(x)
    tab = net.tables(2, 3, x)
    assert not tab.here[0].is_inference() and net.tables(2, 3, x) is tab
    net(x.requires_grad_())[0].sum().backward()                 # would fail on inference tensors
    assert x.grad is not None
    twin = copy.deepcopy(net)
    assert torch.equal(twin(x)[0], net(x)[0])


def test_dropout_only_while_training():
    net = RetNet(RetNetConfig(width=8, heads=2, layers=2, dropout=0.5), 3)
    x = torch.randn(2, 2, 3, 8)
    assert not torch.equal(net(x)[0], net(x)[0])
    net.eval()
    assert torch.equal(net(x)[0], net(x)[0])


def test_mistakes_are_named():
    with pytest.raises(UserError, match="multiple of 2"):
        RetNetConfig(width=30, heads=4)
    # heads of odd width
    with pytest.raises(UserError, match="multiple of 2"):
        RetNetConfig(width=12, heads=4)
    with pytest.raises(UserError, match="shorter one first"):
        RetNetConfig(windows=(8.0, 4.0))
    with pytest.raises(UserError, match="3 tokens"):
        network()(torch.zeros(1, 2, 4, 8, dtype=F64))


def test_compiles_into_one_graph():
    net = network()
    x = torch.randn(2, 2, 3, 8, dtype=F64)
    want = net(x)
    torch._dynamo.reset()
    got = torch.compile(net.__call__, backend="eager", fullgraph=True)(x)   # tables exist: no break
    same(got[0], want[0], 1e-12)
    same(got[1], want[1], 1e-12)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_agrees_with_cpu():
    net = network(layers=3)
    x = torch.randn(2, 4, 3, 8, dtype=F64)
    Y, S = net(x)
    y, s = net.cuda()(x.cuda())
    assert net.decay.device.type == "cpu"
    same(y.cpu(), Y)
    same(s.cpu(), S)


@settings(deadline=None, max_examples=20)
@given(
    lead=st.lists(st.integers(1, 3), max_size=3), n=st.integers(1, 5),
    d_k=st.sampled_from([2, 6, 8]), scaled=st.booleans(), seed=st.integers(0, 10**6)
)
def test_rotate_is_its_reference(lead, n, d_k, scaled, seed):
    "Values, gradients and gradients of gradients; whatever the strides."
    torch.manual_seed(seed)
    x = torch.randn(*lead, d_k, n, dtype=F64).mT.requires_grad_()                   # not contiguous
    cos, sin = rotation(torch.randint(-500, 500, (n,)), d_k)
    if scaled:
        cos, sin = cos / 3, sin / 3  # keys carry 1/sqrt(d_k)
    outs = [f(x, cos, sin) for f in (rotate, rotate_reference)]
    same(*outs, 1e-14)
    g = torch.randn_like(outs[0])
    same(*(torch.autograd.grad(y, x, g)[0] for y in outs), 1e-14)
    assert torch.autograd.gradgradcheck(lambda x: rotate(x, cos, sin) ** 2, x)


def test_rotate_broadcasts_like_its_reference():
    "One vector at many positions, and many at one."
    for x, n in (
        (torch.randn(1, 8, dtype=F64), 5), (torch.randn(2, 3, 1, 8, dtype=F64), 4),
        (torch.randn(3, 8, dtype=F64), 1)
    ):
        x.requires_grad_()
        cos, sin = rotation(torch.arange(n), 8)
        outs = [f(x, cos, sin) for f in (rotate, rotate_reference)]
        same(*outs, 1e-14)
        same(*(torch.autograd.grad(y.square().sum() + y.sum(), x)[0] for y in outs), 1e-13)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (1001, 999)])
def test_dropout(p, shape):
    x = torch.randn(shape, dtype=F64, requires_grad=True)
    y = dropout(x, p)
    kept = y != 0
    assert torch.allclose(y[kept], x[kept] / (1 - p), atol=1e-12)
    y.sum().backward()
    assert torch.equal(x.grad != 0, kept)                       # what was dropped learns nothing
    if x.numel() > 10**5:
        assert (
            abs(kept.double().mean() - (1 - round(65536 * p) / 65536))
            < 5 * (p * (1 - p) / x.numel()) ** 0.5
        )
    assert dropout(x, 0.0) is x


def test_in_place_activation_only_without_gradients():
    net = network()
    x = torch.randn(2, 2, 3, 8, dtype=F64)
    y, s = net(x)
    with torch.no_grad():
        z, t = net(x)
    assert torch.equal(y, z) and torch.equal(s, t)
    y.sum().backward()


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_pieces_written_straight_to_their_places(data):
    """Any sections, with queries and gate or without, some pieces without gradient: the plain
    cutting, forwards and backwards."""
    heads, half = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    c, d = data.draw(st.sampled_from([2, 3, 4])), heads * half * 2
    shapes = data.draw(
        st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=3)
    )
    turns = []
    for T, n in shapes:
        table = [t.view(1, 1, 1, T, n, half) for t in rotation(torch.arange(T * n), 2 * half)]
        turns.append(tuple(torch.cat([t, t / 2]) for t in table))
    x = torch.randn(2, sum(T * n for T, n in shapes), c * d, dtype=F64, requires_grad=True)
    fast, plain = (f(x, heads, *turns) for f in (to_heads, to_heads_reference))
    assert len(fast) == len(plain) == min(c, 3) * len(shapes) + (c == 4)
    used = data.draw(st.sets(st.integers(0, len(fast) - 1), min_size=1))
    weight = [torch.randn_like(y) for y in fast]
    for y, z in zip(fast, plain):
        same(y, z, 1e-14)
    grads = [
        torch.autograd.grad(sum((y[i] * weight[i]).sum() for i in used), x)[0]
        for y in (fast, plain)
    ]
    same(*grads, 1e-13)
