"""What the batcher refuses at once, and whom it does not compute in vain."""

from __future__ import annotations

from typing import Any

import pytest

from ekiben.errors import CallerLeft, DeadlineExceeded, ModelDisabled, Overloaded
from models.engine.batcher import Batcher
from tests.models.engine.queues import Held, Order, open_kitchen, request


def test_bytes_past_the_bound_are_refused_and_not_queued(batcher: Batcher) -> None:
    held = Held(batcher)
    waiting = [held.request(n, size=400) for n in (1, 2)]
    assert batcher.waiting_bytes == 800
    with pytest.raises(Overloaded, match="too many images are waiting") as refused:
        held.request(3, size=201)
    assert isinstance(refused.value.retry_after_s, int) and refused.value.retry_after_s >= 1
    assert (batcher.waiting_bytes, batcher.depth("held")) == (800, 2)
    waiting.append(held.request(4, size=200))
    held.open()
    assert [c.result for c in waiting] == [2, 4, 8]
    assert batcher.waiting_bytes == 0
    assert 3 not in held.kitchen.prepared


def test_one_image_above_the_bound_is_taken_where_nothing_waits(batcher: Batcher) -> None:
    assert request(batcher, batcher.open_queue("a", open_kitchen()), 7, size=5000).result == 14
    assert batcher.waiting_bytes == 0


def test_a_deadline_that_passed_in_the_queue_is_told_and_not_computed(batcher: Batcher) -> None:
    held = Held(batcher)
    late, patient = held.request(1), held.request(2)
    late.item.deadline = late.item.submitted
    held.open()
    assert patient.result == 4
    with pytest.raises(DeadlineExceeded) as refused:
        _ = late.result
    assert refused.value.retry_after_s == 1
    assert held.kitchen.prepared == [1000, 2]
    assert batcher.waiting_bytes == 0


def test_a_wait_beyond_the_deadline_is_refused_on_arrival(batcher: Batcher) -> None:
    held = Held(batcher)
    for _ in range(3):
        held.queue.sizer.observe(1, 1.0)
    held.queue.sizer.size = 1
    waiting = [held.request(n) for n in range(3)]  # three seconds of work for the queue's one thread
    with pytest.raises(Overloaded, match="3 requests wait for this model, about 3 s") as refused:
        held.request(9, timeout_s=2.5)
    assert refused.value.retry_after_s == 3
    assert batcher.depth("held") == 3
    waiting.append(held.request(4, timeout_s=20.0))
    held.open()
    assert [c.result for c in waiting] == [0, 2, 4, 8]
    assert 9 not in held.kitchen.prepared


def test_a_caller_who_left_is_not_computed(batcher: Batcher) -> None:
    held = Held(batcher)
    callers = [held.request(n) for n in range(4)]
    callers[1].item.leave()
    callers[3].item.leave()
    held.open()
    assert [callers[0].result, callers[2].result] == [0, 4]
    for left in (callers[1], callers[3]):
        with pytest.raises(CallerLeft):
            _ = left.result
    assert held.kitchen.prepared == [1000, 0, 2]


def test_who_left_takes_no_place_in_a_batch(batcher: Batcher) -> None:
    held = Held(batcher, batch=2)
    callers = [held.request(n) for n in range(3)]
    callers[1].item.leave()
    held.open()
    assert [callers[0].result, callers[2].result] == [0, 4]
    assert held.kitchen.batches == [[1000], [0, 2]]


def test_who_leaves_while_a_run_hangs_keeps_no_bytes(batcher: Batcher) -> None:
    held = Held(batcher)
    waiting = [held.request(n, size=300) for n in range(3)]
    for caller in waiting:
        caller.item.leave()
        assert [type(error) for _, _, error in caller.answers] == [CallerLeft]  # at once
    assert (batcher.waiting_bytes, batcher.depth("held")) == (0, 0)
    assert request(batcher, batcher.open_queue("other", open_kitchen()), 7, size=1000).result == 14
    held.open()
    assert held.kitchen.prepared == [1000]
    assert [len(caller.answers) for caller in waiting] == [1, 1, 1]


def test_a_closed_queue_answers_all_who_wait_while_its_run_hangs(batcher: Batcher) -> None:
    held = Held(batcher)
    waiting = [held.request(n, size=300) for n in range(3)]
    batcher.open_queue("held", open_kitchen())  # of the model loaded again: those who wait are in the older queue
    batcher.close_queue("held", ModelDisabled("it is disabled"))
    for caller in waiting:
        assert [type(error) for _, _, error in caller.answers] == [ModelDisabled]
    with pytest.raises(ModelDisabled):
        held.request(4)
    assert batcher.waiting_bytes == 0
    held.open()
    assert held.kitchen.prepared == [1000]
    assert request(batcher, batcher.open_queue("held", open_kitchen()), 5).result == 10


def test_a_caller_who_leaves_while_others_of_the_batch_are_prepared(batcher: Batcher) -> None:
    held = Held(batcher)
    callers = [held.request(n) for n in range(3)]
    prepare = held.kitchen.prepare

    def leaving(payload: Order) -> Any:
        callers[2].item.leave()
        return prepare(payload)

    held.kitchen.prepare = leaving  # type: ignore[method-assign]
    held.open()
    assert [callers[0].result, callers[1].result] == [0, 2]
    with pytest.raises(CallerLeft):
        _ = callers[2].result
    assert held.kitchen.prepared == [1000, 0, 1]
