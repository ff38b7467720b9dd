"""Tensors of the Open Inference Protocol: datatypes, and their three forms - raw bytes, JSON values, numpy arrays."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ekiben.errors import BadInput
from services.schemas.validation import short

MAX_BYTES: Final = 64 * 1024 * 1024
"""Bytes of one request and of one response, over every protocol; of compressed requests once unpacked."""

BYTES: Final = "BYTES"
DATATYPES: Final[dict[str, np.dtype[Any]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""Besides, BYTES and BF16, which numpy lacks: BYTES is an array of objects, BF16 is read into float32."""

_NAMES: Final = {dtype: name for name, dtype in DATATYPES.items()}
_LENGTH: Final = struct.Struct("<I")
_MAX_AXES: Final = 8
_MAX_TEXTS: Final = 65_536
"""Elements of BYTES: each is a Python object, however short."""


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A named tensor. ``values``: an array of its shape; of BYTES an object array of ``bytes``."""

    name: str
    values: NDArray[Any]

    @property
    def datatype(self) -> str:
        """The protocol's datatype."""
        return BYTES if self.values.dtype == object else _NAMES[self.values.dtype]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of ``values``."""
        return self.values.shape

    @property
    def nbytes(self) -> int:
        """Bytes of its raw form."""
        if self.values.dtype == object:
            return sum(len(one) + _LENGTH.size for one in self.values.ravel())
        return int(self.values.nbytes)


def from_raw(name: str, datatype: str, shape: Sequence[int], data: bytes | memoryview) -> NDArray[Any]:
    """The array of a tensor's raw bytes: little-endian, row-major. BadInput where they do not fit its shape."""
    count = checked_count(name, datatype, shape)
    if datatype == BYTES:
        return texts(_elements(name, data, count), shape)
    size = 2 if datatype == "BF16" else DATATYPES[datatype].itemsize
    if len(data) != count * size:
        raise BadInput(
            f"input {short(name)!r} is {datatype} {list(shape)}: {count * size} bytes, but {len(data)} were sent"
        )
    if datatype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype("<u4") << np.uint32(16)).view("<f4").reshape(shape)
    return np.frombuffer(data, DATATYPES[datatype]).reshape(shape)


def from_values(name: str, datatype: str, shape: Sequence[int], given: Any) -> NDArray[Any]:
    """The array of JSON values, nested or flat. BadInput where they do not fit datatype and shape."""
    count = checked_count(name, datatype, shape)
    if datatype in ("FP16", "BF16"):
        raise BadInput(f"input {short(name)!r} is {datatype}, which goes over the wire as binary data only")
    if not isinstance(given, list):
        raise BadInput(f"the data of input {short(name)!r} is a list")
    flat = _flat(name, given)
    if len(flat) != count:
        raise BadInput(f"input {short(name)!r} is {list(shape)}: {count} values, but {len(flat)} were sent")
    try:
        return (_bytes_of(flat) if datatype == BYTES else _numbers(datatype, flat)).reshape(shape)
    except (ValueError, TypeError, OverflowError):
        raise BadInput(f"the data of input {short(name)!r} is not {datatype}") from None


def checked_count(name: str, datatype: str, shape: Sequence[int]) -> int:
    """The number of elements of a tensor.

    BadInput for an unknown datatype, and for an impossible or too large shape.
    """
    if datatype not in DATATYPES and datatype not in (BYTES, "BF16"):
        known = ", ".join([*DATATYPES, "BF16", BYTES])
        raise BadInput(f"input {short(name)!r} has the datatype {short(str(datatype))!r}; there are {known}")
    if len(shape) > _MAX_AXES or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in shape):
        raise BadInput(f"the shape of input {short(name)!r} is a list of at most {_MAX_AXES} whole numbers from 0 up")
    count = math.prod(shape)
    most = _MAX_TEXTS if datatype == BYTES else MAX_BYTES
    if math.prod(n or 1 for n in shape) > most:  # an axis of 0 does not excuse another that is too long
        raise BadInput(f"input {short(name)!r} is {short(str(list(shape)))}; at most {most} {datatype} are read")
    return count


def to_raw(values: NDArray[Any]) -> bytes:
    """The raw form: little-endian, row-major; BYTES elements each after their length (uint32)."""
    if values.dtype == object:
        return b"".join(part for one in values.ravel() for part in (_LENGTH.pack(len(one)), one))
    return values.tobytes()


def texts(values: Sequence[str | bytes], shape: Sequence[int]) -> NDArray[Any]:
    """The array of a BYTES tensor; text is encoded as UTF-8."""
    array = np.empty(len(values), object)
    array[:] = [one.encode() if isinstance(one, str) else one for one in values]
    return array.reshape(shape)


def _elements(name: str, data: bytes | memoryview, count: int) -> list[bytes]:
    view, at = memoryview(data), 0
    found: list[bytes] = []
    while at < len(view) and len(found) < count:
        end = at + _LENGTH.size
        if end > len(view):
            break
        end += _LENGTH.unpack_from(view, at)[0]
        if end > len(view):
            break
        found.append(bytes(view[at + _LENGTH.size : end]))
        at = end
    if at != len(view) or len(found) != count:
        raise BadInput(
            f"the bytes of input {short(name)!r} are not {count} elements: each is its length, 4 bytes little-endian, "
            "and so many bytes"
        )
    return found


def _flat(name: str, given: list[Any]) -> list[Any]:
    for _ in range(_MAX_AXES):
        if not any(isinstance(one, list) for one in given):
            return given
        if not all(isinstance(one, list) for one in given):
            break
        given = [value for one in given for value in one]
    if any(isinstance(one, list) for one in given):
        raise BadInput(f"the data of input {short(name)!r} is nested unevenly")
    return given


def _bytes_of(flat: list[Any]) -> NDArray[Any]:
    if not all(isinstance(one, str) for one in flat):
        raise ValueError("text is needed")
    return texts(flat, (len(flat),))


def _numbers(datatype: str, flat: list[Any]) -> NDArray[Any]:
    dtype = DATATYPES[datatype]
    if datatype == "BOOL":
        if not all(isinstance(one, bool) or one in (0, 1) for one in flat):
            raise ValueError("true or false is needed")
        return np.array(flat, dtype)
    if any(isinstance(one, bool) or not isinstance(one, (int, float)) for one in flat):
        raise ValueError("numbers are needed")
    if dtype.kind == "f":
        return np.array(flat, dtype)
    if any(isinstance(one, float) and not one.is_integer() for one in flat):
        raise ValueError("whole numbers are needed")
    return np.array([int(one) for one in flat], dtype)  # OverflowError for what does not fit
