"""grpc.health.v1: the verdict of /readyz, for every service of the port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from typing import Any

from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc

from ekiben.errors import NotFound
from services.rpc.method_wrappers import ServicerState, streaming, unary
from services.schemas.validation import short

_LOOK_S = 1.0  # between two looks of a watch


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Reports health. ``services``: full names; "" is the server as a whole."""

    NAME = "grpc.health.v1.Health"
    WHILE_STOPPING = True

    def __init__(self, state: ServicerState, services: Collection[str]) -> None:
        self.state = state
        self._services = {"", *services}
        self.stopping = asyncio.Event()

    @unary
    async def Check(self, request: Any, timeout_s: float | None) -> Any:
        if request.service not in self._services:
            raise NotFound(f"there is no service {short(request.service)!r}")
        return pb.HealthCheckResponse(status=await self._status())

    @streaming
    async def Watch(self, request: Any, timeout_s: float | None) -> AsyncIterator[Any]:
        last = None
        while True:
            stopping = (
                self.stopping.is_set()
            )  # read before the status, so that the last status is sent before the stream ends
            known = request.service in self._services
            status = await self._status() if known else pb.HealthCheckResponse.SERVICE_UNKNOWN
            if status != last:
                yield pb.HealthCheckResponse(status=status)
            last = status
            if stopping:
                return
            try:
                await asyncio.wait_for(self.stopping.wait(), _LOOK_S)
            except TimeoutError:
                continue

    async def _status(self) -> Any:
        serving = not self.stopping.is_set() and await self.state.app_state.protocol_management.ready()
        return pb.HealthCheckResponse.SERVING if serving else pb.HealthCheckResponse.NOT_SERVING
