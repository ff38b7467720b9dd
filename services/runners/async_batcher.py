"""The batcher from a coroutine: submit an item, wait for its result, leave the queue when the caller is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TypeVar

from ekiben.errors import DeadlineExceeded
from models.engine.batch_run import Item
from models.engine.batcher import Batcher, ModelQueue
from models.engine.engine import Engine
from models.engine.loaded_model import LoadedModel
from models.results import Timing

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

    async def submit(
        self, queue: ModelQueue[P, R], loaded: LoadedModel, payload: P, size: int, deadline: float
    ) -> tuple[R, Timing]:
        """The result for ``payload``, which has ``size`` bytes. Takes over one lease on ``loaded``.

        DeadlineExceeded once ``deadline`` (``time.monotonic()`` seconds) has passed; the item is not computed then,
        nor when the call is cancelled.
        """
        if time.monotonic() > deadline:
            self._engine.release(loaded)
            raise DeadlineExceeded("the request took longer than its deadline", retry_after_s=1)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[R, Timing]] = loop.create_future()

        def settle(result: R | None, timing: Timing | None, error: BaseException | None) -> None:
            # Called in a thread of the batcher, exactly once: the lease ends with the computation, also of a caller who
            # left.
            self._engine.release(loaded)
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server stopped without this caller
                loop.call_soon_threadsafe(_settle, future, result, timing, error)

        item: Item[P, R] = Item(payload, size, deadline, settle)
        try:
            self.batcher.submit(queue, item)
        except BaseException:
            self._engine.release(loaded)
            raise
        try:
            async with asyncio.timeout_at(loop.time() + deadline - time.monotonic()):
                return await future
        except TimeoutError:
            item.leave(break_off=self._break_off)
            raise DeadlineExceeded("the request took longer than its deadline", retry_after_s=1) from None
        except asyncio.CancelledError:
            item.leave(break_off=self._break_off)
            raise


def _settle(
    future: asyncio.Future[tuple[R, Timing]], result: R | None, timing: Timing | None, error: BaseException | None
) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    elif result is not None and timing is not None:
        future.set_result((result, timing))
