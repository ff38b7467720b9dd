"""Images as people have them: paths, bytes, files, PIL images and arrays become bytes to send."""

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
"""What an image may be given as. An array is uint8, [H, W, 3] or [H, W]."""

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".dcm", ".dicom", ".nii", ".gz"}
_PNG_MODES = {"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"}


@dataclass(frozen=True, slots=True)
class File:
    """Bytes to send, or the file that has them."""

    content: bytes | Path
    name: str | None = None

    def data(self) -> bytes:
        return self.content.read_bytes() if isinstance(self.content, Path) else self.content

    def head(self) -> bytes:
        """Its first 512 bytes."""
        if not isinstance(self.content, Path):
            return self.content[:512]
        with self.content.open("rb") as file:
            return file.read(512)


def image_file(given: ImageLike) -> File:
    """What to send of an image: encoded bytes as they are, pixels as PNG (lossless).

    TypeError or ValueError for what is none, FileNotFoundError.
    """
    if isinstance(given, str) and given.split("://")[0] in ("http", "https", "s3"):
        raise ValueError("addresses are not fetched: give the image's bytes")
    if isinstance(given, str | os.PathLike):
        return stored_file(given)
    if isinstance(given, bytes | bytearray | memoryview):
        return File(bytes(given))
    if isinstance(given, Image.Image):
        return File(_png(given))
    if isinstance(given, np.ndarray):
        return File(_png(_from_array(given)))
    if hasattr(given, "read"):
        return _from_file(given)
    raise TypeError(f"an image is a path, bytes, a file, a PIL image or a uint8 array, not {type(given).__name__}")


def image_files(given: ImageLike | Iterable[ImageLike]) -> tuple[list[File], File | None]:
    """The images of a batch: of a folder its files by name, of a list each; or a ZIP, which stays one."""
    if isinstance(given, str | os.PathLike):
        path = Path(given)
        if path.is_dir():
            found = sorted(one for one in path.rglob("*") if one.suffix.lower() in _SUFFIXES and one.is_file())
            if not found:
                raise ValueError(f"there are no images in {path}")
            return [File(one, one.relative_to(path).as_posix()) for one in found], None
        one = stored_file(path)
        return ([], one) if one.head()[:2] == b"PK" else ([one], None)
    if isinstance(given, np.ndarray) and given.ndim == 4:
        return [image_file(one) for one in given], None
    if isinstance(given, Iterable) and not isinstance(given, bytes | bytearray | memoryview | np.ndarray | io.IOBase):
        return [image_file(one) for one in given], None
    one = image_file(given)  # type: ignore[arg-type]
    return ([], one) if one.head()[:2] == b"PK" else ([one], None)


def stored_file(path: str | os.PathLike[str]) -> File:
    """A file on this machine. FileNotFoundError, IsADirectoryError."""
    found = Path(path)
    if found.is_dir():
        raise IsADirectoryError(f"{found} is a folder; a file is expected")
    if not found.is_file():
        raise FileNotFoundError(f"there is no file {found}")
    return File(found, found.name)


def is_medical(file: File) -> bool:
    """Whether the bytes look like NIfTI (plain or gzipped) or DICOM: what may be a volume."""
    head = file.head()
    return head[:2] == b"\x1f\x8b" or head[128:132] == b"DICM" or head[344:348] in (b"n+1\0", b"ni1\0", b"n+2\0")


def open_image(data: bytes) -> Image.Image:
    """Decoded and in memory."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def _from_file(file: Any) -> File:
    data = file.read()
    if not isinstance(data, bytes):
        raise TypeError('the file is open as text: open it with mode "rb"')
    name = getattr(file, "name", None)
    return File(data, Path(name).name if isinstance(name, str) else None)


def _from_array(pixels: NDArray[Any]) -> Image.Image:
    if pixels.dtype != np.uint8:
        raise ValueError(f"pixels are uint8, 0-255; this array is {pixels.dtype}")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.size == 0 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise ValueError(f"pixels are [height, width, 3] or [height, width]; this array is {list(pixels.shape)}")
    return Image.fromarray(np.ascontiguousarray(pixels))


def _png(image: Image.Image) -> bytes:
    """Without EXIF: coordinates are to be those of the image in the caller's hand, which Pillow has not turned."""
    out = io.BytesIO()
    plain = image if image.mode in _PNG_MODES else image.convert("RGB")
    plain.save(out, "PNG", compress_level=1, exif=b"")
    return out.getvalue()
