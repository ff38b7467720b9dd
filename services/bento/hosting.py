"""How BentoML hosts a service of Ekiben: its own request wrappers off, pickle refused, connections that stay."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from _bentoml_impl import serde
from _bentoml_sdk import Service

from ekiben.parent_process import terminate_with_supervisor
from services.bento.connection_limits import ConnectionLimits

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("ekiben.access")

# A service that is not the entry service would otherwise run any pickle that is sent to it.
serde.ALL_SERDE.pop("application/vnd.bentoml+pickle", None)

HOSTING: dict[str, Any] = {
    "metrics": {"enabled": False},
    "logging": {"access": {"enabled": False}},
    "tracing": {"excluded_urls": ".*"},
    "traffic": {"timeout": 86_400.0},  # the deadline is Ekiben's own (EKIBEN_TIMEOUT_S)
    # bentoml closes a connection under requests in flight after 100 requests or 300 s otherwise (its issue 5540).
    "runner_connection": {"max_requests": 10**9, "max_age": 1e9},
}


class HostedService(Service[Any]):  # type: ignore[misc]
    """A BentoML service whose ASGI application is wrapped in ``middleware``."""

    middleware: Callable[[App], App]

    @staticmethod
    def connection_limits() -> ConnectionLimits:
        """The limits of the HTTP connections of a process that serves."""
        return ConnectionLimits()

    def to_asgi(self, is_main: bool = True) -> Any:
        """The ASGI application that BentoML serves. ``is_main``: of the entry service."""
        from services.bento.http_protocol import install  # BentoML's supervising process needs no HTTP server

        terminate_with_supervisor()  # else one whose supervising process was killed would keep the port
        install(type(self).connection_limits())
        inner = super().to_asgi(is_main)
        return type(self).middleware(inner) if is_main else inner


def access_line(scope: Any, route: str, status: int, seconds: float) -> None:
    """Write the access log line of a request. ``route``: the template of its route."""
    log.info(
        "request",
        extra={
            "method": scope["method"],
            "path": scope["path"],
            "route": route,
            "status": status,
            "ms": round(seconds * 1e3, 2),
            "client": (scope.get("client") or ("",))[0],
        },
    )


MODEL_STORE_TAG = "ekiben-models"
