"""Which pixel values of an image are black and white: what a request or its model says."""

from __future__ import annotations

from ekiben.errors import UnsupportedImage
from models.medical.formats import is_dicom, is_nifti
from models.results import ValueRange

_HEAD = 4096


def wanted_range(data: bytes, requested: ValueRange | None, of_model: ValueRange | None) -> ValueRange | None:
    """The range of a request, else that of the model, which does not hold for DICOM and NIfTI: they have their own.

    UnsupportedImage for such a file with a range of the request.
    """
    if requested is None and of_model is None:
        return None
    if is_dicom(data[:_HEAD]) or is_nifti(data[:_HEAD]):
        if requested is not None:
            raise UnsupportedImage("DICOM and NIfTI files say themselves which values are black and white; omit range")
        return None
    return requested or of_model
