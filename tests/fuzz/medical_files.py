"""DICOM and NIfTI files whose structure is valid and whose numbers are hostile."""

from __future__ import annotations

import gzip
import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

EXPLICIT, IMPLICIT, BIG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
SYNTAXES = (
    (EXPLICIT,) * 8
    + (
        IMPLICIT,
        BIG,
        "1.2.840.10008.1.2.1.99",
        "1.2.840.10008.1.2.5",
        "1.2.840.10008.1.2.4.50",
        "1.2.840.10008.1.2.4.57",
    )
    + ("1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90", "1.2.3.4", "")
)
LONG = {"OB", "OW", "OF", "SQ", "UN", "UT"}
NUMBERS = (0, 1, 2, 3, 7, 8, 9, 12, 15, 16, 17, 31, 32, 64, 255, 4096, 32767, 32768, 65535)
TEXTS = (
    "0",
    "1",
    "-1",
    "1e308",
    "-1e308",
    "1e-320",
    "nan",
    "inf",
    "",
    " ",
    "abc",
    "0\\1",
    "1\\2\\3",
    "1000000",
    "2147483647",
)
TEXTS += ("9" * 16, "1.5", "-32768", "65536", "\\\\")


def element(tag: int, kind: str, data: bytes, implicit: bool = False) -> bytes:
    data += (b"\0" if kind in ("UI", "OB") else b" ") * (len(data) % 2)
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    if implicit:
        return head + struct.pack("<I", len(data)) + data
    if kind in LONG:
        return head + kind.encode() + b"\0\0" + struct.pack("<I", len(data)) + data
    return head + kind.encode() + struct.pack("<H", len(data)) + data


def dicom(rng: random.Random) -> bytes:
    """Little-endian elements in order, with the group length and preamble mostly there."""
    syntax = rng.choice(SYNTAXES)
    implicit = syntax == IMPLICIT
    rows, columns, bits = rng.choice((1, 5, 16)), rng.choice((1, 5, 16)), rng.choice((8, 16, 16, 32))
    frames, samples = rng.choice((1, 1, 1, 2, 5)), rng.choice((1, 1, 3))
    data = rng.randbytes(rows * columns * bits // 8 * frames * samples)

    def short(value: int) -> bytes:
        return struct.pack("<H", value & 0xFFFF)

    parts: dict[int, tuple[str, bytes]] = {
        0x00080016: ("UI", b"1.2.840.10008.5.1.4.1.1.7"),
        0x00080018: ("UI", b"1.2.3"),
        0x00280002: ("US", short(samples)),
        0x00280004: ("CS", b"MONOCHROME2" if samples == 1 else b"RGB"),
        0x00280010: ("US", short(rows)),
        0x00280011: ("US", short(columns)),
        0x00280100: ("US", short(bits)),
        0x00280101: ("US", short(bits)),
        0x00280102: ("US", short(bits - 1)),
        0x00280103: ("US", short(rng.randrange(2))),
        0x7FE00010: ("OW", data),
    }
    if samples > 1:
        parts[0x00280006] = ("US", short(rng.randrange(2)))
    if frames > 1 or rng.random() < 0.1:
        parts[0x00280008] = ("IS", str(frames).encode())
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        _change(parts, rng, data, short)
    body = b"".join(element(tag, *parts[tag], implicit) for tag in sorted(parts))
    if syntax == "1.2.840.10008.1.2.1.99":
        import zlib

        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        body = packer.compress(body) + packer.flush()
    meta = element(0x00020001, "OB", b"\0\1") + element(0x00020002, "UI", b"1.2.840.10008.5.1.4.1.1.7")
    meta += element(0x00020003, "UI", b"1.2.3")
    if syntax:
        meta += element(0x00020010, "UI", syntax.encode())
    length = element(0x00020000, "UL", struct.pack("<I", len(meta)))
    if rng.random() < 0.05:
        return body
    return (bytes(128) if rng.random() < 0.95 else b"") + b"DICM" + length + meta + body


Parts = dict[int, tuple[str, bytes]]


def _change(parts: Parts, rng: random.Random, data: bytes, short: Callable[[int], bytes]) -> None:
    kind = rng.random()
    shorts = (0x00280002, 0x00280006, 0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280102, 0x00280103)
    if kind < 0.3:
        parts[rng.choice(shorts)] = ("US", short(rng.choice(NUMBERS)))
    elif kind < 0.4:
        parts[0x00280008] = ("IS", rng.choice((*TEXTS, "1000000", "2000000000", "3")).encode()[:12])
    elif kind < 0.6:
        tags = (0x00281050, 0x00281051, 0x00281052, 0x00281053, 0x00280030, 0x00200037, 0x00200032, 0x00180050)
        parts[rng.choice(tags)] = ("DS", rng.choice(TEXTS).encode())
    elif kind < 0.68:
        photometric = (b"MONOCHROME1", b"PALETTE COLOR", b"RGB", b"YBR_FULL", b"YBR_FULL_422", b"ARGB", b"", b"X" * 16)
        parts[0x00280004] = ("CS", rng.choice(photometric))
    elif kind < 0.76:
        parts[0x00280120] = ("US", short(rng.choice(NUMBERS)))
        parts[0x00280121] = ("US", short(rng.choice(NUMBERS)))
    elif kind < 0.86:
        entries = rng.choice((0, 1, 16, 256, 65535))
        lut = b"".join(short(v) for v in (entries, rng.choice(NUMBERS), rng.choice((8, 16, 10, 0, 32))))
        values = rng.randbytes(min(entries or 4, 512) * 2)
        if rng.random() < 0.5:
            for tag in (0x00281101, 0x00281102, 0x00281103):
                parts[tag], parts[tag + 0x100] = ("US", lut), ("OW", values)
        else:
            item = element(0x00283002, "US", lut) + element(0x00283006, "OW", values)
            item = struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item
            parts[rng.choice((0x00283000, 0x00283010))] = ("SQ", item)
    elif kind < 0.93:
        offsets = b"".join(
            struct.pack("<I", rng.choice((0, 8, 2**31, 2**32 - 1))) for _ in range(rng.choice((0, 1, 3)))
        )
        fragments = struct.pack("<HHI", 0xFFFE, 0xE000, len(offsets)) + offsets
        for _ in range(rng.choice((0, 1, 2, 50))):
            piece = data[: rng.choice((0, 8, 64))]
            fragments += struct.pack("<HHI", 0xFFFE, 0xE000, rng.choice((len(piece), len(piece), 2**31))) + piece
        parts[0x7FE00010] = ("OB", fragments + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))
    else:
        parts[0x7FE00010] = ("OW", data[: rng.choice((0, 1, 2, len(data) // 2))])


CODES = {2: 8, 4: 16, 8: 32, 16: 32, 32: 64, 64: 64, 128: 24, 256: 8, 512: 16, 768: 32, 1024: 64, 1280: 64, 1536: 128}


def nifti(rng: random.Random) -> bytes:
    """A header of 348 bytes and its data, half of them gzip."""
    code = rng.choice((2, 4, 8, 16, 64, 256, 512, 768)) if rng.random() < 0.8 else rng.choice((*CODES, 0, 1, 3, 2048))
    dims = [3, rng.choice((1, 4, 9)), rng.choice((1, 4, 9)), rng.choice((1, 2, 5)), 1, 1, 1, 1]
    bits = CODES.get(code, 8)
    data = rng.randbytes(int(np.prod(dims[1:4])) * bits // 8)
    header: dict[str, Any] = {"bits": bits, "offset": 352.0, "slope": 1.0, "inter": 0.0, "qform": 0, "sform": 1}
    header["pixdim"] = [1.0] * 8
    header["affine"] = [1.0, 0, 0, 0, 0, 1.0, 0, 0, 0, 0, 1.0, 0]
    floats = (0.0, 1.0, -1.0, 1e-30, 1e30, 3e38, float("nan"), float("inf"), -float("inf"), 352.0, 348.0, 1e9, 0.5)
    for _ in range(rng.choice((0, 1, 1, 2))):
        kind = rng.randrange(7)
        if kind == 0:
            dims[rng.randrange(8)] = rng.choice((0, 1, 2, 3, 4, 5, 7, 8, -1, 32767, 1000, -32768))
        elif kind == 1:
            header["bits"] = rng.choice((0, 1, 8, 16, 64, -1, 32767))
        elif kind in (2, 3):
            header[rng.choice(("offset", "slope", "inter"))] = rng.choice(floats)
        elif kind == 4:
            header[rng.choice(("qform", "sform"))] = rng.choice((0, 1, 2, 4, 5, -1, 32767))
        elif kind == 5:
            header["pixdim"][rng.randrange(8)] = rng.choice(floats)
        else:
            header["affine"][rng.randrange(12)] = rng.choice(floats)
    order = rng.choice("<<<>")
    out = bytearray(352)
    struct.pack_into(order + "i", out, 0, 348)
    struct.pack_into(order + "8h", out, 40, *dims)
    struct.pack_into(order + "hh", out, 70, code, header["bits"])
    struct.pack_into(order + "8f", out, 76, *header["pixdim"])
    struct.pack_into(order + "fff", out, 108, header["offset"], header["slope"], header["inter"])
    struct.pack_into(order + "hh", out, 252, header["qform"], header["sform"])
    struct.pack_into(order + "12f", out, 280, *header["affine"])
    out[344:348] = b"n+1\0"
    whole = bytes(out) + (data if rng.random() < 0.9 else data[: len(data) // 2])
    if rng.random() < 0.5:
        whole = gzip.compress(whole + (bytes(20_000_000) if rng.random() < 0.02 else b""), 1, mtime=0)
    return whole


MAKERS = {"dicom": dicom, "nifti": nifti}
