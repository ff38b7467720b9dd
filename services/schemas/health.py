"""The response of /healthz."""

from __future__ import annotations

from services.schemas.body import Body


class HealthPart(Body):
    """The verdict on one part."""

    ok: bool
    detail: str


class HealthBody(Body):
    """The verdict on this process, and on each of its parts."""

    ok: bool
    version: str
    parts: dict[str, HealthPart]
