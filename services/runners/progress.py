"""Progress: how whoever computes says how far it is, and what it found, without knowing who wants to know."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

from models.masks.predicted_masks import MaskUpdate

LISTENER: ContextVar[Callable[[float], None] | None] = ContextVar("LISTENER", default=None)
"""Set around a computation by whoever wants to know; it is called on the event loop."""


NEWS: ContextVar[Callable[[MaskUpdate], None] | None] = ContextVar("NEWS", default=None)
"""Likewise, for the masks of one image."""


def advance(share: float) -> None:
    """So much of the present computation is done, 0-1."""
    listener = LISTENER.get()
    if listener is not None:
        listener(min(1.0, max(0.0, share)))
