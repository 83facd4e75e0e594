"""The command: options from settings, the four commands on a tiny run, resuming, and every mistake
as one line with its exit code."""
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import gymnasium
import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from gymnasium import spaces as gs

from simulus_nb.accelerate import has_bfloat16
from simulus_nb.agent import Agent
from simulus_nb.cli import EvaluateCommand, json_object, main, parse, starting_point
from simulus_nb.config import PRESETS, Config, atari_smoke, catch, differences, flat, preset
from simulus_nb.evaluate import Evaluation
from simulus_nb.loop import make_agent
from simulus_nb.recorder import Recorder, film_episode
from simulus_nb.run_folder import RunFolder
from simulus_nb.run_setup import infer_specs
from simulus_nb.spaces import UserError
from simulus_nb.terminal import one_line, score_text
from simulus_nb.trainer import Trainer

TINY = shlex.split("""--save-every 1 --collect.steps 30 --collect.capacity 300
  --tokenizer.image.code-dim 8 --tokenizer.image.vocab 16 --world-model.retnet.width 16
  --world-model.retnet.heads 2 --world-model.retnet.layers 1 --controller.width 16
  --controller.channels 4 4 --train-v.batch 4 --train-v.steps 2 --train-v.start 0
  --train-m.lr 0.001 --train-m.batch 4 --train-m.steps 2 --train-m.start 0 --train-c.batch 4
  --train-c.steps 2 --train-c.start 0 --evaluation.episodes 3 --evaluation.num-envs 2
  --evaluation.every 0 --threads 1 --device cpu""")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A finished run of two epochs."
    folder = tmp_path_factory.mktemp("cli") / "a run"
    assert main(["train", "--out", str(folder), "--epochs", "2", *TINY]) == 0
    return folder


@pytest.fixture
def quick(monkeypatch):
    "No pictures at the end of a run."
    monkeypatch.setattr("simulus_nb.trainer.dream_media", lambda *a, **k: {})
    monkeypatch.setattr(
        "simulus_nb.trainer.finish", lambda self: setattr(self, "result", self.evaluate()) or self
    )


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def metrics(folder):
    return [
        {k: v for k, v in r.items() if not k.startswith("seconds")}
        for r in RunFolder(folder).history()
    ]


def contents(folder):
    "Bytes of every file but those that evaluate and dream are there to write."
    return {
        p: p.read_bytes()
        for p in Path(folder).rglob("*")
        if p.name != "run.lock"
        and p.is_file()
        and p.parent.name != "media"
        and not p.name.startswith("evaluation")
    }


# options

def option(name):
    return "--" + name.replace("_", "-")


def test_every_setting_is_an_option():
    other, argv = {}, ["train"]
    for name, value in flat(catch()).items():
        argv.append(option(name))
        if isinstance(value, bool):
            group, dot, last = option(name).rpartition(".")
            argv[-1] = f"{group}{dot}no-{last}" if value else option(name)
            other[name] = not value
        elif name == "env_options":
            other[name] = {"rows": 8, "look": "paper"}
            argv.append(json.dumps(other[name]))
        elif name == "obs_kinds":
            other[name] = {"a/b": "drop", "c": "vector"}
            argv += ["a/b", "drop", "c", "vector"]
        elif name.endswith("_mean"):
            other[name] = "raw"
            argv.append("raw")
        elif isinstance(value, tuple):
            other[name] = tuple(x * 2 for x in value)
            argv += [str(x) for x in other[name]]
        elif isinstance(value, str):
            other[name] = {
                "device": "cpu", "precision": "bfloat16", "log": "trackio",
                "tokenizer.image.quantiser": "vq-gradient", "world_model.sequence": "attention",
                "controller.value": "number"
            }.get(name, "random")
            argv.append(other[name])
        else:
            other[name] = value + 2 if isinstance(value, int) else value / 2 + 0.01
            if name in (
                "tokenizer.image.image_size", "tokenizer.image.channels", "world_model.retnet.width"
            ):
                other[name] = value * 6
            if name.endswith(("norm_groups", "heads")):
                other[name] = 2 if name == "curiosity.heads" else 1
            if name.endswith("stages"):
                other[name] = value - 1
            argv.append(str(other[name]))
    given = {n: v[1] for n, v in differences(catch(), parse(argv).config).items()}
    assert given == {n: v for n, v in other.items() if v != flat(catch())[n]} and len(given) > 65


def test_what_a_run_was_made_with_can_be_given_again(tmp_path):
    "Also where the setting has no names of its own: how observations are read."
    made = catch().change({"obs_kinds": {"a/b": "drop"}})
    (tmp_path / "config.json").write_text(json.dumps(made.to_json()))
    words = ["train", "--resume", "--out", str(tmp_path)]
    assert parse(words).config.obs_kinds == {"a/b": "drop"}
    again = ["--obs-kinds", "a/b", "drop", "c", "vector"]
    assert parse([*words, "--obs-kinds", "a/b", "drop"]).config == made
    with pytest.raises(UserError, match="leave the option out"):
        parse(words + again)
    with pytest.raises(UserError, match="--obs-kinds: words in pairs") as error:
        parse([*words, "--obs-kinds", "c"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["catch", "atari100k"])
def test_help_lists_every_setting_with_the_preset_s_default(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["train", "--preset", name, "--help"]) == 0
    text = capsys.readouterr().out
    squeezed = " ".join(text.replace("│", " ").replace("|", " ").split())
    for setting, value in flat(preset(name)).items():
        assert option(setting) in text or option(setting).replace("shared", "no-shared") in text
    assert (
        f"AdamW weight decay of weight matrices (default: {preset(name).train_m.weight_decay})"
        in squeezed
    )
    assert (
        f"AdamW weight decay of all parameters (default: {preset(name).train_c.weight_decay})"
        in squeezed
    )
    assert f"Gymnasium id (default: {preset(name).env})" in squeezed
    assert f"updates per epoch (default: {preset(name).train_c.steps})" in squeezed


def test_where_defaults_come_from():
    assert parse(["train"]).config == catch() == parse(["bench"]).config
    assert (
        starting_point(["train", "--env", "ALE/Boxing-v5"])
        == starting_point(["--env=ALE/Boxing-v5"])
        == preset("atari100k")
    )
    assert parse(["train", "--env", "ALE/Boxing-v5"]).config == preset("atari100k").change(
        {"env": "ALE/Boxing-v5"}
    )
    assert parse(["train", "--env", "Acrobot-v1"]).config == preset("small").change(
        {"env": "Acrobot-v1"}
    )
    assert parse(["train", "--env", "MinAtar/Asterix-v1"]).config == preset("minatar").change(
        {"env": "MinAtar/Asterix-v1"}
    )
    assert parse(["train", "--obs-kinds", "a", "drop", "b/c", "vector"]).config.obs_kinds == {
        "a": "drop", "b/c": "vector"
    }
    for name in PRESETS:
        assert (
            parse(["train", "--preset", name]).config
            == preset(name)
            == parse(["bench", f"--preset={name}"]).config
        )
    assert parse(["train", "--preset", "catch", "--env", "ALE/Boxing-v5"]).config == catch().change(
        {"env": "ALE/Boxing-v5"}
    )
    assert starting_point(["train", "--env-options", '{"env": "ALE/x"}']) == catch()
    assert parse(["train", "--seed", "3"]).folder == Path("runs/simulus-Catch-v0-seed3")


def test_json_option():
    assert json_object(['{"a": [1, null]}']) == {"a": [1, None]}
    for wrong in ("3", "[1]", "rows=8", "{", '"x"'):
        with pytest.raises(ValueError, match="is no JSON object"):
            json_object([wrong])


# train

def test_train_leaves_a_run_folder(run):
    assert {p.name.split(".tfevents")[0] for p in run.iterdir()} == {
        "config.json", "metrics.jsonl", "evaluation.json", "manifest.json", "checkpoint", "media",
        "events.out", "run.lock"
    }
    assert (run / "media" / "curves.png").stat().st_size > 1000 and (
        run / "media" / "dream.mp4"
    ).stat().st_size > 1000
    manifest = json.loads((run / "manifest.json").read_text())
    assert shlex.split(manifest["command"]) == [
        "simulus-nb", "train", "--out", str(run), "--epochs", "2", *TINY
    ]
    assert (
        len(RunFolder(run).history()) == 2
        and RunFolder(run).read_config() == parse(["train", "--epochs", "2", *TINY]).config
    )


def test_summary(quick, capsys):
    assert main(["train", "--out", "r", "--epochs", "1", *TINY]) == 0
    out = capsys.readouterr().out
    assert (
        "simulus/Catch-v0 on cpu, 1 epochs: 30 environment steps, updates: 2 of V, 2 of M, 2 of C; "
        "evaluations: one of 3 at the end; everything goes to r"
        in out
    )
    assert "over 3 episodes" in out and "r/metrics.jsonl" in out and "r/checkpoint" in out


def test_call_equals_command(run, quick):
    config = parse(["train", "--epochs", "2", *TINY]).config
    Trainer(config, "call", progress=False).train()
    assert metrics("call") == metrics(run)
    Trainer(config.change({"seed": 1}), "other", progress=False).train()
    assert metrics("other") != metrics(run)


def test_default_folder(quick):
    assert main(["train", "--epochs", "1", "--seed", "7", *TINY]) == 0
    assert (Path("runs") / "simulus-Catch-v0-seed7" / "config.json").exists()
    assert main(["train", "--epochs", "2", "--seed", "7", "--resume"]) == 0
    assert len(metrics("runs/simulus-Catch-v0-seed7")) == 2


# resume

def test_resumed_run_equals_uninterrupted_one(run, quick):
    assert main(["train", "--out", "r", "--epochs", "1", *TINY]) == 0
    assert main(["train", "--out", "r", "--resume", "--epochs", "2"]) == 0
    assert (
        metrics("r") == metrics(run)
        and RunFolder("r").read_config() == RunFolder(run).read_config()
    )
    a, b = Agent.load("r").state_dict(), Agent.load(run).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in b)


def test_resume_repeats_or_refuses_settings(run, quick, capsys):
    before = contents(run)
    for line, words in {
        "--train-m.lr 0.5": "train_m.lr is 0.001 there, not 0.5",
        "--preset rem": "env is simulus/Catch-v0 there", "--seed 4": "seed is 0 there",
        "--epochs 1": "60 environment steps behind it"
    }.items():
        capsys.readouterr()
        assert main(["train", "--out", str(run), "--resume", *line.split()]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    assert contents(run) == before
    # the old command, repeated
    same = parse(["train", "--out", str(run), "--resume", "--epochs", "2", *TINY])
    assert (
        same.config
        == parse(["train", "--preset", "catch", "--out", str(run), "--resume", *TINY]).config
        == RunFolder(run).read_config()
    )


def test_resume_begins_a_run_where_there_is_none(quick, capsys):
    """So that one line in a job script begins, continues and ends a run; a line that does not say
    what to train is a mistake."""
    line = ["train", "--resume", "--out", "r", "--epochs", "1", *TINY]
    assert main(line) == 0 and len(metrics("r")) == 1
    for unsaid in (["--resume"], ["--resume", "--epochs", "2"]):
        assert main(["train", *unsaid, "--out", "other"]) == 2 and not Path("other").exists()
        assert "other holds no run" in capsys.readouterr().err
    before = metrics("r")
    assert main(line) == 0 and metrics("r") == before


def test_settings_without_a_checkpoint_begin_again(run, quick):
    Path("r").mkdir()
    Path("r/config.json").write_text((run / "config.json").read_text())
    # killed after its first epoch, before the first save
    Path("r/metrics.jsonl").write_text(
        (run / "metrics.jsonl").read_text().splitlines(keepends=True)[0]
    )
    assert main(["train", "--resume", "--out", "r"]) == 0
    assert metrics("r") == metrics(run)


@pytest.mark.parametrize(
    "save_every,words",
    [
        (1, "continue from the last checkpoint with: simulus-nb train --resume --out 'my run'"),
        (
            9,
            "nothing was saved yet (see --save-every); begin again with: "
            "simulus-nb train --resume --out 'my run'"
        ),
    ],
)
def test_interruption(save_every, words, breaks, capsys, quick):
    breaks(KeyboardInterrupt)
    assert (
        main(["train", "--out", "my run", "--epochs", "2", *TINY, "--save-every", str(save_every)])
        == 130
    )
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    breaks(None)


def test_interruption_elsewhere(monkeypatch, capsys):
    def stop(self, command):
        raise KeyboardInterrupt
    monkeypatch.setattr(EvaluateCommand, "run", stop)
    assert main(["evaluate", "x"]) == 130
    assert capsys.readouterr().err == "simulus-nb: interrupted\n"


# evaluate, dream, bench

def test_evaluate(run, capsys):
    trained = json.loads((run / "evaluation.json").read_text())
    before = contents(run)
    assert main(["evaluate", str(run)]) == 0
    again = json.loads((run / "evaluation.json").read_text())
    # the evaluation after training, repeated
    assert again["returns"] == trained["returns"] and again["lengths"] == trained["lengths"]
    assert (
        main(
            [
                "evaluate", str(run), "--episodes", "5", "--seed", "3", "--temperature", "0",
                "--device", "cpu"
            ]
        )
        == 0
    )
    assert json.loads((run / "evaluation.json").read_text()) == again   # the run's own result stays
    other = json.loads((run / "evaluation-5-episodes-temperature-0-seed-3.json").read_text())
    assert (other["episodes"], other["seed"], other["temperature"]) == (5, 3, 0) and len(
        other["returns"]
    ) == 5
    assert (
        f"return {other['mean']:.2f} ± {other['sem']:.2f} over 5 episodes"
        in capsys.readouterr().out
    )
    assert len(imageio.mimread(run / "media" / "episode.mp4")) == 10
    assert contents(run) == before


def test_dream(run):
    before = contents(run)
    for name in ("dream.png", "dream.mp4"):
        (run / "media" / name).unlink(missing_ok=True)
    assert main(["dream", str(run), "--horizon", "4"]) == 0
    assert (run / "media" / "dream.png").exists() and len(
        imageio.mimread(run / "media" / "dream.mp4")
    ) > 4
    assert contents(run) == before


def test_film_of_atari_and_of_a_world_without_pictures():
    config = atari_smoke()
    agent = make_agent(config, *infer_specs(config)).eval()
    assert film_episode(agent, config, Path("pong.mp4"), 1.0, seed=0, max_steps=6) is None
    frames = imageio.mimread("pong.mp4")
    assert len(frames) == 7 and frames[0].shape[0] >= 210
    class Blind(gymnasium.Env):
        observation_space, action_space = gs.Box(-1, 1, (2,), np.float32), gs.Discrete(2)
    gymnasium.register("simulus-test/Blind-v0", entry_point=lambda **k: Blind())
    assert "draws nothing" in film_episode(
        None, catch().change({"env": "simulus-test/Blind-v0"}), Path("blind.mp4"), 1.0, 0
    )


def test_a_world_that_cannot_be_drawn_here_is_still_evaluated(run, capsys, monkeypatch):
    """A renderer that fails (no package, no display) costs the film, not the score, and shows no
    traceback."""
    def broken(self):
        raise RuntimeError("no display\nfound")
    monkeypatch.setattr(gymnasium.Wrapper, "render", broken)
    (run / "media" / "episode.mp4").unlink(missing_ok=True)
    assert main(["evaluate", str(run), "--episodes", "2", "--seed", "9"]) == 0
    said = capsys.readouterr()
    assert (
        "over 2 episodes" in said.out
        and "no film (RuntimeError: no display found)" in said.out
        and "Traceback" not in said.err
    )
    assert not (run / "media" / "episode.mp4").exists()


def test_a_closed_pipe_shows_no_traceback():
    "`simulus-nb ... --help | head -1`: the reader leaves before all is said."
    line = (
        f"{shlex.quote(sys.executable)} -c 'import sys; from simulus_nb.cli import main; "
        "sys.exit(main())' train --help | head -n 1"
    )
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120)
    assert (
        done.stdout.count("\n") == 1
        and "Traceback" not in done.stderr
        and "BrokenPipe" not in done.stderr
    )


def test_recorder_changes_nothing():
    plain, filmed = (gymnasium.make("simulus/Catch-v0", render_mode="rgb_array") for _ in range(2))
    filmed = Recorder(filmed)
    assert np.array_equal(plain.reset(seed=1)[0], filmed.reset(seed=1)[0])
    for action in (0, 1, 2):
        a, b = plain.step(action), filmed.step(action)
        assert np.array_equal(a[0], b[0]) and a[1:4] == b[1:4]
    assert len(filmed.frames) == 4


def test_bench(capsys):
    assert main(["bench", "--repeats", "1", "--json", "b.json", *TINY]) == 0
    found, out = json.loads(Path("b.json").read_text()), capsys.readouterr().out
    assert (
        set(found["seconds"])
        == {
            "world", "play", "encode", "V", "M", "C", "batch of V", "batch of M", "batch of C",
            "dream", "one by one"
        }
        and min(found["seconds"].values()) > 0
    )
    assert found["run_seconds"] == pytest.approx(
        sum(n * found["seconds"][k] for k, n in found["count"].items())
    )
    assert found["count"]["V"] == 2 * catch().epochs and "a whole run on cpu: about" in out
    assert Config.from_json(found["config"]) == parse(["bench", *TINY]).config


def test_bench_compares(capsys):
    assert main(["bench", "--repeats", "1", "--compare", "--json", "b.json", *TINY]) == 0
    found, out = json.loads(Path("b.json").read_text())["variants"], capsys.readouterr().out
    low = ["bfloat16"] * has_bfloat16(torch.device("cpu"))      # only where it is not slower
    assert list(found) == ["float32", *low] and all(name in out for name in found)
    assert all(f["config"]["precision"] == name for name, f in found.items())


def test_records_of_runs_do_not_replace_each_other(run, tmp_path, capsys, quick):
    line = ["train", "--out", "longer", "--epochs", "3", *TINY]
    assert main(line) == 0
    Path("longer/manifest.json").write_text((run / "manifest.json").read_text())
    RunFolder("longer").write(
        Path("longer/evaluation.json"), Evaluation((1.0, 0.5), (9, 9)).to_json())
    kept = tmp_path / "out" / "simulus-Catch-v0-ours-seed0.json"
    capsys.readouterr()
    assert main(["record", str(run), "longer", "--out", "out"]) == 2 and not kept.exists()
    assert "and longer would both become out/" in capsys.readouterr().err
    assert main(["record", str(run), "--out", "out", "--list"]) == 0
    assert f"{run}: missing; out/" in capsys.readouterr().out
    assert main(["record", str(run), "--out", "out"]) == 0
    before = kept.read_bytes()
    assert main(["record", "longer", "--out", "out"]) == 2 and kept.read_bytes() == before
    error = capsys.readouterr().err
    assert "another run's record" in error and "--again" in error and error.count("\n") == 1
    assert main(["record", str(run), "longer", "--out", "out", "--list"]) == 2      # as to record
    for name, state in ((str(run), "there"), ("longer", "another run's")):
        capsys.readouterr()
        assert main(["record", name, "--out", "out", "--list"]) == 0
        assert capsys.readouterr().out.startswith(f"{name}: {state}; out/")
    assert main(["record", "longer", "--out", "out", "--again"]) == 0
    assert kept.read_bytes() != before


def test_a_run_that_never_learns_is_told(quick, capsys):
    late = [*TINY, "--train-c.start", "3", "--train-m.start", "1"]
    assert main(["train", "--out", "r", "--steps", "31", *late]) == 0
    assert capsys.readouterr().err == (
        "simulus-nb: C never learns: train_c.start = 3 comes after the last of 2 epochs; "
        "give --steps 91 or --epochs 4, or more\n")
    assert main(["train", "--out", "enough", "--steps", "91", *late]) == 0
    assert capsys.readouterr().err == "" and metrics("enough")[-1]["c/critic"]


# mistakes

def fails(argv, words, capsys):
    capsys.readouterr()
    before = set(Path().rglob("*"))
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("simulus-nb: ") and error.count("\n") == 1, error
    # nothing left behind
    assert {p for p in Path().rglob("*") if p.name != "run.lock"} == {
        p for p in before if p.name != "run.lock"
    }


@pytest.mark.parametrize(
    "line,words",
    [
        ("", "train, evaluate, dream, bench"),
        ("watch", "available subcommands: train, evaluate, dream, bench"),
        ("train --epoch 3", "perhaps you meant --epochs"),
        ("train --epochs many", "--epochs"),
        ("train --epochs", "--epochs"),
        ("train --epochs 0", "epochs = 0 is out of range: it must be at least 1"),
        (
            "train --collect.epsilon 2",
            "collect.epsilon = 2.0 is out of range: it must be between 0 and 1"
        ),
        ("train --tokenizer.image.vocab 1", "vocab must be at least 2"),
        (
            "train --world-model.retnet.width 66 --world-model.retnet.heads 4",
            "width must be a multiple of"
        ),
        ("train --train-m.context 99", "train_m.context = 99"),
        ("train --preset atari", "unknown preset 'atari'"),
        ("train --device gpu", "'auto', 'cpu', 'cuda', 'mps'"),
        ("train --env Nowhere-v3", "there is no environment 'Nowhere-v3'"),
        ("train --env ALE/Pung-v5 --preset atari-smoke", "did you mean ALE/Pong-v5"),
        ("train --env-options [1]", "is no JSON object"),
        ("train --env-options '{\"heigth\": 3}'", "does not take these options"),
        (
            "train --tokenizer.image.perceptual nowhere.pth",
            "no perceptual weights at 'nowhere.pth'"
        ),
        ("train --resume", "holds no run"),
        ("train --resume --out nowhere", "nowhere holds no run"),
        ("evaluate", "RUN"),
        ("evaluate nowhere", "nowhere holds no run"),
        ("dream nowhere", "nowhere holds no run"),
        ("evaluate nowhere --episodes 0", "episodes = 0"),
        ("evaluate nowhere --temperature -0.5", "temperature = -0.5"),
        ("dream nowhere --horizon 0", "horizon = 0"),
        ("bench --repeats 0", "repeats = 0"),
        ("bench --json nowhere/b.json", "cannot write nowhere/b.json"),
    ],
)
def test_mistakes(line, words, capsys):
    fails(shlex.split(line), words, capsys)


def test_missing_device(capsys):
    missing = next(
        (
            d
            for d, there in (
                ("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())
            )
            if not there
        )
    )
    fails(["train", "--device", missing], f"device '{missing}' is not available", capsys)
    fails(["evaluate", "x", "--device", missing], f"device '{missing}' is not available", capsys)


def test_missing_extra(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "minatar.gym", None)           # as if it were not installed
    fails(["train", "--env", "MinAtar/Breakout-v1"], 'pip install "simulus-nb[minatar]"', capsys)


def test_space_without_tokens(capsys):
    class Talk(gymnasium.Env):
        observation_space, action_space = gs.Text(5), gs.Discrete(2)
    gymnasium.register("simulus-test/Talk-v0", entry_point=lambda **k: Talk())
    fails(["train", "--env", "simulus-test/Talk-v0"], "Text spaces have no tokens", capsys)


def test_folder_that_holds_a_run(run, capsys):
    before = contents(run)
    fails(
        ["train", "--out", str(run), *TINY], "already holds a run: continue it with --resume",
        capsys
    )
    assert contents(run) == before


def test_folder_that_cannot_be_written(capsys):
    Path("file").write_text("x")
    fails(["train", "--out", "file/run", *TINY], "cannot write to file/run", capsys)
    fails(["evaluate", "file"], "file holds no run", capsys)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_forbidden_folder(capsys):
    Path("locked").mkdir(mode=0o500)
    fails(["train", "--out", "locked/run", *TINY], "cannot write to locked/run", capsys)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_full_disk(capsys, quick, monkeypatch):
    def full(path, *args, **kwargs):
        return open("/dev/full" if Path(path).name == "metrics.jsonl" else path, *args, **kwargs)

    monkeypatch.setattr("simulus_nb.run_log.open", full, raising=False)
    assert main(["train", "--out", "r", "--epochs", "1", *TINY]) == 2
    assert "No space left on device; free some space" in capsys.readouterr().err


def test_damaged_run(run, capsys):
    config = (run / "config.json").read_text()
    for name, text, words in (
        ("cut", config[:50], "is damaged"), ("list", "[]", "object"),
        ("typo", '{"epoch": 3}', "unknown field epoch"),
        ("type", '{"epochs": "3"}', "epochs must be"), ("none", config, "no checkpoint")
    ):
        Path(name).mkdir()
        Path(name, "config.json").write_text(text)
        fails(["evaluate", name], words, capsys)
        if name != "none":                      # that one was stopped before its first checkpoint
            fails(["train", "--resume", "--out", name], words, capsys)
    bad = Path("bad/checkpoint/save-00000001")
    bad.mkdir(parents=True)
    (bad / "manifest.json").write_text("{")
    Path("bad/config.json").write_text(config)
    for line in (["evaluate", "bad"], ["dream", "bad"], ["train", "--resume", "--out", "bad"]):
        fails(line, "manifest.json is not readable", capsys)


def test_what_nobody_foresaw_is_shown(monkeypatch):
    def surprise(self, command):
        raise RuntimeError("a bug")
    monkeypatch.setattr(EvaluateCommand, "run", surprise)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["evaluate", "x"])
    monkeypatch.setattr(
        EvaluateCommand, "run",
        lambda self, command: (_ for _ in ()).throw(OSError(5, "Input/output error"))
    )
    with pytest.raises(OSError):
        main(["evaluate", "x"])


def test_as_a_program():
    code = "import sys; from simulus_nb.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "train", "--epochs", "x"], capture_output=True, text=True,
        timeout=120
    )
    assert (
        done.returncode == 2
        and done.stderr.strip().splitlines()[-1].startswith("simulus-nb: --epochs")
        and "Traceback" not in done.stderr
        and not done.stdout
    )


def test_one_line_of_either_kind_of_box():
    unicode = (
        "╭─ Value error ─────╮\n│ Error parsing __tyro-dummy-inner__.config.a.b: "
        "c must be\n│ 1 │\n│ ───── │\n│ For full helptext, see x │\n╰─────╯\n"
    )
    plain = (
        " Value error \n -------- \n  Error parsing --a.b: c must be\n  1  \n  ------ \n  For full "
        "helptext, see x\n"
    )
    coloured = unicode.replace("Value", "\x1b[31mValue\x1b[0m")
    assert one_line(unicode) == one_line(plain) == one_line(coloured) == "--a.b: c must be 1"


def test_score_text():
    assert score_text("simulus/Catch-v0", Evaluation((1.0,), (9,))) == "return 1.00 over 1 episodes"
    assert score_text("ALE/Pong-v5", Evaluation((-20.7, 14.6), (1, 1))).endswith(
        "human-normalised 0.500"
    )
    assert "human" not in score_text("ALE/Adventure-v5", Evaluation((1.0, 2.0), (1, 1)))


def test_user_error_of_several_lines_is_one_line(monkeypatch, capsys):
    def wrong(self, command):
        raise UserError("first\n   second")
    monkeypatch.setattr(EvaluateCommand, "run", wrong)
    assert main(["evaluate", "x"]) == 2
    assert capsys.readouterr().err == "simulus-nb: first second\n"
