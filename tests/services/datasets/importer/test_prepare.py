"""The prepared archive against the files it was made of."""

from __future__ import annotations

import gzip
import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.data import get_testdata_file

from ekiben.dataset_archive import DatasetArchive
from ekiben.errors import NotFound
from models.images import decode
from tests.services.datasets.importer.uploads import Imported, blob, dataset, image, imported, png
from tests.toy_models import encoded, noise

AFFINE = np.array([[-0.7, 0, 0, 9], [0, 0.8, 0, -4], [0, 0, 2.5, 1], [0, 0, 0, 1]], np.float64)


def pixels(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def nifti(values: NDArray[Any], affine: NDArray[np.float64] = AFFINE) -> bytes:
    return bytes(nib.Nifti1Image(values, affine).to_bytes())  # type: ignore[no-untyped-call]


def computed_tomography() -> pydicom.FileDataset:
    """128 x 128 pixels, from pydicom's own test files."""
    return pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))


def written(slice_: pydicom.Dataset) -> bytes:
    out = io.BytesIO()
    slice_.save_as(out)
    return out.getvalue()


def opened(done: Imported) -> DatasetArchive:
    assert done.refusal is None, done.refusal
    return DatasetArchive(done.archive)


def test_images_as_they_came_and_masks_by_class(tmp_path: Path) -> None:
    formats = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
    endings = {"PNG": "png", "JPEG": "jpg", "TIFF": "tif", "BMP": "bmp", "WEBP": "webp"}
    files = {}
    for i in range(20):
        files[f"set/images/i{i:02d}.{formats[i % 5].lower()}"] = image(i, 40 + i, 50, formats[i % 5])
        files[f"set/masks/i{i:02d}.png"] = png(blob(i, 255, 40 + i, 50))
    with opened(imported(tmp_path, files)) as prepared:
        assert (prepared.name, prepared.index.grey, len(prepared)) == ("toy", False, 20)
        assert [(c.name, c.color) for c in prepared.classes] == [
            ("background", (0, 0, 0)),
            ("foreground", (230, 57, 70)),
        ]
        for i, sample in enumerate(prepared.samples):
            data = files[f"set/images/i{i:02d}.{formats[i % 5].lower()}"]
            assert (sample.name, sample.group, sample.geometry) == (f"i{i:02d}", f"i{i:02d}", None)
            assert (sample.image, sample.mask) == (f"images/{i:06d}.{endings[formats[i % 5]]}", f"masks/{i:06d}.png")
            assert prepared.image(i) == data
            rgb = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            assert sample.sha256 == hashlib.sha256(rgb.tobytes()).hexdigest()
            mask = pixels(prepared.mask(i))
            np.testing.assert_array_equal(mask, blob(i, 1, 40 + i, 50))
            assert (sample.width, sample.height) == (40 + i, 50)
            assert sample.class_pixels == tuple(np.bincount(mask.ravel(), minlength=2).tolist())
    with zipfile.ZipFile(tmp_path / "dataset.zip") as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}


def test_grey_is_said_of_grey_datasets_whatever_their_files(tmp_path: Path) -> None:
    files = dataset(4)
    for i in range(4):
        grey = noise(40, 40, i).convert("L")
        files[f"images/img_{i:02d}.png"] = encoded(grey.convert("RGB") if i else grey)
    with opened(imported(tmp_path, files)) as prepared:
        assert prepared.index.grey


def test_the_same_upload_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (imported(tmp_path / name, dataset(4)).archive.read_bytes() for name in "ab")
    assert first == second


def test_nifti_volumes(tmp_path: Path) -> None:
    """Each slice a sample, the geometry and the files kept; the reference is the array that was written."""
    random = np.random.default_rng(0)
    files, labels = {}, []
    for i in range(3):
        values = random.integers(0, 256, (12, 10, 4)).astype(np.int16)
        values[..., 0] = 0  # a blank slice, as volumes begin
        label = np.zeros((12, 10, 4), np.uint8)
        label[2:9, 3:8, 1:3] = 1
        label[4:6, 4:6, 2] = 2
        labels.append(label)
        files[f"images/case{i}.nii"] = nifti(values)
        files[f"masks/case{i}.nii"] = nifti(label)
    done = imported(tmp_path, files)
    with opened(done) as prepared:
        assert len(prepared) == 12
        assert prepared.index.grey
        assert [s.name for s in prepared.samples][:5] == ["case0/0", "case0/1", "case0/2", "case0/3", "case1/0"]
        assert [s.group for s in prepared.samples] == ["case0"] * 4 + ["case1"] * 4 + ["case2"] * 4
        counts = [sample.class_pixels for sample in prepared.samples]
        assert counts == [
            tuple(np.bincount(label[..., z].ravel(), minlength=3).tolist()) for label in labels for z in range(4)
        ]
        sample = prepared.samples[6]
        assert sample.geometry is not None
        assert sample.geometry["file"] == "source/images/case1.nii"
        assert (sample.geometry["slice"], sample.geometry["axis"]) == (2, 2)
        np.testing.assert_array_equal(sample.geometry["affine"], AFFINE.astype(np.float32))
        # Image and mask lie on each other: the same turn of the file's array was taken for both.
        image, mask = decode(prepared.image(6)).rgb, pixels(prepared.mask(6))
        assert image.size == mask.shape[::-1] == (sample.width, sample.height)
    with zipfile.ZipFile(done.archive) as archive:
        for name, data in files.items():
            assert archive.read(f"source/{name}") == data
    assert done.report["groups"] == 3
    assert done.codes["warnings"] == ["empty_masks", "few_samples"]
    assert done.finding("empty_masks")["count"] == 6


def test_slices_and_their_masks_are_turned_alike(tmp_path: Path) -> None:
    """A volume whose bright part is its label: on each slice the mask covers exactly the bright pixels."""
    label = np.zeros((12, 10, 3), np.int16)
    label[1:5, 2:9] = 1
    label[5:8, 2:4] = 1
    files = {}
    for i in range(3):
        moved = np.roll(label, i, 0)
        files[f"images/{i}.nii.gz"] = gzip.compress(nifti(moved * np.int16(200)))
        files[f"masks/{i}.nii.gz"] = gzip.compress(nifti(moved))
    with opened(imported(tmp_path, files)) as prepared:
        for number in range(len(prepared)):
            bright = np.asarray(decode(prepared.image(number)).rgb)[..., 0] > 128
            np.testing.assert_array_equal(pixels(prepared.mask(number)), bright)


def test_pages_of_a_tiff_are_slices(tmp_path: Path) -> None:
    files, stacks = {}, []
    for i in range(3):
        pages = [np.random.default_rng(10 * i + p).integers(0, 65536, (20, 30)).astype(np.uint16) for p in range(3)]
        masks = [blob(10 * i + p, 7, 30, 20) for p in range(3)]
        stacks.append((pages, masks))
        for folder, stack in (("images", pages), ("masks", masks)):
            first, *rest = [Image.fromarray(page) for page in stack]
            files[f"{folder}/s{i}.tif"] = encoded(first, "TIFF", save_all=True, append_images=rest)
    with opened(imported(tmp_path, files)) as prepared:
        assert [s.group for s in prepared.samples] == ["s0"] * 3 + ["s1"] * 3 + ["s2"] * 3
        for number in range(9):
            pages, masks = stacks[number // 3]
            levels = np.asarray(decode(prepared.image(number)).rgb)[..., 0]
            np.testing.assert_array_equal(levels, pages[number % 3] >> 8)
            np.testing.assert_array_equal(pixels(prepared.mask(number)), masks[number % 3] > 0)
        assert prepared.samples[4].geometry == {"file": "source/images/s1.tif", "slice": 1, "axis": 0}


def test_dicom_files_of_one_series_are_one_group(tmp_path: Path) -> None:
    files = {}
    for i in range(4):
        slice_ = computed_tomography()
        slice_.SeriesInstanceUID = f"1.2.3.{i // 2}"  # two series of two
        slice_.PixelData = np.random.default_rng(i).integers(0, 2000, (128, 128), np.int16).tobytes()
        files[f"images/{i}.dcm"] = written(slice_)
        files[f"masks/{i}.png"] = png(blob(i, 255, 128, 128))
    for i in range(3):
        files[f"images/p{i}.png"] = image(i)
        files[f"masks/p{i}.png"] = png(blob(i))
    done = imported(tmp_path, files)
    with opened(done) as prepared:
        groups = [sample.group for sample in prepared.samples]
        assert groups[0] == groups[1] != groups[2] == groups[3]
        assert done.report["groups"] == 5
        sample = prepared.samples[2]
        assert sample.geometry is not None
        assert sample.geometry["file"] == "source/images/2.dcm"
        np.testing.assert_allclose(sample.geometry["pixel_spacing"], (0.661468, 0.661468))
        shown = np.asarray(decode(prepared.image(2)).rgb)
        np.testing.assert_array_equal(shown, np.asarray(decode(files["images/2.dcm"]).rgb))
        assert prepared.image(2).startswith(b"\x89PNG")


def test_a_dicom_mask(tmp_path: Path) -> None:
    files = {}
    for i in range(3):
        slice_ = computed_tomography()
        files[f"images/{i}.dcm"] = written(slice_)
        slice_.PixelData = blob(i, 3, 128, 128).astype(np.int16).tobytes()
        files[f"masks/{i}.dcm"] = written(slice_)
    # The three images are one series and the same image: too few to train on, and the masks were read.
    done = imported(tmp_path, files)
    assert done.codes["errors"] == ["too_few"]
    assert [(v["value"], v["pixels"]) for v in done.report["values"]] == [
        (0, sum(int((blob(i, 3, 128, 128) == 0).sum()) for i in range(3))),
        (3, sum(int((blob(i, 3, 128, 128) == 3).sum()) for i in range(3))),
    ]


def test_the_images_of_a_folder_beside(tmp_path: Path) -> None:
    """source: pairs, as a dataset from corrected predictions comes."""
    for name, data in dataset(4).items():
        path = tmp_path / "pairs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    with opened(imported(tmp_path, {}, source="pairs")) as prepared:
        assert [sample.name for sample in prepared.samples] == ["img_00", "img_01", "img_02", "img_03"]
        np.testing.assert_array_equal(pixels(prepared.mask(2)), blob(2, 1))


def test_a_sample_out_of_range_is_not_found(tmp_path: Path) -> None:
    with opened(imported(tmp_path / "c", dataset(3))) as prepared:
        with pytest.raises(NotFound, match="has 3 samples; there is no sample 3"):
            prepared.image(3)
        with pytest.raises(NotFound):
            prepared.mask(-1)
