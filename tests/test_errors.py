"""Whose error it is, and how it is said: disks, worlds, memory, paths, streams, signals, and
modules that only a file names."""
import errno
import io
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simulus_nb import doctor, rehearsal, trainer
from simulus_nb.checkpoint import has_saves
from simulus_nb.cli import EvaluateCommand, given_path, main, parse, typed
from simulus_nb.config import catch, flat, preset
from simulus_nb.doctor import too_large
from simulus_nb.files import ran_out, write_atomic, writing
from simulus_nb.loop import STAGES, Diverged, make_agent
from simulus_nb.rehearsal import Need, memory_shares, size_text
from simulus_nb.replay import row_bytes
from simulus_nb.run_folder import RunFolder, default_folder
from simulus_nb.run_setup import ask_first, infer_specs
from simulus_nb.suite import ENTRY
from simulus_nb.trainer import Trainer
from simulus_nb.validation import UserError, reason

TINY = shlex.split("""--save-every 1 --epochs 2 --collect.steps 30 --collect.capacity 300
  --tokenizer.image.code-dim 8 --tokenizer.image.vocab 16 --world-model.retnet.width 16
  --world-model.retnet.heads 2 --world-model.retnet.layers 1 --controller.width 16
  --controller.channels 4 4 --train-v.batch 4 --train-v.steps 1 --train-v.start 0
  --train-m.batch 4 --train-m.steps 1 --train-m.start 0 --train-c.batch 4 --train-c.steps 1
  --train-c.start 0 --evaluation.episodes 2 --evaluation.num-envs 1 --evaluation.every 0
  --threads 1 --device cpu""")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def quick(monkeypatch):
    "No evaluation and no pictures at the end of a run."
    monkeypatch.setattr(
        "simulus_nb.trainer.finish",
        lambda self: setattr(self, "result", self.evaluate(1)) or self
    )


def ends_with(monkeypatch, error):
    "Let `evaluate` end with this error; what main makes of it."
    def run(self, command):
        raise error
    monkeypatch.setattr(EvaluateCommand, "run", run)
    return main(["evaluate", "x"])


# whose error

FAILURES = [
    OSError(getattr(errno, name), os.strerror(getattr(errno, name)))
    for name in (
        "ENOENT", "ENOSPC", "EACCES", "EROFS", "EPIPE", "ECONNRESET", "EIO", "ENOMEM", "EISDIR",
        "ETIMEDOUT"
    )
]
OTHERS = [
    MemoryError(), RuntimeError("two\nlines"), TypeError("an unexpected keyword"),
    EOFError("closed"), SystemExit(3), KeyError("x"), torch.OutOfMemoryError("CUDA out of memory")
]
name_of = lambda e: f"{type(e).__name__}-{getattr(e, 'errno', '')}"


@pytest.mark.parametrize("error", FAILURES + OTHERS, ids=name_of)
def test_the_world_s_errors_are_the_world_s(error, monkeypatch, capsys):
    """Its traceback, then one line that says which world, which call and what; never a full disk, a
    closed pipe or a wrong option."""
    failure = type(error)(*error.args)
    failure.of_world, failure.then = "Mine-v0 failed in step()", "continue with: simulus-nb train"
    assert ends_with(monkeypatch, failure) == 1
    *trace, last = capsys.readouterr().err.splitlines()
    assert trace[0].startswith("Traceback") and "in run" in "\n".join(trace)
    assert last == (
        f"simulus-nb: the world Mine-v0 failed in step(): {reason(error)}; "
        "continue with: simulus-nb train"
    )


@pytest.mark.parametrize("error", FAILURES, ids=name_of)
def test_a_failed_write_of_ours_is_one_line(error, monkeypatch, capsys):
    try:
        with writing("metrics.jsonl"):
            raise type(error)(*error.args)
    except OSError as e:
        assert ends_with(monkeypatch, e) == 2
    said = capsys.readouterr().err
    if error.errno != errno.ENOMEM:
        assert said.startswith(f"simulus-nb: cannot write metrics.jsonl: {error.strerror}; ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [e for e in FAILURES if e.errno != errno.ENOMEM]
    + [e for e in OTHERS if not ran_out(e) and not isinstance(e, SystemExit)],
    ids=name_of,
)
def test_what_nobody_has_marked_goes_on(error, monkeypatch):
    "A user's callback, a library: neither a failed write nor `| head`."
    with pytest.raises(type(error)) as caught:
        ends_with(monkeypatch, error)
    assert caught.value is error


@pytest.mark.parametrize("place", ["os.replace", "simulus_nb.run_log.SummaryWriter", "tensorboard"])
def test_every_writer_marks_its_errors(place, monkeypatch, capsys, quick):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if place == "tensorboard":
        monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", full)
    else:
        monkeypatch.setattr(place, full)
    assert main(["train", "--out", "r", *TINY]) == 2
    said = capsys.readouterr().err
    assert "No space left on device" in said and said.count("\n") == 1 and "Traceback" not in said


def test_reading_is_not_writing(tmp_path):
    with pytest.raises(OSError) as caught:
        write_atomic(tmp_path / "no" / "file", "x")
    assert caught.value.of_ours.startswith(str(tmp_path / "no"))
    with pytest.raises(OSError) as caught:
        open("level1.txt")
    assert not hasattr(caught.value, "of_ours")


class Breaks(gymnasium.Env):
    "Fails at its fifth step, as a world whose border has marked it."
    observation_space, action_space = (
        gymnasium.spaces.Box(-1, 1, (2,), np.float32), gymnasium.spaces.Discrete(2)
    )
    steps = 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        Breaks.steps += 1
        if Breaks.steps == 45:
            error = BrokenPipeError(errno.EPIPE, "Broken pipe")
            error.of_world = "simulus-test/Breaks-v0 failed in step()"
            raise error
        return np.zeros(2, np.float32), 0.0, Breaks.steps % 7 == 0, False, {}


def test_a_run_that_its_world_ended_goes_on(capsys, quick):
    "The line says how: everything up to the failure is saved."
    gymnasium.register("simulus-test/Breaks-v0", entry_point=Breaks, disable_env_checker=True)
    assert main(["train", "--env", "simulus-test/Breaks-v0", "--out", "r", *TINY]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "BrokenPipeError" in last and last.endswith(
        "continue from the last checkpoint with: simulus-nb train --resume --out r"
    )
    assert main(["train", "--resume", "--out", "r"]) == 0 and len(RunFolder("r").history()) == 2


def resume_words(said):
    "The words of the command that goes on, which is the end of what is said."
    return shlex.split(said.strip().rpartition("with: simulus-nb ")[2])


@pytest.mark.parametrize(
    "error,words",
    [
        (UserError("the world gave the reward nan"), "the reward nan; continue from"),
        (UserError("cannot write a checkpoint in r: No space left on device (os error 28); earlier "
                   "checkpoints are untouched"), "untouched; free some space; continue from"),
        (Diverged("its weights are not finite. Begin a new run"), ""),
    ],
    ids=["world", "disk", "diverged"],
)
def test_a_mistake_in_the_middle_says_how_to_go_on(error, words, breaks, capsys, quick):
    "Unless going on would come to the same."
    breaks(error)
    assert main(["train", "--out", "r", *TINY]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    if not words:
        assert said.endswith("Begin a new run\n")
        return
    breaks(None)
    assert main(resume_words(said)) == 0 and len(RunFolder("r").history()) == 2


def test_nothing_to_go_on_from_is_not_offered(monkeypatch, capsys, quick):
    def fail(state):
        raise UserError("a mistake")
    monkeypatch.setitem(STAGES, "c", fail)
    assert main(["train", "--out", "r", *TINY]) == 2
    assert capsys.readouterr().err == "simulus-nb: a mistake\n"


# streams

@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "cp932", "utf-8"])
def test_every_alphabet_will_do(encoding, monkeypatch, quick):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out), monkeypatch.setattr(sys, "stderr", err)
    assert main(["train", "--help"]) == main(["suite", "--help"]) == 0
    assert main(["evaluate", "sch\u00f6n \u2192 \U0001f600"]) == 2
    assert (sys.stdout, out.errors, err.errors) == (out, "strict", "strict")    # as it was before
    out.flush(), err.flush()
    assert b"--train-m.lr" in out.buffer.getvalue() and b"holds no run" in err.buffer.getvalue()


@pytest.mark.parametrize("absent", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_nobody_need_listen(absent, monkeypatch, quick):
    "Services have no output at all."
    for name in absent:
        monkeypatch.setattr(sys, name, None)
    assert main(["train", "--out", "r", *TINY]) == 0 and len(RunFolder("r").history()) == 2
    assert main(["evaluate", "nowhere"]) == 2
    assert all(getattr(sys, name) is None for name in absent)


@pytest.mark.skipif(
    not hasattr(os, "fork") or not os.path.exists("/dev/full"),
    reason="needs processes and /dev/full"
)
@pytest.mark.parametrize("number,code", [(1, 0), (2, 0), ("full", 2)])
def test_closed_and_full_descriptors(number, code, quick):
    "As after `>&-`: no file of the run gets the number that is free, so nobody prints into it."
    if (child := os.fork()) == 0:
        try:
            if number == "full":
                os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
                sys.stdout = os.fdopen(1, "w")
            else:
                os.close(number)
                setattr(sys, {1: "stdout", 2: "stderr"}[number], None)
            result = main(["train", "--out", "r", *TINY])
            os._exit(result)
        finally:
            os._exit(99)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
    if code == 0:
        assert len(RunFolder("r").history()) == 2 and RunFolder("r").read_config().epochs == 2


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_leaves(stream, monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(sys, stream, pipe)
        def run(self, command):
            print("x", file=pipe, flush=True)
        monkeypatch.setattr(EvaluateCommand, "run", run)
        assert main(["evaluate", "x"]) == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("how", ["flush", "at the end", "twice", "--help"])
def test_a_full_disk_below_standard_output(how, monkeypatch, capfd):
    "Whatever has flushed in between, and whether or not a second flush succeeds."
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        def run(self, command):
            try:
                print("x" * 20, flush=how != "at the end")
            finally:
                if how == "twice":                      # what could not be written is gone
                    os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
                    full.flush()
        monkeypatch.setattr(EvaluateCommand, "run", run)
        assert main(["evaluate", "--help" if how == "--help" else "x"]) == 2
    said = capfd.readouterr().err
    assert said.startswith("simulus-nb: cannot write to standard output: No space left on device; ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("code", ["no licence\nfound", 0, None, 3, 256, ("a", "b")])
def test_sys_exit_in_a_module_is_no_silent_success(code, monkeypatch, capsys):
    assert ends_with(monkeypatch, SystemExit(code)) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "ended early" in said
    assert not isinstance(code, str) or "no licence found" in said


@pytest.mark.skipif(os.name != "posix", reason="needs a folder that goes while one is in it")
def test_a_working_folder_that_is_gone(tmp_path, monkeypatch, capsys):
    gone, run = tmp_path / "gone", lambda self, command: None
    gone.mkdir(), monkeypatch.chdir(gone), gone.rmdir()
    monkeypatch.setattr(EvaluateCommand, "run", run)
    for more in ([], ["--allow-import"]):
        assert main(["evaluate", str(tmp_path), *more]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def terminal(monkeypatch):
    """Let standard output and error be a terminal so many columns wide, with an alphabet; gives the
    other end."""
    pty = pytest.importorskip("pty")
    import fcntl, struct, termios
    open_files = []
    def start(columns, encoding):
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 0, columns, 0, 0))
        os.set_blocking(master, False)
        for name in ("stdout", "stderr"):
            open_files.append(os.fdopen(os.dup(slave), "w", encoding=encoding))
            monkeypatch.setattr(sys, name, open_files[-1])
        os.close(slave)
        return master
    yield start
    for file in open_files:
        try:
            file.close()
        except OSError:
            pass


@pytest.mark.parametrize(
    "columns,variable,encoding",
    [
        (0, None, "ascii"), (1, "0", "utf-8"), (0, "1", "cp1252"), (80, "-3", "ascii"),
        (3, "x", "utf-8")
    ],
)
def test_odd_terminals(columns, variable, encoding, terminal, monkeypatch, quick):
    "The progress bar fits every width and alphabet, or stays away."
    monkeypatch.setenv("TERM", "dumb"), monkeypatch.delenv("COLUMNS", raising=False)
    if variable:
        monkeypatch.setenv("COLUMNS", variable)
    master = terminal(columns, encoding)
    assert main(["train", "--out", "r", *TINY]) == 0 and os.read(master, 9)
    os.close(master)


def test_a_terminal_that_goes_away(terminal, monkeypatch, quick):
    "Its last signal saves the run; that nobody can be told does not matter."
    master, learn = terminal(80, "utf-8"), STAGES["c"]
    def learn_c(state):
        os.close(master)
        os.kill(os.getpid(), signal.SIGHUP)
        return learn(state)
    monkeypatch.setitem(STAGES, "c", learn_c)
    assert main(["train", "--out", "r", *TINY, "--save-every", "9"]) == 141 and has_saves(
        "r/checkpoint"
    )


# memory

def full_torch(n, *shape):
    return lambda: torch.zeros(n, *shape)


KINDS = [
    full_torch(2**50, 9),
    full_torch(2**62, 9),
    full_torch(2**64, 9),
    full_torch(10**30),
    lambda: np.zeros((2**50, 9)),
    lambda: bytearray(2**60),
    *(
        lambda text=text: (_ for _ in ()).throw(RuntimeError(text))
        for text in (
            "CUDA error: out of memory\nCUDA kernel errors might be",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
            "MPS backend out of memory (MPS allocated: 17.78 GB",
            "[enforce fail at alloc_cpu.cpp:127] err == 0. "
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 3072 bytes.",
            "std::bad_alloc",
            "could not create a primitive",
            "HIP out of memory.",
        )
    ),
    lambda: (_ for _ in ()).throw(
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    ),
    lambda: (_ for _ in ()).throw(OSError(errno.ENOMEM, "Cannot allocate memory")),
]


@pytest.mark.parametrize("work", KINDS)
def test_out_of_memory_in_every_dialect(work):
    with pytest.raises(Exception) as caught:
        work()
    assert ran_out(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory"),
        OSError(28, "No space left"), TypeError("an unexpected keyword argument"),
        KeyError("memory")
    ],
)
def test_other_errors_are_no_lack_of_memory(error):
    assert not ran_out(error)


@pytest.fixture(scope="module")
def sizes():
    config = catch()
    counted = {
        name: Need(1.0, 1.0, size)
        for name, size in zip(
            ("play", "encode", "V", "M", "C"), (10**5, 10**7, 10**8, 10**9, 10**7)
        )
    }
    return config, infer_specs(config), (counted, 0)


@pytest.mark.parametrize("capacity", [100, 12_000, 10**11, 10**15])
def test_what_costs_most_comes_first(sizes, capacity, monkeypatch):
    config, (obs, act), counted = sizes
    config = config.change({"collect.capacity": capacity})
    monkeypatch.setattr(rehearsal, "needs", lambda *a: counted)
    shares = memory_shares(config, obs, act)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert shares[f"--collect.capacity {capacity}"] == capacity * row_bytes(obs, act.count, 4)
    options = {name.split()[0].removeprefix("--").replace("-", "_") for name in shares}
    assert options <= set(flat(config)) and len(options) == len(shares)     # what is advised exists


@pytest.mark.parametrize("window", [12, 40])
def test_what_dreams_look_back_on_is_named(window):
    "The cache of a batch of dreams, as M makes it; retention has none that a setting changes."
    config = preset("small").change({
        "env": "CartPole-v1", "world_model.sequence": "attention", "train_m.segment": 12,
        "train_c.horizon": 6, "world_model.attention.window": window})
    obs, act = infer_specs(config)
    shares = memory_shares(config, obs, act)
    agent = make_agent(config, obs, act)
    z, action = (torch.zeros(config.train_c.batch, 1, n).long()
                 for n in (agent.tokenizer.layout.S, act.count))
    memory = agent.world_model.remember(z, action, torch.ones(len(z), 1).bool())
    assert shares[f"--world-model.attention.window {window}"] == memory.nbytes
    plain = config.change({"world_model.sequence": "retnet", "world_model.attention.window": 20})
    assert not [name for name in memory_shares(plain, obs, act) if "attention" in name]


@given(st.integers(0, 2**70))
def test_sizes_for_people(size):
    number, unit = size_text(size).split()
    assert np.isclose(
        float(number.replace(",", "")) * 1024 ** ("bytes KiB MiB GiB TiB PiB".split().index(unit)),
        size, rtol=0.01, atol=2**49 if unit == "PiB" else 1
    )


@pytest.mark.parametrize(
    "stage,place,words",
    [("m", (STAGES, "m"), "while M learnt"),
     ("", (vars(trainer), "finish"), "while the agent was evaluated")]
)
def test_memory_that_ends_in_a_run(stage, place, words, monkeypatch, capsys, sizes):
    "One line: where, when, the three settings that cost most, and how to go on from the last save."
    monkeypatch.setattr(rehearsal, "needs", lambda *a: sizes[2])
    def fail(self, *args):
        if self.epoch >= 1:
            torch.zeros(2**60)
        return {}
    monkeypatch.setitem(*place, fail)
    assert main(["train", "--out", "r", *TINY]) == 2
    said = capsys.readouterr().err
    assert (
        said.count("\n") == 1
        and words in said
        and said.count(" needs ") == 3
        and "out of memory on cpu" in said
    )
    assert said.endswith(
        "continue from the last checkpoint with: simulus-nb train --resume --out r\n"
    ) and has_saves("r/checkpoint")


@pytest.mark.parametrize("command,option", [("evaluate", "--episodes"), ("dream", "--horizon")])
def test_memory_that_ends_in_other_commands(command, option, monkeypatch, capsys):
    "Their own options are named, no setting of the training."
    monkeypatch.setattr("simulus_nb.cli.agent_of", lambda *a: torch.zeros(2**60))
    assert main([command, "r"]) == 2
    said = capsys.readouterr().err
    assert option in said and "--train" not in said and "--collect" not in said
    assert said.count("\n") == 1 and f"simulus-nb {command} was at work" in said
    assert main([command, "r", option, "99999999"]) == 2
    assert "out of range" in capsys.readouterr().err


def test_memory_that_ends_before_the_consent(monkeypatch, capsys):
    "Counting what a run needs would open its world, whose module only its file names."
    config = catch().change({"env": "gift_world:simulus-test/Gift-v0"})
    Path("r").mkdir(), RunFolder("r").config.write_text(json.dumps(config.to_json()))
    asked = []
    monkeypatch.setattr(doctor, "infer_specs", lambda *a: asked.append(a))
    monkeypatch.setattr("simulus_nb.cli.is_whole", lambda *a: torch.zeros(2**60))
    assert main(["train", "--resume", "--out", "r"]) == 2
    assert capsys.readouterr().err.startswith("simulus-nb: out of memory (") and not asked


def test_memory_is_no_damage(monkeypatch, capsys, quick, sizes):
    """A save that does not fit into memory is whole: no older one is taken instead, and nothing is
    called damaged."""
    assert main(["train", "--out", "r", *TINY]) == 0
    monkeypatch.setattr(rehearsal, "needs", lambda *a: sizes[2])
    monkeypatch.setattr("simulus_nb.resume.load_module", lambda *a: torch.zeros(2**60))
    capsys.readouterr()
    assert main(["train", "--resume", "--steps", "90", "--out", "r"]) == 2
    said = capsys.readouterr().err
    assert "out of memory" in said and "damaged" not in said and said.count("\n") == 1


def test_no_memory_to_count(monkeypatch):
    monkeypatch.setattr(doctor, "infer_specs", lambda *a: torch.zeros(2**60))
    assert all(
        option in too_large(catch(), "m")
        for option in ("--collect.capacity", "--train-m.batch", "--train-v.batch")
    )


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="needs a limit that the system keeps"
)
def test_a_machine_that_is_too_small(tmp_path):
    "Really: so many bytes more than after the imports, and no more."
    code = (
        "import resource, sys\nfrom simulus_nb.cli import main\nsize = "
        "int(open('/proc/self/statm').read().split()[0]) * 4096 + 300 * 2**20\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size, size))\nsys.exit(main(sys.argv[1:]))"
    )
    words = ["train", "--out", "r", *TINY, "--train-m.batch", "60000"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr[-2000:]
    assert "while M learnt" in done.stderr and "--train-m.batch 60000 needs" in done.stderr


# paths

@pytest.mark.parametrize(
    "words,name",
    [
        (["train", "--out={}"], "out"), (["train", "--out", "{}"], "out"),
        (["evaluate", "{}"], "folder"), (["dream", "{}"], "folder"),
        (["bench", "--json={}"], "json"), (["doctor", "--json={}"], "json"),
        (["doctor", "--bench={}"], "bench"), (["suite", "--out={}"], "out")
    ],
)
def test_every_path_option_reads_paths_alike(words, name, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(Path("home").absolute()))
    fill = lambda path: [w.format(path) for w in words]
    assert getattr(parse(fill("~/x y")), name) == Path("home/x y").absolute()
    assert getattr(parse(fill("a/~b")), name) == Path("a/~b")
    for wrong in ("", "x" * 256, "a/" * 3000, "nul\0", "caf\udce9")[
        : 2 if words[0] == "doctor" else None
    ]:
        assert main(fill(wrong)) == 2
        said = capsys.readouterr().err
        assert (
            said.count("\n") == 1
            and said.strip().isprintable()
            and len(said) < 300
            and "Traceback" not in said
        )
    assert not list(Path(".").iterdir())


@settings(deadline=None)
@given(st.text(min_size=1, max_size=60))
def test_any_text_is_a_path_or_refused(text):
    try:
        assert isinstance(given_path([text]), Path)
    except UserError as e:
        assert "\n" not in ascii(str(e)) and len(str(e)) < 1000


def test_folders_of_long_names():
    folder = default_folder(catch().change({"env": "My" * 300}))
    assert len(folder.name) < 200 and folder.name.endswith("-seed0") and not folder.exists()


@pytest.mark.parametrize(
    "line,words",
    [
        ("suite --games --out s", "--games needs at least one"),
        ("suite --seeds", "--seeds needs at least one"), ("suite --games ''", "--games needs"),
        ("train --threads 100000", "between 0 and 1024"),
        ("train --steps x", "--steps: invalid literal"),
        ("train --resume=True", "--resume takes no value"),
        ("train --out r --resume=no --env x", "--resume takes no value")
    ],
)
def test_nothing_and_too_much(line, words, capsys):
    assert main(shlex.split(line)) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and "NoneType" not in said


# modules that only a file names

WORLD = """import gymnasium
open({mark!r}, "a").write("imported ")
gymnasium.register("simulus-test/Gift-v0", max_episode_steps=20,
                   entry_point="gymnasium.envs.classic_control.cartpole:CartPoleEnv")"""


@pytest.fixture
def gift(tmp_path, quick):
    "A run of a world of the working folder, whose module nobody has imported yet."
    mark = tmp_path / "mark"
    Path("gift_world.py").write_text(WORLD.format(mark=str(mark)))
    def forget():
        sys.modules.pop("gift_world", None), gymnasium.registry.pop("simulus-test/Gift-v0", None)
        mark.write_text("")
    assert (
        main(["train", "--env", "gift_world:simulus-test/Gift-v0", "--out", "r", *TINY]) == 0
        and mark.read_text()
    )
    forget()
    yield mark
    forget()


@pytest.mark.parametrize(
    "line,consent",
    [
        ("evaluate r --episodes 1", "--allow-import"),
        ("train --resume --out r --steps 90", "--allow-import"),
        ("train --resume --out r --steps 90", "--env gift_world:simulus-test/Gift-v0"),
        ("train --resume --out r --steps 90", "--env=gift_world:simulus-test/Gift-v0")
    ],
)
def test_a_module_that_only_a_file_names(line, consent, gift, capsys):
    path = list(sys.path)
    assert main(line.split()) == 2
    said = capsys.readouterr().err
    assert "--allow-import" in said and "'gift_world'" in said and said.count("\n") == 1
    assert gift.read_text() == "" and "gift_world" not in sys.modules
    assert main([*line.split(), *consent.split()]) == 0 and gift.read_text() == "imported "
    assert sys.path == path


@pytest.mark.parametrize("save_every", ["1", "9"])
def test_the_command_that_goes_on_has_the_consent(save_every, gift, breaks, capsys):
    breaks(KeyboardInterrupt)
    line = ["train", "--env", "gift_world:simulus-test/Gift-v0", "--out", "s", *TINY]
    assert main([*line, "--save-every", save_every]) == 130
    breaks(None)
    sys.modules.pop("gift_world"), gymnasium.registry.pop("simulus-test/Gift-v0")
    assert main(resume_words(capsys.readouterr().err)) == 0 and len(RunFolder("s").history()) == 2


def test_consent_in_python(gift):
    with pytest.raises(UserError, match="allow_import=True"):
        Trainer(None, "r", resume=True, progress=False)
    assert gift.read_text() == ""
    sys.path.append(os.getcwd())
    try:
        Trainer(None, "r", resume=True, progress=False, allow_import=True)
    finally:
        sys.path.remove(os.getcwd())
    assert gift.read_text() == "imported "
    Trainer(None, "r", resume=True, progress=False)             # has run already


@pytest.mark.parametrize(
    "env", ["CartPole-v1", "ALE/Pong-v5", "python:Mine-v0", "gymnasium:CartPole-v1"]
)
def test_what_needs_no_consent(env):
    ask_first(env)


def test_typed_words():
    argv = ["suite", "--games", "a:B-v0", "Pong", "--seeds", "3", "--out=x"]
    assert (
        typed(argv, "--games") == ["a:B-v0", "Pong"]
        and typed(argv, "--out") == ["x"]
        and typed(argv, "--env") == []
    )
    assert (
        parse(["train", "--env", "a:B-v0"]).allow_import
        and not parse(["train"]).config.env == "a:B-v0"
    )


@pytest.mark.parametrize(
    "start", [["-m", "simulus_nb.cli"], ["-c", ENTRY]], ids=["python -m", "suite"]
)
def test_files_of_the_working_folder_do_not_run(start, tmp_path):
    for name in (
        "torch", "signal", "json", "imageio", "gymnasium", "tyro", "numpy", "argparse", "lpips"
    ):
        Path(f"{name}.py").write_text(
            "open('mark', 'a').write(__name__)\nraise SystemExit('a stranger')"
        )
    done = subprocess.run(
        [sys.executable, *start, "evaluate", "."], capture_output=True, text=True, timeout=120
    )
    assert (
        done.returncode == 2
        and done.stderr == "simulus-nb: . holds no run: there is no config.json in it\n"
    ), done.stderr
    assert not Path("mark").exists()


# signals

@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_every_polite_signal_saves(number, monkeypatch, capsys, quick):
    learn, number = STAGES["c"], getattr(signal, number)
    def learn_c(state):
        os.kill(os.getpid(), number)
        return learn(state)
    monkeypatch.setitem(STAGES, "c", learn_c)
    before = signal.getsignal(number)
    assert (
        main(["train", "--out", "r", *TINY, "--save-every", "9"]) == 0
        and signal.getsignal(number) is before
    )
    assert (
        "stopped; continue from the last checkpoint" in capsys.readouterr().out
        and not RunFolder("r").history()
    )


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_nohup_is_heard(monkeypatch, quick):
    learn = STAGES["c"]
    monkeypatch.setitem(
        STAGES, "c", lambda state: os.kill(os.getpid(), signal.SIGHUP) or learn(state)
    )
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(["train", "--out", "r", *TINY]) == 0 and len(RunFolder("r").history()) == 2
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(os.name != "posix", reason="needs signals")
def test_ctrl_c_during_the_imports():
    code = (
        "import os, signal, sys, threading, simulus_nb\nthreading.Timer(0.2, lambda: "
        "os.kill(os.getpid(), signal.SIGINT)).start()\nsys.exit(simulus_nb.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "train"], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "simulus-nb: interrupted\n")
