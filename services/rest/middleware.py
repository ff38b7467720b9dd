"""The middleware of the gateway: request ids, metrics, access log and a bound on the bytes of request bodies."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, MutableMapping
from typing import Any

from ekiben.errors import BadInput, Overloaded
from ekiben.ids import new_id
from ekiben.logs import request_id
from services import metrics
from services.bento.connection_limits import OVER_LIMIT
from services.bento.hosting import App, Receive, Scope, Send
from services.concurrency.byte_budget import ByteBudget, ByteLease
from services.rest.error_handlers import response_for

_GIVEN_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


SCHEMA = "/schema.json"
_ALWAYS = frozenset({"/livez", "/readyz", "/healthz", "/metrics"})
"""Answered over connections beyond the bound, too."""

_LEASE = "ekiben.body_bytes"


class _Schema:
    path = SCHEMA


class RequestMiddleware:
    """The outermost ASGI application. Requests go to ``app``; BentoML's /schema.json and lifespan events to ``bento``.

    A HEAD request gets the response of the GET without its body. ``access`` writes the access log line.
    ``max_body_bytes`` bounds the bodies of all open requests together: bytes that are refused later must not fill the
    memory first.

    BentoML's own tracing, metrics, timeout and access log are bypassed: they cost about 0.3 ms a request, and label
    metrics with any path that a client sends.
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
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._bento(scope, receive, send)  # lifespan: BentoML creates the service instance
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
                if OVER_LIMIT in scope:
                    message["headers"].append((b"connection", b"close"))
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
            if OVER_LIMIT in scope and scope["path"] not in _ALWAYS:
                raise Overloaded("too many connections are open", retry_after_s=1)
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
            elif not complete:  # the response has begun: all that is left is to close the connection
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
    """Count ``size`` bytes of the request's body as freed while the request goes on."""
    lease: ByteLease | None = scope.get(_LEASE)
    if lease is not None:
        lease.give_back(size)


def take(scope: Scope, size: int) -> None:
    """Count ``size`` bytes more of the request's body, which was decompressed. Overloaded beyond the bound."""
    lease: ByteLease | None = scope.get(_LEASE)
    if lease is not None and size > 0:
        lease.take(size, always_alone=False)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _GIVEN_ID.fullmatch(value):
            return str(value.decode())
    return new_id()


def _route(scope: Scope) -> str:
    """The template of the matched route, such as /v1/images/{id}: a label with a bounded number of values."""
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
