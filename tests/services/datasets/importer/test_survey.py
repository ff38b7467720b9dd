"""The first pass over pairs: what is kept of each sample, and which file is blamed for what."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from services.datasets.importer.layout import File, Pair
from services.datasets.importer.survey import SampleInfo, Survey, Trouble, sample_name, survey
from tests.models.medical.dicom_files import dicom
from tests.services.datasets.importer.shapes import huge
from tests.services.datasets.importer.uploads import paletted, png
from tests.toy_models import encoded, noise

RED, BLACK = (255, 0, 0), (0, 0, 0)


def pair(folder: Path, key: str, image: bytes, mask: bytes) -> Pair:
    files = []
    for role, data in (("images", image), ("masks", mask)):
        path = folder / f"{key}.{role}"
        path.write_bytes(data)
        files.append(File(f"{role}/{key}", path, key))
    return Pair(key, *files)


def surveyed(*pairs: Pair) -> Survey:
    return survey(pairs, lambda done, total: None)


def sampled(folder: Path, image: bytes, mask: bytes) -> SampleInfo:
    found = surveyed(pair(folder, "a", image, mask))
    assert found.troubles == []
    (sample,) = found.samples
    return sample


def trouble(folder: Path, image: bytes, mask: bytes) -> Trouble:
    found = surveyed(pair(folder, "a", image, mask))
    assert found.samples == []
    (one,) = found.troubles
    return one


def photo(width: int = 6, height: int = 4, seed: int = 0, **exif: Any) -> bytes:
    return encoded(noise(width, height, seed), **exif)


def drawn(width: int = 6, height: int = 4) -> np.ndarray:
    mask = np.zeros((height, width), np.uint8)
    mask[1:, 2:] = 7
    return mask


def nifti(values: np.ndarray) -> bytes:
    return bytes(nibabel.Nifti1Image(values, np.eye(4)).to_bytes())  # type: ignore[no-untyped-call]


def vast() -> bytes:
    """The header of a NIfTI volume whose slices have 81 megapixels."""
    header = nibabel.Nifti1Header()  # type: ignore[no-untyped-call]
    header.set_data_shape((9000, 9000, 3))
    header["magic"], header["vox_offset"] = b"n+1", 352
    return bytes(header.binaryblock) + bytes(4)


def test_the_statistics_of_a_sample(tmp_path: Path) -> None:
    rgb = np.asarray(noise(6, 4))
    sample = sampled(tmp_path, photo(), png(drawn()))
    assert (sample.name, sample.group, sample.pair, sample.frame) == ("a", "a", 0, 0)
    assert (sample.width, sample.height, sample.format) == (6, 4, "8-bit colour")
    assert sample.sha256 == hashlib.sha256(rgb.tobytes()).hexdigest()
    assert sample.brightest == rgb.max()
    assert (sample.grey, sample.blank, sample.turned, sample.in_volume) == (False, False, False, False)
    assert sample.mask_sha256 == hashlib.sha256(drawn().tobytes()).hexdigest()
    assert (sample.mask.keys.tolist(), sample.mask.counts.tolist()) == ([0, 7], [12, 12])
    assert not sample.mask_is_image


@pytest.mark.parametrize(
    ("pixel", "other", "grey", "blank", "brightest"),
    [
        ((9, 9, 9), (9, 9, 9), True, True, 9),
        ((9, 9, 9), (8, 8, 8), True, False, 9),
        ((9, 9, 200), (9, 9, 200), False, True, 200),
        ((9, 9, 9), (9, 10, 9), False, False, 10),
        ((9, 9, 9), (9, 9, 8), False, False, 9),
    ],
)
def test_grey_blank_and_brightest(
    pixel: tuple[int, ...], other: tuple[int, ...], grey: bool, blank: bool, brightest: int, tmp_path: Path
) -> None:
    rgb = np.full((4, 6, 3), pixel, np.uint8)
    rgb[3, 5] = other
    sample = sampled(tmp_path, png(rgb), png(drawn()))
    assert (sample.grey, sample.blank, sample.brightest) == (grey, blank, brightest)


def test_equal_pixels_have_equal_hashes_whatever_the_file(tmp_path: Path) -> None:
    grey = noise(6, 4).convert("L")
    pairs = [
        pair(tmp_path, "a", encoded(grey), png(drawn())),
        pair(tmp_path, "b", encoded(grey.convert("RGB"), "BMP"), encoded(Image.fromarray(drawn()), "TIFF")),
    ]
    first, second = surveyed(*pairs).samples
    assert (first.sha256, first.mask_sha256) == (second.sha256, second.mask_sha256)
    assert (first.format, second.format, second.pair) == ("8-bit grey", "8-bit colour", 1)
    assert first.grey and second.grey


def test_progress_is_said_before_each_pair_and_at_the_end(tmp_path: Path) -> None:
    said: list[tuple[int, int]] = []
    survey([pair(tmp_path, key, photo(), png(drawn())) for key in "ab"], lambda *step: said.append(step))
    assert said == [(0, 2), (1, 2), (2, 2)]


def test_an_image_is_turned_only_where_its_mask_is_not(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(noise(6, 4), exif=exif)
    assert sampled(tmp_path, turned, png(drawn(4, 6))).turned
    both = sampled(tmp_path, turned, encoded(Image.fromarray(drawn(6, 4)), exif=exif))
    assert (both.turned, both.width, both.height) == (False, 4, 6)
    assert both.mask_sha256 == hashlib.sha256(np.rot90(drawn(6, 4), -1).tobytes()).hexdigest()


# ---- masks that are images ----


def test_a_mask_with_the_colours_of_its_image_is_the_image(tmp_path: Path) -> None:
    colors = [BLACK, RED, (0, 200, 10)]
    indices = (np.arange(800).reshape(40, 20) % 3).astype(np.uint8)
    rgb = np.array(colors, np.uint8)[indices]
    changed = rgb.copy()
    changed[39, 19] = 1
    assert sampled(tmp_path, png(rgb), encoded(Image.fromarray(rgb), "BMP")).mask_is_image
    assert sampled(tmp_path, png(rgb), paletted(indices, colors)).mask_is_image
    assert not sampled(tmp_path, png(changed), paletted(indices, colors)).mask_is_image
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6)
    assert sampled(tmp_path, png(np.repeat(grey[..., None], 3, 2)), png(grey)).mask_is_image


def test_an_image_of_two_colours_may_equal_its_mask_but_not_be_the_same_file(tmp_path: Path) -> None:
    mask = (drawn() > 0).astype(np.uint8) * 255
    assert not sampled(tmp_path, png(np.repeat(mask[..., None], 3, 2)), png(mask)).mask_is_image
    assert sampled(tmp_path, png(mask), png(mask)).mask_is_image


# ---- volumes ----


def test_slices_are_named_by_a_number_as_long_as_the_last_one(tmp_path: Path) -> None:
    one = pair(tmp_path, "case", b"", b"")
    assert sample_name(one, 0, 1) == "case"
    assert sample_name(one, 3, 10) == "case/3"
    assert sample_name(one, 3, 11) == "case/03"
    assert sample_name(one, 100, 101) == "case/100"


def test_each_slice_is_a_sample(tmp_path: Path) -> None:
    values = np.zeros((6, 4, 3), np.int16)
    values[..., 1:] = np.arange(48).reshape(6, 4, 2)
    labels = np.zeros((6, 4, 3), np.uint8)
    labels[2:4, 1, 2] = 5
    samples = surveyed(pair(tmp_path, "case", nifti(values), nifti(labels))).samples
    assert [(s.name, s.frame, s.group, s.in_volume) for s in samples] == [
        (f"case/{z}", z, "case", True) for z in range(3)
    ]
    assert [s.blank for s in samples] == [True, False, False]
    assert [dict(zip(s.mask.keys.tolist(), s.mask.counts.tolist(), strict=True)) for s in samples] == [
        {0: 24},
        {0: 24},
        {0: 22, 5: 2},
    ]
    assert {(s.width, s.height, s.format, s.mask_is_image) for s in samples} == {(6, 4, "", False)}


def test_dicom_files_of_a_series_are_a_group(tmp_path: Path) -> None:
    pixels = np.arange(24, dtype=np.uint16).reshape(4, 6)
    pairs = [
        pair(tmp_path, key, dicom(pixels, SeriesInstanceUID=series), png(drawn()))
        for key, series in (("a", "1.2.3"), ("b", "1.2.3"), ("c", ""))
    ]
    samples = surveyed(*pairs).samples
    assert [(s.name, s.group, s.in_volume) for s in samples] == [
        ("a", "series 1.2.3", True),
        ("b", "series 1.2.3", True),
        ("c", "c", True),
    ]


# ---- troubles ----


@pytest.mark.parametrize(
    ("width", "height", "why"),
    [
        (3, 2, "image 6 x 4, mask 3 x 2, one of them was resized"),
        (4, 6, "image 6 x 4, mask 4 x 6, width and height exchanged"),
        (5, 4, "image 6 x 4, mask 5 x 4"),
    ],
)
def test_a_mask_of_another_size(width: int, height: int, why: str, tmp_path: Path) -> None:
    assert trouble(tmp_path, photo(), png(drawn(width, height))) == Trouble("size_mismatch", "a", why)


def test_a_mask_drawn_before_exif_turned_the_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    why = "image 4 x 6, mask 6 x 4, drawn before EXIF turned the image"
    assert trouble(tmp_path, photo(exif=exif), png(drawn(6, 4))) == Trouble("size_mismatch", "a", why)


@pytest.mark.parametrize(
    ("image", "mask", "expected"),
    [
        (
            b"hello",
            png(drawn()),
            ("unreadable_image", "images/a", "the bytes are not an image; JPEG, PNG, WebP, BMP, "),
        ),
        (photo(), b"hello", ("unreadable_mask", "masks/a", "the mask is not a readable image")),
        (huge(), png(drawn()), ("image_too_large", "images/a", "the image is 9000 x 8000; at most 64000000 pixels ")),
        (photo(), huge(), ("image_too_large", "masks/a", "the mask is 9000 x 8000; at most 64000000 pixels ")),
        (vast(), png(drawn()), ("image_too_large", "images/a", "a slice of the NIfTI volume is 9000 x 9000; at most ")),
        (dicom(np.zeros((4, 6), np.uint16))[:300], png(drawn()), ("unreadable_image", "images/a", "the DICOM file")),
        (nifti(np.zeros((6, 4, 3), np.int16)), png(drawn()), ("slice_mismatch", "a", "image 3 slices, mask 1")),
    ],
    ids=["image", "mask", "large image", "large mask", "large volume", "DICOM", "slices"],
)
def test_a_file_that_cannot_be_used(image: bytes, mask: bytes, expected: tuple[str, str, str], tmp_path: Path) -> None:
    found = trouble(tmp_path, image, mask)
    assert (found.what, found.name) == expected[:2]
    assert found.why.startswith(expected[2])


def test_a_damaged_slice_is_named_and_the_others_are_samples(tmp_path: Path) -> None:
    """The last page of three is cut off."""
    pages = [noise(6, 4, seed) for seed in range(3)]
    stack = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    masks = [Image.fromarray(drawn())] * 3
    mask = encoded(masks[0], "TIFF", save_all=True, append_images=masks[1:])
    found = surveyed(pair(tmp_path, "s", stack[:-40], mask), pair(tmp_path, "b", photo(), png(drawn())))
    assert [s.name for s in found.samples] == ["s/0", "s/1", "b"]
    assert found.troubles == [Trouble("unreadable_image", "images/s slice 2", "page 2 is damaged")]
    found = surveyed(pair(tmp_path, "s", stack, mask[:-20]))
    assert [s.name for s in found.samples] == ["s/0", "s/1"]
    assert found.troubles == [Trouble("unreadable_mask", "masks/s slice 2", "page 2 is damaged")]


def test_both_files_of_a_pair_are_blamed(tmp_path: Path) -> None:
    damaged = dicom(np.zeros((4, 6), np.uint16))[:300]
    found = surveyed(pair(tmp_path, "a", damaged, damaged))
    assert [(t.what, t.name) for t in found.troubles] == [
        ("unreadable_image", "images/a"),
        ("unreadable_mask", "masks/a"),
    ]
