"""The batcher: answers and errors belong to their items, queues keep to their threads, a stop serves what waits."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import numpy as np
import pytest

from ekiben.errors import BadImage, Unavailable
from models.engine.batcher import Batcher
from tests.models.engine.queues import POISON, Held, Kitchen, Order, open_kitchen, request
from tests.waiting import eventually


def test_a_lone_request_is_answered_alone(batcher: Batcher) -> None:
    caller = request(batcher, batcher.open_queue("a", open_kitchen()), 21)
    assert caller.result == 42
    assert caller.timing.batch_size == 1 and caller.timing.queue_ms >= 0 and caller.timing.inference_ms >= 0


def test_what_gathered_is_one_batch_in_the_order_of_arrival(batcher: Batcher) -> None:
    held = Held(batcher)
    callers = [held.request(n) for n in range(6)]
    assert batcher.depth("held") == 6
    time.sleep(0.02)
    held.open()
    assert [c.result for c in callers] == [0, 2, 4, 6, 8, 10]
    assert held.kitchen.batches == [[1000], [0, 1, 2, 3, 4, 5]]
    assert {c.timing.batch_size for c in callers} == {6}
    assert min(c.timing.queue_ms for c in callers) >= 20
    assert batcher.depth("held") == 0 and batcher.waiting_bytes == 0


def test_an_error_belongs_to_its_item(batcher: Batcher) -> None:
    held = Held(batcher)
    orders = [Order(1), Order(2, trouble="prepare"), Order(3), Order(4, trouble="finish"), Order(5)]
    callers = [held.request(order) for order in orders]
    held.open()
    assert [callers[i].result for i in (0, 2, 4)] == [2, 6, 10]
    with pytest.raises(BadImage, match="image 2 is broken"):
        _ = callers[1].result
    with pytest.raises(ZeroDivisionError, match="answer 4"):
        _ = callers[3].result
    assert held.kitchen.batches == [[1000], [1, 3, 4, 5]]


def test_a_poisoned_item_in_a_run_is_isolated(batcher: Batcher) -> None:
    held = Held(batcher)
    callers = [held.request(n) for n in (1, 2, POISON, 3)]
    held.open()
    assert [callers[i].result for i in (0, 1, 3)] == [2, 4, 6]
    with pytest.raises(FloatingPointError, match="poison"):
        _ = callers[2].result
    assert held.kitchen.batches[1:] == [[1, 2, POISON, 3], [1], [2], [POISON], [3]]
    assert [len(c.answers) for c in callers] == [1, 1, 1, 1]
    assert callers[0].timing.batch_size == 1


def test_shapes_that_differ_run_apart(batcher: Batcher) -> None:
    held = Held(batcher)
    callers = [held.request(Order(n, shape=(2,) if n % 2 else (3, n))) for n in range(1, 7)]
    held.open()
    assert [c.result for c in callers] == [2, 4, 6, 8, 10, 12]
    assert sorted(held.kitchen.batches[1:]) == [[1, 3, 5], [2], [4], [6]]


def test_a_network_that_loses_rows_fails_nobody_silently(batcher: Batcher) -> None:
    class Short(Kitchen):
        def run(self, batch: Any, cancellation: Any = None) -> Any:
            return np.zeros(len(batch) - 1, np.int64)

    caller = request(batcher, batcher.open_queue("short", Short()), 1)
    with pytest.raises(RuntimeError, match="0 rows for a batch of 1"):
        _ = caller.result


def test_a_caller_whose_answer_fails_harms_nobody(batcher: Batcher, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    held = Held(batcher)
    callers = [held.request(n) for n in (1, 2)]
    deaf, gone = held.request(3), held.request(4)

    def raises(*_: object) -> None:
        raise OSError("the loop is closed")

    deaf.item.answer = gone.item.answer = raises
    gone.item.leave()
    callers += [held.request(n) for n in (5, 6)]
    held.open()
    assert [c.result for c in callers] == [2, 4, 10, 12]
    # Every thread is alive, and the queue's too: two runs at once are possible again and again.
    other = batcher.open_queue("other", open_kitchen())
    assert [request(batcher, queue, n).result for n in range(4) for queue in (held.queue, other)] == [
        0,
        0,
        2,
        2,
        4,
        4,
        6,
        6,
    ]
    assert held.queue.running == 0


def test_an_observer_that_fails_stops_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)

    def observe(key: object, count: int, seconds: float) -> None:
        raise OSError("no metrics")

    batcher = Batcher(threads=1, max_bytes=10, observe=observe)
    queue = batcher.open_queue("a", open_kitchen())
    assert [request(batcher, queue, n).result for n in range(3)] == [0, 2, 4]
    batcher.close(5)


def test_the_observer_hears_of_every_run() -> None:
    heard: list[tuple[object, int]] = []
    batcher = Batcher(threads=1, max_bytes=10, observe=lambda key, count, seconds: heard.append((key, count)))
    held = Held(batcher)
    callers = [held.request(n) for n in range(3)]
    held.open()
    assert [c.result for c in callers] == [0, 2, 4]
    batcher.close(5)
    assert heard == [("held", 1), ("held", 3)]


def test_a_queue_of_one_thread_never_runs_two_at_once(batcher: Batcher) -> None:
    one, two = open_kitchen(each_s=0.02), open_kitchen(each_s=0.02)
    queues = [
        batcher.open_queue("one", one, max_concurrency=1, max_batch=1),
        batcher.open_queue("two", two, max_batch=1),
    ]
    callers = [request(batcher, queue, n) for n in range(10) for queue in queues]
    # The queues take turns; once the first is empty, both threads serve the second.
    callers += [request(batcher, queues[1], n) for n in range(10)]
    assert [c.result for c in callers] == [2 * n for n in range(10) for _ in queues] + [2 * n for n in range(10)]
    assert (one.most_running, two.most_running) == (1, 2)


def test_a_queue_is_kept_for_its_work_and_renewed_with_another(batcher: Batcher) -> None:
    held = Held(batcher)
    assert batcher.open_queue("held", held.kitchen) is held.queue
    waiting = held.request(1)
    renewed = batcher.open_queue("held", open_kitchen(), max_batch=4)
    assert renewed is not held.queue and renewed.sizer.limit == 4
    assert request(batcher, renewed, 2).result == 4  # does not wait for the old one's run
    held.open()
    assert waiting.result == 2
    batcher.close_queue("held")
    assert (batcher.depth("held"), batcher.batch_size("held")) == (0, 1)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_close_serves_what_waits_and_refuses_what_comes(count: int) -> None:
    batcher = Batcher(threads=4, max_bytes=1000)
    held = Held(batcher, batch=1)
    waiting = [held.request(n) for n in range(count)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    eventually(lambda: batcher._closed)
    time.sleep(0.05)  # the idle threads look, and find an item that is not theirs to take
    with pytest.raises(Unavailable, match="stopping"):
        held.request(9)
    assert batcher.depth("held") == count
    held.open()
    closing.join(10)  # close itself would give up after 20 s
    assert not closing.is_alive()
    assert [c.result for c in waiting] == [2 * n for n in range(count)]
    assert not any(thread.is_alive() for thread in batcher._threads)


def test_close_gives_up_after_its_timeout() -> None:
    batcher = Batcher(threads=1, max_bytes=1000)
    held = Held(batcher)
    started = time.monotonic()
    batcher.close(timeout_s=0.1)
    assert 0.1 <= time.monotonic() - started < 5
    held.open()


def test_another_thread_takes_the_place_of_one_that_takes_long() -> None:
    batcher = Batcher(1, 10**6)
    try:
        stuck = Kitchen()
        slow = request(batcher, batcher.open_queue("stuck", stuck), 1)
        assert stuck.entered.acquire(timeout=20)
        other = request(batcher, batcher.open_queue("other", open_kitchen()), 2)
        time.sleep(0.05)
        assert not other.answers
        (thread,) = batcher._threads
        batcher.relieve(thread.ident or 0)
        batcher.relieve(thread.ident or 0)  # once is enough
        assert other.result == 4 and not slow.answers
        stuck.gate.set()
        assert slow.result == 2
        thread.join(20)  # there is one thread again
        assert not thread.is_alive() and len(batcher._threads) == 1
        assert request(batcher, batcher.open_queue("stuck", stuck), 3).result == 6
        batcher.relieve(-1)
    finally:
        batcher.close()


def test_a_stop_does_not_wait_for_a_thread_that_was_relieved() -> None:
    batcher = Batcher(1, 10**6)
    stuck = Kitchen()
    request(batcher, batcher.open_queue("stuck", stuck), 1)
    assert stuck.entered.acquire(timeout=20)
    batcher.relieve(batcher._threads[0].ident or 0)
    batcher.close(timeout_s=15)
    assert stuck.running == 1  # else it would have waited for the run
    stuck.gate.set()
