"""The binary format between gateway and runner: a JSON header, then byte parts.

No pickle: the bytes are not trusted.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

_LENGTH = struct.Struct("<I")

UPDATE_PART, ANSWER_PART, REFUSAL_PART = b"n", b"a", b"r"
"""Kinds of the parts of a streamed response: updates, then the response or a refusal."""


def pack_message(header: dict[str, Any], *parts: bytes) -> bytes:
    """A message: the length of the header (uint32, little-endian), the header as JSON with the lengths of the parts,
    the parts."""
    text = orjson.dumps({**header, "parts": [len(part) for part in parts]})
    return b"".join((_LENGTH.pack(len(text)), text, *parts))


def unpack_message(data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """The header and the parts. ValueError for bytes that are no message."""
    if len(data) < _LENGTH.size:
        raise ValueError("a message has at least 4 bytes")
    (length,) = _LENGTH.unpack_from(data)
    start = _LENGTH.size + length
    header = orjson.loads(data[_LENGTH.size : start])
    parts = []
    for size in header.pop("parts"):
        parts.append(data[start : start + size])
        start += size
    if start != len(data):
        raise ValueError(f"the message states {start} bytes and has {len(data)}")
    return header, parts


def pack_array(values: NDArray[Any]) -> tuple[list[Any], bytes]:
    """Dtype and shape of an array, for a header, and its values in C order."""
    return [values.dtype.str, list(values.shape)], values.tobytes()


def unpack_array(info: list[Any], data: bytes) -> NDArray[Any]:
    """The array of what ``pack_array`` returned; it is read-only."""
    return np.frombuffer(data, np.dtype(info[0])).reshape(info[1])


def pack_part(kind: bytes, data: bytes) -> bytes:
    """A part of a streamed response: its kind (1 byte), its length (uint32, little-endian), its bytes."""
    return b"".join((kind, _LENGTH.pack(len(data)), data))


class PartReader:
    """Splits a stream of bytes into its parts."""

    def __init__(self) -> None:
        self._left = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Kind and bytes of each part that ``data`` completes."""
        self._left += data
        head = 1 + _LENGTH.size
        while len(self._left) >= head:
            end = head + _LENGTH.unpack_from(self._left, 1)[0]
            if len(self._left) < end:
                return
            kind, body = bytes(self._left[:1]), bytes(self._left[head:end])
            del self._left[:end]
            yield kind, body
