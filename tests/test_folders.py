"""A run folder has one owner, a checkpoint of its own, and nothing in it leads elsewhere, hangs or
fills the memory."""
import contextlib
import gc
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces as gs
from safetensors.torch import load_file

from simulus_nb import origin, trainer
from simulus_nb.agent import Agent
from simulus_nb.catch import Catch
from simulus_nb.checkpoint import CheckpointWarning, load_checkpoint, save_checkpoint
from simulus_nb.cli import PlayCommand, main, parse
from simulus_nb.evaluate import Notice
from simulus_nb.files import (
    DamagedError, MissingError, own_name, read_bytes, read_json, sweep, write_atomic
)
from simulus_nb.lock import NO_LOCKS, FolderLock, take
from simulus_nb.loop import Diverged
from simulus_nb.origin import git_commit
from simulus_nb.registry import built
from simulus_nb.run_folder import RunFolder, check_spaces
from simulus_nb.run_log import find_tracker
from simulus_nb.spaces import ActionSpec, Modality, ObsSpec, UserError
from simulus_nb.trainer import Callback, Trainer
from test_crash import TOY, meta_of, tensor_of

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs fork and signals")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "A finished run, without pictures: they take longer than the run."
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        assert main([*TOY, "--epochs", "2", "--save-every", "1", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def run(finished, tmp_path):
    "A copy of it."
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def quick(patch):
    "No pictures, no videos."
    patch.setattr(trainer, "dream_media", lambda *args, **kwargs: {})
    patch.setattr(
        trainer, "plot_history", lambda history: types.SimpleNamespace(savefig=lambda *a, **k: None)
    )
    patch.setattr("simulus_nb.cli.dream_media", lambda *args, **kwargs: {})
    patch.setattr("simulus_nb.cli.film_episode", lambda *args, **kwargs: "no film here")


def forked(work, *args):
    "What `work` returns in a child process; its exit code if it is killed."
    ours, theirs = multiprocessing.Pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            theirs.send(work(*args))
            code = 0
        finally:
            os._exit(code)
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def says(argv):
    """Exit code of a command in a child of its own, and what it said on stderr; None if it takes
    longer than it may."""
    def work():
        reader = Path(os.environ["SAYS"])
        os.dup2(os.open(reader, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stderr, sys.stdout = open(2, "w", closefd=False), open(1, "w", closefd=False)
        signal.alarm(60)                                        # a hang ends with a signal
        with pytest.MonkeyPatch.context() as patch:
            quick(patch)
            code = main(argv)
        sys.stderr.flush()
        return code
    return forked(work), Path(os.environ["SAYS"]).read_text()


@pytest.fixture(autouse=True)
def place_to_say(tmp_path, monkeypatch):
    monkeypatch.setenv("SAYS", str(tmp_path / "stderr.txt"))


# ---------------------------------------------------------------- one owner

def free(folder):
    "Whether another process could have the folder."
    return forked(lambda: take(folder / "run.lock") is not None)


def refused(work, *args):
    "The one line of the `UserError`."
    try:
        work(*args)
    except UserError as e:
        return str(e)
    return ""


def test_a_second_process_is_told_whose_the_folder_is(tmp_path):
    lock = FolderLock(tmp_path)
    text = forked(refused, FolderLock, tmp_path)
    assert f"process {os.getpid()} on " in text and "--out" in text and "\n" not in text
    assert forked(refused, FolderLock, tmp_path / ".." / tmp_path.name) == text.replace(
        str(tmp_path), f"{tmp_path}/../{tmp_path.name}"
    )
    lock.release()
    assert forked(refused, FolderLock, tmp_path) == ""


def test_a_child_neither_has_nor_frees_the_lock_of_its_parent(tmp_path):
    lock = FolderLock(tmp_path)
    # in the child it is not ours to release
    assert forked(lambda: lock.release() or take(lock.path) is None)
    assert forked(refused, lock.acquire)                                        # nor to take
    assert forked(refused, FolderLock, tmp_path)
    lock.check()
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"])
    pid = os.fork()
    if pid == 0:
        time.sleep(30)
        os._exit(0)
    lock.release()                                              # children that live on keep nothing
    assert forked(refused, FolderLock, tmp_path) == ""
    for child in (sleeper.pid, pid):
        os.kill(child, signal.SIGKILL)
    sleeper.wait(), os.waitpid(pid, 0)


@pytest.mark.parametrize("times", range(3))
def test_of_many_at_the_same_moment_one_wins(tmp_path, times):
    gate, results = multiprocessing.get_context("fork").Barrier(6), []
    def race():
        gate.wait()
        got = refused(FolderLock, tmp_path) == ""
        gate.wait()                                             # nobody ends before all have tried
        return got
    pipes = []
    for _ in range(6):
        ours, theirs = multiprocessing.Pipe()
        if (pid := os.fork()) == 0:
            theirs.send(race())
            os._exit(0)
        pipes.append((pid, ours))
    for pid, ours in pipes:
        results.append(ours.recv())
        os.waitpid(pid, 0)
    assert sum(results) == 1


def test_kill_9_frees_the_folder(tmp_path):
    def owner(pipe):
        lock = FolderLock(tmp_path)                             # alive as long as the process
        pipe.send(lock.path.name)
        time.sleep(60)
    ours, theirs = multiprocessing.Pipe()
    if (pid := os.fork()) == 0:
        owner(theirs)
    assert ours.recv() == "run.lock" and f"process {pid} " in refused(FolderLock, tmp_path)
    os.kill(pid, signal.SIGKILL), os.waitpid(pid, 0)
    assert refused(FolderLock, tmp_path) == ""


@pytest.mark.parametrize("number", NO_LOCKS)
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    """It is said, and a live owner is respected all the same; a dead one, one whose number was
    given again, or one elsewhere is not."""
    def no_locks(*args):
        raise OSError(number, os.strerror(number))
    monkeypatch.setattr("simulus_nb.lock.take", no_locks)
    with pytest.warns(CheckpointWarning, match="has no locks"):
        lock = FolderLock(tmp_path)
    assert f"process {os.getpid()} " in forked(refused, FolderLock, tmp_path)
    record, dead = read_json(lock.path), os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    lock.release()
    for change in (
        {"pid": dead}, {"started": "1"}, {"host": "elsewhere"}, {"held": False}, {"pid": -1},
        {"pid": "x"}, {"pid": 10**30}
    ):
        lock.path.write_text(json.dumps(record | change))
        with pytest.warns(CheckpointWarning):
            FolderLock(tmp_path).release()


def test_other_errors_of_the_lock_file_are_said(tmp_path):
    (tmp_path / "run.lock").mkdir()
    assert "run.lock" in refused(RunFolder(tmp_path).own) and refused(
        RunFolder("/proc/nowhere").own
    )


def test_two_commands_in_one_folder(finished, tmp_path):
    "The second ends at once with one line; the first does not notice; no epoch stands twice."
    words = [
        *TOY, "--epochs", "12", "--save-every", "1", "--evaluation.every", "0", "--out",
        str(tmp_path / "run"), "--resume"
    ]
    log = open(tmp_path / "log", "w")
    if (pid := os.fork()) == 0:
        os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
        with pytest.MonkeyPatch.context() as patch:
            quick(patch)
            os._exit(main(words))
    while not (tmp_path / "run" / "checkpoint" / "LATEST").exists():
        time.sleep(0.02)
    code, text = says(["train", "--resume", "--out", str(tmp_path / "run")])
    assert code == 2 and f"process {pid} " in text and text.count("\n") == 1
    assert says(["evaluate", str(tmp_path / "run"), "--seed", "3"])[0] == 0     # to look is allowed
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, (tmp_path / "log").read_text()
    assert [r["epoch"] for r in RunFolder(tmp_path / "run").history()] == list(range(12))
    assert not list((tmp_path / "run").rglob(".partial-*"))


def test_in_one_process_the_newest_trainer_counts(run, monkeypatch):
    quick(monkeypatch)
    def again(steps):
        return Trainer(None, run, resume=True, progress=False, steps=steps)
    older, newer = again(150), again(150)
    with pytest.raises(UserError, match="taken over.*--resume"):
        older.train()
    with pytest.raises(UserError, match="taken over"):
        older.save(run / "checkpoint")
    assert not free(run)
    newer.train()
    assert free(run)                                            # its end has freed the folder
    newer.save(run / "checkpoint")
    gone = again(200)
    assert not free(run)
    del gone
    gc.collect()
    assert free(run)                                            # so has this one's


def test_the_lock_is_freed_however_training_ends(run, monkeypatch):
    quick(monkeypatch)
    class Fails(Callback):
        def on_epoch(self, trainer, record):
            assert not free(run)                                # held while it trains
            raise ValueError("mine")
    held = Trainer(None, run, resume=True, progress=False, steps=200, callbacks=[Fails()])
    with pytest.raises(ValueError, match="mine"):
        held.train()
    assert free(run)
    (run / "metrics.jsonl").unlink(), shutil.rmtree(run / "checkpoint")
    (run / "config.json").write_text("{")
    with pytest.raises(UserError) as kept:              # the error holds the frames, not the folder
        Trainer(None, run, resume=True, progress=False)
    assert kept and free(run)


def test_somebody_else_trained_in_between(run, monkeypatch):
    """A notebook that goes on after another process has taken the run further would write old
    numbers over new ones."""
    quick(monkeypatch)
    mine = Trainer(None, run, resume=True, progress=False, steps=150)
    mine.folder.leave()
    forked(lambda: FolderLock(run).release())
    with pytest.raises(UserError, match="taken over"):
        mine.train()


# ---------------------------------------------------------------- names of one's own

def test_sweep_takes_the_names_of_the_dead_and_no_others(tmp_path):
    mine = own_name(tmp_path)
    theirs = Path(forked(lambda: str(own_name(tmp_path))))                  # that process is gone
    far = tmp_path / ".partial-00000000-1-00000000"
    old = tmp_path / ".partial-00000000-1-00000001"
    for path in (mine, theirs, far, old):
        path.mkdir()
        (path / "file").write_text("x")
    notes = tmp_path / ".partial-notes"
    notes.write_text("somebody else's")
    os.utime(old, (0, 0)), os.utime(notes, (0, 0))
    sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([mine, far, notes])
    for _ in range(50):
        assert own_name(tmp_path) != own_name(tmp_path)


def test_saves_and_files_of_two_processes_do_not_meet(tmp_path):
    "Two that write into one folder all the time: each file is whole, and nothing is left."
    def write(mark):
        for i in range(40):
            write_atomic(tmp_path / "a.json", json.dumps([mark] * 1000))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("simulus_nb.files.to_disk", lambda path: None)
                patch.setattr("simulus_nb.checkpoint.to_disk", lambda path: None)
                try:
                    save_checkpoint(
                        tmp_path / "c", {"x": {"x": torch.full((99,), mark)}}, {"mark": mark}
                    )
                except UserError as e:
                    assert "cannot write a checkpoint" in str(e)    # both wanted the same number
        return True
    if (pid := os.fork()) == 0:
        os._exit(0 if write(1) else 1)
    assert write(2) and os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(set(json.loads((tmp_path / "a.json").read_text()))) == 1
    found = load_checkpoint(tmp_path / "c")
    assert (found.tensors["x"]["x"] == found.meta["mark"]).all() and not list(
        tmp_path.rglob(".partial-*")
    )


# ---------------------------------------------------------------- numbers that are not finite

@pytest.mark.parametrize(
    "part, first", [("v", 0), ("m", 0), ("c", 0), ("c", 9)], ids=["v", "m", "c", "critic"]
)
def test_a_learning_rate_of_a_million(tmp_path, part, first):
    "One line with stage, update and the last good save, which is there."
    words = [
        *TOY, "--evaluation.every", "0", f"--train-{part}.lr", "1e6", f"--train-{part}.start", "2",
        f"--train-{part}.steps", "12", "--save-every", "1", "--out", str(tmp_path / "run")
    ]
    words += ["--train-c.start", "2", "--train-c.critic-first", str(first)] if part == "c" else []
    code, text = says(words)
    assert (
        code == 2
        and text.count("\n") == 1 + ("C's actor never learns" in text) == 1 + (first > 3)
        and "diverged in epoch 2, update " in text.splitlines()[-1]
        and f"train_{part}.lr (it is 1e+06)" in text
    )
    assert str(tmp_path / "run" / "checkpoint" / "save-00000002") in text
    for save in sorted((tmp_path / "run" / "checkpoint").glob("save-*")):
        for file in save.glob("*.safetensors"):
            # the scale's memory begins with inf
            if file.name not in ("scale.safetensors", "metrics.safetensors"):
                assert all(
                    x.isfinite().all() for x in load_file(file).values() if x.is_floating_point()
                ), file
    assert [r["epoch"] for r in RunFolder(tmp_path / "run").history()] == [0, 1]
    assert Agent.load(tmp_path / "run")


@pytest.mark.parametrize("where", ["loss", "parameter", "moment", "scale", "crash"])
@pytest.mark.parametrize("stage", ["v", "m", "c"])
def test_every_place_where_nan_can_hide(run, monkeypatch, stage, where):
    quick(monkeypatch)
    trainer = Trainer(None, run, resume=True, progress=False, steps=200)
    before, step = (
        sorted((run / "checkpoint").glob("save-*")), getattr(trainer.learner, f"{stage}_step")
    )
    module = {
        "v": trainer.agent.tokenizer, "m": trainer.agent.world_model, "c": trainer.agent.controller
    }[stage]
    calls = []
    def poisoned(*args):
        metrics = step(*args)
        calls.append(0)
        if len(calls) == 2:
            if where == "parameter":
                next(module.parameters()).data.view(-1)[0] = torch.inf
            if where == "moment":
                next(iter(trainer.learner.optimizers[stage].state.values()))["exp_avg_sq"].view(-1)[
                    0
                ] = torch.nan
            if where in ("loss", "crash"):
                metrics = metrics | {
                    "loss": metrics["loss" if "loss" in metrics else "critic"] * torch.nan
                }
        # anew in each update
        if len(calls) == 3 and where == "scale":
            trainer.learner.scale.value.fill_(torch.nan)
        if len(calls) == 3 and where == "crash":
            raise RuntimeError("probability tensor contains either inf, nan or element < 0")
        return metrics
    monkeypatch.setattr(trainer.learner, f"{stage}_step", poisoned)
    with pytest.raises(Diverged, match=r"update [23] of 3.*last good save is .*save-00000002"):
        trainer.train()
    assert sorted((run / "checkpoint").glob("save-*")) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_saved_agent_with_numbers_that_are_not_finite(run, value):
    "Refused by all who would use it, in one line; the one before is used if it is whole."
    report, newest = (run / "evaluation.json").read_text(), max((run / "checkpoint").glob("save-*"))
    tensor_of(newest, "agent", "controller.actor.bias", lambda x: x.fill_(value))
    with pytest.warns(CheckpointWarning, match="not finite.*controller.actor.bias"):
        Agent.load(run)
    for save in (run / "checkpoint").glob("save-*"):
        tensor_of(save, "agent", "controller.actor.bias", lambda x: x.fill_(value))
    for argv in (
        ["evaluate", str(run)], ["dream", str(run)],
        ["train", "--resume", "--epochs", "3", "--out", str(run)]
    ):
        code, text = says(argv)
        assert code == 2 and "not finite" in text and text.count("\n") == 1, text
    assert (run / "evaluation.json").read_text() == report


def test_files_are_strict_json(run):
    for write in (
        lambda: RunFolder(run).write(run / "x.json", {"a": float("nan")}),
        lambda: save_checkpoint(run / "x", {}, {"a": float("inf")})
    ):
        with pytest.raises(ValueError):
            write()
    assert (
        not (run / "x.json").exists()
        and not (run / "x").exists()
        and not list(run.rglob(".partial-*"))
    )


# ---------------------------------------------------------------- settings and checkpoint belong
# together

COMMANDS = (
    ["evaluate"], ["evaluate", "--which", "best"], ["dream"],
    ["train", "--resume", "--epochs", "3", "--out"]
)
CHANGES = {
    "seed": 4, "env": "CartPole-v1", "env_options": {"rows": 8}, "obs_kinds": {"obs": "vector"},
    "train_c.loss.gamma": 0.5, "controller.width": 24, "world_model.retnet.layers": 2,
    "tokenizer.vector_levels": 61, "collect.capacity": 170, "evaluation.temperature": 0.1,
    "learn_on": 1
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_setting_is_named_by_every_command(run, name):
    report, config = (
        (run / "evaluation.json").read_text(),
        RunFolder(run).read_config().change({name: CHANGES[name]})
    )
    RunFolder(run).write(run / "config.json", config.to_json())
    for command in COMMANDS[list(CHANGES).index(name) % 2::2]:
        code, text = says([*command, str(run)])
        assert code == 2 and f"made with {name} = " in text and text.count("\n") == 1, text
    assert (run / "evaluation.json").read_text() == report and not (
        run / "media" / "episode.mp4"
    ).exists()


def test_a_foreign_checkpoint_is_refused(run, tmp_path):
    "Copied over the run's own, or beside it as a newer one."
    config = RunFolder(run).read_config()
    trainer = Trainer(config.change({"seed": 9}), tmp_path / "other", progress=False)
    for _ in range(5):
        trainer.save(tmp_path / "other" / "checkpoint")
    report = (run / "evaluation.json").read_text()
    shutil.copytree(tmp_path / "other" / "checkpoint", run / "checkpoint", dirs_exist_ok=True)
    for command in COMMANDS:
        code, text = says([*command, str(run)])
        assert (
            code == 2
            and "no checkpoint of this run: it was made with seed = 9, and 3 is" in text
            and text.count("\n") == 1
        )
    assert (run / "evaluation.json").read_text() == report


def test_only_the_length_may_differ(run):
    folder = RunFolder(run)
    folder.write(run / "config.json", folder.read_config().change({"epochs": 7}).to_json())
    assert says(["evaluate", str(run), "--seed", "1"]) == (0, "")


# ---------------------------------------------------------------- files of somebody else

def everything(folder):
    "Bytes of every file, by name."
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "name",
    [
        "metrics.jsonl", "manifest.json", "evaluation.json", "evaluation-best.json", "checkpoint",
        "checkpoint/save-00000007/meta.json", "collected/x", "media/dream.png", "events.out.tf"
    ],
)
@pytest.mark.parametrize("resume", [False, True])
def test_files_of_somebody_else_are_not_written_over(tmp_path, name, resume):
    place = tmp_path / "proj"
    for file in (name, "notes.txt", ".partial-notes"):
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_text("mine")
    before, line = everything(place), [*TOY, *["--resume"] * resume, "--out", str(place)]
    code, said = says(line)
    assert code == 2 and said.count("\n") == 1 and everything(place) == before
    assert f"proj holds {name.split('/')[0]}, but no config.json of a run: choose another" in said
    with pytest.raises(UserError, match="but no config.json"):
        RunFolder(place).create(parse(TOY).config)


def test_a_run_without_its_settings_is_not_begun_again(run):
    (run / "config.json").unlink()
    before = everything(run)
    code, said = says([*TOY, "--out", str(run)])
    assert code == 2 and "metrics.jsonl" in said and everything(run) == before


def test_unrelated_files_are_no_obstacle(tmp_path):
    place = tmp_path / "run"
    (place / "media").mkdir(parents=True), (place / "run.lock").touch()     # killed as it began
    theirs = {place / name: name.encode() for name in ("notes.txt", "package.json", ".partial-x")}
    [path.write_bytes(text) for path, text in theirs.items()]
    assert says([*TOY, "--epochs", "2", "--out", str(place)])[0] == 0
    assert theirs.items() <= everything(place).items()
    assert [row["epoch"] for row in RunFolder(place).history()] == [0, 1]


@pytest.mark.parametrize(
    "text, words",
    [
        ('{"editor": "vim"}', "config.json: unknown field editor"),
        ("{}", "config.json is damaged, or no run's: it has no env, tokenizer"),
        ("{", "config.json is damaged: not readable"),
        ('{"env": "CartPole-v1"}', "it has no tokenizer, world_model, controller")
    ],
)
def test_settings_of_somebody_else_are_named(run, text, words):
    (run / "config.json").write_text(text)
    before = everything(run)
    for command in [*COMMANDS, ["train", "--resume", "--out"]]:
        code, said = says([*command, str(run)])
        assert code == 2 and words in said and said.count("\n") == 1, said
    code, said = says([*TOY, "--out", str(run)])
    assert code == 2 and "config.json is damaged, or no run's: choose another folder" in said
    assert everything(run) == before


@pytest.mark.parametrize("text", [None, "nonsense\n", "", '{"epoch": 0}\n'])
def test_resuming_restores_the_metrics_of_a_finished_run(run, text):
    before = everything(run)
    (run / "metrics.jsonl").unlink() if text is None else (run / "metrics.jsonl").write_text(text)
    assert says(["train", "--resume", "--out", str(run)])[0] == 0
    after = everything(run)
    assert [p.name for p in before if before[p] != after[p]] in ([], ["run.lock"])


# ---------------------------------------------------------------- a world that has changed

class Changing(gymnasium.Env):
    "Two numbers to see and one to choose, until somebody changes it."
    observation_space, action_space = gs.Box(-1, 1, (2,)), gs.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 5
        return self.observation_space.sample(), {}

    def step(self, action):
        self.left -= 1
        return self.observation_space.sample(), 1.0, self.left == 0, False, {}


gymnasium.register("simulus-test/Changing-v0", Changing)


@pytest.fixture(scope="module")
def changing(tmp_path_factory):
    "A finished run in it."
    folder = tmp_path_factory.mktemp("changing") / "run"
    with pytest.MonkeyPatch.context() as patch:
        quick(patch)
        words = [*TOY, "--env", "simulus-test/Changing-v0", "--epochs", "1", "--out", str(folder)]
        assert main(words) == 0
    return folder


@pytest.mark.parametrize(
    "what, space, words",
    [
        ("action", gs.Box(-100, 100, (1,)), "takes Box(-100.0, 100.0, (1,), float32), the run was "
         "made with Box(-1.0, 1.0, (1,), float32): restore the world or begin a new run"),
        ("action", gs.Discrete(3, start=7), "takes Discrete(3, start=7), the run was made with B"),
        ("action", gs.Box(-1, 1, (2,)), "takes Box(-1.0, 1.0, (2,), float32)"),
        ("observation", gs.Box(-5, 5, (2,)), "shows vector (2,) within 5.0 as 'obs', the run"),
        ("observation", gs.Box(-1, 1, (3,)), "shows vector (3,) within 1.0 as 'obs', the run"),
        ("observation", gs.Discrete(4), "shows categorical with 4 values from 0 as 'obs'"),
        ("observation", gs.Dict({"obs": gs.Box(-1, 1, (2,)), "x": gs.Discrete(2)}), "shows "
         "categorical with 2 values from 0 as 'x', the run was made with nothing")
    ],
)
def test_a_world_that_has_changed_is_one_line(changing, what, space, words, monkeypatch):
    monkeypatch.setattr(Changing, f"{what}_space", space)
    before = everything(changing)
    for command in (["evaluate"], ["inspect", "--episodes", "2"],
                    ["train", "--resume", "--epochs", "2", "--out"]):
        code, said = says([*command, str(changing)])
        assert (code, said.count("\n")) == (2, 1), said
        assert f"simulus-nb: simulus-test/Changing-v0 now {words}" in said
    with pytest.raises(UserError, match="restore the world"):
        PlayCommand(changing, device="cpu").game()
    after = everything(changing)
    assert all(after[p] == x for p, x in before.items() if p.name != "run.lock")


def test_a_world_may_store_its_numbers_otherwise(changing, monkeypatch):
    space = gs.Box(-1, 1, (2,), np.float64)
    monkeypatch.setattr(Changing, "observation_space", space)
    assert says(["evaluate", str(changing), "--seed", "1"]) == (0, "")
    # and older releases saved less of an observation
    (one,) = ObsSpec.from_space(space).to_json()["modalities"]
    old = {k: v for k, v in one.items() if k not in ("bound", "raw_dtype", "in_dict")}
    act = ActionSpec.from_space(Changing.action_space)
    then = ObsSpec.from_json({"modalities": [old]})
    check_spaces("x", (ObsSpec.from_space(space), act), (then, act))


@pytest.mark.parametrize("start", [(1, -1), (0, 0)])
def test_parts_in_another_order_are_another_world(start):
    a, b = (Modality(k, "categorical", (1,), (3,), (s,)) for k, s in zip("ab", start))
    act = ActionSpec.from_space(gs.Discrete(2))
    check_spaces("x", (ObsSpec((a, b)), act), (ObsSpec((a, b)), act))
    with pytest.raises(UserError, match="shows b, a in this order, the run was made with a, b"):
        check_spaces("x", (ObsSpec((b, a)), act), (ObsSpec((a, b)), act))


# ---------------------------------------------------------------- save and load are symmetric

@pytest.mark.parametrize(
    "place",
    [
        ".", "checkpoint", "collected", "media", "checkpoint/save-00000002",
        "checkpoint/../checkpoint", "link"
    ],
)
def test_an_agent_is_never_saved_into_a_run(run, place):
    agent, before = Agent.load(run), {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    (run / "link").symlink_to("checkpoint")
    with pytest.raises(UserError, match="part of a run.*folder of its own"):
        agent.save(run / place)
    (run / "link").unlink()
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_nor_into_one_that_has_saved_nothing_yet(run):
    agent = Agent.load(run)
    shutil.rmtree(run / "checkpoint")
    for place in (run, run / "checkpoint", run / "collected"):
        with pytest.raises(UserError, match="part of a run"):
            agent.save(place)


@pytest.mark.parametrize(
    "name", ["agent", "checkpoint", "save-00000001", "run/agent", "run/checkpoint/mine", "a b", "."]
)
def test_what_was_saved_last_is_loaded(run, monkeypatch, name):
    monkeypatch.chdir(run.parent)
    agent, name = Agent.load(run), Path(name)
    bias = agent.controller.actor.bias.data
    def saved(folder, i):
        bias.fill_(i)
        agent.save(folder)
        return loads(folder, i)
    loads = lambda folder, i: (Agent.load(folder).controller.actor.bias == i).all()
    assert saved(name, 1) and saved(name, 2)
    (name / "checkpoint").mkdir(exist_ok=True)      # somebody's own folder, then another agent's
    assert loads(name, 2) and saved(name / "checkpoint", 3) and loads(name, 2)
    (name / "config.json").write_text('{"somebody": "else"}')
    assert saved(name, 4) and loads(name / "checkpoint", 3)


# ---------------------------------------------------------------- the commit of our own files

def test_git_commit_is_that_of_our_own_files(tmp_path, monkeypatch):
    "An environment inside of somebody's repository, and a source tree."
    git = lambda *words: subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True,
        capture_output=True, text=True
    ).stdout.strip()
    package = tmp_path / "venv" / "simulus_nb"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(""), (tmp_path / "theirs.py").write_text("")
    monkeypatch.setattr(
        origin, "find_spec",
        lambda name: types.SimpleNamespace(origin=str(package / "__init__.py"))
    )
    git("init")
    assert git_commit() is None
    git("add", "theirs.py"), git("commit", "-m", "theirs")
    assert git_commit() is None
    (
        monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git")),
        monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    )
    assert git_commit() is None
    git("add", "-A"), git("commit", "-m", "ours")
    assert git_commit() == git("rev-parse", "HEAD")
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None


# ---------------------------------------------------------------- a folder from a stranger

def instead(kind, outside):
    "A function that puts something else where a file was."
    def hole(path):
        with open(path, "wb") as f:
            f.truncate(2**43)                                   # 8 TB that take no room
    nested = lambda opening: lambda path: path.write_text(opening * 100_000)
    return {
        "pipe": os.mkfifo, "zeros": lambda path: path.symlink_to("/dev/zero"),
        "link": lambda path: path.symlink_to(outside),
        "gap": lambda path: path.symlink_to(outside.parent / "none"), "folder": Path.mkdir,
        "hole": hole, "lists": nested('{"a":['),
        "900": lambda path: path.write_text("[" * 900 + "]" * 900),
        "binary": lambda path: path.write_bytes(b"\xff\xfe\x00"),
        "null": lambda path: path.write_text("null\n")
    }[kind]


FILES = (
    "config.json", "metrics.jsonl", "manifest.json", "evaluation.json", "evaluation-best.json",
    "run.lock", "media", "media/curves.png", "media/episode.mp4", "media/best", "checkpoint",
    "checkpoint/LATEST", "checkpoint/save-00000002", "checkpoint/save-00000002/meta.json",
    "checkpoint/save-00000002/manifest.json", "checkpoint/save-00000002/agent.safetensors",
    "collected"
)
KINDS = ("link", "pipe", "gap", "zeros", "folder", "hole", "lists", "null")


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_something_else(finished, tmp_path, name):
    "Every command ends soon, with a result or one line, and writes nothing outside of the folder."
    outside, run = tmp_path / "outside" / "letter.txt", tmp_path / "run"
    outside.parent.mkdir()
    for n, kind in enumerate((*KINDS, "900", "binary") if name in FILES[:4] else KINDS):
        shutil.copytree(finished, run)
        outside.write_text("dear reader")
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        instead(kind, outside)(path)
        command = COMMANDS[(n + FILES.index(name)) % 4]         # each kind meets each command
        code, text = says([*command, str(run)])
        assert code in (0, 2) and "Traceback" not in text, (kind, command, code, text)
        assert (
            code == 0 or sum("damaged checkpoint" not in line for line in text.splitlines()) == 1
        ), (kind, command, text)
        assert outside.read_text() == "dear reader" and list(outside.parent.iterdir()) == [
            outside
        ], kind
        shutil.rmtree(run)


def test_a_run_folder_may_be_a_link_itself(run):
    (run.parent / "short").symlink_to(run)
    assert says(["evaluate", str(run.parent / "short")])[0] == 0


GIANTS = [
    (("config", "world_model", "retnet", "layers"), 10**7),
    (("config", "world_model", "retnet", "width"), 10**9),
    (("config", "world_model", "retnet", "width"), 32),
    (("config", "world_model", "retnet", "ffn"), 10**9),
    (("config", "world_model", "reward_bins"), 10**12), (("config", "controller", "width"), 10**9),
    (("config", "controller", "value_bins"), 10**12),
    (("config", "controller", "channels"), [10**9, 4]),
    (("config", "controller", "embedding"), 10**9),
    (("config", "tokenizer", "image", "image_size"), 2**40),
    (("config", "tokenizer", "image", "stages"), 10**10),
    (("config", "tokenizer", "image", "vocab"), 10**12),
    (("config", "tokenizer", "image", "channels"), 10**9),
    (("config", "tokenizer", "grid_patch"), 10**6),
    (("obs_spec", "modalities", 0, "shape"), [2**20, 2**20, 3]),
    (("obs_spec", "modalities", 0, "shape"), [32, 32, 10**10]), (("action_spec", "nvec"), [10**12]),
    (("action_spec", "nvec"), [3] * 10**5), (("action_spec", "shape"), [10**12])
]


@pytest.mark.parametrize("path, value", GIANTS, ids=lambda v: str(v)[-40:])
def test_giant_sizes_build_nothing(run, path, value):
    """Sizes are compared with the tensors that are there: in meta.json alone, and with config.json
    forged to fit."""
    for save in (run / "checkpoint").glob("save-*"):
        meta_of(save, *path, value=value)
    def loads():
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
        signal.alarm(30)
        return refused(Agent.load, run)
    text = forked(loads)
    assert isinstance(text, str) and text and "\n" not in text, text
    if path[0] == "config":
        config = json.loads((run / "config.json").read_text())
        at = config
        for key in path[1:-1]:
            at = at[key]
        at[path[-1]] = value
        (run / "config.json").write_text(json.dumps(config))
        # evaluate, or go on
        code, text = says([*COMMANDS[GIANTS.index((path, value)) % 2 * 3], str(run)])
        assert code == 2 and text.count("\n") == 1, text


def test_many_modalities_and_long_rows_build_nothing(run):
    meta = json.loads((max((run / "checkpoint").glob("save-*")) / "meta.json").read_text())
    one = meta["obs_spec"]["modalities"][0]
    for save in (run / "checkpoint").glob("save-*"):
        meta_of(
            save, "obs_spec", "modalities", value=[one | {"key": str(i)} for i in range(10_000)]
        )
    begin = time.perf_counter()
    assert (
        "larger agent than the one" in refused(Agent.load, run) and time.perf_counter() - begin < 5
    )


def test_readers_take_ordinary_files_only(tmp_path):
    (tmp_path / "a").write_text("x" * 11)
    assert read_bytes(tmp_path / "a", 11) == b"x" * 11
    for kind in ("pipe", "zeros", "folder", "hole", "gap"):
        instead(kind, tmp_path / "out" / "a")(tmp_path / kind)
        with pytest.raises(MissingError if kind == "gap" else DamagedError):
            read_bytes(tmp_path / kind)
    with pytest.raises(DamagedError, match="longer than 10 bytes"):
        read_bytes(tmp_path / "a", 10)
    (tmp_path / "plain").symlink_to(tmp_path / "a")
    assert read_bytes(tmp_path / "plain") == b"x" * 11          # to read through a link is harmless


# ---------------------------------------------------------------- a world that goes elsewhere

@pytest.mark.parametrize("call", ["__init__", "reset", "step", "render", "close"])
def test_a_world_that_changes_folders_does_not_take_the_run_along(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()

    def wander(self, *args, **kwargs):
        os.chdir(tmp_path / "elsewhere")
        return getattr(Catch, call)(self, *args, **kwargs)

    env = built(type("Wanders", (Catch,), {call: wander}), "Wanders", {})
    env.reset(seed=0)
    env.step(0)
    env.render()
    env.close()
    assert os.getcwd() == str(tmp_path)


def test_a_finished_run_of_other_settings_is_refused(run, capsys):
    settings = json.loads((run / "config.json").read_text()) | {"seed": 77}
    (run / "config.json").write_text(json.dumps(settings))
    assert main(["train", "--resume", "--out", str(run)]) == 2
    assert "no checkpoint of this run" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["evaluation.json", "manifest.json"])
@pytest.mark.parametrize("text", ['{"returns": "x"}', '{"epochs": NaN}', "[]", "1" * 5000, ""])
def test_an_odd_file_of_a_finished_run_means_not_finished(run, file, text):
    assert RunFolder(run).result(2)
    (run / file).write_text(text)
    assert RunFolder(run).result(2) is None


def test_numbers_that_are_not_finite_do_not_come_in(run):
    for number in ("NaN", "-Infinity", "1e999"):
        (run / "metrics.jsonl").write_text('{"loss": %s}\n' % number)
        with pytest.raises(UserError, match="is damaged"):
            RunFolder(run).history()


def test_pictures_half_drawn_by_the_dead_are_swept(run):
    (run / "media" / "best").mkdir(exist_ok=True)
    for place in (run / "media", run / "media" / "best"):
        half = Path(forked(lambda: str(own_name(place))))
        half.mkdir()
        (half / "dream.mp4").write_text("x")
    RunFolder(run).own().release()
    assert not list(run.rglob(".partial-*"))


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, OSError])
def test_a_callback_that_leaves_loses_nothing(tmp_path, monkeypatch, error):
    quick(monkeypatch)
    class Leaves(Callback):
        def on_epoch(self, trainer, record):
            if trainer.epoch == 1:
                raise error("enough")
    words = [*TOY, "--epochs", "2", "--save-every", "2", "--out", str(tmp_path / "run")]
    made = Trainer(parse(words).config, tmp_path / "run", progress=False, callbacks=[Leaves()])
    with pytest.raises(error):
        made.train()
    again = Trainer(None, tmp_path / "run", resume=True, progress=False)
    assert made.epoch == again.epoch == 1


@pytest.mark.parametrize("what", ["init", "log", "finish"])
@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_a_tracker_that_fails_is_one_notice(tmp_path, monkeypatch, what, error):
    quick(monkeypatch)
    def fails(*args, **kwargs):
        raise error("no network")
    fine = {name: lambda *args, **kwargs: None for name in ("init", "log", "finish")}
    monkeypatch.setitem(sys.modules, "trackio", types.SimpleNamespace(**fine | {what: fails}))
    words = [*TOY, "--epochs", "2", "--out", str(tmp_path / "run"), "--log", "trackio"]
    with pytest.warns(Notice, match=f"goes on without trackio, whose {what} failed") as told:
        trainer = Trainer(parse(words).config, tmp_path / "run", progress=False).train()
    assert trainer.result and len([w for w in told if "trackio" in str(w.message)]) == 1


def test_a_tracker_that_cannot_be_imported(tmp_path, monkeypatch):
    (tmp_path / "trackio.py").write_text("raise RuntimeError('too old')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trackio", raising=False)
    with pytest.raises(UserError, match="--log trackio: .* cannot be imported .*too old"):
        find_tracker("trackio")
