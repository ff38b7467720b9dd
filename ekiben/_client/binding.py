"""Methods of the two clients out of one description of each operation."""

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
    """What ``Client`` gives to its bound methods."""

    _transport: Transport

    def _run(self, steps: Steps[T]) -> T: ...


class AsyncRunner(Protocol):
    """What ``AsyncClient`` gives to its bound methods."""

    _transport: AsyncTransport

    async def _run(self, steps: Steps[T]) -> T: ...


def threaded(steps: Callable[P, Steps[T]]) -> Callable[Concatenate[SyncRunner, P], T]:
    """An operation as a method of ``Client``."""

    def method(self: SyncRunner, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(steps(*args, **kwargs))

    _name(method, steps)
    return method


def awaited(steps: Callable[P, Steps[T]]) -> Callable[Concatenate[AsyncRunner, P], Coroutine[Any, Any, T]]:
    """The same as a method of ``AsyncClient``."""

    async def method(self: AsyncRunner, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(steps(*args, **kwargs))

    _name(method, steps)
    return method


def iterated(
    requested: Callable[P, ClientRequest], read: Callable[[dict[str, Any]], T]
) -> Callable[Concatenate[SyncRunner, P], Iterator[T]]:
    """What is answered piece by piece, as a method of ``Client``."""

    def method(self: SyncRunner, /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        def pieces() -> Generator[T]:
            with closing(self._transport.stream(request)) as told:
                for one in told:
                    if one is not None:
                        yield read(one)

        request = requested(*args, **kwargs)
        return pieces()

    _name(method, requested)
    return method


def iterated_async(
    requested: Callable[P, ClientRequest], read: Callable[[dict[str, Any]], T]
) -> Callable[Concatenate[AsyncRunner, P], AsyncIterator[T]]:
    """The same as a method of ``AsyncClient``."""

    def method(self: AsyncRunner, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        async def pieces() -> AsyncGenerator[T]:
            async with aclosing(self._transport.stream(request)) as told:
                async for one in told:
                    if one is not None:
                        yield read(one)

        request = requested(*args, **kwargs)
        return pieces()

    _name(method, requested)
    return method


def _name(method: Any, described: Callable[..., Any]) -> None:
    """With the name, the documentation and the signature of what it does: ``help`` and notebooks show them."""
    update_wrapper(method, described)
    del method.__wrapped__
    signature = inspect.signature(described)
    returned = str(signature.return_annotation).removeprefix("Steps[").removesuffix("]")
    myself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    method.__signature__ = signature.replace(
        parameters=[myself, *signature.parameters.values()], return_annotation=returned
    )
