"""The user guide: its commands and options exist, its tables are what was stored, and its programs
run and do what the pages say."""
import ast
import importlib.util
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tools"))
import guide
import site_pages as pages

import simulus_nb.cli as cli
from simulus_nb.agent import Agent
from simulus_nb.config import Config, cost, flat, preset
from simulus_nb.doctor import examine
from simulus_nb.envs import make_env
from simulus_nb.export import NEEDED, export_agent
from simulus_nb.loop import make_agent, make_replay
from simulus_nb.metrics import METRICS
from simulus_nb.run_folder import WRITTEN, RunFolder
from simulus_nb.spaces import ActionSpec, ObsSpec, UserError
from simulus_nb.trainer import Trainer
from simulus_nb.vector_tokens import VectorQuantizer

TEXT = {p.stem: p.read_text(encoding="utf8") for p in sorted(guide.GUIDE.glob("*.md"))}
EACH = pytest.mark.parametrize("page", TEXT)
BOOK = pages.read_book()
# so few updates that a run ends in seconds
TINY = {
    "epochs": 2, "collect.steps": 60, "train_v.start": 0, "train_v.steps": 2, "train_m.start": 0,
    "train_m.steps": 3, "train_c.start": 1, "train_c.steps": 2, "evaluation.every": 0,
    "evaluation.episodes": 2, "threads": 1, "device": "cpu"
}


@cache
def stored():
    "What `python tools/guide.py` has measured."
    return json.loads(guide.STORED.read_text(encoding="utf8"))


def module(page, name, monkeypatch, folder):
    "The Python blocks of a page as a module, imported from a folder."
    (folder / f"{name}.py").write_text(guide.source(page), encoding="utf8")
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, made)
    spec.loader.exec_module(made)
    return made


# ------------------------------------------------------------------------------------- pages

def prose_of(page):
    "A page without its blocks of code."
    return re.sub(r"^```.*?^```", "", TEXT[page], flags=re.S | re.M)


def test_every_page_is_listed():
    listed = re.findall(r"\]\(([\w-]+)\.md\)", TEXT["index"])
    assert sorted([*listed, "index"]) == sorted(TEXT) and len(listed) == 7


@EACH
def test_links_exist(page):
    prose = re.sub(r"`[^`\n]+`", "", prose_of(page))
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if not re.match(r"https?:", target):
            assert (guide.GUIDE / target).resolve().exists(), target


@EACH
def test_tables_are_what_was_stored(page):
    made = guide.tables(stored())
    assert guide.with_tables(TEXT[page], made) == TEXT[page], "run python tools/guide.py --tables"
    wanted = re.findall(r"<!-- results: (\S+) -->", TEXT[page])
    assert set(wanted) <= set(made) and TEXT[page].count("<!-- end -->") == len(wanted)


def test_counted_tables_can_be_counted_again():
    assert stored()["presets"] == json.loads(json.dumps(guide.presets()))
    x = next(x for x in stored()["costs"] if x["setting"] == "train_m.segment")
    again, = guide.doubled("train_m.segment")
    for key in ("flops", "calls", "bytes"):
        assert again[key] == pytest.approx(x[key], rel=0.02)
    by = {x["setting"]: x for x in stored()["costs"]}
    assert set(by) == set(guide.DOUBLED)
    assert by["train_m.steps"]["bytes"] == 1 < by["train_m.batch"]["bytes"]
    wide, deep = by["world_model.retnet.width"], by["world_model.retnet.layers"]
    assert wide["flops"] > deep["flops"] > 1 and deep["calls"] > wide["calls"]


def inline(text):
    "Commands in a line of prose."
    found = re.findall(r"`(simulus-nb [^`]+)`", text)
    return [shlex.split(c)[1:] for c in found if len(c.split()) > 1]


@EACH
def test_commands_are_understood(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, env in (("CartPole-v1-seed0", "CartPole-v1"), ("boxing", "ALE/Boxing-v5")):
        folder = RunFolder(Path("runs") / name)
        folder.path.mkdir(parents=True)
        config = preset("small" if name[0] == "C" else "atari100k").change({"env": env})
        folder.config.write_text(json.dumps(config.to_json()))
    for words in [*guide.commands(TEXT[page]), *inline(prose_of(page))]:
        assert words[0] in cli.COMMANDS
        if len(words) > 1 and "--help" not in words:
            assert type(cli.parse(words)).__name__ == f"{words[0].capitalize()}Command", words


@EACH
@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_shell_blocks_are_shell(page):
    for block in guide.blocks(TEXT[page], "bash"):
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, encoding="utf8")
        assert done.returncode == 0, done.stderr


def known_options():
    "Every option of a command of ours."
    commands = [getattr(cli, f"{name.capitalize()}Command") for name in cli.COMMANDS]
    names = {f.name for c in commands for f in fields(c)} | set(flat(Config()))
    return {name.replace("_", "-") for name in names}


@EACH
def test_options_and_settings_exist(page):
    quoted = re.findall(r"`([^`\n]+)`", prose_of(page))
    options = {o for q in quoted for o in re.findall(r"(?<![\w-])--([a-z][\w.-]*)", q)
               if q.startswith(("--", "simulus-nb"))}
    theirs = {"help", "index-url", "tables", "array"}
    assert options - known_options() <= theirs
    groups = {name.split(".")[0] for name in flat(Config()) if "." in name}
    dotted = {q for q in quoted if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+(?<!\.json)", q)}
    assert {q for q in dotted if q.split(".")[0] in groups} <= set(flat(Config()))


def test_the_table_of_symptoms_names_settings():
    rows = [r for r in TEXT["choosing_settings"].splitlines() if r.startswith("| ")]
    assert len([r for r in rows if "`--" in r]) >= 12 + len(stored()["costs"])


def test_files_and_numbers_of_a_run_exist():
    text = TEXT["reading_a_run"]
    folder = RunFolder("x")
    named = {m[1] for m in re.finditer(r"^\| `([^`]+)` \|", text, re.M)}
    files = {p.name + ("/" if p.suffix == "" else "") for p in vars(folder).values()
             if isinstance(p, Path) and p != folder.path}
    assert files <= named and {"run.lock", "events.out.tfevents…"} <= named
    assert {"run.lock", "events.out.*"} <= set(WRITTEN)
    numbers = {n for n in named if re.fullmatch(r"\w+/\w+", n)}
    assert len(numbers) == 5 and numbers <= set(METRICS)


def test_complaints_are_found():
    report = "a  1  look here  x\n    do this\nb  1  ok\nbegin with: a"
    assert guide.complaints(report) == ["a  1  look here  x", "    do this", "begin with: a"]
    for page, expected in (("```bash\ncd x\nsrun a -m simulus_nb.cli train \\\n  --out y &\n```",
                            [["train", "--out", "y"]]), ("```python\nx\n```", [])):
        assert guide.commands(page) == expected


# -------------------------------------------------------------------- an environment of one's own

@pytest.fixture
def store(monkeypatch, tmp_path):
    "The file of that page."
    monkeypatch.chdir(tmp_path)
    return module("own_environment", "cold_store", monkeypatch, tmp_path)


def test_cold_comes_late(store):
    def rooms(level):
        plant = store.ColdStore(np.random.default_rng(0))
        return [(plant.advance(level), plant.room)[1] for _ in range(5)]
    off, full = rooms(0), rooms(2)
    assert off[:3] == full[:3] and full[3] == off[3] - 2


def test_both_are_the_same_days(store):
    first, mended = (make_env(id, obs_kinds={}) for id in ("First-v0", "ColdStore-v0"))
    a, b = first.reset(seed=3)[0], mended.reset(seed=3)[0]
    for t, level in enumerate(np.random.default_rng(1).integers(3, size=48)):
        assert np.allclose(a["air"] - [277, 291], b["air"], atol=1e-4)
        assert b["pipe"].tolist() == first.unwrapped.store.pipe
        assert (a["hour"], a["tariff"]) == (b["hour"], b["tariff"]) and "note" not in b
        a, paid, *ends, _ = first.step(level)
        b, euros, *cuts, _ = mended.step(level)
        assert euros == pytest.approx(paid / 100)
    assert t == 47 and ends == [True, False] and cuts == [False, True]


def test_the_doctor_stops_at_the_text(store):
    config = preset("small").change({"env": "First-v0"})
    found = examine(config.change({"device": "cpu"}))
    todo = [f["todo"] for f in found["findings"] if f["topic"] == "world"][0]
    assert not found["ready"] and "'note'" in todo and "Text" in todo
    first, then = stored()["own"]["doctor"]
    assert "'note'" in first and first.splitlines()[-1].startswith("verdict     first:")
    assert then.splitlines()[-1].split() == ["verdict", "ready"]


def test_the_grid_does_not_see_what_matters(store):
    def apart(id, at):
        "Largest distance of two neighbours in the grid of the room's temperature, near `at`."
        space = make_env(id).observation_space["air"]
        m, = ObsSpec.from_space(space).modalities
        levels = preset("small").tokenizer.vector_levels
        tokens = torch.arange(levels)[:, None].expand(-1, 2)
        values = VectorQuantizer(levels, m.bound).decode(tokens)
        near = [float(x) for x in values[:, 0] if abs(x - at) < 10]
        return max(np.diff(near))
    assert 8 < apart("First-v0", 277) < 9                           # almost nine degrees
    assert apart("ColdStore-v0", 0) < 1
    readings = stored()["own"]["runs"]
    sick = "\n".join(guide.complaints("\n".join(readings["first"]["report"])))
    for name in ("rounding error, air", "rewards outside", "m/reward"):
        assert name in sick
        assert f"- **{name}" in TEXT["own_environment"]
    well = "\n".join(guide.complaints("\n".join(readings["mended"]["report"])))
    assert "rounding error" not in well and "outside" not in well


def test_the_mended_store_is_learnt(store):
    runs, players = stored()["own"]["runs"], stored()["own"]["players"]
    assert runs["mended"]["mean"] > players["constant"]["mean"] > players["random"]["mean"]
    assert runs["mended"]["mean"] > runs["first"]["mean"] / 100


def test_it_trains_from_the_shell(store, monkeypatch, capsys):
    options = [x for k, v in TINY.items() if k != "epochs"
               for x in (f"--{k.replace('_', '-')}", str(v))]
    words = ["train", "--env", "cold_store:ColdStore-v0", "--steps", "120", "--out", "runs/mended"]
    assert words[:3] in [c[:3] for c in guide.commands(TEXT["own_environment"])]
    assert cli.main([*words, *options]) == 0
    agent = Agent.load("runs/mended")
    assert [m.key for m in agent.obs_spec.modalities] == ["air", "hour", "pipe", "tariff"]
    assert cli.main(["inspect", "runs/mended", "--allow-import", "--episodes", "2"]) == 0
    assert "begin with" in capsys.readouterr().out


def test_the_thermostat_beats_doing_nothing(store):
    score = store.score_of_thermostat(episodes=3)
    assert set(score.lengths) == {48}
    env, total = make_env("ColdStore-v0"), 0.0
    env.reset(seed=0)
    for _ in range(48):
        total += env.step(0)[1]
    assert score.mean > total


# --------------------------------------------------------------------------- recorded episodes

@pytest.fixture
def recorded(monkeypatch, tmp_path):
    "The file of that page."
    monkeypatch.chdir(tmp_path)
    return module("recorded_episodes", "recorded", monkeypatch, tmp_path)


def test_a_recording_survives_its_file(recorded, tmp_path):
    episodes = recorded.record(make_env("CartPole-v1"), 12)
    recorded.save(tmp_path / "x.npz", episodes)
    again = recorded.load(tmp_path / "x.npz")
    assert len(again) == 12
    for a, b in zip(episodes, again):
        assert a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)
        assert len(a["observations"]) == len(a["actions"]) + 1


def test_rows_are_those_of_play(recorded, store):
    "Dicts of arrays, categories, an end that is a cut: as if the run had played them itself."
    env = make_env("ColdStore-v0")
    specs = ObsSpec.from_space(env.observation_space), ActionSpec.from_space(env.action_space)
    seen, actions, rewards = [env.reset(seed=5)[0]], [2, 0, 1], []
    for action in actions:
        obs, reward, *_ = env.step(action)
        seen.append(obs), rewards.append(reward)
    episode = {"observations": {k: np.stack([o[k] for o in seen]) for k in seen[0]},
               "actions": np.array(actions), "rewards": rewards, "terminations": [False] * 3}
    rows = recorded.rows_of(episode, *specs)
    assert rows.last.tolist() == [False, False, False, True] and not rows.done.any()
    assert rows.action[:, 0].tolist() == [2, 0, 1, 0]
    assert np.allclose(rows.reward, [*rewards, 0])
    assert rows.obs["hour"][:, 0].tolist() == [o["hour"] for o in seen]
    agent = make_agent(preset("small"), *specs)
    replay = make_replay(preset("small").change({"collect.num_envs": 2}), agent)
    recorded.fill(replay, [episode] * 3, *specs)
    assert replay.written == [8, 4] and replay.open_start == [None, None] and replay.steps == 9
    for key, value in (("hour", 24), ("air", math.nan)):
        wrong = {**episode, "observations": {**episode["observations"]}}
        wrong["observations"][key] = np.full_like(episode["observations"][key], value)
        with pytest.raises(UserError, match=key):
            recorded.rows_of(wrong, *specs)


def test_an_end_of_the_world_is_one(recorded):
    env = make_env("CartPole-v1")
    specs = ObsSpec.from_space(env.observation_space), ActionSpec.from_space(env.action_space)
    for episode in recorded.record(env, 3):
        rows = recorded.rows_of(episode, *specs)
        assert rows.done.tolist() == [False] * (len(rows) - 2) + [True, False]


def test_a_run_begins_with_them_and_goes_on(recorded, tmp_path):
    episodes = recorded.record(make_env("CartPole-v1"), 5)
    config = preset("small").change({**TINY, "env": "CartPole-v1", "collect.capacity": 2_000})
    trainer = recorded.begin_with(episodes, config, tmp_path / "run")
    steps = sum(len(e["actions"]) for e in episodes)
    assert trainer.replay.steps == trainer.env_steps + steps == 120 + steps
    first = torch.from_numpy(episodes[0]["observations"])
    stored = trainer.replay.gather_obs(torch.arange(len(first)))["obs"]
    assert torch.equal(stored, first)
    longer = Trainer(None, tmp_path / "run", resume=True, progress=False, steps=180).train()
    assert longer.replay.steps == 180 + steps


def test_nothing_is_played_where_only_the_recording_counts(recorded, tmp_path):
    config = recorded.only(3)
    assert cost(config)["env_steps"] == 1 and config.env == "simulus/Catch-v0"
    ours = ("train", "evaluation", "device")
    small = config.change({k: v for k, v in TINY.items() if k.startswith(ours)})
    episodes = recorded.record(make_env("simulus/Catch-v0", image_size=32), 4)
    trainer = recorded.begin_with(episodes, small, tmp_path / "run")
    assert trainer.env_steps == stored()["recorded"]["env_steps"] == 1
    assert trainer.replay.steps == 1 + 4 * 9
    assert stored()["recorded"]["mean"] > 0                      # random play: -0.6


# --------------------------------------------------------------------------------- exporting

PLAY = """
import json, sys
sys.modules["torch"] = sys.modules["simulus_nb"] = None         # importing them fails
import numpy as np, player
episodes = np.load("seen.npz", allow_pickle=True)["episodes"]
agent, found = player.Exported("exported"), []
for seen in episodes:
    agent.reset()
    found.append([np.ravel(player.as_action(agent.manifest, agent.act(o, temperature=0))).tolist()
                  for o in seen])
print(json.dumps(found))
"""


def specs_of(env):
    return ObsSpec.from_space(env.observation_space), ActionSpec.from_space(env.action_space)


@pytest.mark.parametrize("world, sizes", [
    ("simulus/Catch-v0", "catch"), ("ColdStore-v0", "small"), ("Pendulum-v1", "control")
])
def test_the_exported_player_does_the_same(world, sizes, store, tmp_path):
    for name in NEEDED:
        pytest.importorskip(name)
    env = make_env(world, image_size=preset(sizes).tokenizer.image.image_size)
    agent = make_agent(preset(sizes), *specs_of(env)).eval()
    export_agent(agent, tmp_path / "exported", steps=3)
    episodes, ours = [], []
    for seed in range(2):
        obs = env.reset(seed=seed)[0]
        agent.reset()
        episodes.append([]), ours.append([])
        for _ in range(6):
            action = agent.act(obs, temperature=0)
            episodes[-1].append(obs), ours[-1].append(np.ravel(action).tolist())
            obs = env.step(action)[0]
    np.savez(tmp_path / "seen.npz", episodes=np.array([*episodes, None], object)[:-1])
    (tmp_path / "player.py").write_text(guide.source("exporting"), encoding="utf8")
    done = subprocess.run([sys.executable, "-c", PLAY], cwd=tmp_path, capture_output=True,
                          encoding="utf8", env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert np.allclose(json.loads(done.stdout), ours, atol=1e-6)


def test_the_player_needs_no_torch():
    names = {a.name for n in ast.walk(ast.parse(guide.source("exporting")))
             if isinstance(n, ast.Import) for a in n.names}
    assert names == {"json", "numpy", "onnxruntime"}


@pytest.mark.parametrize("spec", [
    ActionSpec("continuous", (5, 3), (-1.0, 0.0), (1.0, 4.0), (2,), "float32"),
    ActionSpec("discrete", (4,), (7,)), ActionSpec("multidiscrete", (2, 3), (1, 0), shape=(2,)),
])
def test_tokens_become_actions(spec, monkeypatch, tmp_path):
    pytest.importorskip("onnxruntime")
    player = module("exporting", "player", monkeypatch, tmp_path)
    manifest = {"action": json.loads(json.dumps(spec.to_json()))}
    for token in range(min(spec.nvec)):
        tokens = np.full((1, spec.count), token)
        assert np.array_equal(player.as_action(manifest, tokens[0]), spec.decode(tokens)[0])


def test_python_of_the_other_pages(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    module("choosing_settings", "settings", monkeypatch, tmp_path)
    reading = module("reading_a_run", "reading", monkeypatch, tmp_path)
    config = preset("small").change({**TINY, "env": "CartPole-v1"})
    Trainer(config, "run", progress=False).train()
    assert [steps for steps, _ in reading.column("run", "m/loss")] == [60, 120]
    assert reading.play_once("run", make_env("CartPole-v1")) > 0


# -------------------------------------------------------------------------- Colab and Binder

def colab(tmp_path, monkeypatch, fails=()):
    "What the first cell runs, called as often as there are answers; True: pip fails."
    calls = []
    def fake(command, check):
        calls.append(command[0] if command[0] == "git" else "pip")
        if command[0] == "git":
            (tmp_path / command[-1] / "nbs").mkdir(parents=True)
            (tmp_path / command[-1] / "settings.ini").touch()
        elif fails.pop(0):
            raise subprocess.CalledProcessError(1, command)
    monkeypatch.setattr(subprocess, "run", fake)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return calls


def test_the_colab_cell_can_be_run_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cell = pages.for_colab(BOOK.chapters[1].notebook, BOOK).cells[0].source
    calls = colab(tmp_path, monkeypatch, [True, False])
    with pytest.raises(subprocess.CalledProcessError):
        exec(cell, {})
    assert calls == ["git", "pip"] and Path.cwd() == tmp_path
    exec(cell, {})
    assert calls == ["git", "pip", "pip"] and Path.cwd().name == "nbs"      # not cloned again
    exec(cell, {})
    assert len(calls) == 3 and "ready after" in capsys.readouterr().out


def imports(source):
    "Names of the packages that a piece of code imports, and cannot do without."
    found, tree = set(), ast.parse(source)
    tried = {n for t in ast.walk(tree) if isinstance(t, ast.Try) and "ImportError" in ast.dump(t)
             for n in ast.walk(t)}
    for node in ast.walk(tree):
        if node in tried:
            continue
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found


def test_what_a_chapter_imports_is_installed():
    "By the library's requirements, or by what the first cell adds."
    words = lambda text: {re.split(r"[\[<>=]", w)[0].replace("-", "_") for w in text.split()}
    base = words(BOOK.settings["requirements"]) | {"IPython", "packaging", "simulus_nb"}
    checked = 0
    for c in BOOK.chapters:
        there = base | words(" ".join(pages.needed_extras(c.notebook, pages.BESIDE)))
        for extra in pages.needed_extras(c.notebook):
            there |= words(BOOK.settings[f"extras_{extra}"])
        there |= {"PIL"} | sys.stdlib_module_names
        for cell in c.notebook.cells:
            if cell.cell_type == "code" and not cell.source.startswith(("%", "!")):
                assert imports(cell.source) <= there, (c.stem, cell.id)
                checked += bool(imports(cell.source) - sys.stdlib_module_names)
    assert checked > 100
    needs = {c.stem: pages.needed_extras(c.notebook) for c in BOOK.chapters}
    assert "play" in needs["32_play"] and not needs["12_pop"]


def test_binder_installs_the_same():
    folder = ROOT / ".binder"
    lines = (folder / "requirements.txt").read_text().splitlines()
    torch_ = next(w for w in BOOK.settings["requirements"].split() if w.startswith("torch>"))
    assert torch_ in lines
    script = (folder / "postBuild").read_text()
    extras = re.search(r'"\.\[(.*?)\]"', script)[1].split(",")
    assert {f"extras_{extra}" for extra in extras} <= set(BOOK.settings)
    needed = {e for c in BOOK.chapters for e in pages.needed_extras(c.notebook)}
    beside = {e for c in BOOK.chapters for e in pages.needed_extras(c.notebook, pages.BESIDE)}
    assert needed <= set(extras) and all(name in script for name in beside)
    assert (folder / "postBuild").stat().st_mode & 0o100 or os.name == "nt"
    if shutil.which("bash"):
        assert subprocess.run(["bash", "-n", folder / "postBuild"]).returncode == 0


def test_each_page_opens_in_colab_and_in_binder():
    chapter = next(c for c in BOOK.chapters if c.stem == "12_pop")
    text = pages.head_links(chapter, BOOK)
    assert "/blob/gh-pages/colab/12_pop.ipynb" in text
    assert "mybinder.org/v2/gh/simulus-nb/simulus-nb/main?urlpath=lab/tree/nbs/12_pop.ipynb" in text
    assert all(f"nbs/{c.stem}.ipynb" in TEXT["hardware"] for c in BOOK.chapters)
