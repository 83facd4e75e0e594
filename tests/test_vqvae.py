"""VQ-VAE: nearest entry, straight-through, gradient routing, moving averages, and the tokenizer's
interface."""
import pytest
import torch
from hypothesis import given, settings, strategies as st

from simulus_nb.accelerate import rounded
from simulus_nb.spaces import UserError
from simulus_nb.vqvae import (
    VQVAE, VQVAEConfig, code_use, draw_rows, ema_update, loss_terms, nearest_entry,
    straight_through, to_float, to_uint8
)

f64 = torch.float64
few = settings(deadline=None, max_examples=25)


def tiny(quantiser="vq", in_channels=3, seed=0, **changes) -> VQVAE:
    torch.manual_seed(seed)
    config = dict(image_size=16, channels=8, stages=2, code_dim=12, vocab=20, quantiser=quantiser)
    return VQVAE(VQVAEConfig(**{**config, **changes}), in_channels)


def frames(n=6, size=16, channels=3, seed=0):
    return torch.randint(
        0, 256, (n, size, size, channels), dtype=torch.uint8,
        generator=torch.Generator().manual_seed(seed)
    )


def gradients(term, parameters):
    "Whether any of `parameters` gets a gradient other than 0."
    if not term.requires_grad:
        return False
    return any(
        g is not None and bool((g != 0).any())
        for g in torch.autograd.grad(term, list(parameters), retain_graph=True, allow_unused=True)
    )


# configuration

@pytest.mark.parametrize(
    "changes",
    [
        dict(image_size=84), dict(image_size=4), dict(image_size=0), dict(stages=0),
        dict(channels=12), dict(channels=0), dict(norm_groups=0), dict(code_dim=0), dict(vocab=1),
        dict(quantiser="k-means"), dict(ema_decay=1.0), dict(ema_decay=-0.1), dict(dead_below=-1.0),
        dict(commitment=-1.0)
    ],
)
def test_bad_configurations_are_one_line(changes):
    with pytest.raises(UserError) as error:
        VQVAEConfig(**changes)
    assert "\n" not in str(error.value) and next(iter(changes)) in str(error.value)


@pytest.mark.parametrize(
    "size, stages, grid", [(64, 3, 8), (32, 3, 4), (16, 2, 4), (24, 3, 3), (8, 3, 1)]
)
def test_grid(size, stages, grid):
    V = tiny(image_size=size, stages=stages)
    z = V.encode(frames(2, size))
    assert (
        V.grid == (grid, grid)
        and V.K == grid**2
        and z.shape == (2, V.K)
        and V.decode(z).shape == (2, 3, size, size)
    )


def test_atari_size():
    V = VQVAE(VQVAEConfig())
    counts = [sum(p.numel() for p in m.parameters()) for m in (V.encoder, V.decoder)]
    assert counts == [2_732_800, 2_732_547] and V.grid == (8, 8) and V.codebook.shape == (512, 256)


# images

@few
@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 4))
def test_bytes_survive(n, size, channels):
    x = frames(n, size, channels)
    y = to_float(x)
    assert (
        y.shape == (n, channels, size, size) and y.abs().max() <= 1 and torch.equal(to_uint8(y), x)
    )


def test_values_outside_are_cut():
    assert to_uint8(torch.tensor([-9.0, 9.0]).view(1, 1, 1, 2)).flatten().tolist() == [0, 255]


# nearest entry

@few
@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 16), st.integers(0, 999))
def test_nearest_entry_is_brute_force(m, n, d, seed):
    g = torch.Generator().manual_seed(seed)
    h, E = torch.randn(m, d, dtype=f64, generator=g), torch.randn(n, d, dtype=f64, generator=g)
    z, distance = nearest_entry(h, E)
    all_pairs = (h[:, None] - E).square().sum(-1)
    assert z.dtype == torch.int64 and torch.equal(z, all_pairs.argmin(1))
    torch.testing.assert_close(distance, all_pairs.min(1).values, rtol=1e-9, atol=1e-12)


@few
@given(
    st.lists(st.lists(st.integers(-3, 3), min_size=2, max_size=2), min_size=1, max_size=12),
    st.integers(-3, 3), st.integers(-3, 3)
)
def test_ties_go_to_the_first(entries, a, b):
    # whole numbers: exact
    E, h = torch.tensor(entries, dtype=torch.float32), torch.tensor([[a, b]], dtype=torch.float32)
    exact = (h - E).square().sum(-1)
    assert nearest_entry(h, E)[0].item() == (exact == exact.min()).nonzero()[0].item()


def test_entries_are_their_own_nearest_at_distance_zero():
    E = torch.randn(30, 8, generator=torch.Generator().manual_seed(0)) * 100
    z, distance = nearest_entry(E, E)
    assert torch.equal(z, torch.arange(30)) and (distance >= 0).all() and distance.max() < 1


def test_distances_keep_full_precision():
    """Two entries that bfloat16 cannot tell apart stay two entries when the rest of V is rounded to
    it."""
    V = tiny()
    V.codebook[0], V.codebook[1] = 1.0, 1.001
    with rounded([V], torch.bfloat16):
        assert V.encoder[0].weight.dtype == torch.bfloat16 and V.codebook.dtype == torch.float32
        z, _ = nearest_entry(V.codebook[:2].clone(), V.codebook)
    assert z.tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_vector_quantize_pytorch(seed):
    torch.manual_seed(seed)
    V = tiny()
    library = (
        pytest.importorskip("vector_quantize_pytorch")
        .VectorQuantize(dim=12, codebook_size=20)
        .eval()
    )
    library._codebook.embed.copy_(V.codebook[None])
    h = torch.randn(3, 16, 12)
    quantised, indices, _ = library(h)
    z = nearest_entry(h.flatten(0, 1), V.codebook)[0].view(3, 16)
    assert torch.equal(z, indices)
    torch.testing.assert_close(V.embed(z), quantised)
    torch.testing.assert_close(straight_through(h, V.embed(z)), quantised)


# straight-through

@few
@given(st.integers(1, 5), st.integers(1, 8), st.integers(0, 999))
def test_straight_through(m, d, seed):
    g = torch.Generator().manual_seed(seed)
    h, e, arriving = (torch.randn(m, d, generator=g) for _ in range(3))
    h.requires_grad_()
    e.requires_grad_()
    out = straight_through(h, e)
    to_h, to_e = torch.autograd.grad(out, (h, e), arriving, allow_unused=True)
    assert torch.equal(out, e) and torch.equal(to_h, arriving) and to_e is None


# the loss

@pytest.mark.parametrize("quantiser", ["vq", "vq-gradient"])
def test_each_term_moves_its_own_part(quantiser):
    V = tiny(quantiser).eval()
    judge = lambda x, y: (x - y).abs().mean((1, 2, 3))
    terms, h, z, distance = loss_terms(V, frames(), judge)
    moves = {
        name: [
            gradients(t, V.encoder.parameters()), gradients(t, V.decoder.parameters()),
            quantiser == "vq-gradient" and gradients(t, [V.codebook])
        ]
        for name, t in terms.items()
    }
    assert moves == dict(
        pixel=[True, True, False], perceptual=[True, True, False],
        codebook=[False, False, quantiser == "vq-gradient"], commitment=[True, False, False]
    )


@pytest.mark.parametrize("quantiser", ["vq", "vq-gradient"])
@pytest.mark.parametrize("beta", [1.0, 0.25])
def test_loss_is_the_sum_of_its_terms(quantiser, beta):
    V, x = tiny(quantiser, commitment=beta).double().eval(), frames()
    judge = lambda x, y: (x - y).abs().mean((1, 2, 3))
    loss, metrics = V.loss(x, judge)
    h, z = V.features(x), V.encode(x)
    e = V.embed(z)
    y = V.render(e)
    parts = [
        (to_float(x, f64) - y).square().mean(), judge(to_float(x, f64), y).mean(),
        beta * (h - e).square().mean()
    ]
    if quantiser == "vq-gradient":
        parts.append((h - e).square().mean())
    torch.testing.assert_close(loss, sum(parts), rtol=1e-9, atol=0)
    assert all(m.ndim == 0 and not m.requires_grad for m in metrics.values())
    torch.testing.assert_close(metrics["loss"], loss.detach().float())


def test_decoder_sees_in_training_what_it_will_decode():
    V, x = tiny().eval(), frames()
    painted = []
    V.loss(x, lambda a, b: painted.append(b) or b.mean((1, 2, 3)))
    torch.testing.assert_close(painted[0].clamp(-1, 1), V.decode(V.encode(x)), rtol=1e-5, atol=1e-6)


def test_averages_are_out_of_the_optimisers_reach():
    V = tiny("vq")
    assert not any("table" in name for name, _ in V.named_parameters())
    assert {f"table.{name}" for name in ("entries", "count", "total", "started")} <= set(
        V.state_dict()
    )
    assert "table.entries" in dict(tiny("vq-gradient").named_parameters())


# moving averages

@few
@given(st.integers(1, 40), st.integers(1, 9), st.floats(0, 0.99), st.integers(0, 999))
def test_ema_update_is_the_loop(m, n, decay, seed):
    g = torch.Generator().manual_seed(seed)
    h, z = torch.randn(m, 3, dtype=f64, generator=g), torch.randint(0, n, (m,), generator=g)
    count, total = (
        torch.rand(n, dtype=f64, generator=g) + 0.1, torch.randn(n, 3, dtype=f64, generator=g)
    )
    new_count, new_total, entries = ema_update(count, total, h, z, decay)
    expected_count, expected_total = decay * count, decay * total
    for row, token in zip(h, z.tolist()):
        expected_count[token] += 1 - decay
        expected_total[token] += (1 - decay) * row
    torch.testing.assert_close(new_count, expected_count, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(new_total, expected_total, rtol=1e-9, atol=1e-12)
    everything = expected_count.sum()
    smooth = (expected_count + 1e-5) / (everything + n * 1e-5) * everything
    torch.testing.assert_close(entries, expected_total / smooth[:, None], rtol=1e-9, atol=1e-12)


def test_training_step_moves_entries_by_the_averages():
    V, x = tiny(dead_below=0.0).double(), frames()
    V.loss(x)                                                   # the first batch sets the entries
    before = {name: value.clone() for name, value in V.state_dict().items()}
    z = nearest_entry(V.features(x).flatten(0, 1), V.codebook)[0]
    V.loss(x)
    count, total, entries = ema_update(
        before["table.count"], before["table.total"], V.features(x).detach().flatten(0, 1), z, 0.99
    )
    for name, value in dict(count=count, total=total, entries=entries).items():
        torch.testing.assert_close(getattr(V.table, name), value, rtol=1e-9, atol=1e-12)


def test_first_batch_sets_the_entries_once():
    V, x = tiny("vq-gradient"), frames()
    V.eval().loss(x)
    assert not V.table.started
    random = V.codebook.detach().clone()
    V.train().loss(x)
    assert V.table.started and not torch.equal(V.codebook, random)
    rows = V.features(x).flatten(0, 1)
    # each entry is a vector of the batch
    assert torch.cdist(V.codebook, rows).min(1).values.max() < 1e-3
    entries = V.codebook.detach().clone()
    V.loss(frames(seed=1))
    assert torch.equal(V.codebook, entries)


def test_dead_entries_return_to_the_batch():
    V, x = tiny(), frames()
    V.loss(x)
    with torch.no_grad():
        V.codebook[3:7] = 1e3                                        # nobody chooses these
        V.table.total[3:7] = 1e3
        V.table.count[3:7] = 0.4
    _, metrics = V.loss(x)
    assert metrics["reseeded"] >= 4 and V.codebook.abs().max() < 100
    rows = V.features(x).flatten(0, 1)
    assert (
        torch.cdist(V.codebook[3:7], rows).min(1).values.max() < 1e-3
        and (V.table.count[3:7] == 1).all()
    )


def test_evaluation_changes_nothing():
    V = tiny()
    V.loss(frames())
    V.eval()
    before = {name: value.clone() for name, value in V.state_dict().items()}
    V.loss(frames(seed=1))
    V.encode(frames(seed=2))
    V.decode(torch.zeros(1, V.K, dtype=torch.int64))
    assert all(torch.equal(value, before[name]) for name, value in V.state_dict().items())


@pytest.mark.parametrize("quantiser", ["vq", "vq-gradient"])
def test_same_seed_same_training(quantiser):
    def run():
        V = tiny(quantiser, ema_decay=0.5)                  # a short memory: entries die and return
        optimiser = torch.optim.AdamW(V.parameters(), lr=1e-3)
        for seed in range(8):
            optimiser.zero_grad()
            V.loss(frames(seed=seed))[0].backward()
            optimiser.step()
        return V.state_dict()
    first, second = run(), run()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("quantiser", ["vq", "vq-gradient"])
def test_training_lowers_the_loss(quantiser):
    V, x = (
        tiny(quantiser, commitment=0.1),
        frames(4, channels=1).expand(-1, -1, -1, 3).clone() // 128 * 255
    )
    x[:, :, :8] = 0                                                  # half of each picture is black
    optimiser, losses = torch.optim.AdamW(V.parameters(), lr=2e-3), []
    for _ in range(60):
        loss, metrics = V.loss(x)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(metrics["pixel"].item())
    assert losses[-1] < 0.6 * losses[0]


# drawing and counting

@few
@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 999))
def test_draw_rows(m, n, seed):
    torch.manual_seed(seed)
    x = torch.arange(float(m))[:, None]
    rows = draw_rows(x, torch.rand(m) + 0.1, n)
    assert rows.shape == (n, 1)
    counts = rows.flatten().long().bincount(minlength=m)
    # no row twice before all are used
    assert counts.max() - counts.min() <= 1 and (n > m or counts.max() == 1)


def test_draw_rows_follows_the_weights():
    torch.manual_seed(0)
    weight = torch.tensor([0.0, 1.0, 4.0])
    drawn = (
        torch.cat([draw_rows(torch.arange(3.0)[:, None], weight, 1) for _ in range(1500)])
        .flatten()
        .long()
        .bincount(minlength=3)
        / 1500
    )
    torch.testing.assert_close(drawn, weight / 5, atol=0.04, rtol=0)


def test_draw_rows_when_all_fit_perfectly():
    assert draw_rows(torch.ones(4, 2), torch.zeros(4), 3).isfinite().all()


@few
@given(st.integers(1, 8), st.integers(1, 5), st.integers(0, 4))
def test_code_use(used, times, unused):
    share, perplexity = code_use(torch.arange(used).repeat(times), used + unused)
    assert float(share) == pytest.approx(used / (used + unused)) and float(
        perplexity
    ) == pytest.approx(used, rel=1e-4)


# the interface

def test_rows_do_not_mix_and_chunks_do_not_matter():
    V, x = tiny().eval(), frames(9)
    V.train().loss(x)
    V.eval()
    z = V.encode(x)
    assert torch.equal(V.encode(x, batch=2), z) and torch.equal(V.encode(x.flip(0)).flip(0), z)
    y = x.clone()
    y[4:] = 0
    assert torch.equal(V.encode(y)[:4], z[:4])
    torch.testing.assert_close(V.decode(z)[:4], V.decode(z[:4]))


def test_encode_takes_bytes_floats_and_arrays_without_gradient():
    V, x = tiny(), frames()
    z = V.encode(x)
    assert z.dtype == torch.int64 and 0 <= z.min() and z.max() < 20
    assert torch.equal(V.encode(to_float(x)), z) and torch.equal(V.encode(x.numpy()), z)
    assert V.encode(x[:0]).shape == (0, V.K)


def test_grey_pictures_and_the_range_of_decode():
    V = tiny(in_channels=1)
    y = V.decode(V.encode(frames(channels=1)))
    assert (
        y.shape == (6, 1, 16, 16) and y.abs().max() <= 1 and V.to_uint8(y).shape == (6, 16, 16, 1)
    )


@pytest.mark.parametrize("shape", [(2, 32, 32, 3), (2, 16, 16, 1), (2, 16, 8, 3), (2, 3, 16, 16)])
def test_pictures_of_another_shape_are_refused(shape):
    with pytest.raises(UserError, match="16x16 pixels and 3 channels"):
        tiny().encode(torch.zeros(shape, dtype=torch.uint8))


@pytest.mark.parametrize("quantiser", ["vq", "vq-gradient"])
def test_saved_and_loaded(quantiser):
    V, W, x = tiny(quantiser), tiny(quantiser, seed=1), frames()
    V.loss(x)
    W.load_state_dict(V.state_dict())
    assert torch.equal(V.encode(x), W.encode(x))
    W.loss(x)
    # already started: the entries stay
    assert quantiser == "vq" or torch.equal(W.codebook, V.codebook)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("quantiser", ["vq", "vq-gradient"])
def test_no_host_synchronisation(quantiser):
    V, x = tiny(quantiser).cuda(), frames().cuda()
    V.loss(x)[0].backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        V.loss(x)[0].backward()
        V.encode(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
