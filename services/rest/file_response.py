"""Responses with a stored file: a redirect to a presigned URL where the store has them, else the bytes."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response

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
        return FileResponse(path, media_type=mime_type, headers=headers)
    data = await asyncio.to_thread(read_whole, store, key, size, sha256)
    return Response(data, headers=headers, media_type=mime_type)
