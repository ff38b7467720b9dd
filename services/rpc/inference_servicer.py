"""ekiben.v1.Vision: the operations on one image. A method for each row of the table of operations."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from ekiben.v1 import ekiben_pb2
from models.masks.predicted_masks import MaskUpdate
from services.inference.context import RequestContext
from services.inference.operations import Operation
from services.rpc import converters
from services.rpc.method_wrappers import ServicerState, streaming, unary
from services.runners.progress import ProgressSink
from services.schemas.validation import check

VISION: ServiceDescriptor = ekiben_pb2.DESCRIPTOR.services_by_name["Vision"]


class InferenceServicer:
    """The object to which ``add_inference_servicer`` binds the methods."""

    NAME = VISION.full_name

    def __init__(self, state: ServicerState) -> None:
        self.state = state


def add_inference_servicer(
    state: ServicerState, server: grpc.aio.Server, operations: Iterable[Operation], service: ServiceDescriptor = VISION
) -> None:
    """Serve ``operations`` as methods of ``service`` (ekiben.v1.Vision)."""
    servicer = InferenceServicer(state)
    handlers = {}
    for operation in operations:
        method = service.methods_by_name[operation.rpc]
        request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        make, wrap, handler = (
            (_stream_method, streaming, grpc.unary_stream_rpc_method_handler)
            if method.server_streaming
            else (_unary_method, unary, grpc.unary_unary_rpc_method_handler)
        )
        call: Callable[..., Any] = make(operation, method, response)
        call.__name__ = operation.rpc  # metrics and the access log use it
        bound = wrap(call).__get__(servicer)
        handlers[operation.rpc] = handler(
            bound, request_deserializer=request.FromString, response_serializer=response.SerializeToString
        )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))


def _unary_method(operation: Operation, method: MethodDescriptor, response: type[Any]) -> Callable[..., Any]:
    async def call(self: InferenceServicer, request: Any, timeout_s: float | None) -> Any:
        options = check(operation.request, converters.options(request))
        context = RequestContext(self.state.app_state.inference, timeout_s=timeout_s)
        outcome = await operation.run(context, converters.source(request), options)
        return response(**converters.response_fields(outcome, options))

    return call


def _stream_method(operation: Operation, method: MethodDescriptor, event: type[Any]) -> Callable[..., Any]:
    """A method that streams mask updates while it computes; its last event, ``finished``, has the response."""
    finished = GetMessageClass(method.output_type.fields_by_name["finished"].message_type)

    async def call(self: InferenceServicer, request: Any, timeout_s: float | None) -> AsyncIterator[Any]:
        options = check(operation.request, converters.options(request))
        queue: asyncio.Queue[MaskUpdate | None] = asyncio.Queue()
        context = RequestContext(
            self.state.app_state.inference, timeout_s=timeout_s, progress=ProgressSink(on_masks=queue.put_nowait)
        )
        computing = asyncio.ensure_future(operation.run(context, converters.source(request), options))
        computing.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            while (update := await queue.get()) is not None:
                for one in converters.mask_update_events(update):
                    yield event(**one)
            outcome = computing.result()
        finally:
            computing.cancel()
        yield event(finished=await asyncio.to_thread(lambda: finished(**converters.response_fields(outcome, options))))

    return call
