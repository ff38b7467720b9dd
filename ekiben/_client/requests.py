"""Requests for both protocols, operations as generators of requests, transports, and the retry policy."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np

from ekiben._client.errors import EkibenError, TimedOut, Unreachable
from ekiben._client.image_inputs import FileSource

T = TypeVar("T")

_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True)
class Rpc:
    """A request over gRPC: a method of a service of ``ekiben.v1`` and the fields of its message.

    ``gather``: makes the reply from the response, or from the list of messages of a streaming method.
    """

    service: str
    method: str
    body: Mapping[str, Any] = field(default_factory=dict)
    gather: Callable[[Any], Any] | None = None


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """A request. Over HTTP ``query``, and as the body ``json`` or a form of ``fields`` and ``files``.

    ``read``: makes the reply from the body. ``into``: file to write the body to. ``repeatable``: sending it twice has
    no further effect. ``timeout_s``: instead of the client's. Without ``path`` or without ``rpc`` the request cannot be
    sent over HTTP or over gRPC.
    """

    method: str = "GET"
    path: str = ""
    query: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] | None = None
    files: tuple[tuple[str, FileSource], ...] = ()
    json: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    read: Callable[[bytes], Any] = lambda body: json.loads(body) if body else None
    into: Path | None = None
    rpc: Rpc | None = None
    repeatable: bool = False
    timeout_s: float | None = None


Steps: TypeAlias = Generator[ClientRequest, Any, T]
"""An operation: a generator that yields requests, is sent their replies, and returns its result. It does no I/O."""


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """The result of an operation that has ended."""

    answer: T


def advance(steps: Steps[T], reply: Any) -> ClientRequest | Done[T]:
    """The next request of an operation, or its result.

    Encodes and decodes images, so it must not run on an event loop.
    """
    try:
        return steps.send(reply)
    except StopIteration as end:
        return Done(end.value)


class Transport(Protocol):
    """Sends requests, from threads. Raises EkibenError."""

    def send(self, request: ClientRequest) -> Any:
        """Send a request and return its reply."""

    def stream(self, request: ClientRequest) -> Generator[dict[str, Any] | None]:
        """Send a request and yield the messages of its response; None at intervals without a message."""

    def close(self) -> None:
        """Close the connections."""


class AsyncTransport(Protocol):
    """``Transport`` for event loops."""

    async def send(self, request: ClientRequest) -> Any:
        """Send a request and return its reply."""

    def stream(self, request: ClientRequest) -> AsyncGenerator[dict[str, Any] | None]:
        """Send a request and yield the messages of its response; None at intervals without a message."""

    async def close(self) -> None:
        """Close the connections."""


class RetryPolicy:
    """Decides whether a request is sent again. An inference that may have been computed is not.

    ``retries``: largest number of further attempts. Pauses double from 0.25 s unless the server sets them.
    """

    def __init__(self, request: ClientRequest, retries: int) -> None:
        self._repeatable = request.repeatable or request.method == "GET"
        self._left = retries
        self._made = 0

    def pause_s(self, error: EkibenError) -> float:
        """Seconds to wait before the next attempt. Raises ``error`` when there is none."""
        temporary = isinstance(error, Unreachable) or (
            error.retry_after_s is not None and not isinstance(error, TimedOut)
        )
        safe = error.safe_to_retry or (self._repeatable and temporary)
        pause = error.retry_after_s if error.retry_after_s is not None else _FIRST_PAUSE_S * 2**self._made
        if not safe or self._made >= self._left or pause > _LONGEST_PAUSE_S:
            raise error
        self._made += 1
        return pause * (1 + random.random() / 4)  # clients that were refused together must not return together


def plain(value: Any) -> Any:
    """``value`` with numpy numbers, arrays and tuples as Python numbers and lists."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def given(**options: Any) -> dict[str, Any]:
    """The options that are not None, as plain values."""
    return {name: plain(value) for name, value in options.items() if value is not None}


def one_id(thing: Any) -> str:
    """The id in a string, which is an id or a URL that ends with it, or of a record.

    Raises ValueError without an id.
    """
    text = thing if isinstance(thing, str) else thing.id
    if not text:
        raise ValueError("it was not stored: it has no id")
    return str(text).rstrip("/").rpartition("/")[2]
