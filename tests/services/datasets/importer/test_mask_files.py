"""Mask files whose metadata or alpha channel are not what they should be: the pixels decide."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ekiben.errors import BadImage
from services.datasets.importer.mask_values import read_mask
from tests.services.datasets.importer.uploads import paletted, png
from tests.toy_models import encoded

LABELS = np.array([[0, 1, 2, 0], [2, 1, 0, 0], [0, 0, 1, 3]], np.uint8)
PNG = png(LABELS)
HEADER = 33  # bytes: the signature and IHDR


def chunk(kind: bytes, body: bytes, wrong: bool = False) -> bytes:
    checksum = zlib.crc32(kind + body) ^ wrong
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


LONG_TEXT = zlib.compress(b"a" * 3_000_000)
CHUNKS = {
    "zTXt": chunk(b"zTXt", b"Comment\0\0" + LONG_TEXT),
    "iTXt": chunk(b"iTXt", b"Comment\0\1\0\0\0" + LONG_TEXT),
    "many zTXt": b"".join(chunk(b"zTXt", b"Comment%d\0\0" % n + zlib.compress(b"a" * 900_000)) for n in range(90)),
    "iCCP": chunk(b"iCCP", b"profile\0\0" + LONG_TEXT),
    "iCCP of another compression": chunk(b"iCCP", b"profile\0\7" + LONG_TEXT),
    "checksum of text": chunk(b"tEXt", b"Comment\0a", wrong=True),
    "checksum of a time": chunk(b"tIME", b"\7\xe8\1\1\1\1\1", wrong=True),
    "short gAMA": chunk(b"gAMA", b"\0"),
    "short pHYs": chunk(b"pHYs", b""),
    "short cHRM": chunk(b"cHRM", b"\0\0"),
    "short eXIf": chunk(b"eXIf", b"x"),
}


@pytest.mark.parametrize("place", ["before the pixels", "after the pixels"])
@pytest.mark.parametrize("name", CHUNKS)
def test_metadata_never_decides_over_pixels(name: str, place: str) -> None:
    for data in (PNG, paletted(LABELS, [(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)])):
        at = HEADER if place == "before the pixels" else len(data) - 12
        mask = read_mask(data[:at] + CHUNKS[name] + data[at:])
        assert np.array_equal(mask.data, LABELS)


def test_a_png_with_damaged_pixels_is_refused_as_before() -> None:
    large = png(np.random.default_rng(0).integers(0, 4, (64, 64), np.uint8))
    with pytest.raises(BadImage, match=r"^the mask is truncated$"):
        read_mask(large[: len(large) // 2])
    with pytest.raises(BadImage, match=r"^the mask is not a readable image$"):
        read_mask(large[:HEADER] + chunk(b"IDAT", b"no pixels") + chunk(b"IEND", b""))
    wrong = bytearray(PNG)
    wrong[HEADER - 1] ^= 1  # the checksum of the header
    with pytest.raises(BadImage):
        read_mask(bytes(wrong))


@pytest.mark.parametrize(("mode", "levels"), [("RGBA", 255), ("RGBA", 1), ("LA", 255), ("LA", 3)])
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_an_alpha_channel_of_zeros_everywhere_hides_nothing(mode: str, levels: int, format: str) -> None:
    drawn = (LABELS > 0) * np.uint8(levels)
    image = Image.fromarray(drawn).convert(mode)
    image.putalpha(0)
    options: dict[str, Any] = {"lossless": True, "exact": True} if format == "WEBP" else {}
    assert np.array_equal(read_mask(encoded(image, format, **options)).data, drawn)


def test_colours_without_alpha_stay_colours() -> None:
    rgba = np.zeros((*LABELS.shape, 4), np.uint8)
    rgba[..., :3] = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)], np.uint8)[LABELS]
    mask = read_mask(png(rgba))
    assert mask.kind == "colors"
    assert np.array_equal(mask.data, np.array([0, 0xFF0000, 0xFF00, 0xFF])[LABELS])


def test_one_pixel_that_is_seen_makes_the_others_background() -> None:
    rgba = np.full((*LABELS.shape, 4), 255, np.uint8)
    rgba[..., 3] = 0
    rgba[1, 1, 3] = 255
    expected = np.zeros_like(LABELS)
    expected[1, 1] = 255
    assert np.array_equal(read_mask(png(rgba)).data, expected)
