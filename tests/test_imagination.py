"Dreams and what C learns from them: enumeration, masks, boundaries between V, M and C."
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F

from simulus_nb.controller import Controller, ControllerConfig, log_prob
from simulus_nb.imagination import (
    ControllerLossConfig, Dream, controller_loss, imagine, sample_observation
)
from simulus_nb.replay import Segment
from simulus_nb.retnet import RetNetConfig
from simulus_nb.returns import ReturnScale, lambda_return_recurrent
from simulus_nb.spaces import ActionSpec, TokenGroup, TokenLayout, UserError
from simulus_nb.world_model import Prediction, WorldModel, WorldModelConfig, world_model_loss

LAYOUT = TokenLayout(
    (
        TokenGroup("obs", "image", 4, (8,), grid=(2, 2)),
        TokenGroup("map", "grid", 2, (3, 4), grid=(1, 2))
    )
)
ACTIONS = {
    "discrete": ActionSpec("discrete", (3,)), "multidiscrete": ActionSpec("multidiscrete", (3, 2)),
    "continuous": ActionSpec("continuous", (5, 5), (-1.0, -1.0), (1.0, 1.0), (2,), "float32")
}


def make(actions="discrete", shared=True, seed=0, book=None, sequence="retnet"):
    torch.manual_seed(seed)
    book = torch.randn(8, 6, dtype=torch.float64) if book is None else book
    books = lambda: {"obs": book}
    sizes = WorldModelConfig(RetNetConfig(width=16, heads=2, layers=2), sequence=sequence)
    M = WorldModel(LAYOUT, ACTIONS[actions], sizes, books).double().eval()
    for p in M.parameters():
        nn.init.normal_(p, std=0.4)
    C = Controller(
        LAYOUT, ACTIONS[actions],
        ControllerConfig(width=12, channels=(4, 3), embedding=4, shared=shared), books
    ).double()
    for layer in (C.actor, C.critic):
        nn.init.normal_(layer.weight)
    return M, C


def make_context(C, B=4, T=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(T) >= torch.randint(T, (B,), generator=g)[:, None]
    sizes = torch.tensor([8] * 4 + [3, 4] * 2)
    z = (torch.rand(B, T, 8, generator=g) * sizes).long() * mask[..., None]
    action = (
        torch.rand(B, T, C.action_spec.count, generator=g) * torch.tensor(C.action_spec.nvec)
    ).long() * mask[..., None]
    return Segment(
        z, action, torch.randn(B, T, generator=g) * mask, torch.zeros(B, T).bool(), mask,
        torch.zeros(B, T).long()
    )


def gen(seed):
    return torch.Generator().manual_seed(seed)


def same(a, b):
    return all(
        torch.equal(x, y)
        for f in fields(Dream)
        if f.name != "start"
        for x, y in [(getattr(a, f.name), getattr(b, f.name))]
    ) and all(torch.equal(x, y) for x, y in zip(a.start, b.start))


def loss_and_grads(C, dream, config=ControllerLossConfig(), window=5):
    scale = ReturnScale(window, batch=dream.reward[:, 1:].numel()).double()
    loss, metrics = controller_loss(C, dream, scale, config)
    grads = torch.autograd.grad(loss, list(C.parameters()), allow_unused=True)
    return torch.cat([loss.detach()[None], *(g.flatten() for g in grads if g is not None)]), metrics


def close(a, b, rtol=1e-9, atol=1e-11):
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("actions", ACTIONS)
def test_shapes_and_ranges(actions):
    M, C = make(actions)
    dream = imagine(M, C, make_context(C), 6, gen(0))
    K_a = ACTIONS[actions].count
    assert (
        dream.z.shape == (4, 6, 8)
        and dream.action.shape == (4, 6, K_a)
        and dream.reward.shape == dream.done.shape == dream.alive.shape == (4, 6)
    )
    assert (dream.z >= 0).all() and (dream.z < torch.tensor([8] * 4 + [3, 4] * 2)).all()
    assert (dream.action >= 0).all() and (dream.action < torch.tensor(ACTIONS[actions].nvec)).all()
    assert (
        (dream.action[:, -1] == 0).all()
        and (dream.reward[:, -1] == 0).all()
        and (dream.done[:, -1] == 0).all()
    )
    alive = torch.cat([torch.ones(4, 1), (1 - dream.done).cumprod(1)[:, :-1]], 1)
    assert torch.equal(dream.alive, alive)
    assert not any(t.requires_grad for t in (dream.reward, *dream.start))


def test_horizon_must_hold_a_transition():
    M, C = make()
    with pytest.raises(UserError, match="horizon of 2"):
        imagine(M, C, make_context(C), 1)


def test_generator_decides():
    M, C = make()
    context = make_context(C)
    a, b, c = (imagine(M, C, context, 6, gen(s)) for s in (0, 0, 1))
    assert same(a, b) and not same(a, c)


def test_dream_begins_at_the_last_row_of_the_context():
    M, C = make()
    context = make_context(C, T=4)
    dream = imagine(M, C, context, 3, gen(0))
    assert torch.equal(dream.z[:, 0], context.z[:, -1])
    last = replace(context, action=context.action.clone())
    last.action[:, -1] = 2 - last.action[:, -1]     # what was really done there is not looked at
    assert same(dream, imagine(M, C, last, 3, gen(0)))


def test_context_of_one_row():
    M, C = make()
    dream = imagine(M, C, make_context(C, T=1), 4, gen(0))
    assert all((s == 0).all() for s in dream.start) and dream.z.shape[1] == 4


def test_real_rewards_and_ends_are_never_read():
    M, C = make()
    context = make_context(C)
    lied = replace(
        context, reward=torch.full_like(context.reward, torch.nan), done=~context.done,
        index=context.index + 7
    )
    assert same(imagine(M, C, context, 5, gen(0)), imagine(M, C, lied, 5, gen(0)))


@pytest.mark.parametrize("sequence", ["retnet", "attention"])
@settings(deadline=None, max_examples=10)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(2, 7), st.integers(0, 99), st.booleans())
def test_dreaming_is_reading_the_dream(sequence, B, T, H, seed, shared):
    "Both networks, told the finished dream at once, say what they said while it was dreamt."
    M, C = make("multidiscrete", shared, seed=1, sequence=sequence)
    context = make_context(C, B, T, seed)
    dream = imagine(M, C, context, H, gen(seed))
    before = (context.z[:, :-1], context.action[:, :-1], context.mask[:, :-1])
    told, _ = M(dream.z[:, :-1], dream.action[:, :-1], M.remember(*before))
    close(M.reward.decode(told.reward), dream.reward[:, :-1])
    for s, r in zip(dream.start, C.remember(*before)):
        close(s, r)
    memory, state = M.remember(*before), dream.start
    logits = C(dream.z, dream.action, dream.start)[0]
    for t in range(H - 1):
        one, memory = M(dream.z[:, t : t + 1], dream.action[:, t : t + 1], memory)
        for key in told.obs:
            close(one.obs[key][:, 0], told.obs[key][:, t])
        close(one.done[:, 0], told.done[:, t])
        step, _, state = C.step(dream.z[:, t], state)
        close(step, logits[:, t])
        state = C.act(dream.action[:, t], state)


def test_whole_context_at_once_gives_the_same_predictions():
    "Context and dream as one real segment: what M learns in training is what it does in a dream."
    M, C = make()
    context = replace(make_context(C), mask=torch.ones(4, 3).bool())
    dream = imagine(M, C, context, 5, gen(0))
    z, action = (
        torch.cat([context.z[:, :-1], dream.z], 1),
        torch.cat([context.action[:, :-1], dream.action], 1)
    )
    whole, _ = M(z[:, :-1], action[:, :-1], first=3)
    close(M.reward.decode(whole.reward), dream.reward[:, :-1])


def test_sampled_tokens_follow_the_model():
    p = torch.tensor([0.6, 0.3, 0.1])
    layout = TokenLayout((TokenGroup("a", "vector", 2, (3,)),))
    logits = torch.stack([p.log(), p.flip(0).log()]).expand(30_000, 1, 2, 3)
    z = sample_observation(layout, Prediction({"a": logits[..., None, :]}, None, None), gen(0))[
        :, 0
    ]
    freq = torch.stack([F.one_hot(z[:, k], 3).float().mean(0) for k in range(2)])
    assert z.shape == (30_000, 2) and (freq - torch.stack([p, p.flip(0)])).abs().max() < 0.015
    joint = ((z[:, 0] == 0) & (z[:, 1] == 2)).float().mean()
    assert abs(joint - 0.36) < 0.015                                # tokens are independent given y


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("shared", [True, False])
def test_loss_with_plain_loops(actions, shared):
    M, C = make(actions, shared)
    dream = imagine(M, C, make_context(C, B=6), 6, gen(3))
    dream = replace(dream, reward=3 * dream.reward)
    assert 0 < dream.done.sum() and (dream.alive[:, :-1] == 0).any()
    config = ControllerLossConfig(gamma=0.9, lam=0.8, entropy=0.05)
    (loss, *_), metrics = loss_and_grads(C, dream, config)
    logits, value_logits, _ = C(dream.z, dream.action, dream.start)
    value = C.value.decode(value_logits)
    G = lambda_return_recurrent(dream.reward, dream.done, value, gamma=0.9, lam=0.8)
    actor = critic = n = 0
    reduce = torch.mean if actions == "continuous" else torch.sum
    for b in range(6):
        for t in range(5):
            logp = logits[b, t].log_softmax(-1)
            chosen = reduce(torch.stack([logp[j, a] for j, a in enumerate(dream.action[b, t])]))
            H = reduce(-(logp.exp() * logp).sum(-1))
            actor = (
                actor
                - (G[b, t] - value[b, t]) / max(1.0, metrics["return_scale"]) * chosen
                - 0.05 * H
            )
            critic = critic - (C.value.encode(G[b, t]) * value_logits[b, t].log_softmax(-1)).sum()
            n += 1
            if dream.done[b, t]:
                break
    (
        close(loss, (actor + critic) / n), close(metrics["actor"], actor / n),
        close(metrics["critic"], critic / n)
    )


@settings(deadline=None, max_examples=12)
@given(st.integers(1, 5), st.integers(2, 7), st.integers(0, 99))
def test_steps_after_the_end_contribute_nothing(B, H, seed):
    M, C = make()
    g = gen(seed)
    dream = imagine(M, C, make_context(C, B), H, g)
    done = (torch.rand(B, H, generator=g) < 0.3).float()
    alive = torch.cat([torch.ones(B, 1), (1 - done).cumprod(1)[:, :-1]], 1)
    dream = replace(dream, done=done, alive=alive)
    dead, last = alive == 0, torch.arange(H).expand(B, H) == H - 1
    out = dead | last
    other = replace(dream, reward=dream.reward + 1e4 * out, done=torch.where(out, 1 - done, done),
                    action=torch.where(out[..., None], 2 - dream.action, dream.action),
                    z=torch.where(dead[..., None], torch.zeros_like(dream.z), dream.z))
    a, b = loss_and_grads(C, dream), loss_and_grads(C, other)
    close(a[0], b[0])
    for k in a[1]:
        close(a[1][k], b[1][k])


def test_live_steps_do_count():
    M, C = make()
    dream = imagine(M, C, make_context(C), 5, gen(0))
    done = torch.zeros(4, 5)
    done[0, 2] = 1
    dream = replace(
        dream, done=done, alive=torch.cat([torch.ones(4, 1), (1 - done).cumprod(1)[:, :-1]], 1)
    )
    base = loss_and_grads(C, dream)[0]
    for t in range(4):
        reward = dream.reward.clone()
        reward[:, t] += dream.alive[:, t]
        assert (loss_and_grads(C, replace(dream, reward=reward))[0] - base).abs().max() > 1e-6


def test_gradients_stay_where_they_belong():
    book = torch.randn(8, 6, dtype=torch.float64, requires_grad=True)
    M, C = make("multidiscrete", False, book=book)
    context = make_context(C, B=8)
    dream = imagine(M, C, context, 6, gen(0))
    loss, _ = controller_loss(C, dream, ReturnScale(batch=8 * 5), ControllerLossConfig())
    loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in C.parameters())
    assert all(p.grad is None for p in M.parameters()) and book.grad is None
    C.zero_grad(set_to_none=True)
    world_model_loss(M, context.z, context.action, context.reward, context.done, context.mask)[
        0
    ].backward()
    assert (
        all(p.grad is None for p in C.parameters())
        and book.grad is None
        and any(p.grad is not None for p in M.parameters())
    )


def test_critic_may_learn_alone():
    "With `actor=False` the loss is the critic's term, and the actor's head feels nothing."
    M, C = make()
    dream = imagine(M, C, make_context(C), 5, gen(0))
    config, scales = (
        ControllerLossConfig(),
        [ReturnScale(3, batch=dream.reward[:, 1:].numel()) for _ in range(2)]
    )
    both, metrics = controller_loss(C, dream, scales[0], config)
    alone, _ = controller_loss(C, dream, scales[1], config, actor=False)
    close(alone, metrics["critic"])
    close(both, metrics["critic"] + metrics["actor"])
    alone.backward()
    assert (
        all(p.grad is None or not p.grad.any() for p in C.actor.parameters())
        and C.critic.weight.grad.any()
    )


def test_critic_is_not_moved_by_the_actor():
    "sg: with separate trunks the critic's gradient does not depend on the policy at all."
    M, C = make(shared=False)
    dream = imagine(M, C, make_context(C), 5, gen(0))
    def critic_grads(config):
        loss, _ = controller_loss(C, dream, ReturnScale(batch=16), config)
        return torch.autograd.grad(loss, [*C.trunks[1].parameters(), C.critic.weight])
    before = critic_grads(ControllerLossConfig())
    with torch.no_grad():
        C.actor.weight.mul_(-3)
    for a, b in zip(before, critic_grads(ControllerLossConfig(entropy=5.0))):
        close(a, b)


class Chain:
    """A deterministic world of one token: action 1 climbs, action 0 slides to the bottom; height
    pays, the top ends it."""
    layout, actions = (
        TokenLayout((TokenGroup("height", "categorical", 1, (3,), sizes=(3,)),)),
        ActionSpec("discrete", (2,))
    )

    @staticmethod
    def rules(z, action):
        after = torch.where(action == 1, (z + 1).clamp(max=2), torch.zeros_like(z))
        return (
            after, after[..., 0].double() * 0.3 - 0.2 * action[..., 0], (after[..., 0] == 2).float()
        )


def every_dream(C, H, ends=True):
    action = torch.cartesian_prod(*[torch.arange(2)] * (H - 1)).view(-1, H - 1, 1)
    z, steps, alive = torch.zeros(len(action), 1, dtype=torch.long), [], torch.ones(len(action))
    for t in range(H - 1):
        after, reward, end = Chain.rules(z, action[:, t])
        end = end if ends else 0 * end
        steps.append((z, action[:, t], reward, end, alive))
        z, alive = after, alive * (1 - end)
    steps.append((z, 0 * action[:, 0], 0 * reward, 0 * end, alive))
    return Dream(*(torch.stack(x, 1) for x in zip(*steps)), C.initial_state(len(action)))


def probability(C, dream):
    logits = C(dream.z, dream.action, dream.start)[0]
    return log_prob(logits[:, :-1], dream.action[:, :-1], "discrete").sum(1).exp()


def row(dream, b):
    parts = {f.name: getattr(dream, f.name)[b : b + 1] for f in fields(dream) if f.name != "start"}
    return Dream(**parts, start=tuple(s[:, b : b + 1].contiguous() for s in dream.start))


def reinforce(C, dream, params, c=0.0, entropy=0.0):
    """Gradient of J: every dream's loss, undone of its mean over live steps, weighted by its
    probability."""
    p, steps, total = probability(C, dream).detach(), dream.z.shape[1] - 1, 0.0
    for b in range(len(p)):
        scale = ReturnScale(window=3 if c else 1, batch=steps).double()
        for past in (-c, c) if c else ():
            scale.update(torch.full((steps,), past))
        loss, metrics = controller_loss(
            C, row(dream, b), scale, ControllerLossConfig(1.0, 1.0, entropy)
        )
        assert c or metrics["return_scale"] <= 1
        total = total - p[b] * dream.alive[b, :-1].sum() * loss
    return torch.autograd.grad(total, params)


def chain_controller(seed):
    torch.manual_seed(seed)
    C = Controller(
        Chain.layout, Chain.actions, ControllerConfig(width=8, embedding=3, shared=False)
    ).double()
    nn.init.normal_(C.actor.weight), nn.init.normal_(C.critic.weight, std=0.1)
    return C, [*C.trunks[0].parameters(), *C.actor.parameters()]


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_expected_gradient_is_the_gradient_of_the_expected_return(ends, seed):
    "All dreams of a world enumerated; with ends, dreams have different lengths and dead steps."
    C, params = chain_controller(seed)
    dream = every_dream(C, 5, ends)
    assert (dream.alive == 0).any() == ends

    def J():
        value = C.value.decode(C(dream.z, dream.action, dream.start)[1]).detach()
        worth = lambda_return_recurrent(dream.reward, dream.done, value, gamma=1.0, lam=1.0)[:, 0]
        return (probability(C, dream) * worth).sum()

    close(probability(C, dream).sum(), torch.tensor(1.0, dtype=torch.float64))
    exact, sampled = torch.autograd.grad(J(), params), reinforce(C, dream, params)
    for e, s in zip(exact, sampled):
        close(s, e, atol=1e-10)
    for p, s in zip(params, sampled):
        with torch.no_grad():
            i = int(s.abs().argmax())
            flat, eps = p.view(-1), 1e-5
            flat[i] += eps
            up = J()
            flat[i] -= 2 * eps
            down = J()
            flat[i] += eps
        close((up - down) / (2 * eps), s.flatten()[i], rtol=1e-5, atol=1e-9)


def test_baseline_changes_the_noise_and_not_the_mean():
    C, params = chain_controller(0)
    dream = every_dream(C, 4)
    done = dream.done.clone()
    done[:, -2] = 1.0                                       # all end here: no value is bootstrapped
    dream = replace(dream, done=done)
    one_row = lambda: loss_and_grads(
        C, row(dream, 3), ControllerLossConfig(1.0, 1.0, 0.0), window=1
    )[1]["actor"]
    before, single = reinforce(C, dream, params), one_row()
    with torch.no_grad():
        C.critic.bias += torch.randn_like(C.critic.bias)
    assert abs(one_row() - single) > 1e-3
    for a, b in zip(before, reinforce(C, dream, params)):
        close(a, b, atol=1e-10)


@pytest.mark.parametrize("c, factor", [(0.5, 1.0), (4.0, 4.0), (50.0, 50.0)])
def test_scale_only_rescales(c, factor):
    C, params = chain_controller(1)
    dream = every_dream(C, 4)
    for a, b in zip(reinforce(C, dream, params), reinforce(C, dream, params, c=c)):
        close(a, factor * b, atol=1e-10)


def test_entropy_bonus_pulls_towards_uniform():
    C, params = chain_controller(0)
    dream = every_dream(C, 3)
    dream = replace(dream, reward=0 * dream.reward)
    weak, strong = (loss_and_grads(C, dream, ControllerLossConfig(entropy=w)) for w in (0.0, 1.0))
    close(weak[1]["actor"] - strong[1]["actor"], weak[1]["entropy"])
    optimizer = torch.optim.Adam(params, lr=0.05)
    for _ in range(100):
        loss, metrics = controller_loss(
            C, dream, ReturnScale(batch=8), ControllerLossConfig(entropy=10.0)
        )
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    assert metrics["entropy"] > 0.99 * torch.tensor(2.0).log()


def test_metrics_are_snapshots_without_gradient():
    M, C = make()
    dream = imagine(M, C, make_context(C), 5, gen(0))
    scale = ReturnScale(batch=16)
    _, first = controller_loss(C, dream, scale, ControllerLossConfig())
    kept = {k: v.clone() for k, v in first.items()}
    controller_loss(C, replace(dream, reward=100 * dream.reward), scale, ControllerLossConfig())
    assert all(torch.equal(first[k], kept[k]) and not first[k].requires_grad for k in first)
    close(first["dream_length"], dream.alive.sum(1).mean())


def test_loss_never_reads_a_number_on_the_host():
    "A fake tensor has no data: `.item()`, `bool()` or a shape that depends on data would raise."
    from torch._subclasses.fake_tensor import FakeTensorMode
    with FakeTensorMode():
        C = Controller(Chain.layout, Chain.actions, ControllerConfig(width=8, embedding=3))
        z, a = torch.zeros(3, 4, 1, dtype=torch.long), torch.zeros(3, 4, 1, dtype=torch.long)
        dream = Dream(
            z, a, torch.zeros(3, 4), torch.zeros(3, 4), torch.ones(3, 4), C.initial_state(3)
        )
        loss, _ = controller_loss(C, dream, ReturnScale(batch=9), ControllerLossConfig())
        assert loss.shape == ()
