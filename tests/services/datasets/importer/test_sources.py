"""Files of a pair as frames: their pixels against Pillow and numpy, their geometry, and what is refused."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ekiben.errors import BadImage, TooLarge
from models.images import decode
from models.limits import MAX_IMAGE_BYTES
from services.datasets.importer import sources
from services.datasets.importer.mask_values import MaskPixels
from services.datasets.importer.sources import SampleSource, open_source
from tests.models.image_formats.tiff_files import Page, tiff
from tests.models.medical.dicom_files import GRADIENT, dicom
from tests.services.datasets.importer.uploads import paletted
from tests.toy_models import encoded, noise

COLORS = [(0, 0, 0), (255, 0, 0), (0, 200, 10)]


@pytest.fixture
def opened(tmp_path: Path) -> Callable[[bytes], SampleSource]:
    """Opens bytes as a file."""

    def open_bytes(data: bytes) -> SampleSource:
        path = tmp_path / "file"
        path.write_bytes(data)
        return open_source(path)

    return open_bytes


Opened = Callable[[bytes], SampleSource]


def stack(*pages: Image.Image, **options: Any) -> bytes:
    return encoded(pages[0], "TIFF", save_all=True, append_images=list(pages[1:]), **options)


def rgb_of(source: SampleSource, frame: int = 0) -> NDArray[np.uint8]:
    return np.asarray(source.image(frame).rgb)


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[0x0112] = orientation
    return made


# ---- images ----


@pytest.mark.parametrize(
    ("mode", "format", "words", "ending"),
    [
        ("RGB", "PNG", "8-bit colour", "png"),
        ("RGB", "JPEG", "8-bit colour", "jpg"),
        ("RGB", "BMP", "8-bit colour", "bmp"),
        ("RGB", "WEBP", "8-bit colour", "webp"),
        ("RGBA", "PNG", "8-bit colour with alpha", "png"),
        ("L", "TIFF", "8-bit grey", "tif"),
        ("LA", "PNG", "8-bit grey with alpha", "png"),
        ("1", "PNG", "1-bit grey", "png"),
        ("P", "PNG", "palette", "png"),
        ("I;16", "PNG", "16-bit grey", "png"),
        ("CMYK", "JPEG", "CMYK", "jpg"),
        ("F", "TIFF", "32-bit float", "tif"),
    ],
)
def test_a_plain_image_is_one_frame_and_stored_as_it_came(
    mode: str, format: str, words: str, ending: str, opened: Opened
) -> None:
    pixels = noise(6, 4).convert("L") if mode == "I;16" else noise(6, 4)
    data = encoded(pixels.convert(mode), format)
    with opened(data) as source:
        assert (source.frames, source.volume, source.series) == (1, False, None)
        assert source.format(0) == (words, False)
        assert source.stored(0) == (data, ending)
        assert source.geometry(0) == {}
        if mode != "F":
            assert np.array_equal(rgb_of(source), np.asarray(decode(data).rgb))


@pytest.mark.parametrize("orientation", [1, 2, 5, 8, 9])
def test_exif_turns_by_the_values_2_to_8(orientation: int, opened: Opened) -> None:
    with opened(encoded(noise(6, 4), "JPEG", exif=exif(orientation))) as source:
        assert source.format(0) == ("8-bit colour", 2 <= orientation <= 8)
        assert rgb_of(source).shape[:2] == ((6, 4) if orientation in (5, 8) else (4, 6))


def test_what_is_no_image_has_no_format_and_is_refused_when_it_is_read(opened: Opened) -> None:
    with opened(b"hello") as source:
        assert source.format(0) == ("", False)
        with pytest.raises(BadImage, match=r"^the bytes are not an image; "):
            source.image(0)
        with pytest.raises(BadImage, match=r"^the mask is not a readable image$"):
            source.mask(0)


def test_a_file_of_several_frames_that_phones_write_is_a_jpeg(opened: Opened) -> None:
    data = encoded(noise(6, 4), "MPO", save_all=True, append_images=[noise(6, 4, 1)])
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "MPO"
    with opened(data) as source:
        assert (source.frames, source.stored(0)) == (1, (data, "jpg"))


def test_a_file_of_too_many_bytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    os.truncate(path, MAX_IMAGE_BYTES + 1)  # a hole: no bytes are written
    with pytest.raises(TooLarge) as caught:
        open_source(path)
    assert str(caught.value) == f"it has {MAX_IMAGE_BYTES + 1} bytes; at most {MAX_IMAGE_BYTES} are accepted"


# ---- stacks ----


def test_pages_of_one_size_are_frames(opened: Opened) -> None:
    pages = [noise(6, 4, seed) for seed in range(3)]
    for order in ([0, 1, 2], [2, 0, 1]):
        with opened(stack(*pages)) as source:
            assert (source.frames, source.volume, source.series) == (3, True, None)
            for frame in order:
                assert np.array_equal(rgb_of(source, frame), np.asarray(pages[frame]))
                assert source.geometry(frame) == {"slice": frame, "axis": 0}
                assert source.format(frame) == ("8-bit colour", False)


def test_pages_of_other_sizes_are_thumbnails(opened: Opened) -> None:
    page = noise(6, 4)
    data = stack(page, noise(3, 2, 1), noise(3, 2, 2))
    with opened(data) as source:
        assert (source.frames, source.volume) == (1, False)
        assert np.array_equal(rgb_of(source), np.asarray(page))


def test_pages_are_stored_without_loss(opened: Opened) -> None:
    """Grey of 16 bits, palettes and colours, as Pillow reads them from the PNG; CMYK, which PNG lacks, as RGB."""
    deep = [np.random.default_rng(seed).integers(0, 65536, (4, 6)).astype(np.uint16) for seed in range(2)]
    with opened(stack(*map(Image.fromarray, deep))) as source:
        data, ending = source.stored(1)
        assert ending == "png"
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), deep[1])
        assert np.array_equal(rgb_of(source, 1)[..., 0], deep[1] >> 8)
        assert source.format(1) == ("16-bit grey", False)
        assert np.array_equal(source.mask(1).data, deep[1])
    inks = noise(6, 4).convert("CMYK")
    with opened(stack(inks, inks)) as source:
        assert source.format(0) == ("CMYK", False)
        assert np.array_equal(rgb_of(source, 1), np.asarray(inks.convert("RGB")))
    indices = (np.arange(24).reshape(4, 6) % 3).astype(np.uint8)
    page = Image.open(io.BytesIO(paletted(indices, COLORS)))
    with opened(stack(page, page)) as source:
        mask = source.mask(1)
        assert mask.kind == "palette"
        assert mask.palette is not None
        assert np.array_equal(mask.data, indices)
        assert mask.palette[:3].tolist() == [list(color) for color in COLORS]


def test_pages_of_fractions_are_refused(opened: Opened) -> None:
    page = Image.fromarray(np.zeros((4, 6), np.float32))
    with opened(stack(page, page)) as source:
        with pytest.raises(BadImage) as caught:
            source.image(1)
        assert str(caught.value) == "page 1 has floating-point pixels, whose range is not defined"
        with pytest.raises(BadImage) as caught:
            source.mask(0)
        assert str(caught.value) == "page 0 has floating-point pixels: save the mask as whole numbers"


def test_a_damaged_page_is_refused_and_the_others_are_read(opened: Opened) -> None:
    pages = [noise(6, 4, seed) for seed in range(3)]
    with opened(stack(*pages)[:-40]) as source:
        for read in (source.image, source.mask, source.stored):
            with pytest.raises(BadImage) as caught:
                read(2)
            assert str(caught.value) == "page 2 is damaged"
        assert np.array_equal(rgb_of(source, 1), np.asarray(pages[1]))


@pytest.mark.parametrize("big", [False, True], ids=["TIFF", "BigTIFF"])
def test_a_stack_that_is_cut_is_never_a_smaller_one(big: bool, tmp_path: Path) -> None:
    """Wherever it is cut: one that has lost pages is no image of one page, nor a stack of those that are left."""
    pages = [Page(np.full((9, 7), 40 + number, np.uint8)) for number in range(3)]
    data = tiff(*pages, big=big)
    path = tmp_path / "stack.tif"
    path.write_bytes(data)
    with open_source(path) as source:
        assert [rgb_of(source, frame).max() for frame in range(source.frames)] == [40, 41, 42]
    for length in range(len(tiff(pages[0], big=big)), len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(BadImage, match=r"page [23] of the TIFF is cut off"):
            open_source(path)


def test_a_mask_page_makes_no_stack(opened: Opened) -> None:
    """NewSubfileType 4: transparency of the first page."""
    values = np.arange(63, dtype=np.uint8).reshape(9, 7)
    with opened(tiff(Page(values), Page(np.full((9, 7), 255, np.uint8), tags={254: [4]}))) as source:
        assert source.frames == 1
        assert np.array_equal(np.asarray(source.image(0).rgb)[..., 0], values)


def test_pages_are_limited_in_number_and_size(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    dot = Image.new("L", (1, 1))
    assert sources.MAX_PAGES == 10_000
    with monkeypatch.context() as changed:
        changed.setattr(sources, "MAX_PAGES", 20)
        with opened(stack(*[dot] * 20)) as source:
            assert source.frames == 20
        with pytest.raises(TooLarge) as caught:
            opened(stack(*[dot] * 21))
    assert str(caught.value) == "it has 21 pages of 1 x 1; at most 20 of 64000000 pixels are accepted"
    large = Image.new("1", (9000, 8000))
    with pytest.raises(TooLarge) as caught:
        opened(stack(large, large, compression="group4"))
    assert str(caught.value) == "it has 2 pages of 9000 x 8000; at most 10000 of 64000000 pixels are accepted"


# ---- volumes ----


def test_a_nifti_volume(opened: Opened) -> None:
    affine = np.array([[-0.5, 0, 0, 9], [0, 0.75, 0, -4], [0, 0, 2.5, 1], [0, 0, 0, 1]])
    values = (np.arange(72).reshape(6, 4, 3) * 500).astype(np.int32)
    with opened(bytes(nibabel.Nifti1Image(values, affine).to_bytes())) as source:  # type: ignore[no-untyped-call]
        assert (source.frames, source.volume, source.series) == (3, True, None)
        for frame in range(3):
            mask = source.mask(frame)
            assert (mask.kind, mask.size, mask.data.dtype) == ("values", (6, 4), np.dtype(np.uint16))
            assert np.array_equal(mask.data, values[..., frame].T)
            image = source.image(frame)
            assert (image.mime_type, image.width, image.height) == ("image/png", 6, 4)
        assert source.geometry(2) == {
            "slice": 2,
            "axis": 2,
            "affine": affine.tolist(),
            "pixel_spacing": [0.75, 0.5],
        }
        assert source.format(0) == ("", False)
        data, ending = source.stored(1)
        with Image.open(io.BytesIO(data)) as stored:
            assert (ending, stored.mode) == ("png", "L")
            assert np.array_equal(np.asarray(stored), rgb_of(source, 1)[..., 0])


def test_a_dicom_file(opened: Opened) -> None:
    data = dicom(GRADIENT, SeriesInstanceUID="1.2.9", PixelSpacing=[0.7, 0.5])
    with opened(data) as source:
        assert (source.frames, source.volume, source.series) == (1, True, "1.2.9")
        assert source.geometry(0) == {"slice": 0, "axis": 0, "pixel_spacing": [0.7, 0.5]}
        assert np.array_equal(source.mask(0).data, GRADIENT)
        assert source.mask(0).data.dtype == np.int32  # the smallest that holds -600
        assert np.array_equal(rgb_of(source), np.asarray(decode(data).rgb))
    with opened(dicom(GRADIENT, SeriesInstanceUID="")) as source:
        assert (source.series, source.geometry(0)) == (None, {"slice": 0, "axis": 0})


def test_a_dicom_file_of_colours_is_stored_with_them(opened: Opened) -> None:
    pixels = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    given = {"Rows": 4, "Columns": 6, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0}
    color = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    with opened(dicom(pixels.tobytes(), **given, **color)) as source:
        data, _ = source.stored(0)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels)
        with pytest.raises(BadImage) as caught:
            source.mask(0)
        assert str(caught.value) == "the DICOM image is no mask: it has three channels"


def test_an_affine_that_is_not_finite_is_left_out(opened: Opened) -> None:
    image = nibabel.Nifti1Image(np.zeros((6, 4, 3), np.uint8), np.eye(4))  # type: ignore[no-untyped-call]
    image.header["srow_x"][3] = np.nan
    image.header["vox_offset"] = 352
    with opened(bytes(image.header.binaryblock) + bytes(4 + 72)) as source:
        assert source.geometry(0) == {"slice": 0, "axis": 2, "pixel_spacing": [1.0, 1.0]}


def test_the_first_bytes_decide_and_not_the_name(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(dicom(GRADIENT))
    with open_source(path) as source:
        assert isinstance(source.mask(0), MaskPixels)
        assert source.volume
