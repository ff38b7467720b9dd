"""The files of a pair as frames: an image is one, a volume as many as it has slices."""

from __future__ import annotations

import io
import mmap
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from ekiben.errors import BadImage, Refusal, TooLarge, UnsupportedImage
from models.image_formats import tiff
from models.image_formats.sniffing import EXTENSIONS
from models.images import DecodedImage, decode, encode_png
from models.limits import MAX_IMAGE_BYTES, MAX_PIXELS
from models.medical.dicom import DicomVolume
from models.medical.dicom_geometry import dicom_affine
from models.medical.formats import is_dicom, is_nifti, open_volume
from models.medical.nifti import NiftiVolume
from models.medical.volume import Volume
from services.datasets.importer.alignment import SAME, Turn, VoxelGrid, aligned, mismatch, turned
from services.datasets.importer.mask_values import MaskPixels, label_mask, read_mask

MAX_PAGES = 10_000
_MAX_ENTRIES = 100 * MAX_PAGES  # of all their directories; a page has about twenty

_PNG_LEVEL = 4


class SampleSource(ABC):
    """One file of an upload, open for reading.

    ``frames``: how many. ``volume``: whether it is more than a plain image, so that the original file is kept.
    ``series``: the id of the volume whose slices are files of their own, or None.
    """

    frames = 1
    volume = False
    series: str | None = None

    @abstractmethod
    def image(self, frame: int) -> DecodedImage:
        """The decoded frame. A refusal where it cannot be read."""

    @abstractmethod
    def mask(self, frame: int) -> MaskPixels:
        """The mask values of the frame. A refusal where it cannot be read."""

    @abstractmethod
    def stored(self, frame: int) -> tuple[bytes, str]:
        """The frame as bytes that models.images.decode reads, and their file extension."""

    def format(self, frame: int) -> tuple[str, bool]:
        """The pixel format in words, and whether EXIF turns the image."""
        return "", False

    def geometry(self, frame: int) -> dict[str, Any]:
        """The position of the frame in the volume: slice, axis, affine, pixel spacing."""
        return {}

    def grid(self) -> VoxelGrid | None:
        """The voxels of a medical volume; None for other files, which never say where they are."""
        return None

    def turn(self, turn: Turn) -> None:
        """Read masks as ``turn`` says. TooLarge, and the refusals of ``mask``."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the file."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_source(path: Path) -> SampleSource:
    """The frames of ``path``, whose type is read from its first bytes. BadImage, UnsupportedImage, TooLarge."""
    with path.open("rb") as file:
        head = file.read(4096)
    if is_dicom(head) or is_nifti(head):
        return _VolumeFile(open_volume(path))
    if head[:4] in tiff.MAGIC and (pages := _pages(path)) > 1:
        return _Pages(path, pages)
    if path.stat().st_size > MAX_IMAGE_BYTES:
        raise TooLarge(f"it has {path.stat().st_size} bytes; at most {MAX_IMAGE_BYTES} are accepted")
    return _ImageFile(path)


_PNG = b"\x89PNG\r\n\x1a\n"
_BITS = {
    **{"1": "1-bit grey", "L": "8-bit grey", "LA": "8-bit grey with alpha", "P": "palette", "F": "32-bit float"},
    **{"RGB": "8-bit colour", "RGBA": "8-bit colour with alpha", "CMYK": "CMYK", "YCbCr": "8-bit colour"},
}


class _ImageFile(SampleSource):
    def __init__(self, path: Path) -> None:
        self._path = path

    def image(self, frame: int) -> DecodedImage:
        return decode(self._path.read_bytes())

    def mask(self, frame: int) -> MaskPixels:
        return read_mask(self._path.read_bytes())

    def stored(self, frame: int) -> tuple[bytes, str]:
        data = self._path.read_bytes()
        if data.startswith(_PNG):  # Pillow does not open those with long text
            return data, "png"
        with Image.open(io.BytesIO(data)) as image:
            return data, EXTENSIONS[Image.MIME["JPEG" if image.format == "MPO" else image.format or "PNG"]]

    def format(self, frame: int) -> tuple[str, bool]:
        try:
            with Image.open(self._path) as image:
                turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
                return _BITS.get(image.mode, "16-bit grey" if image.mode.startswith("I") else image.mode), turned
        except Exception:  # as in decode: metadata that cannot be parsed is ignored
            return "", False


class _Pages(SampleSource):
    """A stack: a TIFF of several pages of one size."""

    volume = True

    def __init__(self, path: Path, pages: int) -> None:
        try:
            self._image = Image.open(path, formats=("TIFF",))
        except Exception:  # its parser raises what it runs into
            raise UnsupportedImage("TIFF stacks of this kind of pixels are not read, or it is damaged") from None
        self.frames = pages
        width, height = self._image.size
        if width * height > MAX_PIXELS or pages > MAX_PAGES:
            self._image.close()
            raise TooLarge(
                f"it has {pages} pages of {width} x {height}; at most {MAX_PAGES} of {MAX_PIXELS} pixels are accepted"
            )

    def image(self, frame: int) -> DecodedImage:
        return decode(self._png(frame))

    def mask(self, frame: int) -> MaskPixels:
        try:
            self._image.seek(frame)
            fractions = self._image.mode == "F"
        except MemoryError:
            raise
        except Exception:
            raise BadImage(f"page {frame} is damaged") from None
        if fractions:
            raise BadImage(f"page {frame} has floating-point pixels: save the mask as whole numbers")
        return read_mask(self._png(frame))

    def stored(self, frame: int) -> tuple[bytes, str]:
        return self._png(frame), "png"

    def format(self, frame: int) -> tuple[str, bool]:
        mode = self._image.mode
        return _BITS.get(mode, "16-bit grey" if mode.startswith("I") else mode), False

    def geometry(self, frame: int) -> dict[str, Any]:
        return {"slice": frame, "axis": 0}

    def close(self) -> None:
        self._image.close()

    def _png(self, frame: int) -> bytes:
        """The page as a PNG without loss: 16 bits stay 16 bits, indices keep their palette."""
        try:
            self._image.seek(frame)
            if self._image.mode == "F":
                raise BadImage(f"page {frame} has floating-point pixels, whose range is not defined")
            page = self._image
            if page.mode in ("CMYK", "YCbCr", "LAB"):
                return encode_png(page.convert("RGB"), _PNG_LEVEL)
            return encode_png(page.copy(), _PNG_LEVEL)
        except (Refusal, MemoryError):
            raise
        except Exception:
            raise BadImage(f"page {frame} is damaged") from None


class _VolumeFile(SampleSource):
    volume = True

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self.frames = volume.depth
        self._labels: Callable[[int], NDArray[np.integer[Any]]] = volume.values
        if isinstance(volume, DicomVolume):
            self.series = str(volume.dataset.get("SeriesInstanceUID") or "") or None

    def image(self, frame: int) -> DecodedImage:
        return DecodedImage(self._volume.slice(frame), "image/png")

    def mask(self, frame: int) -> MaskPixels:
        return label_mask(self._labels(frame))

    def stored(self, frame: int) -> tuple[bytes, str]:
        rgb = self._volume.slice(frame)
        red, green, blue = rgb.split()
        same = red.tobytes() == green.tobytes() == blue.tobytes()
        return encode_png(red if same else rgb, _PNG_LEVEL), "png"

    def geometry(self, frame: int) -> dict[str, Any]:
        volume = self._volume
        known: dict[str, Any] = {"slice": frame, "axis": volume.slice_axis}
        if volume.affine is not None and np.isfinite(volume.affine).all():  # JSON has no other numbers
            known["affine"] = volume.affine.tolist()
        if volume.pixel_spacing is not None:
            known["pixel_spacing"] = list(volume.pixel_spacing)
        return known

    def grid(self) -> VoxelGrid:
        volume, affine = self._volume, self._volume.affine
        if isinstance(volume, DicomVolume):
            affine = dicom_affine(volume.dataset, volume.depth)
        elif isinstance(volume, NiftiVolume) and not (volume.header["sform_code"] or volume.header["qform_code"]):
            affine = None
        if affine is not None and not (np.isfinite(affine).all() and np.linalg.det(affine[:3, :3])):
            affine = None
        return VoxelGrid((volume.width, volume.height, volume.depth), affine)

    def turn(self, turn: Turn) -> None:
        if turn != SAME:
            self._labels = turned(self._volume, turn)
            self.frames = self.grid().shape[turn.axes[2]]

    def close(self) -> None:
        self._volume.close()


def _pages(path: Path) -> int:
    """Pages of a TIFF that is a stack: several of one size, of which none is meant alone. Else 1.

    BadImage where its chain of pages is cut off.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = tiff.pages(data, MAX_PAGES + 1, _MAX_ENTRIES, whole=True)
    try:
        tiff.image_page(found)
    except UnsupportedImage:
        return len(found) if len({(page.width, page.height) for page in found}) == 1 else 1
    return 1


def place(image: SampleSource, mask: SampleSource) -> Literal["same", "turned", "unknown"]:
    """Turn the labels of a medical volume into the order of its image, and say what was found: "unknown" where only
    one of both says where it is.

    BadInput ``geometry_mismatch`` where they are of one size, but not in one place; what ``SampleSource.turn`` raises.
    """
    one, other = image.grid(), mask.grid()
    if one is None or other is None:
        return "same"
    found = aligned(one, other)
    if found == "unknown":
        return "unknown"
    if found is None:
        if one.shape != other.shape:  # said by the sizes of the slices
            return "same"
        raise mismatch(one, other)
    mask.turn(found)
    return "same" if found == SAME else "turned"
