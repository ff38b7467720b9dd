"""Work that outlives its waiter: it ends, and its error is neither lost nor a complaint of asyncio."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from ekiben.errors import Conflict
from services.concurrency.shielded import shielded


async def left(error: Exception | None) -> tuple[list[dict[str, Any]], bool]:
    """What asyncio complains of when work ends, with ``error``, after its waiter was cancelled; whether it ended."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    begun, go_on, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await go_on.wait()
        ended.set()
        if error is not None:
            raise error

    waiter = asyncio.ensure_future(shielded(work()))
    await begun.wait()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    go_on.set()
    await ended.wait()
    del waiter
    for _ in range(5):
        await asyncio.sleep(0)
        gc.collect()
    return complaints, ended.is_set()


@pytest.mark.parametrize("error", [None, Conflict("this item is not claimed by this worker any more")])
def test_work_whose_waiter_left(error: Exception | None, caplog: pytest.LogCaptureFixture) -> None:
    assert asyncio.run(left(error)) == ([], True)
    assert caplog.records == []


def test_a_fault_whose_waiter_left_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    assert asyncio.run(left(ValueError("a fault"))) == ([], True)
    assert [record.name for record in caplog.records] == ["services.concurrency.shielded"]


def test_who_waits_gets_the_result_and_the_error(caplog: pytest.LogCaptureFixture) -> None:
    async def work(error: Exception | None = None) -> int:
        if error is not None:
            raise error
        return 7

    async def main() -> None:
        assert await shielded(work()) == 7
        with pytest.raises(ValueError):
            await shielded(work(ValueError("a fault")))
        future = asyncio.get_running_loop().create_future()
        future.set_result(8)
        assert await shielded(future) == 8

    asyncio.run(main())
    assert caplog.records == []


def test_work_that_is_cancelled_itself(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        work = asyncio.ensure_future(asyncio.sleep(60))
        waiter = asyncio.ensure_future(shielded(work))
        await asyncio.sleep(0)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter

    asyncio.run(main())
    assert caplog.records == []
