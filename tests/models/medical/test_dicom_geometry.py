"""The affine of a DICOM file against pydicom's example files and numbers that are counted by hand."""

from __future__ import annotations

import io

import numpy as np
import pydicom
import pytest

from models.medical.dicom_geometry import dicom_affine
from tests.models.medical.dicom_files import GRADIENT, dicom, file


def test_a_ct_slice_of_pydicom() -> None:
    dataset = pydicom.dcmread(file("CT_small.dcm"))
    affine = dicom_affine(dataset, 1)
    assert affine is not None
    position = np.array([float(value) for value in dataset.ImagePositionPatient])
    assert np.allclose(affine[:3, 3], position * [-1, -1, 1])
    rows, columns = (float(value) for value in dataset.PixelSpacing)
    assert np.allclose(affine[:3, :3], np.diag([-columns, -rows, float(dataset.SliceThickness)]))


def test_columns_follow_the_first_direction_and_rows_the_second() -> None:
    place = {"ImagePositionPatient": [1, 2, 3], "ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}
    dataset = pydicom.dcmread(io.BytesIO(dicom(GRADIENT, PixelSpacing=[0.5, 0.25], **place)))
    affine = dicom_affine(dataset, 1)
    assert affine is not None
    point = affine @ [4, 10, 0, 1]  # column 4, row 10
    assert point == pytest.approx([-1, -(2 + 4 * 0.25), 3 - 10 * 0.5, 1])


def test_the_spacing_of_a_detector_is_no_place() -> None:
    place = {"ImagePositionPatient": [1, 2, 3], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    dataset = pydicom.dcmread(io.BytesIO(dicom(GRADIENT, ImagerPixelSpacing=[0.5, 0.25], **place)))
    assert dicom_affine(dataset, 1) is None
