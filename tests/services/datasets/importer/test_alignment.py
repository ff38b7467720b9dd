"""Label volumes beside their images: turned, refused or doubted by their geometry; the reference is nibabel."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ekiben.dataset_archive import DatasetArchive
from services.datasets.importer import alignment
from services.datasets.importer.sources import SampleSource, open_source, place
from services.datasets.importer.survey import survey
from tests.models.medical.dicom_files import dicom
from tests.services.datasets.importer.test_survey import pair
from tests.services.datasets.importer.uploads import Files, imported

SHAPE = (6, 5, 4)
OBLIQUE = np.array([[-0.69, 0.05, 0.3, 91], [0.06, 0.8, 0.2, -40], [-0.1, -0.12, 2.5, 7.5], [0, 0, 0, 1]])
LPS = np.diag([-0.7, 0.8, 2.5, 1])
LPS[:3, 3] = 90, -40, 7
TURNS = [
    np.array(list(zip(axes, flips, strict=True)))
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


def labels(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 4, shape, np.uint8)


def nifti(array: NDArray[Any], affine: NDArray[np.float64] | None) -> bytes:
    return bytes(nibabel.Nifti1Image(array, affine).to_bytes())  # type: ignore[no-untyped-call]


def itk(array: NDArray[Any]) -> bytes:
    """As ITK writes an array without a place."""
    return nifti(array, np.diag([-1.0, -1.0, 1.0, 1.0]))


def turned(array: NDArray[Any], affine: NDArray[np.float64], turn: NDArray[np.int64]) -> bytes:
    image: Any = nibabel.Nifti1Image(array, affine)  # type: ignore[no-untyped-call]
    return bytes(image.as_reoriented(turn).to_bytes())


def opened(folder: Path, name: str, data: bytes) -> SampleSource:
    (folder / name).write_bytes(data)
    return open_source(folder / name)


def read(folder: Path, image: bytes, mask: bytes) -> tuple[str, NDArray[Any]]:
    """What was found, and the labels [columns, rows, slices] in the order of the image."""
    with opened(folder, "image", image) as one, opened(folder, "mask", mask) as other:
        found = place(one, other)
        assert one.frames == other.frames
        return found, np.stack([other.mask(frame).data.T for frame in range(other.frames)], axis=2)


def trouble(folder: Path, image: bytes, mask: bytes) -> tuple[str, str]:
    found = survey([pair(folder, "a", image, mask)], lambda done, total: None)
    assert found.samples == []
    (one,) = found.troubles
    return one.what, one.why


# ---- NIfTI ----


@pytest.mark.parametrize("affine", [LPS, OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("turn", TURNS, ids=lambda turn: "".join(f"{a}{'+-'[int(f < 0)]}" for a, f in turn))
def test_labels_with_other_axes_are_turned(
    turn: NDArray[np.int64], affine: NDArray[np.float64], tmp_path: Path
) -> None:
    image = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    found, given = read(tmp_path, nifti(image, affine), turned(labels(), affine, turn))
    assert np.array_equal(given, labels())
    assert found == ("same" if np.array_equal(turn, TURNS[0]) else "turned")


def test_a_label_that_needs_more_than_a_byte_is_not_cut(tmp_path: Path) -> None:
    values = labels().astype(np.int32)
    values[3, 2, 1], values[5, 4, 3] = 300, -70_000
    for turn in TURNS[::5]:
        _, given = read(tmp_path, nifti(values, LPS), turned(values, LPS, turn))
        assert np.array_equal(given, values)


def test_what_is_off_by_less_than_a_tenth_of_a_voxel_is_the_same(tmp_path: Path) -> None:
    moved = LPS.copy()
    moved[2, 3] += 0.24  # of a spacing of 2.5
    assert read(tmp_path, nifti(labels(), LPS), nifti(labels(), moved))[0] == "same"
    moved[2, 3] += 0.02
    code, why = trouble(tmp_path, nifti(labels(), LPS), nifti(labels(), moved))
    assert code == "geometry_mismatch"
    assert why == (
        "image: origin (90, -40, 7) mm, spacing 0.7 x 0.8 x 2.5 mm, axes L-A-S; mask: origin (90, -40, 7.26) mm, "
        "spacing 0.7 x 0.8 x 2.5 mm, axes L-A-S"
    )


def test_a_small_turn_is_measured_at_the_corners(tmp_path: Path) -> None:
    """0.001 rad are nothing in four voxels, and a tenth of a voxel in a hundred."""
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.0012), -np.sin(0.0012)], [np.sin(0.0012), np.cos(0.0012)]]
    for size, same in ((4, True), (120, False)):
        values = labels((size, size, 2))
        affine = np.diag([0.5, 0.5, 3, 1])
        with (
            opened(tmp_path, "image", nifti(values, affine)) as one,
            opened(tmp_path, "mask", nifti(values, affine @ turn)) as other,
        ):
            found = alignment.aligned(one.grid(), other.grid())  # type: ignore[arg-type]
            assert (found == alignment.SAME) is same


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({(0, 3): 10.0}, "mask: origin (10, -40, 7) mm"),
        ({(2, 2): 3.0}, "spacing 0.7 x 0.8 x 3 mm"),
        ({(0, 0): 0.7}, "axes R-A-S"),  # another side, in the place of the first voxel
        ({(0, 1): 0.2}, "axes L-A-S (oblique)"),
    ],
    ids=["origin", "spacing", "axes", "oblique"],
)
def test_another_place_is_refused_with_the_numbers(
    change: dict[tuple[int, int], float], words: str, tmp_path: Path
) -> None:
    other = LPS.copy()
    for place_, value in change.items():
        other[place_] = value
    code, why = trouble(tmp_path, nifti(labels(), LPS), nifti(labels(), other))
    assert code == "geometry_mismatch"
    assert words in why


def test_other_sizes_are_said_as_before(tmp_path: Path) -> None:
    other = LPS.copy()
    other[2, 2] = 3
    assert trouble(tmp_path, nifti(labels(), LPS), nifti(labels((6, 5, 3)), other))[0] == "slice_mismatch"


@pytest.mark.parametrize(
    ("image", "mask", "found"),
    [
        (nifti(labels(), LPS), nifti(labels(), None), "unknown"),
        (nifti(labels(), LPS), nifti(labels(), np.eye(4)), "unknown"),
        (nifti(labels(), LPS), itk(labels()), "unknown"),
        (nifti(labels(), np.eye(4)), nifti(labels(), LPS), "unknown"),
        (nifti(labels(), None), nifti(labels(), LPS), "unknown"),
        (nifti(labels(), None), nifti(labels(), None), "same"),
        (nifti(labels(), np.eye(4)), nifti(labels(), np.eye(4)), "same"),
        (nifti(labels(), np.eye(4)), nifti(labels(), None), "same"),
        (nifti(labels(), np.eye(4)), itk(labels()), "same"),
    ],
)
def test_without_a_place_the_order_of_the_file_counts(image: bytes, mask: bytes, found: str, tmp_path: Path) -> None:
    said, given = read(tmp_path, image, mask)
    assert said == found
    assert np.array_equal(given, labels())


def test_labels_across_the_image_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    across, along = TURNS[24], TURNS[18]  # slices lie across; rows and columns are exchanged
    assert alignment.MAX_TURNED_BYTES == 512_000_000
    monkeypatch.setattr(alignment, "MAX_TURNED_BYTES", 120)
    assert np.array_equal(read(tmp_path, nifti(labels(), LPS), turned(labels(), LPS, across))[1], labels())
    values = labels().astype(np.int16) * 100
    assert np.array_equal(read(tmp_path, nifti(values, LPS), turned(values, LPS, along))[1], values)
    code, why = trouble(tmp_path, nifti(values, LPS), turned(values, LPS, across))
    assert code == "image_too_large"
    assert "its labels have 240 bytes; at most 120 are turned" in why


def test_labels_across_the_image_that_are_no_labels(tmp_path: Path) -> None:
    values = labels().astype(np.float32) + 0.5
    code, why = trouble(tmp_path, nifti(labels(), LPS), turned(values, LPS, TURNS[24]))
    assert code == "unreadable_mask"
    assert "not whole numbers" in why


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_an_affine_that_is_none(value: float, tmp_path: Path) -> None:
    data = bytearray(nifti(labels(), LPS))
    data[280:284] = np.float32(value).tobytes()  # the first number of the sform
    assert read(tmp_path, nifti(labels(), LPS), bytes(data))[0] == "unknown"


def test_an_affine_of_huge_numbers(tmp_path: Path) -> None:
    data = bytearray(nifti(labels(), LPS))
    data[280:284] = np.float32(3e38).tobytes()
    assert trouble(tmp_path, nifti(labels(), LPS), bytes(data))[0] == "geometry_mismatch"


# ---- DICOM ----

PLACE: dict[str, Any] = {
    "PixelSpacing": [0.8, 0.7],  # rows, columns
    "ImagePositionPatient": [-90, 40, 7],
    "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
}
PLANE = labels((5, 6)).astype(np.uint16)  # rows, columns


def test_a_dicom_file_is_where_nifti_says_too(tmp_path: Path) -> None:
    with opened(tmp_path, "image", dicom(PLANE, **PLACE, SliceThickness=2.5)) as source:
        grid = source.grid()
        assert grid is not None
        assert grid.shape == (6, 5, 1)
        affine = np.diag([-0.7, -0.8, 2.5, 1])  # to the right and to the front
        affine[:3, 3] = 90, -40, 7
        assert np.allclose(grid.affine, affine)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("plane", "change"),
    [
        (PLANE, {}),
        (PLANE[:, ::-1], {"ImagePositionPatient": [-86.5, 40, 7], "ImageOrientationPatient": [-1, 0, 0, 0, 1, 0]}),
        (PLANE[::-1], {"ImagePositionPatient": [-90, 43.2, 7], "ImageOrientationPatient": [1, 0, 0, 0, -1, 0]}),
        (PLANE.T, {"PixelSpacing": [0.7, 0.8], "ImageOrientationPatient": [0, 1, 0, 1, 0, 0]}),
    ],
    ids=["same", "columns", "rows", "transposed"],
)
def test_a_dicom_mask_is_turned(plane: NDArray[np.uint16], change: dict[str, Any], tmp_path: Path) -> None:
    mask = dicom(np.ascontiguousarray(plane), **{**PLACE, **change})
    found, given = read(tmp_path, dicom(PLANE, **PLACE), mask)
    assert found == ("turned" if change else "same")
    assert np.array_equal(given[..., 0].T, PLANE)


@pytest.mark.parametrize(
    "change",
    [
        {"ImagePositionPatient": [-90, 40, 9.5]},
        {"ImageOrientationPatient": [1, 0, 0, 0, 0, 1]},
        {"PixelSpacing": [0.9, 0.7]},
        {"ImageOrientationPatient": [-1, 0, 0, 0, 1, 0]},
    ],
    ids=["another slice", "another plane", "spacing", "another side"],
)
def test_a_dicom_mask_of_another_place_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    code, why = trouble(tmp_path, dicom(PLANE, **PLACE), dicom(PLANE, **{**PLACE, **change}))
    assert code == "geometry_mismatch"
    assert why.startswith("image: origin (90, -40, 7) mm, spacing 0.7 x 0.8 x 1 mm, axes L-P-S; mask: ")


def frames(order: list[int], **shared: Any) -> bytes:
    """Three frames of PLANE plus their number, at 7, 9.5 and 12 mm, in this order."""
    from pydicom.dataset import Dataset
    from pydicom.sequence import Sequence

    groups = []
    for number in order:
        position, group = Dataset(), Dataset()
        position.ImagePositionPatient = [-90, 40, 7 + 2.5 * number]
        group.PlanePositionSequence = Sequence([position])
        groups.append(group)
    measures, orientation, common = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = PLACE["PixelSpacing"]
    orientation.ImageOrientationPatient = PLACE["ImageOrientationPatient"]
    common.PixelMeasuresSequence, common.PlaneOrientationSequence = Sequence([measures]), Sequence([orientation])
    return dicom(
        np.stack([PLANE + number for number in order]).astype(np.uint16),
        PerFrameFunctionalGroupsSequence=Sequence(groups),
        SharedFunctionalGroupsSequence=Sequence([common]),
        **shared,
    )


def test_frames_in_the_other_order(tmp_path: Path) -> None:
    found, given = read(tmp_path, frames([0, 1, 2]), frames([2, 1, 0]))
    assert found == "turned"
    assert [np.array_equal(given[..., number].T, PLANE + number) for number in range(3)] == [True] * 3
    assert read(tmp_path, frames([0, 1, 2]), frames([0, 1, 2]))[0] == "same"


def test_frames_at_no_equal_distances_have_no_place(tmp_path: Path) -> None:
    assert read(tmp_path, frames([0, 1, 2]), frames([0, 2, 1]))[0] == "unknown"
    plain = dicom(np.stack([PLANE] * 3), **PLACE)  # nothing says where the second frame is
    assert read(tmp_path, frames([0, 1, 2]), plain)[0] == "unknown"


def test_a_dicom_file_without_or_with_damaged_attributes_has_no_place(tmp_path: Path) -> None:
    for change in (
        {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]},
        {"ImageOrientationPatient": [2, 0, 0, 0, 1, 0]},
        {"ImageOrientationPatient": [1, 0, 0]},
        {"ImagePositionPatient": [1, 0]},
        {"ImagePositionPatient": None},
        {"PixelSpacing": None},
    ):
        assert read(tmp_path, dicom(PLANE, **PLACE), dicom(PLANE, **{**PLACE, **change}))[0] == "unknown"
    assert read(tmp_path, dicom(PLANE), dicom(PLANE))[0] == "same"


def test_a_nifti_label_of_a_dicom_image(tmp_path: Path) -> None:
    """Both systems of axes are compared: nibabel's labels of a stack in the order that dcm2niix writes."""
    affine = np.diag([-0.7, -0.8, 2.5, 1.0])
    affine[:3, 3] = 90, -40, 7
    values = np.stack([PLANE.T + number for number in range(3)], axis=2).astype(np.uint8)
    for turn in TURNS:
        _, given = read(tmp_path, frames([0, 1, 2]), turned(values, affine, turn))
        assert np.array_equal(given, values)


# ---- the whole import ----


def volumes(mask: Any) -> Files:
    files: Files = {}
    for number in range(3):
        image = np.random.default_rng(number).integers(0, 1000, SHAPE).astype(np.int16)
        files[f"images/{number}.nii"] = nifti(image, LPS)
        files[f"masks/{number}.nii"] = mask(labels(seed=number))
    return files


@pytest.mark.parametrize("turn", [TURNS[3], TURNS[16], TURNS[29]])
def test_an_import_prepares_turned_labels(turn: NDArray[np.int64], tmp_path: Path) -> None:
    result = imported(tmp_path, volumes(lambda values: turned(values, LPS, turn)))
    assert result.finding("geometry_turned")["count"] == 3
    with DatasetArchive(result.archive) as prepared:
        assert len(prepared) == 3 * SHAPE[2]
        for number in range(len(prepared)):
            volume, frame = divmod(number, SHAPE[2])
            mask = np.asarray(Image.open(io.BytesIO(prepared.mask(number))))
            assert np.array_equal(mask, labels(seed=volume)[..., frame].T)


def test_an_import_warns_of_labels_without_a_place(tmp_path: Path) -> None:
    result = imported(tmp_path, volumes(lambda values: nifti(values, None)))
    warning = result.finding("geometry_unknown")
    assert warning in result.report["warnings"]
    assert warning["message"].startswith(
        "3 label volumes cannot be compared with the image in space, since one of both does not say where it is: "
        "masks/0.nii, masks/1.nii, masks/2.nii. "
    )


def test_an_import_refuses_labels_of_another_place(tmp_path: Path) -> None:
    result = imported(tmp_path, volumes(lambda values: nifti(values, OBLIQUE)))
    error = result.finding("geometry_mismatch")
    assert error["samples"] == ["masks/0.nii", "masks/1.nii", "masks/2.nii"]
    assert error["message"].startswith(
        "3 label volumes are not where their images are: masks/0.nii (image: origin (90, -40, 7) mm, spacing "
        "0.7 x 0.8 x 2.5 mm, axes L-A-S; mask: origin (91, -40, 7.5) mm, "
    )
