"""Summaries over games and seeds against SciPy, rliable and the published figures; records of runs,
well and badly formed."""
import json
import math
from dataclasses import MISSING, asdict, fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from simulus_nb.atari_results import chance_below, plot_records, result_table, side_by_side
from simulus_nb.config import preset
from simulus_nb.evaluate import ATARI_SCORES
from simulus_nb.records import Record, deviations, read_record, read_records
from simulus_nb.scores import (
    SUMMARIES, aggregate, bootstrap, draw_rows, improvement, iqm, mean_spread, normalise,
    performance_profile, plot_aggregates, read_scores, run_table, summaries
)
from simulus_nb.spaces import UserError

ROOT = Path(__file__).resolve().parents[1]
DATA, RESULTS = ROOT / "nbs" / "data", ROOT / "nbs" / "results"
AGENTS = ["SimPLe", "TWM", "DreamerV3", "IRIS", "REM", "Simulus"]


def published(agent):
    return normalise(read_scores(DATA / f"{agent}.json"))


def games(x):
    "A table (runs, games) as {name: runs}."
    return dict(enumerate(np.asarray(x, dtype=np.float64).T))


# ---------------------------------------------------------------- summaries

@settings(deadline=None, max_examples=30)
@given(
    arrays(
        np.float64, st.tuples(st.integers(1, 7), st.integers(1, 9)), elements=st.floats(-100, 100)
    )
)
def test_summaries_against_scipy(x):
    from scipy.stats import trim_mean                                 # SciPy: tests only
    mean, median, middle, gap = summaries(x)
    assert iqm(x) == middle == pytest.approx(trim_mean(x, 0.25, axis=None), rel=1e-9, abs=1e-9)
    assert mean == pytest.approx(x.mean(), abs=1e-9) and median == pytest.approx(
        np.median(x.mean(0))
    )
    assert gap == pytest.approx(np.mean(1 - np.minimum(x, 1)), abs=1e-9)
    stacked = summaries(np.stack([x, x + 1]))                         # leading axes are batches
    assert (
        stacked.shape == (2, 4)
        and stacked[0] == pytest.approx(summaries(x), abs=1e-9)
        and stacked[1, :3] == pytest.approx(summaries(x)[:3] + 1, abs=1e-9)
    )


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.floats(-10, 10), min_size=1, max_size=6), min_size=1, max_size=6))
def test_games_weigh_the_same_whatever_their_number_of_runs(runs):
    scores = {g: np.array(x) for g, x in enumerate(runs)}
    table = run_table(scores)
    assert table.shape == (math.lcm(*map(len, runs)), len(runs))
    for g, x in enumerate(runs):
        values, counts = np.unique(table[:, g], return_counts=True)
        own, times = np.unique(x, return_counts=True)
        assert np.array_equal(values, own) and np.array_equal(counts, times * len(table) // len(x))
    # the same runs written down twice are no news
    twice = {g: np.repeat(x, 2) if g % 2 else x for g, x in scores.items()}
    assert summaries(run_table(twice))[[0, 1, 3]] == pytest.approx(
        summaries(table)[[0, 1, 3]], abs=1e-9
    )


@settings(deadline=None, max_examples=30)
@given(arrays(np.float64, (3, 4), elements=st.floats(0, 5)), st.floats(0.1, 3))
def test_area_under_the_profile(x, top):
    tau = (np.arange(4000) + 0.5) / 4000 * top
    assert performance_profile(x, tau).mean() * top == pytest.approx(
        np.minimum(x, top).mean(), abs=top / 1000
    )
    assert performance_profile(np.stack([x, x]), tau[:7]).shape == (2, 7) and performance_profile(
        x, np.array([-1.0, 5.0])
    ).tolist() == [1.0, 0.0]


@settings(deadline=None, max_examples=30)
@given(
    arrays(np.int64, st.tuples(st.integers(1, 5), st.just(3)), elements=st.integers(0, 3)),
    arrays(np.int64, st.tuples(st.integers(1, 5), st.just(3)), elements=st.integers(0, 3))
)
def test_improvement_is_mann_whitney(x, y):
    from scipy.stats import mannwhitneyu                              # SciPy: tests only
    u = np.mean([mannwhitneyu(a, b).statistic / (len(a) * len(b)) for a, b in zip(x.T, y.T)])
    assert improvement(x, y) == pytest.approx(u, abs=1e-12) and improvement(y, x) == pytest.approx(
        1 - u, abs=1e-12
    )


FIGURES = {
    "Simulus": (1.645, 0.982, 0.990), "REM": (1.222, 0.280, 0.673), "IRIS": (1.046, 0.289, 0.501),
    "DreamerV3": (1.124, 0.485, 0.487)
}


@pytest.mark.parametrize("agent", FIGURES)
def test_published_figures(agent):
    a = aggregate(published(agent))
    assert tuple(a[k]["value"] for k in ("mean", "median", "iqm")) == pytest.approx(
        FIGURES[agent], abs=6e-4
    )


# ---------------------------------------------------------------- intervals

def test_intervals():
    x = np.random.default_rng(0).normal(1, 0.5, (5, 26))
    a = aggregate(games(x))
    assert a == aggregate(games(x)) != aggregate(games(x), seed=1) and all(
        v["low"] <= v["value"] <= v["high"] for v in a.values()
    )
    wide, narrow = (aggregate(games(x), confidence=c)["mean"] for c in (0.99, 0.5))
    assert wide["high"] - wide["low"] > narrow["high"] - narrow["low"] > 0
    # games are never exchanged: without spread between runs there is no uncertainty, however
    # different the games
    sure = aggregate(games(np.tile(np.arange(26.0), (5, 1))))
    assert all(v["low"] == pytest.approx(v["high"], abs=1e-12) for v in sure.values())
    # the spread of a resampled mean is known in closed form
    many = aggregate(games(x), repeats=20_000)["mean"]
    assert (many["high"] - many["low"]) / (2 * 1.96 * mean_spread(games(x))) == pytest.approx(
        1, abs=0.04
    )


def test_draws_are_with_replacement_inside_each_game():
    rows = draw_rows([2, 3, 1], 4000, np.random.default_rng(0))
    assert rows.shape == (4000, 6, 3) and (rows[..., 2] == 0).all()
    # a game's own draws, repeated
    assert (rows[:, :2, 0] == rows[:, 2:4, 0]).all() and (rows[:, :3, 1] == rows[:, 3:, 1]).all()
    for g, n in enumerate((2, 3)):
        counts = np.bincount(rows[:, :n, g].ravel(), minlength=n)
        assert len(counts) == n and np.abs(counts - 4000).max() < 6 * 4000**0.5
        pair = (rows[:, 0, g] == rows[:, 1, g]).mean()
        assert abs(pair - 1 / n) < 6 * (0.25 / 4000)**0.5   # independent draws: equal one time in n


def test_what_the_data_do_not_tell_is_nan():
    few = {"a": np.array([1.0, 2.0]), "b": np.array([3.0])}
    assert all(
        math.isnan(v["low"]) and math.isnan(v["high"]) and math.isfinite(v["value"])
        for v in aggregate(few).values()
    )
    means = aggregate(published("EfficientZero"))
    assert (means["mean"]["value"], means["median"]["value"]) == pytest.approx(
        (1.943, 1.090), abs=6e-4
    )
    assert all(
        math.isnan(means[k][part])
        for k in ("iqm", "optimality_gap")
        for part in ("value", "low", "high")
    ) and math.isnan(means["mean"]["low"])
    # one mean among runs: only means can be used
    mixed = aggregate({"a": np.array([1.0, 2.0]), "b": np.array(4.0)})
    assert mixed["mean"]["value"] == 2.75 and math.isnan(mixed["iqm"]["value"])


@pytest.mark.parametrize(
    "bad", [{}, {"a": np.array([])}, {"a": np.array([1.0, math.nan])}, {"a": np.ones((2, 2))}]
)
def test_wrong_tables_are_user_errors(bad):
    with pytest.raises(UserError, match="list of finite scores"):
        aggregate(bad)


def test_agents_are_compared_on_the_same_games():
    a, b = published("Simulus"), published("REM")
    with pytest.raises(UserError, match="same games"):
        bootstrap(improvement, a, {g: b[g] for g in list(b)[::-1]})
    value, low, high = bootstrap(improvement, a, b, repeats=500)
    assert low < value < high and low > 0.5


# Made with rliable 1.2.0 (arch 7.2.0), 50,000 resamples, on the files of nbs/data: values, low
# ends, high ends in the order of SUMMARIES.
RLIABLE = {
    "Simulus": (
        [1.64530863312, 0.981888784091, 0.990395047493, 0.411840077981],
        [1.5601, 0.7244, 0.8861, 0.3958], [1.7343, 1.1248, 1.1172, 0.4278]
    ),
    "REM": (
        [1.22200672403, 0.280355246092, 0.673233108546, 0.482325808117],
        [1.1736, 0.2363, 0.617, 0.47], [1.2688, 0.396, 0.7296, 0.4944]
    ),
}


@pytest.mark.parametrize("agent", RLIABLE)
def test_stored_results_of_rliable(agent):
    found, (value, low, high) = aggregate(published(agent), repeats=10_000), RLIABLE[agent]
    for k, v, a, b in zip(SUMMARIES, value, low, high):
        assert found[k]["value"] == pytest.approx(v, rel=1e-10)
        assert abs(found[k]["low"] - a) < 0.06 * (b - a) and abs(found[k]["high"] - b) < 0.06 * (
            b - a
        ), k


@pytest.fixture(scope="module")
def rliable():
    "The package, where it is installed and can be imported."
    pytest.importorskip("rliable")
    try:
        from rliable import library, metrics
    except (ImportError, TypeError) as e:  # arch 7, which it needs, does not import beside pandas 3
        pytest.skip(f"rliable is installed but does not import: {e}")
    return library, metrics


@pytest.mark.parametrize("agent", AGENTS)
def test_agrees_with_rliable(rliable, agent):
    library, metrics = rliable
    x = run_table(published(agent))
    theirs = lambda t: np.array(
        [
            metrics.aggregate_mean(t), metrics.aggregate_median(t), metrics.aggregate_iqm(t),
            metrics.aggregate_optimality_gap(t)
        ]
    )
    points, ends = library.get_interval_estimates(
        {agent: x}, theirs, reps=2_000, random_state=np.random.RandomState(0)
    )
    ours = aggregate(published(agent), repeats=2_000)
    assert [ours[k]["value"] for k in SUMMARIES] == pytest.approx(points[agent].tolist(), rel=1e-12)
    # an end of 2,000 resamples is sure to some 2 % of the width
    for k, low, high in zip(SUMMARIES, *ends[agent]):
        assert abs(ours[k]["low"] - low) < 0.1 * (high - low) and abs(
            ours[k]["high"] - high
        ) < 0.1 * (high - low), k


def test_improvement_and_profile_agree_with_rliable(rliable):
    library, metrics = rliable
    x, y, tau = (
        run_table(published("Simulus")), run_table(published("REM")),
        np.array([0, 0.25, 0.5, 1, 2, 4])
    )
    assert improvement(x, y) == pytest.approx(metrics.probability_of_improvement(x, y), rel=1e-12)
    assert improvement(y, y) == metrics.probability_of_improvement(y, y) == 0.5
    profile, _ = library.create_performance_profile({"x": x}, tau, reps=2)
    assert performance_profile(x, tau) == pytest.approx(profile["x"].tolist(), rel=1e-12)


# ---------------------------------------------------------------- files of scores

@pytest.mark.parametrize("agent", [*AGENTS, "EfficientZero"])
def test_every_published_file_is_complete(agent):
    raw = read_scores(DATA / f"{agent}.json")
    assert list(raw) == list(ATARI_SCORES)                              # so that agents line up
    assert {x.shape for x in raw.values()} == ({()} if agent == "EfficientZero" else {(5,)})


def test_the_newest_agent_has_one_game_and_enters_no_summary():
    newest = read_scores(DATA / "Simulus-A.json")
    assert {g: x.shape for g, x in newest.items()} == {
        "Breakout": (5,)
    } and "Simulus-A" not in AGENTS
    assert newest["Breakout"].min() > read_scores(DATA / "Simulus.json")["Breakout"].max()


@pytest.mark.parametrize(
    "text,say",
    [
        ("[1, 2]", "JSON object"), ("{", "JSON object"), ('{"Pong": []}', "Pong"),
        ('{"Pong": [1, NaN]}', "Pong"), ('{"Pong": "x"}', "JSON object"),
        ('{"Tetris": [1]}', "not one of the 26"), ('{"Pong": [[1]]}', "Pong")
    ],
)
def test_damaged_files_of_scores_are_refused(tmp_path, text, say):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=say) as e:
        read_scores(tmp_path / "x.json")
    assert "x.json" in str(e.value) and "\n" not in str(e.value)
    with pytest.raises(UserError, match="cannot read"):
        read_scores(tmp_path / "missing.json")


# ---------------------------------------------------------------- records of runs

def boxing(seed=0, mean=90.0, **changes):
    "A run of Boxing on an imagined GPU."
    return Record(
        **(dict(
            player="ours", env="ALE/Boxing-v5", seed=seed, steps=100_000, curve=((400, 3.0),),
            returns=(mean, mean + 2), lengths=(100, 90), settings={"epochs": 600},
            command="simulus-nb train --env ALE/Boxing-v5", wall_seconds=5400.0,
            history={"env_steps": [200, 400], "env/return": [None, 3.5]}, date="2026-11-22",
            machine="16 cores", git_commit="0123456789", versions={"torch": "2.13.0"},
            gpu="an imagined GPU", peak_bytes=3 * 2**30, preset="atari100k"
        ) | changes)
    )


def write(folder, found, name="boxing.json"):
    (folder / name).write_text(json.dumps(found))
    return folder / name


def test_a_record_is_read_and_shown(tmp_path):
    write(tmp_path, asdict(boxing()), "a.json"), write(tmp_path, asdict(boxing(1, 60.0)), "b.json")
    records = read_records(tmp_path)
    assert records == [boxing(), boxing(1, 60.0)]
    assert records[0].result.mean == 91 and records[0].exact and records[0].best == (400, 3.0)
    assert records[0].series("env/return").tolist() == [[400, 3.5]]
    assert records[0].series("nothing").shape == (0, 2)
    raw = {a: read_scores(DATA / f"{a}.json") for a in ("Simulus", "REM", "EfficientZero")}
    lines = result_table(records, raw).splitlines()
    assert len(lines) == 4
    for piece in (
        "Boxing", "100,000", "91.0 ± 1.0 of 2 games", "7.575", "92.1 to 94.72", "76.39 to 93.76",
        "mean 52.7", "1.5 h", "an imagined GPU, 3.0 GiB", "none", "0123456"
    ):
        assert f"| {piece} |" in lines[2]
    both = side_by_side(records, raw["Simulus"], "Simulus")
    assert (
        "| Boxing | 2 | 76.00 | 5 | 93.53 | yes | 0.048 |" in both
        and f"| ours | {(76 - 0.1) / 12:.3f} (" in both
    )
    axes = plot_records(records, raw).axes
    assert len(axes) == 1 and axes[0].get_title() == "Boxing" and len(axes[0].containers) == 2
    assert len(plot_aggregates({"ours": aggregate({"Boxing": np.array([1.0, 2.0])})}).axes) == 4


def test_what_departs_from_its_preset_is_not_exact():
    assert boxing().exact and not boxing(preset=None).exact
    assert not boxing(deviations=("epochs = 300 (atari100k: 600)",)).exact


def test_the_recorded_gpu_runs_are_well_formed():
    assert read_records(RESULTS / "nowhere") == []
    read_records(RESULTS / "gpu")


@pytest.mark.parametrize("name", [f.name for f in fields(Record)])
def test_every_field_of_a_record_is_checked(tmp_path, name):
    "One that has no value of its own must be there; none takes what is of another kind."
    found, field = asdict(boxing()), next(f for f in fields(Record) if f.name == name)
    with pytest.raises(UserError, match=name if name != "what" else "what must be") as e:
        read_record(write(tmp_path, found | {name: [{}, 3.5]}))
    assert "\n" not in str(e.value)
    del found[name]
    if field.default is field.default_factory is MISSING:
        with pytest.raises(UserError, match=name):
            read_record(write(tmp_path, found))


def test_other_damage_is_one_clear_line(tmp_path):
    for text, say in (
        ("{", "is not readable"), ("[]", "not a JSON object"), ('{"player": ""}', "missing")
    ):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(UserError, match=say) as e:
            read_record(tmp_path / "x.json")
        assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="missing"):
        read_record(tmp_path / "none.json")
    good = asdict(boxing())
    for change, say in (
        ({"lengths": [1]}, "a return and a length of each episode"),
        ({"returns": [], "lengths": []}, "a return and a length"),
        ({"what": "benchmark"}, "it is a benchmark"), ({"more": 1}, "unknown field more"),
        ({"returns": [1.0, math.nan]}, "not readable"),
        ({"returns": [1.0, math.inf]}, "not readable"),
        ({"returns": [1.0, True]}, "returns"), ({"returns": [1.0, None]}, "returns")
    ):
        with pytest.raises(UserError, match=say):
            read_record(write(tmp_path, good | change))


def test_chance_below():
    assert [chance_below(5, k) for k in (0, 1, 2, 3)] == [1, 1 / 6, 1 / 21, 1 / 56]
    x = np.random.default_rng(0).normal(size=(40_000, 5))
    assert (x[:, :2].max(1) < x[:, 2:].min(1)).mean() == pytest.approx(chance_below(3, 2), abs=0.01)


def test_nothing_deviates_from_the_preset_itself():
    other = {"seed": 3, "env": "ALE/Pong-v5", "device": "cpu", "save_every": 10}
    assert deviations(preset("atari100k").change(other), "atari100k") == ()
    first = deviations(preset("rem"), "atari100k")[0]
    assert first == "tokenizer.image.channels = 32 (atari100k: 64)"
