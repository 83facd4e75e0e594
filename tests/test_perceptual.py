"""LPIPS: the metric's properties, its frozen parameters, reproducible random weights, and errors
that fail fast."""
import hashlib
import io
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings, strategies as st

from simulus_nb import perceptual
from simulus_nb.perceptual import (
    PerceptualLoss, fetch_vgg, import_lpips, lpips_frame, make_perceptual, unit_channels
)
from simulus_nb.spaces import UserError


@pytest.fixture(scope="module")
def loss() -> PerceptualLoss:
    return make_perceptual("random")


def pictures(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def trunk_state(loss) -> dict:
    "A torchvision-style state dict of the trunk."
    return {
        f"features.{name.split('.', 1)[1]}": p.clone() for name, p in loss.slices.named_parameters()
    }


def test_zero_on_equal_pictures_and_symmetric(loss):
    x, y = pictures(2, 3, 32, 32), pictures(2, 3, 32, 32, seed=1)
    assert (loss(x, x) == 0).all() and (loss(x, y) > 0).all()
    torch.testing.assert_close(loss(x, y), loss(y, x))


@settings(deadline=None, max_examples=6)
@given(st.integers(1, 3), st.integers(16, 40), st.integers(16, 40), st.integers(0, 99))
def test_equals_the_package(loss, batch, height, width, seed):
    package = lpips_frame()
    for mine, theirs in zip(loss.slices.parameters(), package.net.parameters(), strict=True):
        theirs.copy_(mine)
    x, y = (
        pictures(batch, 3, height, width, seed=seed),
        pictures(batch, 3, height, width, seed=seed + 1)
    )
    torch.testing.assert_close(loss(x, y), package(x, y).flatten())


def test_heads_are_the_learnt_ones_and_not_negative(loss):
    package = import_lpips()
    saved = torch.load(
        Path(package.__file__).parent / "weights/v0.1/vgg.pth", map_location="cpu",
        weights_only=True
    )
    for l, head in enumerate(loss.heads):
        assert (
            torch.equal(head.weight, saved[f"lin{l}.model.1.weight"]) and (head.weight >= 0).all()
        )


def test_gradient_reaches_the_painting_and_not_the_parameters(loss):
    x, y = pictures(2, 3, 32, 32), pictures(2, 3, 32, 32, seed=1).requires_grad_()
    loss(x, y).sum().backward()
    assert y.grad.isfinite().all() and (y.grad.abs().sum((1, 2, 3)) > 0).all()
    assert all(not p.requires_grad and p.grad is None for p in loss.parameters())


def test_training_mode_changes_nothing(loss):
    x, y = pictures(2, 3, 32, 32), pictures(2, 3, 32, 32, seed=1)
    expected = loss(x, y)
    try:
        assert torch.equal(loss.train()(x, y), expected)  # no dropout in the heads
    finally:
        loss.eval()


def test_gradient_is_finite_where_all_channels_are_silent():
    f = torch.zeros(1, 4, 2, 2, requires_grad=True)
    unit_channels(f).sum().backward()
    assert f.grad.isfinite().all()


def test_rows_do_not_mix_and_grey_is_three_equal_colours(loss):
    x, y = pictures(3, 1, 32, 32), pictures(3, 1, 32, 32, seed=1)
    torch.testing.assert_close(loss(x, y), loss(x.repeat(1, 3, 1, 1), y.repeat(1, 3, 1, 1)))
    torch.testing.assert_close(loss(x, y)[1:2], loss(x[1:2], y[1:2]))


def test_random_is_reproducible_and_leaves_the_global_generator_alone(loss):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    other = make_perceptual("random")
    assert torch.equal(before, torch.get_rng_state())
    for a, b in zip(loss.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    # not all alike
    assert len({float(p.sum()) for p in other.slices.parameters() if p.dim() == 4}) == 13


def test_none_is_none():
    assert make_perceptual("none") is None


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_from_a_local_file(tmp_path, loss, suffix):
    state = trunk_state(loss)
    state["features.0.weight"] = state["features.0.weight"] + 1
    state["classifier.6.bias"] = torch.zeros(1000)                       # a whole VGG16 is welcome
    path = tmp_path / f"vgg{suffix}"
    torch.save(state, path) if suffix == ".pth" else safetensors.torch.save_file(state, path)
    local = make_perceptual(str(path))
    assert torch.equal(local.slices[0][0].weight, state["features.0.weight"])
    assert torch.equal(local.slices[4][-2].weight, state["features.28.weight"])


def check_line(error, *words):
    line = str(error.value)
    assert "\n" not in line and all(
        word in line for word in ("--tokenizer.image.perceptual", *words)
    ), line


def test_unusable_files_are_one_line(tmp_path, loss):
    state = trunk_state(loss)
    del state["features.28.bias"]
    torch.save(state, tmp_path / "cut.pth")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    for name in ("missing.pth", "cut.pth", "junk.pth", "tensor.pth"):
        with pytest.raises(UserError) as error:
            make_perceptual(str(tmp_path / name))
        check_line(error, name, "none", "random", "path")


def test_pickled_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))
    torch.save({"features.0.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError):
        make_perceptual(str(tmp_path / "evil.pth"))
    assert not (tmp_path / "ran").exists()


def test_no_network_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        assert kwargs["timeout"] <= 30                                   # never without a limit
        raise OSError("no route to host")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(UserError) as error:
        make_perceptual("vgg")
    check_line(error, "no route to host", "none", "random", "path")
    assert not list(tmp_path.rglob("*.p*"))


def serve(monkeypatch, tmp_path, data, name):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(perceptual, "VGG_URL", f"https://example.invalid/{name}")
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: io.BytesIO(data))


def test_download_is_kept_whole(tmp_path, monkeypatch):
    data = b"weights" * 1000
    serve(monkeypatch, tmp_path, data, f"vgg16-{hashlib.sha256(data).hexdigest()[:8]}.pth")
    path = fetch_vgg()
    assert path.read_bytes() == data
    monkeypatch.setattr("urllib.request.urlopen", None)     # the second time comes from the cache
    assert fetch_vgg() == path and [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_damaged_or_cut_download_leaves_nothing(tmp_path, monkeypatch):
    serve(monkeypatch, tmp_path, b"half", "vgg16-00000000.pth")
    with pytest.raises(UserError, match="damaged"):
        fetch_vgg()
    class Cut(io.BytesIO):
        def read(self, n=-1):
            raise TimeoutError("timed out")
    monkeypatch.setattr("urllib.request.urlopen", lambda *a, **k: Cut())
    with pytest.raises(UserError, match="timed out"):
        fetch_vgg()
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize("shape", [(1, 3, 8, 32), (1, 4, 32, 32), (1, 2, 32, 32)])
def test_pictures_it_cannot_judge(loss, shape):
    with pytest.raises(UserError):
        loss(torch.zeros(shape), torch.zeros(shape))
