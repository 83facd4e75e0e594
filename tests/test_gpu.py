"""A GPU does what a CPU does, and graphs do what eager steps do.
Where it makes sense a test runs on a CPU too, with stand-ins for graphs."""

import contextlib
import itertools
import json
from dataclasses import fields

import pytest
import torch
from test_accelerate import TINY, Tape, batches, seeded_training, stages

from simulus_nb.accelerate import GraphedStep, Recorder
from simulus_nb.agent import Agent
from simulus_nb.checkpoint import buffer_state, restore_buffer
from simulus_nb.config import preset
from simulus_nb.imagination import Dream, controller_loss, imagine
from simulus_nb.learner import adamw
from simulus_nb.loop import run_epoch
from simulus_nb.resume import load_state, save_state
from simulus_nb.run_setup import env_maker, make_learner, prepare
from simulus_nb.trainer import Trainer

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
STILL = {"train_v.lr": 0.0, "train_m.lr": 0.0, "train_c.lr": 0.0}


def open_eyes(run):
    "Heads of C that are not zero, as new ones are: else nothing below them would have a gradient."
    for layer in (run.agent.controller.actor, run.agent.controller.critic):
        torch.nn.init.normal_(layer.weight, std=0.1)
    return run


def like(run, device, graphs=False, **changes):
    "Same weights and replay; `graphs`: with recorded steps, on a CPU with steps on tape."
    cuda = device == "cuda"
    other = stages(
        **{"device": device, "precision": "float32", "graphs": graphs and cuda, **changes}
    )
    other.agent.load_state_dict(run.agent.state_dict())
    restore_buffer(other.replay, buffer_state(run.replay))
    if graphs and not cuda:
        other.learner.steps = {name: Tape(step) for name, step in other.learner.steps.items()}
    return other


def gradients(module):
    "All of them as one vector on the CPU."
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None]).cpu()


def near(a, b, rtol=1e-3):
    "Whether two vectors are the same but for rounding: the distance against the length."
    return a.shape == b.shape and bool((a - b).norm() <= rtol * a.norm()) and bool(a.norm() > 0)


def random_states(run):
    "Where all random numbers of a run stand."
    mine = torch.cuda.get_rng_state() if run.agent.device.type == "cuda" else torch.get_rng_state()
    return run.generator.get_state(), mine


@pytest.mark.parametrize("device", DEVICES)
def test_v_and_m_agree_with_the_cpu(device):
    "Losses and gradients. M first: V's codebook starts from rows that devices draw differently."
    cpu = stages(precision="float32")
    other = like(cpu, device)
    ((frames, segment, _),) = batches(cpu, 1)
    for name, part, batch in (("m", "world_model", vars(segment)), ("v", "tokenizer", frames)):
        there = {k: x.to(device) for k, x in batch.items()}
        a, b = cpu.learner.steps[name](batch), other.learner.steps[name](there)
        assert torch.allclose(a["loss"], b["loss"].cpu(), rtol=1e-3), name
        assert near(*(gradients(getattr(run.agent, part)) for run in (cpu, other))), name
    kind = other.agent.device.type
    assert all(x.device.type == kind for x in other.replay.tensors().values())
    assert all(p.device.type == kind for p in other.agent.parameters())


@pytest.mark.parametrize("actor", [True, False])
@pytest.mark.parametrize("device", DEVICES)
def test_c_agrees_with_the_cpu(device, actor):
    "Losses and gradients on the very same dream: drawn here, carried there."
    cpu = open_eyes(stages(precision="float32"))
    other, c = like(cpu, device), cpu.config.train_c
    ((_, _, context),) = batches(cpu, 1)
    dream = imagine(cpu.agent.world_model, cpu.agent.controller, context, c.horizon, cpu.generator)
    carry = lambda x: tuple(map(carry, x)) if isinstance(x, tuple) else x.to(device)
    there = Dream(**{f.name: carry(getattr(dream, f.name)) for f in fields(Dream)})
    found = []
    for run, seen in ((cpu, dream), (other, there)):
        controller = (
            run.agent.controller.train()
        )  # cuDNN's LSTM has no backward pass in evaluation mode
        loss, metrics = controller_loss(controller, seen, run.learner.scale, c.loss, actor)
        loss.backward()
        found.append(torch.stack([loss.detach(), *metrics.values()]).cpu())
    assert torch.allclose(*found, rtol=1e-3, atol=1e-5)
    assert near(gradients(cpu.agent.controller), gradients(other.agent.controller))
    reached = [
        p.grad is not None and p.grad.abs().max() > 0 for p in cpu.agent.controller.parameters()
    ]
    assert all(reached) if actor else 0 < sum(reached) < len(reached)


@pytest.mark.parametrize("device", DEVICES)
def test_graphs_are_eager_steps(device, recwarn):
    "V and M learn the same, and random numbers stand where they would after V's and C's draws."
    eager = stages(device=device, precision="float32")
    graphed = like(eager, device, graphs=True)
    data, states = batches(eager, 7), []
    for run in (eager, graphed):
        seeded_training(run, data)
        states.append(random_states(run))
    assert all(torch.equal(a, b) for a, b in zip(*states))
    for name in ("tokenizer", "world_model"):
        there = getattr(graphed.agent, name).state_dict()
        for k, a in getattr(eager.agent, name).state_dict().items():
            assert torch.allclose(a.double(), there[k].double(), rtol=1e-2, atol=1e-3), k
    assert all(len(graphed.learner.steps[name].recordings) == 1 for name in "vmc")
    assert not [w for w in recwarn if "capturable" in str(w.message)]


@pytest.mark.parametrize("device", DEVICES)
def test_recorded_dreams_are_the_eager_dreams(device):
    "C with a learning rate of 0: the same draws, dreams and losses, critic's steps in between."
    eager = open_eyes(stages(device=device, precision="float32", **STILL))
    graphed = like(eager, device, graphs=True, **STILL)
    contexts, said, states = [context for _, _, context in batches(eager, 14)], [], []
    for run in (eager, graphed):
        torch.manual_seed(0), run.generator.manual_seed(0)
        steps = [
            run.learner.c_step(context, actor=i % 2 == 0) for i, context in enumerate(contexts)
        ]
        said.append([{k: x.clone() for k, x in one.items()} for one in steps])
        states.append(random_states(run))
    for i, (a, b) in enumerate(zip(*said)):
        for name in a:
            assert torch.allclose(a[name], b[name], rtol=1e-3, atol=1e-4), (i, name)
    assert (
        len({one["imagined_return"].item() for one in said[0]}) > 10
    )  # and they are not all one dream
    assert all(torch.equal(a, b) for a, b in zip(*states))
    assert {len(graphed.learner.steps[name].recordings) for name in ("c", "critic")} == {1}


@pytest.mark.parametrize(
    "device,graphs",
    [("cpu", False), *(pytest.param("cuda", g, marks=pytest.mark.gpu) for g in (False, True))],
)
def test_resuming_is_not_stopping(tmp_path, device, graphs):
    "One run of two epochs, and one that takes up its first; graphs are replayed in both."
    config = preset("catch").change(
        {
            **TINY,
            "device": device,
            "precision": "float32",
            "graphs": graphs,
            "epochs": 2,
            "train_v.start": 0,
            "train_m.start": 0,
            "train_c.start": 0,
            "train_v.steps": 6,
            "train_m.steps": 6,
            "train_c.steps": 6,
            "evaluation.every": 0,
        }
    )
    whole = prepare(config)
    run_epoch(whole)
    save_state(whole, tmp_path)
    end = run_epoch(whole)
    after = random_states(whole)
    other = prepare(config)
    torch.rand(7, device=device)  # other random numbers in between must not matter
    load_state(other, tmp_path)
    again = run_epoch(other)
    assert other.epoch == whole.epoch == 2 and end.keys() == again.keys()
    exact = (
        dict(rtol=0, atol=0) if device == "cpu" else dict(rtol=1e-3, atol=1e-4)
    )  # a GPU adds up in no fixed order
    for name in end:
        if not name.startswith("seconds"):
            torch.testing.assert_close(
                again[name], end[name], msg=lambda text, name=name: f"{name}: {text}", **exact
            )
    for (name, a), b in zip(whole.agent.state_dict().items(), other.agent.state_dict().values()):
        torch.testing.assert_close(b, a, msg=lambda text, name=name: f"{name}: {text}", **exact)
    for name, x in whole.replay.tensors().items():  # what was played, to the last bit
        assert name == "tokens" or torch.equal(other.replay.tensors()[name], x), name
    assert all(torch.equal(a, b) for a, b in zip(after, random_states(other)))


@pytest.mark.gpu
def test_a_whole_run(tmp_path):
    "Training, checkpoints, evaluation, media, manifest, and the agent on the GPU and a CPU."
    config = preset("catch").change(
        {
            **TINY,
            "device": "cuda",
            "epochs": 2,
            "save_every": 1,
            "train_v.start": 0,
            "train_m.start": 0,
            "train_c.start": 0,
            "train_v.steps": 2,
            "train_m.steps": 2,
            "train_c.steps": 2,
            "evaluation.episodes": 2,
            "evaluation.every": 0,
        }
    )
    trainer = Trainer(config, tmp_path / "run", progress=False).train()
    assert len(trainer.result.returns) == 2 and len(trainer.folder.history()) == 2
    manifest = json.loads(trainer.folder.manifest.read_text(encoding="utf8"))
    assert manifest["gpu"] == torch.cuda.get_device_name() and manifest["peak_bytes"] > 0
    env = env_maker(config, training=False)()
    observation, _ = env.reset(seed=0)
    actions = [
        Agent.load(tmp_path / "run", device=device).act(observation) for device in ("cuda", "cpu")
    ]
    assert all(env.action_space.contains(a) for a in actions)


def growth(run, data, apart):
    "Bytes that the recordings of V, M and C keep, each in its own pool (`apart`) or all in one."
    for name, step in run.learner.steps.items():
        if apart:
            step.recorder = Recorder()
    for batch in data[: GraphedStep.ordinary]:
        seeded_training(run, [batch])
    torch.cuda.synchronize(), torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    for batch in data[GraphedStep.ordinary :]:
        seeded_training(run, [batch])
    torch.cuda.synchronize(), torch.cuda.empty_cache()
    assert all(len(run.learner.steps[name].recordings) == 1 for name in "vmc")
    return torch.cuda.memory_reserved() - before


@pytest.mark.gpu
def test_recordings_share_their_memory():
    "Three recordings take less in one pool: activations of one lie where another one's lie."
    large = {
        "device": "cuda",
        "precision": "float32",
        "graphs": True,
        "train_v.batch": 256,
        "train_m.batch": 128,
        "train_c.batch": 256,
    }
    found = {}
    for apart in (True, False):
        run = stages(**large)
        found[apart] = growth(run, batches(run, GraphedStep.ordinary + 2), apart)
        del run
    assert 0 < found[False] < found[True], found


class FakeCuda:
    "What the recorder asks of CUDA, noted."

    def __init__(self, monkeypatch):
        self.streams, self.captures, self.pools = [], [], itertools.count(1)
        cuda = self

        class Stream:
            def __init__(self):
                cuda.streams.append(self)

            def wait_stream(self, other):
                pass

        class Graph:
            def __init__(self):
                self.generators = []

            def register_generator_state(self, g):
                self.generators.append(g)

            def replay(self):
                pass

        @contextlib.contextmanager
        def graph(g, pool=None, stream=None):
            cuda.captures.append((pool, stream, tuple(g.generators)))
            yield

        here = Stream()
        self.streams.clear()
        stand_ins = dict(
            Stream=Stream,
            CUDAGraph=Graph,
            graph=graph,
            stream=lambda s: contextlib.nullcontext(),
            current_stream=lambda: here,
            graph_pool_handle=lambda: (0, next(self.pools)),
        )
        for name, value in stand_ins.items():
            monkeypatch.setattr(torch.cuda, name, value)


def test_one_stream_and_one_pool_for_all_steps(monkeypatch):
    cuda, g = FakeCuda(monkeypatch), torch.Generator()
    recorder = Recorder()
    steps = [
        GraphedStep(lambda batch, k=k: {"y": k * batch["x"]}, [g, None], recorder) for k in range(3)
    ]
    assert (
        not cuda.streams and not cuda.captures
    )  # made at first use: a machine without CUDA can build them
    for _ in range(6):
        for step in steps:
            step({"x": torch.ones(2)})
    steps[0]({"x": torch.ones(3)})
    assert len(cuda.streams) == 1 and len(cuda.captures) == 3
    assert {(pool, stream) for pool, stream, _ in cuda.captures} == {((0, 1), cuda.streams[0])}
    assert {generators for *_, generators in cuda.captures} == {(g,)}
    alone = GraphedStep(lambda batch: batch)
    for _ in range(4):
        alone({"x": torch.ones(2)})
    assert cuda.captures[-1][0] != (0, 1) and cuda.captures[-1][1] is not cuda.streams[0]


def test_the_pool_of_a_failed_recording_is_not_used_again(monkeypatch):
    cuda, recorder = FakeCuda(monkeypatch), Recorder()

    def bad(batch):
        if recording:
            raise RuntimeError("operation not permitted when stream is capturing")
        return batch

    recording, good = False, GraphedStep(lambda batch: batch, recorder=recorder)
    step, x = GraphedStep(bad, recorder=recorder), {"x": torch.ones(2)}
    for _ in range(3):
        step(x), good(x)
    recording = True
    with pytest.raises(RuntimeError, match="not permitted"):
        step(x)
    for _ in range(2):
        good(x)
    assert [pool for pool, *_ in cuda.captures] == [(0, 1), (0, 2)] and recorder.pool == (0, 2)


def test_the_steps_of_a_learner_share_a_recorder_and_adamw_can_be_recorded_only_then(monkeypatch):
    run = prepare(preset("catch").change(TINY))
    groups = lambda learner: [
        g["capturable"] for o in learner.optimizers.values() for g in o.param_groups
    ]
    assert not any(groups(run.learner))
    assert all(
        g["capturable"]
        for g in adamw(torch.nn.Linear(2, 2), 0.1, 0.1, capturable=True).param_groups
    )
    monkeypatch.setattr(
        type(run.agent), "device", torch.device("cuda")
    )  # a learner that believes it; nothing runs
    monkeypatch.setattr("simulus_nb.learner.make_perceptual", lambda choice: None)
    monkeypatch.setattr("simulus_nb.learner.ReturnScale", lambda *_, **__: torch.nn.Identity())
    monkeypatch.setattr(torch.nn.Identity, "to", lambda self, device: self)
    learner = make_learner(
        run.agent, run.config.change({"graphs": True, "precision": "float32"}), run.generator
    )
    assert all(groups(learner)) and len({id(step.recorder) for step in learner.steps.values()}) == 1
    assert all(step.generators == [run.generator] for step in learner.steps.values())
