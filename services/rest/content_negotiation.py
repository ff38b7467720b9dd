"""The Accept header: whether a caller would rather have a file than JSON."""

from __future__ import annotations

_REFUSED = ("q=0", "q=0.", "q=0.0", "q=0.00", "q=0.000")


def prefers(accept: str, mime_type: str) -> bool:
    """True where ``mime_type`` stands before application/json in the header (and */* means JSON)."""
    for part in accept.split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if any(parameter in _REFUSED for parameter in parameters):
            continue
        if kind == mime_type:
            return True
        if kind in ("application/json", "*/*"):
            return False
    return False
