"""The asynchronous batcher: the answer, the deadline, the caller who leaves; one release for each lease."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ekiben.errors import BadImage, DeadlineExceeded, Overloaded, Unavailable
from models.engine.batcher import Batcher, ModelQueue
from models.engine.engine import Engine
from models.engine.loaded_model import LoadedModel
from services.concurrency.memory_budget import MemoryBudget
from services.runners.async_batcher import AsyncBatcher
from tests.models.engine.queues import Kitchen, Order
from tests.waiting import async_eventually, eventually

LOADED = cast(LoadedModel, SimpleNamespace(detached=False))


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
        assert not first.done() and bench.leases.released == [LOADED]  # it waits no more, and keeps nothing
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


def test_a_caller_is_answered_although_its_lease_cannot_be_ended(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise AttributeError("its session is closed")

    monkeypatch.setattr(bench.leases, "release", broken)

    async def main() -> None:
        bench.kitchen.gate.set()
        memory = MemoryBudget(1000)
        deadline = time.monotonic() + 20
        async with memory.lease(100, deadline) as lease:
            result, _ = await bench.async_batcher.submit_slow(bench.queue, LOADED, Order(4), deadline, lease)
        assert result[0] == 8
        assert memory.held == 0

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
    assert bench.leases.released == [LOADED]  # of the one that waited
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


class SlowKitchen(Kitchen):
    """Orders whose number is in ``held`` wait in their preparation, those in ``held_at_the_end`` when finished."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, threading.Event] = {}
        self.held_at_the_end: dict[int, threading.Event] = {}
        self.finished_in: dict[int, str] = {}

    def prepare(self, payload: Order) -> tuple[Any, Any]:
        if (held := self.held.get(payload.number)) is not None:
            assert held.wait(20)
        return super().prepare(payload)

    def finish(self, output: Any, prepared: Any, payload: Order) -> Any:
        self.finished_in[payload.number] = threading.current_thread().name
        if (held := self.held_at_the_end.get(payload.number)) is not None:
            assert held.wait(20)
        return super().finish(output, prepared, payload)


class SlowBench(Bench):
    """A queue of batches up to eight, and memory for images."""

    def __init__(self) -> None:
        super().__init__()
        self.slow_kitchen = SlowKitchen()
        self.slow_kitchen.gate.set()
        self.queue = self.batcher.open_queue("slow", self.slow_kitchen, max_batch=8)
        self.memory = MemoryBudget(1000)

    async def request_slow(self, number: int, *, timeout_s: float = 20, trouble: str = "") -> tuple[Any, Any]:
        deadline = time.monotonic() + timeout_s
        async with self.memory.lease(100, deadline) as memory:
            return await self.async_batcher.submit_slow(
                self.queue, LOADED, Order(number, trouble=trouble), deadline, memory
            )


@pytest.fixture
def slow_bench() -> Iterator[SlowBench]:
    bench = SlowBench()
    yield bench
    for held in [*bench.slow_kitchen.held.values(), *bench.slow_kitchen.held_at_the_end.values()]:
        held.set()
    bench.kitchen.gate.set()
    bench.async_batcher.close()
    bench.batcher.close(5)


def test_a_slow_image_is_answered_as_any_other(slow_bench: SlowBench) -> None:
    async def main() -> None:
        result, timing = await slow_bench.request_slow(21)
        assert result == (42, "prepared 21")
        assert timing.batch_size == 1
        assert min(timing.queue_ms, timing.prepare_ms, timing.inference_ms, timing.finish_ms) > 0
        assert slow_bench.leases.released == [LOADED]
        assert slow_bench.memory.held == 0
        assert slow_bench.slow_kitchen.finished_in[21].startswith("slow-image")

    asyncio.run(main())


@pytest.mark.parametrize("step", ["held", "held_at_the_end"])
def test_nobody_waits_for_a_slow_image(slow_bench: SlowBench, step: str) -> None:
    """Neither while it is decoded nor while its answer is made, with one thread for all."""
    getattr(slow_bench.slow_kitchen, step)[1] = held = threading.Event()

    async def main() -> None:
        slow = asyncio.create_task(slow_bench.request_slow(1))
        others = await asyncio.gather(*(slow_bench.request(number) for number in range(2, 30)))
        assert [result[0] for result, _ in others] == [2 * number for number in range(2, 30)]
        assert not slow.done()
        held.set()
        assert (await slow)[0][0] == 2

    asyncio.run(main())


def test_an_error_of_a_slow_image_is_its_own(slow_bench: SlowBench) -> None:
    async def main() -> None:
        for trouble, error in (("prepare", BadImage), ("finish", ZeroDivisionError)):
            with pytest.raises(error):
                await slow_bench.request_slow(1, trouble=trouble)
        with pytest.raises(FloatingPointError):
            await slow_bench.request_slow(-1)
        await async_eventually(lambda: len(slow_bench.leases.released) == 3)
        assert slow_bench.memory.held == 0

    asyncio.run(main())


def test_memory_is_held_while_a_slow_image_is_decoded_for_nobody(slow_bench: SlowBench) -> None:
    slow_bench.slow_kitchen.held[1] = held = threading.Event()

    async def main() -> None:
        slow = asyncio.create_task(slow_bench.request_slow(1))
        await asyncio.sleep(0.05)
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        assert slow_bench.memory.held == 100
        assert slow_bench.leases.released == [LOADED]
        held.set()
        await async_eventually(lambda: slow_bench.memory.held == 0)
        assert slow_bench.slow_kitchen.batches == []

    asyncio.run(main())


def test_a_slow_image_that_waits_for_a_thread_is_not_decoded_after_its_deadline(slow_bench: SlowBench) -> None:
    slow_bench.slow_kitchen.held[1] = held = threading.Event()

    async def main() -> None:
        first = asyncio.create_task(slow_bench.request_slow(1))
        await asyncio.sleep(0)
        with pytest.raises(DeadlineExceeded):
            await slow_bench.request_slow(2, timeout_s=0.05)
        assert slow_bench.memory.held == 100
        held.set()
        await first
        assert slow_bench.slow_kitchen.prepared == [1]

    asyncio.run(main())


def test_what_was_answered_is_freed_without_a_garbage_collection(slow_bench: SlowBench) -> None:
    """Cycles of references would keep images in memory for minutes."""
    orders = [Order(number) for number in range(6)]
    alive = [weakref.ref(order) for order in orders]

    async def main() -> None:
        deadline = time.monotonic() + 20

        async def slow(order: Order) -> None:
            async with slow_bench.memory.lease(100, deadline) as memory:
                await slow_bench.async_batcher.submit_slow(slow_bench.queue, LOADED, order, deadline, memory)

        tasks = [asyncio.create_task(slow(order)) for order in orders[:3]]
        tasks += [
            asyncio.create_task(slow_bench.async_batcher.submit(slow_bench.queue, LOADED, order, 1, deadline))  # type: ignore[arg-type]
            for order in orders[3:]
        ]
        await asyncio.gather(*tasks)
        tasks.clear()
        orders.clear()
        await async_eventually(lambda: not any(reference() for reference in alive), limit_s=5)

    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()
