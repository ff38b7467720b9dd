"""What an operation asks of a server, said once for both protocols; when it is asked again; who carries it."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np

from ekiben._client.errors import EkibenError, TimedOut, Unreachable
from ekiben._client.image_inputs import File

T = TypeVar("T")

_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True)
class Rpc:
    """The same over gRPC: a method of a service of ``ekiben.v1`` and the fields of its request.

    ``gather``: the reply out of the answer, or of a method that streams out of the list of its messages.
    """

    service: str
    method: str
    body: Mapping[str, Any] = field(default_factory=dict)
    gather: Callable[[Any], Any] | None = None


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """One request. Over HTTP the ``query``, and as body ``json`` or a form of ``fields`` and ``files``.

    ``read``: the reply out of the body. ``into``: the body goes into this file. ``repeatable``: asking twice does no
    more than asking once. ``timeout_s``: where it is not the client's. No ``path``, no ``rpc``: not over that protocol.
    """

    method: str = "GET"
    path: str = ""
    query: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] | None = None
    files: tuple[tuple[str, File], ...] = ()
    json: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    read: Callable[[bytes], Any] = lambda body: json.loads(body) if body else None
    into: Path | None = None
    rpc: Rpc | None = None
    repeatable: bool = False
    timeout_s: float | None = None


Steps: TypeAlias = Generator[ClientRequest, Any, T]
"""An operation: it yields what to ask, is sent the reply, and returns its answer. No input or output of its own."""


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """An operation is over."""

    answer: T


def advance(steps: Steps[T], reply: Any) -> ClientRequest | Done[T]:
    """The next request of an operation, or its answer. Encodes and decodes images: not for an event loop."""
    try:
        return steps.send(reply)
    except StopIteration as end:
        return Done(end.value)


class Transport(Protocol):
    """Carries requests for threads that wait. ``stream`` gives None now and then while nothing happens."""

    def send(self, request: ClientRequest) -> Any: ...
    def stream(self, request: ClientRequest) -> Generator[dict[str, Any] | None]: ...
    def close(self) -> None: ...


class AsyncTransport(Protocol):
    """The same on an event loop."""

    async def send(self, request: ClientRequest) -> Any: ...
    def stream(self, request: ClientRequest) -> AsyncGenerator[dict[str, Any] | None]: ...
    async def close(self) -> None: ...


class RetryPolicy:
    """How often one request is tried. An inference that may have been computed is not asked for again."""

    def __init__(self, request: ClientRequest, retries: int) -> None:
        self._repeatable = request.repeatable or request.method == "GET"
        self._left = retries
        self._made = 0

    def pause_s(self, error: EkibenError) -> float:
        """How long to wait before the next try. Raises ``error`` where none is due."""
        for_now = isinstance(error, Unreachable) or (
            error.retry_after_s is not None and not isinstance(error, TimedOut)
        )
        safe = error.safe_to_retry or (self._repeatable and for_now)
        pause = error.retry_after_s if error.retry_after_s is not None else _FIRST_PAUSE_S * 2**self._made
        if not safe or self._made >= self._left or pause > _LONGEST_PAUSE_S:
            raise error
        self._made += 1
        return pause * (1 + random.random() / 4)  # not all who were refused together come back together


def plain(value: Any) -> Any:
    """Numbers and lists of Python: of numpy's, of tuples."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def given(**options: Any) -> dict[str, Any]:
    """The options that are not None."""
    return {name: plain(value) for name, value in options.items() if value is not None}


def one_id(thing: Any) -> str:
    """The id of a thing: itself, or its last part where it is an address; of a record its ``id``."""
    text = thing if isinstance(thing, str) else thing.id
    if not text:
        raise ValueError("it was not stored: it has no id")
    return str(text).rstrip("/").rpartition("/")[2]
