"""Which range of pixel values holds: of the request, of the model, or none."""

from __future__ import annotations

import numpy as np
import pytest

from ekiben.errors import UnsupportedImage
from services.inference.value_range import wanted_range
from tests.models.image_formats.test_png import deep

IMAGE = deep(np.zeros((2, 2, 1)), 0)
DICOM = bytes(128) + b"DICM" + bytes(64)
NIFTI = bytes(344) + b"n+1\0" + bytes(64)


def test_the_request_comes_before_the_model() -> None:
    assert wanted_range(IMAGE, None, None) is None
    assert wanted_range(IMAGE, None, (0, 4095)) == (0, 4095)
    assert wanted_range(IMAGE, (0, 9), (0, 4095)) == (0, 9)


@pytest.mark.parametrize("data", [DICOM, NIFTI], ids=["DICOM", "NIfTI"])
def test_files_with_a_range_of_their_own(data: bytes) -> None:
    """A model with a range answers them too; a request that names one is refused."""
    assert wanted_range(data, None, (0, 4095)) is None
    with pytest.raises(UnsupportedImage, match="omit range"):
        wanted_range(data, (0, 4095), None)
