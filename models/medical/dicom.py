"""DICOM files, single-frame and multi-frame: frames as 8-bit RGB, as a viewer shows them, and as stored values."""

from __future__ import annotations

import io
import logging
import struct
import warnings
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ekiben.errors import BadImage, OutOfMemory, Refusal, UnsupportedImage
from models.limits import MAX_VOLUME_BYTES
from models.medical.dicom_display import color_levels, frame_attributes, grey_levels, spacing
from models.medical.dicom_file import BIG_ENDIAN, EXPLICIT, IMPLICIT, Bounded, inflated, is_dicom, transfer_syntax
from models.medical.dicom_frames import (
    DECODED,
    JPEG_LOSSLESS,
    Layout,
    check_frame,
    find_fragments,
    find_frames,
    native_frame,
    read_fragment,
    read_fragments,
)
from models.medical.volume import Values, Volume, check_size, grey, whole

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_DEFLATED: Final = "1.2.840.10008.1.2.1.99"
_JPEG_EXTENDED: Final = "1.2.840.10008.1.2.4.51"
_NATIVE: Final = frozenset((IMPLICIT, EXPLICIT, BIG_ENDIAN))
_SEGMENTATIONS: Final = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_PIXEL_DATA: Final = 0x7FE00008  # floats at 8, doubles at 9, integers at 10; offset tables come before
_ROWS, _COLUMNS = 0x00280010, 0x00280011
_PALETTE: Final = "PALETTE COLOR"

_DEFERRED = 1 << 20
"""Bytes of an attribute above which it stays in the file: no attribute that is used is so long."""
ATTRIBUTE_BYTES: Final = 32 << 20
"""Bytes of all attributes that are read: as objects they take forty times the memory, and a second per megabyte."""
_STATED_BYTES: Final = 128 << 10  # that are read to find two attributes: eight or twelve of each other one

# What pydicom says about a user's file, with a traceback where a frame cannot be decoded: an operator cannot act on it,
# and the refusal has it. A level would not hold: pydicom sets its own when it is imported.
warnings.filterwarnings("ignore", category=UserWarning, module=r"pydicom\.")
logging.getLogger("pydicom").addHandler(logging.NullHandler())
logging.getLogger("pydicom").propagate = False


def stated_pixels(data: bytes) -> int | None:
    """Rows times columns, as ``DicomVolume`` finds them; None for a deflated file, a damaged one, and where more than
    some ten thousand attributes come before the pixels."""
    from pydicom.filereader import read_partial

    file = io.BytesIO(data)
    file.seek(132 if data[128:132] == b"DICM" else 0)
    try:
        if transfer_syntax(file) == _DEFLATED:
            return None
        file.seek(0)
        size = read_partial(
            Bounded(file, _STATED_BYTES),  # type: ignore[arg-type]
            stop_when=_is_pixel_data,
            defer_size=_DEFERRED,
            force=True,
            specific_tags=[_ROWS, _COLUMNS],
        )
        return int(size.Rows) * int(size.Columns)
    except Exception:  # pydicom raises errors of any kind, all caused by the input
        return None


def _is_pixel_data(tag: int, vr: str | None, length: int) -> bool:
    return tag >= _PIXEL_DATA


class DicomVolume(Volume):
    """A DICOM file as a volume: a frame is a slice, and a single-frame file has one.

    ``dataset``: the attributes without the pixels. ``limit``: bytes that a deflated file may unpack to;
    ``attribute_bytes``: bytes of attributes that may be read. Raises BadImage, TooLarge, and UnsupportedImage (which
    names the compression where its decoder is not installed).
    """

    slice_axis = 0
    affine = None

    def __init__(
        self, source: Path | bytes, limit: int = MAX_VOLUME_BYTES, attribute_bytes: int = ATTRIBUTE_BYTES
    ) -> None:
        self._places: array[int] | None = None
        self._file: Any = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
        try:
            self._syntax = self._open(limit)
            self.dataset = self._attributes(attribute_bytes)
            self._check()
        except Refusal:
            self._file.close()
            raise
        except MemoryError:
            self._file.close()
            raise OutOfMemory("the DICOM file does not fit in memory") from None
        except Exception as error:  # pydicom raises errors of any kind, all caused by the input
            self._file.close()
            raise BadImage(f"the DICOM file is damaged: {error}"[:200]) from None

    def _open(self, limit: int) -> str:
        """The transfer syntax of the data set; a deflated file is inflated first."""
        head = self._file.read(4096)
        if not is_dicom(head):
            raise BadImage("the file is no DICOM file")
        self._file.seek(132 if head[128:132] == b"DICM" else 0)
        syntax = transfer_syntax(self._file)
        if syntax is None:
            raise BadImage("the DICOM file does not say its transfer syntax")
        if syntax == _DEFLATED:
            packed, self._file = self._file, inflated(self._file, limit)
            packed.close()
            return EXPLICIT
        return syntax

    def _attributes(self, limit: int) -> Dataset:
        from pydicom.filereader import read_partial

        self._file.seek(0)
        reader = Bounded(self._file, limit)
        dataset = read_partial(
            reader,  # type: ignore[arg-type]
            stop_when=_is_pixel_data,
            defer_size=_DEFERRED,
            force=True,
        )
        return dataset

    def _check(self) -> None:
        from pydicom.pixels.utils import as_pixel_options
        from pydicom.uid import UID

        data = self.dataset
        if data.get("SOPClassUID") in _SEGMENTATIONS:
            raise UnsupportedImage("the DICOM file is a segmentation, not an image")
        start = self._file.tell()
        tag = self._file.read(8)
        if not {"Rows", "Columns", "BitsAllocated"} <= set(data.dir()) or len(tag) < 8:
            kind = UID(str(data.get("SOPClassUID") or "")).name or "unknown kind"
            raise UnsupportedImage(f"the DICOM file ({kind}) holds no image")
        big = ">" if self._syntax == BIG_ENDIAN else "<"
        if struct.unpack(f"{big}HH", tag[:4]) != (0x7FE0, 0x0010):
            raise UnsupportedImage("DICOM images of floating-point pixels are not read")
        self._pixels = start + (8 if self._syntax == IMPLICIT else 12)
        self._options = as_pixel_options(data)
        self._options["transfer_syntax_uid"] = UID(self._syntax)
        self._options["pixel_keyword"] = "PixelData"
        self._options["pixel_vr"] = "OW" if self._syntax == IMPLICIT else tag[4:6].decode("latin-1")
        samples, bits = int(data.get("SamplesPerPixel") or 1), int(data.BitsAllocated)
        if samples not in (1, 3) or bits not in (1, 8, 16, 32):
            raise UnsupportedImage(f"DICOM images of {samples} x {bits} bits a pixel are not read")
        self.depth, self.height, self.width = int(self._options["number_of_frames"]), int(data.Rows), int(data.Columns)
        check_size("DICOM image", self.depth, self.height, self.width, samples * max(1, bits // 8))
        self._layout = Layout(self.height, self.width, samples, bits)
        self._check_decoder()
        self.pixel_spacing = spacing(frame_attributes(data, 0))

    def _check_decoder(self) -> None:
        from pydicom.pixels import get_decoder  # type: ignore[attr-defined]
        from pydicom.uid import UID

        syntax = UID(self._syntax)
        if self._syntax in _NATIVE:
            self._check_length()
        elif self._syntax == _JPEG_EXTENDED and int(self.dataset.get("BitsStored") or 8) > 8:
            raise UnsupportedImage("DICOM images compressed as JPEG of 12 bits are not read here")
        elif self._syntax not in JPEG_LOSSLESS and not (self._syntax in DECODED and get_decoder(syntax).is_available):
            raise UnsupportedImage(f"DICOM images compressed as {syntax.name} ({self._syntax}) are not read here")
        else:
            self._check_fragments()
        self._decoder = get_decoder(UID(EXPLICIT) if self._syntax in JPEG_LOSSLESS else syntax)

    def _check_fragments(self) -> None:
        """A frame is in one fragment or in several: a file of fewer fragments than frames has not what it says."""
        self._fragments = find_fragments(self._file, self._pixels, self.depth + 1)
        if len(self._fragments) < self.depth:
            says = f"{self.depth} frames" if self.depth > 1 else "one frame"
            raise BadImage(f"the DICOM file says {says}, but holds {len(self._fragments)}")

    def _check_length(self) -> None:
        self._file.seek(self._pixels - 4)
        if self._file.read(4) == b"\xff" * 4:
            raise BadImage("the pixel data of the DICOM file are compressed, but its transfer syntax does not say how")
        layout = self._layout
        pixels = self.depth * layout.height * layout.width * layout.samples
        if self._options.get("photometric_interpretation") == "YBR_FULL_422":
            pixels = pixels // 3 * 2
        needed = (pixels * layout.bits_allocated + 7) // 8
        if self._file.seek(0, io.SEEK_END) - self._pixels < needed:
            raise BadImage("the pixel data of the DICOM file are truncated")

    def _frame(self, index: int) -> tuple[Values, str]:
        """Values [height, width] or [height, width, 3], and their photometric interpretation (YBR becomes RGB)."""
        from pydicom.encaps import encapsulate, get_frame
        from pydicom.uid import UID

        self._file.seek(self._pixels)
        try:
            options = dict(self._options)
            if self._syntax in _NATIVE:
                array, info = self._decoder.as_array(self._file, index=index, validate=True, **options)
            else:
                extended = options.pop("extended_offsets", None)
                if len(self._fragments) == self.depth:
                    frame = read_fragment(self._file, self._fragments[index])
                elif (frames := self._frames(bool(extended))) is not None:
                    frame = read_fragments(self._file, frames[index], frames[index + 1])
                else:
                    frame = get_frame(self._file, index, number_of_frames=self.depth, extended_offsets=extended)
                options["number_of_frames"] = 1
                if self._syntax in JPEG_LOSSLESS:
                    source = native_frame(frame, self._layout)
                    options.update(transfer_syntax_uid=UID(EXPLICIT), planar_configuration=0)
                else:
                    check_frame(frame, self._syntax, self._layout)
                    source = encapsulate([frame])
                array, info = self._decoder.as_array(source, index=0, validate=True, **options)
        except Refusal:
            raise
        except MemoryError:
            raise OutOfMemory("the DICOM image does not fit in memory") from None
        except Exception as error:
            raise BadImage(f"the pixel data of the DICOM file are damaged: {error}"[:200]) from None
        return array, str(info["photometric_interpretation"])

    def _frames(self, extended: bool) -> array[int] | None:
        """See ``find_frames``; None, too, where a table or pydicom says where frames are. Found once."""
        if self._places is None and self.depth > 1 and not extended:
            self._places = find_frames(self._file, self._pixels, self.depth)
            self._file.seek(self._pixels)
        return self._places

    def slice(self, index: int) -> Image.Image:
        """Frame ``index`` as a viewer shows it: 8-bit RGB. IndexError; BadImage, UnsupportedImage, TooLarge."""
        array, photometric = self._frame(self.checked(index))
        try:
            if array.ndim == 2 and photometric in ("MONOCHROME1", "MONOCHROME2"):
                return grey(grey_levels(array, frame_attributes(self.dataset, index)))
            return Image.fromarray(np.ascontiguousarray(color_levels(array, self.dataset, photometric)))
        except Refusal:
            raise
        except MemoryError:
            raise OutOfMemory("the DICOM image does not fit in memory") from None
        except Exception as error:
            raise BadImage(f"the look-up tables of the DICOM file are damaged: {error}"[:200]) from None

    def values(self, index: int) -> NDArray[np.integer[Any]]:
        """The stored values of a frame [height, width], before slope and DICOM window. BadImage for a colour image."""
        array, _ = self._frame(self.checked(index))
        if array.ndim != 2:
            raise BadImage("the DICOM image is no mask: it has three channels")
        return whole(array.astype(array.dtype.newbyteorder("=")), "DICOM image")

    def close(self) -> None:
        """Close the file."""
        self._file.close()
