"""Uncompressed TIFF and BigTIFF files whose every tag a test chooses."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

_SHORT, _LONG, _LONG8 = 3, 4, 16


@dataclass
class Page:
    """``values``: [height, width] or [height, width, samples], in the samples' own dtype."""

    values: NDArray[Any]
    photometric: int = 1
    tags: dict[int, Sequence[int]] = field(default_factory=dict)
    """Further tags, as SHORT up to 65,535, else as LONG."""


def tiff(*pages: Page, order: str = "<", big: bool = False) -> bytes:
    """The file of these pages, in their order."""
    magic = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    out = bytearray(magic + (struct.pack(order + "HHQ", 8, 0, 0) if big else struct.pack(order + "I", 0)))
    link = 8 if big else 4
    for page in pages:
        pixels = len(out)
        out += page.values.astype(page.values.dtype.newbyteorder(order)).tobytes()
        out += b"\0" * (-len(out) % 8)
        entries = {tag: _packed(order, values) for tag, values in _tags(page, pixels).items()}
        inline = 8 if big else 4
        places = {}
        for tag, (_, _, data) in entries.items():
            if len(data) > inline:
                places[tag] = len(out)
                out += data + b"\0" * (-len(data) % 8)
        struct.pack_into(order + ("Q" if big else "I"), out, link, len(out))
        out += struct.pack(order + ("Q" if big else "H"), len(entries))
        for tag, (kind, count, data) in sorted(entries.items()):
            out += struct.pack(order + ("HHQ" if big else "HHI"), tag, kind, count)
            if tag in places:
                out += struct.pack(order + ("Q" if big else "I"), places[tag])
            else:
                out += data.ljust(inline, b"\0")
        link = len(out)
        out += struct.pack(order + ("Q" if big else "I"), 0)
    return bytes(out)


def _tags(page: Page, pixels: int) -> dict[int, Sequence[int]]:
    values = page.values
    samples = values.shape[2] if values.ndim == 3 else 1
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    return {
        256: [values.shape[1]],
        257: [values.shape[0]],
        258: [values.dtype.itemsize * 8] * samples,
        259: [1],
        262: [page.photometric],
        273: [pixels],
        277: [samples],
        278: [values.shape[0]],
        279: [values.nbytes],
        339: [kind] * samples,
        **page.tags,
    }


def _packed(order: str, values: Sequence[int]) -> tuple[int, int, bytes]:
    kind, letter = (_SHORT, "H") if max(values) < 65536 else (_LONG, "I")
    return kind, len(values), struct.pack(f"{order}{len(values)}{letter}", *values)
