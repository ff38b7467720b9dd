"""Wrappers of every gRPC method: request id, deadline, admission, errors, metrics and access log."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from ekiben.errors import BadInput, CallerLeft, Refusal, Temporary, Unavailable
from ekiben.ids import new_id
from ekiben.logs import request_id
from services import metrics
from services.app_state import AppState
from services.concurrency.byte_budget import ByteBudget
from services.error_codes import code_and_message, grpc_code_of, presentable

log = logging.getLogger("ekiben.access")

REQUEST_ID = "x-request-id"
_DETAILS = "grpc-status-details-bin"
_GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_MAX_MESSAGE = 1500
"""Characters of an error message: it is sent twice in headers, of which clients accept 8 KB."""

RpcContext = Any  # grpc.aio.ServicerContext, which has no types
S = TypeVar("S", bound="Servicer")
R = TypeVar("R", bound=Message)
A = TypeVar("A")


class ActiveCalls:
    """Counts the calls in progress; after ``refuse_more`` no new ones are admitted."""

    def __init__(self) -> None:
        self.stopped = asyncio.Event()
        self.ended = 0.0
        """When the last call ended, by ``time.monotonic()``."""
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    @property
    def stopping(self) -> bool:
        """Whether new calls are refused."""
        return self.stopped.is_set()

    def refuse_more(self) -> None:
        """Refuse new calls from now on."""
        self.stopped.set()

    async def over(self) -> None:
        """Return when no call is in progress."""
        await self._none.wait()

    def begin(self) -> None:
        """Count a call."""
        self._count += 1
        self._none.clear()

    def end(self) -> None:
        """A call has ended."""
        self._count -= 1
        self.ended = time.monotonic()
        if not self._count:
            self._none.set()


@dataclass(frozen=True, slots=True)
class ServicerState:
    """What the gRPC methods of one process share. ``budget`` bounds the bytes of their requests."""

    app_state: AppState
    budget: ByteBudget
    access_log: bool = False
    calls: ActiveCalls = field(default_factory=ActiveCalls)


class Servicer(Protocol):
    """A gRPC service. Its methods take the request and the seconds that the caller waits, or None."""

    state: ServicerState


def unary(
    method: Callable[[S, R, float | None], Awaitable[A]],
) -> Callable[[S, R, RpcContext], Awaitable[A]]:
    """The gRPC handler of a method with one response."""

    @functools.wraps(method)
    async def handler(self: S, request: R, context: RpcContext) -> A:
        with _Call(self.state, context, _path(self, method.__name__), _any_time(self)) as call:
            try:
                call.admit()
                with self.state.budget.lease(request.ByteSize()):
                    result = await method(self, request, call.timeout_s)
            except Exception as error:
                await call.refuse(error)
                raise
            call.code = "OK"
            return result

    return handler


def streaming(
    method: Callable[[S, R, float | None], AsyncIterator[A]],
) -> Callable[[S, R, RpcContext], AsyncIterator[A]]:
    """The gRPC handler of a method with a stream of responses."""

    @functools.wraps(method)
    async def handler(self: S, request: R, context: RpcContext) -> AsyncIterator[A]:
        with _Call(self.state, context, _path(self, method.__name__), _any_time(self)) as call:
            try:
                call.admit()
                with self.state.budget.lease(request.ByteSize()):
                    async for one in method(self, request, call.timeout_s):
                        yield one
            except Exception as error:
                await call.refuse(error)
                raise
            call.code = "OK"

    return handler


class _Call:
    """One call, as a context manager: sets the request id, counts it, writes metrics and the access log line."""

    def __init__(self, state: ServicerState, context: RpcContext, method: str, any_time: bool = False) -> None:
        self._state = state
        self._context = context
        self._any_time = any_time
        self._method = method
        self.code = "CANCELLED"
        left = context.time_remaining()
        # Without a deadline some versions of grpc return None, others centuries.
        self.timeout_s: float | None = left if left is not None and left < 1e6 else None
        self._id = _id_of(context)

    def __enter__(self) -> _Call:
        self._started = time.perf_counter()
        self._token = request_id.set(self._id)
        self._context.set_trailing_metadata(((REQUEST_ID, self._id),))
        metrics.in_progress.inc()
        self._state.calls.begin()
        return self

    def admit(self) -> None:
        """Unavailable when this process is stopping: the caller may try another one."""
        if self._state.calls.stopping and not self._any_time:
            raise Unavailable("the server is stopping", code="stopping", retry_after_s=5)

    def __exit__(self, *_: object) -> None:
        seconds = time.perf_counter() - self._started
        self._state.calls.end()
        metrics.in_progress.dec()
        metrics.requests.labels("gRPC", self._method, self.code).inc()
        metrics.request_seconds.labels(self._method).observe(seconds)
        if self._state.access_log:
            info = {"method": "gRPC", "path": self._method, "route": self._method, "status": self.code}
            log.info("request", extra={**info, "ms": round(seconds * 1e3, 2), "client": self._context.peer()})
        with contextlib.suppress(ValueError):  # an abandoned stream is closed in another context
            request_id.reset(self._token)

    async def refuse(self, error: BaseException) -> None:
        """Abort the call with the code and the details of ``error``; raises."""
        if isinstance(error, grpc.aio.AbortError):
            raise error
        error = presentable(error)
        reason, message = code_and_message(error)
        self.code = grpc_code_of(error) if isinstance(error, Refusal) else "INTERNAL"
        message = message[:_MAX_MESSAGE]
        status = Status(code=grpc.StatusCode[self.code].value[0], message=message)
        metadata = {"request_id": self._id}
        if isinstance(error, Temporary) and error.job_id is not None:
            metadata["job_id"] = error.job_id
        _add(status, ErrorInfo(reason=reason, domain="ekiben", metadata=metadata))
        if isinstance(error, Temporary) and not isinstance(error, CallerLeft):
            _add(status, RetryInfo(retry_delay=Duration(seconds=error.retry_after_s or 1)))
        trailing = ((REQUEST_ID, self._id), (_DETAILS, status.SerializeToString()))
        await self._context.abort(grpc.StatusCode[self.code], message, trailing)


async def refuse_call(state: ServicerState, context: RpcContext, method: str, error: Exception) -> None:
    """Abort a call that no servicer has seen. ``method``: /package.Service/Method, one that exists. Raises."""
    with _Call(state, context, method) as call:
        log.warning("refused", extra={"method": method, "reason": str(error), "client": context.peer()})
        await call.refuse(error)


def _path(servicer: Servicer, method: str) -> str:
    return f"/{getattr(servicer, 'NAME', type(servicer).__name__)}/{method}"


def _any_time(servicer: Servicer) -> bool:
    return bool(getattr(servicer, "WHILE_STOPPING", False))


def _add(status: Status, detail: Message) -> None:
    packed = AnyMessage()
    packed.Pack(detail)
    status.details.append(packed)


def _id_of(context: RpcContext) -> str:
    for name, value in context.invocation_metadata() or ():
        if name == REQUEST_ID and isinstance(value, str) and _GIVEN_ID.fullmatch(value):
            return value
    return new_id()


def required(value: str, what: str) -> str:
    """``value``. BadInput where it is empty; ``what`` names it."""
    if not value:
        raise BadInput(f"{what} is missing")
    return value
