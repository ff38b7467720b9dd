"""The front: the outermost ASGI layer of the gateway. Every path is Ekiben's, but for the Bento endpoints."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, MutableMapping
from typing import Any

from ekiben.errors import BadInput
from ekiben.ids import new_id
from ekiben.logs import request_id
from services import metrics
from services.bento.hosting import App, Receive, Scope, Send
from services.concurrency.byte_budget import ByteBudget, ByteLease
from services.rest.error_handlers import response_for

_GIVEN_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


SCHEMA = "/schema.json"
_LEASE = "ekiben.body_bytes"


class _Schema:
    path = SCHEMA


class RequestMiddleware:
    """Gives a request its id, counts it, and hands it to ``app``; only BentoML's own /schema.json goes to ``bento``.

    A HEAD request is answered as the GET without its body.

    ``max_body_bytes`` bounds the bodies of all open requests together: what is refused later must not fill the memory
    first.

    It stands outside BentoML's own tracing, metrics, timeout and access log, which cost about 0.3 ms a request and
    label metrics with whatever path a stranger asks for.
    """

    def __init__(
        self,
        bento: App,
        app: App,
        access: Callable[..., None] | None,
        max_body_bytes: int = 1 << 40,
    ) -> None:
        self._bento = bento
        self._app = app
        self._access = access
        self._budget = ByteBudget(max_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._bento(scope, receive, send)  # lifespan: BentoML makes the service instance
            return
        started = time.perf_counter()
        ident = _request_id(scope)
        token = request_id.set(ident)
        status = 0
        complete = False
        head = scope["method"] == "HEAD"
        if head:
            scope = {**scope, "method": "GET"}

        async def send_with_id(message: MutableMapping[str, Any]) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", ident.encode())]
            else:
                complete = not message.get("more_body", False)
                if head:
                    message = {**message, "body": b""}
            await send(message)

        lease = ByteLease(self._budget)

        async def receive_counted() -> MutableMapping[str, Any]:
            message = await receive()
            if size := len(message.get("body", b"")):
                lease.take(size)
            return message

        scope[_LEASE] = lease
        metrics.in_progress.inc()
        try:
            if "\0" in scope["path"]:
                raise BadInput("the path holds a NUL character")
            app = self._app
            if scope["path"] == SCHEMA:
                app = self._bento
                scope["route"] = _Schema
            await app(scope, receive_counted, send_with_id)
        except asyncio.CancelledError:
            status = status or 499
            raise
        except Exception as error:
            if not status:
                await response_for(error, scope["path"])(scope, receive, send_with_id)
            elif not complete:  # the answer is under way: only the connection can still be broken off
                raise
        finally:
            lease.give_back(lease.held)
            metrics.in_progress.dec()
            seconds = time.perf_counter() - started
            route = _route(scope)
            _requests("HEAD" if head else scope["method"], route, status).inc()
            _seconds(route).observe(seconds)
            if self._access is not None:
                self._access(scope, route, status, seconds)
            request_id.reset(token)


def release(scope: Scope, size: int) -> None:
    """So many bytes of a request's body are in memory no more, while the request goes on."""
    lease: ByteLease | None = scope.get(_LEASE)
    if lease is not None:
        lease.give_back(size)


def take(scope: Scope, size: int) -> None:
    """A request's body became so many bytes larger when it was unpacked. Overloaded where they may not be held."""
    lease: ByteLease | None = scope.get(_LEASE)
    if lease is not None and size > 0:
        lease.take(size, always_alone=False)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _GIVEN_ID.fullmatch(value):
            return str(value.decode())
    return new_id()


def _route(scope: Scope) -> str:
    """The template of the route that answered, such as /v1/images/{id}: a bounded label, whatever was asked for."""
    route = scope.get("route")
    path = getattr(route, "path", None)
    if path is not None:
        return str(path)
    return "unmatched"


_REQUESTS: dict[tuple[str, str, int], Any] = {}
_SECONDS: dict[str, Any] = {}
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})


def _requests(method: str, route: str, status: int) -> Any:
    key = (method if method in _METHODS else "other", route, status)
    if (child := _REQUESTS.get(key)) is None:
        child = _REQUESTS[key] = metrics.requests.labels(key[0], route, str(status))
    return child


def _seconds(route: str) -> Any:
    if (child := _SECONDS.get(route)) is None:
        child = _SECONDS[route] = metrics.request_seconds.labels(route)
    return child
