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

_IN_MEMORY = 64 << 20
_CHUNK = 1 << 20


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
    """The UID (0002,0010) of the file meta information, or None; the file is then at the data set. PS3.10, 7.1."""
    found = None
    while len(head := file.read(8)) == 8 and head[:2] == b"\x02\x00":
        (length,) = struct.unpack_from("<H", head, 6)
        if head[4:6] in (b"OB", b"UN", b"OW", b"SQ", b"UT"):
            (length,) = struct.unpack("<L", file.read(4).ljust(4, b"\0"))
        if head[2:4] == b"\x10\x00":
            found = file.read(min(length, 64)).decode("ascii", "replace").rstrip("\0 ")
        else:
            file.seek(length, io.SEEK_CUR)
    file.seek(-len(head), io.SEEK_CUR)
    return found


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
