"""Limits on the images of requests, as the settings have them; those of models/limits.py hold besides."""

from __future__ import annotations

import asyncio
import io
from dataclasses import dataclass

from PIL import Image

from ekiben.errors import TooLarge, UnsupportedImage
from ekiben.settings import Settings
from models.image_formats.sniffing import sniff
from models.limits import MAX_IMAGE_BYTES, MAX_PIXELS
from services.inference.volumes import sniff_any

_MIB = 1024 * 1024
_FORMATS = {"application/dicom": "dicom", "application/x-nifti": "nifti"}


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """``max_bytes`` of an encoded image, ``max_pixels`` of a decoded one. ``formats``: names of those that are taken,
    None for all that are read."""

    max_bytes: int = MAX_IMAGE_BYTES
    max_pixels: int = MAX_PIXELS
    formats: frozenset[str] | None = None

    @classmethod
    def of(cls, settings: Settings) -> ImageLimits:
        """The limits of the settings."""
        return cls(settings.max_image_mb * _MIB, int(settings.max_image_megapixels * 1_000_000), settings.formats)

    def check_file(self, data: bytes, *, volumes: bool = False) -> str:
        """The MIME type of an image that is taken, by its first bytes. ``volumes``: DICOM and NIfTI are taken, too, up
        to the bytes that their reader takes. BadImage, UnsupportedImage, TooLarge."""
        mime_type = sniff_any(data) if volumes else sniff(data)
        name = _FORMATS.get(mime_type, mime_type.removeprefix("image/"))
        if self.formats is not None and name not in self.formats:
            accepted = ", ".join(sorted(self.formats))
            raise UnsupportedImage(f"{name} is not accepted on this server (EKIBEN_IMAGE_FORMATS); send {accepted}")
        if len(data) > self.max_bytes and not (volumes and mime_type in _FORMATS):
            raise TooLarge(
                f"the image has {len(data)} bytes; at most {self.max_bytes} are accepted (EKIBEN_MAX_IMAGE_MB)"
            )
        return mime_type

    async def checked(self, data: bytes, *, volumes: bool = False) -> str:
        """As ``check_file``; where pixels are limited further than by the decoder, the size that the header states is
        checked, too. What is not read here, such as DICOM, is checked when it is decoded (``check_size``)."""
        mime_type = self.check_file(data, volumes=volumes)
        if self.max_pixels < MAX_PIXELS and mime_type not in _FORMATS:
            size = await asyncio.to_thread(_stated_size, data)
            if size is not None:
                self.check_size(*size)
        return mime_type

    def check_size(self, width: int, height: int) -> None:
        """Check the size of a decoded image, or of a slice, in pixels. TooLarge."""
        if width * height > self.max_pixels:
            raise TooLarge(
                f"the image is {width} x {height}; at most {self.max_pixels} pixels are accepted "
                "(EKIBEN_MAX_IMAGE_MEGAPIXELS)"
            )


def _stated_size(data: bytes) -> tuple[int, int] | None:
    """Width and height by the header; None where it cannot be read: decoding says what is wrong."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.size
    except Exception:  # Pillow's readers raise whatever their parsers run into
        return None
