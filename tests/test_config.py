"""Configuration: published sizes, costs against a slow count, round trips, and that every mistake
names its field."""
import dataclasses
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simulus_nb.config import (
    PRESETS, CollectConfig, Config, CTraining, MTraining, atari100k, catch, check_fit, check_ranges,
    core, cost, differences, flat, is_json, overlay, preset, preset_for, rem, too_late
)
from simulus_nb.curiosity import CuriosityConfig
from simulus_nb.retnet import head_decays
from simulus_nb.spaces import UserError

few = settings(deadline=None, max_examples=30)


def leaves(config, path=""):
    "(dotted name, dataclass field, value) of every setting."
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, path + f.name + ".")
        else:
            yield path + f.name, f, value


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_survive_json(name):
    config = preset(name)
    check_ranges(config)
    check_fit(config)
    text = json.dumps(config.to_json(), allow_nan=False)
    again = Config.from_json(json.loads(text))
    assert again == config and json.dumps(again.to_json()) == text
    # tuples are tuples again
    assert all(type(a) is type(b) for a, b in zip(flat(again).values(), flat(config).values()))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("part", ["m", "c"])
def test_a_run_that_is_over_too_early_is_told_the_least_that_is_enough(name, part):
    base = preset(name)
    start = getattr(base, f"train_{part}").start + (base.train_c.critic_first if part == "c" else 0)
    for epochs in {base.learn_on + 1, max(start, base.learn_on + 1), max(start, base.learn_on) + 1}:
        config = base.change({"epochs": epochs})
        said = [line for line in too_late(config) if line.startswith(part.upper())]
        assert bool(said) == (epochs <= start)
        if said:
            steps, enough = map(int, re.findall(r"--(?:steps|epochs) (\d+)", said[0]))
            assert config.for_steps(steps).epochs == enough == start + 1
            assert config.for_steps(steps - 1).epochs == start
    assert not too_late(base)
    assert not too_late(base.change({"epochs": base.learn_on + 1, "train_m.steps": 0,
                                     "train_c.steps": 0}))


PUBLISHED = ("core", "atari100k", "rem", "dmc", "craftax")
CLAIMS = json.loads((Path(__file__).parents[1] / "nbs" / "data" / "settings.json").read_text())


KINDS = ("published", "departs", "ours")


def claimed(name):
    "{setting: (list of `nbs/data/settings.json`, what it says)} of a preset."
    found = {}
    for group in dict.fromkeys(("all", CLAIMS["like"].get(name, name), name)):
        for kind in KINDS:
            found |= {k: (kind, said) for k, said in CLAIMS[kind].get(group, {}).items()}
    return found


def unexplained(config, name):
    "Settings that are not as published and have no reason, or have one and are as published."
    mine = json.loads(json.dumps(flat(config)))
    return [k for k, (kind, said) in claimed(name).items()
            if kind == "published" and mine[k] != said or kind == "departs" and mine[k] == said[0]]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_setting_of_a_published_preset_is_published_or_has_a_reason(name):
    mine, known = flat(preset(name)), claimed(name)
    assert set(mine) - set(known) == set(), "say in nbs/data/settings.json where these come from"
    assert set(known) - set(mine) == set()
    assert unexplained(preset(name), name) == []
    for kind, said in known.values():
        reasons = {"published": ["typed"], "departs": said, "ours": [said]}[kind]
        assert all(isinstance(x, str) and x for x in reasons) and len(reasons) == (
            2 if kind == "departs" else 1)
    groups = [set(CLAIMS[kind].get(name, {})) for kind in KINDS]
    assert len(set.union(*groups)) == sum(map(len, groups))             # in one list only
    assert CLAIMS["sources"][name]


def test_the_comparison_notices_a_wrong_number():
    for name, value in {
        "train_c.critic_first": 5, "precision": "auto", "train_v.weight_decay": 0.0,
        "evaluation.every": 0, "curiosity.heads": 8, "curiosity.weight": 10,
        "curiosity.extrinsic": 100, "train_m.prioritised": 0.0
    }.items():
        assert unexplained(atari100k().change({name: value}), "atari100k") == [name]
    # a reason for what is no longer another number is noticed too
    as_theirs = atari100k().change({"tokenizer.image.quantiser": "vq-gradient"})
    assert unexplained(as_theirs, "atari100k") == ["tokenizer.image.quantiser"]


def test_the_published_agent_is_the_core_and_two_additions():
    both = {"curiosity.heads": (0, 4), "train_m.prioritised": (0, 0.3)}
    assert differences(core(), atari100k()) == both
    for name, extrinsic, intrinsic in (("atari100k", 1, 1), ("dmc", 1, 10), ("craftax", 100, 1)):
        c = preset(name)
        assert (c.curiosity.heads, c.train_m.prioritised) == (4, 0.3)
        assert (c.curiosity.extrinsic, c.curiosity.weight) == (extrinsic, intrinsic)
        assert c.train_m.batch % c.curiosity.heads == 0
    for name in ("core", "rem", "catch", "small", "minigrid", "minatar", "control", "dmc-small",
                 "craftax-small"):
        assert preset(name).curiosity == CuriosityConfig() and not preset(name).train_m.prioritised


def test_the_newest_release_is_the_published_agent_with_what_is_known_of_it():
    known = CLAIMS["newest"]["known"]
    mine = json.loads(json.dumps(flat(preset("simulus-a"))))
    assert {k: mine[k] for k in known} == known
    # digits of 8, 8, 8 are the default of the grid, and nothing else is changed
    assert differences(atari100k(), preset("simulus-a")).keys() == known.keys() - {
        "tokenizer.image.levels"}
    assert mine["tokenizer.image.vocab"] == math.prod(mine["tokenizer.image.levels"])
    assert all(len(row) == 3 and all(row) for row in CLAIMS["newest"]["rows"])


def test_windows_of_rem_are_32_to_512_tokens():
    retnet = rem().world_model.retnet
    decay = head_decays(retnet.heads, retnet.windows, block=65)
    assert torch.allclose(1 / (1 - decay[[0, -1]]), torch.tensor([32.0, 512.0]).double())
    assert Config().change(
        {"world_model.retnet.windows": [0.01, 0.2]}
    ).world_model.retnet.windows == (0.01, 0.2)


def test_published_runs_fit_their_replay_and_are_compared_by_differences():
    assert differences(Config(), core()) == {
        "precision": ("auto", "float32"), "tokenizer.vector_waves": (True, False),
        "train_v.weight_decay": (0, 0.01),
        "train_c.weight_decay": (0, 0.01), "evaluation.every": (0, 20),
        "evaluation.interim": (20, 16)
    }
    assert [cost(preset(n))["env_steps"] for n in PUBLISHED] == [
        100_000, 100_000, 100_000, 500_000, 1_000_000
    ]
    for name in PUBLISHED:                  # the whole run fits, with a last row for every episode
        assert preset(name).collect.capacity >= 1.01 * cost(preset(name))["env_steps"]


def test_every_family_of_worlds_has_its_preset():
    for name in ("catch", "small", "minigrid", "minatar", "dmc-small", "craftax-small"):
        assert preset_for(preset(name).env) == name
    assert (
        preset_for("ALE/Pong-v5") == "atari100k"
        and preset_for("BabyAI-GoToObj-v0") == "minigrid"
        and preset_for("package:World-v3") == "small"
    )


def test_published_cost():
    assert {k: cost(atari100k())[k] for k in ("env_steps", "v", "m", "c")} == {
        "env_steps": 100_000, "v": 119_000, "m": 115_000, "c": 44_000
    }


@few
@given(
    st.integers(1, 30), st.integers(0, 30), st.integers(1, 20), st.integers(1, 7),
    st.tuples(*[st.integers(0, 40)] * 3), st.tuples(*[st.integers(0, 9)] * 3)
)
def test_cost_equals_counting(collecting, learn_on, steps, envs, start, updates):
    epochs = collecting + learn_on
    c = atari100k().change(
        {
            "epochs": epochs, "learn_on": learn_on, "collect.steps": steps,
            "collect.num_envs": envs, **{f"train_{k}.start": s for k, s in zip("vmc", start)},
            **{f"train_{k}.steps": u for k, u in zip("vmc", updates)}
        }
    )
    count = dict(env_steps=0, v=0, m=0, c=0)
    for epoch in range(epochs):
        played = 0
        while epoch < collecting and played < steps:
            played += envs                                          # a round of all environments
        count["env_steps"] += played
        for k, s, u in zip("vmc", start, updates):
            count[k] += u * (epoch >= s)
    found = cost(c)
    assert c.for_steps(found["env_steps"]) == c         # the budget is counted back to the epochs
    assert {k: found[k] for k in count} == count
    S = count["env_steps"]
    assert math.isclose(found["v_reuse"] * S, count["v"] * 128) and math.isclose(
        found["m_reuse"] * S, count["m"] * 320
    )
    assert math.isclose(found["c_dreamed"] * S, count["c"] * 128 * 8)


@pytest.mark.parametrize(
    "name,field,value",
    [(n, f, v) for n, f, v in leaves(Config()) if "low" in f.metadata or "high" in f.metadata]
)
def test_every_range_is_enforced_and_named(name, field, value):
    many = isinstance(value, tuple)
    for bound, step in (("low", -1), ("high", 1)):
        if bound in field.metadata:
            wrong = field.metadata[bound] + step
            wrong = [wrong] * len(value) if many else wrong
            with pytest.raises(UserError, match=name.split(".")[-1]) as e:
                Config().change({name: wrong})
            assert "\n" not in str(e.value)


@pytest.mark.parametrize("name,field,value", list(leaves(Config())))
def test_every_field_refuses_another_type(name, field, value):
    wrong = 3 if isinstance(value, (str, dict)) else "3"
    with pytest.raises(UserError, match=name.split(".")[-1]):
        Config().change({name: wrong})


@pytest.mark.parametrize(
    "name,field,value", [x for x in leaves(Config()) if not x[0].startswith("tokenizer.image.")]
)
def test_every_field_has_a_line_of_help(name, field, value):
    assert field.metadata["help"] and "\n" not in field.metadata["help"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_are_finite(bad):
    for name in (
        "train_m.lr", "train_c.clip", "evaluation.temperature", "world_model.reward_limit"
    ):
        with pytest.raises(UserError, match="finite"):
            Config().change({name: bad})


@pytest.mark.parametrize("values,words", [
    ({"train_m.context": 10}, "train_m.segment"),
    ({"collect.capacity": 209, "collect.num_envs": 10}, "collect.capacity = 209 is too small"),
    ({"world_model.retnet.width": 258}, "multiple of 2 \\* heads"),
    # heads of width 5
    ({"world_model.retnet.width": 260, "world_model.retnet.heads": 52}, "multiple of 2 \\* heads"),
    ({"world_model.retnet.windows": [16, 4]}, "windows"),
    ({"tokenizer.image.norm_groups": 5}, "norm_groups"),
    ({"tokenizer.image.image_size": 68}, "halved"),
    ({"tokenizer.image.vocab": 2**15 + 1}, "16-bit"),
    ({"tokenizer.action_levels": 2**15 + 1}, "16-bit"),
    ({"tokenizer.vector_levels": 126}, "odd"),
    ({"tokenizer.image.image_size": 8}, "perceptual"),
    ({"train_c.burn_in": 0}, "burn_in"),
])
def test_contradictions(values, words):
    with pytest.raises(UserError, match=words):
        Config().change(values)


def test_what_just_fits():
    Config().change({"collect.capacity": 210, "collect.num_envs": 10})
    Config().change({"train_m.context": 9})
    Config().change({"tokenizer.image.vocab": 2**15})
    Config().change({"tokenizer.image.image_size": 8, "tokenizer.image.perceptual": "none"})


def test_checks_without_json():
    with pytest.raises(UserError, match="collect.epsilon"):
        Config(collect=CollectConfig(epsilon=1.5))
    with pytest.raises(UserError, match="train_c.burn_in"):
        replace(catch(), train_c=CTraining(burn_in=0))
    with pytest.raises(UserError, match="env_options"):
        Config(env_options={"f": len})
    with pytest.raises(UserError, match="env_options"):
        Config(env_options={1: 2})                                  # would come back as {"1": 2}
    with pytest.raises(dataclasses.FrozenInstanceError):
        catch().epochs = 3
    assert MTraining(lr=-1).lr == -1            # a part is checked when it becomes part of a whole


def test_unknown_names():
    for make in (
        lambda: Config.from_json({"train_m": {"lrr": 1}}),
        lambda: Config().change({"train_m.lrr": 1})
    ):
        with pytest.raises(UserError, match="train_m.lrr"):
            make()
    with pytest.raises(UserError, match="no group train_x"):
        Config().change({"train_x.lr": 1})
    with pytest.raises(UserError, match="no group epochs"):
        Config().change({"epochs.lr": 1})
    with pytest.raises(UserError, match="choose one of " + ", ".join(PRESETS)):
        preset("Catch")
    for nothing in ([], None, "catch", 3):
        with pytest.raises(UserError, match="must be an object"):
            Config.from_json(nothing)


@few
@given(st.data())
def test_change_writes_exactly_what_it_is_given(data):
    numbers = [
        (n, v)
        for n, _, v in leaves(Config())
        if type(v) is int and n.startswith(("train_", "evaluation", "collect.steps", "epochs"))
    ]
    chosen = data.draw(
        st.dictionaries(
            st.sampled_from([n for n, _ in numbers if "context" not in n]), st.integers(10, 10_000),
            max_size=5
        )
    )
    base = Config().change({"learn_on": 0})
    changed = base.change(chosen)
    assert differences(base, changed) == {
        n: (flat(base)[n], v) for n, v in chosen.items() if v != flat(base)[n]
    }
    assert base == Config().change({"learn_on": 0})                     # the original is untouched
    assert changed.change({n: flat(base)[n] for n in chosen}) == base


def test_small_helpers():
    assert overlay({"a": {"b": 1, "c": 2}}, {"a.b": 3}) == {"a": {"b": 3, "c": 2}}
    assert (
        is_json({"a": [1, "x", None, True]})
        and not is_json({"a": float("nan")})
        and not is_json({1: 2})
        and not is_json({"a": (1,)})
    )
    assert set(flat(Config())) == {n for n, _, _ in leaves(Config())}
    assert differences(Config(), Config()) == {}
