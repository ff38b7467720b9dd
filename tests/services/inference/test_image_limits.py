"""Limits on images by the settings."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from ekiben.errors import Refusal, TooLarge, UnsupportedImage
from ekiben.settings import Settings
from models.limits import MAX_IMAGE_BYTES, MAX_PIXELS
from services.inference import image_limits
from services.inference.image_limits import ImageLimits
from tests import toy_models

PNG = toy_models.encoded(toy_models.solid((1, 2, 3), 300, 200))
DICOM = bytes(128) + b"DICM" + bytes(1024 * 1024)
NIFTI = (348).to_bytes(4, "little") + bytes(340) + b"n+1\0" + bytes(1024 * 1024)


def limits(**given: object) -> ImageLimits:
    return ImageLimits.of(Settings.model_validate(given))


def test_the_defaults_are_those_of_the_decoder() -> None:
    default = limits()
    assert (default.max_bytes, default.max_pixels) == (MAX_IMAGE_BYTES, MAX_PIXELS)
    assert asyncio.run(default.checked(PNG)) == "image/png"
    assert default.check_file(NIFTI, volumes=True) == "application/x-nifti"


def test_a_volume_has_limits_of_its_own() -> None:
    small = limits(max_image_mb=1)
    assert small.check_file(DICOM, volumes=True) == "application/dicom"
    with pytest.raises(TooLarge, match="EKIBEN_MAX_IMAGE_MB"):
        small.check_file(DICOM)


@pytest.mark.parametrize(("data", "name"), [(DICOM, "dicom"), (NIFTI, "nifti"), (PNG, "png")])
def test_formats_of_volumes_can_be_refused(data: bytes, name: str) -> None:
    with pytest.raises(UnsupportedImage, match=f"{name} is not accepted .*EKIBEN_IMAGE_FORMATS.*; send jpeg"):
        limits(image_formats="jpeg").check_file(data, volumes=True)


def test_the_stated_size_is_looked_at_only_where_it_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    stated: Callable[[bytes], tuple[int, int] | None] = image_limits._stated_size
    monkeypatch.setattr(image_limits, "_stated_size", lambda data: looked.append(len(data)) or stated(data))
    asyncio.run(limits().checked(PNG))
    assert looked == []
    asyncio.run(limits(max_image_megapixels=0.06).checked(PNG))
    with pytest.raises(TooLarge, match="300 x 200"):
        asyncio.run(limits(max_image_megapixels=0.0599).checked(PNG))
    # What the header does not tell is left to the decoder.
    assert asyncio.run(limits(max_image_megapixels=0.01).checked(PNG[:20])) == "image/png"
    assert len(looked) == 3


def test_a_decoded_size_is_checked() -> None:
    limits(max_image_megapixels=0.06).check_size(300, 200)
    with pytest.raises(Refusal, match="EKIBEN_MAX_IMAGE_MEGAPIXELS"):
        limits(max_image_megapixels=0.06).check_size(300, 201)
