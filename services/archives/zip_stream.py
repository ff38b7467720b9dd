"""A ZIP archive that is sent while it is written."""

from __future__ import annotations

import io
from typing import Any


class GrowingBuffer(io.RawIOBase):
    """A file that cannot seek; what was written to it is taken out in pieces."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._pieces.append(bytes(data))
        return len(self._pieces[-1])

    def taken(self) -> bytes:
        taken, self._pieces = b"".join(self._pieces), []
        return taken
