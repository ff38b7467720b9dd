"""Parses the messages of every gRPC method: bytes that are none are a refusal, and not a failure of the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from ekiben.errors import BadInput
from services.rpc.message_fields import count_fields
from services.rpc.method_wrappers import RpcContext, ServicerState, refuse_call

Handler = Any  # grpc.RpcMethodHandler, which has no types
Parse = Callable[[bytes], Any]


MAX_FIELDS = 200_000
"""Fields of a message, with those of the messages in it. 65 MB may hold 33 million, which take 3 GB and seconds to
parse, and protobuf holds the interpreter's lock meanwhile, also in a thread. So many take 20 ms and 20 MB."""

_SMALL = 64 * 1024  # bytes, which cannot hold more than 33,000 fields
_FEW = 1000  # counted in a millisecond


async def _has_too_many_fields(data: bytes, parse: Parse) -> bool:
    descriptor = getattr(getattr(parse, "__self__", None), "DESCRIPTOR", None)
    if len(data) <= _SMALL or descriptor is None or count_fields(data, descriptor, _FEW) <= _FEW:
        return False
    return await asyncio.to_thread(count_fields, data, descriptor, MAX_FIELDS) > MAX_FIELDS


class MessageParser(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Takes the parsing of requests out of grpc, which answers INTERNAL and logs a traceback for what cannot be parsed.

    The caller gets INVALID_ARGUMENT with the reason ``bad_request``, the log one line. A message of more than
    MAX_FIELDS fields is refused before it is parsed.
    """

    def __init__(self, state: ServicerState) -> None:
        self._state = state
        self._handlers: dict[str, Handler] = {}  # by method; only of those that exist

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Handler]], details: Any) -> Handler:
        """The handler of a call, which gets bytes and parses them. grpc calls it once for each call."""
        if (known := self._handlers.get(details.method)) is not None:
            return known
        found = await continuation(details)
        if found is None or found.request_deserializer is None:
            return found
        made = self._parsing(found, details.method)
        self._handlers[details.method] = made
        return made

    def _parsing(self, handler: Handler, method: str) -> Handler:
        parse: Parse = handler.request_deserializer

        async def parsed(data: bytes, context: RpcContext) -> Any:
            if await _has_too_many_fields(data, parse):
                wrong = BadInput(f"the {len(data)} bytes are a message of more than {MAX_FIELDS} fields")
            else:
                try:
                    return parse(data)
                except Exception as error:  # DecodeError of protobuf; a message that is nested too deeply, too
                    kind = type(error).__name__
                    wrong = BadInput(f"the {len(data)} bytes are not a message that {method} takes ({kind})")
            await refuse_call(self._state, context, method, wrong)

        async def each(messages: AsyncIterator[bytes], context: RpcContext) -> AsyncIterator[Any]:
            async for data in messages:
                yield await parsed(data, context)

        # What is streamed is iterated, what is not is awaited: four kinds of handlers.
        if handler.request_streaming and handler.response_streaming:

            async def stream_stream(messages: AsyncIterator[bytes], context: RpcContext) -> AsyncIterator[Any]:
                async for answer in handler.stream_stream(each(messages, context), context):
                    yield answer

            return grpc.stream_stream_rpc_method_handler(stream_stream, None, handler.response_serializer)
        if handler.request_streaming:

            async def stream_unary(messages: AsyncIterator[bytes], context: RpcContext) -> Any:
                return await handler.stream_unary(each(messages, context), context)

            return grpc.stream_unary_rpc_method_handler(stream_unary, None, handler.response_serializer)
        if handler.response_streaming:

            async def unary_stream(data: bytes, context: RpcContext) -> AsyncIterator[Any]:
                async for answer in handler.unary_stream(await parsed(data, context), context):
                    yield answer

            return grpc.unary_stream_rpc_method_handler(unary_stream, None, handler.response_serializer)

        async def unary_unary(data: bytes, context: RpcContext) -> Any:
            return await handler.unary_unary(await parsed(data, context), context)

        return grpc.unary_unary_rpc_method_handler(unary_unary, None, handler.response_serializer)
