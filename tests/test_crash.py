"""A run that is killed, stopped or starved of disk space at any moment ends like one that never
was, and a damaged checkpoint is never used in silence."""
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file

from simulus_nb.agent import Agent
from simulus_nb.checkpoint import CheckpointWarning, load_checkpoint
from simulus_nb.cli import main
from simulus_nb.files import file_digest, manifest_digest
from simulus_nb.interrupt import Stopped
from simulus_nb.loop import STAGES
from simulus_nb.run_folder import RunFolder
from simulus_nb.spaces import UserError
from simulus_nb.trainer import Trainer

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs fork and signals")
TOY = shlex.split("""train --env simulus/Catch-v0 --epochs 5 --save-every 2 --seed 3
  --collect.steps 50 --collect.num-envs 2 --collect.capacity 160 --tokenizer.image.code-dim 8
  --tokenizer.image.vocab 16 --world-model.retnet.width 16 --world-model.retnet.heads 2
  --world-model.retnet.layers 1 --controller.width 16 --controller.channels 4 4
  --train-v.batch 4 --train-v.steps 3 --train-v.start 0 --train-m.batch 4 --train-m.steps 3
  --train-m.start 0 --train-c.batch 4 --train-c.steps 3 --train-c.start 1
  --evaluation.episodes 3 --evaluation.num-envs 2 --evaluation.every 2 --evaluation.interim 2
  --threads 1 --device cpu""")


@pytest.fixture(scope="module")
def fork():
    "A function that runs one task of `crashing.py`."
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("crashing.py")], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )

    def run(**task):
        print(json.dumps(task), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    yield run
    process.stdin.close()
    assert process.wait(60) == 0


@pytest.fixture(scope="module")
def whole(fork, tmp_path_factory):
    "The run that nobody interrupts: its folder, and what its process did."
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = fork(argv=[*TOY, "--out", str(folder)], log=str(folder.parent / "log"))
    assert done["status"] == 0, (folder.parent / "log").read_text()
    return folder, done


def everything(folder):
    """All that a run ends with, clocks left out: tensors and counters of its checkpoint, metrics,
    result."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load_checkpoint(folder / "checkpoint")
    tensors = {
        f"{group}/{name}": t
        for group, members in found.tensors.items()
        if group != "metrics"
        for name, t in members.items()
    }
    meta = {k: v for k, v in found.meta.items() if k != "seconds"}
    metrics = [
        {k: v for k, v in r.items() if not k.startswith("seconds")}
        for r in RunFolder(folder).history()
    ]
    return tensors, meta, metrics, json.loads((folder / "evaluation.json").read_text())


def assert_same(folder, truth):
    (a, *rest), (b, *expected) = everything(folder), everything(truth)
    assert rest == expected and a.keys() == b.keys()
    assert [k for k in a if not torch.equal(a[k], b[k])] == []
    assert {p.name for p in folder.iterdir() if "tfevents" not in p.name} == {
        p.name for p in truth.iterdir() if "tfevents" not in p.name
    }
    # killed while the last save tidied up: one more
    assert len(list((folder / "checkpoint").glob("save-*"))) in (2, 3)


def test_twenty_kills(fork, whole, tmp_path):
    """SIGKILL at twenty random moments, ten of them between two operations on files; after each the
    same command goes on."""
    truth, done = whole
    chance, kills, generation, log = random.Random(0), 0, 0, tmp_path / "log"
    while kills < 20:
        folder, status = tmp_path / f"run{generation}", -signal.SIGKILL
        while status == -signal.SIGKILL:
            moment = (
                {"at": chance.randrange(1, len(done["moments"]))}
                if kills % 2
                else {"delay": chance.uniform(0, done["seconds"]), "signal": signal.SIGKILL}
            )
            status = fork(
                argv=[*TOY, "--resume", "--out", str(folder)], log=str(log),
                **(moment if kills < 20 else {})
            )["status"]
            kills += status == -signal.SIGKILL
        assert status == 0, log.read_text()
        assert_same(folder, truth)
        generation += 1
    assert kills == 20


def test_kill_at_every_moment_of_a_save(fork, tmp_path):
    """However far a save got, the one before it or the new one is there, whole; and the next save
    goes through."""
    before, k, name, outcomes = tmp_path / "before", 0, "", set()
    for epoch in (1, 2):
        assert fork(save=[str(before), epoch])["status"] == 0
    while True:
        k += 1
        folder = tmp_path / str(k)
        shutil.copytree(before, folder)
        done = fork(save=[str(folder), 3], at=k)
        with warnings.catch_warnings():
            warnings.simplefilter("error")                      # nothing damaged is ever met
            found = load_checkpoint(folder)
        epoch, name = found.meta["epoch"], done["moments"][-1]
        assert (
            epoch in (2, 3)
            and (found.tensors["net"]["x"] == epoch).all()
            and torch.equal(found.tensors["replay"]["y"], torch.arange(200) + epoch)
        ), name
        outcomes.add(epoch)
        if done["status"] == 0:
            break
        assert done["status"] == -signal.SIGKILL
        assert (
            fork(save=[str(folder), 4])["status"] == 0
            and load_checkpoint(folder).meta["epoch"] == 4
        )
        assert sum(p.name.startswith("save-") for p in folder.iterdir()) == 2 and not list(
            folder.glob(".partial-*")
        )
        shutil.rmtree(folder)
    assert k > 40 and outcomes == {2, 3}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_at_random_moments(fork, whole, tmp_path, number):
    "Each one ends with exit code 0 and the command that goes on; in the end nobody can tell."
    truth, done = whole
    chance, folder, log = random.Random(int(number)), tmp_path / "a run", tmp_path / "log"
    for _ in range(6):
        assert (
            fork(
                argv=[*TOY, "--resume", "--out", str(folder)], log=str(log),
                delay=chance.uniform(0, done["seconds"] / 2), signal=number
            )["status"]
            == 0
        ), log.read_text()
        if "evaluation  " in log.read_text():
            break
        assert (
            f"simulus-nb train --resume --out '{folder}'" in log.read_text()
            and "Traceback" not in log.read_text()
        )
    assert fork(argv=[*TOY, "--resume", "--out", str(folder)], log=str(log))["status"] == 0, (
        log.read_text()
    )
    assert_same(folder, truth)


def test_resuming_a_finished_run_touches_nothing(fork, whole):
    folder, _ = whole
    contents = lambda: {
        p: (p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in folder.rglob("*")
    }
    before = contents()
    for _ in range(2):
        done = fork(argv=[*TOY, "--resume", "--out", str(folder)])
        assert done["status"] == 0 and done["moments"] == ["parse"] and contents() == before


# ---------------------------------------------------------------- stopping in the middle

MOMENTS = [
    (Trainer, "evaluate", 1), (Trainer, "collect", 1), (STAGES, "tokens", 1),
    ("learner", "v_step", 2), ("learner", "m_step", 1), ("learner", "c_step", 3),
    (Trainer, "evaluate", 1), (Trainer, "evaluate", 2)
]


def stop_in(monkeypatch, trainer, owner, name, call):
    "SIGTERM arrives at the `call`-th call of a method, or of a stage."
    owner, calls = trainer.learner if owner == "learner" else owner, [0]
    is_stage = isinstance(owner, dict)
    method = owner[name] if is_stage else getattr(owner, name)

    def interrupted(*args, **kwargs):
        calls[0] += 1
        if calls[0] == call:
            signal.raise_signal(signal.SIGTERM)
        return method(*args, **kwargs)

    (monkeypatch.setitem if is_stage else monkeypatch.setattr)(owner, name, interrupted)


def test_a_stop_in_every_stage(whole, tmp_path, monkeypatch):
    """One run is stopped within each of its stages, in the middle of episodes, and continued by a
    new object each time."""
    monkeypatch.setattr("simulus_nb.trainer.dream_media", lambda *args, **kwargs: {})
    monkeypatch.setattr("simulus_nb.trainer.plot_history", lambda history: Figure(figsize=(1, 1)))
    truth, folder, stages = whole[0], tmp_path / "run", []
    config = RunFolder(truth).read_config()
    for owner, name, call in MOMENTS:
        trainer = Trainer(config, folder, resume=True, progress=False)
        with monkeypatch.context() as patch:
            stop_in(patch, trainer, owner, name, call)
            with pytest.raises(Stopped):
                trainer.train()
        found = load_checkpoint(folder / "checkpoint", ("episodes",))
        stages.append((found.meta["epoch"], found.meta["cursor"]["stage"]))
        games = found.tensors["episodes"]["games"]
        open_steps = [found.tensors["episodes"][f"actions{i}"].shape[0] for i in range(2)]
        assert all(games > found.meta["epoch"]) and max(open_steps) < 20  # a game of Catch is short
    assert stages == [
        (1, "evaluation"), (2, "env"), (2, "tokens"), (3, "v"), (3, "m"), (3, "c"),
        (3, "evaluation"), (5, "")
    ]
    Trainer(None, folder, resume=True, progress=False).train()
    assert_same(folder, truth)


def test_a_world_that_does_not_repeat_itself_gets_new_episodes(whole, tmp_path, monkeypatch):
    config = RunFolder(whole[0]).read_config()
    trainer = Trainer(config, tmp_path / "run", progress=False)
    stop_in(monkeypatch, trainer, "learner", "m_step", 1)
    with pytest.raises(Stopped):
        trainer.train()
    monkeypatch.undo()
    monkeypatch.setattr("simulus_nb.resume.is_stored", lambda replay, env, rows: False)
    with pytest.warns(CheckpointWarning, match="does not repeat itself"):
        again = Trainer(None, tmp_path / "run", resume=True, progress=False)
    assert (
        again.state.worlds.played == [[], []]
        and again.replay.open_start == [None, None]
        and again.cursor.stage == "m"
    )
    again.run_epoch()


def test_signals_in_a_thread_change_nothing(whole, tmp_path):
    "Training in a thread installs no handlers (Python allows that in the main thread only)."
    config, before, failed = (
        RunFolder(whole[0]).read_config().change({"epochs": 1, "evaluation.episodes": 1}),
        signal.getsignal(signal.SIGTERM), []
    )
    def work():
        try:
            Trainer(config, tmp_path / "run", progress=False).train()
        except BaseException as e:
            failed.append(e)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert (
        not failed
        and signal.getsignal(signal.SIGTERM) is before
        and RunFolder(tmp_path / "run").result(1) is not None
    )


# ---------------------------------------------------------------- no room, no permission, nothing
# there

def test_the_disk_fills_up_at_any_moment(fork, whole, tmp_path):
    """One line, exit code 2, and when there is room again the run goes on as if nothing had
    happened."""
    truth, done = whole
    kinds = {}
    for k, name in enumerate(done["moments"], 0):               # the first is no operation
        kinds.setdefault(name, []).append(k)
    chance, folder, log = random.Random(2), tmp_path / "run", tmp_path / "log"
    for name in [
        n for n in kinds if n.startswith("before") and "unlink" not in n and "rmdir" not in n
    ]:
        if (
            fork(
                argv=[*TOY, "--resume", "--out", str(folder)], log=str(log), full=True,
                at=chance.choice(kinds[name][:60])
            )["status"]
            != 2
        ):
            continue                                        # fewer operations were left than that
        text = log.read_text()
        assert (
            "No space left on device" in text
            and "Traceback" not in text
            and text.splitlines()[-1].startswith("simulus-nb: cannot write")
        ), text
        said = [line for line in text.splitlines() if line.startswith("simulus-nb: ")]
        notices = ("simulus-nb: no curves", "simulus-nb: no dream")        # a run may lack pictures
        assert sum(not line.startswith(notices) for line in said) == 1
    assert fork(argv=[*TOY, "--resume", "--out", str(folder)], log=str(log))["status"] == 0, (
        log.read_text()
    )
    assert_same(folder, truth)


@pytest.mark.parametrize("limit", [1_000, 3_000, 20_000])
def test_files_that_may_not_grow(fork, tmp_path, limit):
    """A limit that the kernel enforces, inside the libraries that write tensors, events and
    pictures too."""
    log = tmp_path / "log"
    done = fork(argv=[*TOY, "--out", str(tmp_path / "run")], log=str(log), limit=limit)
    text = log.read_text()
    assert (
        done["status"] == 2
        and "File too large" in text
        and text.splitlines()[-1].startswith("simulus-nb: cannot write")
    ), text


def test_checkpoints_that_vanished(whole, tmp_path, capsys):
    shutil.copytree(whole[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    assert main([*TOY, "--resume", "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "checkpoints of" in error and "are gone" in error and error.count("\n") == 1


def test_edited_settings_are_noticed(whole, tmp_path, capsys):
    shutil.copytree(whole[0], tmp_path / "run")
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace('"gamma": 0.95', '"gamma": 0.5'))
    assert main(["train", "--resume", "--epochs", "6", "--out", str(tmp_path / "run")]) == 2
    assert "made with train_c.loss.gamma = 0.95" in capsys.readouterr().err


def test_a_damaged_newest_checkpoint_costs_one_line_and_some_epochs(fork, whole, tmp_path):
    "The run goes back to the one before, and still ends the same."
    folder, log = tmp_path / "run", tmp_path / "log"
    shutil.copytree(whole[0], folder)
    save = max((folder / "checkpoint").glob("save-*"))
    os.truncate(save / "agent.safetensors", 1000)
    assert fork(argv=[*TOY, "--resume", "--out", str(folder)], log=str(log))["status"] == 0
    lines = log.read_text().splitlines()
    assert (
        lines[0].startswith(
            f"simulus-nb: damaged checkpoint: {save}/agent.safetensors has 1000 bytes"
        )
        and "(4 epochs are done)" in lines[1]
    )
    assert_same(folder, whole[0])
    # the damaged third is not kept
    assert {p.name for p in (folder / "checkpoint").glob("save-*")} == {
        "save-00000002", "save-00000004"
    }


# ---------------------------------------------------------------- damage

PICKLE = b"cos\nsystem\n(S'touch executed'\ntR."        # what torch.load or pickle.load would run
WATCHED, AUDITED = (
    {"pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen"}, []
)
sys.addaudithook(lambda event, args: AUDITED.append(event) if event in WATCHED else None)


def reseal(save):
    "Make the manifest right again, as somebody would who wants to deceive."
    files = {
        p.name: {"size": p.stat().st_size, "sha256": file_digest(p)}
        for p in sorted(save.iterdir())
        if p.name != "manifest.json"
    }
    (save / "manifest.json").write_text(
        json.dumps({"format": 1, "files": files, "digest": manifest_digest(files)})
    )


def bytes_of(path, chance):
    "Accidents."
    content = bytearray(path.read_bytes())
    at, size = chance.randrange(max(len(content), 1)), len(content)
    kind = chance.choice(
        [
            "flip", "flip", "cut", "noise", "grow", "empty", "gone", "folder", "zeros", "pipe",
            "pickle"
        ]
    )
    path.unlink()
    if kind == "flip" and size:
        content[at] ^= 1 << chance.randrange(8)
    if kind == "cut":
        content = content[:at]
    if kind == "noise":
        content[at : at + 64] = chance.randbytes(64)
    if kind == "grow":
        content += chance.randbytes(9)
    if kind == "folder":
        path.mkdir()
    elif kind == "zeros":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "gone":
        path.write_bytes(b"" if kind == "empty" else PICKLE if kind == "pickle" else content)


def header_of(path, chance):
    "A table of tensors that lies."
    content = path.read_bytes()
    n = int.from_bytes(content[:8], "little")
    header, rest = json.loads(content[8:8 + n]), content[8 + n:]
    name = chance.choice(sorted(header))
    entry = header[name]
    kind = chance.choice(
        [
            "huge", "shape", "offsets", "dtype", "rename", "drop", "length", "nest", "negative",
            "pickle", "kind"
        ]
    )
    if kind == "huge":
        entry["shape"] = [2**40, 2**20]
    if kind == "shape":
        entry["shape"] = [1, *entry["shape"]]
    if kind == "offsets":
        entry["data_offsets"] = [0, 2**50]
    if kind == "dtype":
        entry["dtype"] = {"F32": "I32", "U8": "I8", "I64": "F64", "I16": "F16"}.get(
            entry["dtype"], "F8_E4M3"
        )
    if kind == "rename":
        header["__class__"] = header.pop(name)
    if kind == "drop":
        del header[name]
    if kind == "negative":
        entry["shape"] = [-1]
    if kind == "kind":
        header[name] = [1, 2]
    text = json.dumps(header).encode() if kind != "nest" else b"[" * 100_000
    text += b" " * (-len(text) % 8)
    length = 2**62 if kind == "length" else len(text)
    path.write_bytes(PICKLE if kind == "pickle" else length.to_bytes(8, "little") + text + rest)
    reseal(path.parent)


def tensor_of(save, group, name, change):
    "One tensor replaced, everything else right."
    tensors = load_file(save / f"{group}.safetensors")
    tensors[name] = change(tensors[name].clone()).contiguous()
    save_file(tensors, save / f"{group}.safetensors")
    reseal(save)


def meta_of(save, *path, value):
    "One value of meta.json replaced."
    meta = json.loads((save / "meta.json").read_text())
    at = meta
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    (save / "meta.json").write_text(json.dumps(meta))
    reseal(save)


def manifest_of(save, change, seal=True):
    "The manifest itself changed."
    manifest = json.loads((save / "manifest.json").read_text())
    change(manifest)
    if seal:
        manifest["digest"] = manifest_digest(manifest.get("files"))
    (save / "manifest.json").write_text(json.dumps(manifest))


def forged():
    "Changes with all checksums right, none of which any run could have written."
    full = lambda value: lambda t: torch.full_like(t, value)
    wide, longer, cast = (
        lambda t: t[None], lambda t: torch.cat([t, t]), lambda kind: lambda t: t.to(kind)
    )
    bomb = torch.frombuffer(bytearray(zlib.compress(bytes(10**8))), dtype=torch.uint8)
    tensors = [
        ("replay", "tokens", full(-1)), ("replay", "tokens", full(16)),
        ("replay", "action", full(3)), ("replay", "action", full(-2)),
        ("replay", "reward", full(float("nan"))), ("replay", "position", lambda t: t.flip(0)),
        ("replay", "position", full(2**62)), ("replay", "start", full(-5)),
        ("replay", "end", full(10**9)), ("replay", "end", full(0)),
        ("replay", "written", full(2**62)), ("replay", "written", full(-1)),
        ("replay", "written", wide), ("replay", "open_start", full(10**6)),
        ("replay", "open_start", longer), ("replay", "obs.obs.bytes", lambda t: bomb),
        ("replay", "obs.obs.bytes", lambda t: t[:-3]), ("replay", "obs.obs.bytes", full(0)),
        ("replay", "obs.obs.bytes", cast(torch.float32)), ("replay", "obs.obs.ends", full(2**60)),
        ("replay", "obs.obs.ends", full(-1)), ("replay", "obs.obs.ends", lambda t: t[:0]),
        ("replay", "reward", cast(torch.float64)), ("replay", "last", longer),
        ("random", "torch", lambda t: t[:100]), ("random", "torch", cast(torch.float32)),
        ("random", "python", lambda t: t[:-1]), ("random", "python", full(-1)),
        ("random", "numpy", lambda t: t[:5]), ("random", "generator", lambda t: t[:9]),
        ("random", "numpy_rest", lambda t: t[:1]), ("random", "python_gauss", wide),
        ("scale", "memory", wide), ("scale", "updates", cast(torch.float32)),
        ("episodes", "actions0", lambda t: torch.full((3, *t.shape[1:]), 7)),
        ("episodes", "actions1", lambda t: torch.full((3, *t.shape[1:]), -1)),
        ("episodes", "actions0", cast(torch.int32)), ("episodes", "actions0", lambda t: t[..., 0]),
        ("episodes", "games", full(-1)), ("episodes", "games", longer),
        ("episodes", "games", cast(torch.float32)), ("episodes", "policy0", wide),
        ("episodes", "policy1", cast(torch.float64)), ("best", "controller.actor.bias", wide),
        ("best", "controller.actor.bias", cast(torch.float64)), ("metrics", "jsonl", full(200)),
        ("metrics", "jsonl", lambda t: t[:-20]), ("metrics", "jsonl", lambda t: torch.zeros(3)),
        ("optimizer_m", "0.exp_avg", wide), ("optimizer_m", "0.exp_avg", lambda t: t.flatten()[:1]),
        ("optimizer_c", "0.exp_avg_sq", lambda t: t.sum())
    ]
    for group, name, change in tensors:
        yield lambda save, g=group, n=name, c=change: tensor_of(save, g, n, c)
    junk = [None, -1, "7", 1.5, [], {}, True, 10**30]
    for key in ("epoch", "env_steps", "begun"):
        for value in junk:
            yield lambda save, k=key, v=value: meta_of(save, k, value=v)
    for key in ("seconds", "config", "optimizers", "cursor"):
        for value in (None, "7", [], {"x": 1}):
            yield lambda save, k=key, v=value: meta_of(save, k, value=v)
    group = ("optimizers", "m", "param_groups")
    for path, value in [
        (("cursor", "stage"), "../env"), (("cursor", "stage"), 3),
        (("cursor", "values"), [{"loss": "x"}]), (("cursor", "values"), [1]),
        (("cursor", "values"), {"a": 1}), (("cursor", "values"), [{"a": 1.0}, {"b": 1.0}]),
        (("cursor", "record"), {"a": []}), (("best",), 3), (("best",), {"epoch": 0}),
        (("best", "epoch"), 10**6), (("best", "epoch"), "1"), (("best", "return"), "much"),
        (("device",), "toaster"), (("cursor", "clock"), None), (("config", "seed"), 4),
        (("config", "epochs"), "many"), (("config", "unknown"), 1),
        (("config", "train_m"), {"lr": 5.0}), (group, []), (group, "x"),
        ((*group, 0, "lr"), "fast"), ((*group, 0, "betas"), 0.9), ((*group, 0, "params"), [0]),
        ((*group, 0, "strange"), 1), (("optimizers", "m", "values"), {"0.step": "x"}),
        (("optimizers", "m", "values"), {"zero": 1}),
        (("optimizers", "m", "values"), {"10000.step": 1.0}), (("optimizers", "c"), None)
    ]:
        yield lambda save, p=path, v=value: meta_of(save, *p, value=v)
    entry = "agent.safetensors"
    for change in (
        lambda m: m["files"].update({"../../evil.safetensors": m["files"][entry]}),
        lambda m: m["files"].update({"/etc/passwd": m["files"][entry]}),
        lambda m: m["files"].pop(entry), lambda m: m["files"][entry].update(size=10**18),
        lambda m: m["files"][entry].update(size="big"),
        lambda m: m["files"][entry].update(sha256=None), lambda m: m["files"].update({entry: 5}),
        lambda m: m.update(files=[]), lambda m: m.update(files=None), lambda m: m.update(format=0),
        lambda m: m.update(format="1"), lambda m: m.update(format=99), lambda m: m.pop("format")
    ):
        yield lambda save, c=change: manifest_of(save, c)
    for name in ("meta.json", "manifest.json"):
        for text in (
            "[" * 10**5, "1" * 10**5, '{"a": NaN}', "null",
            "\ud800".encode("utf8", "surrogatepass"), PICKLE
        ):
            yield lambda save, n=name, t=text: (
                (save / n).write_bytes(t if isinstance(t, bytes) else t.encode()),
                n == "meta.json" and reseal(save)
            )


@pytest.fixture(scope="module")
def stopped(whole, tmp_path_factory):
    """A run with two checkpoints, the newer one made in the middle of an epoch; and what each of
    them holds."""
    config, folder = RunFolder(whole[0]).read_config(), tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        trainer = Trainer(config, folder, progress=False)
        stop_in(patch, trainer, "learner", "m_step", 3 * 3 + 2)
        with pytest.raises(Stopped):
            trainer.train()
    newer = trainer.state.saved
    older = next(p for p in (folder / "checkpoint").glob("save-*") if p != newer)
    loader = Trainer(None, folder, resume=True, progress=False)
    assert loader.state.saved == newer and (
        loader.epoch, loader.cursor.stage, len(loader.cursor.values)
    ) == (3, "m", 2)
    states = {newer.name: contents(loader)}
    (folder / "checkpoint" / "LATEST").write_text(older.name)
    loader.load(folder / "checkpoint")
    states[older.name] = contents(loader)
    (folder / "checkpoint" / "LATEST").write_text(newer.name + "\n")
    return loader, folder / "checkpoint", newer.name, older.name, states


def contents(trainer):
    "Everything in a run, as bytes."
    tensors, meta = trainer.snapshot()
    return {
        f"{g}/{k}": (
            str(t.dtype), tuple(t.shape),
            t.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
        for g, members in tensors.items()
        for k, t in members.items()
        if t.numel()
    }, json.dumps(meta)


def outcome(loader, folder, newer, states):
    "Load a damaged folder: how it went, or an AssertionError."
    AUDITED.clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            loader.load(folder)
        except UserError as e:
            assert "\n" not in str(e) and len(str(e)) < 2000
            return "refused"
    (a, meta), (b, expected) = contents(loader), states[loader.state.saved.name]
    assert meta == expected and [k for k in a | b if a.get(k) != b.get(k)] == [], (
        "loaded something else"
    )
    told = [str(w.message) for w in caught if w.category is CheckpointWarning]
    assert not AUDITED and all("\n" not in text for text in told)
    if loader.state.saved.name == newer:
        assert not told
        return "as it was"
    assert (
        len(told) == 1
        or not (folder / "LATEST").is_file()
        or (folder / "LATEST").read_text().strip() != newer
    )
    return "the one before"


def trial(stopped, tmp_path, damage):
    "Damage a copy, load it, also as an agent alone."
    loader, original, newer, older, states = stopped
    folder = tmp_path / "checkpoint"
    shutil.copytree(original, folder)
    try:
        damage(folder / newer)
        result = outcome(loader, folder, newer, states)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                weights = Agent.load(folder).state_dict()
            except UserError as e:
                assert "\n" not in str(e)
            else:
                saved = [
                    {k[6:]: v[2] for k, v in state[0].items() if k.startswith("agent/")}
                    for state in states.values()
                ]
                assert {
                    k: x.contiguous().flatten().view(torch.uint8).numpy().tobytes()
                    for k, x in weights.items()
                    if x.numel()
                } in saved
    finally:
        shutil.rmtree(folder)
    assert not list(Path().glob("executed")) and not AUDITED
    return result


def test_damaged_files(stopped, tmp_path, monkeypatch):
    """Two hundred accidents and lies: one clear line, or the checkpoint before with one, or no harm
    done; never code, never other numbers."""
    monkeypatch.chdir(tmp_path)
    chance, results = random.Random(4), []
    names = sorted(p.name for p in (stopped[1] / stopped[2]).iterdir())
    tables = [n for n in names if n.endswith(".safetensors")]
    for _ in range(80):
        name = chance.choice([*names, "LATEST"])
        results.append(
            trial(
                stopped,
                tmp_path,
                lambda save: bytes_of(
                    save.parent / name if name == "LATEST" else save / name, chance
                ),
            )
        )
    for _ in range(25):         # two files change places, within a checkpoint or between the two
        a, b = chance.sample(names, 2)
        def swap(save):
            left, right = save / a, save.parent / chance.choice([stopped[2], stopped[3]]) / b
            content = left.read_bytes(), right.read_bytes()
            left.write_bytes(content[1]), right.write_bytes(content[0])
        results.append(trial(stopped, tmp_path, swap))
    for _ in range(60):
        results.append(
            trial(stopped, tmp_path, lambda save: header_of(save / chance.choice(tables), chance))
        )
    assert results.count("the one before") > 100 and len(results) == 165


def test_forged_files(stopped, tmp_path, monkeypatch):
    """Checksums prove nothing against a person.

    What no run could have written is noticed all the same."""
    monkeypatch.chdir(tmp_path)
    results = [trial(stopped, tmp_path, change) for change in forged()]
    assert len(results) > 120 and results.count("refused") == 1         # the format from the future
    assert [i for i, result in enumerate(results) if result == "as it was"] == []
