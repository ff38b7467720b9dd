"""Medical formats, DICOM and NIfTI: opening a volume by its content, and writing masks in its format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ekiben.errors import BadImage, TooLarge, UnsupportedImage
from models.limits import MAX_VOLUME_BYTES
from models.medical.dicom import DicomVolume
from models.medical.dicom_file import is_dicom
from models.medical.dicom_seg import write_dicom_seg
from models.medical.nifti import NiftiVolume, is_nifti
from models.medical.volume import Volume

__all__ = ["Volume", "is_dicom", "is_nifti", "open_volume", "write_dicom_seg", "write_nifti"]


def open_volume(path: Path) -> Volume:
    """The volume of a NIfTI file (.nii, .nii.gz) or a DICOM file (one frame or several).

    The first bytes decide the format, not the name. Raises BadImage, UnsupportedImage, TooLarge.
    """
    if (size := path.stat().st_size) > MAX_VOLUME_BYTES:
        raise TooLarge(f"the volume has {size} bytes; at most {MAX_VOLUME_BYTES} are accepted")
    with path.open("rb") as file:
        head = file.read(4096)
    if is_dicom(head):
        return DicomVolume(path)
    if is_nifti(head):
        return NiftiVolume(path)
    raise BadImage("the file is neither a DICOM nor a NIfTI file")


def write_nifti(volume: Volume, class_map: NDArray[np.uint8]) -> bytes:
    """The bytes of a .nii.gz of uint8 ``class_map`` [depth, height, width], with the geometry of the volume.

    Its shape, affine, qform and sform are those of ``volume``. UnsupportedImage for a volume that did not come from
    NIfTI; BadInput for another shape.
    """
    if not isinstance(volume, NiftiVolume):
        raise UnsupportedImage("a NIfTI mask is written for a NIfTI volume only")
    return volume.mask(class_map)
