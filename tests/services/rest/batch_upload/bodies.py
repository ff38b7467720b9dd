"""Bodies of batches as clients build them, and reading them in memory."""

from __future__ import annotations

import asyncio
import io
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from ekiben.errors import Refusal
from services.archives import zip_reader
from services.rest.uploads import batch_upload, multipart
from services.rest.uploads.batch_upload import read_batch

Taken = list[tuple[bytes | Refusal, str | None]]
MANY = 10**9
FOLDER = Path(tempfile.gettempdir())


def limit_images(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    for module in (multipart, batch_upload, zip_reader):
        monkeypatch.setattr(module, "MAX_IMAGE_BYTES", limit)


def request(
    chunks: Sequence[bytes], content_type: str, *, declared: int | None = None, cut: bool = False, **scope: Any
) -> Request:
    """A request whose body comes in ``chunks``; ``cut``: after them the caller is gone."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.disconnect"} if cut else {"type": "http.request", "body": b"", "more_body": False})
    left = iter(messages)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        return next(left)

    headers = [(b"content-type", content_type.encode())]
    if declared is not None:
        headers.append((b"content-length", str(declared).encode()))
    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers, **scope}, receive)


def read(requested: Request, limit: int = MANY) -> tuple[dict[str, Any], Taken]:
    """The fields, and what was taken."""
    taken: Taken = []

    async def take(data: bytes | Refusal, filename: str | None) -> None:
        taken.append((data, filename))

    form = asyncio.run(read_batch(requested, limit, take, FOLDER))
    return form.fields, taken


def form(*parts: tuple[str, Any], boundary: str | None = None) -> tuple[bytes, str]:
    """A form as a real client builds it, its parts in their order, and its content type."""
    headers = {} if boundary is None else {"content-type": f"multipart/form-data; boundary={boundary}"}
    built = httpx.Request("POST", "http://x", files=list(parts), headers=headers)
    return built.read(), built.headers["content-type"]


def read_form(*parts: tuple[str, Any], limit: int = MANY) -> tuple[dict[str, Any], Taken]:
    body, kind = form(*parts)
    return read(request([body], kind), limit)


def pieces(body: bytes, size: int) -> list[bytes]:
    return [body[start : start + size] for start in range(0, len(body), size)]


def zipped(*entries: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return out.getvalue()


def text(value: str) -> tuple[None, bytes]:
    return None, value.encode()


FILES = [("a.png", b"first"), ("b.png", b"\r\n--" + bytes(range(256)) * 3), ("c.png", b""), ("d.png", b"-\r\n" * 50)]
PARTS = [
    ("operation", text("classify")),
    ("files", FILES[0]),
    ("files", FILES[1]),
    ("parameters", text('{"top_k": 2}')),
    ("files", FILES[2]),
    ("files", FILES[3]),
    ("store", text("false")),
]
FIELDS = {"operation": "classify", "parameters": '{"top_k": 2}', "store": "false"}
WANTED = [(data, name) for name, data in FILES]
