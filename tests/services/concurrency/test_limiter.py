"""The limiter of a worker: how many are inside, who is inside alone, and that nobody who leaves blocks the others."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from functools import partial

import pytest

from services.concurrency.limiter import ConcurrencyLimiter


class Visits:
    """Who is inside a limiter, checked at every change."""

    def __init__(self, max_items: int, max_heavy: int) -> None:
        self.limiter = ConcurrencyLimiter(max_items, max_heavy)
        self.max_items, self.max_heavy = max_items, max_heavy
        self.inside: dict[str, tuple[bool, bool]] = {}
        self.entered: list[str] = []
        self.most = self.most_heavy = 0

    async def visit(
        self,
        name: str,
        until: Callable[[], Awaitable[object]],
        *,
        heavy: bool = False,
        alone: bool = False,
        fail: bool = False,
    ) -> None:
        async with self.limiter.acquire(heavy=heavy, exclusive=alone):
            self.inside[name] = (heavy, alone)
            self.entered.append(name)
            self.check()
            try:
                await until()
                if fail:
                    raise RuntimeError(name)
            finally:
                del self.inside[name]

    def check(self) -> None:
        heavy = sum(h for h, _ in self.inside.values())
        self.most, self.most_heavy = max(self.most, len(self.inside)), max(self.most_heavy, heavy)
        assert len(self.inside) <= self.max_items
        if any(a for _, a in self.inside.values()):
            assert len(self.inside) == 1
        elif heavy > self.max_heavy:
            raise AssertionError(f"{heavy} heavy ones are inside")


async def turns() -> None:
    """Enough turns of the event loop for everybody who can move to do so."""
    for _ in range(50):
        await asyncio.sleep(0)


async def all_done(tasks: list[asyncio.Task[None]]) -> None:
    done, late = await asyncio.wait(tasks, timeout=20)
    assert not late, "somebody waits for ever"
    for task in done:
        await task


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(main(), 30)

    asyncio.run(bounded())


def test_no_more_inside_than_places() -> None:
    async def main() -> None:
        visits = Visits(3, 1)
        await all_done([asyncio.create_task(visits.visit(str(n), partial(asyncio.sleep, 0.002))) for n in range(20)])
        assert visits.most == 3
        assert sorted(visits.entered) == sorted(map(str, range(20)))
        assert visits.inside == {}

    run(main)


def test_heavy_ones_have_fewer_places_and_leave_the_rest_to_others() -> None:
    async def main() -> None:
        visits = Visits(4, 2)
        open_heavy = asyncio.Event()
        heavy = [asyncio.create_task(visits.visit(f"h{n}", open_heavy.wait, heavy=True)) for n in range(5)]
        await turns()
        assert set(visits.inside) == {"h0", "h1"}
        light = [asyncio.create_task(visits.visit(f"l{n}", partial(asyncio.sleep, 0.001))) for n in range(6)]
        await all_done(light)  # past the heavy ones that wait
        assert (visits.most, visits.most_heavy) == (4, 2)
        open_heavy.set()
        await all_done(heavy)
        assert visits.most_heavy == 2

    run(main)


def test_heavy_ones_take_places_from_light_ones() -> None:
    async def main() -> None:
        visits = Visits(2, 2)
        open_heavy, open_light = asyncio.Event(), asyncio.Event()
        heavy = [asyncio.create_task(visits.visit(f"h{n}", open_heavy.wait, heavy=True)) for n in range(2)]
        await turns()
        light = asyncio.create_task(visits.visit("l", open_light.wait))
        await turns()
        assert set(visits.inside) == {"h0", "h1"}
        open_heavy.set()
        open_light.set()
        await all_done([*heavy, light])

    run(main)


def test_one_alone_waits_for_those_inside_and_is_next() -> None:
    async def main() -> None:
        visits = Visits(3, 1)
        first, second, lonely = asyncio.Event(), asyncio.Event(), asyncio.Event()
        inside = [
            asyncio.create_task(visits.visit("a", first.wait)),
            asyncio.create_task(visits.visit("b", second.wait)),
        ]
        await turns()
        alone = asyncio.create_task(visits.visit("alone", lonely.wait, alone=True))
        await turns()
        later = [
            asyncio.create_task(visits.visit(f"later{n}", partial(asyncio.sleep, 0), heavy=n == 0)) for n in range(3)
        ]
        await turns()
        assert set(visits.inside) == {"a", "b"}  # a place is free, but not for those who came after
        first.set()
        await turns()
        assert set(visits.inside) == {"b"}
        second.set()
        await turns()
        assert set(visits.inside) == {"alone"}
        lonely.set()
        await all_done([*inside, alone, *later])
        assert visits.entered[:3] == ["a", "b", "alone"]
        assert sorted(visits.entered[3:]) == ["later0", "later1", "later2"]

    run(main)


def test_several_alone_come_one_after_the_other() -> None:
    async def main() -> None:
        visits = Visits(4, 4)
        hold = asyncio.Event()
        first = asyncio.create_task(visits.visit("first", hold.wait))
        await turns()
        alone = [
            asyncio.create_task(visits.visit(f"alone{n}", partial(asyncio.sleep, 0.002), alone=True)) for n in range(4)
        ]
        await turns()
        others = [asyncio.create_task(visits.visit(f"other{n}", partial(asyncio.sleep, 0))) for n in range(4)]
        await turns()
        hold.set()
        await all_done([first, *alone, *others])
        assert visits.entered[0] == "first"
        assert sorted(visits.entered[1:5]) == [f"alone{n}" for n in range(4)]  # before all who came after them

    run(main)


@pytest.mark.parametrize("kind", [{}, {"heavy": True}, {"alone": True}, {"heavy": True, "alone": True}])
def test_one_that_leaves_while_waiting_blocks_nobody(kind: dict[str, bool]) -> None:
    async def main() -> None:
        visits = Visits(1, 1)
        hold = asyncio.Event()
        first = asyncio.create_task(visits.visit("first", hold.wait))
        await turns()
        leaving = [asyncio.create_task(visits.visit(f"x{n}", partial(asyncio.sleep, 0), **kind)) for n in range(3)]
        await turns()
        others = [asyncio.create_task(visits.visit(f"o{n}", partial(asyncio.sleep, 0))) for n in range(2)]
        await turns()
        for task in leaving:
            task.cancel()
        await asyncio.wait(leaving)
        assert all(task.cancelled() for task in leaving)
        hold.set()
        await all_done([first, *others])
        assert visits.entered == ["first", "o0", "o1"]

    run(main)


def test_who_waits_to_be_alone_and_leaves_lets_the_others_in_at_once() -> None:
    async def main() -> None:
        visits = Visits(2, 1)
        hold = asyncio.Event()
        first = asyncio.create_task(visits.visit("first", hold.wait))
        await turns()
        alone = asyncio.create_task(visits.visit("alone", partial(asyncio.sleep, 0), alone=True))
        await turns()
        other = asyncio.create_task(visits.visit("other", partial(asyncio.sleep, 0)))
        await turns()
        assert visits.entered == ["first"]
        alone.cancel()
        await all_done([other])  # although the first is still inside
        hold.set()
        await all_done([first])

    run(main)


@pytest.mark.parametrize("kind", [{}, {"heavy": True}, {"alone": True}])
def test_an_error_or_a_cancellation_inside_frees_the_place(kind: dict[str, bool]) -> None:
    async def main() -> None:
        visits = Visits(1, 1)
        for _ in range(3):
            with pytest.raises(RuntimeError, match="bad"):
                await visits.visit("bad", partial(asyncio.sleep, 0), fail=True, **kind)
        cancelled = asyncio.create_task(visits.visit("cancelled", partial(asyncio.sleep, 30), **kind))
        await turns()
        cancelled.cancel()
        await asyncio.wait([cancelled])
        for more in ({}, {"heavy": True}, {"alone": True}):
            await all_done([asyncio.create_task(visits.visit("next", partial(asyncio.sleep, 0), **more))])
        assert visits.entered == ["bad"] * 3 + ["cancelled"] + ["next"] * 3

    run(main)


@pytest.mark.parametrize("seed", range(8))
def test_a_crowd(seed: int) -> None:
    """Light, heavy and lonely ones come, fail and leave at any moment: Visits checks who is inside together."""
    chance = random.Random(seed)

    async def main() -> None:
        visits = Visits(chance.randint(1, 4), chance.randint(1, 2))
        tasks: list[asyncio.Task[None]] = []
        for number in range(150):
            task = asyncio.create_task(
                visits.visit(
                    str(number),
                    partial(asyncio.sleep, chance.choice((0, 0, 0.0005, 0.001))),
                    heavy=chance.random() < 0.3,
                    alone=chance.random() < 0.15,
                    fail=chance.random() < 0.1,
                )
            )
            tasks.append(task)
            if chance.random() < 0.5:
                await asyncio.sleep(0)
            if chance.random() < 0.3:
                chance.choice(tasks).cancel()
        done, late = await asyncio.wait(tasks, timeout=20)
        assert not late
        ends = [task.exception() for task in done if not task.cancelled()]
        assert all(end is None or type(end) is RuntimeError for end in ends), ends
        assert len(ends) > 50
        for more in ({}, {"heavy": True}, {"alone": True}):
            await all_done([asyncio.create_task(visits.visit("after", partial(asyncio.sleep, 0), **more))])

    run(main)
