"""Several processes, one run: the same parameters as one process, the same state everywhere, and a
death that costs one line and no more than the epochs since the last checkpoint."""
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_crash import everything

from simulus_nb import distributed
from simulus_nb.checkpoint import load_checkpoint
from simulus_nb.run_folder import RunFolder
from simulus_nb.spaces import UserError
from simulus_nb.trainer import Trainer

pytestmark = pytest.mark.skipif(
    os.name != "posix" or not torch.distributed.is_gloo_available(),
    reason="needs fork, signals and gloo"
)
TOY = shlex.split("""train --env simulus/Catch-v0 --epochs 4 --save-every 2 --seed 3
  --collect.steps 40 --collect.num-envs 2 --collect.capacity 160 --tokenizer.image.code-dim 8
  --tokenizer.image.vocab 16 --world-model.retnet.width 16 --world-model.retnet.heads 2
  --world-model.retnet.layers 1 --world-model.retnet.dropout 0.1 --controller.width 16
  --controller.channels 4 4 --train-v.batch 4 --train-v.steps 3 --train-v.start 0
  --train-m.batch 4 --train-m.steps 3 --train-m.start 0 --train-c.batch 4 --train-c.steps 3
  --train-c.start 1 --evaluation.episodes 3 --evaluation.num-envs 2 --evaluation.every 2
  --evaluation.interim 2 --threads 1 --device cpu""")


@pytest.fixture(scope="module")
def fork(tmp_path_factory):
    "A function that runs one task of `together.py`."
    clean = {
        k: v
        for k, v in os.environ.items()
        if k not in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK")
    }
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("together.py")], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, env=clean | {"OMP_NUM_THREADS": "1"}
    )
    log = str(tmp_path_factory.mktemp("log") / "log")

    def run(world=2, **task):
        print(json.dumps(task | {"world": world, "log": log}), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    yield run
    process.stdin.close()
    assert process.wait(60) == 0


@pytest.mark.parametrize("double, tolerance", [(False, 2e-4), (True, 1e-9)])
@pytest.mark.parametrize(
    "changes",
    [{}, {"env": "CartPole-v1", "tokenizer.vector_levels": 25, "train_c.critic_first": 10**6,
          "curiosity.heads": 2, "curiosity.only_collecting": True},
     {"world_model.sequence": "attention"},
     {"controller.value": "number", "train_c.average": 0.1},
     {"tokenizer.image.quantiser": "fsq", "tokenizer.image.levels": [4, 4],
      "world_model.sequence": "attention", "world_model.attention.fade": True,
      "train_m.prioritised": 0.5, "train_m.reward_weight": 3.0, "curiosity.heads": 4,
      "curiosity.weight": 3.0}],
    ids=["catch", "critic", "attention", "mean", "additions"]
)
def test_two_processes_are_one(fork, tmp_path, changes, double, tolerance):
    """After twenty updates of V, M and C: parameters, codebook, optimisers, return scale, recorded
    losses and metrics of one process with the whole batch."""
    # one channel a group: a bias before it would learn rounding errors
    task = dict(changes={"tokenizer.image.norm_groups": 2, **changes}, double=double)
    for world in (1, 2):
        done = fork(world, out=str(tmp_path / str(world)), **task)
        assert done["codes"] == [0] * world, done["said"]
    one, first, second = (torch.load(tmp_path / name) for name in ("1-0", "2-0", "2-1"))
    assert one["state"].keys() == first["state"].keys() and len(one["state"]) > 50
    for name, x in one["state"].items():
        assert torch.equal(first["state"][name], second["state"][name]), name
        assert torch.allclose(
            first["state"][name].double(), x.double(), rtol=tolerance, atol=tolerance
        ), name
    assert first["metrics"] == second["metrics"]
    for stage, metrics in one["metrics"].items():
        assert first["metrics"][stage] == pytest.approx(metrics, rel=1e-3, abs=1e-5), stage
    assert all(torch.equal(first["random"][k], second["random"][k]) for k in first["random"])
    # batches and play drew the same
    assert torch.equal(one["random"]["generator"], first["random"]["generator"])


@pytest.fixture(scope="module")
def whole(fork, tmp_path_factory):
    "A run of two processes that nobody disturbs."
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = fork(argv=[*TOY, "--out", str(folder)])
    assert done["codes"] == [0, 0], done["said"]
    assert (
        "2 processes (cpu)" in done["said"][0]
        and "evaluation  " in done["said"][0]
        and done["said"][1] == ""
    )
    assert (
        json.loads((folder / "manifest.json").read_text())["processes"] == 2
        and len(list(folder.glob("events.*"))) == 1
    )
    return folder


def assert_same(folder, truth):
    (a, *rest), (b, *expected) = everything(folder), everything(truth)
    assert rest == expected and a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []


@pytest.mark.parametrize("victim", [0, 1])
def test_a_death_costs_one_line(fork, whole, tmp_path, victim):
    """Killed in the third epoch: the other process ends with one line, and the run goes on from the
    checkpoint as if nothing had been."""
    folder = tmp_path / "run"
    done = fork(argv=[*TOY, "--out", str(folder)], kill=victim, at=8)
    survivor, said = 1 - victim, done["said"][1 - victim].splitlines()
    assert done["codes"][victim] == -signal.SIGKILL and done["codes"][survivor] == 2
    assert said[-1].startswith(
        "simulus-nb: another process of this job has ended; continue from the last checkpoint "
        "with: torchrun --nproc_per_node=2 -m simulus_nb.cli train --resume --out"
    )
    assert len(said) == (1 if survivor else 2) and not RunFolder(folder).manifest.exists()
    done = fork(argv=[*TOY, "--resume", "--out", str(folder)])
    assert done["codes"] == [0, 0] and "(2 epochs are done)" in done["said"][0], done["said"]
    assert_same(folder, whole)


def test_a_signal_to_one_stops_all_at_one_moment(fork, whole, tmp_path):
    folder = tmp_path / "run"
    done = fork(argv=[*TOY, "--out", str(folder)], signalled=1, at=8)
    assert (
        done["codes"] == [0, 0]
        and "stopped; continue from the last checkpoint with" in done["said"][0]
        and done["said"][1] == ""
    )
    assert load_checkpoint(folder / "checkpoint").meta["cursor"]["stage"] == "m"
    assert fork(argv=[*TOY, "--resume", "--out", str(folder)])["codes"] == [0, 0]
    assert_same(folder, whole)
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    done = fork(argv=[*TOY, "--resume", "--out", str(folder)])      # finished: nothing more to do
    assert (
        done["codes"] == [0, 0]
        and done["said"][1] == ""
        and {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before
    )


def test_another_number_of_processes_can_go_on(fork, whole, tmp_path):
    "What a checkpoint holds does not depend on how many wrote it."
    folder = tmp_path / "run"
    fork(argv=[*TOY, "--out", str(folder)], kill=1, at=8)
    trainer = Trainer(None, folder, resume=True, progress=False)
    assert trainer.epoch == 2
    while trainer.epoch < 4:
        trainer.run_epoch()


def test_mistakes_are_one_line(fork, whole, tmp_path):
    done = fork(argv=[*TOY, "--out", str(whole)])
    assert done["codes"] == [2, 2] and all(
        "already holds a run" in s and s.count("\n") == 1 for s in done["said"]
    )
    done = fork(argv=[*TOY, "--train-m.batch", "5", "--out", str(tmp_path / "odd")])
    assert (
        done["codes"] == [2, 2]
        and "train_m.batch = 5 cannot be shared equally by 2 processes: use a multiple of 2"
        in done["said"][0]
    )
    (tmp_path / "file").write_text("x")
    # only the first process notices
    done = fork(argv=[*TOY, "--out", str(tmp_path / "file" / "run")])
    assert (
        done["codes"] == [2, 2] and "cannot write to" in done["said"][0] and done["said"][1] == ""
    )


def test_torchrun(whole, tmp_path):
    "The command of the documentation, from a shell."
    folder = tmp_path / "run"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m",
        "simulus_nb.cli", *TOY, "--epochs", "2", "--out", str(folder)
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("evaluation  ") == 1 and "Warning" not in done.stderr
    assert [r["m/loss"] for r in RunFolder(folder).history()] == [
        r["m/loss"] for r in RunFolder(whole).history()[:2]
    ]


def test_alone_nothing_changes():
    x, batch, generator = torch.randn(4, 2), {"x": torch.randn(4)}, torch.Generator()
    part, loss, before = torch.nn.Linear(1, 1), (lambda: None), torch.get_rng_state()
    distributed.join(), distributed.share_random(generator), distributed.leave()
    assert distributed.processes() == 1 and distributed.rank() == 0
    assert (
        distributed.everyone(x)
        is distributed.mean_of_all(x)
        is distributed.in_parts(lambda rows: rows, x)
        is x
    )
    assert (
        distributed.mine(batch) is distributed.mean_metrics(batch) is batch
        and distributed.parallel(part, loss) is loss
    )
    with distributed.own_noise(generator, torch.device("cpu")) as inside, distributed.together():
        assert inside is generator
    assert (
        distributed.from_first(lambda: 3) == 3
        and distributed.any_of(True)
        and not distributed.any_of(False)
    )
    assert (
        torch.equal(before, torch.get_rng_state())
        and distributed.place(torch.device("mps")).type == "mps"
    )
    with pytest.raises(RuntimeError, match="gloo"), distributed.together():
        raise RuntimeError("gloo: connection closed by peer")               # nobody else to blame


def test_devices(monkeypatch):
    monkeypatch.setattr(distributed, "processes", lambda: 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    assert distributed.place(torch.device("cpu")).type == "cpu"
    with pytest.raises(
        UserError, match="more processes than this machine has GPUs: use --nproc_per_node=2"
    ):
        distributed.place(torch.device("cuda"))
    with pytest.raises(UserError, match="not on mps"):
        distributed.place(torch.device("mps"))
