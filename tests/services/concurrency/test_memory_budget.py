"""The memory that images take at once: turns, and what is given back when."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import pytest

from ekiben.errors import DeadlineExceeded
from services.concurrency.memory_budget import MemoryBudget, MemoryLease

SOON = 20.0


class Leases:
    """Leases that tasks have taken, by name, in the order of their turns."""

    def __init__(self, budget: MemoryBudget) -> None:
        self.budget = budget
        self.turns: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, name: str, size: int, timeout_s: float = SOON) -> None:
        self._ends[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._hold(name, size, timeout_s))
        await asyncio.sleep(0)

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await self.tasks[name]

    async def _hold(self, name: str, size: int, timeout_s: float) -> None:
        async with self.budget.lease(size, time.monotonic() + timeout_s):
            self.turns.append(name)
            await self._ends[name].wait()


def test_large_images_take_turns_and_small_ones_pass() -> None:
    async def main() -> None:
        leases = Leases(MemoryBudget(1000))  # 750 for those above 31, 250 for the others
        await leases.ask("a", 400)
        await leases.ask("b", 300)
        await leases.ask("c", 500)
        await leases.ask("d", 100)  # would fit, but c was there before
        await leases.ask("small", 30)
        assert leases.turns == ["a", "b", "small"]
        assert leases.budget.held == 730
        await leases.end("b")
        assert leases.turns == ["a", "b", "small"]
        await leases.end("a")
        await asyncio.sleep(0)
        assert leases.turns == ["a", "b", "small", "c", "d"]
        for name in ("c", "d", "small"):
            await leases.end(name)
        assert leases.budget.held == 0

    asyncio.run(main())


def test_a_stream_of_small_images_does_not_delay_a_large_one() -> None:
    async def main() -> None:
        leases = Leases(MemoryBudget(1000))
        for number in range(8):
            await leases.ask(f"small {number}", 31)
        await leases.ask("small 8", 31)
        await leases.ask("large", 750)
        assert leases.turns[-1] == "large"
        assert "small 8" not in leases.turns
        for name in list(leases.turns):
            await leases.end(name)
        await leases.end("small 8")

    asyncio.run(main())


def test_who_needs_more_than_there_is_has_it_alone() -> None:
    async def main() -> None:
        leases = Leases(MemoryBudget(1000))
        await leases.ask("a", 100)
        await leases.ask("huge", 5000)
        await leases.ask("b", 100)
        assert leases.turns == ["a"]
        await leases.end("a")
        assert leases.turns == ["a", "huge"]
        await leases.end("huge")
        await asyncio.sleep(0)
        assert leases.turns == ["a", "huge", "b"]
        await leases.end("b")

    asyncio.run(main())


def test_who_leaves_lets_the_next_one_in() -> None:
    async def main() -> None:
        leases = Leases(MemoryBudget(1000))
        await leases.ask("a", 400)
        await leases.ask("b", 700)
        await leases.ask("c", 300)
        leases.tasks["b"].cancel()
        await asyncio.gather(leases.tasks["b"], return_exceptions=True)
        await asyncio.sleep(0)
        assert leases.turns == ["a", "c"]
        await leases.end("a")
        await leases.end("c")
        assert leases.budget.held == 0

    asyncio.run(main())


def test_who_leaves_in_the_moment_of_its_turn_gives_it_back() -> None:
    async def main() -> None:
        leases = Leases(MemoryBudget(1000))
        await leases.ask("a", 700)
        await leases.ask("b", 700)
        leases._ends["a"].set()
        await asyncio.sleep(0)  # a has ended, b has its turn and does not know it yet
        leases.tasks["b"].cancel()
        await asyncio.gather(*leases.tasks.values(), return_exceptions=True)
        assert leases.budget.held == 0

    asyncio.run(main())


def test_a_turn_that_does_not_come_is_a_deadline() -> None:
    async def main() -> None:
        leases = Leases(MemoryBudget(1000))
        await leases.ask("a", 700)
        await leases.ask("b", 700, timeout_s=0.01)
        with pytest.raises(DeadlineExceeded, match="waited for memory"):
            await leases.tasks["b"]
        await leases.end("a")
        assert leases.budget.held == 0

    asyncio.run(main())


def test_memory_is_held_until_the_last_has_ended() -> None:
    async def main() -> None:
        budget = MemoryBudget(1000)
        async with AsyncExitStack() as stack:
            lease: MemoryLease = await stack.enter_async_context(budget.lease(300, time.monotonic() + SOON))
            lease.share()
            lease.shrink(200)
            assert budget.held == 200
            lease.shrink(900)  # not more than it has
            assert budget.held == 200
        assert budget.held == 200
        lease.end()
        assert budget.held == 0

    asyncio.run(main())


def test_freed_memory_is_returned_once_no_large_image_is_left_or_many_have_ended() -> None:
    trims: list[int] = []

    async def main() -> None:
        budget = MemoryBudget(2_000_000_000, lambda: trims.append(budget.held))

        async def ended(count: int) -> None:
            for _ in range(count):
                async with budget.lease(100_000_000, time.monotonic() + SOON):
                    pass
            await asyncio.sleep(0.05)

        async with budget.lease(200_000_000, time.monotonic() + SOON):
            await ended(2)
            assert trims == []
            await ended(1)
            assert trims == [200_000_000]
        await asyncio.sleep(0.05)
        assert trims == [200_000_000, 0]
        async with budget.lease(10, time.monotonic() + SOON):
            pass
        await asyncio.sleep(0.05)
        assert len(trims) == 2  # a small one leaves nothing that matters

    asyncio.run(main())
