"""A request's body as bytes or JSON, bounded in size and time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request

from ekiben.errors import BadInput, CallerLeft, TooLarge, TooSlow, UnsupportedEncoding

MAX_JSON = 16_000_000
"""Bytes of a body that is JSON."""

_PARSE_IN_THREAD = 64_000
"""Bytes of JSON: parsing more takes over a millisecond."""

_PLAIN = frozenset({"", "identity", "7bit", "8bit", "binary"})
"""Encodings that change nothing (RFC 9110; RFC 2045 for parts of a form)."""

PATIENCE_S = 30.0
SLOWEST_BYTES_PER_S = 65_536
"""A body has PATIENCE_S, and a second more for each so many bytes that came: memory is not held for those who stall."""


def refuse_encoded(encoding: str, what: str = "a body") -> None:
    """UnsupportedEncoding for a value of Content-Encoding, or of Content-Transfer-Encoding, other than identity."""
    named = [name.strip() for name in encoding.lower().split(",", 10)[:10]]
    if other := next((name for name in named if name not in _PLAIN), None):
        raise UnsupportedEncoding(f"{what} encoded as {other[:40]!r} is not read here; send it as it is (identity)")


async def chunks(
    request: Request, limit: int, setting: str = "", overhead: int = 0, *, encoded: bool = False
) -> AsyncIterator[bytes]:
    """The pieces of the body, in order: at most ``limit`` bytes and ``overhead`` around them.

    ``setting``: what sets the limit, for the message. TooLarge as soon as it is known to be passed, TooSlow for a body
    that stalls or drips, CallerLeft for a caller who disconnects. The time that the reader of the pieces spends is not
    the caller's. Unless ``encoded``, UnsupportedEncoding for a body with a Content-Encoding. A reader that keeps no
    piece in memory says so (``services.rest.middleware.release``).
    """
    if not encoded:
        refuse_encoded(",".join(request.headers.getlist("content-encoding")))
    source = f" ({setting})" if setting else ""
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > limit + overhead:
        raise TooLarge(f"the request has {declared} bytes; at most {limit} are accepted{source}")
    total = 0
    loop = asyncio.get_running_loop()
    begun = loop.time()
    stream = request.stream().__aiter__()
    reader_s = 0.0
    while True:
        try:
            async with asyncio.timeout_at(begun + reader_s + PATIENCE_S + total / SLOWEST_BYTES_PER_S):
                chunk = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise TooSlow(f"the body came too slowly: {total} bytes in {loop.time() - begun:.0f} s") from None
        except ClientDisconnect:
            raise CallerLeft("the caller left while sending") from None
        total += len(chunk)
        if total > limit + overhead:
            raise TooLarge(f"the request has more than {limit} bytes{source}")
        given = loop.time()
        if chunk:
            yield chunk
        reader_s += loop.time() - given


async def read_body(
    request: Request, limit: int, overhead: int = 0, setting: str = "", *, encoded: bool = False
) -> bytes:
    """The whole body, of at most ``limit`` bytes and ``overhead`` around them. Errors as ``chunks``."""
    read = [chunk async for chunk in chunks(request, limit, setting, overhead, encoded=encoded)]
    return read[0] if len(read) == 1 else b"".join(read)


async def read_json_body(request: Request, limit: int = MAX_JSON) -> dict[str, Any]:
    """The object that the body is. BadInput, TooLarge, TooSlow, CallerLeft."""
    return await parse_json_object(await read_body(request, limit, setting="a body of JSON"))


async def parse_json_object(body: bytes) -> dict[str, Any]:
    """``read_json_object``, in a thread where the body is long."""
    if len(body) > _PARSE_IN_THREAD:
        return await asyncio.to_thread(read_json_object, body)
    return read_json_object(body)


def read_json_object(body: bytes) -> dict[str, Any]:
    """The object in a body. BadInput for what is no JSON object, or holds a NUL character."""
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
    left = [value]  # no recursion: JSON may be nested deeper than Python's stack
    while left:
        value = left.pop()
        if isinstance(value, str):
            if "\0" in value:
                return True
        elif isinstance(value, dict):
            left += value
            left += value.values()
        elif isinstance(value, list):
            left += value
    return False
