"""The front and its small parts, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import pytest
from starlette.datastructures import QueryParams

from ekiben.errors import BadInput, CallerLeft
from services.metrics import other_families
from services.rest.disconnect import cancel_on_disconnect
from services.rest.middleware import RequestMiddleware
from services.rest.query_options import parse
from services.schemas.inference import ClassifyOptions


def test_the_work_of_a_caller_who_left_is_cancelled() -> None:
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def receive() -> dict[str, str]:
        await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def main() -> None:
        with pytest.raises(CallerLeft):
            await cancel_on_disconnect(receive, work())
        assert cancelled.is_set()
        await asyncio.sleep(0)  # the task itself goes on: its cancellation was taken back

    asyncio.run(main())


def test_a_result_and_an_error_come_through() -> None:
    async def never() -> dict[str, str]:
        await asyncio.sleep(30)
        return {}

    async def fail() -> None:
        raise BadInput("no")

    async def main() -> None:
        assert await cancel_on_disconnect(never, asyncio.sleep(0, 5)) == 5
        with pytest.raises(BadInput):
            await cancel_on_disconnect(never, fail())
        outer = asyncio.create_task(cancel_on_disconnect(never, asyncio.sleep(30)))
        await asyncio.sleep(0.01)
        outer.cancel()  # somebody else's cancellation is not the caller's leaving
        with pytest.raises(asyncio.CancelledError):
            await outer

    asyncio.run(main())


def request(app: Any) -> list[MutableMapping[str, Any]]:
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": b""}

    scope = {"type": "http", "method": "GET", "path": "/x", "headers": []}
    asyncio.run(RequestMiddleware(app, app, None)(scope, receive, send))
    return sent


def test_an_unforeseen_error_says_nothing_of_the_inside() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("secret of the inside")

    sent = request(broken)
    assert sent[0]["status"] == 500
    assert b"internal_error" in sent[1]["body"]
    assert b"secret" not in sent[1]["body"]
    assert any(name == b"x-request-id" for name, _ in sent[0]["headers"])


def test_an_answer_that_breaks_off_is_not_taken_for_whole() -> None:
    async def breaks(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        request(breaks)


def test_families_of_another_process_stand_once() -> None:
    own = b"# HELP a x\n# TYPE a counter\na 1\n"
    other = b'# HELP a x\n# TYPE a counter\na 2\n# HELP b y\n# TYPE b gauge\nb 3\nb{l="1"} 4\n'
    assert other_families(other, own) == b'# HELP b y\n# TYPE b gauge\nb 3\nb{l="1"} 4\n'
    assert other_families(b"", own) == b""


def test_options() -> None:
    assert parse(ClassifyOptions, QueryParams("model=m&top_k=3"), {"store": "false"}).store is False
    assert parse(ClassifyOptions, QueryParams("model=m"), {"model": "m"}).model == "m"
    for query, form, words in (
        ("model=m", {"model": "n"}, "given twice"),
        ("model=m&model=m", {}, "given twice"),
        ("frobnicate=1", {}, "no option frobnicate"),
        ("version=-1", {}, "version"),
        ("model=%00", {}, "NUL"),
        ("model=" + "x" * 5000, {}, "model"),
    ):
        with pytest.raises(BadInput, match=words) as caught:
            parse(ClassifyOptions, QueryParams(query), form)
        assert len(caught.value.message) < 600  # what was sent is not echoed whole


def test_the_bodies_of_all_open_requests_are_bounded() -> None:
    """Two requests of 6 bytes where 10 may be held: the second is refused, a large one alone is not."""
    begun, gate = asyncio.Event(), asyncio.Event()

    async def reads(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if scope["path"] == "/slow":
            begun.set()
            await gate.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    front = RequestMiddleware(reads, reads, None, max_body_bytes=10)

    async def query(path: str, size: int) -> int:
        sent: list[MutableMapping[str, Any]] = []

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        async def receive() -> MutableMapping[str, Any]:
            return {"type": "http.request", "body": b"x" * size}

        await front({"type": "http", "method": "POST", "path": path, "headers": []}, receive, send)
        status: int = sent[0]["status"]
        return status

    async def main() -> None:
        slow = asyncio.create_task(query("/slow", 6))
        await asyncio.wait_for(begun.wait(), 20)
        assert await query("/x", 6) == 503
        assert await query("/x", 4) == 200
        gate.set()
        assert await slow == 200
        assert await query("/x", 6) == 200
        assert await query("/x", 500) == 200

    asyncio.run(main())
