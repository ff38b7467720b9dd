"""The MIME type of an image by its first bytes."""

from __future__ import annotations

from typing import Final

from ekiben.errors import BadImage, TooLarge, UnsupportedImage
from models.image_formats import tiff
from models.limits import MAX_IMAGE_BYTES
from models.medical.dicom_file import is_dicom

DICOM: Final = "application/dicom"

EXTENSIONS: Final = {
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/webp": "webp",
    "image/bmp": "bmp",
    "image/tiff": "tif",
    "application/dicom": "dcm",
}

_UNREAD: Final = (
    (b"GIF8", "GIF"),
    (b"%PDF", "PDF"),
    (b"8BPS", "PSD"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\x8aMNG", "MNG"),
    (b"\x00\x00\x01\x00", "ICO"),
    (b"v/1\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"DDS ", "DDS"),
    (b"SIMPLE  =", "FITS"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"II\xbc\x01", "JPEG XR"),
    (b"qoif", "QOI"),
)
"""Formats that are known by their first bytes, and not read."""


def sniff(data: bytes) -> str:
    """The MIME type by the first bytes, before any decoding.

    TooLarge above MAX_IMAGE_BYTES; UnsupportedImage for a known format that is not read; BadImage for other bytes.
    """
    if len(data) > MAX_IMAGE_BYTES:
        raise TooLarge(f"the image has {len(data)} bytes; at most {MAX_IMAGE_BYTES} are accepted")
    if not data:
        raise BadImage("the image is empty (0 bytes)")
    # DICOM first: the 128 bytes before its mark are free, and many writers put a TIFF header there.
    if is_dicom(data):
        return DICOM
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data.startswith(b"BM"):
        return "image/bmp"
    if data[:4] in tiff.MAGIC:
        return "image/tiff"
    if known := _unread_format(data):
        raise UnsupportedImage(f"{known} is not read; send JPEG, PNG, WebP, BMP, TIFF or DICOM")
    if _is_nifti(data):
        raise UnsupportedImage("a NIfTI file is a volume, not an image; /v1/segment takes volumes")
    raise BadImage("the bytes are not an image; JPEG, PNG, WebP, BMP, TIFF and DICOM are read")


def _is_nifti(data: bytes) -> bool:
    from models.medical.nifti import is_nifti

    return is_nifti(data[:4096])


def _unread_format(data: bytes) -> str | None:
    if data[4:8] == b"ftyp":
        return {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF", b"avif": "AVIF"}.get(
            data[8:12], "this video or HEIF file"
        )
    if data[:256].lstrip().lower().startswith((b"<svg", b"<?xml")):
        return "SVG"
    if data[:1] == b"P" and data[1:2] in b"1234567" and data[2:3].isspace():
        return "PNM (PBM, PGM, PPM, PAM)"
    return next((name for magic, name in _UNREAD if data.startswith(magic)), None)
