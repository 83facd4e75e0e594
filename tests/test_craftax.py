"""Craftax: floats to whole numbers and back (anywhere), and the worlds themselves (where the
package `craftax` is installed)."""
import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from simulus_nb.agent import Agent
from simulus_nb.config import preset
from simulus_nb.craftax_env import (
    BLOCK_COLOURS, CLASSIC, FULL, CraftaxClassicSymbolic, CraftaxSymbolic, compiled, endings, pack,
    picture, unpack
)
from simulus_nb.envs import make_env
from simulus_nb.spaces import ObsSpec, UserError
from simulus_nb.tokenizer import MultiModalTokenizer, TokenizerConfig

BOTH = pytest.mark.parametrize("layout", [FULL, CLASSIC], ids=["full", "classic"])


def random_obs(layout, seed, lead=()):
    "Any observation the layout can express: a dark cell shows nothing."
    rng = np.random.default_rng(seed)
    cells = rng.integers(layout.counts, size=(*lead, layout.rows, layout.cols, len(layout.counts)))
    if layout.counts[-1] == 2:
        cells *= cells[..., -1:]
    return dict(
        map=cells, vector=rng.random((*lead, len(layout.numbers)), dtype=np.float32),
        direction=rng.integers(4, size=lead)
    )


# ---- the observation, without the package

@BOTH
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**31), lead=st.sampled_from([(), (1,), (3,), (2, 2)]))
def test_pack_then_unpack_gives_everything_back(layout, seed, lead):
    obs = random_obs(layout, seed, lead)
    flat = pack(obs, layout)
    assert flat.shape == (*lead, layout.size) and flat.dtype == np.float32
    again = unpack(flat, layout)
    assert all(np.array_equal(again[k], obs[k]) and again[k].shape == obs[k].shape for k in obs)
    assert np.array_equal(pack(again, layout), flat)


@BOTH
def test_every_part_of_a_cell_has_one_float_set_or_none(layout):
    obs, cells = random_obs(layout, 0), layout.rows * layout.cols
    flat = pack(obs, layout)[:cells * sum(layout.widths)].reshape(cells, -1)
    for i, part in enumerate(np.split(flat, np.cumsum(layout.widths)[:-1], -1)):
        symbol = obs["map"].reshape(cells, -1)[:, i]
        empty = layout.counts[i] - layout.widths[i]
        lit = obs["map"].reshape(cells, -1)[:, -1] > 0 if layout is FULL else True
        assert np.array_equal(part.sum(-1), lit & (symbol >= empty))


def test_sizes_are_the_published_ones():
    assert (FULL.size, CLASSIC.size) == (8268, 1345) and (
        len(FULL.numbers), len(CLASSIC.numbers)
    ) == (47, 18)
    assert len(set(FULL.numbers)) == 47 and len(set(CLASSIC.numbers)) == 18
    assert FULL.counts == (37, 5, 41, 2) and CLASSIC.counts == (17, 5) and len(BLOCK_COLOURS) == 37


def test_a_creature_hides_the_missile_above_it_and_nothing_else():
    flat = pack(random_obs(FULL, 1), FULL)
    lit = int(np.flatnonzero(flat[82:99 * 83:83])[0])
    part = slice(lit * 83 + 42, lit * 83 + 82)
    flat[part] = 0
    flat[part.start + np.array([17, 30])] = 1
    obs = unpack(flat, FULL)
    assert obs["map"].reshape(99, 4)[lit, 2] == 1 + 17
    assert np.flatnonzero(pack(obs, FULL) != flat).tolist() == [part.start + 30]


@BOTH
@pytest.mark.parametrize("patch", [1, 2, 3])
def test_the_tokenizer_takes_the_space_as_it_is(layout, patch):
    spec = ObsSpec.from_space(layout.space())
    assert {m.key: m.kind for m in spec.modalities} == {
        "map": "grid", "vector": "vector", "direction": "categorical"
    }
    tokenizer, obs = (
        MultiModalTokenizer(spec, TokenizerConfig(grid_patch=patch)), random_obs(layout, 2, (3,))
    )
    assert (
        tokenizer.layout.K
        == -(-layout.rows // patch) * -(-layout.cols // patch) + len(layout.numbers) + 1
    )
    tensors = {k: torch.from_numpy(x) for k, x in spec.flatten(obs, batch=True).items()}
    back = tokenizer.decode(tokenizer.encode(tensors))
    assert torch.equal(back["map"], tensors["map"]) and torch.equal(
        back["direction"], tensors["direction"]
    )
    assert (back["vector"] - tensors["vector"]).abs().max() < 2 * (np.exp(0.0458 / 2) - 1)


@BOTH
def test_pictures_tell_observations_apart(layout):
    obs = random_obs(layout, 3)
    image = picture(obs, layout, scale=8)
    assert image.shape == (layout.rows * 8, layout.cols * 8, 3) and image.dtype == np.uint8
    turned = picture({**obs, "direction": (obs["direction"] + 1) % 4}, layout, scale=8)
    centre = np.zeros(image.shape[:2], bool)
    centre[layout.rows // 2 * 8:][:8, layout.cols // 2 * 8:][:, :8] = True
    changed = (image != turned).any(-1)
    assert changed.any() and not (changed & ~centre).any()          # only the player turns
    night = {**obs, "vector": np.where(np.array(layout.numbers) == "light", 0, obs["vector"])}
    assert picture(night, layout, scale=8).mean() < image.mean()


@pytest.mark.parametrize("cls", [CraftaxSymbolic, CraftaxClassicSymbolic])
def test_without_the_package_the_error_names_the_command(cls, monkeypatch):
    compiled.cache_clear()
    for name in ("jax", "craftax", "craftax.craftax_env"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        UserError, match=r'needs an optional package: pip install "simulus-nb\[craftax\]"'
    ):
        cls()


def test_importing_the_module_does_not_import_jax():
    import subprocess
    code = (
        "import sys, simulus_nb.craftax_env; print([m for m in ('jax', "
        "'craftax') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


@given(
    over=st.lists(st.booleans(), min_size=1, max_size=5), clock=st.integers(0, 20),
    limit=st.integers(1, 20)
)
def test_an_end_is_of_one_kind_at_most(over, clock, limit):
    over, clock = np.array(over), np.full(len(over), clock)
    terminated, truncated = endings(over, clock, limit)
    assert np.array_equal(terminated, over) and not (terminated & truncated).any()
    assert np.array_equal(terminated | truncated, over | (clock >= limit))


@pytest.mark.parametrize("scale", [0, -1.0, 101, float("nan")])
def test_a_scale_out_of_range_is_refused(scale):
    with pytest.raises(UserError, match="scale"):
        CraftaxSymbolic(scale=scale)


# ---- the worlds, where the package is installed

needs_craftax = pytest.mark.skipif(
    not importlib.util.find_spec("craftax"), reason="needs the package craftax"
)
WORLDS = pytest.mark.parametrize(
    "cls", [CraftaxClassicSymbolic, CraftaxSymbolic], ids=["classic", "full"]
)


@pytest.fixture(
    scope="module", params=[CraftaxClassicSymbolic, CraftaxSymbolic], ids=["classic", "full"]
)
def env(request):
    pytest.importorskip("craftax")
    return request.param()


def play(env, steps, seed):
    "Observations, rewards and flags of random play."
    rng, log = np.random.default_rng(seed), []
    obs, _ = env.reset(seed=seed)
    for _ in range(steps):
        log.append((obs, *env.step(int(rng.integers(env.action_space.n)))))
        obs = log[-1][1]
        if log[-1][3] or log[-1][4]:
            obs, _ = env.reset()
    return log


def test_the_packages_own_floats_there_and_back(env):
    "Its observation of the same state equals ours, and packing ours gives its floats."
    import jax
    from craftax.craftax_env import make_craftax_env_from_name
    look = jax.jit(make_craftax_env_from_name(env.world, auto_reset=False).get_obs)
    rng, exact = np.random.default_rng(0), 0
    obs, _ = env.reset(seed=5)
    for _ in range(250):
        flat = np.asarray(look(env.carry[0]))
        assert flat.shape == (env.layout.size,)
        read = unpack(flat, env.layout)
        assert np.array_equal(read["map"], obs["map"]) and read["direction"] == obs["direction"]
        # two compilations may round differently
        np.testing.assert_allclose(obs["vector"], read["vector"], rtol=1e-6, atol=1e-7)
        assert np.array_equal(pack(read, env.layout), flat)                         # bit for bit
        exact += np.array_equal(pack(obs, env.layout), flat)
        obs, _, terminated, truncated, _ = env.step(int(rng.integers(env.action_space.n)))
        if terminated or truncated:
            obs, _ = env.reset()
    assert exact > 200


def test_gymnasiums_checker_is_content(env):
    check_env(env, skip_render_check=True)


def test_the_same_seed_gives_the_same_life_and_another_seed_another(env):
    a, b, c = play(env, 60, 3), play(env, 60, 3), play(env, 60, 4)
    same = lambda u, v: all(
        np.array_equal(x[0][k], y[0][k]) and x[2:] == y[2:] for x, y in zip(u, v) for k in x[0]
    )
    assert same(a, b) and not same(a, c)


def test_two_environments_of_a_world_do_not_disturb_each_other(env):
    alone = play(env, 30, 7)
    other = type(env)()
    assert other.programs is env.programs                               # compiled once
    rng = np.random.default_rng(7)
    env.reset(seed=7), other.reset(seed=99)
    for step in alone:
        other.step(0)
        obs, reward, *_ = env.step(int(rng.integers(env.action_space.n)))
        assert np.array_equal(obs["map"], step[1]["map"]) and reward == step[2]


def test_observations_handed_out_are_not_changed_afterwards(env):
    obs, _ = env.reset(seed=0)
    kept = {k: np.array(v) for k, v in obs.items()}
    for _ in range(5):
        env.step(1)
    assert all(np.array_equal(kept[k], obs[k]) for k in obs)
    obs["map"][:] = 0                                       # and they belong to whoever got them


def test_death_terminates_and_reports_achievements_the_clock_truncates(env):
    env.reset(seed=1)
    state, key = env.carry
    woody = state.replace(achievements=state.achievements.at[0].set(True))
    env.carry = (
        woody.replace(
            player_health=woody.player_health * 0, player_food=woody.player_food * 0,
            player_drink=woody.player_drink * 0
        ),
        key,
    )
    _, _, terminated, truncated, info = env.step(0)
    assert terminated and not truncated and info == {"achievements": ["collect_wood"]}
    from craftax.craftax_env import make_craftax_env_from_name
    limit = make_craftax_env_from_name(env.world, auto_reset=False).default_params.max_timesteps
    assert limit == (10_000 if env.layout is CLASSIC else 100_000)
    env.carry = state.replace(timestep=state.timestep * 0 + limit - 2), key
    _, _, terminated, truncated, info = env.step(0)
    assert not terminated and not truncated and info == {}
    _, _, terminated, truncated, info = env.step(0)
    assert not terminated and truncated and info == {"achievements": []}
    # no second compilation, whatever the state came from
    assert env.programs.step._cache_size() == 1


def test_scale_multiplies_the_numbers_and_nothing_else(env):
    double = type(env)(scale=2.0)
    (a, _), (b, _) = env.reset(seed=2), double.reset(seed=2)
    assert (
        np.array_equal(a["map"], b["map"])
        and np.array_equal(2 * a["vector"], b["vector"])
        and a["vector"].any()
    )
    assert np.array_equal(env.render(), double.render()) and double.observation_space.contains(b)


@needs_craftax
@pytest.mark.parametrize(
    "env_id", ["simulus/Craftax-Symbolic-v1", "simulus/Craftax-Classic-Symbolic-v1"]
)
def test_ids_make_the_worlds(env_id):
    env = make_env(env_id, image_size=32, max_episode_steps=3)
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs) and obs["map"].ndim == 3
    *_, (_, _, terminated, truncated, info) = [env.step(0) for _ in range(3)]
    assert truncated and not terminated and info["episode_length"] == 3


@needs_craftax
@pytest.mark.slow
def test_the_whole_agent_trains_saves_loads_and_acts(tmp_path):
    from simulus_nb.trainer import Trainer
    config = preset("craftax-small").change(
        {
            "epochs": 2, "save_every": 2, "threads": 1, "learn_on": 0, "collect.steps": 80,
            "collect.num_envs": 2, "collect.capacity": 2_000,
            "env_options": {"scale": 2.0, "max_episode_steps": 60}, "world_model.retnet.width": 32,
            "world_model.retnet.layers": 1, "controller.width": 32, "controller.channels": [8, 8],
            "controller.embedding": 8, "train_m.batch": 4, "train_m.segment": 6,
            "train_m.steps": 12, "train_m.start": 0, "train_c.batch": 4, "train_c.burn_in": 3,
            "train_c.horizon": 4, "train_c.steps": 2, "train_c.start": 1, "evaluation.episodes": 2,
            "evaluation.num_envs": 2, "evaluation.every": 0
        }
    )
    trainer = Trainer(config, tmp_path / "run", progress=False).train()
    history = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(history) == 2 and history[-1]["env_steps"] == 160
    # M learns; C was updated
    assert history[1]["m/obs"] < history[0]["m/obs"] and np.isfinite(history[1]["c/critic"])
    assert (
        len(trainer.result.returns) == 2
        and all(np.isfinite(trainer.result.returns))
        and set(trainer.result.lengths) == {60}
    )
    trainer.agent.save(tmp_path / "agent")
    agent = Agent.load(tmp_path / "agent")
    env = make_env(config.env, **config.env_options)
    obs, _ = env.reset(seed=0)
    batch = agent.obs_spec.flatten({k: np.asarray(v)[None] for k, v in obs.items()}, batch=True)
    for each in (trainer.agent, agent):
        torch.manual_seed(0)
        tokens = each.policy(1)(batch, np.ones(1, bool))
        assert env.action_space.contains(each.action_spec.decode(tokens)[0])
    with torch.no_grad():
        z = [
            each.tokenizer.encode({k: torch.from_numpy(v) for k, v in batch.items()})
            for each in (trainer.agent, agent)
        ]
        logits = [
            each.controller.step(x, each.controller.initial_state(1))[0]
            for each, x in zip((trainer.agent, agent), z)
        ]
    assert torch.equal(*logits) and logits[0].shape[-1] == 43


def test_the_small_preset_tells_small_counts_apart():
    """The game shows a count m as sqrt(m) / 10: with the preset's scale, levels and bounds, 0 to 9
    things are ten different tokens."""
    config = preset("craftax-small")
    n, scale = len(FULL.numbers), config.env_options["scale"]
    spec = ObsSpec.from_space(spaces.Box(0, 100 * scale, (n,), np.float32))
    shown = torch.arange(10).sqrt()[:, None].expand(10, n) / 10 * scale
    tokens = MultiModalTokenizer(spec, config.tokenizer).encode({"obs": shown})
    assert all(len(column.unique()) == 10 for column in tokens.T)
