"The doctor: counts that agree with what really happens, and findings instead of crashes."
import json
import math
import os
from itertools import accumulate
from pathlib import Path

import gymnasium
import pytest
import torch
from gymnasium import spaces as gs
from torch.profiler import ProfilerActivity, profile

from simulus_nb import doctor
from simulus_nb.bench import run_counts
from simulus_nb.cli import main
from simulus_nb.config import Config, preset
from simulus_nb.doctor import (
    Finding, check_finding, examine, extras, host_memory, look, machine, memory_finding,
    report_text, self_check, tools, weights
)
from simulus_nb.loop import collect, learn_m, tokenise
from simulus_nb.rehearsal import (
    GIB, UPDATES, Tally, fits, needs, peak_bytes, shapes_only, stored_seconds
)
from simulus_nb.replay import row_bytes
from simulus_nb.run_setup import infer_specs, prepare
from simulus_nb.spaces import UserError
from simulus_nb.tokenizer import mask_invalid

CPU = torch.device("cpu")
TINY = {
    "threads": 1, "device": "cpu", "collect.steps": 40, "collect.capacity": 500, "train_v.batch": 6,
    "train_m.batch": 4, "train_m.segment": 5, "train_c.batch": 6, "train_c.burn_in": 3,
    "train_c.horizon": 4
}
WORDS = [
    "--threads", "1", "--device", "cpu", "--collect.steps", "40", "--train-c.batch", "6",
    "--train-c.horizon", "4"
]


def tiny(name="catch", **changes):
    return preset(name).change({**TINY, **changes})


def count(config, precision="float32"):
    return needs(config, *infer_specs(config), precision)


@pytest.fixture(scope="module")
def counted():
    return count(tiny())


def recorded(work):
    "Most bytes at a time that PyTorch's profiler saw allocated in `work`."
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


@pytest.mark.filterwarnings("ignore:TF32")
@pytest.mark.parametrize(
    "changes", [{}, {"train_m.batch": 9, "world_model.retnet.layers": 3, "train_c.batch": 16},
                {"world_model.sequence": "attention"}]
)
def test_counted_peaks_are_those_of_real_updates(changes):
    config = tiny(**changes)
    parts, _ = count(config)
    run = prepare(config)
    collect(run), tokenise(run), run.worlds.close()
    m, c, draw = config.train_m, config.train_c, run.generator
    frames, segment = (
        run.replay.frames(config.train_v.batch, draw),
        run.replay.segments(m.batch, m.segment, m.context, draw)
    )
    context = run.replay.contexts(c.batch, c.burn_in, draw)
    work = {
        "V": lambda: run.learner.v_step(frames), "M": lambda: run.learner.m_step(segment),
        "C": lambda: run.learner.c_step(context)
    }
    for name, step in work.items():
        # its LSTM is one operation, which needs other memory
        with torch.backends.mkldnn.flags(enabled=name != "C"):
            step()
            with Tally() as real:
                step()
            assert math.isclose(parts[name].flops, real.flops, rel_tol=0.03), name
            assert math.isclose(parts[name].bytes, recorded(step), rel_tol=0.15), name


@pytest.mark.parametrize(
    "changes,grown",
    [
        ({"train_v.batch": 12, "train_m.batch": 8, "train_c.batch": 12}, "VMC"),
        ({"train_m.segment": 8, "train_c.horizon": 8}, "MC"),
        ({"world_model.retnet.layers": 4}, "M")
    ],
)
def test_more_work_needs_more(counted, changes, grown):
    larger, resident = count(tiny(**changes))
    for name in grown:
        assert (
            larger[name].flops > counted[0][name].flops
            and larger[name].bytes > counted[0][name].bytes
        ), name
    assert peak_bytes(larger, resident, True) > peak_bytes(*counted, True)
    # the largest part may be another one
    assert peak_bytes(larger, resident, False) >= peak_bytes(*counted, False)


def test_twice_the_batch_takes_twice_the_memory():
    "But for what does not depend on the batch: the third difference is the second."
    one, two, three = (count(tiny(**{"train_m.batch": b}))[0]["M"].bytes for b in (8, 16, 24))
    assert math.isclose(three - two, two - one, rel_tol=0.02)


def test_what_is_kept(counted):
    config = tiny()
    obs, act = infer_specs(config)
    agent = prepare(config).agent
    numbers = sum(p.numel() for p in agent.parameters())
    assert counted[1] == 16 * numbers + 500 * row_bytes(obs, act.count, agent.tokenizer.layout.S)
    assert count(tiny(**{"collect.capacity": 1500}))[1] - counted[1] == 1000 * row_bytes(
        obs, act.count, agent.tokenizer.layout.S
    )


def test_short_numbers_take_less_where_products_are_most():
    wide = {"world_model.retnet.width": 128, "train_m.batch": 16}
    assert count(tiny(**wide), "bfloat16")[0]["M"].bytes < 0.8 * count(tiny(**wide))[0]["M"].bytes


def test_counting_moves_nothing():
    "Neither the settings of PyTorch nor what the caller computes afterwards."
    before = torch.backends.mkldnn.enabled
    count(tiny())
    assert (
        torch.backends.mkldnn.enabled == before
        and type(torch.ones(2) + 1) is torch.Tensor
        and not torch.is_autocast_enabled("cpu")
    )


@pytest.mark.parametrize("name", ["small", "minigrid"])
def test_worlds_without_pictures(name):
    pytest.importorskip("minigrid")
    parts, _ = count(tiny(name))
    assert (
        "V" not in parts
        and parts["encode"].flops == 0 < parts["play"].flops
        and peak_bytes(*count(tiny(name)), True) > 0
    )


def test_what_fits(counted):
    assert fits(10 * GIB, 12 * GIB) and not fits(10 * GIB, 11 * GIB) and not fits(0, GIB - 1)
    parts, resident = counted
    assert peak_bytes(parts, resident, False) == resident + max(n.bytes for n in parts.values())
    assert peak_bytes(parts, resident, True) == resident + sum(
        parts[k].bytes for k in UPDATES
    ) + max(parts[k].bytes for k in ("play", "encode"))


def test_a_run_that_does_not_fit_is_told(monkeypatch, counted):
    monkeypatch.setattr(doctor, "device_memory", lambda device: (GIB, 2 * GIB))
    found = memory_finding(tiny(), "float32", CPU, {"float32": counted})
    assert "make room" in found.todo and "--train-m.batch" in found.todo and "\n" not in found.todo
    monkeypatch.setattr(doctor, "device_memory", lambda device: (None, None))
    assert not memory_finding(tiny(), "float32", CPU, {"float32": counted}).todo


def test_an_error_is_a_finding():
    def fail(error):
        def work():
            raise error
        return look("x", work)
    assert fail(UserError("pip\ninstall it")) == Finding("x", "missing", "pip install it")
    assert (
        fail(RuntimeError("boom")).todo == ""
        and "RuntimeError: boom" in fail(RuntimeError("boom")).text
    )


def test_missing_things_are_reported(monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(
        doctor.imageio_ffmpeg, "get_ffmpeg_version",
        lambda: (_ for _ in ()).throw(RuntimeError("none"))
    )
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(
        doctor.importlib.metadata, "version",
        lambda name: (_ for _ in ()).throw(doctor.importlib.metadata.PackageNotFoundError)
    )
    assert extras() == {} and "torch not installed" in doctor.packages().text
    assert (
        not tools(tiny()).todo
        and "no ffmpeg" in tools(tiny()).text
        and "g++" in tools(tiny(compile=True)).todo
    )
    vgg = tiny(**{"tokenizer.image.perceptual": "vgg"})
    assert all(
        part in weights(vgg).todo
        for part in (
            "528 MB", "https://", "vgg16-397923af.pth", "--tokenizer.image.perceptual PATH"
        )
    )
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "vgg16-397923af.pth").write_bytes(b"half of it")
    assert "damaged" in weights(vgg).text and "delete" in weights(vgg).todo
    own = tmp_path / "mine.pth"
    own.write_bytes(b"weights")
    assert (
        not weights(tiny(**{"tokenizer.image.perceptual": str(own)})).todo
        and not weights(vgg, pictures=False).todo
    )


def test_memory_of_the_host():
    free, total = host_memory()
    assert total is None or 0 < (free or 1) <= total
    assert "GiB free" in machine(CPU).text


def test_a_device_that_computes_wrongly_is_found(monkeypatch):
    pairs = self_check(CPU, "float32")
    assert set(pairs) == set(UPDATES) and all(
        a == b and math.isfinite(a) for a, b in pairs.values()
    )
    for wrong in (math.nan, math.inf, 1.01 * pairs["M"][0]):
        monkeypatch.setattr(doctor, "self_check", lambda *_: pairs | {"M": (pairs["M"][0], wrong)})
        assert "wrong loss of M:" in check_finding(CPU, "float32").todo
    monkeypatch.setattr(
        doctor, "self_check", lambda *_: pairs | {"M": (pairs["M"][0], 1.01 * pairs["M"][0])}
    )
    assert not check_finding(CPU, "bfloat16").todo                      # two digits are all it has


def test_stored_rates(tmp_path):
    path, config, each = tmp_path / "b.json", tiny(), {}
    each = {name: 0.0 for name in run_counts(config)} | {"play": 1.0, "V": 2.0, "world": 9.0}
    path.write_text(json.dumps({"seconds": each, "config": config.to_json()}))
    n = run_counts(config)
    assert stored_seconds(path, config, "float32") == n["play"] + 2 * n["V"]
    longer = config.change({"epochs": 2 * config.epochs, "seed": 5})
    # other counts, the same sizes
    assert stored_seconds(path, longer, "float32") > stored_seconds(path, config, "float32")
    path.write_text(
        json.dumps(
            {
                "variants": {
                    "float32": {
                        "seconds": each, "config": config.change({"precision": "float32"}).to_json()
                    },
                    "bfloat16": {"failed": "no"},
                }
            }
        )
    )
    assert stored_seconds(path, config, "float32") == n["play"] + 2 * n["V"]
    for wrong, precision in (
        (config.change({"train_m.batch": 7}), "float32"), (config, "bfloat16"), (config, "tf32")
    ):
        with pytest.raises(UserError, match="--bench"):
            stored_seconds(path, wrong, precision)
    for text in ("no json", "[]", "{}", "3"):
        path.write_text(text)
        with pytest.raises(UserError, match="tells nothing of this run"):
            stored_seconds(path, config, "float32")


ODD = [
    *("[" * 100_000, '{"a":' * 100_000, "\xff", '{"seconds": 3}', '{"seconds": [[1, 2, 3]]}'),
    *('{"variants": []}', '{"variants": {"float32": 1}}', '{"seconds": {"V": 1}, "config": []}')
]
VALUES = [None, "1", [], {}, -1, 10**400, math.nan, math.inf]


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_rates_that_are_none(text, tmp_path):
    path = tmp_path / "b.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="tells nothing of this run") as caught:
        stored_seconds(path, tiny(), "float32")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_rates_that_are_no_durations(value, tmp_path):
    path, config = tmp_path / "b.json", tiny()
    each = dict.fromkeys(run_counts(config), 1.0) | {"M": value}
    path.write_text(json.dumps({"seconds": each, "config": config.to_json()}))
    with pytest.raises(UserError, match="tells nothing of this run"):
        stored_seconds(path, config, "float32")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_rates_that_are_no_ordinary_file(tmp_path):
    "Nothing hangs, and nothing is read without end."
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "holes", "wb") as file:
        file.truncate(2**40)
    for path in (tmp_path / "pipe", tmp_path / "holes", tmp_path, Path("/dev/zero")):
        with pytest.raises(UserError, match="tells nothing of this run"):
            stored_seconds(path, tiny(), "float32")


def test_command(capsys, tmp_path):
    path = tmp_path / "d.json"
    assert main(["doctor", "--json", str(path), *WORDS]) == 0
    out, found = capsys.readouterr().out.splitlines(), json.loads(path.read_text())
    assert out[-1] == "verdict     ready" and [line.split()[0] for line in out[:-1]] == [
        f["topic"] for f in found["findings"]
    ]
    assert (
        found["ready"]
        and found["run_seconds"] > 0
        and Config.from_json(found["config"]).train_c.batch == 6
    )
    assert (
        0 < found["memory_bytes"]["bfloat16"]["eager"] < found["memory_bytes"]["float32"]["graphs"]
    )
    assert "\n".join(out) == report_text(found)


@pytest.mark.parametrize(
    "options,words",
    [
        (["--env", "ALE/NoSuchGame-v5"], "no environment"),
        (["--precision", "tf32"], "use --precision float32"),
        (["--tokenizer.image.perceptual", "nowhere.pth"], "528 MB")
    ],
)
def test_what_is_missing_is_exit_code_one(options, words, capsys, monkeypatch, counted):
    monkeypatch.setattr(doctor, "needs", lambda *_: counted)                    # counted elsewhere
    assert main(["doctor", *WORDS, *options]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("verdict     first: ") and words in last


class Odd(gymnasium.Env):
    "Shows a category that it has not, gives no number, or raises."
    observation_space, action_space = gs.Discrete(3), gs.Discrete(2)

    def __init__(self, fault="", render_mode=None):
        self.fault = fault
        if fault == "made":
            raise OSError("no simulator")

    def reset(self, *, seed=None, options=None):
        return 3 if self.fault == "reset" else 2, {}

    def step(self, action):
        if self.fault == "step":
            raise ValueError("the simulator is gone")
        return 1, float("nan") if self.fault == "reward" else 0.0, False, False, {}


@pytest.mark.parametrize(
    "fault,words",
    [
        ("", "ready"), ("reset", "gave 3 in reset()"), ("reward", "gave the reward nan"),
        ("step", "mend the world simulus-test/Odd-v0 failed in step(): ValueError: the simulator"),
        ("made", "mend the world simulus-test/Odd-v0 failed in __init__(): OSError: no simulator"),
    ],
)
def test_the_world_is_tried_out(fault, words, capsys, monkeypatch, counted):
    "As training plays it: what would end a run in its first steps is found."
    monkeypatch.setattr(doctor, "needs", lambda *_: counted)
    gymnasium.register("simulus-test/Odd-v0", Odd)
    options = json.dumps({"fault": fault})
    done = main(["doctor", *WORDS, "--env", "simulus-test/Odd-v0", "--env-options", options])
    lines = capsys.readouterr().out.splitlines()
    assert words in lines[-1] and done == (1 if fault else 0)
    says = "fails" if fault else "simulus-test/Odd-v0 opens"
    assert f"{'world':<12}{says}" in lines


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there(monkeypatch, counted):
    monkeypatch.setattr(doctor, "needs", lambda *_: counted)
    found = examine(tiny(device="cuda"))
    assert (
        not found["ready"]
        and "device 'cuda' is not available" in report_text(found).splitlines()[-1]
        and len(found["findings"]) == 9
    )


def test_a_mistake_is_still_exit_code_two(capsys):
    assert (
        main(["doctor", *WORDS, "--bench", "nowhere.json"]) == 2
        and "--bench nowhere.json" in capsys.readouterr().err
    )
    assert not Path("nowhere.json").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_doctor_of_a_gpu(precision):
    found = examine(tiny(device="cuda", precision=precision))
    assert found["ready"], report_text(found)
    assert "compute capability" in report_text(found)


@pytest.mark.gpu
def test_counted_peaks_are_those_of_a_gpu():
    config = tiny(
        device="cuda", precision="float32", **{"train_m.batch": 64, "world_model.retnet.width": 128}
    )
    run = prepare(config)
    collect(run), tokenise(run), learn_m(run, 2)
    torch.cuda.synchronize(), torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    learn_m(run, 1)
    assert math.isclose(
        torch.cuda.max_memory_allocated() - before, count(config)[0]["M"].bytes, rel_tol=0.25
    )


def test_tables_without_numbers_do_not_stay():
    "Categories that do not exist are masked by a cached table; one made among fake tensors is not."
    logits, sizes = torch.zeros(1, 2, 7), (3, 7)
    with shapes_only():
        mask_invalid(torch.zeros(1, 2, 7), sizes)
    assert mask_invalid(logits, sizes)[0, 0, 3:].max() < -1e30
