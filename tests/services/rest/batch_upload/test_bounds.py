"""The bounds on a batch: its size, its pace, and the memory that it holds."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from starlette.requests import Request

from ekiben.errors import Refusal, TooLarge, TooSlow
from services.rest.middleware import RequestMiddleware
from services.rest.uploads import request_body
from services.rest.uploads.batch_upload import read_batch
from tests.services.rest.batch_upload.bodies import FOLDER, MANY, PARTS, form, pieces, read, request, text, zipped


def test_the_limit_of_all_bytes() -> None:
    body, kind = form(*PARTS)
    assert len(read(request([body], kind, declared=len(body)), limit=len(body))[1]) == 4
    with pytest.raises(TooLarge, match="EKIBEN_BATCH_MB"):
        read(request(pieces(body, 10), kind), limit=len(body) - 1)
    with pytest.raises(TooLarge, match="EKIBEN_BATCH_MB"):
        read(request([], kind, declared=len(body)), limit=len(body) - 1)
    archive = zipped(("a", random.Random(0).randbytes(1000)))
    with pytest.raises(TooLarge):
        read(request([archive], "application/zip"), limit=1000)


def test_a_body_that_stalls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "PATIENCE_S", 0.1)
    monkeypatch.setattr(request_body, "SLOWEST_BYTES_PER_S", 1_000_000)
    body, kind = form(*PARTS)

    async def main(work_s: float, pause_s: float) -> int:
        chunks = iter(pieces(body, 400))
        taken = 0

        async def receive() -> dict[str, Any]:
            await asyncio.sleep(pause_s)
            part = next(chunks, b"")
            return {"type": "http.request", "body": part, "more_body": bool(part)}

        async def take(data: bytes | Refusal, filename: str | None) -> None:
            nonlocal taken
            await asyncio.sleep(work_s)
            taken += 1

        scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", kind.encode())]}
        await read_batch(Request(scope, receive), MANY, take, FOLDER)
        return taken

    with pytest.raises(TooSlow):
        asyncio.run(main(0, 0.08))
    assert asyncio.run(main(0.08, 0.001)) == 4  # it was not the caller who was waited for


class Upload:
    """A request through the front, whose body comes as the test sends it."""

    def __init__(self, front: RequestMiddleware, path: str, kind: str) -> None:
        self.status = 0
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._reads = asyncio.Event()
        headers = [(b"content-type", kind.encode())]
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": headers}
        self.task = asyncio.ensure_future(front(scope, self._receive, self._send))

    async def send(self, chunk: bytes | None) -> None:
        """None: the end. Returns when it was read as far as it will be."""
        self._reads.clear()
        self._chunks.put_nowait(chunk)
        reads = asyncio.create_task(self._reads.wait())
        await asyncio.wait([reads, self.task], timeout=20, return_when=asyncio.FIRST_COMPLETED)
        reads.cancel()

    async def _receive(self) -> dict[str, Any]:
        if self._chunks.empty():
            self._reads.set()
        chunk = await self._chunks.get()
        return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

    async def _send(self, message: Any) -> None:
        self.status = message.get("status", self.status)


async def batch_app(scope: Any, receive: Any, send: Any) -> None:
    """A batch, or at /plain a route that holds its body."""

    async def take(data: bytes | Refusal, filename: str | None) -> None:
        pass

    if scope["path"] == "/plain":
        await Request(scope, receive).body()
    else:
        await read_batch(Request(scope, receive), MANY, take, FOLDER)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def test_what_was_taken_over_does_not_count_at_the_front() -> None:
    """Two bodies at once, each larger than what the front lets all requests hold together."""
    body, kind = form(*(("files", (f"{n}", bytes(1000))) for n in range(20)))
    chunks = pieces(body, 2500)

    async def both(path: str) -> list[int]:
        front = RequestMiddleware(batch_app, batch_app, None, max_body_bytes=10_000)
        uploads = [Upload(front, path, kind) for _ in range(2)]
        for chunk in (*chunks, None):
            for upload in uploads:
                await upload.send(chunk)
        await asyncio.gather(*(upload.task for upload in uploads))
        return sorted(upload.status for upload in uploads)

    async def main() -> None:
        assert await both("/batch") == [200, 200]
        assert await both("/plain") == [200, 503]  # the one that holds its body does count

    asyncio.run(main())


@pytest.mark.parametrize("what", ["file", "field", "json"])
def test_what_is_still_in_memory_counts_at_the_front(what: str) -> None:
    """Two callers who send most of something and then stall: together more than may be held."""
    body, kind = form(
        ("files" if what == "file" else "parameters", ("a", bytes(9000)) if what == "file" else text("x" * 9000))
    )
    if what == "json":
        body, kind = b'{"parameters": "' + b"x" * 9000 + b'"}', "application/json"

    async def main() -> None:
        front = RequestMiddleware(batch_app, batch_app, None, max_body_bytes=10_000)
        first, second = Upload(front, "/batch", kind), Upload(front, "/batch", kind)
        for upload in (first, second):
            for chunk in pieces(body[:8000], 1000):
                await upload.send(chunk)
        assert second.status == 503
        await first.send(body[8000:])
        await first.send(None)
        await first.task
        assert first.status == 200
        second.task.cancel()

    asyncio.run(main())
