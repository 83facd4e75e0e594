"""Precision, compilation, graphs: other arithmetic, the same computation.

What needs a GPU is marked."""
import contextlib

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from simulus_nb import accelerate
from simulus_nb.accelerate import (
    GraphedStep, bfloat16_cost, compiled, has_bfloat16, has_tf32, pick_precision, rounded,
    use_precision
)
from simulus_nb.checkpoint import buffer_state, restore_buffer
from simulus_nb.config import preset
from simulus_nb.loop import collect, learn_c, learn_m, learn_v, tokenise
from simulus_nb.run_setup import prepare
from simulus_nb.spaces import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
needs_bfloat16 = pytest.mark.skipif(
    not has_bfloat16(CPU), reason="needs a CPU with units for bfloat16"
)
TINY = {
    "threads": 1, "device": "cpu", "collect.steps": 60, "collect.capacity": 2_000,
    "train_v.batch": 6, "train_m.batch": 4, "train_m.segment": 5, "train_c.batch": 6,
    "train_c.burn_in": 3, "train_c.horizon": 4, "train_c.scale_window": 3
}
SHALLOW = {"world_model.retnet.layers": 1}      # one layer is traced faster than two


def stages(**changes):
    run = prepare(preset("catch").change({**TINY, **changes}))
    collect(run), tokenise(run)
    return run


def batches(run, n, seed=0):
    "The same n batches for V, M and C, whoever asks."
    g, c, out = torch.Generator(run.agent.device).manual_seed(seed), run.config, []
    for _ in range(n):
        out.append(
            (
                run.replay.frames(c.train_v.batch, g),
                run.replay.segments(c.train_m.batch, c.train_m.segment, c.train_m.context, g),
                run.replay.contexts(c.train_c.batch, c.train_c.burn_in, g)
            )
        )
    return out


def train(run, data):
    "Metrics of updates of V, M and C in turns; the weights are in run.agent."
    said = []
    for frames, segment, context in data:
        for metrics in (
            run.learner.v_step(frames), run.learner.m_step(segment), run.learner.c_step(context)
        ):
            said.append({k: v.clone() for k, v in metrics.items()})
    return said


def test_choices():
    assert pick_precision("auto", CPU) == pick_precision("float32", CPU) == "float32"
    with pytest.raises(UserError, match="tf32 exists on CUDA devices only"):
        pick_precision("tf32", CPU)
    with pytest.raises(UserError, match="--graphs records CUDA graphs"):
        prepare(preset("catch").change({**TINY, "graphs": True}))
    assert isinstance(use_precision("float32", CPU)(), contextlib.nullcontext)


def test_a_cpu_takes_bfloat16_only_where_it_is_no_slower(monkeypatch):
    monkeypatch.setattr(accelerate, "bfloat16_cost", lambda: 29.0)
    assert not has_bfloat16(CPU) and pick_precision("auto", CPU) == "float32"
    with pytest.raises(
        UserError, match="29.0 times as long as with float32: use --precision float32"
    ) as e:
        pick_precision("bfloat16", CPU)
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="no units for bfloat16"):
        prepare(preset("catch").change({**TINY, "precision": "bfloat16"}))
    monkeypatch.setattr(accelerate, "bfloat16_cost", lambda: 0.5)
    assert (
        has_bfloat16(CPU)
        and pick_precision("bfloat16", CPU) == "bfloat16"
        and pick_precision("auto", CPU) == "float32"
    )


def test_the_cost_of_bfloat16_is_measured_and_moves_no_random_number():
    before = torch.get_rng_state()
    with torch.autocast("cpu", torch.bfloat16):
        rough = bfloat16_cost.__wrapped__(0.0)
    assert (
        0 < rough < float("inf")
        and bfloat16_cost() == bfloat16_cost()
        and torch.get_rng_state().equal(before)
    )


@pytest.mark.parametrize("capability,half", [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_gpu_takes_what_it_has(monkeypatch, capability, half):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported",
        lambda including_emulation=True: half or including_emulation
    )
    assert pick_precision("float32", CUDA) == "float32" and pick_precision("auto", CUDA) == (
        "bfloat16" if half else "float32"
    )
    assert has_tf32(CUDA) == has_bfloat16(CUDA) == half and not has_tf32(CPU)
    for precision in ("tf32", "bfloat16"):
        if half:
            assert pick_precision(precision, CUDA) == precision
        else:
            with pytest.raises(UserError, match="this GPU has no .*: use --precision float32"):
                pick_precision(precision, CUDA)


def test_compiling_without_a_compiler_is_one_line(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match="C\\+\\+ compiler"):
        compiled(torch.sin, CPU)


@needs_bfloat16
@settings(deadline=None, max_examples=3)
@given(st.integers(0, 10**6))
def test_what_must_stay_float32_does(seed):
    torch.manual_seed(seed)
    run = stages(precision="bfloat16", seed=seed % 2**31)
    M, C = run.agent.world_model, run.agent.controller
    (_, segment, context), = batches(run, 1, seed)
    with run.learner.arithmetic(M, C), torch.no_grad():
        prediction, memory = M(segment.z, segment.action)
        state = C.remember(context.z, context.action, context.mask)
    assert (
        prediction.reward.dtype == torch.bfloat16
        and memory.dtype == torch.float32
        and {s.dtype for s in state} == {torch.float32}
    )
    metrics = train(run, batches(run, 2, seed))
    assert all(m[k].isfinite() for m in metrics for k in m)
    params = [p for part in (run.agent.tokenizer, M, C) for p in part.parameters()]
    assert (
        {p.dtype for p in params}
        == {torch.float32}
        == {p.grad.dtype for p in params if p.grad is not None}
    )
    assert {
        x.dtype
        for o in run.learner.optimizers.values()
        for s in o.state.values()
        for x in s.values()
    } == {torch.float32}


@needs_bfloat16
def test_bfloat16_gives_the_same_losses_and_gradients():
    "To the accuracy of the format: a few percent of the gradient's length, and the same direction."
    plain, low = stages(), stages(precision="bfloat16")
    low.agent.load_state_dict(plain.agent.state_dict())
    # its tokens too: else ties would fall otherwise
    restore_buffer(low.replay, buffer_state(plain.replay))
    data = batches(plain, 1)
    for part, a, b in zip(
        ("tokenizer", "world_model"), seeded_training(plain, data), seeded_training(low, data)
    ):
        assert torch.allclose(a["loss"], b["loss"], rtol=0.03), part
        g, h = (
            torch.cat(
                [
                    p.grad.flatten()
                    for p in getattr(r.agent, part).parameters()
                    if p.grad is not None
                ]
            )
            for r in (plain, low)
        )
        assert torch.cosine_similarity(g, h, 0) > 0.98, part


@needs_bfloat16
def test_weights_rounded_while_dreaming_do_not_rob_the_loss_of_gradients():
    run = stages(precision="bfloat16")
    (_, _, context), = batches(run, 1)
    C = run.agent.controller
    with run.learner.arithmetic(C), torch.no_grad():
        C.remember(context.z, context.action, context.mask)
    run.learner.c_step(context)
    assert C.critic.weight.grad is not None and C.critic.weight.grad.abs().max() > 0


class Island(nn.Module):
    "Keeps its own precision."
    keeps_float32 = True

    def __init__(self):
        super().__init__()
        self.own = nn.Linear(2, 2)


@settings(deadline=None, max_examples=20)
@given(
    st.lists(
        st.sampled_from(["linear", "frozen", "lstm", "island", "shared", "double"]), max_size=6
    ),
    st.booleans(),
)
def test_rounding_borrows_places(kinds, fail):
    """Inside, what may be rounded is; afterwards every parameter is the same object, whatever
    happened, and none but trainable ones can get a gradient."""
    make = {
        "linear": lambda: nn.Linear(2, 3), "frozen": lambda: nn.Linear(2, 3).requires_grad_(False),
        "lstm": lambda: nn.LSTM(2, 2), "island": Island, "double": lambda: nn.Linear(2, 2).double()
    }
    modules = nn.ModuleList()
    for kind in kinds:
        modules.append(
            modules[-1] if kind == "shared" and len(modules) else make.get(kind, make["linear"])()
        )
    before = {
        name: (id(p), p.dtype, p.requires_grad)
        for name, p in modules.named_parameters(remove_duplicate=False)
    }
    with contextlib.suppress(ZeroDivisionError):
        with rounded([*modules, None], torch.bfloat16):
            for m in modules.modules():
                for p in m._parameters.values():
                    assert (
                        isinstance(m, nn.RNNBase)
                        or p is None
                        or p.dtype != torch.float32
                        or any(
                            p is q for i in modules if isinstance(i, Island) for q in i.parameters()
                        )
                    )
            for m in modules:
                if type(m) is nn.Linear and m.weight.dtype == torch.bfloat16:
                    assert (
                        m(torch.ones(1, 2).bfloat16()).requires_grad
                        == m.weight.requires_grad
                        == before_grad(before, modules, m)
                    )
            if fail:
                1 / 0
    assert {
        name: (id(p), p.dtype, p.requires_grad)
        for name, p in modules.named_parameters(remove_duplicate=False)
    } == before


def before_grad(before, modules, m):
    name = next(n for n, x in modules.named_modules(remove_duplicate=False) if x is m)
    return before[f"{name}.weight"][2]


class Counting:
    "A backend that compiles nothing, and counts the graphs it is given."
    graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


def counted(monkeypatch, **changes):
    "A run whose compiled parts go to backends that count, {part: backend}."
    torch._dynamo.reset()
    backends = []
    def count(work, device, **options):
        backends.append(Counting())
        return torch.compile(work, dynamic=False, backend=backends[-1])
    monkeypatch.setattr("simulus_nb.run_setup.compiled", count)
    run = prepare(
        preset("catch").change(
            {**TINY, **SHALLOW, "compile": True, "world_model.retnet.dropout": 0.1, **changes}
        )
    )
    return run, dict(
        zip(("M's loss", "V's loss", "V's encoder", "M's answer"), backends, strict=True)
    )


@pytest.mark.parametrize("precision, sequence", [
    ("float32", "retnet"), ("float32", "attention"),
    pytest.param("bfloat16", "retnet", marks=needs_bfloat16)])
def test_all_that_is_compiled_is_whole_and_compiled_once(monkeypatch, precision, sequence):
    """Twelve epochs with a growing buffer: one graph each, for M's answer two (the first step reads
    a context), and never a second time."""
    changes = {"collect.steps": 90, "world_model.sequence": sequence}
    run, parts = counted(monkeypatch, precision=precision, **changes)
    for epoch in range(12):
        collect(run), tokenise(run)
        for learn in (learn_v, learn_m, learn_c):
            learn(run, 1)
        assert {name: part.graphs for name, part in parts.items()} == {
            "M's loss": 1, "V's loss": 1, "V's encoder": 1, "M's answer": 2
        }, epoch
    assert len(run.replay) > 2 * 512                                    # chunks were full, and not


def test_compiled_parts_train_alike(monkeypatch):
    "Traced and split into forward and backward, with PyTorch's own kernels."
    torch._dynamo.reset()
    monkeypatch.setattr(
        "simulus_nb.run_setup.compiled",
        lambda work, device: torch.compile(work, dynamic=False, backend="aot_eager")
    )
    plain, fast = stages(**SHALLOW), stages(**SHALLOW, compile=True)
    (
        fast.agent.load_state_dict(plain.agent.state_dict()),
        restore_buffer(fast.replay, buffer_state(plain.replay))
    )
    names, data = list(plain.agent.state_dict()), batches(plain, 1)
    for a, b in zip(seeded_training(plain, data), seeded_training(fast, data)):
        assert all(torch.allclose(a[k], b[k], rtol=1e-3, atol=1e-4) for k in a)
    assert list(fast.agent.state_dict()) == names                       # compiling renames nothing
    for (name, p), q in zip(plain.agent.named_parameters(), fast.agent.parameters()):
        if p.grad is not None:
            assert (p.grad - q.grad).norm() <= 1e-3 * p.grad.norm() + 1e-6, name
    tokenise(plain)
    fast.agent.load_state_dict(plain.agent.state_dict()), tokenise(fast)
    # a chunk filled up gives the same tokens
    assert torch.equal(plain.replay.tokens, fast.replay.tokens)


class Tape(GraphedStep):
    "A recording that computes when it is played, as a CUDA graph does, from and into fixed places."
    def aside(self, batch):
        return self.step(batch)

    def record(self, batch):
        inputs, outputs, step = {k: x.clone() for k, x in batch.items()}, {}, self.step
        class Graph:
            def replay(self):
                for k, v in step(inputs).items():
                    outputs.setdefault(k, torch.empty_like(v)).copy_(v)
        return Graph(), inputs, outputs


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=15))
def test_every_batch_is_computed_once_and_in_order(shapes):
    seen = []
    def step(batch):
        seen.append(batch["x"].clone())
        return {"y": batch["x"].sum()}
    tape, given_, results = Tape(step), [torch.randn(n) for n in shapes], []
    for x in given_:
        results.append(tape({"x": x})["y"])
    assert len(seen) == len(shapes) and all(torch.equal(a, b) for a, b in zip(seen, given_))
    # and no result was overwritten by a later one
    assert all(torch.equal(y, x.sum()) for y, x in zip(results, given_))
    assert set(tape.recordings) == {k for k, n in tape.calls.items() if n > tape.ordinary}


def test_a_learner_on_tape_is_the_learner():
    "The steps are functions of nothing but their batch: fixed places change no bit."
    plain, taped = stages(), stages()
    (
        taped.agent.load_state_dict(plain.agent.state_dict()),
        restore_buffer(taped.replay, buffer_state(plain.replay))
    )
    taped.learner.steps = {name: Tape(step) for name, step in taped.learner.steps.items()}
    data = batches(plain, 6)
    for run in (plain, taped):
        torch.manual_seed(0), run.generator.manual_seed(0)
        train(run, data)
    assert all(
        torch.equal(a, b)
        for a, b in zip(plain.agent.state_dict().values(), taped.agent.state_dict().values())
    )


# On a GPU (more of it in test_gpu.py)

def pair(**changes):
    "Two runs on the GPU with the same weights and the same replay, the second with other settings."
    a, b = (
        stages(device="cuda", precision="float32"),
        stages(**{"device": "cuda", "precision": "float32", **changes})
    )
    b.agent.load_state_dict(a.agent.state_dict()), restore_buffer(b.replay, buffer_state(a.replay))
    return a, b


def seeded_training(run, data):
    torch.manual_seed(0), run.generator.manual_seed(0)
    return train(run, data)


@pytest.mark.gpu
def test_bfloat16_on_the_gpu():
    plain, low = pair(precision="bfloat16")
    data = batches(plain, 1)
    for a, b in zip(seeded_training(plain, data)[:2], seeded_training(low, data)):
        assert torch.allclose(a["loss"], b["loss"], rtol=0.03)


@pytest.mark.gpu
def test_steps_never_wait_for_the_gpu():
    run = stages(device="cuda")
    train(run, batches(run, 2))                                                 # constants are made
    data = batches(run, 2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        train(run, data)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_replayed_dreams_are_not_the_same_dream():
    run = stages(device="cuda", graphs=True, **{"train_c.lr": 0.0})
    (_, _, context), = batches(run, 1)
    returns = torch.stack([run.learner.c_step(context)["imagined_return"] for _ in range(40)])
    assert returns[5:].unique().numel() > 20
    assert abs(returns[:4].mean() - returns[4:].mean()) < 6 * returns.std() / 2


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
def test_compiled_losses(graphs):
    torch._dynamo.reset()
    plain, fast = pair(compile=True, graphs=graphs)
    data = batches(plain, 5)
    for a, b in zip(seeded_training(plain, data)[:2], seeded_training(fast, data)):
        assert torch.allclose(a["loss"], b["loss"], rtol=1e-2)
