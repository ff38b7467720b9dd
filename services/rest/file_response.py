"""Answering with a stored file: presigned redirect where the store has one, else the bytes, cacheable for ever."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response

from db.blobs import BlobStore

_PRESIGNED_S = 300


async def file_response(
    request: Request, store: BlobStore, key: str, mime_type: str, sha256: str, size: int
) -> Response:
    """304 where the caller has it; 302 to a presigned URL; else the file. Contents never change under an id."""
    etag = f'"{sha256}"'
    headers = {
        "ETag": etag,
        "Cache-Control": "private, max-age=31536000, immutable",
        "X-Content-Type-Options": "nosniff",
    }
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    url = await asyncio.to_thread(store.presigned_url, key, _PRESIGNED_S, mime_type=mime_type)
    if url is not None:
        # The URL expires: only it may be kept, and not for as long as it is valid.
        return RedirectResponse(url, 302, {"ETag": etag, "Cache-Control": f"private, max-age={_PRESIGNED_S // 2}"})
    path = store.local_path(key)
    if path is not None:
        # The size is looked up here, so that a file that is gone is a 404 and not a broken answer.
        await asyncio.to_thread(store.size, key)
        return FileResponse(path, media_type=mime_type, headers=headers)
    return Response(await asyncio.to_thread(store.get, key), headers=headers, media_type=mime_type)
