"""Bytes that are no image, or mean harm: each ends in a refusal that says what is wrong, cheaply."""

from __future__ import annotations

import io
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ekiben.errors import BadImage, Refusal, TooLarge, UnsupportedImage
from models.image_formats.sniffing import sniff
from models.images import DecodedImage, decode
from models.limits import MAX_IMAGE_BYTES, MAX_PIXELS, MAX_SIDE
from tests.models.peak import peak_growth_bytes
from tests.toy_models import encoded, noise

PHOTO = noise(64, 48, seed=5)
MAGICS = {
    "jpeg": b"\xff\xd8\xff",
    "png": b"\x89PNG\r\n\x1a\n",
    "webp": b"RIFF\x24\0\0\0WEBP",
    "bmp": b"BM",
    "tiff": b"II*\0",
    "big-endian tiff": b"MM\0*",
}
FILES = {
    "jpeg": encoded(PHOTO, "JPEG"),
    "progressive jpeg": encoded(PHOTO, "JPEG", progressive=True),
    "png": encoded(PHOTO),
    "png palette": encoded(PHOTO.quantize(200)),
    "webp": encoded(PHOTO, "WEBP"),
    "lossless webp": encoded(PHOTO, "WEBP", lossless=True),
    "bmp": encoded(PHOTO, "BMP"),
    "tiff": encoded(PHOTO, "TIFF"),
    "tiff lzw": encoded(PHOTO, "TIFF", compression="tiff_lzw"),
    "tiff deflate": encoded(PHOTO, "TIFF", compression="tiff_adobe_deflate"),
}

# After the last pixel's bits: the rest of their byte, Adler-32, the chunk's CRC and the end mark.
PNG_TAIL = 24
JPEG_TAIL = 3  # the end of the image, and a byte whose last bits may be filling

fuzz = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
ignore_pillow = pytest.mark.filterwarnings("ignore::UserWarning:PIL.*")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_size(width: int, height: int, *more: bytes) -> bytes:
    """A PNG whose header says so; its pixels are missing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"".join((chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(b"\0" * 16)), chunk(b"IEND", b"")))
    return MAGICS["png"] + body


def bmp_of_size(width: int, height: int) -> bytes:
    real = FILES["bmp"]
    return real[:18] + struct.pack("<ii", width, height) + real[26:]


@pytest.mark.parametrize(
    ("data", "refusal", "says"),
    [
        pytest.param(b"", BadImage, "empty", id="empty"),
        pytest.param(b"hello, I am a text file\n", BadImage, "not an image", id="text"),
        pytest.param(b"\0" * 100, BadImage, "not an image", id="zeros"),
        pytest.param(b"BM is how this text begins", BadImage, "image/bmp", id="text like a BMP"),
        pytest.param(encoded(PHOTO, "GIF"), UnsupportedImage, "GIF", id="GIF"),
        pytest.param(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", UnsupportedImage, "HEIC", id="HEIC"),
        pytest.param(encoded(PHOTO, "AVIF"), UnsupportedImage, "AVIF", id="AVIF"),
        pytest.param(b"\0\0\0\x18ftypmp42\0\0\0\0", UnsupportedImage, "video", id="video"),
        pytest.param(encoded(PHOTO, "PDF"), UnsupportedImage, "PDF", id="PDF"),
        pytest.param(b'<svg xmlns="http://www.w3.org/2000/svg"/>', UnsupportedImage, "SVG", id="SVG"),
        pytest.param(b'<?xml version="1.0"?>\n<svg/>', UnsupportedImage, "SVG", id="SVG with a prolog"),
        pytest.param(b"8BPS\0\x01" + bytes(30), UnsupportedImage, "PSD", id="PSD"),
        pytest.param(png_of_size(0, 0), BadImage, "no pixels|not a readable", id="PNG without pixels"),
        pytest.param(png_of_size(0, 7), BadImage, "no pixels|not a readable", id="PNG without width"),
        pytest.param(bmp_of_size(0, 0), BadImage, "no pixels|not a readable", id="BMP without pixels"),
    ],
)
def test_what_is_no_image_is_refused_by_name(data: bytes, refusal: type[Refusal], says: str) -> None:
    with pytest.raises(refusal, match=says):
        decode(data)


def test_more_than_50_mb_is_refused_before_anything_is_read() -> None:
    data = MAGICS["png"] + bytes(MAX_IMAGE_BYTES - len(MAGICS["png"]))
    assert sniff(data) == "image/png"
    with pytest.raises(TooLarge, match=f"{MAX_IMAGE_BYTES + 1} bytes; at most {MAX_IMAGE_BYTES}"):
        sniff(data + b"\0")
    with pytest.raises(TooLarge):
        decode(data + b"\0")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(png_of_size(100_000, 100_000), id="10 gigapixels"),
        pytest.param(png_of_size(2**31 - 1, 2**31 - 1), id="the largest PNG"),
        pytest.param(png_of_size(9_000, 9_000), id="81 megapixels, which Pillow alone would decode"),
        pytest.param(bmp_of_size(60_000, 60_000), id="BMP"),
    ],
)
def test_a_header_that_promises_too_many_pixels_costs_nothing(data: bytes) -> None:
    started = time.process_time()

    def refused() -> None:
        with pytest.raises(TooLarge, match="pixels"):
            decode(data)

    assert peak_growth_bytes(refused) < 20_000_000
    assert time.process_time() - started < 1.0


def test_the_largest_allowed_header_is_not_refused_for_its_size() -> None:
    with pytest.raises(BadImage):  # its pixels are missing, but it was let through to the decoder
        decode(png_of_size(MAX_PIXELS // 8000, 8000))
    with pytest.raises(TooLarge, match=f"{MAX_PIXELS // 8000 + 1} x 8000"):
        decode(png_of_size(MAX_PIXELS // 8000 + 1, 8000))
    for width, height in ((MAX_SIDE + 1, 1), (1, MAX_SIDE + 1), (64_000_000, 1)):  # a row has a cost of its own
        with pytest.raises(TooLarge, match=f"{width} x {height}; a side has at most"):
            decode(png_of_size(width, height))


def test_a_compressed_text_that_unpacks_to_100_mb_is_not_unpacked() -> None:
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(100_000_000)))

    def refused() -> None:
        with pytest.raises(Refusal):
            decode(png_of_size(8, 8, bomb))

    assert peak_growth_bytes(refused) < 30_000_000


@ignore_pillow
@pytest.mark.parametrize("name", FILES)
def test_a_truncated_image_is_refused_wherever_it_was_cut(name: str) -> None:
    data = FILES[name]
    # Every place in the headers, then one in 61.
    needed = len(data) - (PNG_TAIL if name.startswith("png") else JPEG_TAIL if name.startswith("jpeg") else 0)
    for cut in [*range(min(200, needed)), *range(200, needed, 61), needed - 1]:
        with pytest.raises(BadImage):
            decode(data[:cut])


@pytest.mark.parametrize("name", ["png", "png palette"])
def test_a_cut_after_the_last_pixel_changes_no_pixel(name: str) -> None:
    data = FILES[name]
    whole = np.asarray(decode(data).rgb)
    for cut in range(len(data) - PNG_TAIL + 4, len(data)):
        assert np.array_equal(np.asarray(decode(data[:cut]).rgb), whole)


def test_truncation_is_named() -> None:
    with pytest.raises(BadImage, match="image/jpeg is truncated"):
        decode(FILES["jpeg"][: len(FILES["jpeg"]) // 2])


@ignore_pillow
@fuzz
@given(magic=st.sampled_from(sorted(MAGICS)), rest=st.binary(max_size=400))
def test_random_bytes_after_a_magic_end_in_a_refusal(magic: str, rest: bytes) -> None:
    _only_refusals(MAGICS[magic] + rest)


@ignore_pillow
@fuzz
@given(
    name=st.sampled_from(sorted(FILES)),
    damages=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=6)), min_size=1, max_size=5
    ),
    head=st.booleans(),
)
def test_a_damaged_image_is_an_image_or_a_refusal(name: str, damages: list[tuple[float, bytes]], head: bool) -> None:
    data = bytearray(FILES[name])
    for where, what in damages:
        at = int(where * (min(len(data), 120) if head else len(data)))
        data[at : at + len(what)] = what
    _only_refusals(bytes(data))


def _only_refusals(data: bytes) -> None:
    try:
        image = decode(data)
    except Refusal as refusal:
        assert refusal.message and "\n" not in refusal.message
        return
    assert isinstance(image, DecodedImage)
    assert image.rgb.mode == "RGB" and 1 <= image.width * image.height <= MAX_PIXELS
    assert io.BytesIO(image.rgb.tobytes()).getbuffer().nbytes == 3 * image.width * image.height
