"""Finite scalar quantisation: bounds, digits, gradient, the grid as a codebook, the agent around
it."""
from dataclasses import replace
from math import prod

import gymnasium.spaces as gs
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from simulus_nb.accelerate import rounded
from simulus_nb.agent import Agent
from simulus_nb.bench import bench
from simulus_nb.checkpoint import buffer_state, save_checkpoint
from simulus_nb.config import Config, cost, preset
from simulus_nb.controller import ControllerConfig
from simulus_nb.fsq import (
    FixedGrid, bound, digits, image_tokenizer, places, to_digits, to_token, values
)
from simulus_nb.retnet import RetNetConfig
from simulus_nb.spaces import ActionSpec, ObsSpec, UserError
from simulus_nb.tokenizer import TokenizerConfig
from simulus_nb.trainer import Trainer
from simulus_nb.vqvae import VQVAE, VQVAEConfig, loss_terms, nearest_entry, straight_through
from simulus_nb.world_model import WorldModelConfig

f64 = torch.float64
few = settings(deadline=None, max_examples=25)
some_levels = st.lists(st.integers(3, 9), min_size=1, max_size=4)
SMALL = dict(
    image_size=16, channels=8, stages=2, quantiser="fsq", levels=(4, 3, 5), vocab=60,
    perceptual="none"
)


def tiny(seed=0, **changes) -> VQVAE:
    torch.manual_seed(seed)
    return image_tokenizer(VQVAEConfig(**{**SMALL, **changes}))


def frames(n=6, seed=0):
    return torch.randint(
        0, 256, (n, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def slopes(h, levels):
    "The derivative of u, written out: Eq. (8.7)."
    reach = 1.001 * (levels - 1).double() / 2
    shift = ((1 - levels % 2).double() / 2 / reach).atanh()
    return reach / (levels // 2) * (1 - (h + shift).tanh() ** 2)


# numbers, digits, tokens

@few
@given(some_levels)
def test_every_token_there_and_back(levels):
    L, z = torch.tensor(levels), torch.arange(prod(levels))
    l = to_digits(z, L)
    assert torch.equal(to_token(l, L), z)
    assert (l >= 0).all() and (l < L).all() and len(l.unique(dim=0)) == len(z)
    assert torch.equal(digits(values(l, L), L), l)
    grid = FixedGrid(tuple(levels))
    again, distance = grid.nearest(grid.entries)
    assert torch.equal(again, z) and (distance == 0).all()


@few
@given(some_levels, st.integers(0, 999))
def test_digits_are_a_number_of_mixed_base(levels, seed):
    L, g = torch.tensor(levels), torch.Generator().manual_seed(seed)
    l = (torch.rand(50, len(levels), generator=g) * L).long()
    by_numpy = np.ravel_multi_index(l.T.numpy(), levels, order="F")
    assert (to_token(l, L).numpy() == by_numpy).all() and places(L)[0] == 1


@pytest.mark.parametrize("dtype", [torch.float32, f64])
def test_every_level_is_reached_and_none_beyond(dtype):
    for n in (*range(3, 65), 999, 1000):
        L = torch.tensor([n])
        h = torch.linspace(-30, 30, 40 * n + 1, dtype=dtype)[:, None]
        l = digits(bound(h, L), L)
        assert l.min() == 0 and l.max() == n - 1 and (l.diff(dim=0) >= 0).all()
        assert digits(bound(torch.zeros(1, dtype=dtype), L), L) == n // 2


@few
@given(some_levels, st.floats(0.001, 0.04))
def test_small_numbers_are_all_one_token(levels, size):
    "Zero lies in the middle of a level, half a step from its edges."
    L = torch.tensor(levels)
    u = bound(size * torch.randn(100, len(levels), dtype=f64).clamp(-3, 3), L)
    assert len(to_token(digits(u, L), L).unique()) == 1


# gradient, in float64

@few
@given(some_levels, st.integers(0, 999))
def test_gradient_is_that_of_the_bound(levels, seed):
    L, g = torch.tensor(levels), torch.Generator().manual_seed(seed)
    h = 2 * torch.randn(40, len(levels), dtype=f64, generator=g)
    arriving = torch.randn(h.shape, dtype=f64, generator=g)
    h.requires_grad_()
    u = bound(h, L)
    e = values(digits(u, L), L).double()
    out = straight_through(u, e)
    got, = torch.autograd.grad(out, h, arriving)
    assert torch.equal(out, e)
    torch.testing.assert_close(got, arriving * slopes(h, L), rtol=1e-9, atol=1e-12)
    assert (slopes(h, L) > 0).all() and slopes(h, L).max() <= 1.002


def test_each_number_moves_only_itself():
    h = torch.randn(3, dtype=f64)
    J = torch.autograd.functional.jacobian(lambda x: bound(x, torch.tensor([8, 5, 4])), h)
    assert (J.diagonal() > 0).all() and (J - J.diagonal().diag() == 0).all()


def test_rounding_moves_a_number_by_half_a_step_at_most():
    L = torch.tensor([8, 5, 3])
    u = bound(3 * torch.randn(500, 3, dtype=f64), L)
    off = (u - values(digits(u, L), L)).abs() * (L // 2)
    assert off.max() <= 0.5 + 1e-9


# the grid as a codebook

@few
@given(some_levels, st.integers(0, 999))
def test_rounding_is_the_nearest_entry(levels, seed):
    grid, g = FixedGrid(tuple(levels)).double(), torch.Generator().manual_seed(seed)
    u = grid.bounded(2 * torch.randn(60, len(levels), dtype=f64, generator=g))
    z, distance = grid.nearest(u)
    slow, their_distance = nearest_entry(u, grid.entries)
    assert torch.equal(z, slow)
    torch.testing.assert_close(distance, their_distance, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("levels", [(8, 8, 8), (8, 5, 5, 5), (7, 3), (4, 4, 4)])
def test_agrees_with_vector_quantize_pytorch(levels):
    library = pytest.importorskip("vector_quantize_pytorch").FSQ(levels=list(levels))
    torch.manual_seed(0)
    h = (2 * torch.randn(2, 300, len(levels))).requires_grad_()
    grid, arriving = FixedGrid(levels), torch.randn(2, 300, len(levels))
    theirs, tokens = library(h)
    u = grid.bounded(h)
    z, _ = grid.nearest(u.flatten(0, 1).detach())
    ours = straight_through(u, grid.entries[z].view_as(u))
    assert torch.equal(z, tokens.flatten().long())
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(grid.entries, library.implicit_codebook)
    torch.testing.assert_close(
        torch.autograd.grad(ours, h, arriving)[0], torch.autograd.grad(theirs, h, arriving)[0]
    )


def test_nothing_to_learn_and_nothing_to_save():
    V = tiny()
    assert not any("table" in name for name in V.state_dict())
    assert not any("table" in name for name, _ in V.named_parameters())
    assert V.codebook.shape == (60, 3) and not V.codebook.requires_grad


# V around it

def test_no_codebook_and_no_commitment_term():
    V, x = tiny().double(), frames()
    judge = lambda x, y: (x - y).abs().mean((1, 2, 3))
    before = V.codebook.clone()
    terms, _, z, distance = loss_terms(V, x, judge)
    loss, metrics = V.loss(x, judge)
    assert set(terms) == {"pixel", "perceptual"} and "reseeded" not in metrics
    torch.testing.assert_close(loss, terms["pixel"] + terms["perceptual"], rtol=1e-12, atol=0)
    assert torch.equal(z.view(6, -1), V.encode(x)) and torch.equal(V.codebook, before)
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in V.encoder[-1].parameters())


def test_frames_share_their_tokens_only():
    "Of several processes each gives the others its tokens: no vectors, no distances."
    V, seen = tiny(), []
    V.loss(frames(), everyone=lambda rows: seen.append(rows) or rows)
    assert [(x.dtype, x.shape) for x in seen] == [(torch.int64, (6 * 16,))]


def test_half_batches_have_the_gradient_of_the_whole():
    V, x = tiny().double(), frames()
    weights = list(V.parameters())
    of = lambda images: torch.autograd.grad(V.loss(images)[0], weights)
    for whole, a, b in zip(of(x), of(x[:3]), of(x[3:])):
        torch.testing.assert_close(whole, (a + b) / 2, rtol=1e-9, atol=1e-12)


def test_choices_are_made_in_float32():
    V = tiny()
    with rounded([V], torch.bfloat16):
        assert V.encoder[0].weight.dtype == torch.bfloat16
        assert V.features(frames()).dtype == V.codebook.dtype == torch.float32
        z = V.encode(frames())
    close = torch.tensor([[0.1249, 0.0, 0.0], [0.1251, 0.0, 0.0]])   # one number in bfloat16
    l = to_digits(FixedGrid((8, 8, 8)).nearest(close)[0], torch.tensor([8, 8, 8]))
    assert l[:, 0].tolist() == [4, 5] and z.dtype == torch.int64


def test_compiled_it_is_one_graph():
    "Traced without a break: nothing asks for the value of a tensor."
    V, x = tiny(), frames()
    traced = torch.compile(V.loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(traced(x)[0], V.loss(x)[0])


def test_same_seed_same_training_and_it_lowers_the_loss():
    x = frames(4)[..., :1].expand(-1, -1, -1, 3).clone() // 128 * 255
    x[:, :, :8] = 0                                                  # half of each picture is black
    def run():
        V, losses = tiny(), []
        optimiser = torch.optim.AdamW(V.parameters(), lr=2e-3)
        for _ in range(60):
            loss, metrics = V.loss(x)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(metrics["pixel"].item())
        return losses
    first = run()
    assert first == run() and first[-1] < 0.6 * first[0]


# M and C

def small_agent(**changes) -> Agent:
    torch.manual_seed(0)
    return Agent(
        ObsSpec.from_space(gs.Box(0, 255, (16, 16, 3), np.uint8)),
        ActionSpec.from_space(gs.Discrete(3)), TokenizerConfig(VQVAEConfig(**(SMALL | changes))),
        WorldModelConfig(retnet=RetNetConfig(width=16, heads=2, layers=1)),
        ControllerConfig(width=16, channels=(8, 8), embedding=8),
    )


def test_m_and_c_read_the_grid_and_the_agent_is_saved(tmp_path):
    agent = small_agent()
    z = torch.arange(60).repeat(2)[:96].view(2, 3, 16)
    a = torch.zeros(2, 3, 1, dtype=torch.long)
    prediction, _ = agent.world_model(z, a)
    read = agent.controller(z, a)[:2]
    (prediction.reward.sum() + sum(y.sum() for y in read)).backward()
    assert all(p.grad is None for p in agent.tokenizer.parameters())
    assert agent.tokenizer.codebooks()["obs"].shape == (60, 3)
    agent.save(tmp_path)
    loaded = Agent.load(tmp_path)
    assert loaded.tokenizer.config == agent.tokenizer.config
    assert torch.equal(loaded.tokenizer.encode({"obs": frames()}),
                       agent.eval().tokenizer.encode({"obs": frames()}))


# whole runs

TOY = {
    "epochs": 3, "save_every": 1, "threads": 1, "device": "cpu", "collect.steps": 40,
    "collect.capacity": 400, "tokenizer.image.quantiser": "fsq",
    "tokenizer.image.levels": [4, 4, 4], "tokenizer.image.vocab": 64, "train_v.start": 0,
    "train_v.steps": 2, "train_v.batch": 4, "train_m.start": 0, "train_m.steps": 2,
    "train_m.batch": 3, "train_c.start": 1, "train_c.steps": 2, "train_c.batch": 3,
    "train_c.scale_window": 4, "evaluation.episodes": 2, "evaluation.num_envs": 2,
    "evaluation.every": 0
}


def everything(trainer):
    "All that a run leaves: agent, replay, the moments of V's optimiser."
    found = dict(trainer.agent.state_dict()) | buffer_state(trainer.replay)
    moments = trainer.learner.optimizers["v"].state_dict()["state"]
    return found | {f"v.{i}.{k}": x for i, slots in moments.items() for k, x in slots.items()}


def test_a_stopped_run_goes_on_exactly(tmp_path):
    config = preset("catch").change(TOY)
    whole = Trainer(config, tmp_path / "whole", progress=False).train()
    assert {"v/pixel", "v/perplexity"} <= set(whole.folder.history()[-1])
    assert not {"v/codebook", "v/commitment", "v/reseeded"} & set(whole.folder.history()[-1])
    first = Trainer(config, tmp_path / "cut", progress=False)
    log, seen = first.log, []

    def stopping(record, writer):
        log(record, writer)
        seen.append(record)
        if len(seen) == 2:
            raise KeyboardInterrupt

    first.log = stopping
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = Trainer(None, tmp_path / "cut", resume=True, progress=False)
    assert second.config.tokenizer.image.levels == (4, 4, 4) and second.epoch == 1
    second.train()
    found, truth = everything(second), everything(whole)
    assert found.keys() == truth.keys()
    assert all(torch.equal(x, truth[name]) for name, x in found.items())


def test_bench_and_cost():
    "The same updates are counted; the grid needs fewer operations than a codebook of its size."
    grid = preset("catch").change(TOY)
    book = grid.change({"tokenizer.image.quantiser": "vq"})
    assert cost(grid) == cost(book)
    one, other = (bench(c, repeats=1)["flops"] for c in (grid, book))
    assert one.keys() == other.keys() and {"V", "encode"} <= set(one)
    assert one["V"] < other["V"] and one["encode"] < other["encode"]


# what earlier releases saved

@pytest.mark.parametrize("old, now", [("ema", "vq"), ("gradient", "vq-gradient")])
def test_agents_and_settings_of_earlier_releases_are_read(tmp_path, old, now):
    agent = small_agent(quantiser=now, code_dim=12)
    meta = agent.describe()
    for gone in ("quantiser", "levels"):
        del meta["config"]["tokenizer"]["image"][gone]
    meta["config"]["tokenizer"]["image"]["codebook"] = old
    save_checkpoint(tmp_path, {"agent": agent.state_dict()}, meta)
    loaded = Agent.load(tmp_path)
    assert loaded.tokenizer.config.image.quantiser == now
    assert all(torch.equal(x, agent.state_dict()[k]) for k, x in loaded.state_dict().items())
    settings = preset("catch").to_json()
    del settings["tokenizer"]["image"]["quantiser"], settings["tokenizer"]["image"]["levels"]
    settings["tokenizer"]["image"]["codebook"] = old
    assert Config.from_json(settings) == preset("catch").change({"tokenizer.image.quantiser": now})


@pytest.mark.parametrize("wrong", ["k-means", 3, None])
def test_a_codebook_that_no_release_had_is_refused_in_one_line(wrong):
    with pytest.raises(UserError, match="image.(quantiser|codebook)") as error:
        Config.from_json({"tokenizer": {"image": {"codebook": wrong}}})
    assert "\n" not in str(error.value)


def test_a_grid_does_not_take_the_place_of_a_codebook_unseen(tmp_path):
    "Weights of the one are refused for the other: they have other shapes."
    small_agent(quantiser="vq", code_dim=12).save(tmp_path)
    with pytest.raises(UserError, match="tokenizer") as error:
        small_agent().load_parts(tmp_path)
    assert "\n" not in str(error.value)


# refusals

@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(levels=(8, 2)), "from 3 to 1000"), (dict(levels=()), "from 3 to 1000"),
        (dict(levels=(1001,)), "from 3 to 1000"), (dict(levels=(8, -8)), "from 3 to 1000"),
        (dict(vocab=64), "set vocab = 60"), (dict(levels=(8, 8)), "set vocab = 64")
    ],
)
def test_refusals_are_one_line(changes, says):
    with pytest.raises(UserError, match=says) as error:
        VQVAEConfig(**{**SMALL, **changes})
    assert "\n" not in str(error.value)


def test_levels_of_a_codebook_are_not_looked_at():
    config = VQVAEConfig(vocab=100, levels=(8, 8, 8))
    assert config.width == 256 and replace(config, vocab=512, quantiser="fsq").width == 3


def test_a_grid_is_handed_over():
    with pytest.raises(UserError, match="image_tokenizer"):
        VQVAE(VQVAEConfig(quantiser="fsq"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_host_synchronisation():
    V, x = tiny().cuda(), frames().cuda()
    V.loss(x)[0].backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        V.loss(x)[0].backward()
        V.encode(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
