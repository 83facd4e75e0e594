"Vector tokens: the published grid, nearest points, error bounds, refusals."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simulus_nb.scalars import symexp, symlog
from simulus_nb.spaces import UserError
from simulus_nb.vector_tokens import VectorQuantizer, vector_grid

QUICK = settings(deadline=None, max_examples=30)


def test_published_grid():
    """32 points on [0, ln(1 + pi)], 31 more up to 6, mirrored: FACTS of the released code, written
    out with numpy."""
    half = np.concatenate(
        [np.linspace(0, np.log(1 + np.pi), 32), np.linspace(np.log(1 + np.pi), 6, 32)[1:]]
    )
    assert len(half) == 63
    want = np.concatenate([-half[:0:-1], half])
    assert np.abs(vector_grid().numpy() - want).max() < 1e-14 and len(vector_grid()) == 125


@QUICK
@given(st.integers(2, 300).map(lambda k: 2 * k + 1))
def test_any_odd_grid(n):
    g = vector_grid(n)
    assert (
        len(g) == n
        and (g.diff() > 0).all()
        and torch.equal(g, -g.flip(0))
        and g[-1] == 6
        and g[n // 2] == 0
    )
    assert torch.isclose(g, torch.tensor(math.log1p(math.pi), dtype=g.dtype)).any()
    vq = VectorQuantizer(n)
    assert torch.equal(vq.encode(vq.decode(torch.arange(n))), torch.arange(n))


@pytest.mark.parametrize("n", [0, 3, 4, 124])
def test_grid_size_refused(n):
    with pytest.raises(UserError, match="odd"):
        VectorQuantizer(n)


@QUICK
@given(st.lists(st.floats(-420, 420, width=32), min_size=1, max_size=40))
def test_nearest_and_bounded(values):
    x = torch.tensor(values, dtype=torch.float32)
    vq = VectorQuantizer()
    z = vq.encode(x)
    distance = (symlog(x.double())[:, None] - vector_grid()).abs()
    picked = distance.gather(1, z[:, None])[:, 0]
    assert (picked <= distance.min(1).values + 1e-6).all()
    inside = x.abs() <= math.expm1(6)
    step = torch.where(x.abs() < 3, math.log1p(math.pi) / 31, (6 - math.log1p(math.pi)) / 31)
    error = (x - vq.decode(z)).abs()
    assert (error <= (1 + x.abs()) * torch.expm1(step / 2) * (1 + 1e-4))[inside].all()
    assert torch.equal(vq.decode(z)[~inside], x[~inside].sign() * vq.decode(torch.tensor(124)))


@QUICK
@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=2, max_size=20))
def test_monotone_and_odd(values):
    x = torch.tensor(sorted(values))
    z = VectorQuantizer().encode(x)
    assert (z.diff() >= 0).all()
    mirrored = 124 - VectorQuantizer().encode(-x)
    # 1 apart only on a border
    assert ((z - mirrored).abs() <= 1).all() and z.min() >= 0 and z.max() <= 124


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_refused(bad):
    with pytest.raises(UserError, match="NaN or infinity"):
        VectorQuantizer().encode(torch.tensor([1.0, bad]))


def test_shapes_types_and_no_state():
    vq = VectorQuantizer()
    x = torch.randn(2, 3, 7)
    assert (
        vq.encode(x).shape == x.shape
        and vq.encode(x).dtype == torch.int64
        and vq.decode(vq.encode(x)).dtype == torch.float32
    )
    assert (
        torch.equal(vq.encode(x), vq.encode(x.double()))
        and not vq.state_dict()
        and not list(vq.parameters())
    )
    assert vq.encode(torch.zeros(0, 3)).shape == (0, 3)


def test_ends_of_the_range():
    vq = VectorQuantizer()
    assert vq.encode(torch.tensor([-1e30, 0.0, math.pi, 1e30])).tolist() == [0, 62, 93, 124]
    assert (
        torch.isclose(vq.decode(torch.tensor(124)), symexp(torch.tensor(6.0)))
        and abs(float(symexp(torch.tensor(6.0))) - 402.4288) < 1e-3
    )


@QUICK
@given(
    st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 1e5)), min_size=1, max_size=5),
    st.integers(0, 99)
)
def test_bounds_stretch_each_entry_over_the_fine_part(bounds, seed):
    """Eq. (5.4a): within its bound an entry is off by at most half a fine gap, stretched back;
    without a bound nothing changes."""
    vq, plain = VectorQuantizer(bound=bounds), VectorQuantizer()
    u = 2 * torch.rand(50, len(bounds), generator=torch.Generator().manual_seed(seed)) - 1
    b = torch.tensor(bounds)
    x = torch.where(b > 0, u * b, 100 * u)
    back = vq.decode(vq.encode(x))
    gap = float(vector_grid().diff().min()) / 2
    assert (
        (back - x).abs() <= (b + x.abs() * math.pi) * math.expm1(gap) / math.pi * 1.001 + 1e-6 * b
    )[:, b > 0].all()
    assert torch.equal(vq.encode(x)[:, b == 0], plain.encode(x)[:, b == 0])
    assert torch.equal(vq.encode(back), vq.encode(x))
