"""Makes the methods of both clients from one description of each operation."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import aclosing, closing
from functools import update_wrapper
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from ekiben._client.requests import AsyncTransport, ClientRequest, Steps, Transport

P = ParamSpec("P")
T = TypeVar("T")


class SyncRunner(Protocol):
    """The part of ``Client`` that bound methods use."""

    _transport: Transport

    def _run(self, steps: Steps[T]) -> T: ...


class AsyncRunner(Protocol):
    """The part of ``AsyncClient`` that bound methods use."""

    _transport: AsyncTransport

    async def _run(self, steps: Steps[T]) -> T: ...


def threaded(steps: Callable[P, Steps[T]]) -> Callable[Concatenate[SyncRunner, P], T]:
    """An operation as a method of ``Client``."""

    def method(self: SyncRunner, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(steps(*args, **kwargs))

    _name(method, steps)
    return method


def awaited(steps: Callable[P, Steps[T]]) -> Callable[Concatenate[AsyncRunner, P], Coroutine[Any, Any, T]]:
    """An operation as a method of ``AsyncClient``."""

    async def method(self: AsyncRunner, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(steps(*args, **kwargs))

    _name(method, steps)
    return method


def iterated(
    make_request: Callable[P, ClientRequest], read: Callable[[dict[str, Any]], T]
) -> Callable[Concatenate[SyncRunner, P], Iterator[T]]:
    """A streaming request as a method of ``Client``; ``read`` converts each message."""

    def method(self: SyncRunner, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        def pieces() -> Generator[T]:
            with closing(self._transport.stream(request)) as messages:
                for message in messages:
                    if message is not None:
                        yield read(message)

        request = make_request(*args, **kwargs)
        return pieces()

    _name(method, make_request)
    return method


def iterated_async(
    make_request: Callable[P, ClientRequest], read: Callable[[dict[str, Any]], T]
) -> Callable[Concatenate[AsyncRunner, P], AsyncIterator[T]]:
    """A streaming request as a method of ``AsyncClient``; ``read`` converts each message."""

    def method(self: AsyncRunner, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        async def pieces() -> AsyncGenerator[T]:
            async with aclosing(self._transport.stream(request)) as messages:
                async for message in messages:
                    if message is not None:
                        yield read(message)

        request = make_request(*args, **kwargs)
        return pieces()

    _name(method, make_request)
    return method


def _name(method: Any, described: Callable[..., Any]) -> None:
    """Give the method the name, docstring and signature of the operation, for ``help`` and notebooks."""
    update_wrapper(method, described)
    del method.__wrapped__
    signature = inspect.signature(described)
    returned = str(signature.return_annotation).removeprefix("Steps[").removesuffix("]")
    self_parameter = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    method.__signature__ = signature.replace(
        parameters=[self_parameter, *signature.parameters.values()], return_annotation=returned
    )
