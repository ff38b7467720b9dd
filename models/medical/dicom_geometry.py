"""Where the pixels of a DICOM file are: its affine, from image position, orientation and spacing. PS3.3, C.7.6.2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from models.medical.dicom_display import frame_attributes, spacing

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_GROUPS: Final = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "SliceThickness": "PixelMeasuresSequence",
}
"""Functional groups of multi-frame files that hold these attributes (PS3.3, C.7.6.16)."""

_TO_RAS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM counts to the left and to the back, NIfTI to right and front
_NORMAL = 1e-2  # by which the directions may miss length 1 and a right angle
_EVEN = 0.05  # of the distance of two slices, by which they may be elsewhere


def dicom_affine(dataset: Dataset, depth: int) -> NDArray[np.float64] | None:
    """float64 [4, 4] from column, row and frame to millimetres, axes to right, front and top as NIfTI has them.

    None where the file does not say it, or where ``depth`` frames are not parallel and at equal distances. The
    distance of a single frame to a next one is its slice thickness, or 1 mm.
    """
    try:
        return _affine(dataset, depth)
    except Exception:  # pydicom raises errors of any kind for attributes that are damaged
        return None


def _affine(dataset: Dataset, depth: int) -> NDArray[np.float64] | None:
    between = spacing(frame_attributes(dataset, 0))
    if between is None or "PixelSpacing" not in frame_attributes(dataset, 0):
        return None  # ImagerPixelSpacing is that of the detector, not of the patient
    directions = np.array([_value(dataset, "ImageOrientationPatient", frame) for frame in range(depth)], np.float64)
    positions = np.array([_value(dataset, "ImagePositionPatient", frame) for frame in range(depth)], np.float64)
    if directions.shape != (depth, 6) or positions.shape != (depth, 3):
        return None
    rightwards, downwards = directions[0, :3], directions[0, 3:]
    turned = np.array([rightwards @ rightwards - 1, downwards @ downwards - 1, rightwards @ downwards])
    if np.abs(turned).max() > _NORMAL or np.abs(directions - directions[0]).max() > _NORMAL:
        return None
    if depth > 1:
        step = (positions[-1] - positions[0]) / (depth - 1)
        even = positions[0] + np.arange(depth)[:, None] * step
        if np.abs(positions - even).max() > _EVEN * np.linalg.norm(step):
            return None
    else:
        thickness = _value(dataset, "SliceThickness", 0)
        step = np.cross(rightwards, downwards) * (float(thickness) if thickness and float(thickness) > 0 else 1.0)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = rightwards * between[1], downwards * between[0]
    affine[:3, 2], affine[:3, 3] = step, positions[0]
    return np.asarray(_TO_RAS @ affine) if np.isfinite(affine).all() else None


def _value(dataset: Dataset, name: str, frame: int) -> Any:
    """An attribute of a frame: of its own functional group, else of the shared one, else of the file."""
    own, shared = dataset.get("PerFrameFunctionalGroupsSequence"), dataset.get("SharedFunctionalGroupsSequence")
    for groups in (own[frame] if own and frame < len(own) else None, shared[0] if shared else None):
        sequence = groups.get(_GROUPS[name]) if groups is not None else None
        if sequence and sequence[0].get(name) is not None:
            return sequence[0].get(name)
    # Of a file with several frames this is the position of the first, and nothing says where the others are.
    return dataset.get(name)
