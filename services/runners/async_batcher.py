"""The batcher from a coroutine: submit an item, wait for its result, leave the queue when the caller is cancelled."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Hashable
from dataclasses import replace
from typing import Any, TypeVar, cast

from ekiben.errors import DeadlineExceeded
from models.engine.batch_run import Item, RawOutput
from models.engine.batcher import Batcher, ModelQueue
from models.engine.engine import Engine
from models.engine.loaded_model import LoadedModel
from models.results import Timing
from services.concurrency.memory_budget import MemoryLease
from services.concurrency.slow_threads import SlowThreads, call_on_loop

P = TypeVar("P")
R = TypeVar("R")


class AsyncBatcher:
    """Submits items to a batcher, and releases the engine's leases.

    ``break_off``: a run of the network is aborted when all its callers have left. Gateways let it finish: a person who
    leaves often sends the image again. Workers abort it: cancelled jobs do not come back.
    """

    def __init__(self, batcher: Batcher, engine: Engine[LoadedModel], *, break_off: bool = False) -> None:
        self.batcher = batcher
        self._engine = engine
        self._break_off = break_off
        self.slow_threads = SlowThreads(batcher.threads)

    async def submit(
        self, queue: ModelQueue[P, R], loaded: LoadedModel, payload: P, size: int, deadline: float
    ) -> tuple[R, Timing]:
        """The result for ``payload``, which has ``size`` bytes. Takes over one lease on ``loaded``.

        DeadlineExceeded once ``deadline`` (``time.monotonic()`` seconds) has passed; the item is not computed then,
        nor when the call is cancelled.
        """
        item: Item[P, R] = Item(payload, size, deadline, _unset)
        result, timing = await self._submit(queue, loaded, item, None)
        return cast(R, result), timing

    async def submit_slow(
        self, queue: ModelQueue[P, R], loaded: LoadedModel, payload: P, deadline: float, memory: MemoryLease
    ) -> tuple[R, Timing]:
        """As ``submit``, of an image that is slow to decode: no other waits for it.

        It is prepared and finished by threads of their own; only its run is in a batch with others. What goes on when
        the caller has left takes part in ``memory``.
        """
        arrived = time.perf_counter()
        began = ended = arrived

        def prepare() -> tuple[Hashable, Any]:
            nonlocal began, ended
            began = time.perf_counter()
            prepared = queue.work.prepare(payload)
            ended = time.perf_counter()
            return prepared

        try:
            prepared = await self.slow_threads.run(prepare, deadline, memory)
        except BaseException:
            self._engine.release(loaded)
            raise
        item: Item[P, R] = Item(payload, 0, deadline, _unset, prepared=prepared)
        item.waited_ms, item.prepare_ms = (began - arrived) * 1e3, (ended - began) * 1e3
        raw, timing = await self._submit(queue, loaded, item, memory)
        if not isinstance(raw, RawOutput):
            raise TypeError("an item that was prepared is answered with the output of its run")
        began = time.perf_counter()
        result = await self.slow_threads.run(
            lambda: queue.work.finish(raw.output, raw.prepared, payload), deadline, memory
        )
        return result, replace(timing, finish_ms=(time.perf_counter() - began) * 1e3)

    def release_on_loop(self, loaded: LoadedModel) -> None:
        """End a lease without blocking the event loop: closing a model, after the last one, frees gigabytes."""
        if loaded.detached:
            threading.Thread(target=self._engine.release, args=(loaded,), name="unload", daemon=True).start()
        else:
            self._engine.release(loaded)

    def close(self) -> None:
        """Begin no more work on slow images."""
        self.slow_threads.close()

    async def _submit(
        self, queue: ModelQueue[P, Any], loaded: LoadedModel, item: Item[P, Any], memory: MemoryLease | None
    ) -> tuple[Any, Timing]:
        """The result of a queued item, or its RawOutput."""
        if time.monotonic() > item.deadline:
            self._engine.release(loaded)
            raise DeadlineExceeded("the request took longer than its deadline", retry_after_s=1)
        loop, loop_thread = asyncio.get_running_loop(), threading.get_ident()
        future: asyncio.Future[tuple[Any, Timing]] = loop.create_future()

        def settle(result: Any, timing: Timing | None, error: BaseException | None) -> None:
            # Called exactly once: the lease ends with the computation, also of a caller who left. In a thread of the
            # batcher, or on the loop, of an item that is left while it waits.
            try:
                if threading.get_ident() == loop_thread:
                    self.release_on_loop(loaded)
                else:
                    self._engine.release(loaded)
            finally:
                call_on_loop(loop, _settle, future, result, timing, error, memory)

        item.answer = settle
        if memory is not None:
            memory.share()
        try:
            self.batcher.submit(queue, item)
        except BaseException:
            self._engine.release(loaded)
            if memory is not None:
                memory.end()
            raise
        try:
            async with asyncio.timeout_at(loop.time() + item.deadline - time.monotonic()):
                return await future
        except TimeoutError:
            item.leave(break_off=self._break_off)
            raise DeadlineExceeded("the request took longer than its deadline", retry_after_s=1) from None
        except asyncio.CancelledError:
            item.leave(break_off=self._break_off)
            raise


def _settle(
    future: asyncio.Future[tuple[Any, Timing]],
    result: Any,
    timing: Timing | None,
    error: BaseException | None,
    memory: MemoryLease | None,
) -> None:
    if memory is not None:
        memory.end()
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    elif result is not None and timing is not None:
        future.set_result((result, timing))


def _unset(result: object, timing: Timing | None, error: BaseException | None) -> None:
    raise RuntimeError("an item was answered before it was submitted")
