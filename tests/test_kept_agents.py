"""Trained agents without their runs: equal to what the run had, small, refused where a run is
needed, and those that come with the book are the ones their rows tell of."""
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_tasks import TINY, needed

from simulus_nb import kept, tasks
from simulus_nb.agent import Agent
from simulus_nb.checkpoint import load_checkpoint, save_checkpoint
from simulus_nb.cli import main, parse
from simulus_nb.evaluate import evaluate
from simulus_nb.kept import kept_agents, read_kept
from simulus_nb.records import IDLE, read_record
from simulus_nb.run_folder import RunFolder, is_kept
from simulus_nb.run_setup import makers_of
from simulus_nb.spaces import UserError
from simulus_nb.tasks import EPISODES, TASKS, of_today, outdated, planned, records_of, rows_of
from simulus_nb.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
ROWS, SHELF = ROOT / "nbs" / "results" / "tasks", ROOT / "nbs" / "agents"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A folder with a finished run, `run`, and its agent, `kept/run`."
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "EPISODES", 3)
        config = replace(TASKS["catch"], steps=72, changes=TINY).config(4)
    Trainer(config, folder / "run", progress=False, command="simulus-nb train").train()
    words = ["record", str(folder / "run"), "--out", str(folder / "rows")]
    assert main([*words, "--agents", str(folder / "kept")]) == 0
    return folder


@pytest.fixture
def agent(made, tmp_path):
    "A copy of that agent."
    return Path(shutil.copytree(made / "kept" / "run", tmp_path / "agent"))


@pytest.fixture
def small(monkeypatch):
    "Catch, as short as it can be."
    monkeypatch.setitem(TASKS, "catch", replace(TASKS["catch"], steps=72, changes=TINY))
    monkeypatch.setattr(tasks, "EPISODES", 3)
    monkeypatch.setattr(tasks, "INTERIM", 2)


def weights(folder):
    return load_checkpoint(folder / "checkpoint", ("agent",)).tensors["agent"]


def equal(a, b):
    "Bit for bit, of the same types."
    bits = lambda x: (x.dtype, x.shape, x.numpy().tobytes())
    return a.keys() == b.keys() and all(bits(a[k]) == bits(b[k]) for k in a)


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def size(folder):
    return sum(len(x) for x in content(folder).values())


def record(folder, *words, seed=10):
    "Exit code of recording Catch, and keeping its agent."
    out = ["--out", str(folder / "rows"), "--agents", str(folder / "kept")]
    return main(["record", "catch", "--player", "ours", "--seeds", str(seed), *out, *words])


# ---------------------------------------------------------------- what is kept

def test_the_weights_are_those_of_the_run(made):
    run, agent = weights(made / "run"), weights(made / "kept" / "run")
    assert equal(run, agent)
    assert {x.dtype for x in agent.values() if x.is_floating_point()} == {torch.float32}
    loaded = Agent.load(made / "kept" / "run").state_dict()
    assert equal(loaded, Agent.load(made / "run").state_dict())


def test_nothing_else_of_the_run_is_kept(made):
    "No replay, optimiser or random state, and so a fraction of the size."
    there = {str(path) for path in content(made / "kept" / "run")}
    save = "checkpoint/save-00000001/"
    assert there == {
        "config.json", "manifest.json", "evaluation.json", "checkpoint/LATEST",
        f"{save}agent.safetensors", f"{save}meta.json", f"{save}manifest.json"
    }
    assert {"replay", "random"} < load_checkpoint(made / "run" / "checkpoint").tensors.keys()
    assert 4 * size(made / "kept" / "run") < size(made / "run")
    assert is_kept(made / "kept" / "run") and not is_kept(made / "run")


def test_it_says_what_made_it(made):
    run, agent = RunFolder(made / "run"), read_kept(made / "kept" / "run")
    assert agent.config == run.read_config()
    assert agent.result.to_json() == json.loads(run.evaluation.read_text())
    manifest = json.loads(run.manifest.read_text())
    assert {k: agent.facts[k] for k in manifest} == manifest
    row = read_record(next((made / "rows").glob("*.json")))
    assert agent.facts["digest"] == row.digest and agent.facts["date"] == row.date
    assert agent.facts["player"] == "ours"


@pytest.mark.parametrize("options", [[], ["--episodes", "5", "--temperature", "1", "--seed", "7"]])
def test_equal_seeds_are_equal_games(made, agent, options):
    "And what was kept is not replaced: the report has a name of its own."
    before, reports = content(agent), []
    for folder in (made / "run", agent):
        old = {*folder.glob("*.json")}
        assert main(["evaluate", str(folder), *options, "--device", "cpu"]) == 0
        new = {*folder.glob("*.json")} - old or {folder / "evaluation.json"}
        reports.append(json.loads(new.pop().read_text()))
    assert reports[0]["returns"] == reports[1]["returns"]
    assert reports[0]["lengths"] == reports[1]["lengths"]
    assert before.items() <= content(agent).items()


def test_it_plays_and_is_exported(agent, tmp_path):
    game = parse(["play", str(agent), "--port", "0"]).game()
    game.session.env.close()
    assert main(["export", str(agent), "--onnx", str(tmp_path / "onnx"), "--steps", "2"]) == 0


# ---------------------------------------------------------------- what it lacks

@pytest.mark.parametrize("words,lacks", {
    "dream {}": "replay buffer", "inspect {}": "replay buffer",
    "train --resume --out {}": "training goes on from", "train --out {}": "would be lost",
    "train --resume --steps 500 --out {}": "training goes on from", "record {}": "curve",
    "evaluate {} --which best": "interim evaluations", "dream {} --which best": "interim"
}.items())
def test_what_needs_a_run_says_so_in_one_line(agent, words, lacks, capsys, monkeypatch):
    monkeypatch.chdir(agent.parent)
    before = content(agent.parent)
    assert main(words.format(agent.name).split()) == 2
    line, = capsys.readouterr().err.strip().splitlines()
    assert lacks in line and "agent" in line and "damaged" not in line
    assert ("--out DIR" in line) == (lacks != "would be lost")
    assert content(agent.parent) == before


def test_python_is_told_too(agent):
    with pytest.raises(UserError, match="is a kept agent"):
        Trainer(None, agent, resume=True, progress=False)


def test_what_the_line_says_makes_the_same_agent(made, agent, tmp_path):
    run = tmp_path / "DIR"
    run.mkdir()
    shutil.copy(agent / "config.json", run)
    assert main(["train", "--resume", "--out", str(run)]) == 0
    assert equal(weights(run), weights(agent)) and not is_kept(run)
    assert RunFolder(run).history()


# ---------------------------------------------------------------- damage

def forged(agent, change):
    "Other weights, with all checksums right."
    found = load_checkpoint(agent / "checkpoint")
    shutil.rmtree(agent / "checkpoint")
    save_checkpoint(agent / "checkpoint", {"agent": change(found.tensors["agent"])}, found.meta)


def spoil(agent, how):
    file = agent / "checkpoint" / "save-00000001" / "agent.safetensors"
    some = "controller.critic.weight"
    if how == "a bit":
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif how == "gone":
        file.unlink()
    elif how == "not finite":
        forged(agent, lambda w: w | {some: torch.full_like(w[some], torch.nan)})
    elif how == "other shapes":
        forged(agent, lambda w: w | {some: w[some][:, :-1].contiguous()})
    elif how == "other numbers":
        forged(agent, lambda w: w | {some: w[some].double()})
    elif how == "missing":
        forged(agent, lambda w: {k: x for k, x in w.items() if k != some})
    elif how == "other settings":
        config = RunFolder(agent).read_config().change({"train_m.lr": 0.5})
        (agent / "config.json").write_text(json.dumps(config.to_json()))


@pytest.mark.parametrize("how", ["a bit", "cut", "gone", "not finite", "other shapes",
                                 "other numbers", "missing", "other settings"])
def test_damage_is_noticed(agent, how, capsys):
    spoil(agent, how)
    assert main(["evaluate", str(agent)]) == 2
    line, = capsys.readouterr().err.strip().splitlines()
    assert agent.name in line
    if how != "other settings":                         # of which a lone agent knows nothing
        with pytest.raises(UserError):
            Agent.load(agent)


def test_a_folder_that_is_none_is_named(agent, made):
    (agent / "evaluation.json").write_text("{}")
    with pytest.raises(UserError, match="no scores"):
        read_kept(agent)
    for folder in (made / "run", made):
        with pytest.raises(UserError, match="no kept agent"):
            read_kept(folder)
    assert kept_agents(made / "nowhere") == []


def test_an_agent_is_replaced_as_a_whole(agent, monkeypatch):
    "Whatever fails, the old one stays, and nothing is left beside it."
    old, before = read_kept(agent), content(agent.parent)
    again = lambda: kept.keep_agent(agent, old.config, weights(agent), meta, old.result, {"x": 1})
    meta = load_checkpoint(agent / "checkpoint", ()).meta
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "write", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            again()
    assert content(agent.parent) == before
    again()
    assert read_kept(agent).facts == {"x": 1} and [*agent.parent.iterdir()] == [agent]


# ---------------------------------------------------------------- the command

def test_a_row_is_the_same_with_its_agent(small, tmp_path, capsys):
    "Equal in all but the clock; the agent is that of `train` with its settings."
    words = ["record", "catch", "--player", "ours", "--seeds", "10", "--out"]
    assert main([*words, str(tmp_path / "plain")]) == 0 == record(tmp_path)
    rows = [read_record(next((tmp_path / name).rglob("*.json"))) for name in ("plain", "rows")]
    clock = dict(cpu_seconds=0, wall_seconds=0)
    assert replace(rows[0], **clock) == replace(rows[1], **clock)
    agent = read_kept(tmp_path / "kept" / "catch")
    assert agent.result == rows[1].result and agent.facts["digest"] == rows[1].digest
    Trainer(agent.config, tmp_path / "run", progress=False).train()
    assert equal(weights(tmp_path / "run"), weights(agent.path))
    command = parse(shlex.split(agent.facts["command"])[1:])
    assert (command.tasks, command.player, command.seeds) == (("catch",), ("ours",), (10,))
    assert command.again and command.agents == Path("kept")


def test_a_missing_agent_is_made_though_its_row_is_there(small, tmp_path, capsys, monkeypatch):
    "A row that is there with its agent is left alone, and both are said."
    said = lambda: capsys.readouterr().out
    assert record(tmp_path) == 0 and "played again" not in said()
    before, first = content(tmp_path), weights(tmp_path / "kept" / "catch")
    assert record(tmp_path) == 0 and "the row is there, and its agent" in said()
    assert content(tmp_path) == before
    shutil.rmtree(tmp_path / "kept")
    assert record(tmp_path, "--list") == 0 and "agent missing" in said()
    assert record(tmp_path) == 0 and "its agent is not: played again" in said()
    assert content(tmp_path).keys() == before.keys()
    assert equal(weights(tmp_path / "kept" / "catch"), first)
    assert record(tmp_path, "--list") == 0 and "agent there" in said()
    monkeypatch.setitem(TASKS, "catch", replace(TASKS["catch"], steps=48))
    assert record(tmp_path, "--list") == 0 and "agent old" in said()
    assert record(tmp_path) == 0                            # both are made again
    assert read_kept(tmp_path / "kept" / "catch").facts["env_steps"] == 48


def test_the_agent_of_another_run_is_not_replaced_unasked(small, tmp_path, capsys):
    assert record(tmp_path) == 0
    before = content(tmp_path)
    assert record(tmp_path, seed=11) == 2
    line, = capsys.readouterr().err.strip().splitlines()
    assert "another run's agent and would be lost" in line and content(tmp_path) == before
    assert record(tmp_path, "--again", seed=11) == 0
    assert read_kept(tmp_path / "kept" / "catch").config.seed == 11


def test_mistakes_are_said_before_anything_is_played(small, made, tmp_path, capsys):
    (tmp_path / "kept" / "catch").mkdir(parents=True)
    (tmp_path / "kept" / "catch" / "diary.txt").write_text("mine")
    (tmp_path / "file").write_text("no folder")
    kept, rows = str(tmp_path / "kept"), ["--out", str(tmp_path / "rows")]
    before = content(tmp_path)
    for words, said in {
        f"catch --player ours --seeds 10 --agents {kept}": "holds no kept agent",
        f"catch --player ours --agents {kept}": "one seed",
        f"catch --seeds 10 --agents {kept}": "give --player ours",
        f"catch --player ours ours-fsq --seeds 10 --agents {kept}": "one agent of ours",
        f"catch --player ours --seeds 10 --agents {tmp_path / 'file'}": "cannot write",
        f"{made / 'run'} --agents {made}": "holds no kept agent"
    }.items():
        assert main(["record", *words.split(), *rows]) == 2
        line, = capsys.readouterr().err.strip().splitlines()
        assert said in line
    assert content(tmp_path) == before and (made / "run" / "metrics.jsonl").exists()


def test_an_older_save_is_not_kept_as_the_one_that_was_evaluated(made, tmp_path, capsys):
    run = Path(shutil.copytree(made / "run", tmp_path / "run"))
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"epochs": 9}))
    words = ["record", str(run), "--out", str(tmp_path / "rows")]
    assert main([*words, "--agents", str(tmp_path / "kept")]) == 2
    assert "of epoch 9, is gone" in capsys.readouterr().err
    assert not (tmp_path / "kept" / "run").exists()


# ---------------------------------------------------------------- those of the book

STORED = sorted(p for p in SHELF.glob("*") if p.is_dir())
every_agent = pytest.mark.parametrize("path", STORED, ids=lambda p: p.name)


@every_agent
def test_an_agent_of_the_book_has_the_settings_of_today(path):
    agent, task = read_kept(path), TASKS[path.name]
    assert agent.config.env == task.env and agent.facts["player"] == "ours"
    assert of_today(agent.config) == planned(task, "ours", None)
    assert agent.config.seed in task.seeds and agent.facts["git_commit"]
    command = parse(shlex.split(agent.facts["command"])[1:])
    assert (command.tasks, command.player) == ((path.name,), ("ours",))
    assert command.seeds == (agent.config.seed,) and command.agents and command.again


@every_agent
def test_an_agent_of_the_book_is_the_one_of_its_row(path):
    agent = read_kept(path)
    row, = rows_of(path.name, ROWS, ("ours",), (agent.config.seed,))
    assert row.state == "there" and not outdated(row.record, of_today(agent.config))
    assert agent.result.returns == row.record.returns and len(row.record.returns) == EPISODES
    assert agent.result.lengths == row.record.lengths
    assert agent.facts["env_steps"] == row.record.steps
    for fact in ("cpu_seconds", "git_commit", "date"):              # not of an equal run elsewhere
        assert agent.facts[fact] == getattr(row.record, fact)


def plays_as_it_says(path, name, n=20):
    """Whether new games are above everybody who learns nothing, and no further from the stored mean
    than four standard errors, the spread being that of all games."""
    agent, player = read_kept(path), Agent.load(path)
    e, world = agent.config.evaluation, makers_of(agent.config, agent=player)
    live = evaluate(player, [lambda: world(False)] * n, n, e.temperature, 987, e.max_steps)
    rows = rows_of(name, ROWS, IDLE)
    idle = [[r.result.mean for r in records_of(rows, p)] for p in IDLE]
    spread = np.std(agent.result.returns + live.returns)
    near = abs(live.mean - agent.result.mean) <= 4 * spread * (1 / n + 1 / EPISODES) ** 0.5
    return near and live.mean > max((np.mean(x) for x in idle if x), default=-np.inf)


@every_agent
def test_an_agent_of_the_book_plays_as_its_score_says(path, tmp_path):
    "And one with other weights, all checksums right, does not."
    needed(path.name)
    assert plays_as_it_says(path, path.name)
    other = Path(shutil.copytree(path, tmp_path / path.name))
    untrained = Agent.described(load_checkpoint(path / "checkpoint", ()).meta).state_dict()
    forged(other, lambda w: untrained)
    assert not plays_as_it_says(other, path.name)


@every_agent
def test_an_agent_of_the_book_is_small_and_nothing_but_an_agent(path):
    files = [p for p in path.rglob("*") if p.is_file() and "media" not in p.parts]
    assert is_kept(path) and sum(p.stat().st_size for p in files) < 8 * 2**20
    assert {p.suffix for p in files} == {"", ".json", ".safetensors"}


def test_the_readme_names_agents_that_are_there():
    if not STORED:
        pytest.skip("no agents yet")
    named = set(re.findall(r"nbs/agents/([\w-]+)", (ROOT / "README.md").read_text("utf8")))
    assert named <= {p.name for p in STORED}
