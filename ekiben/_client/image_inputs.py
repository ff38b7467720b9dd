"""From paths, bytes, files, PIL images and arrays to the bytes of a request."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ImageLike: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | NDArray[Any]
"""The accepted forms of an image. An array is uint8, RGB [H, W, 3] or grey [H, W]."""

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".dcm", ".dicom", ".nii", ".gz"}
_PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"}


@dataclass(frozen=True, slots=True)
class FileSource:
    """Bytes to send, or the path of the file that has them. ``name``: the file name to send."""

    content: bytes | Path
    name: str | None = None

    def data(self) -> bytes:
        """All bytes."""
        return self.content.read_bytes() if isinstance(self.content, Path) else self.content

    def head(self) -> bytes:
        """The first 512 bytes."""
        if not isinstance(self.content, Path):
            return self.content[:512]
        with self.content.open("rb") as file:
            return file.read(512)


def image_file(given: ImageLike) -> FileSource:
    """The bytes to send for an image: encoded images unchanged, pixels as PNG (lossless).

    Raises TypeError or ValueError for other objects, FileNotFoundError.
    """
    if isinstance(given, str) and given.split("://")[0] in ("http", "https", "s3"):
        raise ValueError("addresses are not fetched: give the image's bytes")
    if isinstance(given, str | os.PathLike):
        return stored_file(given)
    if isinstance(given, bytes | bytearray | memoryview):
        return FileSource(bytes(given))
    if isinstance(given, Image.Image):
        return FileSource(_png(given))
    if isinstance(given, np.ndarray):
        return FileSource(_png(_from_array(given)))
    if hasattr(given, "read"):
        return _from_file(given)
    raise TypeError(f"an image is a path, bytes, a file, a PIL image or a uint8 array, not {type(given).__name__}")


def image_files(given: ImageLike | Iterable[ImageLike]) -> tuple[list[FileSource], FileSource | None]:
    """The images of a folder, sorted by name, or of a list, and None; of a ZIP no images, and the ZIP."""
    if isinstance(given, str | os.PathLike):
        path = Path(given)
        if path.is_dir():
            found = sorted(one for one in path.rglob("*") if one.suffix.lower() in _SUFFIXES and one.is_file())
            if not found:
                raise ValueError(f"there are no images in {path}")
            return [FileSource(one, one.relative_to(path).as_posix()) for one in found], None
        one = stored_file(path)
        return ([], one) if one.head()[:2] == b"PK" else ([one], None)
    if isinstance(given, np.ndarray) and given.ndim == 4:
        return [image_file(one) for one in given], None
    if isinstance(given, Iterable) and not isinstance(given, bytes | bytearray | memoryview | np.ndarray | io.IOBase):
        return [image_file(one) for one in given], None
    one = image_file(given)  # type: ignore[arg-type]
    return ([], one) if one.head()[:2] == b"PK" else ([one], None)


def stored_file(path: str | os.PathLike[str]) -> FileSource:
    """A file on this machine. Raises FileNotFoundError or IsADirectoryError."""
    found = Path(path)
    if found.is_dir():
        raise IsADirectoryError(f"{found} is a folder; a file is expected")
    if not found.is_file():
        raise FileNotFoundError(f"there is no file {found}")
    return FileSource(found, found.name)


def is_medical(file: FileSource) -> bool:
    """Whether the file may be a volume: its first bytes are those of NIfTI, plain or gzipped, or of DICOM.

    A DICOM file without its preamble begins with an element of group 0002 or 0008.
    """
    head = file.head()
    dicom = head[128:132] == b"DICM" or head[:2] in (b"\x02\0", b"\x08\0")
    return dicom or head[:2] == b"\x1f\x8b" or head[344:348] in (b"n+1\0", b"ni1\0", b"n+2\0")


def open_image(data: bytes) -> Image.Image:
    """The decoded image."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def _from_file(file: Any) -> FileSource:
    data = file.read()
    if not isinstance(data, bytes):
        raise TypeError('the file is open as text: open it with mode "rb"')
    name = getattr(file, "name", None)
    return FileSource(data, Path(name).name if isinstance(name, str) else None)


def _from_array(pixels: NDArray[Any]) -> Image.Image:
    if pixels.dtype != np.uint8:
        raise ValueError(f"pixels are uint8, 0-255; this array is {pixels.dtype}")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.size == 0 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise ValueError(f"pixels are [height, width, 3] or [height, width]; this array is {list(pixels.shape)}")
    return Image.fromarray(np.ascontiguousarray(pixels))


def _png(image: Image.Image) -> bytes:
    """PNG without EXIF: coordinates refer to the pixels of ``image``, which Pillow has not turned."""
    out = io.BytesIO()
    plain = image if image.mode in _PNG_MODES else image.convert("RGB")
    plain.save(out, "PNG", compress_level=1, exif=b"")
    return out.getvalue()
