"""How a computation reports how far it is, and which masks it has found so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from models.masks.predicted_masks import MaskUpdate


def _ignore(_share: float) -> None:
    return


@dataclass(frozen=True, slots=True)
class ProgressSink:
    """Who is told. Both functions are called on the event loop.

    ``on_share``: takes the part of the computation that is done, 0-1. ``on_masks``: takes the automatic masks as they
    are found; None where nobody wants them early, which saves computing them early.
    """

    on_share: Callable[[float], None] = _ignore
    on_masks: Callable[[MaskUpdate], None] | None = None

    def advance(self, share: float) -> None:
        """``share`` of the computation is done, 0-1."""
        self.on_share(min(1.0, max(0.0, share)))


NO_PROGRESS = ProgressSink()
"""For callers who only want the answer."""
