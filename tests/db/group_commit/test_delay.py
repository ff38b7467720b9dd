"""Units that wait for others to share their transaction."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa

from db import group_commit as writers
from db.group_commit import GroupCommit
from tests.db.group_commit.units import counts, unit
from tests.waiting import eventually


class Clock:
    """Seconds that pass when the test says so; ``reads`` counts how often they were looked at."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.reads = 0

    def __call__(self) -> float:
        self.reads += 1
        return self.now

    def read_again(self) -> None:
        """Until the writer has looked at the present time, twice: the first look may have begun before."""
        reads = self.reads
        eventually(lambda: self.reads >= reads + 4, "the writer looks at its clock")


@pytest.fixture
def lingering(engine: sa.Engine) -> Iterator[Callable[..., GroupCommit]]:
    """Writers whose units wait; ``more``: whether more is to come."""
    made: list[GroupCommit] = []

    def make(
        seconds: float, more: Callable[[], bool] = lambda: True, clock: Callable[[], float] = time.monotonic
    ) -> GroupCommit:
        made.append(GroupCommit(engine, clock))
        made[-1].delay(seconds, more)
        return made[-1]

    yield make
    for writer in made:
        writer.close()


def test_units_gather(engine: sa.Engine, lingering: Callable[..., GroupCommit], commits: list[sa.Connection]) -> None:
    clock = Clock()
    writer = lingering(0.4, clock=clock)
    futures = [writer.save(unit())]
    eventually(lambda: clock.reads > 0, "the writer waits")
    began = clock.now
    clock.now = began + 0.39
    futures += [writer.save(unit()) for _ in range(4)]
    clock.read_again()
    assert (len(commits), any(future.done() for future in futures)) == (0, False)
    clock.now = began + 0.41  # that of the first is over, not that of the last
    for future in futures:
        future.result(60)
    assert len(commits) == 1
    late = writer.save(unit())  # it came too late for them and has a transaction of its own
    clock.read_again()
    clock.now += 0.41
    late.result(60)
    assert len(commits) == 2
    assert counts(engine) == [6, 6, 6]


def test_nobody_lingers_when_no_more_is_to_come(
    lingering: Callable[..., GroupCommit], commits: list[sa.Connection]
) -> None:
    more = threading.Event()
    more.set()
    writer = lingering(30, more.is_set)
    futures = [writer.save(unit()) for _ in range(3)]
    time.sleep(0.1)  # of a writer that would not wait, more than enough
    assert (len(commits), any(future.done() for future in futures)) == (0, False)
    more.clear()
    for future in futures:
        future.result(10)
    assert len(commits) == 1
    writer.save(unit()).result(10)
    assert len(commits) == 2


def test_enough_company_ends_the_wait(lingering: Callable[..., GroupCommit], commits: list[sa.Connection]) -> None:
    writer = lingering(30)
    futures = [writer.save(unit()) for _ in range(writers.GROUP_AT - 1)]
    time.sleep(0.1)  # of a writer that would not wait, more than enough
    assert (len(commits), any(future.done() for future in futures)) == (0, False)
    futures.append(writer.save(unit()))
    for future in futures:
        future.result(10)
    assert len(commits) == 1


def test_close_ends_the_wait(
    engine: sa.Engine, lingering: Callable[..., GroupCommit], commits: list[sa.Connection]
) -> None:
    writer = lingering(30)
    futures = [writer.save(unit()) for _ in range(3)]
    time.sleep(0.1)
    writer.close()
    assert [future.result(0) for future in futures] == [None] * 3
    assert len(commits) == 1
    assert counts(engine) == [3, 3, 3]
