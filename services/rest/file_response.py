"""Responses with a stored file: a redirect to a presigned URL where the store has them, else the bytes."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import BinaryIO

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.types import Message, Receive, Scope, Send

from db.blobs import BlobStore
from db.stored_files import check_file, read_whole

_PRESIGNED_S = 300  # validity of a presigned URL


async def file_response(
    request: Request, store: BlobStore, key: str, mime_type: str, sha256: str, size: int
) -> Response:
    """304 where the caller's ETag is current, 302 to a presigned URL, or the file. NotFound; Damaged where the file is
    not what was stored.

    ``sha256`` is the ETag. Cacheable without limit: contents never change under an id.
    """
    etag = f'"{sha256}"'
    headers = {
        "ETag": etag,
        "Cache-Control": "private, max-age=31536000, immutable",
        "X-Content-Type-Options": "nosniff",
    }
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    await asyncio.to_thread(check_file, store, key, size, sha256)
    url = await asyncio.to_thread(store.presigned_url, key, _PRESIGNED_S, mime_type=mime_type)
    if url is not None:
        # The redirect may be cached for half of the validity of its URL.
        return RedirectResponse(url, 302, {"ETag": etag, "Cache-Control": f"private, max-age={_PRESIGNED_S // 2}"})
    path = store.local_path(key)
    if path is not None:
        return _OpenFileResponse(await asyncio.to_thread(_open, store, key, path), mime_type, headers)
    data = await asyncio.to_thread(read_whole, store, key, size, sha256)
    return Response(data, headers=headers, media_type=mime_type)


def _open(store: BlobStore, key: str, path: Path) -> BinaryIO:
    """The file of a blob. NotFound, where another request removes it just now, too."""
    store.size(key)
    try:
        return path.open("rb")
    except FileNotFoundError:
        store.size(key)
        raise


class _OpenFileResponse(FileResponse):
    """Sends a file that is open already: one that is removed meanwhile is sent whole.

    A range that is none, or beyond the end, is an HTTPException, so that it leaves in the shape of all errors.
    """

    def __init__(self, file: BinaryIO, mime_type: str, headers: dict[str, str]) -> None:
        super().__init__(f"/dev/fd/{file.fileno()}", media_type=mime_type, headers=headers)
        self._file = file

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, and close the file."""
        refused: list[Message] = []

        async def unless_refused(message: Message) -> None:
            if refused or (message["type"] == "http.response.start" and message["status"] in (400, 416)):
                refused.append(message)
            else:
                await send(message)

        with self._file:
            await super().__call__(scope, receive, unless_refused)
        if refused:
            ranges = {k.decode(): v.decode() for k, v in refused[0]["headers"] if k.lower() == b"content-range"}
            text = b"".join(message.get("body", b"") for message in refused).decode()
            raise HTTPException(refused[0]["status"], text or "the range lies beyond the end of the file", ranges)
