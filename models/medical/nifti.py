"""NIfTI volumes (.nii, .nii.gz): reading slices, and writing masks with the geometry of the volume.

https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
"""

from __future__ import annotations

import gzip
import math
import tempfile
import zlib
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ekiben.errors import BadImage, BadInput, UnsupportedImage
from models.limits import MAX_VOLUME_BYTES
from models.medical.volume import Values, Volume, check_size, grey, levels, spread, whole

_HEADER_BYTES: Final = {1: 348, 2: 540}
_CHUNK = 1 << 20
_IN_MEMORY = 64 << 20
_SAMPLED_SLICES = 48
_ROUNDING = 1e-6  # relative, of float32: sixteen times its half unit
_MOST_ROUNDING = 0.01
_HALF = 0.4999  # half-way between two labels it is not clear which was meant
_SAMPLED_VALUES = 2_000_000
_DAMAGED_GZIP = (OSError, EOFError, zlib.error)


def is_nifti(head: bytes) -> bool:
    """Whether ``head``, the first bytes (1 kB is enough), is that of a NIfTI file, plain or within gzip."""
    if head[:2] == b"\x1f\x8b":
        try:
            head = zlib.decompressobj(wbits=31).decompress(head[:65_536], 1024)
        except zlib.error:
            return False
    return _version(head) is not None


def _version(head: bytes) -> int | None:
    """NIfTI version 1 or 2, also of a pair of .hdr and .img; None for other files."""
    if head[344:348] in (b"n+1\0", b"ni1\0"):
        return 1
    if head[4:12] in (b"n+2\0\r\n\x1a\n", b"ni2\0\r\n\x1a\n"):
        return 2
    return None


class NiftiVolume(Volume):
    """A NIfTI file as a volume: axis 2 of its array counts slices, axis 1 the rows of a slice, axis 0 its columns.

    So a volume as [depth, height, width] is the transpose of the array, as in SimpleITK, and ``mask`` transposes back.
    Nothing is rotated to anatomical axes: the affine says where they are. Grey levels run from the 0.5 to the 99.5
    percentile of the whole volume (of a regular sample of a large one). Raises BadImage, UnsupportedImage, TooLarge.
    """

    slice_axis = 2

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        self._file: Any = gzip.open(path, "rb") if packed else path.open("rb")  # noqa: SIM115
        try:
            self.header = self._read_header()
            self._check(path)
            if packed:
                self._file = self._inflated()
        except BaseException:
            self._file.close()
            raise
        self._range: tuple[float, float] | None = None

    def _read_header(self) -> Any:
        import nibabel

        try:
            head = self._file.read(_HEADER_BYTES[2])
        except _DAMAGED_GZIP:
            raise BadImage("the gzip file of the NIfTI volume is damaged or truncated") from None
        version = _version(head)
        if version is None:
            raise BadImage("the file is no NIfTI volume")
        if head[344:346] == b"ni" or head[4:6] == b"ni":
            raise UnsupportedImage("a NIfTI pair of .hdr and .img is not read; send one .nii or .nii.gz file")
        kind = nibabel.Nifti1Header if version == 1 else nibabel.Nifti2Header
        if len(head) < _HEADER_BYTES[version]:
            raise BadImage("the NIfTI volume is truncated: its header is not whole")
        # nibabel raises errors of any kind.
        try:
            return kind(head[: _HEADER_BYTES[version]], check=True)  # type: ignore[no-untyped-call]
        except Exception as error:
            raise BadImage(f"the header of the NIfTI volume is damaged: {error}"[:200]) from None

    def _check(self, path: Path) -> None:
        header = self.header
        try:
            shape = tuple(int(n) for n in header.get_data_shape())
            self._dtype = np.dtype(header.get_data_dtype())
            self._offset = int(header.get_data_offset())
            slope, intercept = header.get_slope_inter()
            self.affine = np.asarray(header.get_best_affine(), np.float64)
            spacing = [float(size) for size in header.get_zooms()[:2]]
        except Exception as error:
            raise BadImage(f"the header of the NIfTI volume is damaged: {error}"[:200]) from None
        if self._dtype.kind not in "iuf" or self._dtype.itemsize > 8:
            name = header.get_value_label("datatype")
            raise UnsupportedImage(f"NIfTI volumes of {name} values are not read; integers and real numbers are")
        if math.prod(shape[3:]) != 1:
            sizes = " x ".join(map(str, shape))
            raise UnsupportedImage(f"the NIfTI volume has more than three dimensions ({sizes}); send one volume")
        self._shape = shape
        self.width, self.height, self.depth = (*shape, 1, 1, 1)[:3] if shape else (0, 0, 0)
        check_size("NIfTI volume", self.depth, self.height, self.width, self._dtype.itemsize)
        self._slice_bytes = self.width * self.height * self._dtype.itemsize
        self._bytes = self._slice_bytes * self.depth
        if not _HEADER_BYTES[1] <= self._offset <= MAX_VOLUME_BYTES:
            raise BadImage(f"the header of the NIfTI volume is damaged: its data begin at byte {self._offset}")
        if not isinstance(self._file, gzip.GzipFile) and path.stat().st_size < self._offset + self._bytes:
            raise BadImage("the NIfTI volume is truncated")
        self._slope = 1.0 if slope is None else float(slope)
        self._intercept = 0.0 if intercept is None else float(intercept)
        self.pixel_spacing = (
            (spacing[1], spacing[0]) if len(spacing) == 2 and all(0 < size < math.inf for size in spacing) else None
        )

    def _inflated(self) -> IO[bytes]:
        """A temporary file with the unpacked values, no more of them than the header says."""
        out = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115
        try:
            self._file.seek(self._offset)
            left = self._bytes
            while left:
                chunk = self._file.read(min(left, _CHUNK))
                if not chunk:
                    raise BadImage("the NIfTI volume is truncated")
                out.write(chunk)
                left -= len(chunk)
        except EOFError:
            out.close()
            raise BadImage("the NIfTI volume is truncated") from None
        except _DAMAGED_GZIP:
            out.close()
            raise BadImage("the gzip file of the NIfTI volume is damaged") from None
        except BaseException:
            out.close()
            raise
        self._file.close()
        self._offset = 0
        return out

    def _raw(self, index: int) -> Values:
        data = self._bytes_at(self._offset + self.checked(index) * self._slice_bytes, self._slice_bytes)
        return np.frombuffer(data, self._dtype).reshape(self.height, self.width)

    def _bytes_at(self, place: int, size: int) -> bytes:
        self._file.seek(place)
        data: bytes = self._file.read(size)
        if len(data) < size:
            raise BadImage("the NIfTI volume is truncated")
        return data

    def _scaled(self, raw: Values) -> Values:
        if self._slope == 1 and self._intercept == 0:
            return raw
        return np.asarray(raw * np.float64(self._slope) + self._intercept)

    def slice(self, index: int) -> Image.Image:
        """Slice ``index`` as 8-bit RGB grey levels. IndexError; BadImage for a truncated file."""
        raw = self._raw(index)
        if self._range is None:
            self._range = self._sampled_range()
        return grey(levels(self._scaled(raw), *self._range))

    def values(self, index: int) -> NDArray[np.integer[Any]]:
        """The scaled values of a slice as integers [height, width]. BadImage where one is not a whole number.

        Labels that were saved with a slope are off by its rounding to float32, and by up to half of it, where it is
        below 1, since stored values are whole numbers: nibabel saves the labels 0 to 4 as uint8 with the slope 4/255.
        """
        raw = self._raw(index)
        native = self._scaled(raw)
        native = native.astype(native.dtype.newbyteorder("="))
        if native.dtype.kind == "f" and np.isfinite(native).all():
            near = np.rint(native)
            off = np.minimum(_ROUNDING * np.maximum(np.abs(native), max(1.0, abs(self._intercept))), _MOST_ROUNDING)
            if raw.dtype.kind in "iu" and abs(self._slope) < 1:
                off = np.minimum(off + abs(self._slope) / 2, _HALF)
            if (np.abs(native - near) <= off).all():
                native = near
        return whole(native, "NIfTI volume")

    def _sampled_range(self) -> tuple[float, float]:
        chosen = np.unique(np.linspace(0, self.depth - 1, min(self.depth, _SAMPLED_SLICES)).astype(int))
        step = max(1, len(chosen) * self.height * self.width // _SAMPLED_VALUES)
        if step == 1 and self.depth * self.height * self.width <= _SAMPLED_VALUES:
            whole_volume = np.frombuffer(self._bytes_at(self._offset, self._bytes), self._dtype)
            return spread(self._scaled(whole_volume))
        return spread(np.concatenate([self._scaled(self._raw(int(i))).ravel()[::step] for i in chosen]))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def mask(self, class_map: NDArray[np.uint8]) -> bytes:
        """The bytes of a .nii.gz of ``class_map`` uint8 [depth, height, width], with this volume's shape and forms.

        BadInput for another shape.
        """
        import nibabel

        if class_map.shape != (self.depth, self.height, self.width):
            raise BadInput(
                f"the mask has the shape {class_map.shape}, the volume {(self.depth, self.height, self.width)}"
            )
        header = self.header.copy()
        header.set_data_dtype(np.uint8)
        header.set_slope_inter(1, 0)
        header["cal_min"] = header["cal_max"] = 0  # the display range was that of the source's values
        kind = nibabel.Nifti1Image if header["sizeof_hdr"] == _HEADER_BYTES[1] else nibabel.Nifti2Image
        array = np.ascontiguousarray(class_map, np.uint8).transpose(2, 1, 0).reshape(self._shape)
        image = kind(array, None, header)  # type: ignore[no-untyped-call]
        return gzip.compress(image.to_bytes(), compresslevel=4, mtime=0)
