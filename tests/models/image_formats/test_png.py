"""PNG files whose metadata is large or damaged, and whose pixels have 16 bits."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ekiben.errors import BadImage, UnsupportedImage
from models.images import decode

IMAGE = np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8)


def chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) if crc is None else crc)
    )


def encoded(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def with_chunk(data: bytes, extra: bytes, *, last: bool = False) -> bytes:
    """``extra`` after the header, or before the end."""
    at = len(data) - 12 if last else 33
    return data[:at] + extra + data[at:]


def deep(values: np.ndarray, color_type: int, *extra: bytes) -> bytes:
    """A 16-bit PNG of [H, W, channels], filter 0."""
    height, width = values.shape[:2]
    rows = values.astype(">u2").reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


TEXT = b"note\0\0" + zlib.compress(b"x" * 3_000_000)
DAMAGE = {
    "text of 3 MB": chunk(b"zTXt", TEXT),
    "text that is no zlib": chunk(b"zTXt", b"note\0\0" + b"no zlib"),
    "a profile that is none": chunk(b"iCCP", b"profile\0\0" + zlib.compress(b"no profile")),
    "a checksum of text": chunk(b"tEXt", b"a\0b", crc=1),
    "XMP": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b"<x" * 700_000),
    "an unknown chunk": chunk(b"abCd", b"", crc=2),
    "EXIF that is none": chunk(b"eXIf", b"nonsense"),
}


@pytest.mark.parametrize("last", [False, True], ids=["before the pixels", "after them"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_metadata_never_decides_over_pixels(damage: str, last: bool) -> None:
    data = with_chunk(encoded(Image.fromarray(IMAGE)), DAMAGE[damage], last=last)
    np.testing.assert_array_equal(np.asarray(decode(data).rgb), IMAGE)


def test_the_orientation_is_kept_beside_damaged_metadata() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    Image.fromarray(IMAGE).save(out, "PNG", exif=exif)
    data = with_chunk(out.getvalue(), DAMAGE["text that is no zlib"])
    np.testing.assert_array_equal(np.asarray(decode(data).rgb), np.rot90(IMAGE, -1))


def test_pixels_that_are_damaged_are_refused() -> None:
    data = encoded(Image.fromarray(IMAGE))
    with pytest.raises(BadImage):
        decode(data[: len(data) // 2])
    with pytest.raises(BadImage):
        decode(with_chunk(data[: len(data) // 2], DAMAGE["text that is no zlib"]))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize(
    ("channels", "color_type"), [(1, 0), (3, 2), (2, 4), (4, 6)], ids=["grey", "RGB", "LA", "RGBA"]
)
def test_16_bit_files_with_fewer_bits_in_use(bits: int, channels: int, color_type: int) -> None:
    top = 2**bits - 1
    colors = 1 if channels < 3 else 3
    values = np.random.default_rng(bits).integers(0, top + 1, (20, 30, channels))
    values[0, 0, :colors] = top
    if channels in (2, 4):
        values[..., -1] = 65535
    decoded = decode(deep(values, color_type))
    expected = (values[:, :, :colors] >> (bits - 8)).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(decoded.rgb), np.broadcast_to(expected, (20, 30, 3)))
    assert decoded.value_range == (0, top)


def test_significant_bits_that_the_file_declares() -> None:
    dark = np.full((4, 4, 1), 100)
    assert decode(deep(dark, 0)).value_range == (0, 255)
    assert decode(deep(dark, 0, chunk(b"sBIT", b"\x0c"))).value_range == (0, 4095)
    scaled = np.full((4, 4, 1), 40_000)  # as the specification wants it: the 12 bits stand on the left
    assert decode(deep(scaled, 0, chunk(b"sBIT", b"\x0c"))).value_range == (0, 65535)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_is_not_an_image(kind: str) -> None:
    out = io.BytesIO()
    frames = [Image.fromarray(IMAGE), Image.fromarray(255 - IMAGE)]
    frames[0].save(out, kind, save_all=True, append_images=frames[1:], duration=100)
    with pytest.raises(UnsupportedImage, match="an animation of 2 frames"):
        decode(out.getvalue())


HEADER = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))


@pytest.mark.parametrize("first", [HEADER, chunk(b"teXt", HEADER[8:-4])], ids=["another header", "a chunk"])
def test_a_file_begins_with_its_one_header(first: bytes) -> None:
    """Else the size of the pixels is another one than that by which the file was admitted."""
    data = encoded(Image.fromarray(IMAGE))
    with pytest.raises(BadImage, match="does not begin with its header"):
        decode(data[:8] + first + data[8:])
    with pytest.raises(BadImage, match="or has several"):
        decode(with_chunk(data, HEADER, last=True))
    assert decode(data + data).width == 30  # what follows the end is not looked at
    assert decode(data + first).width == 30


@pytest.mark.parametrize("kind", [b"teXt", b"IDAT"])
def test_a_file_of_very_many_chunks_is_refused(kind: bytes) -> None:
    data = encoded(Image.fromarray(IMAGE))
    at = data.index(b"IDAT") - 4
    with pytest.raises(BadImage, match=r"more than 10[0-9]{3} chunks"):
        decode(data[:at] + chunk(kind, b"") * 11_000 + data[at:])
    assert decode(data[:at] + chunk(kind, b"") * 9_000 + data[at:]).width == 30
