"""A ZIP archive that is sent while it is written."""

from __future__ import annotations

import io
from typing import Any


class GrowingBuffer(io.RawIOBase):
    """A write-only file without seek, for zipfile: what was written is taken out with ``taken``."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        """True, as zipfile requires."""
        return True

    def write(self, data: Any) -> int:
        """Append ``data``; its length in bytes."""
        self._pieces.append(bytes(data))
        return len(self._pieces[-1])

    def taken(self) -> bytes:
        """The bytes written since the last call."""
        taken, self._pieces = b"".join(self._pieces), []
        return taken
