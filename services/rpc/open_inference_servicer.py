"""inference.GRPCInferenceService: the Open Inference Protocol over gRPC, with the messages that tritonclient ships."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from ekiben.errors import NotFound, Refusal, Unsupported
from services.error_codes import code_and_message
from services.open_inference.grpc_codec import parameters_of, read_request_in_thread, write_answer
from services.rpc.method_wrappers import ServicerState, streaming, unary


def _unoffered(name: str) -> Any:
    async def refuse(self: OpenInferenceServicer, request: Any, timeout_s: float | None) -> Any:
        raise Unsupported(f"{name} belongs to an extension that Ekiben does not offer")

    refuse.__name__ = name
    return unary(refuse)


class OpenInferenceServicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Serves the protocol's methods; those of extensions that are not offered raise UNIMPLEMENTED."""

    NAME = "inference.GRPCInferenceService"

    def __init__(self, state: ServicerState) -> None:
        self.state = state
        self._management = state.app_state.protocol_management
        self._open_inference = state.app_state.open_inference

    @unary
    async def ServerLive(self, request: Any, timeout_s: float | None) -> Any:
        return pb.ServerLiveResponse(live=True)

    @unary
    async def ServerReady(self, request: Any, timeout_s: float | None) -> Any:
        return pb.ServerReadyResponse(ready=await self._management.ready())

    @unary
    async def ModelReady(self, request: Any, timeout_s: float | None) -> Any:
        try:
            ready = await self._management.model_ready(request.name, request.version)
        except NotFound:  # clients poll before a model exists, and wait for true
            ready = False
        return pb.ModelReadyResponse(ready=ready)

    @unary
    async def ServerMetadata(self, request: Any, timeout_s: float | None) -> Any:
        return pb.ServerMetadataResponse(**self._management.server())

    @unary
    async def ModelMetadata(self, request: Any, timeout_s: float | None) -> Any:
        return pb.ModelMetadataResponse(**await self._management.metadata(request.name, request.version))

    @unary
    async def ModelConfig(self, request: Any, timeout_s: float | None) -> Any:
        return pb.ModelConfigResponse(config=await self._management.config(request.name, request.version))

    @unary
    async def ModelStatistics(self, request: Any, timeout_s: float | None) -> Any:
        return pb.ModelStatisticsResponse(**await self._management.statistics(request.name, request.version))

    @unary
    async def RepositoryIndex(self, request: Any, timeout_s: float | None) -> Any:
        rows = await self._management.repository(request.repository_name, ready=request.ready)
        return pb.RepositoryIndexResponse(models=rows)

    @unary
    async def RepositoryModelLoad(self, request: Any, timeout_s: float | None) -> Any:
        _one_repository(request.repository_name)
        await self._management.load(request.model_name, parameters_of(request.parameters))
        return pb.RepositoryModelLoadResponse()

    @unary
    async def RepositoryModelUnload(self, request: Any, timeout_s: float | None) -> Any:
        _one_repository(request.repository_name)
        await self._management.unload(request.model_name, parameters_of(request.parameters))
        return pb.RepositoryModelUnloadResponse()

    @unary
    async def ModelInfer(self, request: Any, timeout_s: float | None) -> Any:
        answer = await self._open_inference.infer(await read_request_in_thread(request, timeout_s))
        return write_answer(answer, request.id)

    SystemSharedMemoryStatus = _unoffered("SystemSharedMemoryStatus")
    SystemSharedMemoryRegister = _unoffered("SystemSharedMemoryRegister")
    SystemSharedMemoryUnregister = _unoffered("SystemSharedMemoryUnregister")
    CudaSharedMemoryStatus = _unoffered("CudaSharedMemoryStatus")
    CudaSharedMemoryRegister = _unoffered("CudaSharedMemoryRegister")
    CudaSharedMemoryUnregister = _unoffered("CudaSharedMemoryUnregister")
    TraceSetting = _unoffered("TraceSetting")
    LogSettings = _unoffered("LogSettings")

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        """One response to each request, in their order; an error ends only its own request."""
        async for response in self._stream(_Stream(requests), context):
            yield response

    @streaming
    async def _stream(self, requests: Any, timeout_s: float | None) -> AsyncIterator[Any]:
        async for request in _until(self.state.calls.stopped, requests.requests):
            try:
                with self.state.budget.lease(request.ByteSize()):
                    answer = await self._open_inference.infer(await read_request_in_thread(request, timeout_s))
                yield pb.ModelStreamInferResponse(infer_response=write_answer(answer, request.id))
            except Refusal as error:
                _, message = code_and_message(error)
                about = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
                yield pb.ModelStreamInferResponse(error_message=message, infer_response=about)


async def _until(stopped: asyncio.Event, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The requests, until there are no more or ``stopped`` is set: a stream may stay open without requests."""
    stop = asyncio.ensure_future(stopped.wait())
    try:
        while True:
            coming = asyncio.ensure_future(anext(requests, None))
            try:
                await asyncio.wait({coming, stop}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if not coming.done():
                    coming.cancel()
            if not coming.done() or (request := coming.result()) is None:
                return
            yield request
    finally:
        stop.cancel()


class _Stream:
    """A stream of requests in place of one: it has no size itself, each of its requests is counted."""

    def __init__(self, requests: AsyncIterator[Any]) -> None:
        self.requests = requests

    def ByteSize(self) -> int:
        return 0


def _one_repository(name: str) -> None:
    if name:
        raise NotFound("there is one repository, without a name")
