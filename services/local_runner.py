"""The runner in this process: one engine and one batcher. The embedded topology calls it directly."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ekiben.errors import DeadlineExceeded, Unavailable
from ekiben.settings import Settings
from models.asks import Answer, Ask
from models.batcher import Batcher, Item, Lane
from models.engine import Engine, ModelKey, ModelState
from models.loader import Loaded, estimate_bytes, load_artifact
from models.results import Timing
from models.runtime import RuntimeOptions, cores
from models.work import VisionWork
from services import runner_metrics as gauges
from services.runner import Answered


class LocalRunner:
    """An engine and a batcher in this process."""

    def __init__(self, settings: Settings, locate: Callable[[ModelKey], Path]) -> None:
        self._locate = locate
        self._options = RuntimeOptions(settings.device, settings.threads, settings.runtime)
        self.engine = Engine(
            self._open, lambda key: estimate_bytes(locate(key)), settings.model_memory_mb * 1_000_000, self._closed
        )
        self.batcher = Batcher(settings.threads or cores(), settings.queue_mb * 1_000_000, self._ran)
        self._lanes: dict[ModelKey, tuple[Loaded, Lane[Ask, Answer]]] = {}
        self._loads = ThreadPoolExecutor(4, thread_name_prefix="load")
        self._counts: Counter[tuple[ModelKey, str]] = Counter()

    async def infer(self, key: ModelKey, ask: Ask, deadline: float) -> Answered:
        loop = asyncio.get_running_loop()
        loaded = self.engine.try_lease(key)
        if loaded is None:
            loaded = await self._lease_after_load(key, deadline)
        lane = self._lane(key, loaded)
        future: asyncio.Future[Answered] = loop.create_future()

        def answer(result: Answer | None, timing: Timing | None, error: BaseException | None) -> None:
            # On a slot's thread, exactly once: the lease ends with the computation, not with the caller's patience.
            self.engine.release(loaded)
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server stopped without this caller
                loop.call_soon_threadsafe(_settle, future, result, timing, error)

        item: Item[Ask, Answer] = Item(ask, len(ask.image), deadline, answer)
        try:
            self.batcher.submit(lane, item)
        except BaseException:
            self.engine.release(loaded)
            raise
        try:
            async with asyncio.timeout_at(loop.time() + deadline - time.monotonic()):
                answered = await future
        except TimeoutError:
            item.leave()
            raise DeadlineExceeded("the request took longer than its deadline", retry_after_s=1) from None
        except asyncio.CancelledError:
            item.leave()
            raise
        self._counts[key, "predictions"] += 1
        return answered

    async def load(self, key: ModelKey, *, pin: bool = False) -> None:
        await asyncio.get_running_loop().run_in_executor(self._loads, lambda: self.engine.load(key, pin=pin))

    async def unload(self, key: ModelKey) -> bool:
        return await asyncio.get_running_loop().run_in_executor(self._loads, self.engine.unload, key)

    async def states(self) -> list[ModelState]:
        return self.engine.states()

    async def counters(self, key: ModelKey) -> dict[str, int]:
        return {
            "predictions": self._counts[key, "predictions"],
            "batches": self._counts[key, "batches"],
            "loads": next((s.loads for s in self.engine.states() if s.key == key), 0),
            "waiting": self.batcher.depth(key),
            "batch_size": self.batcher.batch_size(key),
        }

    async def metrics_text(self) -> bytes:
        self.observe_gauges()  # they are this process's own: no lines of another one
        return b""

    async def check(self) -> None:
        return None

    async def close(self) -> None:
        await asyncio.to_thread(self.batcher.close)
        self._loads.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self.engine.close)

    def observe_gauges(self) -> None:
        """Refresh the gauges that no request moves."""
        gauges.queue_bytes.set(self.batcher.waiting_bytes)
        gauges.model_budget_bytes.set(self.engine.budget_bytes)
        memory: Counter[str] = Counter()
        depth: Counter[str] = Counter()
        for state in self.engine.states():  # versions of one model are one label
            memory[state.key.name] += state.memory_bytes
            depth[state.key.name] += self.batcher.depth(state.key)
        for name in memory:
            gauges.model_memory_bytes.labels(name).set(memory[name])
            gauges.queue_depth.labels(name).set(depth[name])

    async def _lease_after_load(self, key: ModelKey, deadline: float) -> Loaded:
        loop = asyncio.get_running_loop()
        leasing = loop.run_in_executor(self._loads, self.engine.lease, key)
        try:
            async with asyncio.timeout_at(loop.time() + deadline - time.monotonic()):
                return await asyncio.shield(leasing)
        except TimeoutError:
            leasing.add_done_callback(self._give_back)
            raise Unavailable(f"{key} is still being loaded", code="model_loading", retry_after_s=5) from None
        except asyncio.CancelledError:
            leasing.add_done_callback(self._give_back)
            raise

    def _give_back(self, leasing: asyncio.Future[Loaded]) -> None:
        if not leasing.cancelled() and leasing.exception() is None:
            self.engine.release(leasing.result())

    def _lane(self, key: ModelKey, loaded: Loaded) -> Lane[Ask, Answer]:
        known = self._lanes.get(key)
        if known is not None and known[0] is loaded:
            return known[1]
        limit = loaded.session.max_batch or 64
        lane = self.batcher.open_lane(key, VisionWork(loaded), slots=loaded.slots, max_batch=limit)
        self._lanes[key] = (loaded, lane)
        return lane

    def _open(self, key: ModelKey) -> Loaded:
        return load_artifact(key, self._locate(key), self._options)

    def _closed(self, loaded: Loaded) -> None:
        # The model may have been loaded again meanwhile: its new lane is not ours to close.
        known = self._lanes.get(loaded.key)
        if known is not None and known[0] is loaded:
            self._lanes.pop(loaded.key, None)
            self.batcher.close_lane(loaded.key)

    def _ran(self, key: Any, count: int, _seconds: float) -> None:
        self._counts[key, "batches"] += 1
        gauges.batch_size.labels(key.name).observe(count)


def _settle(
    future: asyncio.Future[Answered], result: Answer | None, timing: Timing | None, error: BaseException | None
) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    elif result is not None and timing is not None:
        future.set_result(Answered(result, timing))
