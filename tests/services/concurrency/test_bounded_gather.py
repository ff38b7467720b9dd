"""Bounded concurrent calls: order, bound, and the end of the others at an error or a cancellation."""

from __future__ import annotations

import asyncio

import pytest

from services.concurrency.bounded_gather import gather_bounded


class Calls:
    """Calls that wait for their turn to end; ``most``: so many were running at once."""

    def __init__(self) -> None:
        self.running = self.most = 0
        self.begun: list[int] = []
        self.cancelled: set[int] = set()

    async def __call__(self, number: int) -> int:
        self.begun.append(number)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for _ in range(10 - number):  # the later ones end first
                await asyncio.sleep(0)
            return number * number
        except asyncio.CancelledError:
            self.cancelled.add(number)
            raise
        finally:
            self.running -= 1


@pytest.mark.parametrize(("at_once", "most"), [(1, 1), (3, 3), (100, 8)])
def test_results_are_in_the_order_of_the_calls(at_once: int, most: int) -> None:
    calls = Calls()
    assert asyncio.run(gather_bounded(calls, range(8), at_once)) == [0, 1, 4, 9, 16, 25, 36, 49]
    assert (calls.most, calls.begun) == (most, list(range(8)))


def test_no_calls() -> None:
    assert asyncio.run(gather_bounded(Calls(), [], 4)) == []


def test_the_first_error_cancels_the_others() -> None:
    calls = Calls()

    async def failing(number: int) -> int:
        if number == 2:
            raise ValueError("two")
        return await calls(number)

    with pytest.raises(ValueError, match="two"):
        asyncio.run(gather_bounded(failing, range(8), 3))
    assert (calls.begun, calls.cancelled, calls.running) == ([0, 1], {0, 1}, 0)


def test_a_cancellation_cancels_the_calls() -> None:
    calls = Calls()

    async def main() -> None:
        task = asyncio.create_task(gather_bounded(calls, range(8), 2))
        while not calls.begun:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert calls.running == 0 and calls.cancelled == {0, 1}
