"Retention: its three forms are one function, in blocks or not, forwards and backwards."
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from simulus_nb.retention import (
    DecayTables, block_states, block_writes, decay_mask, decay_powers, decay_tables, last_state,
    read_blocks, retention_chunkwise, retention_parallel, retention_recurrent, states_before
)

F64 = torch.float64


def inputs(B, h, n, d_k, d_v, *, seed=0, dtype=F64):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=F64).to(dtype)
    decay = torch.rand(h, generator=g, dtype=F64)
    return draw(B, h, n, d_k), draw(B, h, n, d_k), draw(B, h, n, d_v), decay, draw(B, h, d_k, d_v)


def same(a, b, tol=1e-9):
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tol * b.abs().max().clamp(min=1e-300), (
        (a - b).abs().max(), b.abs().max()
    )


def chunked(x, c):
    return x.unflatten(2, (-1, c))


sizes = dict(
    B=st.integers(1, 3), h=st.integers(1, 4), n=st.integers(1, 20), d_k=st.integers(1, 5),
    d_v=st.integers(1, 5), seed=st.integers(0, 10**6)
)


@settings(deadline=None, max_examples=30)
@given(
    **sizes, chunk_size=st.integers(1, 25), with_state=st.booleans(),
    edge=st.sampled_from([None, 0.0, 1.0])
)
def test_three_forms_are_one(B, h, n, d_k, d_v, seed, chunk_size, with_state, edge):
    q, k, v, decay, state = inputs(B, h, n, d_k, d_v, seed=seed)
    if edge is not None:
        decay[0] = edge
    state = state if with_state else None
    slow, S = retention_recurrent(q, k, v, decay, state)
    out, S_chunk = retention_chunkwise(q, k, v, decay, state, chunk_size=chunk_size)
    # outputs may cancel to almost nothing
    scale = q.abs().sum(-1).max() * S.abs().max().clamp(min=1)
    assert (out - slow).abs().max() <= 1e-11 * scale
    assert (S_chunk - S).abs().max() <= 1e-11 * S.abs().max().clamp(min=1)
    if state is None:
        assert (retention_parallel(q, k, v, decay) - slow).abs().max() <= 1e-11 * scale


@settings(deadline=None, max_examples=20)
@given(
    B=st.integers(1, 3), h=st.integers(1, 3), T=st.integers(1, 6), L=st.integers(1, 5),
    n=st.integers(1, 8), seed=st.integers(0, 10**6), with_state=st.booleans()
)
def test_blocks_against_recursion(B, h, T, L, n, seed, with_state):
    "Boundary states block after block, and n readers of each of them that write nothing."
    _, k, v, decay, state = inputs(B, h, T * L, 4, 3, seed=seed)
    qr, kr, vr, _, _ = inputs(B, h, T * n, 4, 3, seed=seed + 1)
    state = state if with_state else None
    k, v, qr, kr, vr = chunked(k, L), chunked(v, L), chunked(qr, n), chunked(kr, n), chunked(vr, n)
    # larger than needed: slices must serve
    tables = decay_tables(decay, T + 2, L, n + 1, dtype=F64)
    U = block_writes(k, v, tables)
    states = block_states(U, tables, state)
    same(states, block_states(U, decay_tables(decay, T, L, dtype=F64), state), 1e-14)
    for a in range(T + 1):                                          # any boundaries by themselves
        for b in range(a, T + 1):
            same(block_states(U, tables, state, a, b), states[:, :, a : b + 1], 1e-13)
    before = states_before(U, tables, state)
    if before is None:
        assert T == 1 and state is None
    else:
        same(before, states[:, :, :-1], 1e-13)
    same(last_state(U, tables, state), states[:, :, -1], 1e-13)
    first = torch.zeros_like(states[:, :, 0]) if state is None else state
    assert torch.equal(states[:, :, 0], first)
    read = read_blocks(qr, kr, vr, states[:, :, 1:], decay, tables=tables)
    same(read, read_blocks(qr, kr, vr, states[:, :, 1:], decay), 1e-14)
    S = state
    for t in range(T):
        _, S = retention_recurrent(k[:, :, t], k[:, :, t], v[:, :, t], decay, S)
        assert torch.allclose(states[:, :, t + 1], S, rtol=1e-9, atol=1e-12)
        alone, _ = retention_recurrent(qr[:, :, t], kr[:, :, t], vr[:, :, t], decay, S)
        assert torch.allclose(read[:, :, t], alone, rtol=1e-9, atol=1e-11)


def test_against_yet_another_retnet():
    """Its decay is fixed by the number of heads, it scales keys unless told not to, and its chunks
    come one at a time."""
    ref = pytest.importorskip("yet_another_retnet.retention")
    B, h, n, c = 2, 4, 24, 6
    q, k, v, _, state = inputs(B, h, n, 8, 5)
    decay = ref._build_decay_gammas(num_heads=h, dtype=F64)
    same(retention_parallel(q, k, v, decay), ref.retention_parallel(q, k, v, scale=1.0)[0])
    # its default scale
    same(retention_parallel(q, k / 8 ** 0.5, v, decay), ref.retention_parallel(q, k, v)[0])
    S, outs = state, []
    for t in range(n):
        o, S = ref.retention_recurrent(q[:, :, t], k[:, :, t], v[:, :, t], S, scale=1.0)
        outs.append(o)
    out, last = retention_recurrent(q, k, v, decay, state)
    same(out, torch.stack(outs, 2))
    same(last, S)
    S, outs = state, []
    for t in range(0, n, c):
        o, S = ref.retention_chunkwise(*(x[:, :, t:t + c] for x in (q, k, v)), S, scale=1.0)
        outs.append(o)
    out, last = retention_chunkwise(q, k, v, decay, state, chunk_size=c)
    same(out, torch.cat(outs, 2))
    same(last, S)


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 9])
def test_gradcheck_chunkwise(chunk_size):
    q, k, v, decay, state = (x.requires_grad_(i != 3) for i, x in enumerate(inputs(2, 2, 5, 2, 3)))
    assert torch.autograd.gradcheck(
        lambda q, k, v, s: retention_chunkwise(q, k, v, decay, s, chunk_size=chunk_size),
        (q, k, v, state)
    )


def test_gradcheck_parallel_recurrent_and_readers():
    q, k, v, decay, state = (x.requires_grad_(i != 3) for i, x in enumerate(inputs(1, 2, 4, 2, 3)))
    assert torch.autograd.gradcheck(lambda *x: retention_parallel(*x, decay), (q, k, v))
    assert torch.autograd.gradcheck(
        lambda *x: retention_recurrent(*x[:3], decay, x[3]), (q, k, v, state)
    )
    def predict(q, k, v, s):                    # 3 readers of the state after a block of 2, T = 2
        tables = decay_tables(decay, 2, 2, dtype=F64)
        S = block_states(block_writes(chunked(k, 2), chunked(v, 2), tables), tables, s, 1)
        qr, kr, vr = (torch.cat([chunked(x, 2), chunked(x, 2)[:, :, :, :1]], 3) for x in (q, k, v))
        return read_blocks(qr, kr, vr, S, decay)
    assert torch.autograd.gradcheck(predict, (q, k, v, state))


def test_gradients_agree_across_forms():
    x = inputs(2, 3, 13, 4, 5, seed=3)
    weight = torch.randn(2, 3, 13, 5, dtype=F64, generator=torch.Generator().manual_seed(1))
    def grads(f):
        q, k, v, decay, s = (t.clone().requires_grad_(i != 3) for i, t in enumerate(x))
        out, state = f(q, k, v, decay, s)
        return torch.autograd.grad((out * weight).sum() + state.pow(2).sum(), (q, k, v, s))
    want = grads(retention_recurrent)
    for c in (1, 4, 13, 20):
        for a, b in zip(grads(lambda *a: retention_chunkwise(*a, chunk_size=c)), want):
            same(a, b)


FORMS = dict(
    parallel=lambda q, k, v, d: retention_parallel(q, k, v, d),
    recurrent=lambda q, k, v, d: retention_recurrent(q, k, v, d)[0],
    whole=lambda q, k, v, d: retention_chunkwise(q, k, v, d, chunk_size=4)[0],
    rest=lambda q, k, v, d: retention_chunkwise(q, k, v, d, chunk_size=5)[0]
)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cut", [1, 4, 7, 11])
def test_causal(form, cut):
    q, k, v, decay, _ = inputs(2, 3, 12, 4, 5)
    other = inputs(2, 3, 12, 4, 5, seed=9)
    q2, k2, v2 = (torch.cat([x[:, :, :cut], y[:, :, cut:]], 2) for x, y in zip((q, k, v), other))
    before, after = FORMS[form](q, k, v, decay), FORMS[form](q2, k2, v2, decay)
    assert torch.equal(before[:, :, :cut], after[:, :, :cut])
    assert not torch.isclose(before[:, :, cut:], after[:, :, cut:]).all()


@pytest.mark.parametrize("form", FORMS)
def test_rows_and_heads_never_mix_and_linear_in_v(form):
    q, k, v, decay, _ = inputs(3, 3, 12, 4, 4)
    out = FORMS[form](q, k, v, decay)
    for row in range(3):
        same(
            FORMS[form](q[row : row + 1], k[row : row + 1], v[row : row + 1], decay),
            out[row : row + 1]
        )
    for head in range(3):
        same(
            FORMS[form](*(x[:, head : head + 1] for x in (q, k, v)), decay[head : head + 1]),
            out[:, head : head + 1]
        )
    same(FORMS[form](q, k, 3 * v - k, decay), 3 * out - FORMS[form](q, k, k, decay))


@pytest.mark.parametrize("form", FORMS)
def test_limits(form):
    q, k, v, decay, _ = inputs(2, 3, 12, 4, 5)
    # only the present
    same(FORMS[form](q, k, v, torch.zeros(3)), (q * k).sum(-1, keepdim=True) * v)
    running = torch.einsum("bhnk,bhnv->bhnkv", k, v).cumsum(2)
    # linear attention
    same(FORMS[form](q, k, v, torch.ones(3)), torch.einsum("bhnk,bhnkv->bhnv", q, running))


def test_a_row_can_be_cut_anywhere():
    q, k, v, decay, state = inputs(2, 2, 11, 3, 4)
    out, last = retention_chunkwise(q, k, v, decay, state, chunk_size=4)
    for cut in range(12):
        # the cut 0 is an empty row
        o1, S = retention_chunkwise(*(x[:, :, :cut] for x in (q, k, v)), decay, state, chunk_size=3)
        o2, S = retention_chunkwise(*(x[:, :, cut:] for x in (q, k, v)), decay, S, chunk_size=5)
        same(torch.cat([o1, o2], 2), out)
        same(S, last)


def test_powers():
    decay = torch.tensor([0.0, 0.5, 1.0])
    age = torch.tensor([-10**6, -1, 0, 1, 3, 10**6])
    assert torch.equal(
        decay_powers(decay, age),
        torch.tensor([[0, 0, 1, 0, 0, 0], [0, 0, 1, 0.5, 0.125, 0], [0, 0, 1, 1, 1, 1]], dtype=F64)
    )
    assert not decay_powers(decay.requires_grad_(), age).requires_grad
    mask = decay_mask(4, torch.tensor([0.5]))[0]
    assert torch.equal(
        mask,
        torch.tensor(
            [[1, 0, 0, 0], [0.5, 1, 0, 0], [0.25, 0.5, 1, 0], [0.125, 0.25, 0.5, 1]], dtype=F64
        ),
    )
    tables = decay_tables(torch.tensor([0.5]), T=2, L=3, n=2)
    assert isinstance(tables, DecayTables) and all(x.dtype == torch.float32 for x in tables)
    assert tables.read.flatten().tolist() == [0.5, 0.25] and tables.write.flatten().tolist() == [
        0.25, 0.5, 1.0
    ]
    low = decay_tables(torch.tensor([0.5]), T=2, L=3, dtype=torch.bfloat16)
    assert low.block.dtype == torch.float32 and {
        low.intra.dtype, low.read.dtype, low.write.dtype, low.block_low.dtype
    } == {torch.bfloat16}
    assert tables.block.tolist() == [[[1, 0, 0], [1 / 8, 1, 0], [1 / 64, 1 / 8, 1]]]


def test_long_rows_stay_finite():
    """Half-lives of one token over thousands: powers underflow to zero, nothing overflows,
    gradients included."""
    q, k, v, _, _ = inputs(1, 2, 3000, 2, 2, dtype=torch.float32)
    decay = torch.tensor([0.5, 0.9])
    q.requires_grad_()
    out, S = retention_chunkwise(q, k, v, decay, chunk_size=1500)
    grad, = torch.autograd.grad(out.sum(), q)
    assert out.isfinite().all() and S.isfinite().all() and grad.isfinite().all()
    assert torch.allclose(
        out[:, :, -1], retention_chunkwise(q, k, v, decay, chunk_size=30)[0][:, :, -1], atol=1e-4
    )


def test_precision_of_states():
    "bfloat16 inputs: outputs bfloat16, states accumulated in float32."
    q, k, v, decay, state = inputs(2, 3, 60, 8, 8, dtype=torch.bfloat16)
    decay = 1 - decay / 500                                     # bfloat16 would round these to 1
    exact, S64 = retention_recurrent(q.double(), k.double(), v.double(), decay, state.double())
    for f in (retention_recurrent, lambda *x: retention_chunkwise(*x, chunk_size=7)):
        out, S = f(q, k, v, decay, state)
        assert out.dtype == torch.bfloat16 and S.dtype == torch.float32
        same(S.double(), S64, 1e-5)
        same(out.double(), exact, 2e-2)


def test_inputs_are_left_alone():
    x = inputs(2, 2, 9, 3, 3)
    copies = [t.clone() for t in x]
    for c in (2, 9):
        retention_chunkwise(*x, chunk_size=c)
    retention_recurrent(*x)
    retention_parallel(*x[:4])
    assert all(torch.equal(a, b) for a, b in zip(x, copies))


class CountOps(TorchDispatchMode):
    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += 1
        return func(*args, **(kwargs or {}))


def test_no_loop_over_blocks_and_tables_save_work():
    def ops(T, use_tables):
        q, k, v, decay, state = inputs(1, 2, 3 * T, 2, 2)
        tables = decay_tables(decay, T, 3, dtype=F64)
        with CountOps() as count:
            S = block_states(block_writes(chunked(k, 3), chunked(v, 3), tables), tables, state)
            read_blocks(
                chunked(q, 3), chunked(k, 3), chunked(v, 3), S[:, :, :-1], decay,
                tables=tables if use_tables else None
            )
        return count.n
    assert ops(2, False) == ops(20, False)
    assert ops(2, True) == ops(20, True) < ops(2, False)


def test_compiles_to_one_graph():
    q, k, v, decay, state = inputs(2, 2, 12, 3, 3)
    tables = decay_tables(decay, 3, 4, dtype=F64)
    def f(q, k, v, state, tables):
        S = block_states(block_writes(chunked(k, 4), chunked(v, 4), tables), tables, state)
        return read_blocks(
            chunked(q, 4), chunked(k, 4), chunked(v, 4), S[:, :, :-1], decay, tables=tables
        ), S[:, :, -1]
    out, S = torch.compile(f, backend="eager", fullgraph=True)(q, k, v, state, tables)
    want, last = retention_recurrent(q, k, v, decay, state)
    same(out.flatten(2, 3), want)
    same(S, last)


@pytest.mark.parametrize("chunk_size", [0, -3])
def test_chunk_size_must_be_positive(chunk_size):
    with pytest.raises(ValueError, match="at least 1"):
        retention_chunkwise(*inputs(1, 1, 3, 2, 2), chunk_size=chunk_size)
