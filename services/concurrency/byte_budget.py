"""A bound on the bytes that requests hold at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ekiben.errors import Overloaded


class ByteBudget:
    """Bytes of the requests that are being answered. Overloaded where more come than may be held."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held = 0

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        if self._held and self._held + size > self._max_bytes:
            raise Overloaded("too many bytes are on their way in", retry_after_s=1)
        self._held += size
        try:
            yield
        finally:
            self._held -= size
