"""How a computation reports its progress, and the masks that it has found so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from models.masks.predicted_masks import MaskUpdate


def _ignore(_share: float) -> None:
    return


@dataclass(frozen=True, slots=True)
class ProgressSink:
    """Receives the progress of a computation; both functions are called on the event loop.

    ``on_share``: with the part of the computation that is done, 0-1. ``on_masks``: with automatic masks as they are
    found; None saves computing them early.
    """

    on_share: Callable[[float], None] = _ignore
    on_masks: Callable[[MaskUpdate], None] | None = None

    def advance(self, share: float) -> None:
        """Report that ``share`` (clipped to 0-1) of the computation is done."""
        self.on_share(min(1.0, max(0.0, share)))


NO_PROGRESS = ProgressSink()
"""For callers who only want the result."""
