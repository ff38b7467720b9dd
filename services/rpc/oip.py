"""inference.GRPCInferenceService: the Open Inference Protocol over gRPC, with the messages that tritonclient ships."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import numpy as np
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from ekiben.errors import BadInput, NotFound, Refusal, Unsupported
from services.errors import code_and_message
from services.oip.inference import InferAnswer, InferRequest
from services.oip.parameters import MAX_INPUTS, MAX_PARAMETERS, check_counts, refuse_unsupported, wanted
from services.oip.tensors import BYTES, DATATYPES, Tensor, checked_count, from_raw, texts, to_raw
from services.options import short
from services.rpc.calls import Door, streaming, unary

_IN_THREAD: Final = 256 * 1024
_PIECE: Final = 1 << 16
_MANY: Final = 1024
_CONTENTS: Final = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}


def _unoffered(name: str) -> Any:
    async def refuse(self: OpenInference, request: Any, timeout_s: float | None) -> Any:
        raise Unsupported(f"{name} belongs to an extension that Ekiben does not offer")

    refuse.__name__ = name
    return unary(refuse)


class OpenInference(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    NAME = "inference.GRPCInferenceService"

    def __init__(self, door: Door) -> None:
        self.door = door
        self._catalogue = door.platform.catalogue
        self._inference = door.platform.inference

    @unary
    async def ServerLive(self, request: Any, timeout_s: float | None) -> Any:
        return pb.ServerLiveResponse(live=True)

    @unary
    async def ServerReady(self, request: Any, timeout_s: float | None) -> Any:
        return pb.ServerReadyResponse(ready=await self._catalogue.ready())

    @unary
    async def ModelReady(self, request: Any, timeout_s: float | None) -> Any:
        try:
            ready = await self._catalogue.model_ready(request.name, request.version)
        except NotFound:  # clients ask before a model is there, and wait for true
            ready = False
        return pb.ModelReadyResponse(ready=ready)

    @unary
    async def ServerMetadata(self, request: Any, timeout_s: float | None) -> Any:
        return pb.ServerMetadataResponse(**self._catalogue.server())

    @unary
    async def ModelMetadata(self, request: Any, timeout_s: float | None) -> Any:
        return pb.ModelMetadataResponse(**await self._catalogue.metadata(request.name, request.version))

    @unary
    async def ModelConfig(self, request: Any, timeout_s: float | None) -> Any:
        return pb.ModelConfigResponse(config=await self._catalogue.config(request.name, request.version))

    @unary
    async def ModelStatistics(self, request: Any, timeout_s: float | None) -> Any:
        return pb.ModelStatisticsResponse(**await self._catalogue.statistics(request.name, request.version))

    @unary
    async def RepositoryIndex(self, request: Any, timeout_s: float | None) -> Any:
        rows = await self._catalogue.repository(request.repository_name, ready=request.ready)
        return pb.RepositoryIndexResponse(models=rows)

    @unary
    async def RepositoryModelLoad(self, request: Any, timeout_s: float | None) -> Any:
        _one_repository(request.repository_name)
        await self._catalogue.load(request.model_name, _parameters(request.parameters))
        return pb.RepositoryModelLoadResponse()

    @unary
    async def RepositoryModelUnload(self, request: Any, timeout_s: float | None) -> Any:
        _one_repository(request.repository_name)
        await self._catalogue.unload(request.model_name, _parameters(request.parameters))
        return pb.RepositoryModelUnloadResponse()

    @unary
    async def ModelInfer(self, request: Any, timeout_s: float | None) -> Any:
        answer = await self._inference.infer(await _read(request, timeout_s))
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
        """One answer to each request, in their order; an error is the answer to its own request only."""
        async for response in self._stream(_Stream(requests), context):
            yield response

    @streaming
    async def _stream(self, requests: Any, timeout_s: float | None) -> AsyncIterator[Any]:
        async for request in _until(self.door.calls.stopped, requests.requests):
            try:
                with self.door.hand.hold(request.ByteSize()):
                    answer = await self._inference.infer(await _read(request, timeout_s))
                yield pb.ModelStreamInferResponse(infer_response=write_answer(answer, request.id))
            except Refusal as error:
                _, message = code_and_message(error)
                about = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
                yield pb.ModelStreamInferResponse(error_message=message, infer_response=about)


async def _until(stopped: asyncio.Event, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The requests, until there are no more or this process is to end: a stream may be open and silent."""
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
    """A stream of requests, which has no size of its own."""

    def __init__(self, requests: AsyncIterator[Any]) -> None:
        self.requests = requests

    def ByteSize(self) -> int:
        return 0


async def _read(request: Any, timeout_s: float | None) -> InferRequest:
    """On a thread where there is much to do: typed contents are read number by number, BYTES element by element."""
    elements = any(one.datatype == BYTES and one.shape and one.shape[0] > _MANY for one in request.inputs[:MAX_INPUTS])
    if (request.raw_input_contents and not elements) or request.ByteSize() < _IN_THREAD:
        return read_request(request, timeout_s)
    return await asyncio.to_thread(read_request, request, timeout_s)


def read_request(message: Any, timeout_s: float | None) -> InferRequest:
    """BadInput names the tensor that is wrong."""
    check_counts(len(message.inputs), len(message.outputs), len(message.parameters))
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise BadInput(f"there are {len(message.inputs)} inputs, but {len(raw)} raw_input_contents")
    tensors = []
    for number, one in enumerate(message.inputs):
        refuse_unsupported(_parameters(one.parameters))
        shape = list(one.shape)
        if not raw:
            values = _typed(one, shape)
        elif one.HasField("contents"):
            raise BadInput(f"input {short(one.name)!r} has contents beside raw_input_contents: send one of them")
        else:
            values = from_raw(one.name, one.datatype, shape, raw[number])
        tensors.append(Tensor(one.name, values))
    outputs = [wanted(one.name, _parameters(one.parameters)) for one in message.outputs]
    return InferRequest(
        message.model_name, message.model_version, tensors, outputs, _parameters(message.parameters), timeout_s
    )


def write_answer(answer: InferAnswer, id: str) -> Any:
    """With raw contents always: tritonclient reads no other."""
    return pb.ModelInferResponse(
        model_name=answer.model,
        model_version=answer.version,
        id=id,
        parameters={name: pb.InferParameter(string_param=value) for name, value in answer.parameters.items()},
        outputs=[{"name": one.name, "datatype": one.datatype, "shape": one.shape} for one in answer.outputs],
        raw_output_contents=[to_raw(one.values) for one in answer.outputs],
    )


def _typed(tensor: Any, shape: list[int]) -> Any:
    count = checked_count(tensor.name, tensor.datatype, shape)
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise BadInput(f"input {short(tensor.name)!r} is {tensor.datatype}, which goes as raw_input_contents only")
    given = getattr(tensor.contents, field)
    if len(given) != count:
        raise BadInput(f"input {short(tensor.name)!r} is {shape}: {count} values, but {field} has {len(given)}")
    if tensor.datatype == BYTES:
        return texts(given, shape)
    values = np.empty(count, DATATYPES[tensor.datatype])
    try:
        for start in range(0, count, _PIECE):  # between pieces other threads have their turn
            values[start : start + _PIECE] = given[start : start + _PIECE]
        return values.reshape(shape)
    except OverflowError:
        raise BadInput(f"the data of input {short(tensor.name)!r} is not {tensor.datatype}") from None


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    if len(given) > MAX_PARAMETERS:
        raise BadInput(f"there are {len(given)} parameters; at most {MAX_PARAMETERS} are read")
    return {
        name: getattr(value, which) for name, value in given.items() if (which := value.WhichOneof("parameter_choice"))
    }


def _one_repository(name: str) -> None:
    if name:
        raise NotFound("there is one repository, without a name")
