"""symlog and its inverse, histograms of scalars against torch and against the definitions, and
their gradients."""
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn.functional import cross_entropy

from simulus_nb.scalars import HLGauss, TwoHot, symexp, symlog

HEADS = pytest.mark.parametrize("kind", [HLGauss, TwoHot])
# low, length, bins
supports = st.tuples(st.floats(-20, 5), st.floats(0.5, 20), st.integers(2, 200))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-1e30, 1e30, allow_subnormal=False), min_size=1, max_size=20))
def test_inverse_odd_and_increasing(numbers):
    x = torch.tensor(numbers, dtype=torch.float64)
    torch.testing.assert_close(symexp(symlog(x)), x, rtol=1e-12, atol=0)
    assert torch.equal(symlog(-x), -symlog(x))
    assert (symlog(x.sort().values).diff() >= 0).all()
    torch.testing.assert_close(
        symlog(x), x.sign() * torch.asinh(x.abs() / 2 * (x.abs() + 2) / (x.abs() + 1)), rtol=1e-9,
        atol=1e-15
    )


def test_small_numbers_survive_float32():
    x = torch.tensor([1e-30, 1e-12, 1e-8])
    torch.testing.assert_close(symlog(x), x, rtol=1e-6, atol=0)
    torch.testing.assert_close(symexp(x), x, rtol=1e-6, atol=0)


def test_slopes():
    x = torch.tensor(
        [-1e4, -1.0, -1e-9, 0.0, 1e-9, 1.0, 1e4], dtype=torch.float64, requires_grad=True
    )
    (log,) = torch.autograd.grad(symlog(x).sum(), x)
    torch.testing.assert_close(log, 1 / (1 + x.detach().abs()))
    y = torch.tensor([-10.0, -1e-9, 0.0, 1e-9, 10.0], dtype=torch.float64, requires_grad=True)
    (exp,) = torch.autograd.grad(symexp(y).sum(), y)
    torch.testing.assert_close(exp, y.detach().abs().exp())


@HEADS
@settings(deadline=None, max_examples=30)
@given(support=supports, seed=st.integers(0, 99))
def test_encode_is_a_distribution(kind, support, seed):
    low, length, bins = support
    head = kind(low, low + length, bins)
    x = symexp(
        low
        - 1
        + (length + 2)
        * torch.rand(3, 50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    )
    q = head.encode(x)
    assert q.shape == (3, 50, bins) and (q >= 0).all()
    torch.testing.assert_close(q.sum(-1), torch.ones(3, 50, dtype=torch.float64))
    y = symlog(x).clamp(low, low + length)
    nearest = head.centers(x)[q.argmax(-1)]
    # the most likely bin is the nearest
    assert ((nearest - y).abs() <= head.width / 2 * (1 + 1e-6)).all()


@settings(deadline=None, max_examples=30)
@given(support=supports, seed=st.integers(0, 99))
def test_two_hot_round_trip_is_exact(support, seed):
    low, length, bins = support
    head = TwoHot(low, low + length, bins)
    y = low + length * torch.rand(
        100, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    q = head.encode(symexp(y))
    assert ((q > 1e-9).sum(-1) <= 2).all()
    torch.testing.assert_close(symlog(head.decode(q.log())), y, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.3, 2.0), st.integers(40, 200), st.integers(0, 99))
def test_hl_gauss_round_trip_inside(sigma, bins, seed):
    head = HLGauss(-15, 15, bins, sigma)
    room = 15 - 7 * sigma * head.width                  # seven standard deviations from the ends
    y = room * (
        2 * torch.rand(100, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1
    )
    back = symlog(head.decode(head.encode(symexp(y)).log()))
    bound = 1.1 * head.width / math.pi * math.exp(-2 * math.pi**2 * sigma**2) + 1e-9
    assert (back - y).abs().max() <= bound


@pytest.mark.parametrize("low, high", [(-15, 15), (-10.395, 10.395)])
def test_published_supports_in_float32(low, high):
    head = HLGauss(low, high)
    x = torch.tensor([-1000.0, -1.0, -0.01, 0.0, 0.01, 0.5, 1.0, 21.0, 1000.0])
    torch.testing.assert_close(head.decode(head.encode(x).log()), x, rtol=1e-4, atol=1e-5)
    assert head.centers(x)[64] == 0 and len(head.centers(x)) == 129
    assert torch.equal(
        head.encode(torch.tensor(1e20)), head.encode(torch.tensor(math.expm1(high) * 1.001))
    )


def test_hl_gauss_by_sampling():
    "The definition in words: the share of a bell's samples whose nearest centre is i."
    head = HLGauss(-2, 2, bins=9)
    y = 0.3
    sample = y + 0.75 * head.width * torch.randn(
        200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    sample = sample[(sample > -2 - head.width / 2) & (sample < 2 + head.width / 2)]
    share = torch.bincount(((sample + 2) / head.width).round().long(), minlength=9) / len(sample)
    torch.testing.assert_close(
        head.encode(symexp(torch.tensor(y, dtype=torch.float64))), share.double(), rtol=0, atol=5e-3
    )


def test_hl_gauss_sharpens_to_nearest_and_two_hot_is_a_box():
    x = symexp(torch.linspace(-1.9, 1.9, 50, dtype=torch.float64))
    sharp, two = HLGauss(-2, 2, bins=9, sigma=1e-4), TwoHot(-2, 2, bins=9)
    assert torch.equal(sharp.encode(x).argmax(-1), two.encode(x).argmax(-1))
    box = (
        symlog(x)[:, None]
        + two.width * (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
        - two.width / 2
    )
    share = torch.stack(
        [((box + 2) / two.width).round().eq(i).double().mean(-1) for i in range(9)], -1
    )
    torch.testing.assert_close(two.encode(x), share, rtol=0, atol=2e-4)


@HEADS
def test_loss_and_gradient(kind):
    torch.manual_seed(0)
    head, x = kind(-15, 15), symexp(40 * torch.rand(4, 7, dtype=torch.float64) - 20)
    logits = torch.randn(4, 7, 129, dtype=torch.float64, requires_grad=True)
    x.requires_grad_()
    loss = head.loss(logits, x)
    q = head.encode(x.detach())
    torch.testing.assert_close(
        loss, cross_entropy(logits.flatten(0, 1), q.flatten(0, 1), reduction="none").view(4, 7)
    )
    loss.sum().backward()
    torch.testing.assert_close(logits.grad, logits.detach().softmax(-1) - q)
    assert x.grad is None                                               # a target gets no gradient
    # never below the target's own entropy
    assert (loss >= -(q * q.clamp(min=1e-300).log()).sum(-1) - 1e-9).all()


@HEADS
def test_types_and_state(kind):
    head = kind(-15, 15).to(torch.bfloat16)
    assert not head.state_dict() and not list(head.parameters())
    x, logits = torch.tensor([0.0, 3.0, -200.0]), torch.randn(3, 129)
    assert (
        head.encode(x.bfloat16()).dtype
        == head.decode(logits.bfloat16()).dtype
        == head.loss(logits.bfloat16(), x).dtype
        == torch.float32
    )
    assert head.decode(logits.double()).dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head.decode(logits), kind(-15, 15).decode(logits))
        assert torch.equal(head.encode(x), kind(-15, 15).encode(x))
    assert head.encode(torch.tensor(3.0)).shape == (129,) and head.decode(
        torch.zeros(2, 0, 129)
    ).shape == (2, 0)
    torch.testing.assert_close(head.decode(torch.zeros(129)), torch.tensor(0.0), rtol=0, atol=1e-5)


@HEADS
def test_learning_by_gradient_finds_the_mean_in_symlog_space(kind):
    head, x = kind(-15, 15), torch.tensor([0.0, 100.0, 100.0, -3.0])
    logits = torch.zeros(129, requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.3)
    for _ in range(300):
        optimizer.zero_grad()
        head.loss(logits.expand(4, -1), x).mean().backward()
        optimizer.step()
    torch.testing.assert_close(
        symlog(head.decode(logits.detach())), symlog(x).mean(), rtol=0, atol=2e-2
    )


@HEADS
def test_errors(kind):
    for bad in (dict(low=1, high=1), dict(low=0, high=1, bins=1), dict(low=0, high=1, sigma=0)):
        with pytest.raises(ValueError, match="low < high"):
            kind(**bad)
    with pytest.raises(ValueError, match="logits must be"):
        # would broadcast to (4, 4) unnoticed
        kind(-1, 1).loss(torch.zeros(4, 129), torch.zeros(4, 1))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-900, 900), min_size=1, max_size=6), st.integers(0, 99))
def test_raw_mean_is_the_expectation_and_symlog_mean_is_not(values, seed):
    """Any mixture of numbers, read by Eq. (4.13), is their expectation; Eq. (4.5) has the smaller
    magnitude where all have one sign (Jensen)."""
    head = HLGauss(-7, 7, mean="raw")
    x = torch.tensor(values, dtype=torch.float64)
    p = torch.rand(
        len(x), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).softmax(0)
    logits = (p[:, None] * head.encode(x)).sum(0).log()
    mean = (p * x).sum()
    assert (head.decode(logits) - mean).abs() <= 0.004 * (1 + (p * x.abs()).sum())
    if (x >= 1).all() or (x <= -1).all():
        assert HLGauss(-7, 7).decode(logits).abs() <= mean.abs() * 1.001 + 0.01


def test_mean_must_be_known():
    with pytest.raises(ValueError, match="symlog or raw"):
        HLGauss(-7, 7, mean="median")


@settings(deadline=None, max_examples=20)
@given(
    limit=st.sampled_from([4.0, 7.0, 10.0]), bins=st.sampled_from([65, 129]), a=st.floats(-30, 30),
    b=st.floats(-30, 30), p=st.floats(0, 1)
)
def test_raw_reading_of_a_lottery_is_its_expectation(limit, bins, a, b, p):
    "Up to the kink at 0, where a number is read too large by less than half a bin's bell."
    head = HLGauss(-limit, limit, bins, mean="raw")
    a, b = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    q = (1 - p) * head.encode(a) + p * head.encode(b)
    kink = 0.4 * (head.sigma * head.width) ** 2
    slack = 1e-4 * (1 + a.abs() + b.abs()) + kink * (
        (1 - p) * (a.abs() < 4 * head.width) + p * (b.abs() < 4 * head.width)
    )
    assert (head.decode(q.clamp(min=1e-300).log()) - ((1 - p) * a + p * b)).abs() <= slack
