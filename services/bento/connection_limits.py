"""What bounds the HTTP connections of a process."""

from __future__ import annotations

from dataclasses import dataclass

OVER_LIMIT = "ekiben.over_limit"
"""In the scope of a request over one connection more than the bound."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """``header_timeout_s``: for the head of a request, and until a new connection says something. ``keep_alive_s``:
    without a request; None for uvicorn's. ``max_connections``: 0 for no bound."""

    header_timeout_s: float = 15.0
    keep_alive_s: float | None = None
    max_connections: int = 0
