"""The asynchronous batcher: the answer, the deadline, the caller who leaves; one release for each lease."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any, cast

import pytest

from ekiben.errors import BadImage, DeadlineExceeded, Overloaded, Unavailable
from models.engine.batcher import Batcher, ModelQueue
from models.engine.engine import Engine
from models.engine.loaded_model import LoadedModel
from services.runners.async_batcher import AsyncBatcher
from tests.models.engine.queues import Kitchen, Order
from tests.waiting import async_eventually, eventually

LOADED = cast(LoadedModel, object())


class Leases:
    """The engine's side: counts what is given back, and for which model."""

    def __init__(self) -> None:
        self.released: list[object] = []

    def release(self, loaded: object) -> None:
        self.released.append(loaded)


class Bench:
    """A queue with one thread, and a kitchen that waits for the test."""

    def __init__(self) -> None:
        self.leases = Leases()
        self.batcher = Batcher(1, 100)
        self.async_batcher = AsyncBatcher(self.batcher, cast("Engine[LoadedModel]", self.leases))
        self.kitchen = Kitchen()
        self.queue: ModelQueue[Order, Any] = self.batcher.open_queue("k", self.kitchen, max_batch=1)

    async def request(self, number: int, *, timeout_s: float = 20, size: int = 1, trouble: str = "") -> tuple[Any, Any]:
        order = Order(number, trouble=trouble)
        return await self.async_batcher.submit(self.queue, LOADED, order, size, time.monotonic() + timeout_s)

    def task(self, number: int, **more: Any) -> asyncio.Task[tuple[Any, Any]]:
        return asyncio.create_task(self.request(number, **more))

    async def occupied(self) -> asyncio.Task[tuple[Any, Any]]:
        """A first item is in the only slot."""
        first = self.task(1000)
        assert await asyncio.to_thread(self.kitchen.entered.acquire, True, 10)
        return first


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.kitchen.gate.set()
    bench.batcher.close(5)


def test_an_answer_and_its_lease(bench: Bench) -> None:
    async def main() -> None:
        bench.kitchen.gate.set()
        result, timing = await bench.request(21)
        assert result == (42, "prepared 21") and timing.batch_size == 1
        assert bench.leases.released == [LOADED]

    asyncio.run(main())


@pytest.mark.parametrize(("trouble", "error"), [("prepare", BadImage), ("finish", ZeroDivisionError)])
def test_an_error_and_its_lease(bench: Bench, trouble: str, error: type[Exception]) -> None:
    async def main() -> None:
        bench.kitchen.gate.set()
        with pytest.raises(error):
            await bench.request(1, trouble=trouble)
        with pytest.raises(FloatingPointError):
            await bench.request(-1)
        assert len(bench.leases.released) == 2
        assert (await bench.request(2))[0][0] == 4

    asyncio.run(main())


def test_an_item_that_waits_too_long_is_not_computed(bench: Bench) -> None:
    async def main() -> None:
        first = await bench.occupied()
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await bench.request(1, timeout_s=0.1)
        assert 0.08 < time.monotonic() - started < 10
        assert not first.done() and bench.leases.released == []  # its turn has not come
        bench.kitchen.gate.set()
        await first
        await async_eventually(lambda: len(bench.leases.released) == 2)
        assert bench.kitchen.prepared == [1000]

    asyncio.run(main())


def test_a_run_that_takes_too_long_keeps_its_lease_to_its_end(bench: Bench) -> None:
    async def main() -> None:
        with pytest.raises(DeadlineExceeded):
            await bench.request(1, timeout_s=0.5)
        assert bench.leases.released == [] and bench.kitchen.batches == [[1]]
        bench.kitchen.gate.set()
        await async_eventually(lambda: bench.leases.released == [LOADED])
        await asyncio.sleep(0.05)
        assert bench.leases.released == [LOADED]

    asyncio.run(main())


def test_a_caller_who_leaves_is_not_computed(bench: Bench) -> None:
    async def main() -> None:
        first = await bench.occupied()
        second, third = bench.task(2), bench.task(3)
        await asyncio.sleep(0.02)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        bench.kitchen.gate.set()
        await asyncio.gather(first, third)
        assert bench.kitchen.prepared == [1000, 3]
        await async_eventually(lambda: len(bench.leases.released) == 3)

    asyncio.run(main())


def test_a_caller_who_leaves_a_run_keeps_the_lease_to_its_end(bench: Bench) -> None:
    async def main() -> None:
        first = await bench.occupied()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert bench.leases.released == []
        bench.kitchen.gate.set()
        await async_eventually(lambda: bench.leases.released == [LOADED])

    asyncio.run(main())


def test_what_is_refused_on_arrival_gives_its_lease_back_at_once(bench: Bench) -> None:
    async def main() -> None:
        first = await bench.occupied()
        waiting = bench.task(1, size=80)
        await asyncio.sleep(0.02)
        with pytest.raises(Overloaded):
            await bench.request(2, size=30)
        assert bench.leases.released == [LOADED]
        bench.kitchen.gate.set()
        await asyncio.gather(first, waiting)
        assert len(bench.leases.released) == 3
        bench.batcher.close(5)
        with pytest.raises(Unavailable):
            await bench.request(3)
        assert len(bench.leases.released) == 4

    asyncio.run(main())


def test_a_deadline_that_has_passed_is_the_deadline_s_error(bench: Bench) -> None:
    async def main() -> None:
        bench.kitchen.gate.set()
        with pytest.raises(DeadlineExceeded):
            await bench.request(1, timeout_s=-0.01)
        assert bench.kitchen.prepared == []
        await async_eventually(lambda: bench.leases.released == [LOADED])

    asyncio.run(main())


def test_the_server_stops_without_the_caller(bench: Bench) -> None:
    async def main() -> None:
        await bench.occupied()
        bench.task(2)
        await asyncio.sleep(0.02)

    asyncio.run(main())  # cancels both; its loop is closed now
    assert bench.leases.released == []
    bench.kitchen.gate.set()
    eventually(lambda: len(bench.leases.released) == 2)
    assert bench.kitchen.prepared == [1000]


def test_many_callers_of_whom_some_leave(bench: Bench) -> None:
    async def main() -> None:
        first = await bench.occupied()
        callers = [bench.task(number, size=0) for number in range(60)]
        await asyncio.sleep(0.02)
        for caller in callers[::3]:
            caller.cancel()
        await asyncio.sleep(0.02)  # until they have heard of it
        bench.kitchen.gate.set()
        answers = await asyncio.gather(first, *callers, return_exceptions=True)
        left = [isinstance(answer, asyncio.CancelledError) for answer in answers[1:]]
        assert left == [number % 3 == 0 for number in range(60)]
        await async_eventually(lambda: len(bench.leases.released) == 61)
        assert sorted(bench.kitchen.prepared) == sorted([1000, *(n for n in range(60) if n % 3)])

    asyncio.run(main())
    assert len(bench.leases.released) == 61
