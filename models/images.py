"""Images: encoded bytes decoded to 8-bit RGB, turned as their EXIF orientation says."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from ekiben.errors import BadImage, OutOfMemory, TooLarge, UnsupportedImage
from models.image_formats import jpeg, png, tiff
from models.image_formats.deep_colors import deep_colors
from models.image_formats.sniffing import DICOM, sniff
from models.image_formats.value_range import BYTE, range_of, to_levels
from models.limits import MAX_PIXELS, MAX_SIDE
from models.results import ImageInfo, ValueRange

_MAX_INFLATED = 256 * 1024 * 1024  # bytes of a deflated DICOM file: 64 megapixels of 8-bit RGB fit
_MAX_ATTRIBUTES: Final = 4 * 1024 * 1024  # bytes of a DICOM image without its pixels; 100 kB are many

_READ = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
# Pillow opens a JPEG that carries several frames (many phones write them) as MPO; the first frame is the image.
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

    ``rgb``: PIL image, mode RGB, 8 bits, without metadata. ``width`` and ``height`` are in pixels; every mask and
    coordinate that Ekiben gives or takes refers to this image. ``mime_type`` is that of the encoded bytes.
    ``value_range``: the values that became 0 and 255; None where more than a range decides, as in DICOM.
    """

    rgb: Image.Image
    mime_type: str
    value_range: ValueRange | None = BYTE

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
        """Size, MIME type and value range."""
        return ImageInfo(self.rgb.width, self.rgb.height, self.mime_type, self.value_range)


def decode(data: bytes, wanted: ValueRange | None = None) -> DecodedImage:
    """Decode to 8-bit RGB, turned as the EXIF orientation says; DICOM as a viewer shows it.

    Integers of more than 8 bits are shown over the range ``wanted``, by default over the one that
    ``value_range.range_of`` finds; ``value_range`` of the result says which. Images of 8 bits are taken as they are,
    floating-point pixels need a range. Alpha is dropped, palettes are applied. Of a TIFF the one page of full size is
    read.
    Raises TooLarge, UnsupportedImage, BadImage (not an image, truncated, zero-size).
    """
    mime_type = sniff(data)
    if mime_type == DICOM:
        if wanted is not None:
            raise UnsupportedImage("a DICOM file says itself which values are black and white; send it without range")
        return DecodedImage(_dicom(data), DICOM, None)
    if mime_type == "image/jpeg":
        return _decoded(jpeg.whole(data), mime_type, wanted)
    if mime_type == "image/png":
        png.check(data)
    try:
        return _decoded(data, mime_type, wanted)
    except BadImage:
        if mime_type != "image/png" or len(pixels := png.without_metadata(data)) == len(data):
            raise
    return _decoded(pixels, mime_type, wanted)


def _decoded(data: bytes, mime_type: str, wanted: ValueRange | None) -> DecodedImage:
    page, number = _page(data) if mime_type == "image/tiff" else (None, 0)
    image = _opened(data, mime_type, page, number)
    width, height = image.size
    if width < 1 or height < 1:
        raise BadImage(f"the image has no pixels ({width} x {height})")
    if width * height > MAX_PIXELS:
        raise TooLarge(f"the image is {width} x {height}; at most {MAX_PIXELS} pixels are accepted")
    if max(width, height) > MAX_SIDE:
        raise TooLarge(f"the image is {width} x {height}; a side has at most {MAX_SIDE} pixels")
    # Pillow's readers raise whatever their parsers run into (OSError, SyntaxError, ValueError, struct.error,
    # zlib.error, KeyError, ...). All of it is caused by the input: only Pillow's code runs inside.
    try:
        image.load()
        turn = _turn(image)
        image, value_range = _levels(image, data, page, number, wanted)
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        rgb = rgb if turn is None else rgb.transpose(turn)
        rgb.info = {}  # metadata that Pillow would write into every image that is made of this one
    except UnsupportedImage:
        raise
    except MemoryError:
        raise OutOfMemory(f"the image ({width} x {height}) does not fit in memory") from None
    except Exception as error:
        reason = "is truncated" if "truncated" in str(error).lower() else "is damaged"
        raise BadImage(f"the {mime_type} {reason}") from None
    return DecodedImage(rgb, mime_type, value_range)


def _page(data: bytes) -> tuple[tiff.TiffPage, int]:
    """The page of a TIFF that is the image, and its number."""
    found = tiff.pages(data)
    if not found:
        raise BadImage("the image/tiff is damaged")
    number = tiff.image_page(found)
    found[number].check()
    return found[number], number


def _opened(data: bytes, mime_type: str, page: tiff.TiffPage | None, number: int) -> Image.Image:
    """The image, of a TIFF the page ``number``, before its pixels are read."""
    try:
        image = Image.open(io.BytesIO(data), formats=_READ)
        if number:
            image.seek(number)
    except Image.DecompressionBombError:
        raise TooLarge(f"the image has more than {MAX_PIXELS} pixels") from None
    except Exception:
        if page is not None and page.width and page.height:
            raise UnsupportedImage(f"TIFF images of {page.words()} are not read, or this one is damaged") from None
        raise BadImage(f"the bytes begin like {mime_type} but are not a readable image") from None
    if page is None and image.format != "MPO" and (frames := getattr(image, "n_frames", 1)) > 1:
        raise UnsupportedImage(f"the {mime_type} is an animation of {frames} frames; send the frame that is meant")
    return image


def with_range(data: bytes, wanted: ValueRange) -> tuple[bytes, ValueRange | None]:
    """The image as an 8-bit PNG in which the values of ``wanted`` are black and white, and the range that holds.

    An image of 8 bits stays as it is. Raises as ``decode``.
    """
    image = decode(data, wanted)
    return encode_png(image.rgb), image.value_range


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


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What EXIF says of the orientation; Pillow has turned a TIFF itself. XMP is not asked: no browser does."""
    try:
        raw = image.info.get("exif")
        if raw is None and (text := image.info.get("Raw profile type exif")):  # as ImageMagick writes it into PNG
            raw = bytes.fromhex("".join(text.split("\n")[3:]))
        if not raw or image.format == "TIFF":
            return None
        exif = Image.Exif()
        exif.load(raw)
        return _TURNS.get(exif.get(ExifTags.Base.Orientation, 1))
    except Exception:  # EXIF that cannot be parsed is ignored: the pixels are complete
        return None


def _levels(
    image: Image.Image, data: bytes, page: tiff.TiffPage | None, number: int, wanted: ValueRange | None
) -> tuple[Image.Image, ValueRange]:
    """The image at 8 bits, and the values that became 0 and 255."""
    declared = page.declared if page is not None else None
    values = tiff.sample_values(image, page) if page is not None else None
    if values is None and image.mode.startswith("I"):
        values = np.asarray(image)
    if image.mode == "F" and wanted is None:
        raise UnsupportedImage("floating-point pixels have no range of their own; send the one that is meant as range")
    deep = (page is not None and page.bits[0] == 16) or (image.format == "PNG" and png.header(data)[0] == 16)
    if image.format == "PNG" and deep and (bits := png.significant_bits(data)) and bits < 16:
        declared = 0.0, 2.0**bits - 1
    if values is None and deep:
        values = deep_colors(image, data, lambda: _opened(data, image.format or "", page, number), all=bool(wanted))
        if values is None:
            return image, (0.0, 65535.0)
    if values is None:
        return image, BYTE
    value_range = wanted or range_of(cast(NDArray[np.integer[Any]], values), declared)
    levels = to_levels(values, value_range)
    if page is not None and page.inverted:
        levels = 255 - levels
    return Image.fromarray(levels), value_range
