"""A critic that is one number, and a C that plays as the mean of the C that learns: what each says,
that nothing else changes, and a run that is stopped and gone on."""
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings, strategies as st

from simulus_nb import loop
from simulus_nb.agent import Agent
from simulus_nb.config import preset
from simulus_nb.controller import ActorCritic, ControllerConfig, Number
from simulus_nb.learner import follow
from simulus_nb.loop import collect, learn_c, learn_m, tokenise
from simulus_nb.run_setup import prepare
from simulus_nb.spaces import ActionSpec, TokenGroup, TokenLayout, UserError
from stopping import two_epochs

LAYOUT = TokenLayout((TokenGroup("pose", "vector", 2, (25,), ordered=True),))
BOTH = {"controller.value": "number", "train_c.average": 0.1}


def toy(**changes):
    return preset("small").change({
        "threads": 1, "controller.value": "histogram", "train_c.average": 1, "collect.steps": 40,
        "collect.capacity": 300, "controller.width": 16,
        "controller.embedding": 4, "world_model.retnet.width": 16, "world_model.retnet.layers": 1,
        "train_m.batch": 4, "train_m.segment": 6, "train_m.steps": 3, "train_m.start": 0,
        "train_c.batch": 6, "train_c.horizon": 5, "train_c.steps": 3, "train_c.start": 0,
        "train_c.scale_window": 4, "evaluation.every": 0, **changes})


def critic(value="number", seed=0, width=8):
    torch.manual_seed(seed)
    config = ControllerConfig(width=width, embedding=4, value=value, value_mean="raw")
    return ActorCritic(LAYOUT, ActionSpec("discrete", (3,)), config).double()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(1, 1e4), min_size=1, max_size=6), st.integers(0, 99))
def test_no_unit_changes_a_value(units, seed):
    C = critic(seed=seed)
    torch.nn.init.normal_(C.critic.weight), torch.nn.init.normal_(C.critic.bias)
    h = torch.randn(2, 5, 8, dtype=torch.float64)
    before = C.value.decode(C.heads(h)[1])
    for unit in units:
        C.measure_in(torch.tensor(unit, dtype=torch.float64))
        assert torch.allclose(C.value.decode(C.heads(h)[1]), before, rtol=1e-9, atol=1e-9)
        assert C.value.unit == unit


def test_its_loss_is_least_at_the_mean_of_what_follows():
    value, out = Number().double(), torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    value.unit.fill_(5.0)
    targets = torch.tensor([3.0, 3.0, 3.0, 40.0], dtype=torch.float64)      # rarely, much
    best = targets.mean() / 5
    with torch.no_grad():
        out.fill_(best)
    value.loss(out.expand(4, 1), targets).mean().backward()
    assert out.grad.abs().item() < 1e-12 and value.decode(out.detach()).item() == targets.mean()


def test_a_histogram_has_no_unit():
    C = critic("histogram")
    before = {k: x.clone() for k, x in C.state_dict().items()}
    C.measure_in(torch.tensor(7.0))
    assert all(torch.equal(x, before[k]) for k, x in C.state_dict().items())


@pytest.mark.parametrize("w", [0.25, 0.01, 1.0])
def test_the_weights_of_the_mean(w):
    "Against exact fractions: each update's share in the mean, and the shares make 1."
    mean, newest = critic(seed=1), critic(seed=2)
    shares, n = [], 12
    for k in range(1, n + 1):
        part = max(Fraction(w), Fraction(1, k))
        shares = [s * (1 - part) for s in shares] + [part]
    assert sum(shares) == 1
    seen = []
    for k in range(1, n + 1):
        with torch.no_grad():
            newest.actor.weight.normal_()
        seen.append(newest.actor.weight.detach().clone())
        follow(mean, newest, w, torch.tensor(float(k)))
    wanted = sum(float(s) * x for s, x in zip(shares, seen))
    assert torch.allclose(mean.actor.weight, wanted, atol=1e-6)     # the part is a float32
    if w == 1:
        assert torch.equal(mean.actor.weight, newest.actor.weight)


def test_the_mean_has_the_unit_of_what_it_follows():
    mean, newest = critic(seed=1), critic(seed=2)
    for C, unit in ((mean, 2.0), (newest, 30.0)):
        torch.nn.init.normal_(C.critic.weight)
        C.measure_in(torch.tensor(unit))
    h = torch.randn(2, 4, 8, dtype=torch.float64)
    value = lambda C: C.value.decode(C.heads(h)[1]).detach()
    before = value(mean)
    follow(mean, newest, 0.5, torch.tensor(10.0))
    assert torch.allclose(value(mean), (before + value(newest)) / 2)


def test_off_there_is_one_controller():
    s = prepare(toy())
    s.worlds.close()
    assert s.learner.controller is s.agent.controller


def played(config):
    "Three updates of M and ten of C on what one C without opinions has played."
    s = prepare(config)
    collect(s)
    s.worlds.close()
    tokenise(s)
    learn_m(s, 3)
    learn_c(s, 10)
    return s


def test_the_one_that_learns_learns_the_same():
    "Dreams, losses and returns are those of the newest, whoever plays."
    alone, two = played(toy(**{"controller.value": "number"})), played(toy(**BOTH))
    for k, x in alone.agent.controller.state_dict().items():
        assert torch.equal(x, two.learner.controller.state_dict()[k])
    a, b = two.agent.controller.actor.weight, two.learner.controller.actor.weight
    assert not torch.equal(a, b)
    for k, x in alone.agent.world_model.state_dict().items():
        assert torch.equal(x, two.agent.world_model.state_dict()[k])


def test_the_mean_plays_and_is_kept(tmp_path):
    s = played(toy(**BOTH))
    obs, spec = s.replay.gather_obs(torch.arange(4)), s.agent.action_spec
    none = torch.zeros(4, 1, spec.count, dtype=torch.int64)
    chances = lambda C, z: C(z[:, None], none, C.initial_state(4))[0]
    z = s.agent.tokenizer.encode(obs)
    with torch.no_grad():
        mean, newest = (chances(C, z) for C in (s.agent.controller, s.learner.controller))
    assert not torch.allclose(mean, newest)
    s.agent.save(tmp_path / "agent")
    again = Agent.load(tmp_path / "agent")
    with torch.no_grad():
        assert torch.equal(chances(again.controller, again.tokenizer.encode(obs)), mean)
    assert spec == again.action_spec


@pytest.mark.parametrize("stage", ["m", "c"])
def test_stopped_in_the_middle_and_gone_on(tmp_path, stage):
    "A run that is saved after the first update of a stage ends as one that never stopped."
    ends, records = [], []
    for stop in (None, stage):
        s, record = two_epochs(toy(**BOTH), stop, tmp_path)
        ends.append(s.agent.state_dict() | {
            f"learns.{k}": x for k, x in s.learner.controller.state_dict().items()})
        records.append(record)
    assert records[0] == records[1]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(x, ends[1][k]) for k, x in ends[0].items())


def test_what_is_not_finite_is_found_where_it_learns():
    s = prepare(toy(**BOTH))
    collect(s)
    tokenise(s)
    with torch.no_grad():
        s.learner.controller.critic.weight[0, 0] = torch.nan
    with pytest.raises(loop.Diverged, match="C, the controller|c/"):
        learn_c(s, 2)
    s.worlds.close()


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_a_share_is_above_0_and_not_above_1(share):
    with pytest.raises(UserError, match="train_c.average") as error:
        toy(**{"train_c.average": share})
    assert "\n" not in str(error.value)


def test_values_follow_returns_that_rise():
    """What makes one state better stays known while all values rise; a histogram learns it anew for
    each of its bins, Eq. (16.15a)."""
    told = {}
    for kind in ("histogram", "number"):
        C = critic(kind, seed=3, width=64)
        optimizer = torch.optim.Adam(C.parameters(), 2e-3)
        start, share = C.initial_state(64), []
        g = torch.Generator().manual_seed(0)
        for u in range(200):
            C.measure_in(torch.tensor(5.0))
            z = torch.randint(25, (64, 2), generator=g)
            G = 0.3 * u + 10 * (z[:, 0] / 24 - 0.5).double()
            x = [trunk.encode(z[:, None]) for trunk in C.trunks]
            out = C.heads(C.read(x, start)[0][:, :, 0])[1]
            optimizer.zero_grad()
            C.value.loss(out, G).mean().backward()
            optimizer.step()
            share.append(1 - ((G - C.value.decode(out.detach())).var() / G.var()).item())
        told[kind] = sum(share[100:]) / 100
    assert told["number"] > 0.7 and told["number"] > told["histogram"] + 0.3


def test_a_learner_of_a_mean_leaves_no_gradient_in_it():
    s = played(toy(**BOTH))
    assert all(p.grad is None for p in s.agent.controller.parameters())
