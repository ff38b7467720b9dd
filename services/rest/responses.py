"""JSON responses."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.responses import Response


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response with ``body`` as JSON; moments are written as UTC with Z."""
    return Response(orjson.dumps(body, option=orjson.OPT_UTC_Z), status, headers, "application/json")
