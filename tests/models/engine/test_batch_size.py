"""The learned batch size on machines whose cost is a formula: no clock, no sleep."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.engine.batch_size import BatchSizer

Cost = Callable[[int], float]


def overhead(count: int) -> float:
    """Seconds of a batch where each run costs 10 ms and each item 1 ms more."""
    return 0.010 + 0.001 * count


def proportional(count: int) -> float:
    """Seconds where nothing is gained by batching."""
    return 0.010 * count


def drive(sizer: BatchSizer, cost: Cost, waiting: int, runs: int, noise: float = 0.0, seed: int = 0) -> Counter[int]:
    """So many runs with as many ``waiting``; the sizes that were taken. ``noise``: of a run's time, up or down."""
    source, taken = random.Random(seed), Counter[int]()
    for _ in range(runs):
        count = sizer.take(waiting)
        sizer.observe(count, cost(count) * (1 + source.uniform(-noise, noise)))
        taken[count] += 1
    return taken


def test_it_starts_with_one_and_knows_nothing() -> None:
    sizer = BatchSizer(64)
    assert (sizer.size, sizer.per_item_s()) == (1, None)
    assert sizer.take(1) == 1
    assert sizer.take(50) == 1


@pytest.mark.parametrize(("limit", "learned"), [(64, 64), (8, 8), (6, 4), (1, 1)])
def test_overhead_is_shared_up_to_the_limit(limit: int, learned: int) -> None:
    sizer = BatchSizer(limit)
    taken = drive(sizer, overhead, waiting=1000, runs=60)
    assert sizer.size == learned
    assert max(taken) == learned
    assert sizer.per_item_s() == pytest.approx(overhead(learned) / learned)


def test_it_is_learned_within_a_few_runs_of_each_size() -> None:
    sizer = BatchSizer(64)
    assert drive(sizer, overhead, waiting=1000, runs=40)[64] > 10
    assert sizer.size == 64


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_where_batching_gains_nothing_it_stays_at_one(noise: float) -> None:
    sizer = BatchSizer(64)
    taken = drive(sizer, proportional, waiting=1000, runs=3000, noise=noise)
    assert sizer.size == 1
    # Trials of two, 32, 64, 128, ... runs apart.
    assert set(taken) == {1, 2} and 12 <= taken[2] <= 30


def test_a_gain_below_a_tenth_is_not_worth_the_longer_wait() -> None:
    sizer = BatchSizer(64)
    drive(sizer, lambda count: 0.0005 + 0.010 * count, waiting=1000, runs=200)
    assert sizer.size == 1
    sizer = BatchSizer(64)
    drive(sizer, lambda count: 0.004 + 0.010 * count, waiting=1000, runs=200)
    assert sizer.size == 2


def test_it_stops_where_larger_batches_become_dearer() -> None:
    sizer = BatchSizer(64)
    drive(sizer, lambda count: overhead(count) if count <= 8 else 0.010 * count, waiting=1000, runs=500)
    assert sizer.size == 8


def test_a_larger_size_is_tried_only_when_so_many_wait() -> None:
    sizer = BatchSizer(64)
    assert max(drive(sizer, overhead, waiting=5, runs=300)) <= 5
    assert sizer.size == 4
    assert set(drive(BatchSizer(64), overhead, waiting=1, runs=100)) == {1}


def test_it_comes_down_again_when_the_machine_changes() -> None:
    sizer = BatchSizer(64)
    drive(sizer, overhead, waiting=1000, runs=100)
    assert sizer.size == 64
    drive(sizer, proportional, waiting=1000, runs=1500)
    assert sizer.size == 1
    drive(sizer, overhead, waiting=1000, runs=6000)
    assert sizer.size == 64


def test_a_trial_that_never_gets_its_items_does_not_keep_it_up() -> None:
    sizer = BatchSizer(64)
    drive(sizer, overhead, waiting=20, runs=200)
    assert sizer.size == 16
    drive(sizer, proportional, waiting=20, runs=1500)
    assert sizer.size == 1


@settings(deadline=None, max_examples=60)
@given(
    limit=st.integers(1, 70), loads=st.lists(st.integers(1, 200), min_size=1, max_size=300), seed=st.integers(0, 9999)
)
def test_a_batch_never_exceeds_what_waits_or_the_limit(limit: int, loads: list[int], seed: int) -> None:
    sizer, source = BatchSizer(limit), random.Random(seed)
    for waiting in loads:
        count = sizer.take(waiting)
        assert 1 <= count <= min(waiting, limit)
        sizer.observe(count, source.uniform(0.001, 0.1))
        assert 1 <= sizer.size <= limit and sizer.size & (sizer.size - 1) == 0
        cost = sizer.per_item_s()
        assert cost is not None and 0 < cost <= 0.1


def test_a_trial_that_lost_its_items_midway_does_not_keep_it_up() -> None:
    sizer = BatchSizer(64)
    drive(sizer, overhead, waiting=20, runs=60)
    assert sizer.size == 16
    drive(sizer, overhead, waiting=40, runs=1)  # the first of a trial of 32
    drive(sizer, proportional, waiting=20, runs=1500)
    assert sizer.size == 1
