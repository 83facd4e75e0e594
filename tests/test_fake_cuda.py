"""The library on a CUDA that computes nothing (tests/fake_cuda): what a GPU would refuse, where the
host would wait for it, and what an update costs there. And on every machine: the rules of cuDNN
that a CPU does not enforce."""
import json
import os
import subprocess
import sys
from functools import wraps
from pathlib import Path

import pytest
import torch
from torch import nn

from simulus_nb import accelerate
from simulus_nb.config import preset
from simulus_nb.loop import run_epoch
from simulus_nb.run_setup import prepare

FOLDER = Path(__file__).with_name("fake_cuda")
CANNOT = 77                             # exit code of build.py


def script(name: str, *arguments: str, **environment: str) -> str:
    """What a script of tests/fake_cuda prints. It has a process of its own, since its library
    must be loaded before PyTorch."""
    here = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(FOLDER.parents[1]), "MPLBACKEND": "agg"}
    command = [sys.executable, str(FOLDER / name), *arguments]
    env = os.environ | here | environment
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode == CANNOT:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout.strip()


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> str:
    "Path of the compiled library, one for all workers of this test run."
    folder = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        folder = folder.parent
    return script("build.py", str(folder))


def run(library: str, name: str, *arguments: str) -> dict:
    return json.loads(script(name, *arguments, FAKE_CUDA_LIBRARY=library))


@pytest.mark.parametrize("world", [
    "catch", "catch --graphs", "cartpole", "parcels", "attention", "additions",
    "additions --graphs"])
def test_a_whole_run(library, world):
    """Play, updates, a stop, a resumed run, evaluation, media, the saved agent, dreams: nothing
    that CUDA refuses, and no waiting in a warm update."""
    found = run(library, "worlds.py", *world.split())
    assert not found["broken"], "\n".join(found["broken"])
    assert not found["doubles"], "float64, which Apple's GPUs do not have: " + ", ".join(
        found["doubles"]
    )
    if "graphs" in world:
        # V, M, C, and C's critic alone
        assert found["recordings"] >= 4


def test_the_first_minutes_on_a_gpu(library):
    """The measurements that wait for a GPU run on CUDA: all stages in every epoch, one by one and
    as graphs, every part of the bench."""
    found = run(library, "tables.py")
    assert not found["broken"], "\n".join(found["broken"])
    assert found["epochs"] == [3, 3] and found["recordings"] >= 3 and found["kept"] > 6
    assert all({"v", "m", "c"} <= set(stages) for stages in found["stages"])
    assert all({"V", "M", "C", "dream", "encode"} <= set(timed) for timed in found["timed"])


def test_offences_are_found(library):
    """The rules of the two tests above and below can be broken: calls that a GPU would not take,
    or would have to wait for, each noted with its place."""
    found = run(library, "offences.py")
    assert found.pop("allowed")[1] == []
    for name, (wanted, notes) in found.items():
        said = " | ".join(notes)
        assert said and all(part in said for part in wanted), f"{name}: {wanted}, noted {notes}"


@pytest.mark.parametrize("variants", [
    [], ["--variant", "atari100k"], ["--variant", "simulus-a"]], ids=" ".join)
def test_an_update_costs_no_more_than_before(library, variants):
    """Operations, traffic, peak memory and products of one update at Atari's sizes, of the core in
    both precisions and of two variants: they may fall, never rise; counts.json holds the last
    ones."""
    stored = json.loads((FOLDER / "counts.json").read_text())
    version = lambda text: text.split(".")[:2]
    if version(stored["torch"]) != version(torch.__version__):
        made = f"counts.json was made with PyTorch {stored['torch']}"
        pytest.skip(f"{made}; {torch.__version__} may take operations apart differently")
    found = run(library, "count.py", "--json", *variants)
    assert not found["broken"], "\n".join(found["broken"])
    assert not found["changed"], "\n".join(found["changed"])


@pytest.mark.parametrize("mib,when", [(1, "while the run was being built"), (18, "learnt")])
def test_a_gpu_that_is_too_small(library, mib, when):
    "One line, with the settings that cost most, and no traceback."
    sizes = {"steps": 1, "start": 0}
    words = [f"--train-{part}.{key}={n}" for part in "vmc" for key, n in sizes.items()]
    words += ["--epochs=1", "--collect.steps=30", "--collect.capacity=400", "--threads=1"]
    found = run(library, "memory.py", str(mib), *words)
    said = found["said"]
    assert found["code"] == 2 and said.startswith("simulus-nb: out of memory on cuda")
    assert said.count("\n") == 1 and when in said and said.count(" needs ") == 3


def lstm_offences(monkeypatch) -> list[str]:
    "What cuDNN would have refused, from now on."
    noted, forward = [], nn.LSTM.forward

    @wraps(forward)
    def watched(self, x, state=None):
        weights = list(self.parameters())
        if torch.is_grad_enabled() and any(w.requires_grad for w in weights) and not self.training:
            noted.append("an LSTM in evaluation mode that is to be differentiated")
        for t in (x, *(state or ()), *weights):
            if t.dtype != x.dtype:
                noted.append(f"an LSTM with {t.dtype} beside {x.dtype}")
        for t in state or ():
            if not t.is_contiguous():
                noted.append("an LSTM whose state is not contiguous")
        return forward(self, x, state)

    monkeypatch.setattr(nn.LSTM, "forward", watched)
    return noted


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_cudnn_asks_of_an_lstm(monkeypatch, shared, precision):
    """Gradients only in training mode, one type, contiguous states; on a CPU nobody else would
    notice. What is asked does not depend on whether this CPU is fast in bfloat16."""
    monkeypatch.setattr(accelerate, "has_bfloat16", lambda device: True)
    noted = lstm_offences(monkeypatch)
    sizes = {"steps": 1, "start": 0, "batch": 4}
    part = {f"train_{p}.{key}": value for p in "vmc" for key, value in sizes.items()}
    toy = prepare(preset("small").change({
        **part, "epochs": 2, "threads": 1, "device": "cpu", "precision": precision,
        "collect.steps": 30, "collect.capacity": 100, "controller.shared": shared,
        "controller.width": 16, "world_model.retnet.width": 16, "world_model.retnet.layers": 1,
        "train_c.critic_first": 1, "train_c.horizon": 3, "train_c.burn_in": 2,
        "evaluation.every": 1, "evaluation.interim": 1, "evaluation.num_envs": 1}))
    # the critic alone, then both
    for _ in range(2):
        run_epoch(toy)
    assert not noted, set(noted)
    # afterwards as before
    assert not toy.agent.training and not any(m.training for m in toy.agent.modules())
