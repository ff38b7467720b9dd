"""JSON responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from starlette.responses import Response

from services.schemas.body import Body, PageBody, to_dict


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A response with ``body``, a ``Body`` or JSON values, as JSON; moments are written as UTC with Z."""
    return Response(orjson.dumps(to_dict(body), option=orjson.OPT_UTC_Z), status, headers, "application/json")


def page_response(items: Sequence[Body], total: int, page: int, limit: int) -> Response:
    """A response with one page of a list. ``total``: of all pages."""
    return json_response(PageBody(items=list(items), total=total, page=page, limit=limit))
