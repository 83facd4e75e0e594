"""Checkpoints: exact round trips, damage of every kind, interrupted saves, optimisers and random
numbers."""
import json
import os
import random
import shutil
import tempfile
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from torch import nn

from simulus_nb import checkpoint as cp
from simulus_nb.checkpoint import (
    ROWS, CheckpointWarning, flatten_optimizer, has_saves, is_whole, load_checkpoint, load_module,
    pack_rows, plain_tensors, restore_optimizer, rng_state, save_checkpoint, set_rng_state,
    unpack_rows
)
from simulus_nb.files import (
    FORMAT, DamagedError, file_digest, manifest_digest, own_name, read_manifest, write_atomic
)
from simulus_nb.spaces import UserError

DTYPES = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16,
    torch.bfloat16, torch.float32, torch.float64
]


def same(a, b):
    "Same dtype, shape and bytes (so that nan equals nan and -0.0 differs from 0.0)."
    raw = lambda t: (
        t.contiguous().numpy(force=True).tobytes()
        if t.dtype != torch.bfloat16
        else t.contiguous().view(torch.int16).numpy().tobytes()
    )
    return a.dtype == b.dtype and a.shape == b.shape and raw(a) == raw(b)


def random_bits(shape, dtype, seed):
    "A tensor of arbitrary bit patterns: nan, infinities and subnormals included."
    rng = np.random.default_rng(seed)
    if dtype == torch.bool:
        return torch.from_numpy(rng.integers(0, 2, shape).astype(bool).reshape(shape))
    size = torch.empty(0, dtype=dtype).element_size()
    flat = torch.from_numpy(
        np.frombuffer(rng.bytes(int(np.prod(shape)) * size), dtype=np.uint8).copy()
    )
    return flat.view(dtype).reshape(shape) if flat.numel() else torch.zeros(shape, dtype=dtype)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=4)), max_size=6
    ),
    st.integers(0, 99),
    st.booleans(),
)
def test_round_trip(kinds, seed, permute):
    tensors = {
        f"t{i}": random_bits(shape, dtype, seed + i) for i, (dtype, shape) in enumerate(kinds)
    }
    if permute:
        # not contiguous, shared with the first
        tensors |= {
            f"view.{k}": t.permute(tuple(reversed(range(t.ndim)))) for k, t in tensors.items()
        }
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(folder, {"a": tensors, "b": {}}, {"seed": seed})
        back = load_checkpoint(folder)
    assert (
        back.meta == {"seed": seed}
        and back.tensors.keys() == {"a", "b"}
        and back.tensors["a"].keys() == tensors.keys()
    )
    assert all(same(back.tensors["a"][k], t) for k, t in tensors.items())


def test_shared_storage_and_slices(tmp_path):
    big = torch.arange(10_000.)
    tied = {
        "whole": big, "again": big, "slice": big[100:110], "stride": big[::1000],
        "expand": big[:1].expand(5), "scalar": big[7]
    }
    assert len({t.untyped_storage().data_ptr() for t in plain_tensors(tied).values()}) == len(tied)
    save_checkpoint(tmp_path, {"g": tied, "small": {"x": big[3:5]}}, {})
    back = load_checkpoint(tmp_path).tensors
    assert all(same(back["g"][k], t) for k, t in tied.items())
    # the slice, not its storage
    assert next(tmp_path.glob("save-*/small.safetensors")).stat().st_size < 1000
    back["g"]["whole"].zero_()                                  # loaded tensors are their owner's
    assert same(load_checkpoint(tmp_path).tensors["g"]["whole"], big) and back["g"]["again"][7] == 7


def test_parameters_and_json(tmp_path):
    rng = np.random.default_rng(3)
    rng.random(5)
    meta = {
        "a": [1, 2.5, None, True, "x"], "tiny": 5e-324, "third": 1 / 3,
        "numpy": rng.bit_generator.state, "text": "Zürich 世界"
    }
    save_checkpoint(tmp_path, {"net": {"w": nn.Parameter(torch.ones(2, requires_grad=True))}}, meta)
    back = load_checkpoint(tmp_path)
    assert back.meta == meta and not back.tensors["net"]["w"].requires_grad
    other = np.random.default_rng(0)
    other.bit_generator.state = back.meta["numpy"]
    assert other.random() == rng.random()
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path, {}, {"tensor": torch.ones(1)})
    assert load_checkpoint(tmp_path).meta == meta


def test_groups(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in"):
        load_checkpoint(tmp_path / "nowhere")
    path = save_checkpoint(
        tmp_path, {g: {"x": torch.ones(1)} for g in ("tokenizer", "controller", "replay")}, {}
    )
    (path / "replay.safetensors").write_bytes(b"")              # what is not asked for is not read
    assert list(load_checkpoint(tmp_path, groups=("controller", "tokenizer")).tensors) == [
        "controller", "tokenizer"
    ]
    with pytest.raises(UserError, match="no group 'optimizer'.*controller"):
        load_checkpoint(tmp_path, groups=("optimizer",))
    for bad in ("../escape", "a/b", "", ".hidden"):
        with pytest.raises(UserError, match="no name for a group"):
            save_checkpoint(tmp_path, {bad: {}}, {})


def test_keeps_two_and_cleans_up(tmp_path):
    for epoch in range(5):
        save_checkpoint(tmp_path, {"w": {"x": torch.tensor(epoch)}}, {"epoch": epoch})
        mine = own_name(tmp_path).name.split("-")
        (tmp_path / "-".join([*mine[:2], "999999999", mine[3]])).mkdir()    # of a killed process
    save_checkpoint(tmp_path, {"w": {"x": torch.tensor(5)}}, {"epoch": 5})
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "LATEST", "save-00000005", "save-00000006"
    ]
    (tmp_path / "LATEST").write_text("save-00000005")                       # going back on purpose
    assert load_checkpoint(tmp_path).meta["epoch"] == 4
    save_checkpoint(tmp_path, {}, {"epoch": 9})
    assert sorted(p.name for p in tmp_path.glob("save-*")) == ["save-00000005", "save-00000007"]


def test_the_save_to_keep_can_be_named(tmp_path):
    first, second = two_saves(tmp_path)
    (second / "net.safetensors").write_bytes(b"")
    with pytest.warns(CheckpointWarning):
        assert load_checkpoint(tmp_path).path == first
    third = save_checkpoint(tmp_path, {}, {}, keep=first)
    assert sorted(tmp_path.glob("save-*")) == [first, third]


def test_a_caller_can_refuse_what_it_read(tmp_path):
    first, second = two_saves(tmp_path)
    def use(found):
        if found.meta["epoch"] == 2:
            raise DamagedError("too new for me")
    with pytest.warns(CheckpointWarning, match="too new for me"):
        assert load_checkpoint(tmp_path, use=use).path == first


def test_large_numbers(tmp_path):
    (tmp_path / "save-99999999").mkdir()                            # the next one has nine digits
    assert save_checkpoint(tmp_path, {}, {"a": 1}).name == "save-100000000" and load_checkpoint(
        tmp_path
    ).meta == {"a": 1}


def test_is_whole(tmp_path):
    assert not is_whole(tmp_path) and not has_saves(tmp_path)
    _, second = two_saves(tmp_path)
    assert is_whole(tmp_path) and has_saves(tmp_path)
    (second / "replay.safetensors").write_bytes(b"")
    assert not is_whole(tmp_path) and has_saves(tmp_path)


def test_write_atomic(tmp_path, monkeypatch):
    write_atomic(tmp_path / "a.json", "old")
    with monkeypatch.context() as m:
        m.setattr(os, "fsync", failing(os, "fsync", 1, OSError(28, "No space left on device")))
        with pytest.raises(OSError):
            write_atomic(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 3 * ROWS), st.sampled_from(DTYPES),
    st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 99)
)
def test_packed_rows_come_back(n, dtype, shape, seed):
    table = random_bits([n + 1, *shape], dtype, seed)
    index = torch.randperm(n + 1)[:n]
    before, packed = table.clone(), pack_rows(table, index)
    back = list(unpack_rows(packed, n, table))
    assert same(torch.cat(back) if back else table[:0], table[index]) and same(table, before)
    assert all(t.ndim == 1 and t.is_contiguous() for t in packed.values()) and len(
        packed["ends"]
    ) == -(-n // ROWS)


def test_still_pictures_cost_nothing():
    packed = pack_rows(
        torch.randint(256, (1, 64, 64, 3), dtype=torch.uint8).expand(ROWS, -1, -1, -1),
        torch.arange(ROWS)
    )
    assert packed["bytes"].nbytes < 64 * 64 * 3 * 2     # one picture, and a line per 32 KB of zeros


def test_packed_rows_of_another_size_are_damage():
    table = torch.randint(256, (300, 100), dtype=torch.uint8)
    good = pack_rows(table, torch.arange(300))
    swap = lambda **change: {**good, **change}
    bomb = torch.tensor(list(zlib.compress(bytes(50_000_000))), dtype=torch.uint8)
    wrong = [
        (good, 299),
        (good, 301),
        (good, 0),
        (swap(ends=good["ends"].flip(0)), 300),
        (swap(ends=good["ends"][:2]), 300),
        (swap(ends=good["ends"] + 2**40), 300),
        (swap(ends=-good["ends"]), 300),
        (swap(bytes=good["bytes"][:-1]), 300),
        (swap(bytes=good["bytes"].flip(0)), 300),
        (swap(bytes=good["bytes"].float()), 300),
        ({"bytes": bomb, "ends": torch.tensor([len(bomb)] * 3)}, 300),
        (
            {"bytes": torch.cat([bomb, bomb, bomb]), "ends": torch.tensor([1, 2, 3]) * len(bomb)},
            300
        ),
    ]
    for packed, n in wrong:
        with pytest.raises(DamagedError, match="packed rows"):
            list(unpack_rows(packed, n, table))


# ---------------------------------------------------------------- damage

def two_saves(folder):
    saves = [
        save_checkpoint(
            folder,
            {"net": {"x": torch.full((50,), float(e))}, "replay": {"y": torch.arange(200) + e}},
            {"epoch": e}
        )
        for e in (1, 2)
    ]
    return saves


FILES = ["net.safetensors", "replay.safetensors", "meta.json", "manifest.json"]


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(FILES),
    st.sampled_from(["flip", "cut", "grow", "empty", "remove", "folder", "noise"]),
    st.integers(0, 10**6)
)
def test_damage_is_named_and_falls_back(name, how, where):
    with tempfile.TemporaryDirectory() as folder:
        first, second = two_saves(folder)
        path = second / name
        content = bytearray(path.read_bytes())
        at = where % len(content)
        if how == "flip":
            content[at] ^= 1 << where % 8
        elif how == "cut":
            content = content[:at]
        elif how == "grow":
            content += b"\0"
        elif how == "noise":
            content = bytearray(np.random.default_rng(where).bytes(len(content)))
        path.unlink()
        if how == "folder":
            path.mkdir()
        elif how != "remove":
            path.write_bytes(b"" if how == "empty" else content)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = load_checkpoint(folder)
        except UserError as e:
            # "format": 1 became 3, 5, 9
            assert "newer" in str(e) and name == "manifest.json" and how == "flip"
            return
        if found.path == second:        # only the manifest has bytes that mean nothing (its spaces)
            assert (
                name == "manifest.json"
                and how in ("flip", "grow", "cut")
                and found.meta["epoch"] == 2
            )
            return
        assert (
            found.path == first
            and found.meta["epoch"] == 1
            and torch.equal(found.tensors["net"]["x"], torch.ones(50))
        )
        assert (
            len(caught) == 1
            and str(path) in str(caught[0].message)
            and "\n" not in str(caught[0].message)
        )
        shutil.rmtree(first)
        with pytest.raises(DamagedError, match=name):
            load_checkpoint(folder)


def test_messages(tmp_path):
    path = save_checkpoint(
        tmp_path, {"net": {"x": torch.ones(50)}, "other": {"x": torch.zeros(50)}}, {}
    )
    net, other = path / "net.safetensors", path / "other.safetensors"
    good = net.read_bytes(), other.read_bytes()
    def message():
        with pytest.raises(DamagedError) as e:
            load_checkpoint(tmp_path)
        assert "\n" not in str(e.value)
        return str(e.value)
    net.write_bytes(good[0][:-1])
    assert f"{net} has {len(good[0]) - 1} bytes where the manifest says {len(good[0])}" in message()
    # swapped
    net.write_bytes(good[1])
    other.write_bytes(good[0])
    assert "net.safetensors does not match its checksum" in message()
    net.unlink()
    assert f"{net} is missing" in message()
    net.write_bytes(good[0])
    other.write_bytes(good[1])
    load_checkpoint(tmp_path)


def forge(save, change):
    "Rewrite the manifest with `change` applied, its own digest made right again."
    manifest = json.loads((save / "manifest.json").read_text())
    change(manifest)
    manifest["digest"] = manifest_digest(manifest.get("files"))
    (save / "manifest.json").write_text(json.dumps(manifest))


def test_forged_manifests(tmp_path):
    path = save_checkpoint(tmp_path, {"net": {"x": torch.ones(50)}}, {})
    original = (path / "manifest.json").read_text()
    def drop_meta(m):
        del m["files"]["meta.json"]
    def no_table(m):
        m["files"] = [1, 2]
    def no_entry(m):
        m["files"]["net.safetensors"] = "fine"
    def no_digest(m):
        del m["files"]["net.safetensors"]["sha256"]
    def old(m):
        m["format"] = 0
    def escape(m):
        m["files"]["../../secret.safetensors"] = m["files"].pop("net.safetensors")
    for change in (drop_meta, no_table, no_entry, no_digest, old, escape):
        (path / "manifest.json").write_text(original)
        forge(path, change)
        with pytest.raises(DamagedError, match=r"\.json|net\.safetensors"):
            load_checkpoint(tmp_path)
    (path / "manifest.json").write_text(original)
    # digests right, contents nonsense
    (path / "net.safetensors").write_bytes(b"not a tensor file at all")
    def reseal(m):
        m["files"]["net.safetensors"] = {
            "size": 24, "sha256": file_digest(path / "net.safetensors")
        }
    forge(path, reseal)
    with pytest.raises(DamagedError, match="net.safetensors is not readable"):
        load_checkpoint(tmp_path)
    (path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(DamagedError, match="manifest.json"):
        read_manifest(path)


def test_newer_format_is_no_damage(tmp_path):
    _, second = two_saves(tmp_path)
    def newer(m):
        m["format"] = FORMAT + 1
    forge(second, newer)
    with pytest.raises(UserError, match="newer than 1: update"):  # no silent step back to the first
        load_checkpoint(tmp_path)


def test_bad_pointer(tmp_path):
    _, second = two_saves(tmp_path)
    for text in (b"", b"save-99999999", b"../elsewhere", b"\xff\xfe"):
        (tmp_path / "LATEST").write_bytes(text)
        assert load_checkpoint(tmp_path).path == second
    (tmp_path / "LATEST").unlink()
    assert load_checkpoint(tmp_path).path == second


# ---------------------------------------------------------------- interrupted saves

def failing(module, name, at, error):
    "A monkeypatch of module.name that raises at its `at`-th call."
    original, calls = getattr(module, name), [0]
    def patched(*args, **kwargs):
        calls[0] += 1
        if calls[0] == at:
            raise error
        return original(*args, **kwargs)
    return patched


STEPS = [
    (os, "rename", 1), (os, "replace", 1), *((os, "fsync", k) for k in range(1, 8)),
    *((cp, "save_file", k) for k in (1, 2)), (cp, "file_digest", 2)
]


@pytest.mark.parametrize("kind", ["full", "killed"])
@pytest.mark.parametrize("module, name, at", STEPS, ids=lambda v: getattr(v, "__name__", v))
def test_interrupted_save(tmp_path, monkeypatch, module, name, at, kind):
    two_saves(tmp_path)
    error = (
        KeyboardInterrupt()
        if kind == "killed"
        else SafetensorError("I/O error: No space left on device")
        if name == "save_file"
        else OSError(28, "No space left on device")
    )
    tensors = {"net": {"x": torch.full((50,), 3.0)}, "replay": {"y": torch.arange(200)}}
    with monkeypatch.context() as m:
        m.setattr(module, name, failing(module, name, at, error))
        with pytest.raises(
            KeyboardInterrupt if kind == "killed" else UserError,
            match=None if kind == "killed" else "No space left"
        ):
            save_checkpoint(tmp_path, tensors, {"epoch": 3})
    with warnings.catch_warnings():
        warnings.simplefilter("error")                  # not even a warning: what is there is whole
        found = load_checkpoint(tmp_path)
    assert (
        found.meta["epoch"] in (2, 3) and (found.tensors["net"]["x"] == found.meta["epoch"]).all()
    )
    if name != "fsync":
        assert found.meta["epoch"] == 2
    save_checkpoint(tmp_path, tensors, {"epoch": 4})                # and the next save goes through
    assert (
        load_checkpoint(tmp_path).meta["epoch"] == 4
        and not list(tmp_path.glob(".partial-*"))
        and len(list(tmp_path.glob("save-*"))) == 2
    )


def test_unwritable(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write a checkpoint"):
        save_checkpoint(tmp_path / "file", {}, {})
    with pytest.raises(UserError, match="no checkpoint"):
        load_checkpoint(tmp_path / "file")


def test_nothing_executable(tmp_path):
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    tensors, meta = flatten_optimizer(optimizer)
    path = save_checkpoint(
        tmp_path, {"net": net.state_dict(), "optimizer": tensors, "random": rng_state()},
        {"optimizer": meta}
    )
    assert {p.suffix for p in path.iterdir()} == {".json", ".safetensors"}
    for p in path.iterdir():
        content = p.read_bytes()
        assert not content.startswith((b"\x80", b"PK"))     # pickle protocol 2+, zip of torch.save
        # length, JSON header, raw numbers that fill the rest exactly
        if p.suffix == ".safetensors":
            n = int.from_bytes(content[:8], "little")
            header = json.loads(content[8 : 8 + n])
            assert (
                max(
                    (v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"),
                    default=0
                )
                == len(content) - 8 - n
            )


# ---------------------------------------------------------------- modules, optimisers, random
# numbers

def test_load_module():
    net, other = nn.Linear(4, 2), nn.Linear(4, 2)
    load_module(other, net.state_dict(), "net")
    assert torch.equal(net.weight, other.weight) and torch.equal(net.bias, other.bias)
    before = other.weight.clone()
    with pytest.raises(UserError) as e:
        load_module(other, {"weight": torch.zeros(3, 4), "extra": torch.zeros(1)}, "actor")
    assert (
        str(e.value)
        == "the saved actor does not fit this configuration (missing: bias; unexpected: extra; "
           "wrong shape: weight (3, 4) instead of (2, 4))"
    )
    with pytest.raises(UserError, match="and 15 more"):
        load_module(nn.Sequential(*[nn.Linear(1, 1) for _ in range(10)]), {}, "deep")
    assert torch.equal(other.weight, before)                            # nothing loaded by halves


MAKERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.05),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
    "groups": lambda p: torch.optim.AdamW(
        [{"params": p[:1], "weight_decay": 0.1}, {"params": p[1:], "weight_decay": 0.0, "lr": 3e-3}]
    ),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "tensor lr": lambda p: torch.optim.AdamW(
        p, lr=torch.tensor(0.01), capturable=False, foreach=False
    ),
}


def make_run(maker, seed):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Dropout(0.2), nn.Linear(7, 1))
    return net, MAKERS[maker](list(net.parameters()))


def train(net, optimizer, steps):
    for _ in range(steps):
        loss = net(torch.randn(16, 5)).square().mean() * random.uniform(0.5, 1.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("maker", MAKERS)
def test_resume_is_exact(tmp_path, maker):
    random.seed(0)
    random.gauss(0, 1)  # leaves a second normal number waiting
    net, optimizer = make_run(maker, 0)
    train(net, optimizer, 5)
    tensors, meta = flatten_optimizer(optimizer)
    save_checkpoint(
        tmp_path, {"net": net.state_dict(), "opt": tensors, "random": rng_state()}, {"opt": meta}
    )
    train(net, optimizer, 5)
    expected, gauss = [p.detach().clone() for p in net.parameters()], random.gauss(0, 1)
    random.seed(99)
    net, optimizer = make_run(maker, 99)
    saved = load_checkpoint(tmp_path)
    load_module(net, saved.tensors["net"], "net")
    kept = {k: v.clone() for k, v in saved.tensors["opt"].items()}
    restore_optimizer(optimizer, saved.tensors["opt"], saved.meta["opt"])
    set_rng_state(saved.tensors["random"])
    train(net, optimizer, 5)
    assert (
        all(torch.equal(p, q) for p, q in zip(net.parameters(), expected))
        and random.gauss(0, 1) == gauss
    )
    # the optimiser works on copies
    assert all(torch.equal(saved.tensors["opt"][k], v) for k, v in kept.items())
    now, then = (
        optimizer.state_dict()["param_groups"], make_run(maker, 0)[1].state_dict()["param_groups"]
    )
    assert [{k: type(v) for k, v in g.items()} for g in now] == [
        {k: type(v) for k, v in g.items()} for g in then
    ]


def test_fresh_optimizer_and_misfits():
    net, optimizer = make_run("adamw", 0)
    tensors, meta = flatten_optimizer(optimizer)
    assert tensors == {}                                            # no step taken: no moments yet
    restore_optimizer(make_run("adamw", 1)[1], tensors, meta)
    train(net, optimizer, 1)
    tensors, meta = flatten_optimizer(optimizer)
    with pytest.raises(UserError, match="other parameter groups"):
        restore_optimizer(make_run("groups", 0)[1], tensors, meta)
    for change, words in [
        (lambda m: m["param_groups"][0].update(lr="fast"), "lr = 'fast'"),
        (lambda m: m["param_groups"][0].update(betas=0.9), "betas = 0.9"),
        (lambda m: m["param_groups"][0].update(speed=1), "speed = 1")
    ]:
        forged = json.loads(json.dumps(meta))
        change(forged)
        with pytest.raises(UserError, match=words):
            restore_optimizer(make_run("adamw", 1)[1], tensors, forged)
    for forged in (
        {k: v for k, v in tensors.items() if k != "0.exp_avg"},
        tensors | {"0.exp_avg": torch.ones(())},
        tensors | {"0.step": torch.ones((), dtype=torch.int64)}
    ):
        with pytest.raises(UserError, match="does not fit"):
            restore_optimizer(make_run("adamw", 1)[1], forged, meta)
    wide = torch.optim.AdamW(nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 1)).parameters())
    with pytest.raises(UserError, match=r"0.exp_avg is \(7, 5\), its parameter \(8, 5\)"):
        restore_optimizer(wide, tensors, meta)


def test_rng_state_covers_both():
    state = rng_state()
    a = torch.randn(5), random.random(), np.random.normal()
    set_rng_state(state)
    b = torch.randn(5), random.random(), np.random.normal()
    assert (
        torch.equal(a[0], b[0])
        and a[1:] == b[1:]
        and all(isinstance(v, torch.Tensor) for v in state.values())
    )
    for name, wrong in {
        "torch": state["torch"][:9], "numpy": state["numpy"].double(),
        "python": state["python"][None]
    }.items():
        with pytest.raises(UserError, match=f"random numbers do not fit: {name}"):
            set_rng_state(state | {name: wrong})


@pytest.mark.gpu
def test_cuda_round_trip(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    x = torch.randn(10, device="cuda", dtype=torch.bfloat16)
    save_checkpoint(tmp_path, {"g": {"x": x}, "random": rng_state()}, {})
    drawn = torch.rand(4, device="cuda")
    back = load_checkpoint(tmp_path, device="cuda")
    set_rng_state(back.tensors["random"])
    assert back.tensors["g"]["x"].device.type == "cuda" and torch.equal(back.tensors["g"]["x"], x)
    assert torch.equal(torch.rand(4, device="cuda"), drawn)
