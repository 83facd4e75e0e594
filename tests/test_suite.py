"""Many runs: order and bounds, locks, retries, the table; and on a local Ray a suite that is killed
and goes on, with a run that fails among others that do not."""
import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulus_nb import suite
from simulus_nb.cli import main, parse
from simulus_nb.config import preset
from simulus_nb.evaluate import ATARI_SCORES
from simulus_nb.lock import take
from simulus_nb.run_folder import RunFolder
from simulus_nb.spaces import UserError
from simulus_nb.suite import (
    attempt, claim, env_id, last_line, make_jobs, makespan_bounds, markdown, run_jobs, schedule,
    slots
)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs file locks and signals")
TOY = shlex.split("""--epochs 3 --save-every 1 --collect.steps 40 --collect.num-envs 2
  --collect.capacity 160 --tokenizer.image.code-dim 8 --tokenizer.image.vocab 16
  --world-model.retnet.width 16 --world-model.retnet.heads 2 --world-model.retnet.layers 1
  --controller.width 16 --controller.channels 4 4 --train-v.batch 4 --train-v.steps 3
  --train-v.start 0 --train-m.batch 4 --train-m.steps 3 --train-m.start 0 --train-c.batch 4
  --train-c.steps 3 --train-c.start 1 --evaluation.episodes 3 --evaluation.num-envs 2
  --evaluation.every 0 --threads 1 --device cpu""")
read = lambda argv: parse(argv).config


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=30), st.integers(1, 7))
def test_list_scheduling_keeps_its_promise(seconds, m):
    for order, longest_first in ((seconds, False), (sorted(seconds, reverse=True), True)):
        plan = schedule(order, m)
        end, (low, high) = max(e for _, _, e in plan), makespan_bounds(order, m)
        assert low - 1e-9 <= end <= high + 1e-9 and all(
            abs(e - b - p) < 1e-9 for (_, b, e), p in zip(plan, order)
        )
        if longest_first:
            assert end <= (4 / 3 - 1 / (3 * m)) * high
        for slot in range(m):
            mine = sorted((b, e) for s, b, e in plan if s == slot)
            assert all(e <= b + 1e-9 for (_, e), (b, _) in zip(mine, mine[1:]))


def test_slots():
    assert (
        slots([{"CPU": 16, "GPU": 1}], 1, 0.25) == 4 and slots([{"CPU": 3, "GPU": 1}], 1, 0.25) == 3
    )
    assert (
        slots([{"CPU": 16, "GPU": 2}], 2, 0.3) == 6
        and slots([{"CPU": 16, "GPU": 5}] * 2, 1, 2) == 4
    )
    assert slots([{"CPU": 2}], 1, 0) == 2 and slots([{"CPU": 2}], 1, 1) == 0 == slots([], 1, 1)


def test_jobs(tmp_path):
    assert env_id("Pong") == "ALE/Pong-v5" and env_id("CartPole-v1") == "CartPole-v1"
    jobs = make_jobs(
        ["Pong", "simulus/Catch-v0", "ALE/Pong-v5"], (0, 2, 2), tmp_path,
        ["--learn-on", "0", "--epochs", "60"], read
    )
    assert [j.name for j in jobs] == [
        "ALE/Pong-v5 seed 0", "ALE/Pong-v5 seed 2", "simulus/Catch-v0 seed 0",
        "simulus/Catch-v0 seed 2"
    ]
    assert [j.folder.name for j in jobs[1:3]] == [
        "ALE-Pong-v5-seed2", "simulus-Catch-v0-seed0"
    ] and all(j.config.epochs == 60 for j in jobs)
    for job in jobs:                                            # what the table says is what is run
        command = parse(job.words)
        assert command.config == job.config and command.out == job.folder and command.resume
    assert jobs[0].config == preset("atari100k").change(
        {"env": "ALE/Pong-v5", "epochs": 60, "learn_on": 0}
    )
    assert [j.words[-2:] for j in jobs] == [("--epochs", "60")] * 4 and jobs[0].work() > jobs[
        2
    ].work() > 0 == jobs[0].done()
    with pytest.raises(UserError, match="leave out --seed"):
        make_jobs(["Pong"], (0,), tmp_path, ["--seed=3"], read)
    with pytest.raises(UserError, match="--no-such"):
        make_jobs(["Pong"], (0,), tmp_path, ["--no-such", "3"], read)
    RunFolder(jobs[2].folder).create(jobs[2].config)
    with pytest.raises(
        UserError, match="holds a run with collect.steps = 120, not 50: choose another folder"
    ):
        make_jobs(["simulus/Catch-v0"], (0,), tmp_path, ["--collect.steps", "50"], read)


def test_defaults():
    command = parse(["suite"])
    assert (
        command.games == tuple(ATARI_SCORES)
        and command.seeds == (0, 1, 2, 3, 4)
        and len(command.games) == 26
    )
    assert parse(["suite", "--gpus", "0.5", "--", "--train-m.lr", "1"]).options == (
        "--train-m.lr", "1"
    )


def test_locks(tmp_path):
    path = tmp_path / "a" / "suite.lock"
    with claim(path) as lock:
        with pytest.raises(UserError, match="another suite is at work in"), claim(path):
            pass
        assert take(path, shared=True) is None
        lock.close()
        with take(path, shared=True), take(path, shared=True):
            assert take(path) is None
    with claim(path):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"), claim(tmp_path / "file" / "suite.lock"):
        pass


def test_attempt(tmp_path):
    log, lock, here = str(tmp_path / "log"), str(tmp_path / "lock"), str(tmp_path)
    program = (
        "import os, signal, sys, time; signal.signal(signal.SIGTERM, lambda *a: (print('saved'), "
        "sys.exit(0))); print(os.getcwd(), flush=True); time.sleep({})"
    )
    with claim(Path(lock)):
        assert (
            attempt([sys.executable, "-c", program.format(0)], log, lock, here) == 0
            and Path(log).read_text().strip() == here
        )
        assert (
            attempt(
                [sys.executable, "-c", "import sys; sys.exit('simulus-nb: no')"], log, lock, here
            )
            == 1
            and last_line(Path(log)) == "no"
        )
        assert (
            attempt([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], log, lock, here)
            == -9
        )
        # of a suite that was killed
        orphan = subprocess.Popen(
            [sys.executable, "-c", "import time; print(1); time.sleep(1)"], stdout=take(log)
        )
        assert (
            attempt([sys.executable, "-c", "print(2)"], log, lock, here) == 0 and orphan.poll() == 0
        )
        assert last_line(Path(log)) == "2" and last_line(tmp_path / "none") == ""
    assert (
        attempt([sys.executable, "-c", "print(3)"], log, lock, here) is None
        and last_line(Path(log)) == "2"
    )
    script = (
        "import sys, threading\nfrom simulus_nb.suite import attempt, claim, "
        f"Path\nwith claim(Path({lock!r})) as f:\n    threading.Timer(2, f.close).start()\n"
        f"    print(attempt([sys.executable, '-c', {program.format(60)!r}], {log!r}, {lock!r}, "
        f"{here!r}))"
    )
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout
        == "0\n"
        and last_line(Path(log)) == "saved"
    )


def test_retries(tmp_path):
    "What fails is tried again after the others, so often and no more."
    jobs = make_jobs(["simulus/Catch-v0"], range(4), tmp_path, (), read)
    order, codes = [], {0: [0], 1: [2, 2, 2], 2: [-9, 0], 3: [None, 0]}
    jobs[3].finished = lambda: order.count(3) == 2
    for i, job in enumerate(jobs[:3]):
        job.finished = lambda i=i: order.count(i) == len(codes[i]) and codes[i][-1] == 0
    jobs[1].log.write_text("simulus-nb: no such world\n")
    start = lambda job: (
        order.append(job.config.seed) or (job.config.seed, order.count(job.config.seed))
    )
    seen = []
    run_jobs(
        jobs, 2, start, lambda handles: (handles[0], codes[handles[0][0]][handles[0][1] - 1]), 2,
        lambda job: seen.append((job.config.seed, job.status, job.error))
    )
    assert [j.status for j in jobs] == ["finished", "failed", "finished", "finished"] and [
        j.attempts for j in jobs
    ] == [1, 3, 2, 2]
    assert (
        order[:4] == [0, 1, 2, 3]
        and jobs[1].error == "no such world"
        and jobs[0].error == jobs[2].error == ""
    )
    assert (2, "waiting", "killed by signal 9") in seen and (
        3, "waiting", "its worker was lost"
    ) in seen
    assert (
        suite.describe(jobs[1]).startswith(
            "simulus/Catch-v0 seed 1: attempt 3 failed (no such world); see "
        )
        and suite.describe(jobs[0]) == "simulus/Catch-v0 seed 0: finished"
    )


def test_without_ray(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["suite", "--games", "simulus/Catch-v0", "--out", str(tmp_path / "s")]) == 2
    assert (
        capsys.readouterr().err
        == 'simulus-nb: a suite runs on Ray, which is not installed: '
           'pip install "simulus-nb[sweep]"\n'
    )
    assert main(["suite", "--gpus", "1.5"]) == 2 and "whole number" in capsys.readouterr().err
    assert (
        main(
            [
                "suite", "--games", "simulus/Catch-v0", "--out", str(tmp_path / "s"), "--",
                "--epoch", "3"
            ]
        )
        == 2
        and capsys.readouterr().err.count("\n") == 1
    )


FRAMES = (
    'Traceback (most recent call last):\n  File "a.py", line 3, '
    'in f\n    g()\n    ~^^\n  File "b.py", line 1, in g\n    raise E(x)\n'
)


@pytest.mark.parametrize(
    "log,error",
    [
        ("", ""),
        ("one\n\n", "one"),
        ("x\nsimulus-nb: no such world\n", "no such world"),
        (FRAMES + "E: one\n", "E: one"),
        (FRAMES + "E: one\ntwo\n  three\n", "E: one two three"),
        (
            FRAMES
            + "E: one\n\nDuring handling of the above exception, another exception occurred:\n\n"
            + FRAMES
            + "F: two\nlines\n",
            "F: two lines",
        ),
        (
            FRAMES + "E: one\ntwo\nsimulus-nb: the world W-v0 failed in step(): E: one two\n",
            "the world W-v0 failed in step(): E: one two"
        ),
    ],
)
def test_last_line_is_the_whole_error(log, error, tmp_path):
    (tmp_path / "log").write_text(log)
    assert last_line(tmp_path / "log") == error
    assert last_line(tmp_path) == last_line(tmp_path / "none") == ""        # a folder in its place


@pytest.mark.parametrize(
    "name", ["config.json", "metrics.jsonl", "manifest.json", "evaluation.json"]
)
@pytest.mark.parametrize(
    "content", [b"{broken\n", b"[]\n", b"3\n", b"\xff\xfe\x00", b"{}\n", None], ids=str
)
def test_a_damaged_folder_stops_nobody(name, content, tmp_path):
    """It is one run's affair: the suite begins, counts and writes its tables, and that run says
    what is wrong."""
    # settings, and other ones: refused at once
    if (name, content) == ("config.json", b"{}\n"):
        return
    good, bad = make_jobs(["simulus/Catch-v0"], (0, 1), tmp_path, (), read)
    for job in (good, bad):
        RunFolder(job.folder).create(job.config)
    finish = {
        "evaluation.json": {"returns": [1.0], "lengths": [9]},
        "manifest.json": {"epochs": good.config.epochs, "env_steps": 5, "wall_seconds": 1.0}
    }
    for file, value in finish.items():
        (
            (good.folder / file).write_text(json.dumps(value)),
            (bad.folder / file).write_text(json.dumps(value))
        )
    path = bad.folder / name
    path.unlink(missing_ok=True)
    path.mkdir() if content is None else path.write_bytes(content)
    jobs = make_jobs(["simulus/Catch-v0"], (0, 1), tmp_path, (), read)
    assert jobs[0].finished() and all(0 <= job.done() <= 1 and job.work() >= 0 for job in jobs)
    jobs[1].status, jobs[1].error = "failed", "a | b\nc"
    rows = suite.write_tables(jobs, tmp_path, "simulus-nb suite")
    assert rows[0]["score"] == 1.0 and rows[0]["env_steps"] == 5 and rows[1]["status"] == "failed"
    assert markdown(rows).count("\n") == 4 and "a \\| b c" in markdown(rows)


def test_a_damaged_folder_in_a_suite(tmp_path):
    "Its run says the reason, which comes into the table; the other one is found finished."
    jobs = make_jobs(["simulus/Catch-v0"], (0, 1), tmp_path, (), read)
    RunFolder(jobs[0].folder).create(jobs[0].config)
    jobs[0].folder.joinpath("config.json").write_text("{broken")
    jobs[1].finished = lambda: True
    class Pool:
        slots = 1
        def __init__(self, lock):
            self.lock = lock
        def start(self, job):
            return attempt(
                [sys.executable, "-c", suite.ENTRY, *job.words], str(job.log), str(self.lock),
                str(tmp_path)
            )
        def wait(self, handles):
            return handles[0], handles[0]
    with pytest.MonkeyPatch.context() as m:
        m.setattr(
            suite,
            "row",
            lambda job: (
                dict(status=job.status, error=job.error, attempts=job.attempts)
                | dict.fromkeys(
                    (
                        "env", "seed", "score", "human_normalised", "env_steps", "wall_seconds",
                        "command"
                    ),
                    None,
                )
            ),
        )
        rows = suite.run_suite(jobs, tmp_path, Pool, 0, "simulus-nb suite")
    assert (
        [r["status"] for r in rows] == ["failed", "finished"]
        and "config.json" in rows[0]["error"]
        and "damaged" in rows[0]["error"]
    )


class Ray:
    "Stands for Ray."
    cloudpickle = type(
        "cloudpickle", (), {"register_pickle_by_value": staticmethod(lambda module: None)}
    )

    def __init__(self, error=None):
        self.error, self.where = error, None

    def init(self, **options):
        self.where = os.getcwd()
        if self.error:
            raise self.error

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 2}}]

    def remote(self, **options):
        return lambda work: type("Remote", (), {"remote": staticmethod(lambda *words: words)})


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("no cluster\nat 10.0.0.1"), RuntimeError("x" * 999),
        OSError(28, "No space left on device"), ValueError("bad")
    ],
)
@pytest.mark.parametrize("address", [None, "10.0.0.1:6379"])
def test_ray_that_does_not_start(error, address, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path), monkeypatch.setitem(sys.modules, "ray", Ray(error))
    monkeypatch.setenv("RAY_ADDRESS", address) if address else monkeypatch.delenv(
        "RAY_ADDRESS", raising=False
    )
    assert main(["suite", "--games", "simulus/Catch-v0", "--seeds", "0", "--out", "s"]) == 2
    said = capsys.readouterr().err
    assert (
        f"Ray does not start ({type(error).__name__}" in said
        and said.count("\n") == 1
        and len(said) < 500
        and (address or "ray stop") in said
    )
    assert os.getcwd() == str(tmp_path)


def test_nobody_looks_for_modules_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path), monkeypatch.setitem(sys.modules, "ray", ray := Ray())
    pool = suite.RayPool(1, 0, tmp_path / "suite.lock")
    assert ray.where != str(tmp_path) == os.getcwd()
    program, log, _, cwd = pool.start(
        make_jobs(["my_worlds:Mine-v0"], (0,), Path("s"), (), read)[0]
    )
    assert "-m" not in program and os.path.isabs(log) and cwd == str(tmp_path)
    # typed, and so searched there
    assert program[-len(["--env", "my_worlds:Mine-v0", "--seed", "0"]) :] == [
        "--env", "my_worlds:Mine-v0", "--seed", "0"
    ]


# on Ray

def finished(out):
    "Folders with a manifest, and when it was written."
    return {p.parent.name: p.stat().st_mtime_ns for p in out.glob("*/manifest.json")}


def test_killed_suite_goes_on_and_failures_harm_nobody(tmp_path):
    "Two games, two seeds, killed in the middle; then with a third game that does not exist."
    pytest.importorskip("ray")
    out, env = tmp_path / "a suite", os.environ | {"OMP_NUM_THREADS": "1"}
    command = lambda *games: [
        sys.executable, "-m", "simulus_nb.cli", "suite", "--out", str(out), "--retries", "1",
        "--seeds", "0", "1", "--games", *games, "--", *TOY
    ]
    both = ("CartPole-v1", "FrozenLake-v1")
    with open(tmp_path / "said", "w") as said:
        process = subprocess.Popen(command(*both), env=env, stdout=said, stderr=said)
        while not finished(out) and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / "said").read_text()
    early = finished(out)
    assert 1 <= len(early) < 4
    done = subprocess.run(command(*both, "NoSuchWorld-v0"), env=env, capture_output=True, text=True)
    assert (
        done.returncode == 2
        and "2 of 6 runs failed" in done.stderr
        and done.stderr.count("\n") == 1
    ), done.stderr
    assert {k: v for k, v in finished(out).items() if k in early} == early and len(
        finished(out)
    ) == 4
    rows = json.loads((out / "results.json").read_text())["runs"]
    assert [(r["env"], r["seed"]) for r in rows] == [
        (g, k) for g in (*both, "NoSuchWorld-v0") for k in (0, 1)
    ]
    for r in rows[:4]:
        assert (
            r["status"] == "finished"
            and r["env_steps"] == 120
            and r["wall_seconds"] > 0
            and r["error"] == ""
        )
        # a run that outlived its suite was waited for
        assert r["attempts"] == 0 if Path(r["folder"]).name in early else r["attempts"] <= 1
        assert r["score"] == json.loads((Path(r["folder"]) / "evaluation.json").read_text())["mean"]
        assert shlex.split(r["command"]) == [
            "simulus-nb", "train", "--resume", "--out", r["folder"], "--env", r["env"], "--seed",
            str(r["seed"]), *TOY
        ]
    for r in rows[4:]:
        assert (r["status"], r["attempts"], r["score"]) == (
            "failed", 2, None
        ) and "NoSuchWorld" in r["error"]
        assert Path(r["folder"] + ".log").read_text().count("simulus-nb: ") == 2
    with open(out / "results.csv", newline="") as f:
        assert [(r["env"], r["status"]) for r in csv.DictReader(f)] == [
            (r["env"], r["status"]) for r in rows
        ]
    assert (out / "results.md").read_text() == markdown(rows) in done.stdout
    assert "attempt 1 failed" in done.stdout and "will be tried again" in done.stdout


def test_ctrl_c_saves_every_run(tmp_path):
    pytest.importorskip("ray")
    out = tmp_path / "suite"
    command = [
        sys.executable, "-m", "simulus_nb.cli", "suite", "--out", str(out), "--seeds", "0",
        "--games", "simulus/Catch-v0", "--", *TOY, "--epochs", "2000"
    ]
    process = subprocess.Popen(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True
    )
    folder = RunFolder(out / "simulus-Catch-v0-seed0")
    while not folder.history() and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said, error = process.communicate()
    assert (
        process.returncode == 130
        and error
        == "simulus-nb: interrupted; all runs are saved; go on with the same command: "
           f"simulus-nb {shlex.join(command[3:])}\n"
    )
    assert "stopped; continue from the last checkpoint" in last_line(Path(f"{folder.path}.log"))
    assert (
        take(f"{folder.path}.log")
        and json.loads((out / "results.json").read_text())["runs"][0]["status"] == "waiting"
    )


@pytest.mark.parametrize("kind", ["folder", "link", "loop"])
def test_a_lock_or_a_log_that_is_none(tmp_path, kind):
    """Of the suite: one line. Of a run: that run cannot begin, and says why."""
    for name in ("suite.lock", "run.log"):
        if kind == "folder":
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).symlink_to(tmp_path / (name if kind == "loop" else "outside"))
    with pytest.raises(UserError, match="cannot write to .*suite.lock: .*--out"):
        with claim(tmp_path / "suite.lock"):
            pass
    (own := tmp_path / "own.lock").touch()
    with claim(own):
        said = attempt(["true"], str(tmp_path / "run.log"), str(own), str(tmp_path))
    assert said.startswith("it cannot begin: ") and "run.log" in said
    assert not (tmp_path / "outside").exists()


def test_a_run_that_cannot_begin_fails_alone(tmp_path):
    jobs = make_jobs(["simulus/Catch-v0", "CartPole-v1"], (0,), tmp_path, [], read)
    said = lambda handles: (handles[0], "it cannot begin: x" if handles[0] == jobs[0].name else 3)
    run_jobs(jobs, 1, lambda job: job.name, said, 0, lambda job: None)
    assert [j.status for j in jobs] == ["failed"] * 2 and jobs[0].error == "it cannot begin: x"


def test_settings_with_a_number_of_400_digits_stop_no_suite(tmp_path):
    job, = make_jobs(["simulus/Catch-v0"], (0,), tmp_path, [], read)
    RunFolder(job.folder).create(job.config)
    path = RunFolder(job.folder).config
    values = json.loads(path.read_text())
    values["train_m"]["lr"] = 10**400
    path.write_text(json.dumps(values))
    again, = make_jobs(["simulus/Catch-v0"], (0,), tmp_path, [], read)
    assert again.config == job.config and suite.row(again)["score"] is None
