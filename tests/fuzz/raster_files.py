"""Raster files whose structure is valid and whose numbers are hostile."""

from __future__ import annotations

import io
import random
import struct
import zlib
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from tests.fuzz import hostile
from tests.models.image_formats.tiff_files import Page, tiff

SIDES = (0, 1, 2, 3, 7, 8, 16, 17, 255, 256, 1000, 4096, 8000, 32767, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def pixels(width: int, height: int, bands: int = 3, seed: int = 0) -> Any:
    shape = (height, width) if bands == 1 else (height, width, bands)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@cache
def valid(form: str, mode: str = "RGB", width: int = 24, height: int = 16, progressive: bool = False) -> bytes:
    """A file that Pillow wrote."""
    bands = {"L": 1, "RGB": 3, "RGBA": 4, "CMYK": 4, "P": 1, "1": 1, "LA": 2}[mode]
    array = pixels(width, height, {"1": 1, "P": 1}.get(mode, bands), len(form))
    if mode == "1":
        image = Image.fromarray(array > 127)
    elif mode == "P":
        image = Image.fromarray(array % 16).convert("L").convert("P")
    else:
        image = Image.fromarray(array, mode)
    out = io.BytesIO()
    extra: dict[str, Any] = {"progressive": True} if progressive else {}
    if form == "WEBP lossless":
        image.save(out, "WEBP", lossless=True)
    elif form == "WEBP animated":
        image.save(out, "WEBP", save_all=True, append_images=[image.rotate(90)])
    elif form == "GIF animated":
        image.save(out, "GIF", save_all=True, append_images=[image.rotate(90)])
    else:
        image.save(out, form, **extra)
    return out.getvalue()


def any_valid(rng: random.Random) -> bytes:
    """A file that every route for images reads."""
    form, mode = rng.choice(
        (
            ("PNG", "RGB"),
            ("PNG", "L"),
            ("PNG", "RGBA"),
            ("PNG", "P"),
            ("JPEG", "RGB"),
            ("JPEG", "L"),
            ("WEBP", "RGB"),
            ("BMP", "RGB"),
            ("TIFF", "RGB"),
            ("PNG", "1"),
            ("JPEG", "CMYK"),
        )
    )
    return valid(
        form,
        mode,
        *rng.choice(((24, 16), (24, 16), (24, 16), (32, 32), (32, 32), (32, 32), (32, 32), (32, 32), (1, 1), (40, 7))),
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rng: random.Random) -> bytes:
    """All checksums right; the pixel data is mostly as long as the header says."""
    depth, color = rng.choice(
        ((1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2), (1, 3), (8, 3), (8, 4), (16, 6))
    )
    width, height = rng.choice((1, 3, 8, 17)), rng.choice((1, 3, 8, 17))
    interlace = rng.choice((0, 0, 1))
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    row = (width * samples * depth + 7) // 8
    data = b"".join(
        bytes([rng.choice((0, 1, 2, 3, 4))]) + rng.randbytes(row) for _ in range(height * (2 if interlace else 1))
    )
    said = [width, height, depth, color, 0, 0, interlace]
    kind = rng.random()
    if kind < 0.35:
        said[rng.randrange(2)] = rng.choice(SIDES)
    elif kind < 0.5:
        said[rng.randrange(2, 7)] = rng.choice((0, 1, 2, 3, 5, 7, 8, 16, 32, 255))
    if rng.random() < 0.1:
        data = bytes(rng.choice((10, 2_000_000)))
    chunks = [chunk(b"IHDR", struct.pack(">IIBBBBB", *said))]
    if color == 3 or rng.random() < 0.1:
        chunks.append(chunk(b"PLTE", rng.randbytes(rng.choice((0, 1, 3, 48, 768, 771, 3000)))))
    for _ in range(rng.choice((0, 0, 1, 2))):
        chunks.append(_png_extra(rng))
    packed = zlib.compress(data)
    cut = rng.randrange(len(packed)) if rng.random() < 0.1 else len(packed)
    parts = [packed[:cut]] if rng.random() < 0.8 else [packed[i : i + 3] for i in range(0, min(cut, 600), 3)]
    chunks += [chunk(b"IDAT", part) for part in parts]
    if rng.random() < 0.1:
        rng.shuffle(chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks) + chunk(b"IEND", b"")


def _png_extra(rng: random.Random) -> bytes:
    big = zlib.compress(bytes(5_000_000)) if rng.random() < 0.2 else zlib.compress(b"x")
    fours = [rng.choice(SIDES) for _ in range(6)]
    return rng.choice(
        (
            lambda: chunk(b"tRNS", rng.randbytes(rng.choice((0, 1, 2, 6, 256, 300)))),
            lambda: chunk(b"gAMA", struct.pack(">I", fours[0])),
            lambda: chunk(b"pHYs", struct.pack(">IIB", fours[0], fours[1], rng.randrange(3))),
            lambda: chunk(b"iCCP", b"p\0\0" + big),
            lambda: chunk(b"zTXt", b"k\0\0" + big),
            lambda: chunk(b"iTXt", b"k\0\1\0\0\0" + big),
            lambda: chunk(b"sBIT", rng.randbytes(rng.choice((0, 1, 3, 4, 9)))),
            lambda: chunk(b"acTL", struct.pack(">II", fours[0], fours[1])),
            lambda: chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, *fours[:4], 1, 0, rng.randrange(4), rng.randrange(3))),
            lambda: chunk(b"eXIf", exif(rng)),
            lambda: chunk(b"cHRM", struct.pack(">8I", *fours, 0, 1)),
        )
    )()


def exif(rng: random.Random) -> bytes:
    """A TIFF structure with orientation and one directory that may point anywhere."""
    orientation = rng.choice((0, 1, 3, 6, 8, 9, 255, 65535))
    entries = [(0x112, rng.choice((3, 3, 4, 5, 12)), rng.choice((1, 1, 1, 0, 2**32 - 1)), orientation)]
    entries.append((0x8769, 4, 1, rng.choice((8, 0, 26, 2**31, 2**32 - 1))))
    body = struct.pack("<H", rng.choice((2, 2, 0, 65535)))
    body += b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", rng.choice((8, 8, 8, 2**31))) + body + struct.pack("<I", rng.choice((0, 8)))


def jpeg(rng: random.Random) -> bytes:
    """A JPEG of Pillow with numbers of one or two segments changed, or with further segments."""
    mode = rng.choice(("RGB", "L", "CMYK"))
    data = bytearray(valid("JPEG", mode, progressive=rng.random() < 0.4))
    for _ in range(rng.choice((1, 1, 2))):
        segments = _segments(data)
        at, kind = rng.choice(segments)
        start, length = at + 4, struct.unpack_from(">H", data, at + 2)[0] - 2
        if kind in (0xC0, 0xC2) and rng.random() < 0.7:
            field = rng.choice((0, 1, 3, 5, 6, 7, 8))
            if field in (1, 3):
                struct.pack_into(">H", data, start + field, rng.choice((0, 1, 8, 65535, 65500, 9000, 4000)))
            else:
                data[min(start + field, len(data) - 1)] = rng.choice(
                    (0, 1, 2, 3, 4, 8, 12, 0x11, 0x22, 0x41, 0x44, 0xFF)
                )
        elif length > 0:
            data[start + rng.randrange(length)] = rng.choice((0, 1, 2, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    extra = rng.random()
    if extra < 0.3:
        body = b"Exif\0\0" + exif(rng)
        data[2:2] = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    elif extra < 0.4:
        data[2:2] = b"\xff\xdd\0\4" + struct.pack(">H", rng.choice((0, 1, 65535)))
    elif extra < 0.5:
        body = b"ICC_PROFILE\0" + bytes([rng.randrange(256), rng.randrange(256)]) + rng.randbytes(40)
        data[2:2] = (b"\xff\xe2" + struct.pack(">H", len(body) + 2) + body) * rng.choice((1, 3, 255))
    elif extra < 0.6:
        data[2:2] = b"\xff\xee\0\x0eAdobe\0d\0\0\0\0" + bytes([rng.choice((0, 1, 2, 255))])
    if rng.random() < 0.1:
        data = data[: rng.randrange(20, len(data))]
    return bytes(data)


def _segments(data: bytes | bytearray) -> list[tuple[int, int]]:
    found, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        found.append((at, data[at + 1]))
        if data[at + 1] == 0xDA:
            break
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return found or [(0, 0)]


TIFF_TAGS = (
    254,
    256,
    257,
    258,
    259,
    262,
    266,
    273,
    274,
    277,
    278,
    279,
    280,
    281,
    282,
    284,
    292,
    317,
    320,
    322,
    323,
    324,
)
TIFF_TAGS += (325, 330, 332, 338, 339, 340, 341, 347, 530, 532, 34665, 34377, 33550, 50838)


def tiff_file(rng: random.Random) -> bytes:
    """Pages of 8 to 64 bits whose tags say other things than is so."""
    pages = []
    for _ in range(rng.choice((1, 1, 1, 1, 1, 1, 1, 2, 3))):
        bands = rng.choice((1, 1, 1, 3, 3, 3, 3, 4, 2, 5))
        dtype = rng.choice(
            ("u1",) * 8 + ("u2",) * 6 + ("i1", "i2", "u4", "f4", "f8") if bands < 3 else ("u1", "u1", "u2")
        )
        values = pixels(rng.choice((5, 16, 33)), rng.choice((5, 16, 33)), bands, rng.randrange(99))
        tags: dict[int, list[int]] = {}
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            tag = rng.choice(TIFF_TAGS)
            small = (0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 14, 16, 32, 64, 128, 255, 32773, 32946, 34712, 50000)
            value = rng.choice(small) if rng.random() < 0.7 else rng.choice(SIDES)
            tags[tag] = [value] * rng.choice((1, 1, 1, 2, bands, 300))
        if rng.random() < 0.15:  # tiles, of which there are no bytes
            side = rng.choice((16, 17, 256, 4096, 30000, 65536, 2**31))
            tags |= {322: [side], 323: [side], 324: [8] * rng.choice((1, 4)), 325: [rng.choice((1, 700, 2**31))]}
        photometric = (
            rng.choice((0, 1, 2, 3, 5, 6, 8)) if rng.random() < 0.1 else 2 if bands > 2 else rng.choice((0, 1, 1))
        )
        pages.append(Page(values.astype(dtype), photometric, tags))
    data = bytearray(tiff(*pages, order=rng.choice("<>"), big=rng.random() < 0.4))
    if rng.random() < 0.15:
        at = rng.choice((4, 8, 2, rng.randrange(len(data) - 8)))
        data[at : at + 4] = struct.pack("<I", rng.choice(SIDES))
    return bytes(data)


def patched(rng: random.Random) -> bytes:
    """A file of Pillow with one to three little-endian or big-endian numbers in its first 120 bytes changed."""
    form, mode = rng.choice(
        (
            ("BMP", "RGB"),
            ("BMP", "P"),
            ("BMP", "1"),
            ("GIF", "P"),
            ("GIF animated", "P"),
            ("WEBP", "RGB"),
            ("TIFF", "RGB"),
            ("WEBP lossless", "RGBA"),
            ("WEBP animated", "RGB"),
            ("ICO", "RGBA"),
            ("TGA", "RGB"),
            ("PCX", "RGB"),
            ("PPM", "RGB"),
            ("JPEG2000", "RGB"),
            ("SGI", "RGB"),
            ("DDS", "RGBA"),
        )
    )
    data = bytearray(valid(form, mode))
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        at, code = rng.randrange(4, min(120, len(data) - 8)), rng.choice("BHI")
        value = rng.choice(SIDES) if rng.random() < 0.7 else hostile.integer(rng)
        struct.pack_into(rng.choice("<>") + code, data, at, value % (1 << (8 * struct.calcsize(code))))
    return bytes(data)


MAKERS = {"png": png, "jpeg": jpeg, "tiff": tiff_file, "patched": patched}
