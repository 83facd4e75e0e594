"The bench: counts that are exact, times that are medians, and no number that was not measured."
import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from simulus_nb import bench as module
from simulus_nb.bench import (
    Bench, Products, bench, bench_table, clock, compare, compare_table, duration, encoded_rows,
    run_counts, run_seconds
)
from simulus_nb.config import catch, cost, preset

TINY = {
    "threads": 1, "device": "cpu", "collect.steps": 30, "collect.capacity": 2_000,
    "train_v.batch": 4, "train_m.batch": 3, "train_m.segment": 5, "train_c.batch": 4,
    "train_c.burn_in": 3, "train_c.horizon": 4
}


def test_encoded_rows_equals_counting():
    for values in (
        {}, {"collect.capacity": 700}, {"epochs": 9, "learn_on": 5},
        {"train_m.start": 8, "train_c.start": 3}, {"train_m.start": 50, "train_c.start": 50}
    ):
        c = catch().change(
            {
                "epochs": 12, "learn_on": 2, "train_m.start": 2, "train_c.start": 5,
                "collect.steps": 100, **values
            }
        )
        stored = total = 0
        for epoch in range(c.epochs):
            stored = (
                min(stored + c.collect.steps, c.collect.capacity)
                if epoch < c.collecting
                else stored
            )
            total += stored if epoch >= c.train_m.start or epoch >= c.train_c.start else 0
        assert encoded_rows(c) == total
    assert run_seconds({"a": 3, "b": 2}, {"a": 0.5, "b": 1.0, "unused": 9.0}) == 3.5


def test_counts_are_those_of_the_configuration():
    for name in ("catch", "small", "atari100k"):
        c, n = preset(name), run_counts(preset(name))
        assert (n["play"], n["V"], n["M"], n["C"]) == (
            cost(c)["env_steps"], cost(c)["v"], cost(c)["m"], cost(c)["c"]
        )
        assert all(n[f"batch of {k}"] == n[k] for k in "VMC")
        assert run_seconds(n, dict.fromkeys(n, 1.0)) == sum(n.values())


def test_the_clock_shows_the_median_of_the_calls_that_count(monkeypatch):
    now, takes = [0.0], iter([100, 50, 3, 1, 2, 90, 2.5])
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    def work():
        now[0] += next(takes)
    assert clock(work, 5) == 2.5 and next(takes, None) is None


@pytest.fixture(scope="module")
def stand():
    stand = Bench(catch().change(TINY))
    yield stand
    stand.state.worlds.close()


@pytest.mark.parametrize("part", ["V", "M", "C", "encode", "dream"])
def test_products_count_like_pytorch(stand, part):
    """Twice the same update: the counter of PyTorch and ours, forwards and backwards, convolutions
    included."""
    work, _ = stand.parts()[part]
    work()
    with FlopCounterMode(display=False) as theirs:
        work()
    with Products() as ours:
        work()
    assert ours.flops == theirs.get_total_flops() > 0
    assert sum(n for n, _ in ours.calls.values()) > 0


@pytest.mark.parametrize("part", ["M", "dream"])
def test_attention_is_counted(part):
    "Its kernel too, which PyTorch's counter does not know on a CPU; and it runs by itself."
    stand = Bench(catch().change({**TINY, "world_model.sequence": "attention"}))
    work, _ = stand.parts()[part]
    work()
    with FlopCounterMode(display=False) as theirs:
        work()
    with Products() as ours:
        work()
    stand.state.worlds.close()
    assert ours.flops == theirs.get_total_flops() > 0
    assert any("scaled_dot_product" in str(func) for func, _ in ours.calls) and ours.alone() > 0


def test_products_alone_are_run_as_often_as_they_occurred(monkeypatch):
    "Each kind and shape once per occurrence, and no other."
    a, b = torch.randn(3, 4), torch.randn(4, 5)
    with Products() as seen:
        for _ in range(3):
            a @ b
        a.mT.contiguous() @ a
        F.conv1d(torch.randn(1, 2, 9), torch.randn(3, 2, 3))
    # each takes a second
    monkeypatch.setattr(module, "clock", lambda work, *_, **__: (work(), 1.0)[1])
    assert seen.alone() == 5
    assert seen.flops == 3 * 2 * 3 * 4 * 5 + 2 * 4 * 3 * 4 + 2 * 3 * 7 * 2 * 3


def test_one_by_one_is_the_same_network(stand):
    """Generating token by token runs the layers of M as often as POP has tokens, on the same
    weights."""
    segment, M = stand.state.replay.contexts(4, 3), stand.state.agent.world_model
    with torch.no_grad():
        memory = M.remember(segment.z[:, :2], segment.action[:, :2])
        with Products() as one:
            module.one_by_one(M, segment.z[:, 2], segment.action[:, 2], memory)
        with Products() as all_:
            M(segment.z[:, 2:], segment.action[:, 2:], memory)
    assert (
        0.9 < one.flops / all_.flops < 2.5
        and sum(n for n, _ in one.calls.values())
        > M.K * 0.8 * sum(n for n, _ in all_.calls.values()) / 4
    )


def test_bench_of_a_world_without_images():
    found = bench(preset("small").change(TINY), repeats=1)
    assert (
        set(found["seconds"])
        == {"world", "play", "encode", "M", "C", "batch of M", "batch of C", "dream", "one by one"}
        == set(found["count"]) | {"world", "dream", "one by one"}
    )
    assert set(found["flops"]) == {"encode", "M", "C", "dream"} and found["gpu"] is None
    text = bench_table(found)
    assert (
        all(part in text for part in found["seconds"])
        and text.splitlines()[-1] == f"a whole run on cpu: about {duration(found['run_seconds'])}"
    )


def test_a_variant_that_fails_does_not_cost_the_others():
    found = compare(catch().change(TINY), 1, {"graphs": {"graphs": True}, "fine": {}})
    assert (
        "--graphs" in found["variants"]["graphs"]["failed"]
        and found["variants"]["fine"]["run_seconds"] > 0
    )
    lines = compare_table(found).splitlines()
    assert (
        lines[1].startswith("graphs")
        and "failed" in lines[1]
        and lines[2].startswith("fine")
        and len(lines) == 3
    )


@pytest.mark.parametrize(
    "seconds,text",
    [
        (5, "5 seconds"), (99.4, "99 seconds"), (600, "10 minutes"), (7200, "2.0 hours"),
        (360_000, "100.0 hours")
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.gpu
def test_every_variant_of_a_gpu():
    found = compare(catch().change({**TINY, "device": "cuda"}), 2)["variants"]
    assert set(found) == {
        "float32", "bfloat16", "tf32", "bfloat16 compile", "bfloat16 graphs",
        "bfloat16 compile graphs"
    }
    assert not [name for name, f in found.items() if "failed" in f], {
        name: f.get("failed") for name, f in found.items()
    }
    assert all(f["gpu"] and f["peak_bytes"]["M"] > 0 for f in found.values())


@pytest.mark.parametrize("read", [1, 2])
def test_dreams_after_fewer_steps_than_are_timed(read):
    config = catch().change({**TINY, "train_c.burn_in": read, "train_c.context": 0})
    found = module.bench(config, repeats=1)
    assert all(x > 0 for x in found["seconds"].values())
