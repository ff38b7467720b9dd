"""The cost of images by their headers: against Pillow's sizes, and against the memory that decoding them takes."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ekiben.errors import Refusal
from models.image_cost import NOTHING, image_cost, needs_thread
from models.image_formats.jpeg import whole
from models.images import decode
from models.inference_requests import PreparedTensor
from models.limits import MAX_PIXELS
from tests.models.medical.dicom_files import DEFLATED, dicom
from tests.models.peak import peak_growth_bytes
from tests.toy_models import encoded, noise

GREY16 = np.random.default_rng(0).integers(0, 4096, (1200, 1300), dtype=np.uint16)
FORMATS: dict[str, Callable[[Image.Image], bytes]] = {
    "jpeg": lambda image: encoded(image, "JPEG"),
    "jpeg, turned": lambda image: encoded(image, "JPEG", exif=_turned()),
    "progressive jpeg": lambda image: encoded(image, "JPEG", progressive=True, subsampling=0),
    "cmyk jpeg": lambda image: encoded(image.convert("CMYK"), "JPEG"),
    "png": lambda image: encoded(image, compress_level=1),
    "png with alpha": lambda image: encoded(image.convert("RGBA"), compress_level=1),
    "palette png": lambda image: encoded(image.quantize(16, method=Image.Quantize.FASTOCTREE), compress_level=1),
    "16-bit png": lambda image: encoded(Image.fromarray(_grey16(image)), compress_level=1),
    "webp": lambda image: encoded(image, "WEBP", method=0),
    "lossless webp": lambda image: encoded(image, "WEBP", lossless=True, method=0, quality=0),
    "webp with alpha": lambda image: encoded(image.convert("RGBA"), "WEBP", method=0),
    "bmp": lambda image: encoded(image, "BMP"),
    "tiff": lambda image: encoded(image, "TIFF", compression="tiff_lzw"),
    "16-bit tiff": lambda image: encoded(Image.fromarray(_grey16(image)), "TIFF"),
    "dicom": lambda image: dicom(_grey16(image)),
}
BYTES_PER_PIXEL = {"webp": 20, "dicom": 24, "tiff": 24, "16-bit": 24}


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _grey16(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L")).astype(np.uint16) * 16


@pytest.mark.parametrize("format", FORMATS)
def test_the_size_is_that_of_the_image(format: str) -> None:
    data = FORMATS[format](noise(53, 37))
    per_pixel = next((many for name, many in BYTES_PER_PIXEL.items() if name in format), 12)
    assert image_cost(data).bytes == 53 * 37 * per_pixel


@pytest.mark.parametrize("format", FORMATS)
def test_decoding_takes_no_more_memory(format: str) -> None:
    data = FORMATS[format](noise(1500, 1200))
    decode(FORMATS[format](noise(8, 8)))  # what the first file of a format imports
    assert peak_growth_bytes(lambda: decode(data)) <= image_cost(data).bytes + 2_000_000


def test_small_images_are_quick_and_large_ones_slow() -> None:
    assert not image_cost(encoded(noise(1024, 1024), "JPEG")).slow
    assert image_cost(encoded(noise(1025, 1024), "JPEG")).slow


@pytest.mark.parametrize("format", ["tiff", "dicom"])
def test_formats_whose_headers_do_not_tell_are_slow(format: str) -> None:
    data = FORMATS[format](noise(8, 8))
    assert image_cost(data).slow
    assert needs_thread(data)


def test_a_small_jpeg_of_many_scans_is_slow() -> None:
    data = encoded(noise(600, 600), "JPEG", progressive=True)
    assert not image_cost(data).slow
    start = data.rindex(b"\xff\xda")
    scan = data[start:-2]
    many = data[:-2] + scan * 60 + b"\xff\xd9"
    assert whole(many) == many  # fewer than MAX_JPEG_SCANS
    assert image_cost(many).slow


def test_a_small_image_of_much_metadata_is_slow() -> None:
    """Metadata is read as the pixels are, and takes as long."""
    text = PngInfo()
    for _ in range(1000):
        text.add_text("Comment", "x" * 1500)
    jpeg = encoded(noise(100, 100), "JPEG")
    comment = b"\xff\xfe\xff\xff" + bytes(65533)
    for data in (encoded(noise(100, 100), pnginfo=text), jpeg[:2] + comment * 20 + jpeg[2:]):
        assert image_cost(data).slow
        assert image_cost(data).bytes == 12 * 100 * 100
    assert not image_cost(encoded(noise(1024, 1024), compress_level=0)).slow
    assert not image_cost(encoded(noise(1000, 1000), "BMP")).slow
    deep = np.random.default_rng(0).integers(0, 1 << 16, (1000, 1000), np.uint16)
    assert not image_cost(encoded(Image.fromarray(deep), compress_level=0)).slow


def test_webp_of_each_kind_against_pillow() -> None:
    for options in ({"lossless": True}, {"quality": 50}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}):
        data = encoded(noise(300, 17), "WEBP", **options)
        width, height = Image.open(io.BytesIO(data)).size
        assert image_cost(data).bytes == 20 * width * height, options


def test_a_bmp_of_os2_and_one_upside_down() -> None:
    data = bytearray(encoded(noise(31, 9), "BMP"))
    struct.pack_into("<i", data, 22, -9)
    assert image_cost(bytes(data)).bytes == 12 * 31 * 9
    core = b"BM" + struct.pack("<IHHI", 26, 0, 0, 26) + struct.pack("<IHHHH", 12, 31, 9, 1, 24)
    assert image_cost(core).bytes == 12 * 31 * 9


def test_of_a_deflated_dicom_file_the_largest_image_is_assumed() -> None:
    assert image_cost(dicom(GREY16, DEFLATED)).bytes == 24 * MAX_PIXELS


def test_of_a_dicom_file_the_rows_count_that_are_decoded() -> None:
    """Not those of a sequence, nor what stands in the bytes of another attribute."""
    lie = b"\x28\0\x10\0US\x02\0\1\0\x28\0\x11\0US\x02\0\1\0\xe0\x7f\x10\0\0\0"
    for syntax in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1"):
        file = pydicom.dcmread(io.BytesIO(dicom(GREY16)))
        file.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
        block = file.private_block(0x0009, "X", create=True)
        block.add_new(0x01, "OB", lie)
        icon = pydicom.Dataset()
        icon.Rows, icon.Columns = 5000, 5000
        file.IconImageSequence = [icon]
        out = io.BytesIO()
        pydicom.dcmwrite(out, file, implicit_vr=syntax.endswith(".2"), little_endian=True)
        assert image_cost(out.getvalue()).bytes == 24 * GREY16.size
        assert (decode(out.getvalue()).height, decode(out.getvalue()).width) == GREY16.shape
    file = pydicom.dcmread(io.BytesIO(dicom(GREY16)))
    for number in range(20_000):
        file.add_new(pydicom.tag.Tag(0x0011 + 2 * (number >> 12), 0x1000 + (number & 0xFFF)), "US", 1)
    out = io.BytesIO()
    file.save_as(out)
    assert image_cost(out.getvalue()).bytes == 24 * MAX_PIXELS


def test_pixels_and_tensors() -> None:
    assert image_cost(np.zeros((20, 30, 3), np.uint8)).bytes == 12 * 600
    assert image_cost(PreparedTensor(np.zeros((3, 2000, 2000), np.float32))) == NOTHING


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GIF89a",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        b"RIFF\0\0\0\0WEBPVP8 ",
        b"BM" + bytes(10),
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + b"\xff" * 20,  # more pixels than are accepted
    ],
)
def test_what_is_refused_costs_nothing(data: bytes) -> None:
    assert image_cost(data) == NOTHING
    with pytest.raises(Refusal):
        decode(data)


HEADS = [
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"RIFF\0\0\0\0WEBPVP8X",
    b"RIFF\0\0\0\0WEBPVP8L",
    b"BM",
    b"II*\0",
    b"MM\0*",
]


@given(st.sampled_from([*HEADS, bytes(128) + b"DICM"]), st.binary(max_size=200))
def test_any_bytes_have_a_cost(head: bytes, rest: bytes) -> None:
    cost = image_cost(head + rest)
    assert 0 <= cost.bytes <= 24 * MAX_PIXELS
