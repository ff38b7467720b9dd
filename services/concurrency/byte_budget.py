"""A bound on the bytes that all requests of a process hold at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ekiben.errors import Overloaded


class ByteBudget:
    """Bounds what requests hold together: what is refused later must not fill the memory first. On one event loop."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held = 0
        """Bytes that all requests hold now."""

    @contextmanager
    def lease(self, size: int = 0) -> Iterator[ByteLease]:
        """The share of one request, ``size`` bytes at first; all of it is given back at the end. Overloaded."""
        lease = ByteLease(self)
        if size:
            lease.take(size)
        try:
            yield lease
        finally:
            lease.give_back(lease.held)


class ByteLease:
    """What one request holds of a budget."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.held = 0

    def take(self, size: int, *, always_alone: bool = True) -> None:
        """Hold ``size`` bytes more. Overloaded where they pass the bound.

        ``always_alone``: a request that is the only one to hold anything may be as large as its route allows.
        """
        budget = self._budget
        if budget.held + size > budget.max_bytes and not (always_alone and budget.held == self.held):
            raise Overloaded("too many bytes are on their way in", retry_after_s=1)
        self.held += size
        budget.held += size

    def give_back(self, size: int) -> None:
        """Hold ``size`` bytes fewer."""
        self.held -= size
        self._budget.held -= size
