"""Images: encoded bytes decoded to 8-bit RGB, turned as their EXIF orientation says."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from ekiben.errors import BadImage, TooLarge, UnsupportedImage
from models.limits import MAX_IMAGE_BYTES, MAX_JPEG_SCANS, MAX_PIXELS
from models.results import ImageInfo

_DICOM: Final = "application/dicom"
_MAX_INFLATED = 256 * 1024 * 1024  # bytes of a deflated DICOM file: 64 megapixels of 8-bit RGB fit
_MAX_ATTRIBUTES: Final = 4 * 1024 * 1024  # bytes of a DICOM image without its pixels; 100 kB are many

_READ = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
# Pillow opens a JPEG that carries several frames (many phones write them) as MPO; the first frame is the image.
_MIME = {
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
}
EXTENSIONS: Final = {
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/webp": "webp",
    "image/bmp": "bmp",
    "image/tiff": "tif",
    "application/dicom": "dcm",
}

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# The limit on pixels is ours (MAX_PIXELS, checked before decoding, with a clear refusal). Pillow's own warning
# between 89 and 179 megapixels would only add a line to the log of a request that is refused anyway.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Pillow's warnings about the metadata of a user's image: an operator cannot act on them.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """A decoded image, turned as its EXIF orientation says.

    ``rgb``: PIL image, mode RGB, 8 bits. ``width`` and ``height`` are in pixels; every mask and coordinate that Ekiben
    gives or takes refers to this image. ``mime_type`` is that of the encoded bytes.
    """

    rgb: Image.Image
    mime_type: str

    @property
    def width(self) -> int:
        """Pixels of a row."""
        return self.rgb.width

    @property
    def height(self) -> int:
        """Pixels of a column."""
        return self.rgb.height

    @property
    def info(self) -> ImageInfo:
        """Size and MIME type."""
        return ImageInfo(self.rgb.width, self.rgb.height, self.mime_type)


def sniff(data: bytes) -> str:
    """The MIME type by the first bytes, before any decoding.

    TooLarge above MAX_IMAGE_BYTES; UnsupportedImage for a known format that is not read; BadImage for other bytes.
    """
    if len(data) > MAX_IMAGE_BYTES:
        raise TooLarge(f"the image has {len(data)} bytes; at most {MAX_IMAGE_BYTES} are accepted")
    if not data:
        raise BadImage("the image is empty (0 bytes)")
    # DICOM first: the 128 bytes before its mark are free, and many writers put a TIFF header there.
    if data[128:132] == b"DICM":
        return _DICOM
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data.startswith(b"BM"):
        return "image/bmp"
    if data[:4] in (b"II*\x00", b"MM\x00*"):
        return "image/tiff"
    if known := _unread_format(data):
        raise UnsupportedImage(f"{known} is not read; send JPEG, PNG, WebP, BMP, TIFF or DICOM")
    if _is_nifti(data):
        raise UnsupportedImage("a NIfTI file is a volume, not an image; /v1/segment takes volumes")
    raise BadImage("the bytes are not an image; JPEG, PNG, WebP, BMP, TIFF and DICOM are read")


def decode(data: bytes) -> DecodedImage:
    """Decode to 8-bit RGB, turned as the EXIF orientation says; DICOM as a viewer shows it.

    16-bit and 32-bit integer grey is scaled from 16 bits (``>> 8``), as Pillow itself does for 16-bit colour;
    ``convert("RGB")`` alone would clip it to white. Alpha is dropped, palettes are applied.
    Raises TooLarge, UnsupportedImage, BadImage (not an image, truncated, zero-size).
    """
    mime_type = sniff(data)
    if mime_type == _DICOM:
        return DecodedImage(_dicom(data), _DICOM)
    # Inside compressed data 0xff is always followed by 0x00 or a restart marker, so this counts start-of-scan markers.
    if mime_type == "image/jpeg" and data.count(b"\xff\xda") > MAX_JPEG_SCANS:
        raise BadImage(f"the JPEG has more than {MAX_JPEG_SCANS} scans")
    # Pillow's readers raise whatever their parsers run into (OSError, SyntaxError, ValueError, struct.error,
    # zlib.error, KeyError, ...). All of it is caused by the input: only Pillow's code runs inside.
    try:
        image = Image.open(io.BytesIO(data), formats=_READ)
    except Image.DecompressionBombError:
        raise TooLarge(f"the image has more than {MAX_PIXELS} pixels") from None
    except Exception:
        raise BadImage(f"the bytes begin like {mime_type} but are not a readable image") from None
    width, height = image.size
    if width < 1 or height < 1:
        raise BadImage(f"the image has no pixels ({width} x {height})")
    if width * height > MAX_PIXELS:
        raise TooLarge(f"the image is {width} x {height}; at most {MAX_PIXELS} pixels are accepted")
    try:
        image.load()
        rgb = _rgb(_turned(image) if _may_be_turned(image) else image)
    except UnsupportedImage:
        raise
    except MemoryError:
        raise TooLarge(f"the image ({width} x {height}) does not fit in memory") from None
    except Exception as error:
        reason = "is truncated" if "truncated" in str(error).lower() else "is damaged"
        raise BadImage(f"the {_MIME[image.format or 'JPEG']} {reason}") from None
    return DecodedImage(rgb, _MIME[image.format or "JPEG"])


def open_image(image: bytes | NDArray[np.uint8]) -> DecodedImage:
    """The image of encoded bytes, or of pixels uint8 [height, width, 3], RGB. Raises as ``decode``."""
    if isinstance(image, bytes):
        return decode(image)
    height, width = image.shape[:2]
    if width * height > MAX_PIXELS:
        raise TooLarge(f"the image is {width} x {height}; at most {MAX_PIXELS} pixels are accepted")
    return DecodedImage(Image.fromarray(np.ascontiguousarray(image)), "image/x-rgb")


def encode_png(image: Image.Image, level: int = 1) -> bytes:
    """PNG bytes. Compression level 1 is several times faster than 6 and, for masks, not much larger."""
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=level)
    return out.getvalue()


def encode_jpeg(image: Image.Image, quality: int = 90) -> bytes:
    """JPEG bytes; ``quality`` 1 to 95."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def _dicom(data: bytes) -> Image.Image:
    # Imported late: most processes never decode DICOM, and its libraries take half a second to import.
    from models.medical.dicom import DicomVolume

    with DicomVolume(data, _MAX_INFLATED, _MAX_ATTRIBUTES) as volume:
        if volume.depth > 1:
            raise UnsupportedImage(
                f"the DICOM file is a volume of {volume.depth} frames, not an image; /v1/segment takes volumes"
            )
        return volume.slice(0)


def _is_nifti(data: bytes) -> bool:
    from models.medical.nifti import is_nifti

    return is_nifti(data[:4096])


def _may_be_turned(image: Image.Image) -> bool:
    # Parsing EXIF takes time, and most images have none.
    return (
        image.format in ("TIFF", "MPO")
        or "exif" in image.info
        or "Raw profile type exif" in image.info
        or ("xmp" in image.info or "XML:com.adobe.xmp" in image.info)
    )


def _turned(image: Image.Image) -> Image.Image:
    """As ImageOps.exif_transpose, but without copying an upright image and without rewriting EXIF."""
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # EXIF that cannot be parsed is ignored: the pixels are complete
        return image
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):  # I;16, I;16B, I;16L and, from 16-bit files, I
        grey = np.asarray(image)
        if grey.dtype.itemsize > 2:
            grey = np.clip(grey, 0, 65535)
        return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise UnsupportedImage("images of floating-point pixels are not read: their range is not defined")
    return image.convert("RGB")


def _unread_format(data: bytes) -> str | None:
    if data[:4] == b"GIF8":
        return "GIF"
    if data[4:8] == b"ftyp":
        return {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF", b"avif": "AVIF"}.get(
            data[8:12], "this video or HEIF file"
        )
    if data[:4] == b"%PDF":
        return "PDF"
    if data[:256].lstrip().lower().startswith((b"<svg", b"<?xml")):
        return "SVG"
    if data[:4] == b"8BPS":
        return "PSD"
    return None
