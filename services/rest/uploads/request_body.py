"""A request's body as bytes or JSON, bounded in size and time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request

from ekiben.errors import BadInput, CallerLeft, TooLarge, TooSlow

MAX_JSON = 16_000_000


async def chunks(request: Request, limit: int, setting: str) -> AsyncIterator[bytes]:
    """The body, as it comes. Whoever takes it over tells the front what is in memory no more (``release``)."""
    total = 0
    loop = asyncio.get_running_loop()
    begun = loop.time()
    stream = request.stream().__aiter__()
    worked = 0.0  # the time in which it was not the caller who was waited for
    while True:
        try:
            async with asyncio.timeout_at(begun + worked + PATIENCE_S + total / SLOWEST_BYTES_PER_S):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise TooSlow(f"the body came too slowly: {total} bytes in {loop.time() - begun:.0f} s") from None
        except ClientDisconnect:
            raise CallerLeft("the caller left while sending") from None
        total += len(chunk)
        if total > limit:
            raise TooLarge(f"the request has more than {limit} bytes ({setting})")
        given = loop.time()
        if chunk:
            yield chunk
        worked += loop.time() - given


async def read_json_body(request: Request, limit: int = MAX_JSON) -> dict[str, Any]:
    """The object that the body is. BadInput, TooLarge."""
    return read_json(b"".join([chunk async for chunk in chunks(request, limit, "a body of JSON")]))


def read_json(body: bytes) -> dict[str, Any]:
    """The object in a body. BadInput."""
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    if not isinstance(given, dict):
        raise BadInput("the body is not a JSON object")
    if b"\\u0000" in body and _holds_nul(given):
        raise BadInput("the body holds a NUL character")
    return given


def _holds_nul(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_nul(each) for pair in value.items() for each in pair)
    if isinstance(value, list):
        return any(_holds_nul(each) for each in value)
    return isinstance(value, str) and "\0" in value


PATIENCE_S = 30.0


SLOWEST_BYTES_PER_S = 65_536
"""A body has PATIENCE_S, and a second more for each so many bytes that came: memory is not held for those who stall."""


async def read_body(request: Request, limit: int, overhead: int = 0) -> bytes:
    """The whole body, of at most ``limit`` bytes and ``overhead`` around them.

    TooLarge as soon as it is known to pass them, TooSlow for a body that stalls or drips, CallerLeft for a caller who
    goes.
    """
    declared = request.headers.get("content-length")
    if declared is not None and declared.isdigit() and int(declared) > limit + overhead:
        raise TooLarge(f"the request has {declared} bytes; at most {limit} are accepted")
    chunks: list[bytes] = []
    total = 0
    loop = asyncio.get_running_loop()
    begun = loop.time()
    try:
        async with asyncio.timeout_at(begun + PATIENCE_S) as patience:
            async for chunk in request.stream():
                total += len(chunk)
                if total > limit + overhead:
                    raise TooLarge(f"the request has more than {limit} bytes")
                chunks.append(chunk)
                patience.reschedule(begun + PATIENCE_S + total / SLOWEST_BYTES_PER_S)
    except TimeoutError:
        raise TooSlow(f"the body came too slowly: {total} bytes in {loop.time() - begun:.0f} s") from None
    except ClientDisconnect:
        raise CallerLeft("the caller left while sending") from None
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
