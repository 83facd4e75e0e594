"""The state of health of a run: bounds of losses, verdicts on made-up evidence, `inspect` in every
kind of world, and the table of all logged numbers."""
import math
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces as gs
from torch.nn import functional as F

from simulus_nb.agent import Agent
from simulus_nb.cli import main
from simulus_nb.config import preset
from simulus_nb.envs import make_env
from simulus_nb.evaluate import Evaluation
from simulus_nb.health import (
    LEAST, RULES, Dreams, Evidence, Opinions, Said, against_persistence, ask, bounds_of,
    column_entropy, dream_again, gather, histogram_bounds, look, look_at_codes, mean_of,
    open_loops, opinions, play, repeats, report, share_left
)
from simulus_nb.interrupt import Stopped
from simulus_nb.loop import make_agent, specs_of
from simulus_nb.metrics import METRICS, metric_key
from simulus_nb.priorities import Priorities
from simulus_nb.replay import Segment
from simulus_nb.run_folder import RunFolder
from simulus_nb.scalars import HLGauss
from simulus_nb.spaces import ActionSpec, ObsSpec, UserError
from simulus_nb.tokenizer import MultiModalTokenizer
from simulus_nb.trainer import Callback, Trainer
from simulus_nb.world_model import Prediction, world_model_loss

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[1]
TOY = {
    "epochs": 2, "save_every": 1, "threads": 1, "device": "cpu", "learn_on": 0,
    "collect.steps": 24, "collect.capacity": 200, "collect.num_envs": 2,
    "tokenizer.image.image_size": 16, "tokenizer.image.channels": 8, "tokenizer.image.stages": 2,
    "tokenizer.image.code_dim": 8, "tokenizer.image.vocab": 16, "tokenizer.grid_patch": 2,
    "world_model.retnet.width": 16, "world_model.retnet.layers": 1, "controller.width": 16,
    "controller.channels": [8, 8], "controller.embedding": 8, "train_v.batch": 4,
    "train_v.steps": 1, "train_v.start": 0, "train_m.batch": 4, "train_m.segment": 4,
    "train_m.steps": 2, "train_m.start": 0, "train_c.batch": 4, "train_c.burn_in": 2,
    "train_c.horizon": 3, "train_c.steps": 1, "train_c.start": 0, "train_c.scale_window": 2,
    "evaluation.episodes": 2, "evaluation.num_envs": 2, "evaluation.every": 1,
    "evaluation.interim": 2,
}


class Walk(gymnasium.Env):
    """Five places in a row, shown as one category; the episode ends at the right end, which pays,
    or after `limit` steps."""
    observation_space, action_space = gs.Discrete(5), gs.Discrete(2)
    limit = 12

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.t = int(self.np_random.integers(4)), 0
        return self.place, {}

    def step(self, action):
        self.place, self.t = min(max(self.place + 2 * int(action) - 1, 0), 4), self.t + 1
        end = self.place == 4
        return self.place, float(end), end, self.t >= self.limit, {}


class Endless(Walk):
    "It never ends, and never pays."
    def step(self, action):
        return super().step(action)[0], 0.0, False, False, {}


class Everything(gymnasium.Env):
    "Two pictures, a vector, categories and a map."
    observation_space = gs.Dict({
        "left": gs.Box(0, 255, (16, 16, 3), np.uint8),
        "right": gs.Box(0, 255, (16, 16, 3), np.uint8),
        "speed": gs.Box(-np.inf, np.inf, (2,), np.float32), "gear": gs.Discrete(3),
        "map": gs.Box(np.zeros((3, 4, 1), np.int8), np.full((3, 4, 1), 3, np.int8), dtype=np.int8),
    })
    action_space = gs.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.t += 1
        return self.observation_space.sample(), float(action[0]), self.t == 6, False, {}


for world in (Walk, Endless, Everything):
    gymnasium.register(f"health/{world.__name__}-v0", entry_point=world)
WORLDS = {"simulus/Catch-v0": {"env_options": {"rows": 6, "size": 16}}, "CartPole-v1": {},
          "health/Walk-v0": {"train_m.prioritised": 0.3},
          "health/Everything-v0": {"curiosity.heads": 2}}


def settings(env):
    return preset("small").change(TOY | {"env": env} | WORLDS.get(env, {}))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "A tiny finished run in every kind of world: folder by id."
    found, patch = {}, pytest.MonkeyPatch()
    patch.setattr("simulus_nb.trainer.leave_media", lambda trainer: None)
    for i, env in enumerate(WORLDS):
        out = tmp_path_factory.mktemp("runs") / str(i)
        Trainer(settings(env), out, progress=False).train()
        found[env] = RunFolder(out)
    patch.undo()
    return found


def contents(folder, but=()):
    return {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file() and p not in but}


# the table of all numbers

def test_the_table_holds_every_logged_number_and_no_other(runs):
    keys = {key for run in runs.values() for record in run.history() for key in record}
    assert {metric_key(key) for key in keys} == set(METRICS)
    assert {"m/obs/speed", "v/left/pixel", "v/pixel"} <= keys


@pytest.mark.parametrize("key", ["m/luck", "v", "obs/x", "v/pixels", "c/left/value"])
def test_a_number_that_nobody_logs_is_no_row(key):
    with pytest.raises(UserError, match="no number that a run logs"):
        metric_key(key)


def test_the_table_points_to_equations_and_chapters_that_exist(capsys):
    books = {p.stem: p.read_text(encoding="utf8") for p in (ROOT / "nbs").glob("*.ipynb")}
    everything = "".join(books.values())
    for metric in METRICS.values():
        assert metric.chapter in books
        for number in re.findall(r"\((\d+\.\d+\w?)\)", metric.equation):
            assert f"tag{{{number}}}" in everything
    assert all(rule.chapter in books for rule in RULES.values())
    assert main(["inspect", "--metrics"]) == 0
    said = capsys.readouterr().out
    assert all(f"| `{key}` |" in said for key in METRICS)


# inspect

@pytest.mark.parametrize("env", WORLDS)
def test_inspect_works_in_every_kind_of_world_and_changes_only_media(runs, env, capsys):
    run = runs[env]
    picture = run.media / "health.png"
    before = contents(run, [picture])
    assert main(["inspect", str(run.path), "--episodes", "3", "--max-steps", "20"]) == 0
    assert contents(run, [picture]) == before and picture.stat().st_size > 1_000
    said = capsys.readouterr().out
    kinds = {m.kind for m in Agent.load(run.path).obs_spec.modalities}
    for kind, line in (("image", "codes in use"), ("vector", "rounding error")):
        assert (line in said) == (kind in kinds)
    assert "m/done" in said and "temperature used" in said and "begin with: " in said
    if env == "health/Everything-v0":
        keys = ("left", "gear", "map", "speed")
        assert all(f"m/obs on fresh play, {key}" in said for key in keys)


def test_the_best_agent_has_a_picture_of_its_own(runs):
    run = runs["health/Walk-v0"]
    assert main(["inspect", str(run.path), "--which", "best", "--episodes", "2"]) == 0
    assert (run.media / "best" / "health.png").exists()


def test_the_same_seed_says_the_same(runs, capsys):
    line = ["inspect", str(runs["CartPole-v1"].path), "--episodes", "2", "--max-steps", "30"]
    said = []
    for _ in range(2):
        assert main(line) == 0
        said.append(capsys.readouterr().out)
        torch.rand(7), np.random.rand()             # nobody depends on the global streams
    assert said[0] == said[1]


def test_an_interrupted_run_can_be_looked_at(tmp_path):
    class Stop(Callback):
        def on_epoch(self, trainer, record):
            raise Stopped
    with pytest.raises(Stopped):
        Trainer(settings("health/Walk-v0"), tmp_path, progress=False, callbacks=[Stop()]).train()
    assert not RunFolder(tmp_path).manifest.exists()
    assert main(["inspect", str(tmp_path), "--episodes", "2"]) == 0


def test_a_world_that_never_ends_is_cut(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("simulus_nb.trainer.leave_media", lambda trainer: None)
    config = settings("health/Endless-v0").change(
        {"evaluation.max_steps": 20, "evaluation.every": 0}
    )
    Trainer(config, tmp_path, progress=False).train()
    assert main(["inspect", str(tmp_path), "--episodes", "2", "--max-steps", "25"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"reward in sight +0 .*look here +no reward was ever paid", said)
    assert re.search(r"p\(end\) at ends +-", said)              # it cannot be told


@pytest.mark.parametrize("what", ["nothing", "a file", "empty", "no checkpoint", "damaged"])
def test_what_is_no_run_is_refused_in_one_line(runs, what, tmp_path, capsys):
    place = tmp_path / "place"
    if what == "a file":
        place.write_text("hello")
    elif what != "nothing":
        place.mkdir()
    if what in ("no checkpoint", "damaged"):
        (place / "config.json").write_bytes(runs["health/Walk-v0"].config.read_bytes())
    if what == "damaged":
        (place / "checkpoint" / "save-00000001").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    assert main(["inspect", str(place)]) == 2
    out, err = capsys.readouterr()
    assert not out and len(err.strip().splitlines()) == 1 and "place" in err
    assert sorted(tmp_path.rglob("*")) == before


def test_inspect_asks_before_it_imports(runs, tmp_path, monkeypatch, capsys):
    (tmp_path / "gift_of_health.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    place = tmp_path / "run"
    config = runs["health/Walk-v0"].read_config().change({"env": "gift_of_health:Gift-v0"})
    trainer = Trainer(settings("health/Walk-v0"), place, progress=False)
    trainer.run_epoch()
    trainer.state.config = config
    trainer.save(trainer.folder.checkpoint)
    trainer.folder.write(trainer.folder.config, config.to_json())
    trainer.state.worlds.close()
    trainer.folder.leave()
    assert main(["inspect", str(place)]) == 2
    assert "--allow-import" in capsys.readouterr().err


def test_looking_draws_from_nobodys_stream(runs):
    run = runs["health/Walk-v0"]
    config, agent = run.read_config(), Agent.load(run.path)
    world = lambda training: Walk()
    replay = play(agent, Walk, 6, 3)
    before, numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = gather(agent, config, replay, [], world, 3, 20)
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy).all()
    again = gather(agent, config, replay, [], world, 3, 20)
    assert report(look(first)) == report(look(again))


# floors and ceilings

@pytest.mark.parametrize("symbols,actions", [(2, 2), (5, 3)])
def test_the_floor_of_a_deterministic_world_is_zero(symbols, actions):
    z = torch.randint(symbols, (3_000, 3))
    action = torch.randint(actions, (3_000, 1))
    after = (z + action) % symbols
    group, often = repeats(z, action)
    assert column_entropy(after[often], group[often]).abs().max() == 0
    assert (column_entropy(after) > 0.9 * math.log(symbols)).all()
    q = F.one_hot((after[:, 0] == 0).long(), 2).float()
    assert histogram_bounds(q, group, often)[0] == 0


def test_the_floor_never_exceeds_the_ceiling_and_needs_repeats():
    for _ in range(20):
        z, a = torch.randint(3, (400, 1)), torch.randint(2, (400, 1))
        after = torch.randint(4, (400, 2))
        group, often = repeats(z, a)
        assert (column_entropy(after, group) <= column_entropy(after) + 1e-6).all()
        low, high = histogram_bounds(torch.rand(400, 5).softmax(-1), group, often)
        assert 0 <= low <= high + 1e-6
    sizes = torch.tensor([LEAST - 1, LEAST])
    z = torch.arange(2).repeat_interleave(sizes)[:, None]
    assert repeats(z, 0 * z)[1].tolist() == [False] * (LEAST - 1) + [True] * LEAST


class Known(torch.nn.Module):
    "A world of one token with three values, and a model that knows its chances or frequencies."
    chances = torch.tensor([0.75, 0.25, 0.0])
    end = 0.1

    def __init__(self, knows=True):
        super().__init__()
        spec = ObsSpec.from_space(gs.Discrete(3))
        self.layout, self.knows = MultiModalTokenizer(spec).layout, knows
        self.reward = HLGauss(-3, 3, 31)

    def segment(self, batch, length):
        "Windows of the world, some of them padded."
        z, action = [torch.randint(3, (batch,))], torch.randint(2, (batch, length, 1))
        for t in range(length - 1):
            luck = self.chances.multinomial(batch, replacement=True)
            z.append((z[-1] + action[:, t, 0] + luck) % 3)
        z = torch.stack(z, 1)[..., None]
        reward, mask = z[..., 0].float(), torch.rand(batch, 1) < torch.ones(batch, length)
        mask[: batch // 2, -2:] = False
        done = torch.rand(batch, length) < self.end
        return Segment(z, action, reward, done & mask, mask, torch.zeros_like(mask).long())

    def forward(self, z, action, mask=None, keep=False, context=1, done=None):
        if self.knows:
            likely = (z + action)[..., 0]
            p = torch.stack([self.chances[(k - likely) % 3] for k in range(3)], -1)
        else:
            p = torch.full((*z.shape[:2], 3), 1 / 3)
        q = self.reward.encode(z[..., 0].float())
        logits = p.clamp(min=1e-30).log()[:, context - 1:, None, None]
        end = torch.full(z.shape[:2], math.log(self.end / (1 - self.end)))
        return Prediction({self.layout.groups[0].key: logits}, q.clamp(min=1e-30).log(), end), None


@pytest.mark.parametrize("context", [1, 3])
def test_a_perfect_model_pays_the_entropy_and_a_blind_one_the_ceiling(context):
    torch.manual_seed(context)
    perfect = Known()
    s, key = perfect.segment(3_000, 8), perfect.layout.groups[0].key
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    said = ask(perfect, s, context)
    assert mean_of(said.obs[key]) == pytest.approx(entropy, abs=0.02)
    pairs = s.mask[:, :-1] & s.mask[:, 1:]
    before, action, after = s.z[:, :-1][pairs], s.action[:, :-1][pairs], s.z[:, 1:][pairs]
    group, often = repeats(before, action)
    low, high = column_entropy(after, group).item(), column_entropy(after).item()
    assert low == pytest.approx(entropy, abs=0.02) and high == pytest.approx(math.log(3), abs=0.01)
    assert share_left(mean_of(said.obs[key]), low, high) == pytest.approx(0, abs=0.03)
    blind = mean_of(ask(Known(knows=False), s, context).obs[key])
    assert share_left(blind, low, high) == pytest.approx(1, abs=0.02)
    q = perfect.reward.encode(said.paid)
    bounds = histogram_bounds(q, before[:, 0], torch.ones(len(before), dtype=torch.bool))
    assert share_left(mean_of(said.reward), *bounds) == pytest.approx(0, abs=1e-4)
    ends = histogram_bounds(F.one_hot(said.ended.long(), 2).float(), group, often)
    assert math.isnan(share_left(mean_of(said.end), *ends))     # a coin: nothing is to be learnt


def test_the_rows_average_to_the_loss_of_the_model():
    config = settings("CartPole-v1")
    world = lambda training: gymnasium.make("CartPole-v1")
    agent = make_agent(config, *specs_of(config, world)).eval()
    fresh = play(agent, partial(world, False), 6, 3)
    for context in (1, 2):
        s = fresh.segments(16, 6, context)
        said = ask(agent.world_model, s, context)
        _, terms = world_model_loss(
            agent.world_model, s.z, s.action, s.reward, s.done, s.mask, context
        )
        for name, x in (("obs", said.obs["obs"]), ("reward", said.reward), ("done", said.end)):
            assert mean_of(x) == pytest.approx(terms[name].item(), abs=1e-5)


# made-up evidence

@pytest.fixture(scope="module")
def healthy():
    "Evidence of a run with which everything is well."
    config = settings("health/Walk-v0").change({"train_c.horizon": 6, "train_m.segment": 8})
    world = lambda training: Walk()
    agent = make_agent(config, *specs_of(config, world)).eval()
    generator = torch.Generator().manual_seed(0)
    replay, fresh = play(agent, Walk, 60, 20, seed=5), play(agent, Walk, 30, 15, seed=9)
    bounds = {"replay": bounds_of(agent.world_model, replay)}
    fresh_bounds = bounds_of(agent.world_model, fresh)
    ended = fresh.done[fresh.lists().moves]
    n, key = len(ended), agent.obs_spec.modalities[0].key
    paid = fresh.reward[fresh.lists().moves]
    b = bounds["replay"]
    said = Said({key: torch.full((n,), b.obs[key][0])}, torch.full((n,), b.reward[0]),
                torch.full((n,), b.end[0]), paid, paid, ended.float(), ended)
    loop = open_loops(agent, config, fresh, generator)
    loop = replace(loop, dream=loop.z, obs=loop.obs | {"dream": loop.obs["real"]})
    dreams = dream_again(agent, config, fresh, generator)
    told = opinions(agent, fresh, config.train_c.loss.gamma)
    ones, zeros = Evaluation((1.0, 0.9), (5, 5)), Evaluation((0.1, 0.3), (5, 5))
    history = [{"epoch": i, "m/loss": 1.0, "c/return_scale": 0.5, "c/entropy": 0.5}
               for i in range(100)]
    return Evidence(
        agent, config, replay, history, fresh, bounds | {"fresh": fresh_bounds},
        {"replay": said, "fresh": said}, loop,
        dreams._replace(dreamt=dreams.true, ends=dreams.true_ends),
        told._replace(value=told.true, entropy=0 * told.true + 0.3),
        {"used": ones, "one": ones, "random": zeros}
    )


def of(e, who="fresh", **changes):
    "Other things said about fresh play or the replay."
    return {"said": e.said | {who: e.said[who]._replace(**changes)}}


def drifted(e):
    "A world that stands still, and a dream that does not."
    still = {k: x[:, :1].expand_as(x) for k, x in e.loop.obs["real"].items()}
    dream = {k: (x + 1) % 5 for k, x in still.items()}
    return replace(e.loop, obs={"real": still, "dream": dream})


def fond_of_old(e):
    "Losses by which M reads no window with the last row of an episode."
    own, replay = Priorities(e.replay, e.config.train_m.segment, share=1.0), e.replay
    s = replay.window(torch.arange(len(own.losses())), own.length)
    last = (s.mask & (replay.position[s.index] == replay.end[s.index])).any(1)
    own.record(s, torch.where(last, 0.0, 60.0))
    return own


DOCTORED = {     # {what was done: (the change, lines that must say so, lines that also may)}
    "M blind": (lambda e: of(e, obs={k: 0 * x + 5 for k, x in e.said["fresh"].obs.items()}),
                {"m/obs on fresh play", "fresh less replay"}, set()),
    "M untaught": (lambda e: of(e, "replay", obs={k: 0 * x + 5 for k, x in
                                                  e.said["fresh"].obs.items()}),
                   {"m/obs on replay"}, set()),
    "ends unlearnt": (lambda e: of(e, chance=0 * e.said["fresh"].chance + 0.01,
                                   end=0 * e.said["fresh"].end + e.bounds["replay"].end[1]),
                      {"m/done", "p(end) at ends"}, set()),
    "ends everywhere": (lambda e: of(e, chance=0 * e.said["fresh"].chance + 0.5),
                        {"p(end) elsewhere"}, set()),
    "rewards unlearnt": (lambda e: of(e, reward=0 * e.said["fresh"].reward
                                      + e.bounds["replay"].reward[1]), {"m/reward"}, set()),
    "clipped": (lambda e: {"config": e.config.change({"world_model.reward_limit": 0.2})},
                {"rewards outside"}, set()),
    "clipped values": (lambda e: {"config": e.config.change(
        {"controller.value": "histogram", "controller.value_limit": 0.2})},
        {"returns outside"}, set()),
    "drift": (lambda e: {"loop": drifted(e)}, {"error after H"},
              {"error after 1", "error after 5"}),
    "dreams that pay": (lambda e: {"dreams": e.dreams._replace(dreamt=e.dreams.true + 2)},
                        {"dreamt return"}, set()),
    "immortal dreams": (lambda e: {"dreams": e.dreams._replace(ends=0 * e.dreams.ends)},
                        {"dreams that end"}, set()),
    "vain critic": (lambda e: {"told": e.told._replace(value=e.told.true + 3)}, {"value"}, set()),
    "perverse critic": (lambda e: {"told": e.told._replace(
        value=2 * e.told.true.mean() - e.told.true)}, {"value and return"}, set()),
    "random policy": (lambda e: {"told": e.told._replace(entropy=0 * e.told.true + math.log(2))},
                      {"entropy"}, set()),
    "given up": (lambda e: {"told": e.told._replace(entropy=0 * e.told.true),
                            "scores": e.scores | {"used": e.scores["random"],
                                                  "one": e.scores["random"]}},
                 {"entropy", "better than random"}, set()),
    "short sight": (lambda e: {"config": e.config.change({"train_c.loss.gamma": 0.05})},
                    {"reward in sight"}, set()),
    "never drawn": (lambda e: {"history": e.history[:0]}, {"draws of a row"}, set()),
    "old rows only": (lambda e: {"priorities": fond_of_old(e)}, {"newest tenth"}, set()),
    "hot": (lambda e: {"scores": e.scores | {"used": Evaluation((0.6, 0.62), (5, 5))}},
            {"temperature used"}, set()),
}


def flagged(e):
    return {r.rule for r in look(e) if not r.ok}


def test_nothing_is_said_against_a_healthy_run(healthy):
    assert flagged(healthy) == set()
    assert report(look(healthy)).endswith("nothing to complain of")
    assert against_persistence(healthy.loop)["obs"].abs().max() == 0


@pytest.mark.parametrize("what", DOCTORED)
def test_a_doctored_run_is_flagged_on_the_right_line(healthy, what):
    change, must, may = DOCTORED[what]
    found = flagged(replace(healthy, **change(healthy)))
    assert must <= found <= must | may
    text = report(look(replace(healthy, **change(healthy))))
    assert text.splitlines()[-1] == f"begin with: {next(r for r in RULES if r in found)}"


def test_a_blank_reconstruction_is_seen(runs):
    run = runs["simulus/Catch-v0"]
    config, agent = run.read_config(), Agent.load(run.path)
    world = lambda training: make_env(config.env, image_size=16, **config.env_options)
    fresh = play(agent, partial(world, True), 4, 4)
    e = SimpleNamespace(agent=agent, replay=fresh)
    found = {r.rule: r for r in look_at_codes(e)}
    assert not found["reconstruction error"].ok
    coder = agent.tokenizer.coders[0]
    obs = fresh.gather_obs(fresh.filled())["obs"]
    coder.encode = lambda x: torch.zeros(len(x), coder.group.symbols, dtype=torch.int64)
    coder.decode = lambda z: obs.float().mean(0, keepdim=True).expand(len(z), -1, -1, -1)
    found = {r.rule: r for r in look_at_codes(e)}
    assert not found["codes in use"].ok and found["codes in use"].value == pytest.approx(1)
    assert found["reconstruction error"].value == pytest.approx(1, abs=0.02)
    coder.decode = lambda z: obs                                # a perfect one
    assert {r.rule: r for r in look_at_codes(e)}["reconstruction error"].value == 0


def test_returns_of_made_up_episodes_are_those_of_the_definition(healthy):
    fresh, gamma = healthy.fresh, healthy.config.train_c.loss.gamma
    told = opinions(healthy.agent, fresh, gamma)
    assert isinstance(told, Opinions) and isinstance(healthy.dreams, Dreams)
    for e in range(5):
        true = told.true[told.episode == e]
        length = len(true)
        if fresh.done[e * fresh.ring + length - 1]:             # 1 at the end, discounted
            wanted = torch.tensor([gamma ** (length - 1 - t) for t in range(length)])
            assert torch.allclose(true, wanted, atol=1e-5)
    assert ActionSpec.from_space(Walk.action_space) == healthy.agent.action_spec
