"""The tasks that the book is held to: each can be played, each stored row names what made it, rows
of earlier settings are marked, and the command loses nothing."""
import shlex
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from simulus_nb import tasks
from simulus_nb.baselines import challenge, who_can
from simulus_nb.cli import main, parse
from simulus_nb.config import cost
from simulus_nb.ids import registered
from simulus_nb.records import IDLE, Record, digest, read_record, write_record
from simulus_nb.run_folder import RunFolder
from simulus_nb.run_record import run_record
from simulus_nb.run_setup import makers_of, prepare
from simulus_nb.spaces import UserError
from simulus_nb.tasks import (
    EPISODES, OURS, SEEDS, TASKS, Row, claimed, columns, goals_met, listing, match_of, of_today,
    outdated, overview, planned, rows_of, task_table, train
)
from simulus_nb.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "nbs" / "results" / "tasks"
TINY = {
    "epochs": 3, "learn_on": 0, "collect.steps": 24, "train_v.start": 0, "train_v.steps": 1,
    "train_v.batch": 2, "train_m.start": 1, "train_m.steps": 1, "train_m.batch": 4,
    "train_c.start": 2, "train_c.steps": 1, "train_c.batch": 2, "evaluation.every": 3,
    "evaluation.interim": 2, "evaluation.episodes": 3, "evaluation.max_steps": 20
}
NEEDS = {"minigrid": "minigrid", "minatar": "minatar", "dmc": "shimmy"}
every_task = pytest.mark.parametrize("name", TASKS)


def needed(name):
    "Skip a task whose extra is not installed."
    package = NEEDS.get(name.partition("-")[0])
    if package and find_spec(package) is None:
        pytest.skip(f"the extra for {name} is not installed")
    if name == "memory" and not registered(TASKS[name].env):
        pytest.skip("there is no memory world yet")


@every_task
def test_a_task_can_be_played(name):
    "Every stage of our loop once, the evaluation of all players, and no player left out."
    needed(name)
    task = TASKS[name]
    config = task.config(3).change(TINY)
    match = match_of(config, makers_of(config))
    found = train(config, prepare)
    assert found.steps == cost(config)["env_steps"] and len(found.curve) == 1
    assert {"m/loss", "c/critic", "env_steps"} <= found.history.keys()
    record = challenge("ours", match, "", lambda match: found, of_today(config))
    assert len(record.returns) == 3 and max(record.lengths) <= 20 and record.cpu_seconds > 0
    assert len(challenge("random", match).returns) == 3
    assert {p for p in task.players if p not in OURS} == set(who_can(match))
    assert {"ours", *IDLE} <= set(task.players)


@every_task
def test_nobody_gets_more_steps_than_the_budget(name):
    config = TASKS[name].config()
    repeat = config.env_options.get("action_repeat", 1)
    n, each = cost(config)["env_steps"], config.collect.steps
    assert TASKS[name].steps - repeat * each < repeat * n <= TASKS[name].steps
    assert match_of(config, None).steps == n and match_of(config, None).episodes == EPISODES
    assert TASKS[name].goals                        # all of them were written down before


@pytest.mark.parametrize("change,same", [
    ({"seed": 3}, True), ({"threads": 2}, True), ({"evaluation.every": 7}, True),
    ({"train_m.lr": 0.5}, False), ({"precision": "bfloat16"}, False), ({"epochs": 9}, False),
    ({"evaluation.temperature": 0.1}, False), ({"env_options": {"rows": 9}}, False)
], ids=str)
def test_a_digest_changes_with_what_decides(change, same):
    config = TASKS["catch"].config()
    assert (digest(of_today(config)) == digest(of_today(config.change(change)))) == same


def test_other_players_are_old_when_their_budget_changes(monkeypatch):
    task = TASKS["cartpole"]
    now = lambda task, name: planned(task, name, match_of(task.config(), None))
    for name in ("random", "constant", "rule", "dqn", "ppo", "ours"):
        assert now(task, name) == now(replace(task, env=task.env), name)
        assert now(task, name) != now(replace(task, steps=8_000), name)
    busier = replace(task, changes={"train_m.steps": 500})
    changed = {p for p in task.players if now(task, p) != now(busier, p)}
    assert changed == {"ours", "dqn-more"}          # who has our number of updates
    before = now(task, "ours")
    monkeypatch.setitem(tasks.EDITION, task.env, 99)
    assert now(task, "ours") != before and now(task, "ppo") == now(task, "ppo")


def test_a_new_option_makes_no_row_old_before_it_is_used():
    now = of_today(TASKS["catch"].config())
    then = {name: x for name, x in now.items() if name != "tokenizer.image.norm_groups"}
    record = Record("ours", TASKS["catch"].env, 10, 1, (), (1.0,), (1,), then, "", digest(then))
    assert not outdated(record, now)                # today's value is the option's default
    assert outdated(record, now | {"tokenizer.image.norm_groups": 3})
    assert outdated(record, now | {"train_m.lr": 0.5}) and outdated(record, now | {"edition": 2})


# ---------------------------------------------------------------- stored rows

STORED = sorted(FOLDER.rglob("*.json"))


@pytest.mark.parametrize("path", STORED, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_stored_row_says_what_made_it(path):
    "And making it again is one command."
    record, name = read_record(path), path.parent.name
    assert path in {row.path for row in rows_of(name, FOLDER, (record.player,), (record.seed,))}
    assert record.digest and record.git_commit and record.machine and record.date
    assert record.cpu_seconds is not None and record.wall_seconds is not None
    assert {"python", "torch", "numpy", "gymnasium"} <= record.versions.keys()
    assert len(record.returns) == EPISODES and record.env == TASKS[name].env
    command = parse(shlex.split(record.command)[1:])
    assert command.tasks == (name,) and command.player == (record.player,)
    assert command.seeds == (record.seed,) and command.again


def test_results_are_small():
    files = [p for p in (ROOT / "nbs" / "results").rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 8 * 2**20


@every_task
def test_rows_of_earlier_settings_are_marked(name):
    "The table says which they are, and so does this test."
    rows = rows_of(name, FOLDER)
    old = [row for row in rows if row.state == "old"]
    shown = task_table(name, rows)
    for player in {row.player for row in old}:
        seeds = ", ".join(str(row.seed) for row in old if row.player == player)
        line = next(x for x in shown.splitlines() if x.startswith(f"| {player} |"))
        assert f"made with earlier settings: {seeds}" in line
    assert shown.count("made with earlier settings") == len({row.player for row in old})
    line = next(x for x in overview(FOLDER).splitlines() if x.startswith(f"| {name}, "))
    assert (f"{len(old)} made with earlier settings" in line) == bool(old)
    if old:
        warnings.warn(f"made with earlier settings:\n{listing(old)}", stacklevel=1)


# ---------------------------------------------------------------- the command

@pytest.fixture
def small(monkeypatch):
    "Catch, as short as it can be."
    task = replace(TASKS["catch"], steps=72, changes=TINY)
    monkeypatch.setitem(TASKS, "catch", task)
    monkeypatch.setattr(tasks, "EPISODES", 3)
    monkeypatch.setattr(tasks, "INTERIM", 2)
    return task


def test_ours_is_the_agent_that_train_makes(small, tmp_path):
    "Interim evaluations and the clock change nothing; recorded, its folder has the same digest."
    words = ["record", "catch", "--player", "ours", "--seeds", "4", "--out", str(tmp_path)]
    assert main(words) == 0
    row, = rows_of("catch", tmp_path, ("ours",), (4,))
    other = Trainer(
        small.config(4), tmp_path / "run", progress=False, command="simulus-nb train").train()
    assert row.record.returns == other.result.returns and row.record.lengths == other.result.lengths
    assert main(["record", str(tmp_path / "run"), "--out", str(tmp_path / "runs")]) == 0
    path, = (tmp_path / "runs").glob("*.json")
    record = read_record(path)
    assert (record.digest, record.returns) == (row.record.digest, row.record.returns)
    assert record.preset == "catch" and not record.exact and record.cpu_seconds is None
    assert record.command == "simulus-nb train" and record.steps == row.record.steps == 72
    again = columns(RunFolder(tmp_path / "run").history())
    assert again["m/loss"] == row.record.history["m/loss"]
    (tmp_path / "run" / "manifest.json").unlink()
    with pytest.raises(UserError, match="finish the run with simulus-nb train --resume"):
        run_record(RunFolder(tmp_path / "run"))


def test_what_is_there_is_not_played_again(small, tmp_path, capsys, monkeypatch):
    words = ["record", "catch", "--player", "random", "rule", "--seeds", "10", "11"]
    words += ["--out", str(tmp_path)]
    made, make = [], tasks.make_row
    def counted(name, player, seed, *how):
        made.append((player, seed))
        if len(made) == 3:
            raise KeyboardInterrupt
        return make(name, player, seed, *how)
    monkeypatch.setattr(tasks, "make_row", counted)
    assert main(words) == 130                       # interrupted in its third row
    assert capsys.readouterr().out.count("seed 10") == 2
    assert main([*words, "--list"]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("there: 10; missing: 11")
    assert main(words) == 0 and made[3:] == [("random", 11), ("rule", 11)]
    assert main(words) == 0 and len(made) == 5
    assert not list(tmp_path.rglob("*.lock")) and len(list(tmp_path.rglob("*.json"))) == 4
    first = rows_of("catch", tmp_path, ("random",), (10,))[0].record
    one = ["record", "catch", "--player", "random", "--seeds", "10", "--again"]
    assert main([*one, "--out", str(tmp_path)]) == 0 and len(made) == 6
    second = rows_of("catch", tmp_path, ("random",), (10,))[0].record
    assert first.returns == second.returns and first.digest == second.digest
    monkeypatch.setitem(TASKS, "catch", replace(small, steps=48))
    assert [r.state for r in rows_of("catch", tmp_path, ("random", "rule"), (10,))] == ["old"] * 2
    assert main(words) == 0 and len(made) == 10     # old rows are made again


def test_two_processes_share_the_rows(small, tmp_path, capsys):
    row, = rows_of("catch", tmp_path, ("random",), (10,))
    words = ["record", "catch", "--player", "random", "--seeds", "10", "--out", str(tmp_path)]
    with claimed(row.path) as mine:
        assert mine and main(words) == 0
        assert "another process is at it" in capsys.readouterr().out and not row.path.exists()
    assert main(words) == 0 and row.path.exists()


def test_a_row_that_another_process_has_made_is_not_made_again(small, tmp_path, monkeypatch):
    made, make = [], tasks.make_row
    monkeypatch.setattr(tasks, "make_row", lambda *a: made.append(a[1:3]) or make(*a))
    listed = lambda: rows_of("catch", tmp_path, ("random", "rule"), (10,))
    for steps, state in (72, "missing"), (48, "old"):
        monkeypatch.setitem(TASKS, "catch", replace(small, steps=steps))
        first, second = listed(), listed()              # both, before either has begun
        assert {r.state for r in first} == {state}
        mine = tasks.record_rows(first, makers_of, prepare)
        made.clear()
        played = next(mine)[1]
        others = list(tasks.record_rows(second, makers_of, prepare))
        assert others[0][1] == played and list(mine)[0][1] == others[1][1]
        assert made == [("random", 10), ("rule", 10)]


def test_complaints_take_one_line(tmp_path, capsys):
    for words, said in {
        "chess": "unknown task 'chess': choose one of catch",
        "catch --player nobody": "unknown player",
        "catch --player sac": "sac cannot play catch", "catch --seeds -1": "out of range"
    }.items():
        assert main(["record", *words.split(), "--out", str(tmp_path / "out")]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and said in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_damaged_row_is_named(small, tmp_path):
    row, = rows_of("catch", tmp_path, ("random",), (10,))
    row.path.parent.mkdir()
    row.path.write_text("{")
    with pytest.raises(UserError, match=row.path.name):
        rows_of("catch", tmp_path)


@pytest.mark.parametrize("change,met", [
    ({}, True), ({"goal": 0.499}, True), ({"goal": 0.51}, False), ({"least": 0.399}, True),
    ({"least": 0.41}, False), ({"success": 0.7}, True), ({"success": 0.8}, False),
    ({"near_best": 0.499}, True), ({"near_best": 0.6}, False), ({"beat": ("random",)}, True),
    ({"beat": ("rule",)}, False), ({"beat": ("dqn",)}, None)
], ids=str)
def test_goals(change, met):
    "Five seeds, means 0.4 to 0.6; 3 of 4 episodes above 0; the best on the way was 0.8 each."
    def row(player, seed, mean):
        returns = (0.0, *[mean * 4 / 3] * 3)
        record = Record(player, "CartPole-v1", seed, 10, ((5, 0.8),), returns, (1,) * 4, {}, "")
        return Row("cartpole", player, seed, Path(), record, False)
    rows = [row("ours", s, 0.4 + 0.05 * i) for i, s in enumerate(SEEDS)]
    rows += [row("random", s, 0.1) for s in SEEDS] + [row("rule", s, 1.0) for s in SEEDS]
    plain = dict(goal=None, least=None, near_best=None)
    task = replace(TASKS["cartpole"], **(plain | (change or {"goal": 0.1})))
    assert goals_met(task, rows) is met
    assert goals_met(task, [replace(rows[0], record=None), *rows[1:]]) is None


def test_who_is_ahead_is_in_bold_also_if_it_is_not_ours(small, tmp_path):
    "And nobody is where the seeds do not agree: Eq. (33.4)."
    match = match_of(small.config(), makers_of(small.config()))
    line = lambda: next(x for x in overview(tmp_path).splitlines() if x.startswith("| catch, "))
    random = [challenge("random", replace(match, seed=s)) for s in SEEDS[:3]]
    for record in random:
        write_record(record, tmp_path / "catch")
    rows = len(SEEDS) * len(TASKS["catch"].players)
    assert "**" not in line() and f"3 of {rows}" in line()      # nobody to be ahead of
    for gains, ours in (((-0.5, -0.6, -0.4), False), ((0.5, 0.6, 0.4), True),
                        ((0.9, 0.1, -0.2), None)):
        for record, gain in zip(random, gains):
            returns = tuple(x + gain for x in record.returns)
            write_record(replace(record, player="ours", returns=returns), tmp_path / "catch")
        cells = line().split(" | ")
        assert line().count("**") == (0 if ours is None else 2)
        assert cells[1].startswith("**") == (ours is True) and cells[2].startswith("**") == (
            ours is False)
        assert cells[4].startswith(f"{np.mean(gains):.2f} ± ")
        assert "3 made with earlier settings" in line() and "open" in line()


def test_a_row_is_replaced_as_a_whole(small, tmp_path):
    "Its name is that of its player, task and seed; nothing else in the folder is touched."
    match = match_of(small.config(), makers_of(small.config()))
    records = [challenge("random", replace(match, seed=s)) for s in (1, 2)]
    paths = [write_record(r, tmp_path) for r in records]
    before = paths[0].read_bytes()
    assert write_record(replace(records[1], command="x"), tmp_path) == paths[1]
    assert paths[0].read_bytes() == before and read_record(paths[1]).command == "x"
    assert sorted(tmp_path.iterdir()) == sorted(paths)
