"""The file format around DICOM data sets: file meta information, deflated files, and a limit on what is read."""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from typing import IO, Final

from ekiben.errors import BadImage, TooLarge

EXPLICIT: Final = "1.2.840.10008.1.2.1"
"""UID of Explicit VR Little Endian, the transfer syntax of a deflated file once it is inflated."""

IMPLICIT: Final = "1.2.840.10008.1.2"
"""UID of Implicit VR Little Endian."""

BIG_ENDIAN: Final = "1.2.840.10008.1.2.2"
"""UID of Explicit VR Big Endian."""

_LONG_VRS: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_VRS: Final = _LONG_VRS | frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_FIRST_GROUPS: Final = (0x0002, 0x0008, 0x0010, 0x0018, 0x0020, 0x0028)  # an image has one of these second
_LONGEST_FIRST = 1024  # bytes of the first element: a length, a character set, an image type, a UID
_IN_MEMORY = 64 << 20
_CHUNK = 1 << 20


def is_dicom(head: bytes) -> bool:
    """Whether ``head``, the first bytes (2 kB are enough), is that of a DICOM file.

    After 128 bytes of any kind stands DICM (PS3.10, 7.1). Older files and exports have neither: they begin with an
    element of group 0002 or 0008, and another one follows.
    """
    if head[128:132] == b"DICM":
        return True
    if (first := _element(head, 0)) is None or first[0] >> 16 not in (0x0002, 0x0008):
        return False
    second = _element(head, first[1])
    return (
        first[1] <= _LONGEST_FIRST and second is not None and second[0] > first[0] and second[0] >> 16 in _FIRST_GROUPS
    )


def _element(head: bytes, place: int) -> tuple[int, int] | None:
    """Tag of the little endian element at ``place``, and where the next one is; None for what can be none."""
    if len(head) < place + 12:
        return None
    group, element, vr, short = struct.unpack_from("<HH2sH", head, place)
    start = place + 8
    if vr in _LONG_VRS:
        (length,), start = struct.unpack_from("<L", head, place + 8), place + 12
    elif vr in _VRS:
        length = short
    else:
        (length,) = struct.unpack_from("<L", head, place + 4)
    return (group << 16 | element, start + length) if length % 2 == 0 or length == 0xFFFFFFFF else None


class Bounded:
    """A file of which at most ``limit`` bytes may be read; bytes that are skipped by seeking do not count."""

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file = file
        self._left = limit
        self.seek = file.seek
        self.tell = file.tell
        self.name = None

    def read(self, size: int = -1) -> bytes:
        """The next ``size`` bytes. BadImage beyond the limit."""
        # Checked before reading: a read of a huge size would allocate that much memory.
        if size < 0 or size > self._left:
            raise BadImage("the attributes of the DICOM file are longer than what is read of them")
        self._left -= size
        return self._file.read(size)


def transfer_syntax(file: IO[bytes]) -> str | None:
    """The UID (0002,0010) of the file meta information; the file is then at the data set. PS3.10, 7.1.

    Where it is missing, that of an uncompressed data set by its first element; None where this is none, either.
    """
    found = None
    while len(head := file.read(8)) == 8 and head[:2] == b"\x02\x00":
        if head[4:6] in _LONG_VRS:
            (length,) = struct.unpack("<L", file.read(4).ljust(4, b"\0"))
        else:
            (length,) = struct.unpack_from("<H", head, 6) if head[4:6] in _VRS else struct.unpack_from("<L", head, 4)
        if head[2:4] == b"\x10\x00":
            found = file.read(min(length, 64)).decode("ascii", "replace").rstrip("\0 ")
        else:
            file.seek(length, io.SEEK_CUR)
    file.seek(-len(head), io.SEEK_CUR)
    return found or _guessed(head)


def _guessed(head: bytes) -> str | None:
    if len(head) < 8:
        return None
    if head[4:6] in _VRS and head[:2] in (b"\x08\0", b"\0\x08"):
        return EXPLICIT if head[0] else BIG_ENDIAN
    return IMPLICIT if head[:2] == b"\x08\0" and struct.unpack_from("<L", head, 4)[0] <= _LONGEST_FIRST else None


def inflated(packed: IO[bytes], limit: int) -> IO[bytes]:
    """A temporary file with the inflated data set of a deflated one, as explicit little endian. PS3.5, A.5.

    TooLarge above ``limit`` bytes; BadImage for damaged data.
    """
    out = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115
    uid = EXPLICIT.encode() + b"\0"
    out.write(bytes(128) + b"DICM" + b"\x02\0\x10\0UI" + struct.pack("<H", len(uid)) + uid)
    inflater = zlib.decompressobj(wbits=-15)
    written = 0
    try:
        while not inflater.eof and (chunk := inflater.unconsumed_tail or packed.read(_CHUNK)):
            piece = inflater.decompress(chunk, _CHUNK)
            written += len(piece)
            if written > limit:
                raise TooLarge(f"the deflated DICOM file unpacks to more than {limit} bytes")
            out.write(piece)
    except zlib.error:
        out.close()
        raise BadImage("the deflated DICOM file is damaged") from None
    except BaseException:
        out.close()
        raise
    return out
