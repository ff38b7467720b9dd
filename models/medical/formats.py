"""Medical images and volumes, DICOM and NIfTI: which one a file is, its slices, and masks in its own format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ekiben.errors import BadImage, TooLarge, UnsupportedImage
from models.limits import MAX_VOLUME_BYTES
from models.medical.dicom import DicomVolume, is_dicom
from models.medical.dicom_seg import write_dicom_seg
from models.medical.nifti import NiftiVolume, is_nifti
from models.medical.volume import Volume

__all__ = ["Volume", "is_dicom", "is_nifti", "open_volume", "write_dicom_seg", "write_nifti"]


def open_volume(path: Path) -> Volume:
    """The slices of a NIfTI file (.nii, .nii.gz; one volume) or a DICOM file (one frame or several).

    What the file is, its first bytes tell, not its name. Raises BadImage, UnsupportedImage, TooLarge.
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
    """A .nii.gz of uint8 ``class_map`` [depth, height, width]: the volume's shape, affine, and qform and sform codes.

    UnsupportedImage for a volume that did not come from NIfTI; BadInput for another shape.
    """
    if not isinstance(volume, NiftiVolume):
        raise UnsupportedImage("a NIfTI mask is written for a NIfTI volume only")
    return volume.mask(class_map)
