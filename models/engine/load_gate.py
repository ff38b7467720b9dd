"""The gate of loads: one at a time, so that the memory of each is measured and peaks do not add up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class LoadGate:
    """A lock that another thread may take away from a holder that takes long."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None
        self._changing = threading.Lock()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The block runs when no other block does, but those that were passed."""
        self._lock.acquire()
        self._holder = threading.get_ident()
        try:
            yield
        finally:
            self.pass_on(threading.get_ident())

    def pass_on(self, thread_id: int) -> None:
        """Let the next block begin, if the present one is of this thread."""
        with self._changing:
            if self._holder == thread_id:
                self._holder = None
                self._lock.release()
