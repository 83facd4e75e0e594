"The first minutes on a GPU, rehearsed without one: budgets, files, every part in toy sizes."

import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / "tools" / "gpu_tables.py"

spec = importlib.util.spec_from_file_location("gpu_tables", TOOL)
tables = importlib.util.module_from_spec(spec)
sys.modules["gpu_tables"] = tables  # its data classes look themselves up
spec.loader.exec_module(tables)

posix = pytest.mark.skipif(os.name != "posix", reason="groups of processes are those of POSIX")
shares = st.lists(st.floats(1, 100), min_size=1, max_size=8)


def part(name, seconds=10.0, work=None):
    return tables.Part("tests", name, seconds, work)


# ------------------------------------------------------------ budgets


@settings(deadline=None)
@given(shares, st.floats(1, 1000), st.data())
def test_time_that_a_part_leaves_goes_to_those_after_it(budgets, total, data):
    spent = 0.0
    for i, share in enumerate(budgets):
        own, allowed = total * share / sum(budgets), tables.allowance(budgets, i, spent, total)
        due = total * sum(budgets[:i]) / sum(budgets)
        assert allowed == pytest.approx(own + due - spent, abs=1e-6) and allowed >= own - 1e-6
        spent += data.draw(st.floats(0, allowed))
    assert spent <= total + 1e-6 and tables.allowance(budgets, 0, 2 * total, total) == 0


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(1, 100), st.floats(0, 300)), min_size=1, max_size=8),
    st.floats(10, 500),
)
def test_no_part_takes_another_ones_time(wanted, total):
    "A clock that moves only when parts run; one that wants too much hangs until it is ended."
    now, ran, left_out = [100.0], [], []
    todo = [part(str(i), share) for i, (share, _) in enumerate(wanted)]

    def do(p, seconds):
        ran.append(p)
        assert seconds >= tables.LEAST
        now[0] += min(seconds, wanted[int(p.name)][1])

    tables.one_after_the_other(todo, total, do, left_out.append, lambda: now[0])
    assert now[0] - 100 <= total + 1e-6
    assert sorted([*ran, *left_out], key=lambda p: int(p.name)) == todo and not set(ran) & set(
        left_out
    )
    enough = [
        p for p in todo if total * p.seconds / sum(q.seconds for q in todo) >= tables.LEAST + 1e-6
    ]
    assert set(enough) <= set(ran)  # whoever has a share of its own gets it, whatever came before


def test_the_parts(monkeypatch):
    "Each has its own name; every variant of the bench is there; what compiles comes last."
    for name in ("has_bfloat16", "has_tf32"):               # of a card that has both
        monkeypatch.setattr(f"simulus_nb.bench.{name}", lambda device: device.type == "cuda")
    for device in ("cuda", "cpu"):
        todo = tables.parts(device)
        assert len({str(p) for p in todo}) == len(todo) and [p.what for p in todo[:3]] == [
            "tests",
            "three-epochs",
            "three-epochs",
        ]
        assert {p.name for p in todo if p.what == "bench"} == set(
            tables.variants(torch.device(device))
        )
        late = ["compile" in p.name for p in todo]
        assert late == sorted(late)
    names = [str(p) for p in tables.parts("cuda")]
    graphs, compiled = names.index("bench/bfloat16 graphs"), names.index("bench/bfloat16 compile")
    assert (
        max(map(names.index, ("bench/float32", "bench/tf32", "bench/bfloat16")))
        < graphs
        < names.index("profile/updates")
        < compiled
    )


# ------------------------------------------------------------ files


def test_files_keep_everything(tmp_path):
    day = date(2026, 2, 3)
    first = tables.fresh(tmp_path, "three-epochs", day)
    tables.put(first, "eager", ended="running", seconds=1)
    tables.put(first, "graphs", ended="running")
    tables.put(first, "eager", ended="done")
    assert json.loads(first.read_text()) == {
        "what": "three-epochs",
        "entries": {"eager": {"ended": "done", "seconds": 1}, "graphs": {"ended": "running"}},
    }
    second = tables.fresh(tmp_path, "three-epochs", day)
    tables.put(second, "eager", ended="done")
    assert [p.name for p in sorted(tmp_path.iterdir())] == [
        "three-epochs-2026-02-03-2.json",
        "three-epochs-2026-02-03.json",
    ]
    assert (
        json.loads(second.read_text())["what"] == "three-epochs"
        and tables.entry(second, "graphs") == {}
    )


def supervised(tmp_path, code, seconds):
    "The entry of a process that runs this code; NOTE stands for a call that keeps something."
    path = tmp_path / "tests-2026-02-03.json"
    note = (
        f"import json, os; d = json.load(open({str(path)!r})); "
        "d['entries']['x']['result'] = {'half': 1}; "
        f"open({str(path)!r} + '~', 'w').write(json.dumps(d)); "
        f"os.replace({str(path)!r} + '~', {str(path)!r})"
    )
    tables.supervise([sys.executable, "-c", code.replace("NOTE", note)], path, "x", seconds)
    return tables.entry(path, "x")


@pytest.fixture
def impatient(monkeypatch, tmp_path):
    "A limit of 600 seconds is over as soon as the process has kept something."

    class Process(subprocess.Popen):
        def wait(self, timeout=None):
            if timeout != 600:
                return super().wait(timeout)
            while "result" not in tables.entry(next(tmp_path.glob("*.json")), "x"):
                assert self.poll() is None
                time.sleep(0.02)
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(tables.subprocess, "Popen", Process)


def test_a_part_that_hangs_is_ended_and_what_it_found_stays(tmp_path, impatient):
    found = supervised(
        tmp_path, "import time; print('I am', 'waiting', flush=True); NOTE; time.sleep(900)", 600
    )
    assert (
        found["ended"] == "ran out of time"
        and found["result"] == {"half": 1}
        and found["said"] == "I am waiting"
    )
    assert found["allowed_seconds"] == 600 and 0 < found["seconds"] < 600


@posix
def test_a_part_that_will_not_go_is_killed_with_those_it_started(tmp_path, impatient):
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(900)']); "
        "print(p.pid, flush=True); "
        "NOTE; time.sleep(900)"
    )
    found = supervised(tmp_path, code, 600)
    assert found["ended"] == "ran out of time"
    for _ in range(100):  # its parent is gone too: somebody else has to take note of its end
        if not alive(int(found["said"])):
            break
        time.sleep(0.1)
    else:
        pytest.fail("the grandchild is still alive")


def alive(pid):
    "Whether a process runs; one that is over but not yet buried does not."
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")
    except (ProcessLookupError, FileNotFoundError):
        return False


@pytest.mark.parametrize(
    "code,ended,said",
    [
        (
            "NOTE; raise ValueError('of all things')",
            "died: exit code 1",
            "ValueError: of all things",
        ),
        pytest.param(
            "NOTE; import os; os.abort()", f"died: exit code {-signal.SIGABRT}", "", marks=posix
        ),
        ("import sys; NOTE; print('quietly'); sys.exit(0)", "died: exit code 0", "quietly"),
    ],
)
def test_a_part_that_dies_leaves_its_last_words(tmp_path, code, ended, said):
    found = supervised(tmp_path, code, 60)
    assert (
        found["ended"] == ended and found["said"].endswith(said) and found["result"] == {"half": 1}
    )


def test_a_part_says_itself_how_it_ended(tmp_path):
    path = tmp_path / "tests-2026-02-03.json"

    def bad(device, small, keep):
        keep({"first": 1})
        try:
            raise RuntimeError("why the recording broke")
        finally:
            raise ValueError("what its end said")

    assert not tables.perform(part("bad", work=bad), path, "cpu", True, "0123abc")
    assert tables.perform(
        part("good", work=lambda device, small, keep: {"device": device}), path, "cpu", True
    )
    found = tables.entry(path, "bad")
    assert (
        found["ended"] == "failed"
        and found["result"] == {"first": 1}
        and found["circumstances"]["git_commit"] == "0123abc"
    )
    assert (
        "why the recording broke" in found["said"]
        and "what its end said" in found["said"]
        and str(ROOT) not in found["said"]
    )
    facts = tables.entry(path, "good")["circumstances"]
    assert {"command", "seed", "git_commit", "versions", "gpu", "cuda"} <= facts.keys()
    assert facts["command"] == "python tools/gpu_tables.py --only tests/good --device cpu --small"


@posix
def test_stopped_in_the_middle(tmp_path):
    "The whole command, ended while its first part is at work: its file says how far it came."
    command = [
        sys.executable,
        str(TOOL),
        "--small",
        "--device",
        "cpu",
        "--only",
        "three-epochs",
        "--out",
        str(tmp_path),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    found, until = {}, time.monotonic() + 300
    while (
        not found.get("result", {}).get("history")
        and process.poll() is None
        and time.monotonic() < until
    ):
        time.sleep(0.1)
        found = next((tables.entry(path, "eager") for path in tmp_path.glob("three*.json")), {})
    assert process.poll() is None and found["ended"] == "running", process.communicate()[0]
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    (path,) = tmp_path.glob("three*.json")
    found = json.loads(path.read_text())
    assert (
        process.returncode == 2
        and set(found["entries"]) == {"eager"}
        and "three-epochs/eager" not in said
    )
    eager = found["entries"]["eager"]
    assert (
        eager["ended"] == "stopped"
        and eager["result"]["history"][0]["epoch"] == 0
        and eager["seconds"] > 0
    )


# ------------------------------------------------------------ what the parts do


@pytest.fixture
def smaller(monkeypatch):
    "Without the perceptual network, which takes most of the time of a toy."
    for name, value in {"tokenizer.image.perceptual": "none", "train_v.batch": 1}.items():
        monkeypatch.setitem(tables.SMALL, name, value)


def test_three_epochs_in_toy_sizes(smaller):
    "Every stage in every epoch, progress kept, and twice the same."
    kept, runs = [], []
    for graphs in (False, True):  # on a CPU both are eager
        runs.append(
            tables.three_epochs("cpu", True, lambda found: kept.append(json.dumps(found)), graphs)
        )
    history = runs[0]["history"]
    assert len(history) == 3 and all(
        {"v/loss", "m/loss", "c/critic"} <= record.keys() for record in history
    )
    stages = [json.loads(text)["stage"] for text in kept]
    assert {"0 env", "0 v", "0 m", "0 c", "2 c", "checkpoint"} <= set(stages)
    found = tables.compare_histories(*(run["history"] for run in runs))
    assert (
        found["equal"]
        and found["first_difference"] is None
        and not any(found["largest_relative_differences"].values())
    )


def test_a_bench_and_a_profile_in_toy_sizes(smaller):
    found = tables.bench_variant("cpu", True, None, {"precision": "float32"})
    assert {"V", "M", "C"} <= found["seconds"].keys() and found["run_seconds"] > 0
    assert "float32" in tables.brief(tables.Part("bench", "float32", 1, None), {"result": found})
    kept = []
    found = tables.profile("cpu", True, lambda found: kept.append(list(found)))
    assert kept[-1] == list("VMC") == list(found)
    for one in found.values():
        assert one["launches"] > 0 and 0 < sum(k["share"] for k in one["kernels"]) <= 1.001
    json.dumps(found)


def test_the_heaviest_kernels():
    kind = torch.autograd.DeviceType
    event = lambda key, where, spent, count: SimpleNamespace(
        key=key, device_type=where, self_device_time_total=spent, self_cpu_time_total=7, count=count
    )
    events = [
        event("gemm", kind.CUDA, 3e5, 4),
        event("add", kind.CUDA, 1e5, 9),
        event("aten::mm", kind.CPU, 0, 4),
        event("cudaLaunchKernel", kind.CPU, 0, 11),
        event("cuLaunchKernelEx", kind.CPU, 0, 2),
    ]
    found = tables.heaviest(events, True, 0.8)
    assert found["launches"] == 13 and found["busy_share"] == pytest.approx(0.5)
    assert [(k["name"], k["calls"], k["share"]) for k in found["kernels"]] == [
        ("gemm", 4, 0.75),
        ("add", 9, 0.25),
    ]


def test_the_first_metric_that_differs_is_named():
    a = [
        {"epoch": 0, "v/loss": 1.0, "m/loss": 2.0, "seconds/v": 1.0},
        {"epoch": 1, "v/loss": 1.0, "m/loss": math.nan},
    ]
    same = [{**a[0], "v/loss": 1.001, "seconds/v": 9.0}, dict(a[1])]
    assert tables.compare_histories(a, same)["equal"]
    other = [{**a[0], "m/loss": 2.5}, {**a[1], "v/loss": 9.0}]
    found = tables.compare_histories(a, other)
    assert not found["equal"] and found["first_difference"] == {
        "epoch": 0,
        "metric": "m/loss",
        "values": [2.0, 2.5],
    }
    assert tables.compare_histories(a, a[:1])["first_difference"]["metric"] == "number of epochs"
    lacking = tables.compare_histories(
        a, [{k: v for k, v in r.items() if k != "m/loss"} for r in a]
    )
    assert lacking["first_difference"] == {"epoch": 0, "metric": "m/loss", "values": [2.0, None]}
    assert not tables.compare_histories([], [])["equal"]


# ------------------------------------------------------------ tests on a bare machine

HIDE = """
from importlib.machinery import PathFinder
find, hidden = PathFinder.find_spec, {hidden!r}
PathFinder.find_spec = classmethod(lambda cls, name, path=None, target=None:
    None if name.partition(".")[0] in hidden else find(name, path, target))
"""
DEVELOPERS = (
    "nbformat nbconvert nbclient nbdev execnb fastcore ghapi jupyter jupytext IPython "
    "vector_quantize_pytorch yet_another_retnet rliable arch pandas scipy stable_baselines3 "
    "minigrid minatar shimmy dm_control ray jax craftax onnx"
)


def test_gpu_tests_need_no_package_of_the_developers(tmp_path):
    "All test files can be read with the library's own requirements, pytest and hypothesis."
    (tmp_path / "sitecustomize.py").write_text(HIDE.format(hidden=set(DEVELOPERS.split())))
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    probe = "import importlib.util as u; print(u.find_spec('nbformat'), bool(u.find_spec('torch')))"
    assert subprocess.check_output([sys.executable, "-c", probe], env=env, text=True).split() == [
        "None",
        "True",
    ]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "--collect-only",
        "-p",
        "no:cacheprovider",
        str(ROOT / "tests"),
    ]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    collected = set(re.findall(r"^tests/(test_\w+)\.py::", done.stdout, re.M))
    marked = {
        p.stem
        for p in (ROOT / "tests").glob("test_*.py")
        if re.search(r"pytest\.mark\.gpu\b|marks=pytest\.mark\.gpu", p.read_text("utf8"))
    }
    assert marked - {Path(__file__).stem} <= collected and len(collected) >= 6
