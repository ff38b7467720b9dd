"""The door to the Bento endpoints: bounded, and files only, before BentoML reads a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from ekiben.errors import BadInput, Refusal
from models.images import MAX_BYTES
from services.errors import response_for
from services.upload import FORM_OVERHEAD, parse_form, read_body

filename: ContextVar[str | None] = ContextVar("filename", default=None)
"""The name the caller gave the file; BentoML replaces it by that of a temporary one."""

BENTO_ROUTES = frozenset({"/classify", "/segment", "/schema.json"})
_FILE_FIELD = "image"


class BentoDoor:
    """Lets a Bento endpoint see only what it may.

    BentoML fetches a URL that stands in place of a file (from inside this network), has no limit on a body, and turns
    errors into lists. So the body is read here, within the limit; it must be a form whose ``image`` is a file; and a
    refusal leaves in Ekiben's shape.
    """

    def __init__(self, bento: Callable[..., Awaitable[None]]) -> None:
        self._bento = bento

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._bento(scope, receive, send)
            return
        scope["route"] = _Route(scope["path"])
        if scope["method"] != "POST":
            await self._bento(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            body = await _checked_body(request)
        except Refusal as error:
            await response_for(error)(scope, receive, send)
            return
        sent = False

        async def replay() -> MutableMapping[str, Any]:
            nonlocal sent
            if sent:
                message: MutableMapping[str, Any] = await receive()
                return message
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._bento(scope, replay, send)


class _Route:
    def __init__(self, path: str) -> None:
        self.path = path


async def _checked_body(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise BadInput(f"send a multipart form with the picture as file '{_FILE_FIELD}'")
    body = await read_body(request, MAX_BYTES, FORM_OVERHEAD)
    form = parse_form(body, boundary, _FILE_FIELD)
    if form.data is None:
        raise BadInput(f"the form has no '{_FILE_FIELD}'")
    if not form.is_file:
        raise BadInput(f"'{_FILE_FIELD}' must be a file, not text or an address")
    filename.set(form.filename)
    return body
