"""The response of /healthz."""

from __future__ import annotations

from services.schemas.body import Body


class HealthPart(Body):
    ok: bool
    detail: str


class HealthBody(Body):
    ok: bool
    version: str
    parts: dict[str, HealthPart]
