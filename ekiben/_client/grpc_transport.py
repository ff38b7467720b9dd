"""Sends requests over gRPC, from threads and event loops; messages become dicts as in the JSON of /v1."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from ekiben._client.errors import BEFORE_ANY_WORK, EkibenError, TimedOut, Unreachable
from ekiben._client.image_inputs import FileSource
from ekiben._client.requests import ClientRequest
from ekiben.v1 import ekiben_pb2

_OPTIONS = [
    ("grpc.max_send_message_length", -1),  # the server has a limit and refuses with a reason
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5000),
]
_DETAILS = "grpc-status-details-bin"
# grpc reports UNAVAILABLE also for a connection lost during a request; only these messages mean that nothing was sent.
_NOT_CONNECTED = ("failed to connect", "connections to all backends failing", "dns resolution failed")


class GrpcTransport:
    """A transport over one gRPC channel. ``target``: host:port; ``ca``: certificates to trust, with ``tls``."""

    def __init__(self, target: str, timeout_s: float, headers: Mapping[str, str], tls: bool, ca: Path | None) -> None:
        self._timeout_s, self._metadata = timeout_s, _metadata(headers)
        self._channel = (
            grpc.secure_channel(target, _credentials(ca), _OPTIONS) if tls else grpc.insecure_channel(target, _OPTIONS)
        )

    def send(self, request: ClientRequest) -> Any:
        """Send a request and return what it reads from the response."""
        call, message, streams = _call(self._channel, request)
        with refusals():
            answer = call(message, timeout=_timeout(request, self._timeout_s), metadata=self._metadata)
            return _reply(request, [to_dict(each) for each in answer] if streams else to_dict(answer))

    def stream(self, request: ClientRequest) -> Generator[dict[str, Any] | None]:
        """Send a request and yield the messages of its response."""
        call, message, _ = _call(self._channel, request)
        with refusals():
            answer = call(message, timeout=_timeout(request, self._timeout_s), metadata=self._metadata)
            try:
                for each in answer:
                    yield to_dict(each)
            finally:
                answer.cancel()

    def close(self) -> None:
        """Close the connections."""
        self._channel.close()


class AsyncGrpcTransport:
    """A transport over one gRPC channel, for event loops; arguments as for ``GrpcTransport``."""

    def __init__(self, target: str, timeout_s: float, headers: Mapping[str, str], tls: bool, ca: Path | None) -> None:
        self._timeout_s, self._metadata = timeout_s, _metadata(headers)
        self._target, self._tls, self._ca = target, tls, ca
        self._opened: grpc.aio.Channel | None = None

    @property
    def _channel(self) -> grpc.aio.Channel:
        """Opened by the first request: a channel belongs to the event loop that runs when it is opened."""
        if self._opened is None:
            self._opened = (
                grpc.aio.secure_channel(self._target, _credentials(self._ca), _OPTIONS)
                if self._tls
                else grpc.aio.insecure_channel(self._target, _OPTIONS)
            )
        return self._opened

    async def send(self, request: ClientRequest) -> Any:
        """Send a request and return what it reads from the response."""
        call, message, streams = _call(self._channel, request)
        with refusals():
            answer = call(message, timeout=_timeout(request, self._timeout_s), metadata=self._metadata)
            return _reply(request, [to_dict(each) async for each in answer] if streams else to_dict(await answer))

    async def stream(self, request: ClientRequest) -> AsyncGenerator[dict[str, Any] | None]:
        """Send a request and yield the messages of its response."""
        call, message, _ = _call(self._channel, request)
        with refusals():
            answer = call(message, timeout=_timeout(request, self._timeout_s), metadata=self._metadata)
            try:
                async for each in answer:
                    yield to_dict(each)
            finally:
                answer.cancel()

    async def close(self) -> None:
        """Close the connections."""
        if self._opened is not None:
            await self._opened.close()
            self._opened = None


@contextmanager
def refusals() -> Iterator[None]:
    """Raise grpc's errors as EkibenError."""
    try:
        yield
    except (grpc.RpcError, grpc.aio.AioRpcError) as error:
        raise _error(error) from None


@cache
def _method(service: str, name: str) -> MethodDescriptor:
    return ekiben_pb2.DESCRIPTOR.services_by_name[service].methods_by_name[name]


def _call(channel: Any, request: ClientRequest) -> tuple[Callable[..., Any], Message, bool]:
    """The method to call, its message, and whether the response is a stream."""
    if request.rpc is None:
        raise EkibenError("this goes over HTTP only: connect to http://...", code="http_only")
    method = _method(request.rpc.service, request.rpc.method)
    try:
        message = GetMessageClass(method.input_type)(**_loaded(request.rpc.body))
    except (TypeError, ValueError) as error:
        raise EkibenError(str(error), code="bad_request") from error
    make = channel.unary_stream if method.server_streaming else channel.unary_unary
    call = make(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=type(message).SerializeToString,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    return call, message, method.server_streaming


def _loaded(body: Mapping[str, Any]) -> dict[str, Any]:
    """``body`` with the bytes of its files."""
    return {
        name: value.data() if isinstance(value, FileSource) else _loaded(value) if isinstance(value, Mapping) else value
        for name, value in body.items()
    }


def _reply(request: ClientRequest, answer: Any) -> Any:
    return request.rpc.gather(answer) if request.rpc is not None and request.rpc.gather is not None else answer


def _timeout(request: ClientRequest, timeout_s: float) -> float:
    return request.timeout_s if request.timeout_s is not None else timeout_s


def _metadata(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((name.lower(), value) for name, value in headers.items())


def _credentials(ca: Path | None) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(root_certificates=ca.read_bytes() if ca is not None else None)


def to_dict(message: Any) -> dict[str, Any]:
    """A message as a dict, as in the JSON of /v1: None for absent fields; bytes stay bytes."""
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields}


def _field(message: Any, field: FieldDescriptor) -> Any:
    value = getattr(message, field.name)
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        return dict(value) or (None if field.name == "artifacts" else {})
    if field.is_repeated:
        return [_message(one) for one in value] if kind is not None else list(value)
    if field.has_presence and not message.HasField(field.name):
        return None
    return _message(value) if kind is not None else value


def _message(message: Any) -> Any:
    """A message as a value; some have another shape in the JSON of /v1."""
    name = message.DESCRIPTOR.full_name
    if name == "google.protobuf.Struct":
        return _whole(MessageToDict(message))
    if name == "ekiben.v1.Point2":
        return [message.x, message.y]
    if name == "ekiben.v1.Segmentation":
        chosen = message.WhichOneof("format")
        value = getattr(message, chosen) if chosen else None
        return value if value is None or isinstance(value, str) else _message(value)
    return to_dict(message)


def _whole(value: Any) -> Any:
    """A Struct has floats alone: whole numbers become int again."""
    if isinstance(value, dict):
        return {name: _whole(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_whole(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _error(error: Any) -> EkibenError:
    status, message = error.code(), error.details() or ""
    reason, request_id, retry_after_s = None, None, None
    for name, value in error.trailing_metadata() or ():
        if name == _DETAILS:
            reason, request_id, retry_after_s = _details(value)
        elif name == "x-request-id" and request_id is None:
            request_id = value
    kind, safe = EkibenError, retry_after_s is not None and reason in BEFORE_ANY_WORK
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        kind = TimedOut
    elif status is grpc.StatusCode.UNAVAILABLE and reason is None:
        kind, reason, safe = Unreachable, "unreachable", message.lower().startswith(_NOT_CONNECTED)
    return kind(
        message,
        code=reason or status.name.lower(),
        status=status.name,
        request_id=request_id,
        retry_after_s=retry_after_s,
        safe_to_retry=safe,
    )


def _details(value: bytes) -> tuple[str | None, str | None, float | None]:
    """Code, request id and retry_after_s from google.rpc's status details."""
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    status = status_pb2.Status.FromString(value)
    found = [each.Unpack(info) or each.Unpack(retry) for each in status.details]
    after = retry.retry_delay.ToTimedelta().total_seconds() if retry.HasField("retry_delay") else None
    return (info.reason or None, info.metadata.get("request_id"), after) if found else (None, None, None)
