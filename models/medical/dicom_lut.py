"""Look-up tables of DICOM files, and attributes that may be written as unsigned or signed. PS3.3, C.11.1 and C.11.2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ekiben.errors import BadImage
from models.medical.volume import Values

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


@dataclass(frozen=True, slots=True)
class LookUpTable:
    """``entries`` uint16 [n] for the values from ``first`` on; ``bits`` of an entry as the file says."""

    entries: NDArray[np.uint16]
    first: int
    bits: int

    def apply(self, values: Values) -> NDArray[np.uint16]:
        """The entries for ``values``, in their shape: below ``first`` the first entry, beyond the last one the last."""
        index = np.clip(np.rint(values) - float(self.first), 0, len(self.entries) - 1)
        return self.entries[index.astype(np.int64)]


def stored_range(attributes: Dataset) -> tuple[int, int]:
    """The lowest and the highest stored value that a pixel may have, by Bits Stored and Pixel Representation."""
    bits = int(attributes.get("BitsStored") or 16)
    return (
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if attributes.get("PixelRepresentation") else (0, (1 << bits) - 1)
    )


def stored_value(given: Any, attributes: Dataset) -> int | None:
    """``given`` as a stored value; None where it is no number.

    Its VR is US or SS by Pixel Representation; many writers take the other one: -2000 as US reads as 63536, or as
    2096 where twelve bits are stored.
    """
    given = int.from_bytes(given[:2], "little") if isinstance(given, bytes) and len(given) >= 2 else given
    if not isinstance(given, int):
        return None
    low, high = stored_range(attributes)
    value = int(given)
    for bits in (16, (high - low).bit_length()):
        if not low <= value <= high:
            value = _twos_complement(value, bits, low < 0)
    return value


def _twos_complement(value: int, bits: int, signed: bool) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if signed and value >= 1 << (bits - 1) else value


def read_table(item: Dataset, low: float, high: float, big_endian: bool = False) -> LookUpTable:
    """The table of an item of a Modality LUT Sequence or a VOI LUT Sequence.

    ``low``, ``high``: the values that it may be asked for. The first value mapped is US or SS by these, but written as
    the other one by many: it is read so that the table meets them. BadImage where there are fewer entries than it says.
    """
    described = [int(number) for number in item.LUTDescriptor]
    count = described[0] & 0xFFFF or 1 << 16
    first = first_mapped(described[1], count, low, high)
    data = _entries(item.LUTData, count, big_endian)
    if len(data) < count:
        raise BadImage(f"a look-up table of the DICOM file has {len(data)} entries, but says {count}")
    return LookUpTable(data[:count], first, described[2])


def first_mapped(first: int, count: int, low: float, high: float) -> int:
    """``first``, the second number of a LUT descriptor, as the number that was meant; see ``read_table``."""
    other = first - (1 << 16) if first >= 1 << 15 else first + (1 << 16) if first < 0 else first
    for each in (first, other):
        if each <= high and each + count - 1 >= low:
            return each
    return first


def _entries(data: Any, count: int, big_endian: bool) -> NDArray[np.uint16]:
    if isinstance(data, bytes):
        if len(data) >= 2 * count:
            return np.frombuffer(data[: 2 * count], ">u2" if big_endian else "<u2").astype(np.uint16)
        return np.frombuffer(data, np.uint8).astype(np.uint16)
    words = np.atleast_1d(np.asarray(data, np.int64)).astype(np.uint16)  # SS for US, too
    # Entries of eight bits, two in a word.
    return words.astype("<u2").view(np.uint8).astype(np.uint16) if len(words) == (count + 1) // 2 < count else words
