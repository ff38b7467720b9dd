"""Flights: one run for all who ask at once, and what happens when some or all of them leave."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from services.concurrency.single_flight import SingleFlight


class Run:
    """Something to do once, at the test's pace. ``started`` and ``ended`` count; a cancelled one says so."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.started = self.ended = self.cancelled = 0
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.started += 1
        mine = self.started
        try:
            await self.gate.wait()
            if self.error is not None:
                raise self.error
            self.ended += 1
            return mine
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def joined(single_flight: SingleFlight[int], run: Run, count: int, key: str = "k") -> list[asyncio.Task[int]]:
    return [asyncio.create_task(single_flight.do(key, run)) for _ in range(count)]


def test_one_run_for_all() -> None:
    async def main() -> None:
        single_flight, run = SingleFlight[int](), Run()
        callers = joined(single_flight, run, 10)
        await settle()
        assert single_flight.running("k") and not single_flight.running("other")
        callers += joined(single_flight, run, 5)
        await settle()
        run.gate.set()
        assert await asyncio.gather(*callers) == [1] * 15
        assert (run.started, run.ended, run.cancelled) == (1, 1, 0)
        assert not single_flight.running("k")
        assert await single_flight.do("k", run) == 2  # nothing is remembered

    asyncio.run(main())


def test_keys_have_runs_of_their_own() -> None:
    async def main() -> None:
        single_flight, one, two = SingleFlight[int](), Run(), Run()
        callers = joined(single_flight, one, 2, "one") + joined(single_flight, two, 2, "two")
        await settle()
        one.gate.set()
        await settle()
        assert [caller.done() for caller in callers] == [True, True, False, False]
        two.gate.set()
        await asyncio.gather(*callers)
        assert (one.started, two.started) == (1, 1)

    asyncio.run(main())


def test_an_error_is_everybody_s_and_is_not_remembered() -> None:
    async def main() -> None:
        single_flight, run = SingleFlight[int](), Run()
        run.error = ValueError("broken")
        callers = joined(single_flight, run, 4)
        await settle()
        run.gate.set()
        errors = await asyncio.gather(*callers, return_exceptions=True)
        assert [str(error) for error in errors] == ["broken"] * 4 and run.started == 1
        assert all(isinstance(error, ValueError) for error in errors)
        run.error = None
        assert not single_flight.running("k") and await single_flight.do("k", run) == 2

    asyncio.run(main())


@pytest.mark.parametrize("leaving", [[0], [2], [0, 1, 2], [1, 3]])
def test_those_who_leave_do_not_take_it_from_the_others(leaving: list[int]) -> None:
    async def main() -> None:
        single_flight, run = SingleFlight[int](), Run()
        callers = joined(single_flight, run, 4)
        await settle()
        for number in leaving:
            callers[number].cancel()
        await settle()
        assert run.cancelled == 0 and single_flight.running("k")
        run.gate.set()
        answers = await asyncio.gather(*callers, return_exceptions=True)
        for number, answer in enumerate(answers):
            assert isinstance(answer, asyncio.CancelledError) if number in leaving else answer == 1
        assert (run.started, run.ended) == (1, 1)

    asyncio.run(main())


def test_it_ends_when_the_last_one_leaves() -> None:
    async def main() -> None:
        single_flight, run = SingleFlight[int](), Run()
        callers = joined(single_flight, run, 3)
        await settle()
        callers[0].cancel()
        callers[1].cancel()
        await settle()
        assert run.cancelled == 0
        callers[2].cancel()
        await settle()
        assert (run.cancelled, run.ended) == (1, 0) and not single_flight.running("k")

    asyncio.run(main())


def test_who_comes_after_that_begins_anew() -> None:
    """Even while the old run is still on its way out."""

    async def main() -> None:
        single_flight = SingleFlight[int]()
        leaving = asyncio.Event()
        runs: list[str] = []

        async def stubborn() -> int:
            runs.append("began")
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                await leaving.wait()
                runs.append("left")
                raise
            return 0

        async def quick() -> int:
            runs.append("quick")
            await leaving.wait()
            return 7

        first = asyncio.create_task(single_flight.do("k", stubborn))
        await settle()
        first.cancel()
        await settle()
        assert not single_flight.running("k")
        second = asyncio.create_task(single_flight.do("k", quick))
        await settle()
        assert runs == ["began", "quick"]
        third = asyncio.create_task(single_flight.do("k", quick))
        leaving.set()
        assert list(await asyncio.gather(second, third)) == [7, 7]
        # The end of the old one took nothing from the new one.
        assert runs == ["began", "quick", "left"]

    asyncio.run(main())


def test_the_last_one_leaves_before_the_run_began() -> None:
    async def main() -> None:
        single_flight, run = SingleFlight[int](), Run()
        (caller,) = joined(single_flight, run, 1)
        await asyncio.sleep(0)
        caller.cancel()
        await settle()
        assert caller.cancelled() and not single_flight.running("k") and run.ended == 0
        run.gate.set()
        assert await single_flight.do("k", run) >= 1

    asyncio.run(main())


def test_an_error_that_nobody_waits_for_is_not_complained_of() -> None:
    complaints: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        single_flight = SingleFlight[int]()

        async def spiteful() -> int:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                raise ValueError("instead of leaving") from None
            return 0

        caller = asyncio.create_task(single_flight.do("k", spiteful))
        await settle()
        caller.cancel()
        await settle()
        assert caller.cancelled()
        del caller, single_flight
        gc.collect()
        await settle()

    asyncio.run(main())
    assert complaints == []


def test_a_flight_that_is_kept_is_joined_by_those_who_come_when_all_have_left() -> None:
    async def main() -> None:
        flight: SingleFlight[int] = SingleFlight(keep=True)
        run = Run()
        for _ in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await flight.do("a", run)
        assert (run.started, run.cancelled) == (1, 0)
        last = asyncio.create_task(flight.do("a", run))
        await asyncio.sleep(0)
        run.gate.set()
        assert await last == 1 and not flight.running("a")

    asyncio.run(main())


def test_a_call_that_is_just_over_is_not_joined() -> None:
    """Who asks again because the result was gone at once would get it again for ever, without letting anybody run."""

    async def main() -> None:
        flight: SingleFlight[int] = SingleFlight(keep=True)
        go, starts = asyncio.Event(), 0

        async def start() -> int:
            nonlocal starts
            starts += 1
            await go.wait()
            return starts

        async def ask_in_the_same_round() -> int:
            await go.wait()
            return await flight.do("key", start)

        first = asyncio.create_task(flight.do("key", start))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        second = asyncio.create_task(ask_in_the_same_round())
        await asyncio.sleep(0)
        go.set()
        assert await first == 1
        assert await second == 2

    asyncio.run(main())
