"""The Accept header: whether a caller prefers another media type to JSON."""

from __future__ import annotations

_REFUSED = ("q=0", "q=0.", "q=0.0", "q=0.00", "q=0.000")


def prefers(accept: str, mime_type: str) -> bool:
    """Whether ``mime_type`` stands before application/json in the header; */* counts as JSON."""
    for part in accept.split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        if any(parameter in _REFUSED for parameter in parameters):
            continue
        if kind == mime_type:
            return True
        if kind in ("application/json", "*/*"):
            return False
    return False
