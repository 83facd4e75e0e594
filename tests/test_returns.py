"""λ-returns against an independent sum over paths, limits, causality, and the return scale against
torch.quantile."""
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from simulus_nb.returns import ReturnScale, lambda_return, lambda_return_recurrent, lower_quantile

shapes = st.tuples(st.integers(1, 5), st.integers(1, 24))
unit = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))


def dream(shape, seed, end=0.2):
    g = torch.Generator().manual_seed(seed)
    reward, value = torch.randn(2, *shape, generator=g, dtype=torch.float64)
    return reward, torch.rand(shape, generator=g) < end, value


def sum_over_stops(reward, done, value, gamma, lam):
    """The λ-return of one row as an expectation: after each step the walk stops with
    probability 1 - lam and is paid the value there; at the horizon it must stop. An independent
    third derivation, in plain Python."""
    H, out = len(value), []
    for t in range(H):
        total, alive = 0.0, 1.0                     # alive: discounted probability of still walking
        for m in range(t, H):
            if m == H - 1:
                total += alive * value[m]
                break
            total += alive * reward[m]
            alive *= gamma * (0.0 if done[m] else 1.0)
            if m + 1 < H - 1:
                total += alive * (1 - lam) * value[m + 1]
                alive *= lam
        out.append(total)
    return torch.tensor(out, dtype=torch.float64)


@settings(deadline=None, max_examples=30)
@given(shapes, st.integers(0, 99), unit, unit)
def test_three_derivations_agree(shape, seed, gamma, lam):
    reward, done, value = dream(shape, seed)
    fast = lambda_return(reward, done, value, gamma=gamma, lam=lam)
    slow = lambda_return_recurrent(reward, done, value, gamma=gamma, lam=lam)
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)
    for row in range(shape[0]):
        want = sum_over_stops(
            reward[row].tolist(), done[row].tolist(), value[row].tolist(), gamma, lam
        )
        torch.testing.assert_close(fast[row], want, rtol=1e-10, atol=1e-12)


@settings(deadline=None, max_examples=20)
@given(shapes, st.integers(0, 99), unit, unit)
def test_ends_cut_and_the_past_does_not_count(shape, seed, gamma, lam):
    reward, done, value = dream(shape, seed)
    G = lambda_return(reward, done, value, gamma=gamma, lam=lam)
    assert torch.equal(G[:, -1], value[:, -1])
    cut = shape[1] // 2
    done = done.clone()
    done[:, cut] = True
    G = lambda_return(reward, done, value, gamma=gamma, lam=lam)
    reward2, value2 = reward.clone(), value.clone()
    reward2[:, cut + 1:] += 7
    value2[:, cut + 1:] -= 5
    after = lambda_return(reward2, done, value2, gamma=gamma, lam=lam)
    if cut < shape[1] - 1:
        torch.testing.assert_close(after[:, :cut + 1], G[:, :cut + 1], rtol=0, atol=0)
        torch.testing.assert_close(G[:, cut], reward[:, cut], rtol=0, atol=0)
    reward2 = reward.clone()
    reward2[:, :cut] += 3
    value2 = value.clone()
    value2[:, :cut] += 3
    assert torch.equal(
        lambda_return(reward2, done, value2, gamma=gamma, lam=lam)[:, cut:], G[:, cut:]
    )


@settings(deadline=None, max_examples=20)
@given(shapes, st.integers(0, 99), st.floats(0, 1), st.floats(0.1, 0.99))
def test_values_that_fit_are_left_alone(shape, seed, lam, gamma):
    reward, done, value = dream(shape, seed)
    fixed = lambda_return(reward, done, value, gamma=gamma, lam=1.0)
    torch.testing.assert_close(
        lambda_return(reward, done, fixed, gamma=gamma, lam=lam), fixed, rtol=1e-9, atol=1e-11
    )


def test_last_reward_and_end_are_never_used():
    reward, done, value = dream((3, 6), 0)
    reward2, done2 = reward.clone(), done.clone()
    reward2[:, -1], done2[:, -1] = torch.nan, ~done[:, -1]
    a, b = (
        lambda_return(r, d, value, gamma=0.9, lam=0.9)
        for r, d in ((reward, done), (reward2, done2))
    )
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    "dtype, tol", [(torch.float32, 1e-5), (torch.bfloat16, 0.1), (torch.float64, 1e-12)]
)
@pytest.mark.parametrize("flag", [torch.bool, torch.float32, torch.uint8])
def test_types(dtype, tol, flag):
    reward, done, value = dream((4, 10), 1)
    want = lambda_return_recurrent(reward, done, value, gamma=0.97, lam=0.9)
    got = lambda_return(reward.to(dtype), done.to(flag), value.to(dtype), gamma=0.97, lam=0.9)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, rtol=tol, atol=tol)


def test_autocast_keeps_float32():
    reward, done, value = (x.float() for x in dream((4, 10), 1))
    want = lambda_return(reward, done, value, gamma=0.97, lam=0.9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = lambda_return(reward, done, value, gamma=0.97, lam=0.9)
    assert got.dtype == torch.float32 and torch.equal(got, want)


def test_gradients():
    reward, done, value = dream((2, 5), 3)
    reward.requires_grad_(), value.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda r, v: lambda_return(r, done, v, gamma=0.9, lam=0.8), (reward, value)
    )


def test_wrong_shapes():
    reward, done, value = dream((2, 5), 0)
    with pytest.raises(ValueError, match=r"must all be \(B, H\)"):
        lambda_return(reward[:, :4], done, value, gamma=0.9, lam=0.9)
    with pytest.raises(ValueError, match=r"must all be \(B, H\)"):
        lambda_return(reward[0], done[0], value[0], gamma=0.9, lam=0.9)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 400), st.integers(0, 100), st.floats(0, 1), st.integers(0, 99))
def test_lower_quantile(n, empty, q, seed):
    # with ties
    x = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).round(
        decimals=1
    )
    padded = torch.cat([x, torch.full((empty,), torch.inf)])[torch.randperm(n + empty)]
    torch.testing.assert_close(
        lower_quantile(padded, torch.tensor(n), q), x.quantile(q), rtol=1e-4, atol=1e-4
    )


@settings(deadline=None, max_examples=15)
@given(
    st.integers(1, 6), st.integers(1, 40), st.integers(1, 15),
    st.sampled_from([(0.025, 0.975), (0.05, 0.95), (0.0, 1.0), (0.25, 0.5)])
)
def test_scale_is_the_quantile_range_of_the_window(window, batch, steps, quantiles):
    low, high = quantiles
    scale = ReturnScale(window, low, high, batch=batch).double()
    kept = []
    for i in range(steps):
        G = torch.randn(
            batch, generator=torch.Generator().manual_seed(i), dtype=torch.float64
        ) * 10 ** (i % 3)
        kept = [*kept, G][-window:]
        c = scale.update(G)
        x = torch.cat(kept)
        torch.testing.assert_close(
            c, (x.quantile(high) - x.quantile(low)) / 2, rtol=1e-4, atol=1e-4
        )
        assert c is scale.value


def test_scale_resumes_exactly():
    scale = ReturnScale(window=3, batch=20)
    for _ in range(5):
        scale.update(torch.randn(4, 5))
    other = ReturnScale(window=3, batch=20)
    other.load_state_dict(scale.state_dict())
    assert torch.equal(other.value, scale.value)
    for _ in range(4):
        G = torch.randn(4, 5)
        assert torch.equal(scale.update(G), other.update(G))
    assert not list(scale.parameters()) and set(scale.state_dict()) == {
        "memory", "updates", "value"
    }


def test_scale_never_reads_a_number_on_the_host():
    "A fake tensor has no data: `.item()` or a size that depends on data would raise."
    with FakeTensorMode():
        scale = ReturnScale(window=4, batch=12)
        assert scale.update(torch.randn(3, 4)).shape == ()
        assert lambda_return(
            torch.randn(3, 4), torch.zeros(3, 4), torch.randn(3, 4), gamma=0.9, lam=0.9
        ).shape == (3, 4)


def test_scale_errors():
    with pytest.raises(ValueError, match="batch=6"):
        ReturnScale(batch=5).update(torch.zeros(2, 3))
    for bad in (dict(low=0.9, high=0.1), dict(window=0), dict(high=1.5)):
        with pytest.raises(ValueError, match="ReturnScale needs"):
            ReturnScale(**bad, batch=5)
