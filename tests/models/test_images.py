"""Images of every format that is read, against Pillow's full decode and, where it can be, against plain arrays."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ekiben.errors import UnsupportedImage
from models.image_formats.sniffing import EXTENSIONS, sniff
from models.images import decode, encode_jpeg, encode_png
from tests.models.peak import peak_growth_bytes
from tests.toy_models import encoded, noise, solid

Pixels = NDArray[np.uint8]

PHOTO = noise(53, 37, seed=1)
GREY16 = np.random.default_rng(2).integers(0, 65536, (37, 53), dtype=np.uint16)
RGB16 = np.random.default_rng(3).integers(0, 65536, (37, 53, 3), dtype=np.uint16)

# What the EXIF orientation says to do with the stored array (EXIF 2.32, tag 0x0112).
TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


def png16(samples: NDArray[np.uint16]) -> bytes:
    """A 16-bit PNG, grey or RGB: Pillow writes no 16-bit RGB."""
    height, width = samples.shape[:2]
    color = 2 if samples.ndim == 3 else 0
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def tiff16(samples: NDArray[np.uint16], order: str) -> bytes:
    """An uncompressed 16-bit RGB TIFF; ``order`` is "<" or ">"."""
    height, width = samples.shape[:2]
    data = samples.astype(order + "u2").tobytes()
    bits_at = 8 + len(data)
    directory_at = bits_at + 6
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, bits_at), (259, 3, 1, 1), (262, 3, 1, 2)]
    entries += [(273, 4, 1, 8), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, len(data))]
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", directory_at) + data
    out += struct.pack(order + "HHH", 16, 16, 16) + struct.pack(order + "H", len(entries))
    for tag, kind, count, value in entries:
        short = kind == 3 and count == 1
        out += struct.pack(order + "HHI", tag, kind, count) + struct.pack(
            order + ("HH" if short else "I"), value, *[0] * short
        )
    return out + struct.pack(order + "I", 0)


def alpha(mode: str) -> Image.Image:
    image = PHOTO.convert(mode)
    image.putalpha(Image.fromarray(np.linspace(0, 255, 53 * 37).reshape(37, 53).astype(np.uint8)))
    return image


def palette() -> Image.Image:
    return PHOTO.quantize(17)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def phone_jpeg() -> bytes:
    """A JPEG of two frames, which Pillow calls MPO."""
    return encoded(PHOTO, "MPO", save_all=True, append_images=[solid((9, 9, 9), 53, 37)])


FILES: dict[str, bytes] = {
    "jpeg": encoded(PHOTO, "JPEG", quality=90),
    "jpeg 4:4:4": encoded(PHOTO, "JPEG", quality=95, subsampling=0),
    "jpeg grey": encoded(PHOTO.convert("L"), "JPEG"),
    "jpeg cmyk": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "jpeg progressive": encoded(PHOTO, "JPEG", progressive=True),
    "jpeg of two frames": phone_jpeg(),
    "png": encoded(PHOTO),
    "png palette": encoded(palette()),
    "png palette with a transparent index": encoded(palette(), transparency=3),
    "png palette with alpha": encoded(palette(), transparency=bytes(range(0, 255, 15))),
    "png grey and alpha": encoded(alpha("L")),
    "png rgba": encoded(alpha("RGB")),
    "png 1 bit": encoded(PHOTO.convert("1")),
    "png 4 bits": encoded(PHOTO.quantize(9), bits=4),
    "webp": encoded(PHOTO, "WEBP"),
    "webp lossless": encoded(PHOTO, "WEBP", lossless=True),
    "webp rgba": encoded(alpha("RGB"), "WEBP", lossless=True, exact=True),
    "bmp": encoded(PHOTO, "BMP"),
    "bmp palette": encoded(palette(), "BMP"),
    "tiff": encoded(PHOTO, "TIFF"),
    "tiff lzw": encoded(PHOTO, "TIFF", compression="tiff_lzw"),
    "tiff deflate": encoded(PHOTO, "TIFF", compression="tiff_adobe_deflate"),
    "tiff rgba": encoded(alpha("RGB"), "TIFF"),
    "tiff cmyk": encoded(PHOTO.convert("CMYK"), "TIFF"),
    "tiff lab": encoded(PHOTO.convert("LAB"), "TIFF"),
    "tiff 1 bit": encoded(PHOTO.convert("1"), "TIFF"),
}

LOSSLESS = {
    "png": encoded(PHOTO),
    "webp": encoded(PHOTO, "WEBP", lossless=True),
    "bmp": encoded(PHOTO, "BMP"),
    "tiff": encoded(PHOTO, "TIFF", compression="tiff_lzw"),
    "png rgba": encoded(alpha("RGB")),
}


def reference(data: bytes) -> Pixels:
    image = Image.open(io.BytesIO(data))
    image.load()
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def pixels(data: bytes) -> Pixels:
    return np.asarray(decode(data).rgb)


@pytest.mark.parametrize("name", FILES)
def test_decodes_as_pillow_does(name: str) -> None:
    image = decode(FILES[name])
    assert image.rgb.mode == "RGB"
    assert np.array_equal(np.asarray(image.rgb), reference(FILES[name]))
    assert (image.width, image.height) == (53, 37)
    assert image.mime_type == sniff(FILES[name]) == f"image/{name.split()[0]}"
    assert image.info.width == 53 and image.info.height == 37 and image.info.mime_type == image.mime_type


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_formats_give_the_very_pixels(name: str) -> None:
    assert np.array_equal(pixels(LOSSLESS[name]), np.asarray(PHOTO))


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_turned_as_exif_says(format: str, orientation: int) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    turned = pixels(encoded(PHOTO, format, exif=exif(orientation), **options))
    # The decoder alone, on the same file without the tag; for all but JPEG these are the very pixels that went in.
    stored = np.asarray(Image.open(io.BytesIO(encoded(PHOTO, format, **options))).convert("RGB"))
    assert np.array_equal(turned, TURNS[orientation](stored))
    assert turned.shape[:2] == ((37, 53) if orientation < 5 else (53, 37))


def test_xmp_turns_nothing() -> None:
    """As in browsers: EXIF alone says how an image is turned."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = encoded(PHOTO, "JPEG", xmp=xmp, quality=95, subsampling=0)
    upright = encoded(PHOTO, "JPEG", quality=95, subsampling=0)
    assert np.array_equal(pixels(data), pixels(upright))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("tags", [b"Exif\0\0no tags at all", b"garbage", b"Exif\0\0II*\0\xff\xff\xff\x7f"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_exif_that_nobody_can_read_turns_nothing(format: str, tags: bytes) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    expected = np.asarray(Image.open(io.BytesIO(encoded(PHOTO, format, **options))).convert("RGB"))
    assert np.array_equal(pixels(encoded(PHOTO, format, exif=tags, **options)), expected)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(png16(GREY16), id="png"),
        pytest.param(encoded(Image.fromarray(GREY16), "TIFF"), id="tiff"),
        pytest.param(encoded(Image.fromarray(GREY16), "TIFF", compression="tiff_lzw"), id="tiff lzw"),
        pytest.param(
            encoded(Image.frombytes("I;16B", (53, 37), GREY16.astype(">u2").tobytes()), "TIFF"), id="tiff big-endian"
        ),
        pytest.param(encoded(Image.fromarray(GREY16.astype(np.int32)), "TIFF"), id="tiff of 32 bits"),
    ],
)
def test_16_bit_grey_keeps_its_high_byte(data: bytes) -> None:
    high = (GREY16 >> 8).astype(np.uint8)
    assert np.array_equal(pixels(data), np.repeat(high[:, :, None], 3, axis=2))


@pytest.mark.parametrize(
    "data", [png16(RGB16), tiff16(RGB16, "<"), tiff16(RGB16, ">")], ids=["png", "tiff", "big-endian tiff"]
)
def test_16_bit_colour_keeps_its_high_byte(data: bytes) -> None:
    assert np.array_equal(pixels(data), (RGB16 >> 8).astype(np.uint8))


def test_32_bit_grey_is_shown_over_the_bits_in_use() -> None:
    for grey, levels in (
        ([0, 256, 65535], [0, 1, 255]),
        ([0, 65536, 2**20 - 1], [0, 16, 255]),
        ([-128, 0, 127], [0, 128, 255]),
    ):
        data = encoded(Image.fromarray(np.array([grey], np.int32)), "TIFF")
        assert pixels(data)[0, :, 0].tolist() == levels


def test_floating_point_pixels_are_not_read() -> None:
    with pytest.raises(UnsupportedImage, match="floating-point"):
        decode(encoded(PHOTO.convert("F"), "TIFF"))


def test_memory_of_16_bit_grey_stays_near_the_image_s() -> None:
    grey = Image.fromarray(np.resize(GREY16, (3000, 3000)))
    data = encoded(grey, "TIFF")
    # Pillow's two images are 2 and 4 bytes a pixel, the arrays between them 2 + 2 + 1.
    assert peak_growth_bytes(lambda: decode(data)) < 14 * 3000 * 3000


def test_real_photos_decode_as_pillow_does(shared_data: Path) -> None:
    photos = (
        sorted((shared_data / "photos").glob("*.jpg")) + sorted((shared_data / "imagenet_sample").glob("*.[jJ]*"))[:12]
    )
    assert len(photos) >= 12
    for photo in photos:
        data = photo.read_bytes()
        assert np.array_equal(pixels(data), reference(data)), photo.name


def test_encoders_round_trip() -> None:
    assert np.array_equal(pixels(encode_png(PHOTO)), np.asarray(PHOTO))
    assert len(encode_png(solid((5, 6, 7), 99, 99), level=9)) <= len(encode_png(solid((5, 6, 7), 99, 99), level=1))
    smooth = Image.linear_gradient("L").convert("RGB")
    jpeg = decode(encode_jpeg(smooth, quality=95))
    assert jpeg.mime_type == "image/jpeg"
    assert np.abs(np.asarray(jpeg.rgb).astype(int) - np.asarray(smooth)).max() <= 4


def test_every_mime_type_has_an_extension() -> None:
    assert {sniff(data) for data in FILES.values()} | {"application/dicom"} == set(EXTENSIONS)


def metadata_files() -> dict[str, bytes]:
    """Images with a transparent colour, a colour profile and EXIF."""
    profile = b"not a colour profile" * 100
    bilevel = Image.fromarray(np.asarray(PHOTO.convert("L")) > 127)
    header = b"".join((struct.pack(">I", 13), b"IHDR", struct.pack(">IIBBBBB", 8, 1, 1, 0, 0, 0, 0)))
    chunks = [(b"IHDR", header[8:]), (b"tRNS", bytes(300)), (b"IDAT", zlib.compress(b"\0\x5a")), (b"IEND", b"")]
    odd = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return {
        "bilevel with a transparent colour": encoded(bilevel, transparency=0),
        "bilevel with too many of them": b"\x89PNG\r\n\x1a\n" + odd,
        "grey with a transparent colour": encoded(PHOTO.convert("L"), transparency=7),
        "RGB with a transparent colour": encoded(PHOTO, transparency=(1, 2, 3)),
        "palette with transparency": encoded(PHOTO.convert("P"), transparency=3),
        "PNG with a profile": encoded(PHOTO, icc_profile=profile),
        "JPEG with a profile": encoded(PHOTO, "JPEG", icc_profile=profile, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"),
        "WebP with a profile": encoded(PHOTO, "WEBP", icc_profile=profile),
        "TIFF with a profile": encoded(PHOTO, "TIFF", icc_profile=profile),
    }


@pytest.mark.parametrize("name", list(metadata_files()))
def test_metadata_does_not_reach_the_images_made_of_an_image(name: str) -> None:
    image = decode(metadata_files()[name])
    assert image.rgb.info == {}
    for made in (encode_png(image.rgb), encode_jpeg(image.rgb)):
        with Image.open(io.BytesIO(made)) as opened:
            assert not {"icc_profile", "exif", "transparency"} & set(opened.info)
