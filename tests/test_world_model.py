"M: predictions, loss and invariants, on observations of every kind."
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces as gs
from hypothesis import given, settings, strategies as st
from torch import nn

from simulus_nb.accelerate import rounded
from simulus_nb.pop import pop_reference
from simulus_nb.retnet import RetNetConfig
from simulus_nb.spaces import ActionSpec, ObsSpec, TokenGroup, TokenLayout
from simulus_nb.tokenizer import MultiModalTokenizer, TokenizerConfig
from simulus_nb.vqvae import VQVAEConfig
from simulus_nb.world_model import (
    BlockEmbedding, Heads, Levels, WorldModel, WorldModelConfig, head, modality_losses,
    observation_loss, world_model_loss
)

torch.set_num_threads(1)
CONFIG = WorldModelConfig(
    RetNetConfig(width=16, heads=2, layers=2, dropout=0.0, windows=(1.0, 3.0)), reward_bins=11
)


def make(seed=0, dtype=torch.float64, wide=True):
    "V and M for a world with every kind of modality; large random weights if `wide`."
    torch.manual_seed(seed)
    spec = ObsSpec.from_space(
        gs.Dict(
            {
                "camera": gs.Box(0, 255, (8, 8, 3), np.uint8),
                "pose": gs.Box(-np.inf, np.inf, (2,)), "items": gs.MultiDiscrete([3, 2]),
                "map": gs.Box(0, np.broadcast_to([3, 1], (2, 2, 2)), (2, 2, 2), np.int64)
            }
        )
    )
    image = VQVAEConfig(
        image_size=8, channels=8, stages=2, code_dim=12, vocab=8, perceptual="none",
        quantiser="vq-gradient"
    )
    V = MultiModalTokenizer(spec, TokenizerConfig(image=image)).to(dtype)
    M = WorldModel(
        V.layout, ActionSpec.from_space(gs.MultiDiscrete([3, 4])), CONFIG, V.codebooks
    ).to(dtype)
    if wide:
        for p in M.parameters():
            nn.init.normal_(p, std=0.3)
    return V, M


def segment(M, B=3, T=5, seed=0):
    "A random segment: any valid tokens will do."
    g = torch.Generator().manual_seed(seed)
    parts = {
        k.key: torch.stack(
            [
                torch.randint(n, (B, T, k.count), generator=g)
                for n in (k.vocab if k.sizes is None else (min(k.sizes),))
            ],
            -1,
        )
        for k in M.layout.groups
    }
    return dict(
        z=M.layout.join(parts), action=torch.randint(3, (B, T, 2), generator=g),
        reward=3 * torch.randn(B, T, generator=g, dtype=torch.float64),
        done=torch.rand(B, T, generator=g) < 0.3, mask=torch.ones(B, T, dtype=torch.bool)
    )


def flat(p):
    "Every logit of a prediction, (B, P, ·), masked ones as 0."
    x = torch.cat([*(l.flatten(2) for l in p.obs.values()), p.reward, p.done[..., None]], -1)
    return torch.where(x > -1e30, x, 0.0)


def close(a, b, rtol=1e-9):
    assert ((a - b).abs().max() <= rtol * b.abs().max()), (a - b).abs().max() / b.abs().max()


@settings(deadline=None, max_examples=10)
@given(T=st.integers(1, 5), B=st.integers(1, 3), first=st.integers(1, 5), seed=st.integers(0, 100))
def test_one_pass_equals_steps(T, B, first, seed):
    _, M = make(seed)
    s, first = segment(M, B, T, seed), min(first, T)
    whole, end = M(s["z"], s["action"], first=first)
    state, steps = None, []
    for t in range(T):
        p, state = M(s["z"][:, t:t+1], s["action"][:, t:t+1], state)
        steps.append(flat(p))
    close(flat(whole), torch.cat(steps, 1)[:, first - 1:])
    close(state, end)
    close(M.remember(s["z"], s["action"]), end)
    yu, _ = pop_reference(M.retnet, M.embed(s["z"], s["action"]), M.xu)
    close(flat(M.predict(yu, s["z"])), torch.cat(steps, 1))


def test_shapes_and_names():
    V, M = make()
    p, state = M(*(segment(M)[k] for k in ("z", "action")))
    assert {k: tuple(x.shape) for k, x in p.obs.items()} == {
        "camera": (3, 5, 4, 1, 8), "items": (3, 5, 2, 1, 3), "map": (3, 5, 4, 2, 4),
        "pose": (3, 5, 2, 1, 125)
    }
    assert (
        p.reward.shape == (3, 5, 11) and p.done.shape == (3, 5) and state.shape == (2, 3, 2, 8, 8)
    )
    assert not any(
        name.startswith(("reward", "embed.obs.0.codebook")) for name, _ in M.named_parameters()
    )
    assert isinstance(M.embed, BlockEmbedding) and isinstance(M.predict, Heads)


def test_tokens_that_do_not_exist_have_no_probability():
    _, M = make()
    p, _ = M(*(segment(M)[k] for k in ("z", "action")))
    assert (p.obs["items"].softmax(-1)[:, :, 1, 0, 2:] == 0).all() and (
        p.obs["items"].softmax(-1)[:, :, 0] > 0
    ).all()
    assert (p.obs["map"].softmax(-1)[:, :, :, 1, 2:] == 0).all() and (
        p.obs["map"].softmax(-1)[:, :, :, 0] > 0
    ).all()


def test_untrained_answers_are_uniform():
    _, M = make(dtype=torch.float32, wide=False)
    s = segment(M)
    _, metrics = world_model_loss(M, **{**s, "reward": s["reward"].float()})
    K = M.K
    expected = (
        4 * math.log(8)
        + 2 * math.log(125)
        + (math.log(3) + math.log(2))
        + 4 * (math.log(4) + math.log(2))
    ) / K
    assert (
        abs(metrics["obs"] - expected) < 0.2
        and abs(metrics["reward"] - math.log(11)) < 0.2
        and abs(metrics["done"] - math.log(2)) < 0.1
    )
    assert abs(M.reward.decode(torch.zeros(11))) < 1e-5


def reference(M, z, action, reward, done, mask, context=1):
    "The loss word for word: every term's mean over its own targets, with padding cut away."
    terms = []
    for b in range(len(z)):
        for t in range(z.shape[1] - 1):
            if not (mask[b, t] and mask[b, t + 1]):
                continue
            start = int(mask[b].int().argmax())
            p, _ = M(
                z[b : b + 1, start : t + 1], action[b : b + 1, start : t + 1], first=t + 1 - start,
                done=done[b : b + 1, start : t + 1]
            )
            obs = 0.0 if t + 1 >= context else torch.nan    # frames are no targets before `context`
            for key, target in M.layout.split(z[b, t + 1]).items():
                for i in range(target.shape[0]):
                    for c in range(target.shape[1]):
                        obs -= p.obs[key][0, 0, i, c].softmax(-1)[target[i, c]].log() / M.K
            q = M.reward.encode(reward[b, t])
            rew = -(q * p.reward[0, 0].log_softmax(-1)).sum()
            chance = p.done[0, 0].sigmoid()
            terms.append(torch.stack([obs, rew, -(chance if done[b, t] else 1 - chance).log()]))
    return torch.stack(terms).nanmean(0)


@settings(deadline=None, max_examples=8)
@given(
    seed=st.integers(0, 100), context=st.integers(1, 3), left=st.integers(0, 2),
    right=st.integers(0, 2)
)
def test_loss_equals_the_slow_one(seed, context, left, right):
    _, M = make(seed)
    s = segment(M, seed=seed)
    s["mask"][0, :left] = False
    s["mask"][1, 5 - right:] = False
    loss, metrics = world_model_loss(M, **s, context=context)
    expected = reference(M, **s, context=context)
    close(torch.stack([metrics[k] for k in ("obs", "reward", "done")]), expected)
    close(loss, expected.sum())
    assert torch.equal(metrics["loss"], loss) and not any(x.requires_grad for x in metrics.values())


@pytest.mark.parametrize("weight", [0.0, 1.0, 10.0])
def test_the_reward_may_weigh_more(weight):
    "Gradients are linear in the weight, and the reported terms do not depend on it."
    _, M = make()
    s, params = segment(M), [p for p in M.parameters() if p.requires_grad]
    def of(weight):
        loss, metrics = world_model_loss(M, **s, reward_weight=weight)
        return torch.autograd.grad(loss, params, allow_unused=True), metrics
    (without, a), (once, b), (more, c) = of(0.0), of(1.0), of(weight)
    zero = lambda x, p: torch.zeros_like(p) if x is None else x
    for p, x, y, z in zip(params, without, once, more):
        x, y, z = zero(x, p), zero(y, p), zero(z, p)
        close(z, x + weight * (y - x))
    assert all(a[k] == b[k] == c[k] for k in ("obs", "reward", "done"))


def test_padding_and_context_have_no_say():
    _, M = make()
    s = segment(M)
    s["mask"][0, :2] = s["mask"][1, 3:] = False
    blocks = []
    hook = M.embed.register_forward_hook(
        lambda module, args, X: (X.retain_grad(), blocks.append(X)) and None
    )
    loss, _ = world_model_loss(M, **s)
    loss.backward()
    hook.remove()
    gradient = blocks[0].grad.abs().sum((2, 3))
    assert (
        (gradient[~s["mask"][:, :-1]] == 0).all()
        and (gradient[2] > 0).all()
        and (gradient[1, :2] > 0).all()
        and gradient[1, 2] == 0
    )
    noise = dict(
        s, z=torch.where(s["mask"][..., None], s["z"], 1 - s["z"].clamp(max=1)),
        reward=torch.where(s["mask"], s["reward"], 7.0), done=s["done"] | ~s["mask"]
    )
    close(world_model_loss(M, **noise)[0], loss, 1e-12)
    early = dict(s, z=s["z"].clone())
    # a frame among the context blocks is no target,
    early["z"][2, 1] = 1 - early["z"][2, 1].clamp(max=1)
    *_, a = world_model_loss(M, **early)
    *_, b = world_model_loss(M, **s)
    assert abs(a["obs"] - b["obs"]) > 1e-6
    early = dict(s, reward=s["reward"].clone(), done=s["done"].clone())
    early["reward"][2, :2], early["done"][2, :2] = 50.0, ~s["done"][2, :2]
    (_, a), (_, b) = (world_model_loss(M, **x, context=3) for x in (early, s))
    # but rewards and ends there are
    assert abs(a["reward"] - b["reward"]) > 1e-3 and abs(a["done"] - b["done"]) > 1e-3
    close(a["obs"], b["obs"], 1e-12)


def test_the_first_frames_are_no_targets():
    _, M = make()
    s = segment(M)
    p, _ = M(s["z"][:, :-1], s["action"][:, :-1], context=3)
    whole, _ = M(s["z"][:, :-1], s["action"][:, :-1])
    assert all(torch.equal(x, whole.obs[k][:, 2:]) for k, x in p.obs.items()) and torch.equal(
        p.reward, whole.reward
    )
    tell = [modality_losses(M.layout, p, s["z"][:, 3:])[k].mean() for k in p.obs]
    _, metrics = world_model_loss(M, **dict(s, done=torch.zeros_like(s["done"])), context=3)
    close(torch.stack([metrics[f"obs/{k}"] for k in p.obs]), torch.stack(tell))


def test_frames_that_end_an_episode_do_not_move_those_that_do_not():
    _, M = make()
    s = segment(M)
    args = s["z"][:, :-1], s["action"][:, :-1]
    nn.init.normal_(M.predict.end)
    told, asked = M(*args, done=s["done"][:, :-1])[0], M(*args)[0]
    changed = (
        torch.stack([(told.obs[k] - x).abs().amax((2, 3, 4)) for k, x in asked.obs.items()]).amax(0)
        > 0
    )
    assert (
        torch.equal(changed, s["done"][:, :-1])
        and torch.equal(told.reward, asked.reward)
        and torch.equal(told.done, asked.done)
    )
    loss, _ = world_model_loss(M, **dict(s, done=torch.zeros_like(s["done"])))
    loss.backward()
    assert (M.predict.end.grad == 0).all()                  # no end, nothing to learn about ends
    M.zero_grad()
    world_model_loss(M, **s)[0].backward()
    assert (M.predict.end.grad != 0).all()


def test_nothing_to_learn_is_zero_not_nan():
    _, M = make()
    s = segment(M)
    s["mask"][:] = False
    loss, _ = world_model_loss(M, **s)
    loss.backward()
    assert loss == 0 and all((p.grad == 0).all() for p in M.parameters() if p.grad is not None)


@pytest.mark.parametrize("t", [1, 3, 4])
def test_future_changes_nothing_before(t):
    _, M = make()
    s, other = segment(M), segment(M, seed=1)
    mixed = {k: torch.cat([s[k][:, :t], other[k][:, t:]], 1) for k in ("z", "action")}
    a, b = flat(M(s["z"], s["action"])[0]), flat(M(**mixed)[0])
    close(b[:, :t], a[:, :t], 1e-12)
    assert (b[:, t:] - a[:, t:]).abs().amax((1, 2)).min() > 1e-4


def test_rows_never_mix():
    _, M = make()
    s = segment(M)
    whole = flat(M(s["z"], s["action"])[0])
    for b in range(3):
        close(flat(M(s["z"][b : b + 1], s["action"][b : b + 1])[0]), whole[b : b + 1])


def test_only_m_learns():
    V, M = make()
    before = {k: v.clone() for k, v in V.state_dict().items()}
    optimizer = torch.optim.SGD(M.parameters(), 0.1)
    world_model_loss(M, **segment(M))[0].backward()
    optimizer.step()
    assert all(p.grad is None for p in V.parameters()) and all(
        torch.equal(v, before[k]) for k, v in V.state_dict().items()
    )
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in M.parameters())


def test_summary_is_the_last_prediction_token():
    _, M = make()
    yu = torch.randn(1, 1, M.K, 16, dtype=torch.float64, requires_grad=True)
    p = M.predict(yu, torch.zeros(1, 1, M.layout.S, dtype=torch.long))
    for out in (p.reward.sum(), p.done.sum()):
        gradient = torch.autograd.grad(out, yu, retain_graph=True)[0][0, 0].abs().sum(-1)
        assert gradient[-1] > 0 and (gradient[:-1] == 0).all()
    start = 0
    for g in M.layout.groups:
        for logits in p.obs[g.key].unbind(-2):
            gradient = (
                torch.autograd.grad(logits[:, :, 0, :2].sum(), yu, retain_graph=True)[0][0, 0]
                .abs()
                .sum(-1)
            )
            assert gradient.nonzero().flatten().tolist() == [start]
        start += g.count


def test_observation_loss_against_torch_distributions():
    _, M = make()
    s = segment(M)
    p, _ = M(s["z"], s["action"])
    parts = M.layout.split(s["z"])
    logp = sum(
        torch.distributions.Categorical(logits=l).log_prob(parts[k][..., c]).sum(-1)
        for k, ls in p.obs.items()
        for c, l in enumerate(ls.unbind(-2))
    )
    close(observation_loss(M.layout, modality_losses(M.layout, p, s["z"])), -logp / M.K)


def test_half_precision_loss_is_float32():
    _, M = make(dtype=torch.float32)
    s = segment(M)
    s["reward"] = s["reward"].float()
    full, _ = world_model_loss(M, **s)
    with rounded([M], torch.bfloat16):
        half, _ = world_model_loss(M, **s)
    assert half.dtype == torch.float32 and abs(half - full) < 0.05 * full


def test_head():
    net = head(8, 5)
    assert [tuple(p.shape) for p in net.parameters()] == [
        (16, 8), (16,), (16,), (16,), (5, 16), (5,)
    ]
    assert net(torch.randn(3, 8)).abs().max() < 0.5


def test_learns_a_counter_to_its_floor():
    """One token counts 0, 1, 2, 0, ...

    or back, as the action says; reward 1 and the end come with 2."""
    torch.manual_seed(0)
    spec, actions = ObsSpec.from_space(gs.Discrete(3)), ActionSpec.from_space(gs.Discrete(2))
    V = MultiModalTokenizer(spec)
    M = WorldModel(
        V.layout,
        actions,
        WorldModelConfig(
            RetNetConfig(width=32, heads=2, layers=1, dropout=0.0, windows=(1.0, 3.0))
        ),
    )
    start, a = torch.randint(3, (256, 1)), torch.randint(2, (256, 4, 1))
    z = torch.cat([start, start + (2 * a[:, :-1, 0] - 1).cumsum(1)], 1).remainder(3)[..., None]
    nxt = (z[:, :, 0] + 2 * a[:, :, 0] - 1).remainder(3)
    batch = dict(
        z=z, action=a, reward=(nxt == 2).float(), done=nxt == 2,
        mask=torch.ones(256, 4, dtype=torch.bool)
    )
    optimizer = torch.optim.AdamW(M.parameters(), 5e-3, weight_decay=0.0)
    for _ in range(150):
        i = torch.randint(200, (64,))
        optimizer.zero_grad()
        world_model_loss(M, **{k: v[i] for k, v in batch.items()})[0].backward()
        optimizer.step()
    with torch.no_grad():
        _, m = world_model_loss(M, **{k: v[200:] for k, v in batch.items()})
    q = M.reward.encode(batch["reward"][200:, :-1])
    floor = torch.special.entr(q).sum(-1).mean()
    assert m["obs"] < 0.05 and m["done"] < 0.05 and -1e-4 < m["reward"] - floor < 0.05


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(5, 251), K=st.integers(1, 4), shift=st.integers(-4, 4), seed=st.integers(0, 99)
)
def test_levels_by_waves(n, K, shift, seed):
    """Eq. (14.10b) against its terms, one at a time; Eq. (14.10c): the part with b moves with the
    present level, the part with a stays."""
    torch.manual_seed(seed)
    levels, out = Levels(n).double(), torch.randn(3, K, 64, dtype=torch.float64)
    now, phi = torch.randint(n, (3, K)), levels.waves
    a, b = out.chunk(2, -1)
    found = levels(out, now)
    assert found.shape == (3, K, n)
    for i, k in ((0, 0), (2, K - 1)):
        cos, sin = (phi[now[i, k]] * 4).chunk(2)                # F = 32: sqrt(F / 2) = 4
        p, q = b[i, k].chunk(2)
        turned = torch.cat([p * cos - q * sin, p * sin + q * cos])
        by_hand = torch.stack([32**0.5 * row @ (a[i, k] + turned) for row in phi])
        torch.testing.assert_close(found[i, k], by_hand, rtol=1e-9, atol=1e-9)
    inside = now.clamp(4, n - 5) if n > 9 else torch.full_like(now, n // 2)
    shift = shift if n > 9 else 0
    moves, stays = torch.cat([0 * a, b], -1), torch.cat([a, 0 * b], -1)
    here, there = (levels(moves, inside + s) for s in (0, shift))
    level = torch.arange(max(0, -shift), n - max(0, shift))
    torch.testing.assert_close(here[..., level], there[..., level + shift], rtol=1e-4, atol=1e-4)
    assert torch.equal(levels(stays, inside), levels(stays, inside + shift))


@settings(deadline=None, max_examples=20)
@given(n=st.integers(25, 251), K=st.integers(1, 4), seed=st.integers(0, 99))
def test_reward_and_end_see_the_present_levels(n, K, seed):
    """Eq. (14.12a): each level adds a vector of its own, near levels add nearly the same, the heads
    of observations see nothing of it; without levels there is nothing to add."""
    torch.manual_seed(seed)
    layout = TokenLayout((TokenGroup("x", "vector", K, (n,), ordered=True),))
    heads, y = Heads(layout, 16, 9).double(), torch.randn(4, 1, K, 16, dtype=torch.float64)
    now, zeros = torch.randint(n, (4, 1, K)), torch.zeros(4, 1, K, dtype=torch.long)
    added = lambda z: heads.summary(y[:, :, -1], z) - y[:, :, -1]
    one_by_one = sum(
        added(torch.where(torch.arange(K) == i, now, zeros)) - added(zeros) for i in range(K))
    torch.testing.assert_close(added(now), added(zeros) + one_by_one, rtol=1e-9, atol=1e-9)
    step = lambda k: (added((now + k).clamp(max=n - 1)) - added(now)).norm()
    assert step(1) <= 0.7 * step(n)
    blind = Heads(layout, 16, 9).double()
    blind.load_state_dict(heads.state_dict() | {"sight": torch.zeros_like(heads.sight)})
    assert torch.equal(heads(y, now).obs["x"], blind(y, now).obs["x"])
    assert torch.equal(blind.summary(y[:, :, -1], now), y[:, :, -1])
    plain = Heads(TokenLayout((TokenGroup("x", "vector", K, (n,)),)), 16, 9)
    assert plain.sight is None and plain.summary(y, now) is y
