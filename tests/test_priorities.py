"""Draws by recorded loss: exact chances, no window twice, a uniform rest, one loss for each window,
new windows first; saved and taken up exactly; and without the setting nothing changes."""
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_replay import SETTINGS, SPEC, generator, histories, part, stream

from simulus_nb.bench import Bench
from simulus_nb.config import preset
from simulus_nb.loop import (
    collect, learn_m, m_batch, m_update, make_priorities, run_epoch, tokenise
)
from simulus_nb.priorities import NEW, Priorities, draw_windows, drawn_by_loss, recorded_loss
from simulus_nb.rehearsal import needs
from simulus_nb.replay import ReplayBuffer
from simulus_nb.resume import adopt, snapshot
from simulus_nb.retnet import RetNetConfig
from simulus_nb.run_setup import prepare
from simulus_nb.spaces import ActionSpec, UserError
from simulus_nb.tokenizer import MultiModalTokenizer, TokenizerConfig
from simulus_nb.world_model import WorldModel, WorldModelConfig, world_model_loss

TOY = {
    "threads": 1, "device": "cpu", "epochs": 3, "learn_on": 0, "save_every": 3,
    "collect.steps": 40, "collect.capacity": 200, "train_v.start": 0, "train_m.start": 0,
    "train_c.start": 0, "train_v.batch": 4, "train_m.batch": 6, "train_m.segment": 5,
    "train_c.batch": 4, "train_c.burn_in": 3, "train_c.horizon": 4, "train_v.steps": 1,
    "train_m.steps": 4, "train_c.steps": 1, "evaluation.every": 0,
    "world_model.retnet.width": 16, "world_model.retnet.layers": 1, "controller.width": 16,
    "tokenizer.image.code_dim": 8, "tokenizer.image.vocab": 16, "controller.channels": [4, 4]}


def toy(**changes):
    return prepare(preset("catch").change(TOY | changes))


def orders(p, count):
    "{order: chance} of successive draws without replacement, listed."
    found = {}
    for order in itertools.permutations(range(len(p)), count):
        taken = [sum(p[u] for u in order[:k]) for k in range(count)]
        found[order] = math.prod(p[u] / (1 - t) for u, t in zip(order, taken))
    return found


def among(p, count):
    pi = np.zeros(len(p))
    for order, chance in orders(p, count).items():
        pi[list(order)] += chance
    return pi


@pytest.mark.parametrize("share,batch", [(0.5, 2), (0.4, 4), (1.0, 3), (0.3, 5)])
def test_every_window_is_drawn_as_often_as_successive_draws_say(share, batch):
    loss = torch.tensor([1.5, 0.0, 2.0, -1.0, 0.5, 0.5])
    g, times, P = generator(1), 12_000, drawn_by_loss(share, batch)
    pi = among(loss.double().softmax(0).tolist(), P)
    chance = pi + (1 - pi) * (batch - P) / (len(loss) - P)
    drawn = torch.stack([draw_windows(loss, share, batch, g) for _ in range(times)])
    often = drawn.flatten().bincount(minlength=len(loss)).numpy() / times
    error = np.sqrt(chance * (1 - chance) / times) + 1e-9
    assert (abs(often - chance) / error).max() < 5
    # shuffled: every place of the batch is like the others
    for place in range(batch):
        here = drawn[:, place].bincount(minlength=len(loss)).numpy() / times
        assert abs(here - chance / batch).max() < 5 * 0.5 / times ** 0.5


def test_pairs_come_together_as_often_as_they_should():
    "Not only single windows: the pair drawn by loss, and the rest uniform given that pair."
    loss, g, times = torch.tensor([2.0, 1.0, 0.0, -1.0]), generator(2), 20_000
    listed = orders(loss.double().softmax(0).tolist(), 2)
    pairs = {frozenset(pair): 0.0 for pair in listed}
    for pair, chance in listed.items():
        pairs[frozenset(pair)] += chance
    triples = {}
    for pair, chance in pairs.items():
        for other in set(range(4)) - pair:
            key = pair | {other}
            triples[key] = triples.get(key, 0) + chance / 2
    count = dict.fromkeys(triples, 0)
    for _ in range(times):
        count[frozenset(draw_windows(loss, 2 / 3, 3, g).tolist())] += 1
    for key, chance in triples.items():
        assert abs(count[key] / times - chance) < 5 * (chance * (1 - chance) / times) ** 0.5


@given(st.integers(1, 60), st.floats(0, 1), st.data())
@SETTINGS
def test_no_window_comes_twice(W, share, data):
    batch = data.draw(st.integers(1, W))
    loss = torch.tensor(data.draw(st.lists(st.floats(-50, 50), min_size=W, max_size=W)))
    numbers = draw_windows(loss, share, batch, generator(3))
    assert len(set(numbers.tolist())) == batch
    assert 0 <= numbers.min() and numbers.max() < W
    P = drawn_by_loss(share, batch)
    assert share * batch - 1e-6 <= P < share * batch + 1 and P <= batch


def test_the_share_is_rounded_up_and_not_by_a_rounding_error():
    assert [drawn_by_loss(0.3, b) for b in (1, 8, 10, 16, 32)] == [1, 3, 3, 5, 10]
    assert drawn_by_loss(0.07, 100) == 7 and drawn_by_loss(0.0, 9) == 0


def test_a_loss_apart_is_drawn_first_and_the_rest_is_uniform():
    loss, g = torch.zeros(40), generator(4)
    loss[[7, 30]] = 60.0
    drawn = torch.stack([draw_windows(loss, 0.2, 10, g) for _ in range(4_000)])
    often = drawn.flatten().bincount(minlength=40) / 4_000
    assert (often[[7, 30]] == 1).all()
    rest = often[loss == 0]
    assert (rest - 8 / 38).abs().max() < 5 * (8 / 38 / 4_000) ** 0.5


@given(histories(), st.integers(2, 12), st.data())
@SETTINGS
def test_every_window_has_one_loss_of_its_own(history, T, data):
    buffer, _ = history
    own, W = Priorities(buffer, T, 0.3), buffer.count_windows(T)
    assert own.losses().shape == (W,) and (own.losses() == NEW).all() and NEW == 10
    if not W:
        with pytest.raises(UserError, match="holds 0 windows"):
            own.segments(1)
        return
    number = torch.randperm(W, generator=generator(5))
    value = number.double().add(1).div(1_000).float()
    for some in number.split(data.draw(st.integers(1, W))):
        own.record(buffer.window(some, T), value[:0].new_tensor(some.tolist()).add(1).div(1_000))
    assert torch.allclose(own.losses(), torch.arange(1, W + 1) / 1_000)
    with pytest.raises(UserError, match=f"holds {W} windows.*needs {W + 1} different") as e:
        own.segments(W + 1)
    assert "\n" not in str(e.value)
    s = own.segments(W, generator(6))               # all of them, each once
    assert len({(*i.tolist(), *m.tolist()) for i, m in zip(s.index, s.mask)}) == W


@given(st.lists(st.integers(1, 9), max_size=5), st.integers(0, 7), st.integers(2, 8),
       st.integers(3, 60), st.data())
@SETTINGS
def test_new_is_what_shows_something_new(lengths, open_steps, T, ring, data):
    """Whatever pieces a stream comes in, and when one looks: a window is known exactly if it was
    read as it is now, row for row."""
    truth = stream(0, lengths, open_steps if lengths else open_steps + 1)
    buffer, read = ReplayBuffer(ring, SPEC, 2, 3), set()
    own = Priorities(buffer, T, 0.3)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(truth)), max_size=5)))
    for a, b in zip([0, *cuts], [*cuts, len(truth)]):
        buffer.extend(0, part(truth, a, b))
        W = buffer.count_windows(T)
        if not W or not data.draw(st.booleans()):
            continue
        s = buffer.window(torch.arange(W), T)
        names = [tuple(torch.where(m, buffer.position[i], -1).tolist())
                 for i, m in zip(s.index, s.mask)]
        known = [name in read for name in names]
        assert (own.losses() < NEW).tolist() == known
        own.record(s, torch.zeros(W))
        read |= set(names)


def test_saved_losses_are_taken_up_exactly_or_refused():
    buffer = ReplayBuffer(60, SPEC, 2, 3, num_envs=2)
    for env in range(2):
        buffer.extend(env, stream(env, [4, 9, 6], 5))
    own, twin = Priorities(buffer, 6, 0.5), Priorities(buffer, 6, 0.5)
    s = own.segments(9, generator(7))
    own.record(s, torch.linspace(0, 3, 9))
    saved = own.state()
    twin.load(saved)
    assert torch.equal(own.losses(), twin.losses())
    for seed in range(5):
        a, b = own.segments(9, generator(seed)), twin.segments(9, generator(seed))
        assert torch.equal(a.index, b.index) and torch.equal(a.mask, b.mask)
    bad = saved["loss"].clone()
    bad[3] = math.nan
    for wrong in (
        {"seen": saved["seen"]}, saved | {"more": bad}, saved | {"loss": bad},
        saved | {"loss": saved["loss"].double()}, saved | {"loss": saved["loss"][:, 1:]},
        saved | {"seen": torch.tensor([1, 999])}, saved | {"seen": torch.tensor([-1, 3])},
    ):
        before = twin.losses()
        with pytest.raises(UserError, match="do not fit the saved replay buffer"):
            twin.load(wrong)
        assert torch.equal(twin.losses(), before)


def test_what_is_recorded_is_the_loss_of_the_window_alone():
    "As if it had been the whole batch: observations and rewards, no ends, no gradient."
    tokenizer, levers = MultiModalTokenizer(SPEC, TokenizerConfig()), ActionSpec("discrete", (3,))
    model = WorldModel(tokenizer.layout, levers, WorldModelConfig(RetNetConfig(16, 2, 1))).double()
    model.eval()
    g = generator(8)
    B, T, c = 5, 7, 3
    z = torch.randint(0, 9, (B, T, 3), generator=g)
    a = torch.randint(0, 3, (B, T, 1), generator=g)
    r, d = torch.randn(B, T, generator=g).double(), torch.rand(B, T, generator=g) < 0.3
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[1, :4], mask[2, 5:], mask[3, 2:], mask[4, :5] = False, False, False, False
    loss, found = world_model_loss(model, z, a, r, d, mask, c, record=True)
    for b in range(B):
        one = slice(b, b + 1)
        _, alone = world_model_loss(model, z[one], a[one], r[one], d[one], mask[one], c)
        assert torch.allclose(found["windows"][b], alone["obs"] + alone["reward"])
    assert not found["windows"].requires_grad and found["windows"].shape == (B,)
    plain, without = world_model_loss(model, z, a, r, d, mask, c)
    assert torch.equal(plain, loss) and found.keys() - without.keys() == {"windows"}
    assert recorded_loss(torch.ones(1, 2), torch.ones(1, 3), torch.tensor([[1.0, 0, 0]])) == 1.0


def test_an_update_records_its_whole_batch_and_nothing_else():
    run = toy(**{"train_m.prioritised": 0.3})
    collect(run), tokenise(run)
    assert (run.priorities.losses() == NEW).all()
    before = run.priorities.losses()
    metrics = m_update(run)
    after = run.priorities.losses()
    assert (after != before).sum() == 6 and all(x.ndim == 0 for x in metrics.values())
    read = after[after != before].mean()
    assert after.isfinite().all() and (after < NEW).sum() == 6
    # their mean is near the loss of the batch: the same terms, otherwise weighted
    assert abs(read - metrics["obs"] - metrics["reward"]) < 0.3 * read
    assert learn_m(run, 3).keys() == metrics.keys()
    assert (run.priorities.losses() < NEW).sum() > 6
    run.worlds.close()


def everything(run):
    tensors, meta = snapshot(run)
    return {f"{g}.{k}": x.clone() for g, group in tensors.items() for k, x in group.items()}


def test_a_resumed_run_draws_the_same_windows():
    first = toy(**{"train_m.prioritised": 0.3})
    run_epoch(first)
    tensors, meta = snapshot(first)
    saved = {g: {k: x.clone() for k, x in group.items()} for g, group in tensors.items()}
    assert saved["priorities"].keys() == {"loss", "seen"}
    learn_m(first, 4)
    second = toy(**{"train_m.prioritised": 0.3})
    adopt(second, saved, meta)
    learn_m(second, 4)
    one, two = everything(first), everything(second)
    for name in one:
        if name.startswith(("agent", "optimizer_m", "priorities", "replay", "random.generator")):
            assert torch.equal(one[name], two[name]), name
    with pytest.raises(KeyError, match="priorities"):
        adopt(second, {k: x for k, x in saved.items() if k != "priorities"}, meta)
    first.worlds.close(), second.worlds.close()


def test_without_the_setting_batches_are_those_of_the_buffer():
    "No table, no other random number, nothing more in a save."
    run = toy()
    collect(run), tokenise(run)
    assert run.priorities is None and make_priorities(run.config, run.replay) is None
    m, again = run.config.train_m, generator()
    again.set_state(run.generator.get_state())
    ours, plain = m_batch(run), run.replay.segments(m.batch, m.segment, m.context, again)
    assert all(torch.equal(x, vars(plain)[k]) for k, x in vars(ours).items())
    assert torch.equal(again.get_state(), run.generator.get_state())
    assert "priorities" not in snapshot(run)[0] and "windows" not in m_update(run)
    assert preset("core").train_m.prioritised == 0 < preset("atari100k").train_m.prioritised
    run.worlds.close()


def test_the_doctor_counts_the_table():
    run = toy()
    specs, kept = (run.agent.obs_spec, run.agent.action_spec), []
    run.worlds.close()
    for share in (0.0, 0.3):
        kept.append(needs(run.config.change({"train_m.prioritised": share}), *specs)[1])
    own = Priorities(run.replay, run.config.train_m.segment, 0.3)
    assert kept[1] - kept[0] == own.loss.nbytes == 200 * 4 * 4


def test_the_bench_has_enough_windows_for_a_batch():
    "Also where the batch is larger than what it plays for other reasons."
    stand = Bench(preset("catch").change(TOY | {
        "train_m.batch": 150, "collect.capacity": 2_000, "train_m.prioritised": 0.3}))
    work, _ = stand.parts()["batch of M"]
    assert len(work().z) == 150 and stand.state.priorities is not None
    stand.state.worlds.close()


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_a_share_is_between_0_and_1(value):
    with pytest.raises(UserError, match="train_m.prioritised = .* between 0 and 1") as e:
        preset("catch").change({"train_m.prioritised": value})
    assert "\n" not in str(e.value)
