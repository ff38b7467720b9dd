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


@pytest.fixture
def lingering(engine: sa.Engine) -> Iterator[Callable[..., GroupCommit]]:
    """Writers whose units wait; ``more``: whether more is to come."""
    made: list[GroupCommit] = []

    def make(seconds: float, more: Callable[[], bool] = lambda: True) -> GroupCommit:
        made.append(GroupCommit(engine))
        made[-1].delay(seconds, more)
        return made[-1]

    yield make
    for writer in made:
        writer.close()


def test_units_gather(engine: sa.Engine, lingering: Callable[..., GroupCommit], commits: list[sa.Connection]) -> None:
    writer = lingering(0.4)
    began = time.monotonic()
    futures = []
    for _ in range(5):
        futures.append(writer.save(unit()))
        time.sleep(0.02)
    assert time.monotonic() - began < 0.35, "this machine is too busy for this test"
    assert (len(commits), any(future.done() for future in futures)) == (0, False)
    for future in futures:
        future.result(10)
    assert 0.4 <= time.monotonic() - began < 5  # that of the first, not of the last
    assert len(commits) == 1
    writer.save(unit()).result(10)  # who came too late for them has a transaction of its own
    assert len(commits) == 2
    assert counts(engine) == [6, 6, 6]


def test_nobody_lingers_when_no_more_is_to_come(
    lingering: Callable[..., GroupCommit], commits: list[sa.Connection]
) -> None:
    more = threading.Event()
    more.set()
    writer = lingering(30, more.is_set)
    futures = [writer.save(unit()) for _ in range(3)]
    time.sleep(0.1)
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
    time.sleep(0.1)
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
    began = time.monotonic()
    writer.close()
    assert time.monotonic() - began < 5
    assert [future.result(0) for future in futures] == [None] * 3
    assert len(commits) == 1
    assert counts(engine) == [3, 3, 3]
