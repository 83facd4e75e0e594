"""An ensemble that disagrees: what its number is, whom its loss reaches, where the reward comes in;
and a run that has one: off as before, stopped and gone on, shared, refused."""
import math
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings, strategies as st

from simulus_nb import loop
from simulus_nb.agent import Agent, check_agent
from simulus_nb.bench import bench
from simulus_nb.checkpoint import Checkpoint
from simulus_nb.config import preset
from simulus_nb.controller import Controller, ControllerConfig
from simulus_nb.curiosity import CuriosityConfig, Ensemble, paid, shared_out
from simulus_nb.files import DamagedError
from simulus_nb.imagination import Dream, foretell, imagine
from simulus_nb.learner import losses_of
from simulus_nb.loop import collect, learn_c, learn_m, m_batch, run_epoch, tokenise
from simulus_nb.metrics import metric_key
from simulus_nb.rehearsal import Tally, memory_shares, needs
from simulus_nb.replay import Segment
from simulus_nb.retnet import RetNetConfig
from simulus_nb.run_setup import infer_specs, prepare
from simulus_nb.spaces import ActionSpec, TokenGroup, TokenLayout, UserError
from simulus_nb.world_model import WorldModel, WorldModelConfig, token_losses, world_model_loss
from stopping import two_epochs

# one of each: with a codebook, with channels, ordered, with unequal numbers of categories
LAYOUT = TokenLayout((
    TokenGroup("camera", "image", 4, (8,), grid=(2, 2)),
    TokenGroup("map", "grid", 2, (3, 4), grid=(1, 2)),
    TokenGroup("pose", "vector", 2, (25,), ordered=True),
    TokenGroup("items", "categorical", 2, (5,), sizes=(3, 5)),
))
SIZES = torch.tensor([8] * 4 + [3, 4] * 2 + [25] * 2 + [3, 5])
ACTIONS = ActionSpec("multidiscrete", (3, 2))
WORLDS = {"catch": ("catch", {}), "cartpole": ("small", {}),
          "parcels": ("small", {"env": "simulus/Parcels-v0"}),
          "rooms": ("small", {"env": "simulus/Rooms-v0"}),
          "pendulum": ("control", {})}


def tokens(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (torch.rand(*shape, len(SIZES), generator=g) * SIZES).long()


def make(heads=4, seed=0, width=16):
    torch.manual_seed(seed)
    book = torch.randn(8, 6).double()
    books = lambda: {"camera": book}
    config = WorldModelConfig(RetNetConfig(width, 2, 2, dropout=0.0))
    M = WorldModel(LAYOUT, ACTIONS, config, books).double().eval()
    E = Ensemble(LAYOUT, width, CuriosityConfig(heads)).double()
    C = Controller(LAYOUT, ACTIONS, ControllerConfig(12, (4, 3), 4), books).double()
    torch.nn.init.normal_(C.actor.weight)
    return M, C, E


def context(B=8, T=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    action = (torch.rand(B, T, 2, generator=g) * torch.tensor([3, 2])).long()
    none = torch.zeros(B, T).double()
    return Segment(tokens(B, T, seed=seed), action, none, none > 0, none == 0, none.long())


def toy(name="cartpole", **changes):
    "A small run of one of the worlds; every part learns from the first epoch on."
    known, more = WORLDS[name]
    part = {f"train_{p}.{k}": v for p in "vmc"
            for k, v in {"steps": 2, "start": 0, "batch": 4}.items()}
    return preset(known).change({
        **part, **more, "epochs": 2, "threads": 1, "device": "cpu", "collect.steps": 40,
        "collect.capacity": 200, "tokenizer.image.code_dim": 8, "tokenizer.image.vocab": 16,
        "world_model.retnet.width": 16, "world_model.retnet.layers": 1, "controller.width": 16,
        "controller.channels": [4, 4], "train_m.segment": 5, "train_c.horizon": 4,
        "train_c.burn_in": 3, "evaluation.every": 0, "evaluation.episodes": 1, **changes})


# ---------------------------------------------------------------------------------- the number

@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 6), N=st.integers(1, 7), size=st.floats(0, 200), seed=st.integers(0, 99))
def test_the_two_parts_and_their_bounds(n, N, size, seed):
    "They add up to the entropy of the mean; the dispute is a mean divergence in [0, ln n]."
    g = torch.Generator().manual_seed(seed)
    logits = size * torch.randn(n, 5, N, generator=g).double()
    disputed, agreed = shared_out(logits)
    p = logits.softmax(-1)
    mean = p.mean(0)
    assert torch.allclose(disputed + agreed, torch.special.entr(mean).sum(-1), atol=1e-12)
    kl = torch.where(p > 0, p * (p / mean).log(), 0.0).sum(-1).mean(0)
    assert torch.allclose(disputed, kl, atol=1e-12)
    assert (disputed > -1e-12).all() and (disputed < math.log(min(n, N)) + 1e-12).all()
    assert (agreed >= 0).all() and (agreed < math.log(N) + 1e-12).all()
    one = logits.roll(1, -1)
    assert torch.allclose(shared_out(one)[0], disputed, atol=1e-12)         # names do not matter
    assert torch.allclose(shared_out(logits.flip(0))[0], disputed, atol=1e-12)


def test_equal_heads_agree_and_certain_ones_reach_the_bound():
    equal = shared_out([torch.randn(9, 4).double()] * 4)
    assert equal[0].abs().max() < 1e-15
    low = torch.finfo(torch.float64).min                            # what `mask_invalid` writes
    sure = torch.full((4, 6), low, dtype=torch.float64)
    sure[range(4), range(4)] = 0
    disputed, agreed = shared_out(sure)
    assert disputed.item() == pytest.approx(math.log(4), abs=1e-15) and agreed == 0
    assert shared_out(torch.randn(2, 3).bfloat16())[0].dtype == torch.float32


def test_disagreement_token_by_token():
    "Mean over a modality's tokens and channels, sum over modalities; categories that do not exist."
    _, _, E = make()
    y, now = torch.randn(3, 2, LAYOUT.K, 16).double(), tokens(3, 2)
    said = [E.logits(nets, y, now) for nets in E.members]
    found = E(y, now)
    for b, t in ((0, 0), (2, 1)):
        total = 0.0
        for g in LAYOUT.groups:
            each = []
            for k in range(g.count):
                for c, n in enumerate(g.vocab):
                    n = n if g.sizes is None else g.sizes[k]
                    p = torch.stack([one[g.key][b, t, k, c, :n].softmax(-1) for one in said])
                    each.append((p * (p / p.mean(0)).log()).sum(-1).mean())
            total += sum(each) / len(each)
        assert found[b, t].item() == pytest.approx(total.item(), abs=1e-12)
    assert (found > 0).all() and (found < len(LAYOUT.groups) * math.log(4)).all()
    for nets in E.members:
        nets.load_state_dict(E.members[0].state_dict())
    assert E(y, now).abs().max() < 1e-12


def test_heads_begin_apart_alike_in_all_modalities():
    "Waves and plain heads begin with logits that spread alike."
    torch.manual_seed(0)
    E = Ensemble(LAYOUT, 64, CuriosityConfig(8))
    y, now = torch.randn(16, 4, LAYOUT.K, 64), tokens(16, 4)
    for nets in E.members:
        for key, x in E.logits(nets, y, now).items():
            spread = x[x > -1e30].std()
            assert 1.5 < spread < 5, (key, spread)


# -------------------------------------------------------------------------------- the learning

def test_its_loss_is_that_of_its_rows_and_reaches_nobody_else():
    M, _, E = make()
    y = torch.randn(8, 3, LAYOUT.K, 16).double().requires_grad_()
    now, z = tokens(8, 3), tokens(8, 3, seed=1)
    share = torch.rand(8, 3).double()
    loss = E.loss(y, now, z, share)
    slow = 0.0
    for b in range(8):
        logits = E.logits(E.members[b % 4], y[b:b + 1], now[b:b + 1])
        each = token_losses(LAYOUT, logits, z[b:b + 1])
        slow += sum(g.count * (each[g.key] * share[b]).sum() for g in LAYOUT.groups) / LAYOUT.K
    assert torch.isclose(loss, slow)
    loss.backward()
    assert y.grad is None and all(p.grad.abs().max() > 0 for p in E.parameters())
    for j in range(4):                                      # row j changes head j and no other
        E.zero_grad(set_to_none=True)
        E.loss(y, now, z, share * (torch.arange(8) % 4 == j)[:, None]).backward()
        touched = [any(p.grad.abs().max() > 0 for p in nets.parameters()) for nets in E.members]
        assert touched == [i == j for i in range(4)]


def test_it_reads_what_the_observation_heads_read():
    "With M's own heads in their places the ensemble has M's loss, ends and padding included."
    M, _, E = make()
    torch.nn.init.normal_(M.predict.end)
    for nets in E.members:
        nets.load_state_dict(M.predict.obs.state_dict())
    s = context(8, 5)
    reward, done = torch.randn(8, 5).double(), torch.rand(8, 5) < 0.4
    mask = torch.arange(5) >= torch.randint(3, (8, 1))
    for first in (1, 3):
        loss, found = world_model_loss(M, s.z, s.action, reward, done, mask, first, reader=E.loss)
        assert torch.isclose(found["ensemble"], found["obs"], rtol=1e-12)
        assert torch.isclose(loss, found["loss"] + found["ensemble"], rtol=1e-12)
        plain, alone = world_model_loss(M, s.z, s.action, reward, done, mask, first)
        assert torch.equal(plain, found["loss"]) and found.keys() - alone.keys() == {"ensemble"}
    with_it, without = (torch.autograd.grad(x, list(M.parameters()), allow_unused=True)
                        for x in (loss, plain))
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(with_it, without))


@pytest.mark.parametrize("name", ["cartpole", "rooms"])
def test_V_M_and_C_begin_and_learn_as_without_it(name):
    "Bit by bit, under clips that cut, for as long as the batches are the same: all of M's updates."
    runs = []
    for heads in (0, 4):
        s = prepare(toy(name, **{"curiosity.heads": heads, "train_m.clip": 0.01}))
        begin = {k: x.clone() for k, x in s.agent.state_dict().items()}
        collect(s)
        tokenise(s)
        found = learn_m(s, 4)
        s.worlds.close()
        runs.append((begin, s, found))
    (begin, plain, told), (same, curious, more) = runs
    for start, agent in ((begin, plain.agent), (same, curious.agent)):
        assert any(not torch.equal(start[k], x) for k, x in agent.state_dict().items())
    assert all(torch.equal(begin[k], same[k]) for k in begin)
    now = curious.agent.state_dict()
    assert all(torch.equal(x, now[k]) for k, x in plain.agent.state_dict().items())
    assert {k: more[k] for k in told} == told and more.keys() - told.keys() == {"ensemble"}
    extra = now.keys() - begin.keys()
    assert extra and all(k.startswith("curiosity.members.") for k in extra)
    assert all(not torch.equal(same[k], now[k]) for k in extra if not k.endswith("1.bias"))


# ----------------------------------------------------------------------------------- the dream

def test_the_step_whose_action_makes_the_frame_is_paid():
    M, C, E = make()
    s, H = context(), 5
    plain = imagine(M, C, s, H, torch.Generator().manual_seed(3), 1)
    dream = imagine(M, C, s, H, torch.Generator().manual_seed(3), 1, doubt=E)
    assert plain.disagreement.shape == (8, 0) and dream.disagreement.shape == (8, H)
    for f in fields(Dream):                                 # nothing else changes, nothing is drawn
        if f.name not in ("start", "disagreement"):
            assert torch.equal(getattr(plain, f.name), getattr(dream, f.name)), f.name
    past, memory = [x[:, 1:2] for x in (s.z, s.action, s.mask)], None
    for t in range(H - 1):
        prediction, memory = foretell(M, dream.z[:, t], dream.action[:, t], memory, past,
                                      outputs=True)
        past = None
        by_hand = E(prediction.outputs, dream.z[:, t, None])[:, 0]
        assert torch.allclose(dream.disagreement[:, t], by_hand, atol=1e-12)
    assert (dream.disagreement[:, -1] == 0).all()
    pay = paid(dream, CuriosityConfig(4, weight=10.0, extrinsic=0.5))
    assert torch.allclose(pay.reward, 0.5 * dream.reward + 10 * dream.disagreement)
    assert pay.z is dream.z
    assert torch.equal(paid(dream, CuriosityConfig(4, 0.0)).reward, dream.reward)


def test_no_weight_changes_nothing_for_the_controller():
    "With weight 0 C learns bit by bit as without the ensemble; with another it does not."
    after = {}
    for heads, weight in ((0, 1), (4, 0), (4, 5)):
        s = prepare(toy(**{"curiosity.heads": heads, "curiosity.weight": weight}))
        collect(s)
        tokenise(s)
        stored = {k: x.clone() for k, x in s.replay.tensors().items()}
        torch.manual_seed(0)                                # `own_noise` and dropout
        metrics = learn_c(s, 3)
        s.worlds.close()
        assert all(torch.equal(x, s.replay.tensors()[k]) for k, x in stored.items())
        after[heads, weight] = metrics, s.agent.controller.state_dict()
    (plain, C), (zero, D), (_, F) = after.values()
    assert {k: zero[k] for k in plain} == plain and zero.keys() - plain.keys() == {"disagreement"}
    assert 0 < zero["disagreement"] < math.log(4)
    assert all(torch.equal(C[k], D[k]) for k in C) and any(not torch.equal(C[k], F[k]) for k in C)


# ------------------------------------------------------------------------------------- the run

def learnt(config, epoch):
    "A run after two updates of M and of C in this epoch; its state before, and what it told."
    s = prepare(config)
    collect(s)
    tokenise(s)
    before = {k: x.clone() for k, x in s.agent.state_dict().items()}
    s.epoch = epoch
    told = learn_m(s, 2), learn_c(s, 2)
    s.worlds.close()
    return s, before, told


def test_curiosity_may_end_with_the_collection():
    """From the first epoch that collects nothing on: M and C learn as without heads, with M's own
    reward in its weight, for as many operations, and the heads stay as they are. Before: as
    always."""
    weights = {"curiosity.heads": 4, "curiosity.weight": 10.0, "train_m.clip": 0.01}
    some = toy(**weights, **{"learn_on": 1, "curiosity.only_collecting": True})
    (s, before, (m, c)), (plain, _, found) = (
        learnt(config, 1) for config in (some, toy(**{"train_m.clip": 0.01})))
    now, theirs = s.agent.state_dict(), plain.agent.state_dict()
    assert all(torch.equal(now[k], x) for k, x in theirs.items()) and (m, c) == found
    heads = [k for k in now if k.startswith("curiosity.")]
    assert heads and all(torch.equal(now[k], before[k]) for k in heads)
    assert not s.learner.optimizers["curiosity"].state
    (early, _, of_early), (always, _, of_always), (late, _, of_late) = (
        learnt(some if short else toy(**weights), epoch)
        for short, epoch in ((True, 0), (False, 0), (False, 1)))
    for other, told in ((always, of_always), (late, of_late)):
        state = other.agent.state_dict()
        assert all(torch.equal(x, state[k]) for k, x in early.agent.state_dict().items())
        assert told == of_early and "ensemble" in told[0] and "disagreement" in told[1]
    half = learnt(some.change({"curiosity.extrinsic": 0.5}), 1)[0].agent.state_dict()
    assert {k.split(".")[0] for k, x in half.items() if not torch.equal(x, now[k])} == {
        "controller"}                                           # its reward has another weight
    counts = []
    for one in (s, plain):
        segment, start = m_batch(one), one.replay.contexts(4, 3, one.generator)
        with Tally() as seen:
            one.learner.m_step(segment, curious=False)
            one.learner.c_step(start, curious=False)
        counts.append((seen.flops, seen.calls))
    (flops, calls), (of_plain, fewer) = counts
    assert flops == of_plain and calls == fewer + 1             # (18.9): times w_ext


def test_the_end_of_curiosity_is_crossed_by_a_run(tmp_path):
    "Whole epochs on both sides of it; and one that is stopped there goes on as if it had not been."
    config = toy(**{"curiosity.heads": 4, "learn_on": 1, "curiosity.only_collecting": True})
    ends = []
    for stop in (None, "m", "c"):
        s, record = two_epochs(config, stop, tmp_path / str(stop))
        assert "m/ensemble" not in record and "c/disagreement" not in record and "m/obs" in record
        ends.append((s.agent.state_dict(), record))
    (state, record), *others = ends
    assert all(told == record for _, told in others)
    assert all(torch.equal(x, other[k]) for other, _ in others for k, x in state.items())


@pytest.mark.parametrize("name", WORLDS)
def test_every_kind_of_observation(name):
    s = prepare(toy(name, **{"curiosity.heads": 2}))
    for _ in range(2):
        record = run_epoch(s)
    s.worlds.close()
    count = len(s.agent.tokenizer.layout.groups)
    assert 0 < record["c/disagreement"] < count * math.log(2) and record["m/ensemble"] > 0
    assert all(metric_key(key) for key in record)                       # the table knows them
    assert not any(m.training for m in s.agent.modules())


def test_off_is_as_before():
    "No module, no optimiser, no entry in the description, no number that is logged."
    s = prepare(toy())
    record = run_epoch(s)
    s.worlds.close()
    assert s.agent.curiosity is None and s.learner.doubt is None
    assert not [k for k in s.agent.state_dict() if "curio" in k]
    assert s.learner.optimizers.keys() == {"m", "c"}
    assert s.agent.describe()["config"].keys() == {"tokenizer", "world_model", "controller"}
    assert "m/ensemble" not in record and "c/disagreement" not in record


def test_saved_with_the_agent(tmp_path):
    s = prepare(toy(**{"curiosity.heads": 3, "curiosity.weight": 2.5, "train_m.batch": 6}))
    s.worlds.close()
    s.agent.save(tmp_path / "agent")
    again = Agent.load(tmp_path / "agent")
    assert again.describe() == s.agent.describe() and again.curiosity.config.weight == 2.5
    theirs = again.state_dict()
    assert all(torch.equal(x, theirs[k]) for k, x in s.agent.state_dict().items())
    for heads in (2, 4, 10**7, "three"):                    # what these tensors do not fit
        told = s.agent.describe()
        told["config"]["curiosity"]["heads"] = heads
        with pytest.raises((DamagedError, UserError)):
            check_agent(Checkpoint({"agent": theirs}, told, tmp_path), "agent")


@pytest.mark.parametrize("stage", ["m", "c"])
def test_stopped_in_the_middle_and_gone_on(tmp_path, stage):
    "A run that is saved after the first update of a stage ends as one that never stopped."
    config = toy("parcels", **{"curiosity.heads": 4, "world_model.retnet.dropout": 0.1})
    ends = []
    for stop in (None, stage):
        s, record = two_epochs(config, stop, tmp_path)
        moments = {(name, i, k): x for name, o in s.learner.optimizers.items()
                   for i, slots in o.state_dict()["state"].items() for k, x in slots.items()}
        ends.append((s.agent.state_dict(), moments, record))
    (a, moments, record), (b, others, again) = ends
    assert all(torch.equal(x, b[k]) for k, x in a.items()) and record == again
    assert moments.keys() == others.keys() and any(name == "curiosity" for name, *_ in moments)
    assert all(torch.equal(x, others[k]) for k, x in moments.items())


def test_what_is_not_finite_is_found():
    s = prepare(toy(**{"curiosity.heads": 2}))
    collect(s)
    tokenise(s)
    with torch.no_grad():
        s.agent.curiosity.members[1][0][0].weight[0, 0] = torch.nan
    with pytest.raises(loop.Diverged, match="m/ensemble is nan"):
        learn_m(s, 2)
    s.worlds.close()


def test_bench_and_rehearsal_count_it():
    config = toy(**{"curiosity.heads": 2})
    specs = infer_specs(config)
    (plain, resident), (more, larger) = (
        needs(c, *specs) for c in (toy(), config))
    for part in ("M", "C"):
        assert more[part].flops > plain[part].flops and more[part].calls > plain[part].calls
    assert larger > resident and more["play"] == plain["play"]
    assert memory_shares(config, *specs)["--curiosity.heads 2"] > 0
    assert not [k for k in memory_shares(toy(), *specs) if "curio" in k]
    found = [bench(c, repeats=1)["flops"] for c in (toy(), config)]
    assert found[1]["M"] > found[0]["M"] and found[1]["C"] > found[0]["C"]


@pytest.mark.parametrize("changes, said", [
    ({"curiosity.heads": 1}, "one head cannot disagree"),
    ({"curiosity.heads": 3}, "use a multiple of 3"),
    ({"curiosity.heads": 65}, "between 0 and 64"),
    ({"curiosity.heads": 4, "curiosity.weight": -0.5}, "curiosity.weight = -0.5 is out of range"),
    ({"curiosity.heads": 4, "curiosity.extrinsic": -1}, "curiosity.extrinsic = -1"),
    ({"curiosity.heads": 4, "curiosity.weight": 0, "curiosity.extrinsic": 0}, "nothing to be paid"),
    ({"curiosity.only_collecting": True}, "only_collecting changes nothing without heads"),
    ({"curiosity.weight": 10}, "--curiosity.heads 4"),
    ({"curiosity.extrinsic": 0}, "change nothing without heads"),
])
def test_refused_in_one_line(changes, said):
    with pytest.raises(UserError) as error:
        toy(**changes)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_processes_share_the_rows_of_every_head():
    class Two(loop.Learner.__init__.__kwdefaults__["team"]):
        processes = staticmethod(lambda: 2)

    s = prepare(toy(**{"curiosity.heads": 4}))
    s.worlds.close()
    with pytest.raises(UserError, match="2 processes with 4 heads each: use a multiple of 8") as e:
        losses_of(s.agent, s.config, team=Two)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", ["cartpole", "catch", "rooms", "parcels"])
def test_it_can_be_compiled(name):
    "In one piece, for every kind of head; the values stay."
    s = prepare(toy(name, **{"curiosity.heads": 2}))
    s.worlds.close()
    E, layout = s.agent.curiosity, s.agent.tokenizer.layout
    y, now = torch.randn(4, 2, layout.K, 16), torch.zeros(4, 2, layout.S).long()
    share = torch.full((4, 2), 1 / 8)
    for f, inputs in ((E.forward, (y, now)), (E.loss, (y, now, now, share))):
        traced = torch.compile(f, dynamic=False, fullgraph=True, backend="aot_eager")
        assert torch.allclose(traced(*inputs), f(*inputs), atol=1e-6)
