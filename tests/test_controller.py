"""C: whole sequence = step by step, padding, causality, rows, gradients, distributions; the LSTM
against nn.LSTMCell, probabilities against torch.distributions."""
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.distributions import Categorical, Independent

from simulus_nb.accelerate import rounded
from simulus_nb.controller import (
    ActorCritic, Controller, ControllerConfig, ModalityEncoder, Trunk, entropy, log_prob,
    sample_categorical
)
from simulus_nb.imagination import ControllerLossConfig, Dream, controller_loss
from simulus_nb.returns import ReturnScale
from simulus_nb.spaces import ActionSpec, TokenGroup, TokenLayout
from simulus_nb.tokenizer import mask_invalid

IMAGE = TokenGroup("obs", "image", 4, (8,), grid=(2, 2))
VECTOR = TokenGroup("sensor", "vector", 3, (9,))
LIGHTS = TokenGroup("lights", "categorical", 2, (5,), sizes=(5, 2))
MAP = TokenGroup("map", "grid", 6, (4, 3), grid=(2, 3))
LAYOUTS = {
    "image": TokenLayout((IMAGE,)), "vector": TokenLayout((VECTOR,)),
    "all": TokenLayout((IMAGE, VECTOR, LIGHTS, MAP))
}
ACTIONS = {
    "discrete": ActionSpec("discrete", (5,)),
    "multidiscrete": ActionSpec("multidiscrete", (4, 2, 3)),
    "continuous": ActionSpec("continuous", (7, 7), (-1.0, -1.0), (1.0, 1.0), (2,), "float32")
}
BOOK = torch.randn(8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def make(layout="all", actions="multidiscrete", shared=True, heads=True, seed=0):
    torch.manual_seed(seed)
    learned = {"obs": BOOK} if layout != "vector" else {}
    C = Controller(
        LAYOUTS[layout], ACTIONS[actions],
        ControllerConfig(width=12, channels=(5, 4), embedding=4, shared=shared), lambda: learned
    ).double()
    if heads:
        for layer in (C.actor, C.critic):
            nn.init.normal_(layer.weight)
    return C


def tokens(C, B, T, seed=0):
    g = torch.Generator().manual_seed(seed)
    sizes = torch.tensor(
        [
            n
            for group in C.trunks[0].layout.groups
            for _, n in zip(range(group.symbols), list(group.sizes or group.vocab * group.count))
        ]
    )
    z = (torch.rand(B, T, len(sizes), generator=g) * sizes).long()
    return z, (
        torch.rand(B, T, C.action_spec.count, generator=g) * torch.tensor(C.action_spec.nvec)
    ).long()


def stepwise(C, z, action, state=None):
    state, out = C.initial_state(len(z)) if state is None else state, []
    for t in range(z.shape[1]):
        logits, value, state = C.step(z[:, t], state)
        out.append((logits, value))
        state = C.act(action[:, t], state)
    return *(torch.stack(x, 1) for x in zip(*out)), state


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_whole_sequence_is_stepwise(layout, actions, shared):
    C = make(layout, actions, shared)
    z, action = tokens(C, 3, 5)
    whole, steps = C(z, action), stepwise(C, z, action)
    for a, b in zip(whole[:2], steps[:2]):
        close(a, b)
    for a, b in zip(whole[2], steps[2]):
        close(a, b)
        assert a.shape == (1 if shared else 2, 3, 12)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 4), st.integers(2, 8), st.integers(0, 99), st.booleans())
def test_a_sequence_can_be_cut_anywhere(B, T, seed, shared):
    C = make(shared=shared, seed=seed)
    z, action = tokens(C, B, T, seed)
    logits, value, end = C(z, action)
    cut = 1 + seed % (T - 1)
    _, _, middle = C(z[:, :cut], action[:, :cut])
    logits2, value2, end2 = C(z[:, cut:], action[:, cut:], middle)
    close(logits2, logits[:, cut:]), close(value2, value[:, cut:])
    for a, b in zip(end, end2):
        close(a, b)


def test_lstm_is_a_cell_that_reads_observation_and_action_in_turn():
    C = make()
    z, action = tokens(C, 2, 4)
    trunk, cell = C.trunks[0], nn.LSTMCell(12, 12).double()
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in trunk.lstm.state_dict().items()})
    h = c = torch.zeros(2, 12, dtype=torch.float64)
    logits = C(z, action)[0]
    for t in range(4):
        h, c = cell(trunk.encode(z[:, t]), (h, c))
        close(C.heads(h[None])[0], logits[:, t])
        h, c = cell(trunk.actions(action[:, t]), (h, c))


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 5), st.integers(0, 6), st.integers(0, 99), st.booleans())
def test_padding_is_forgotten(B, T, seed, shared):
    C = make(shared=shared)
    z, action = tokens(C, B, T, seed)
    begin = torch.randint(T + 1, (B,), generator=torch.Generator().manual_seed(seed))
    state = C.remember(z, action, torch.arange(T) >= begin[:, None])
    for b in range(B):
        alone = (
            C(z[b : b + 1, begin[b] :], action[b : b + 1, begin[b] :])[2]
            if begin[b] < T
            else C.initial_state(1)
        )
        for s, a in zip(state, alone):
            close(s[:, b], a[:, 0])


@pytest.mark.parametrize("layout", ["image", "vector"])
def test_causality(layout):
    C = make(layout, "discrete")
    z, action = tokens(C, 2, 6)
    logits, value, _ = C(z, action)
    z2, a2 = z.clone(), action.clone()
    z2[:, 4:], a2[:, 3:] = (z2[:, 4:] + 1) % 8, (a2[:, 3:] + 1) % 5  # a_3 (0-based) comes after z_3
    logits2, value2, _ = C(z2, a2)
    assert torch.equal(logits[:, :4], logits2[:, :4]) and torch.equal(value[:, :4], value2[:, :4])
    assert (logits[:, 4:] != logits2[:, 4:]).any(-1).all()
    a2 = action.clone()
    a2[:, 2] = (a2[:, 2] + 1) % 5                                   # the past action does matter
    assert (
        torch.equal(C(z, a2)[0][:, :3], logits[:, :3]) and (C(z, a2)[0][:, 3] != logits[:, 3]).all()
    )


def test_rows_never_mix():
    C = make(shared=False)
    z, action = tokens(C, 4, 3)
    z2, a2 = tokens(C, 4, 3, seed=1)
    z2[2], a2[2] = z[2], action[2]
    for x, y in zip(C(z, action)[:2], C(z2, a2)[:2]):
        close(x[2], y[2])
        assert (x[0] != y[0]).any()


def test_codebook_gets_no_gradient_and_everything_else_does():
    book = BOOK.clone().requires_grad_()
    C = Controller(
        LAYOUTS["all"], ACTIONS["multidiscrete"],
        ControllerConfig(width=12, channels=(5, 4), embedding=4), lambda: {"obs": book}
    ).double()
    for layer in (C.actor, C.critic):
        nn.init.normal_(layer.weight)
    z, action = tokens(C, 6, 4)
    logits, value, _ = C(z, action)
    (log_prob(logits, action, "multidiscrete").square().sum() + value.square().sum()).backward()
    assert book.grad is None
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in C.parameters())


def test_separate_trunks_keep_gradients_apart():
    C = make(shared=False)
    z, action = tokens(C, 2, 3)
    C(z, action)[1].square().sum().backward()
    assert all(
        p.grad is None or not p.grad.any()
        for p in [*C.trunks[0].parameters(), *C.actor.parameters()]
    )
    assert any(p.grad.any() for p in C.trunks[1].parameters())


@pytest.mark.parametrize("actions", ACTIONS)
def test_fresh_controller_has_no_opinion(actions):
    C = make(actions=actions, heads=False)
    z, action = tokens(C, 3, 2)
    logits, value, _ = C(z, action)
    for j, n in enumerate(C.action_spec.nvec):
        p = logits[:, :, j].softmax(-1)
        close(p[..., :n], torch.full_like(p[..., :n], 1 / n))
        assert (p[..., n:] == 0).all()
    assert C.value.decode(value).abs().max() < 1e-12


def test_atari_shapes_and_size():
    book = torch.randn(512, 256)
    frame = TokenGroup("obs", "image", 64, (512,), grid=(8, 8))
    encoder, seen = ModalityEncoder(frame, ControllerConfig(), lambda: book), []
    for m in encoder.modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            m.register_forward_hook(
                lambda m, x, y: seen.append((tuple(x[0].shape), tuple(y.shape)))
            )
    assert encoder(torch.zeros(3, 64, dtype=torch.long)).shape == (3, 512)
    assert seen == [
        ((3, 256, 8, 8), (3, 128, 8, 8)), ((3, 128, 8, 8), (3, 64, 8, 8)), ((3, 4096), (3, 512))
    ]
    C = Controller(
        TokenLayout((frame,)), ActionSpec("discrete", (18,)), codebooks=lambda: {"obs": book}
    )
    assert sum(p.numel() for p in C.parameters()) == 4_653_395
    assert (
        isinstance(C, ActorCritic)
        and isinstance(C.trunks[0], Trunk)
        and isinstance(C.trunks[0].fuse, nn.Identity)
    )


def test_grid_sees_where_things_are():
    "Two images of the same codes in other places must not look alike."
    C = make("image")
    a, b = C.trunks[0].encode(torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]]))
    assert (a - b).abs().max() > 1e-3


def test_memory_stays_float32_in_low_precision():
    C = make("vector").float()
    z, action = tokens(C, 2, 3)
    with rounded([C], torch.bfloat16):
        logits, value, state = C(z, action)
        remembered = C.remember(z, action, torch.ones(2, 3, dtype=torch.bool))
        assert log_prob(logits, action, "multidiscrete").dtype == torch.float32
    assert all(s.dtype == torch.float32 for s in (*state, *remembered))
    for a, b in zip(state, C(z, action)[2]):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 99))
def test_probabilities_are_those_of_torch_distributions(nvec, seed):
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(7, len(nvec), max(nvec), generator=g, dtype=torch.float64)
    valid = torch.arange(max(nvec)) < torch.tensor(nvec)[:, None]
    masked = logits.masked_fill(~valid, torch.finfo(torch.float64).min)
    want = Independent(Categorical(logits=masked), 1)
    action = (torch.rand(7, len(nvec), generator=g) * torch.tensor(nvec)).long()
    close(log_prob(masked, action, "multidiscrete"), want.log_prob(action))
    each = torch.stack(
        [Categorical(logits=logits[:, j, :n]).entropy() for j, n in enumerate(nvec)], -1
    )
    close(entropy(masked, "multidiscrete"), each.sum(-1))
    close(entropy(masked, "continuous"), each.mean(-1))
    close(log_prob(masked, action, "continuous"), want.log_prob(action) / len(nvec))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_masked_options_never_make_nan(dtype):
    logits = torch.zeros(2, 4, dtype=dtype)
    logits[:, 2:] = torch.finfo(dtype).min
    logits = logits[None].requires_grad_()
    out = entropy(logits, "multidiscrete") + log_prob(
        logits, torch.zeros(1, 2, dtype=torch.long), "multidiscrete"
    )
    assert out.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    (grad,) = torch.autograd.grad(out.sum(), logits)
    assert out.isfinite().all() and grad.isfinite().all() and (grad[..., 2:] == 0).all()


def test_entropy_and_log_prob_gradients():
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    action = torch.randint(4, (2, 3))
    assert torch.autograd.gradcheck(
        lambda x: (entropy(x, "discrete"), log_prob(x, action, "continuous")), logits
    )


@settings(deadline=None, max_examples=8)
@given(st.integers(2, 7), st.integers(0, 99), st.floats(0.2, 3))
def test_draws_are_from_softmax(N, seed, spread):
    g, n = torch.Generator().manual_seed(seed), 40_000
    logits = spread * torch.randn(N, generator=g)
    drawn = sample_categorical(logits.expand(n, N), g)
    p = logits.double().softmax(-1)
    chi2 = ((torch.bincount(drawn, minlength=N) - n * p).square() / (n * p)).sum()
    # far in the tail for N - 1 degrees of freedom
    assert chi2 < N - 1 + 6 * (2 * (N - 1)) ** 0.5 + 8


@pytest.mark.parametrize("N", [1, 2, 11, 251])
def test_a_draw_is_where_its_number_falls_on_the_ruler(N):
    "Eq. (16.20) in float64: P_a > u P_0 >= P_{a+1}, up to the rounding of the sums."
    g, n = torch.Generator().manual_seed(N), 5000
    logits = 3 * torch.randn(n, N, generator=g)
    state = g.get_state()
    drawn = sample_categorical(logits, g)
    u = torch.rand(n, 1, generator=g.set_state(state)).double()
    p = logits.double().softmax(-1)
    tail = torch.cat([p.flip(-1).cumsum(-1).flip(-1), torch.zeros(n, 1).double()], -1)
    assert (tail.gather(-1, drawn[:, None]) > u - 1e-6).all()
    assert (u + 1e-6 >= tail.gather(-1, drawn[:, None] + 1)).all()


@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-24])
def test_no_number_falls_beyond_what_exists(u, monkeypatch):
    "Eq. (16.20) at the ends of the ruler, with options that do not exist; and with no numbers."
    monkeypatch.setattr(torch, "rand", lambda *shape, **how: torch.full(shape, u))
    for exist in range(1, 40):
        logits = torch.randn(200, 64)
        logits[:, exist:] = torch.finfo(torch.float32).min
        drawn = sample_categorical(logits)
        assert (drawn == (exist - 1 if u == 0 else 0)).all()
    assert sample_categorical(torch.full((3, 5), torch.nan)).tolist() == [0, 0, 0]


def test_every_row_of_any_shape_is_drawn_from_its_own_distribution():
    "Eq. (16.20) for (n, 2, 3, N) logits: the frequencies are the softmax over the last axis."
    g, n = torch.Generator().manual_seed(0), 20_000
    logits = torch.randn(2, 3, 4, generator=g)
    drawn = sample_categorical(logits.expand(n, 2, 3, 4), g)
    seen = torch.nn.functional.one_hot(drawn, 4).double().mean(0)
    truth = logits.double().softmax(-1)
    assert drawn.shape == (n, 2, 3)
    assert ((seen - truth).abs() < 5 * (truth * (1 - truth) / n).sqrt()).all()


def test_draws_reproduce_and_respect_zeros():
    logits = torch.tensor([0.0, torch.finfo(torch.float32).min, 1.0, -torch.inf]).expand(5000, 4)
    draws = [sample_categorical(logits, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert set(draws[0].tolist()) == {0, 2} and draws[0].dtype == torch.int64


def test_action_embedding_is_the_mean_over_dimensions():
    trunk = make().trunks[0]
    table, action = trunk.embed_action.table.weight, torch.tensor([[3, 1, 2]])
    close(trunk.actions(action)[0], (table[3] + table[4 + 1] + table[6 + 2]) / 3)


def bandit(kind, nvec, seed):
    """C on a game of one step: its logits are the bias of the actor, its value is that of the
    critic. Every joint action once, each with a reward of its own."""
    g = torch.Generator().manual_seed(seed)
    bounds = ((0.0,) * len(nvec), (1.0,) * len(nvec)) if kind == "continuous" else ((), ())
    C = Controller(
        TokenLayout((LIGHTS,)), ActionSpec(kind, nvec, *bounds),
        ControllerConfig(width=4, embedding=2)
    ).double()
    with torch.no_grad():
        for layer in (C.actor, C.critic):
            layer.bias.copy_(2 * torch.randn(layer.bias.shape, generator=g))
    action = torch.cartesian_prod(*(torch.arange(n) for n in nvec)).view(-1, len(nvec))
    return C, action, torch.rand(len(action), generator=g, dtype=torch.float64) - 0.5


def one_step(C, action, reward):
    "Dreams (B,) that take one action, are paid and end: H = 2, and the second step is dead."
    B, first = len(action), lambda x: torch.stack([x, torch.zeros_like(x)], 1)
    one = torch.ones(B, dtype=torch.float64)
    return Dream(
        torch.zeros(B, 2, 2, dtype=torch.long), first(action), first(reward), first(one),
        first(one), C.initial_state(B)
    )


def actor_gradient(C, action, reward, entropy_weight=0.0):
    """Gradient of `controller_loss` on the actor's logits (K_a, N_a), and the return scale and
    value it used."""
    scale = ReturnScale(window=1, batch=len(action)).double()
    loss, metrics = controller_loss(
        C, one_step(C, action, reward), scale, ControllerLossConfig(entropy=entropy_weight)
    )
    assert metrics["return_scale"] <= 1                     # so the advantage is return minus value
    return torch.autograd.grad(loss, C.actor.bias)[0].view(C.action_spec.count, -1), metrics[
        "value"
    ]


def policy(C):
    "π of every dimension (K_a, N_a) as plain softmax over the choices that exist."
    spec, rows = C.action_spec, C.actor.bias.view(C.action_spec.count, -1)
    return torch.stack(
        [nn.functional.pad(r[:n].softmax(0), (0, spec.vocab - n)) for r, n in zip(rows, spec.nvec)]
    )


BANDITS = pytest.mark.parametrize(
    "kind, nvec",
    [
        ("discrete", (5,)), ("multidiscrete", (4, 2, 3)), ("multidiscrete", (1, 3)),
        ("continuous", (5, 5)), ("continuous", (4, 1, 3)), ("continuous", (7,))
    ],
)


@BANDITS
@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_loss_gradient_is_softmax_minus_onehot_times_advantage(kind, nvec, weight):
    C, action, reward = bandit(kind, nvec, 0)
    grad, value = actor_gradient(C, action, reward, weight)
    p = policy(C).detach()
    # (B, K_a, N_a)
    onehot = torch.stack(
        [nn.functional.one_hot(action[:, j], p.shape[1]) for j in range(len(nvec))], 1
    )
    want = ((reward - value)[:, None, None] * (p - onehot)).mean(0)
    logp = p.clamp(min=1e-300).log()
    H = -(p * logp).sum(-1, keepdim=True)
    want = want + weight * p * (logp + H)                       # minus the gradient of the entropy
    close(grad, want / (len(nvec) if kind == "continuous" else 1))
    exists = torch.arange(max(nvec)) < torch.tensor(nvec)[:, None]
    assert (grad[~exists] == 0).all() and (p[~exists] == 0).all()


@BANDITS
def test_expected_loss_gradient_is_that_of_the_expected_reward(kind, nvec):
    """All joint actions weighted by their probability: ∇E[R] for a sum of log-probabilities, ∇E[R]
    / K_a for their mean; w ∇H likewise."""
    C, action, reward = bandit(kind, nvec, 1)
    weight = 0.4
    def joint():
        return policy(C)[torch.arange(len(nvec)), action].prod(-1)
    p = joint()
    each = policy(C)
    H = -(p * p.clamp(min=1e-300).log()).sum()      # of the joint distribution, not by dimension
    (want,) = torch.autograd.grad((p * reward).sum() + weight * H, C.actor.bias)
    (
        close(p.sum(), torch.tensor(1.0, dtype=torch.float64)),
        close(each.sum(-1), torch.ones(len(nvec), dtype=torch.float64))
    )
    sampled = sum(
        p[i].detach() * actor_gradient(C, action[i : i + 1], reward[i : i + 1], weight)[0]
        for i in range(len(action))
    )
    close(-sampled, want.view_as(sampled) / (len(nvec) if kind == "continuous" else 1))
    i, eps = int(want.abs().argmax()), 1e-5                         # and by differences
    def J():
        q = joint()
        return ((q * reward).sum() - weight * (q * q.clamp(min=1e-300).log()).sum()).item()
    with torch.no_grad():
        C.actor.bias[i] += eps
        up = J()
        C.actor.bias[i] -= 2 * eps
        down = J()
    assert abs((up - down) / (2 * eps) - want[i]) < 1e-8


@pytest.mark.parametrize("sizes", [(4, 2, 3), (1, 5), (3,), (6, 6)])
@pytest.mark.parametrize("kind", ["multidiscrete", "continuous"])
def test_masked_heads_by_finite_differences(kind, sizes):
    logits = torch.randn(2, len(sizes), max(sizes), dtype=torch.float64, requires_grad=True)
    action = torch.stack([torch.randint(n, (2,)) for n in sizes], -1)
    def f(x):
        masked = mask_invalid(x, sizes)
        return entropy(masked, kind), log_prob(masked, action, kind)
    assert torch.autograd.gradcheck(f, logits)
    for out in f(logits):
        (grad,) = torch.autograd.grad(out.sum(), logits, retain_graph=True)
        for j, n in enumerate(sizes):
            assert (grad[:, j, n:] == 0).all()
            # softmax does not feel a constant
            close(grad[:, j].sum(-1), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("K_a", [1, 2, 6, 21])
def test_mean_over_dimensions_does_not_grow_with_them(K_a):
    """K_a dimensions that share their logits send them the same gradient as one, K_a times as much
    when summed."""
    shared = torch.randn(9, dtype=torch.float64, requires_grad=True)
    action = torch.full((K_a,), 4)
    slope = lambda f, n, kind: torch.autograd.grad(f(n, kind), shared)[0]
    for f in (
        lambda n, kind: log_prob(shared.expand(n, 9), action[:n], kind),
        lambda n, kind: entropy(shared.expand(n, 9), kind)
    ):
        close(slope(f, K_a, "continuous"), slope(f, 1, "continuous"))
        close(slope(f, K_a, "multidiscrete"), K_a * slope(f, 1, "multidiscrete"))


@pytest.mark.parametrize("kind", ["multidiscrete", "continuous"])
def test_force_on_the_trunk(kind):
    "The same through a whole C: actors that say the same in every dimension."
    norms = []
    for K_a in (1, 8):
        torch.manual_seed(0)
        spec = ActionSpec(
            kind, (5,) * K_a, *(((0.0,) * K_a, (1.0,) * K_a) if kind == "continuous" else ())
        )
        C = Controller(
            TokenLayout((VECTOR,)), spec, ControllerConfig(width=6, embedding=3, shared=False)
        ).double()
        row = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        with torch.no_grad():
            C.actor.weight.copy_(row.repeat(K_a, 1))
        h = torch.ones(2, 1, 6, dtype=torch.float64, requires_grad=True)
        grad = torch.autograd.grad(log_prob(C.heads(h)[0], torch.full((1, K_a), 3), kind).sum(), h)[
            0
        ]
        norms.append(grad.norm())
    close(norms[1], norms[0] * (8 if kind == "multidiscrete" else 1))
