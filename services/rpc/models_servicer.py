"""ekiben.v1.Models: listing, loading and unloading models."""

from __future__ import annotations

from typing import Any

from ekiben.v1 import ekiben_pb2 as pb
from ekiben.v1 import ekiben_pb2_grpc
from services.rpc import converters
from services.rpc.method_wrappers import ServicerState, required, unary


class ModelsServicer(ekiben_pb2_grpc.ModelsServicer):
    """Lists, loads and unloads models."""

    NAME = "ekiben.v1.Models"

    def __init__(self, state: ServicerState) -> None:
        self.state = state
        self._models = state.app_state.models

    @unary
    async def ListModels(self, request: Any, timeout_s: float | None) -> Any:
        return pb.ListModelsResponse(items=[converters.jsonable(body) for body in await self._models.models()])

    @unary
    async def GetModel(self, request: Any, timeout_s: float | None) -> Any:
        return pb.Model(**converters.jsonable(await self._models.model(required(request.name, "name"))))

    @unary
    async def LoadModel(self, request: Any, timeout_s: float | None) -> Any:
        return pb.Model(**converters.jsonable(await self._models.load(required(request.name, "name"))))

    @unary
    async def UnloadModel(self, request: Any, timeout_s: float | None) -> Any:
        return pb.Model(**converters.jsonable(await self._models.unload(required(request.name, "name"))))
