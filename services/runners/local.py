"""The runner in this process: one engine and one batcher."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from ekiben.errors import BadInput, ModelDisabled, Unavailable
from ekiben.settings import Settings
from models.engine.batcher import Batcher
from models.engine.engine import Engine, ModelKey, ModelState
from models.engine.graph_limits import GraphLimits
from models.engine.loaded_model import LoadedModel
from models.engine.loader import LoadedNetwork, estimate_bytes, load_model
from models.engine.memory import trim
from models.engine.run_watch import RunWatch
from models.engine.session_options import SessionOptions, cores
from models.image_batch_steps import ImageBatchSteps
from models.inference_requests import (
    AutoMaskRequest,
    AutoMaskResponse,
    InferenceRequest,
    InferenceResponse,
    MaskRequest,
    MaskResponse,
    PreparedTensor,
)
from models.results import Timing
from models.sam.embedding_cache import EmbeddingCache
from models.sam.loader import LoadedSam
from models.unet import Unet
from services import metrics
from services.concurrency.daemon_threads import run_in_daemon
from services.concurrency.memory_budget import MemoryBudget
from services.concurrency.single_flight import SingleFlight
from services.runners import metrics as gauges
from services.runners.async_batcher import AsyncBatcher
from services.runners.image_cost import cost_of
from services.runners.interface import TimedAnswer
from services.runners.progress import NO_PROGRESS, ProgressSink
from services.runners.sam import SamRunner
from services.runners.unet import UnetQueue, UnetRunner

log = logging.getLogger(__name__)

BREAK_OFF_S, CLOSE_S = 2.0, 4.0
"""Seconds after which a stop breaks off runs of users' graphs, and after which it does not wait for any run."""


class LocalRunner:
    """Computes in this process. ``locate``: the artifact folder of a model. ``memory``: what images may take together,
    by default by the settings. ``break_off`` as in AsyncBatcher."""

    def __init__(
        self,
        settings: Settings,
        locate: Callable[[ModelKey], Path],
        memory: MemoryBudget | None = None,
        *,
        break_off: bool = False,
    ) -> None:
        self._locate = locate
        self.memory = memory or MemoryBudget(settings.image_memory_mb * 1_000_000, trim)
        self._options = SessionOptions(settings.device, settings.threads, settings.runtime)
        self.watch = RunWatch(self._overdue)
        memory_bytes = 2 * settings.model_memory_mb * 1_000_000  # the weights within the budget, and as much for runs
        longest_s = max(settings.timeout_s, settings.auto_timeout_s, settings.job_timeout_s)
        self._limits = GraphLimits(self.watch, self._disable, memory_bytes, longest_s)
        self.on_disabled: Callable[[ModelKey, str], None] = lambda _key, _reason: None
        self.engine: Engine[LoadedModel] = Engine(
            self._open, lambda key: estimate_bytes(locate(key)), settings.model_memory_mb * 1_000_000, self._closed
        )
        self.batcher = Batcher(settings.threads or cores(), settings.queue_mb * 1_000_000, self._ran)
        self.async_batcher = AsyncBatcher(self.batcher, self.engine, break_off=break_off)
        cache = EmbeddingCache(settings.cache_mb * 1_000_000, gauges.saw_embedding)
        self.sam = SamRunner(self.async_batcher, self.engine.share, cache, self.memory)
        self.unet = UnetRunner(self.async_batcher, self.engine.share, self.memory)
        self._queues: dict[ModelKey, tuple[LoadedNetwork, UnetQueue]] = {}
        self._loading: SingleFlight[None] = SingleFlight(keep=True)
        self._counts: Counter[tuple[ModelKey, str]] = Counter()

    async def infer(
        self, key: ModelKey, request: InferenceRequest, deadline: float, progress: ProgressSink = NO_PROGRESS
    ) -> TimedAnswer:
        """See ``Runner.infer``."""
        loaded = await self._lease(key, deadline)
        if not isinstance(loaded, LoadedNetwork):
            self.engine.release(loaded)
            raise BadInput(f"{key} answers prompts, not {type(request).__name__}")
        queue, family = self._queue(key, loaded), loaded.family
        whole_at_once = isinstance(request.image, PreparedTensor) and not request.flips
        if isinstance(family, Unet) and (family.tiled or request.flips) and not whole_at_once:
            try:
                response, timing = await self.unet.segment(loaded, family, queue, request, deadline, progress)
            finally:
                self.async_batcher.release_on_loop(loaded)
        else:
            response, timing = await self._infer_whole(loaded, queue, request, deadline)
        self._counts[key, "predictions"] += 1
        return TimedAnswer(response, timing)

    async def _infer_whole(
        self, loaded: LoadedNetwork, queue: UnetQueue, request: InferenceRequest, deadline: float
    ) -> tuple[InferenceResponse, Timing]:
        """The response to an image that is one input of the network. Takes over one lease on ``loaded``."""
        try:
            cost = await cost_of(request.image)
        except BaseException:
            self.async_batcher.release_on_loop(loaded)
            raise
        if not cost.slow:
            response, timing = await self.async_batcher.submit(queue, loaded, request, request.nbytes, deadline)
            return cast(InferenceResponse, response), timing
        try:
            async with self.memory.lease(cost.bytes, deadline) as memory:
                self.engine.share(loaded)
                response, timing = await self.async_batcher.submit_slow(queue, loaded, request, deadline, memory)
        finally:
            self.async_batcher.release_on_loop(loaded)
        return cast(InferenceResponse, response), timing

    async def masks(self, key: ModelKey, request: MaskRequest, deadline: float) -> tuple[MaskResponse, Timing]:
        """See ``Runner.masks``."""
        async with self._sam(key, deadline) as sam:
            return await self.sam.masks(sam, request, deadline)

    async def auto_masks(
        self, key: ModelKey, request: AutoMaskRequest, deadline: float, progress: ProgressSink = NO_PROGRESS
    ) -> tuple[AutoMaskResponse, Timing]:
        """See ``Runner.auto_masks``."""
        async with self._sam(key, deadline) as sam:
            return await self.sam.auto_masks(sam, request, deadline, progress)

    async def load(self, key: ModelKey, *, pin: bool = False) -> None:
        """See ``Runner.load``."""
        # All who wait for a model share one thread until its load has ended: it may be one that hangs.
        await self._loading.do((key, pin), lambda: run_in_daemon("load", partial(self.engine.load, key, pin=pin)))

    async def enable(self, key: ModelKey) -> None:
        """See ``Runner.enable``."""
        self.engine.enable(key)

    def disable(self, key: ModelKey, reason: str) -> None:
        """Take a model out of memory and load it no more, until ``enable``. Who waits for it is answered ModelDisabled
        at once. From any thread; waits for no run."""
        self.engine.disable(key, reason)
        refusal = ModelDisabled(f"{key} is disabled: {reason}")
        for queue in (key, *self.sam.queue_keys(key)):
            self.batcher.close_queue(queue, refusal)

    async def unload(self, key: ModelKey) -> bool:
        """See ``Runner.unload``."""
        return await run_in_daemon("unload", self.engine.unload, key)

    async def states(self) -> list[ModelState]:
        """See ``Runner.states``."""
        return self.engine.states()

    async def counters(self, key: ModelKey) -> dict[str, int]:
        """See ``Runner.counters``."""
        return {
            "predictions": self._counts[key, "predictions"],
            "batches": self._counts[key, "batches"] + self.sam.counts[key, "batches"],
            "loads": next((s.loads for s in self.engine.states() if s.key == key), 0),
            "waiting": self._depth(key),
            "batch_size": self.batcher.batch_size(key),
        }

    async def metrics_text(self) -> bytes:
        """Empty: the metrics are this process's own. Refreshes the gauges."""
        self.observe_gauges()
        return b""

    async def check(self) -> None:
        """Nothing to check: the models are in this process."""
        return None

    async def close(self) -> None:
        """Stop the batcher, then close the models. Runs of users' graphs that take long are broken off."""
        self.async_batcher.close()
        breaking_off = asyncio.get_running_loop().call_later(BREAK_OFF_S, self.watch.close)
        await asyncio.to_thread(self.batcher.close, CLOSE_S)
        breaking_off.cancel()
        self.watch.close()
        await asyncio.to_thread(self.engine.close)

    def observe_gauges(self) -> None:
        """Refresh the gauges that are not set by requests: queues and memory."""
        gauges.queue_bytes.set(self.batcher.waiting_bytes)
        gauges.image_memory_bytes.set(self.memory.held)
        gauges.model_budget_bytes.set(self.engine.budget_bytes)
        memory: Counter[str] = Counter()
        depth: Counter[str] = Counter()
        for state in self.engine.states():  # the label is the name: versions of one model are added
            memory[state.key.name] += state.memory_bytes
            depth[state.key.name] += self._depth(state.key)
        for name in memory:
            gauges.model_memory_bytes.labels(name).set(memory[name])
            gauges.queue_depth.labels(name).set(depth[name])

    def _depth(self, key: ModelKey) -> int:
        return self.batcher.depth(key) + self.sam.depth(key)

    @contextlib.asynccontextmanager
    async def _sam(self, key: ModelKey, deadline: float) -> AsyncIterator[LoadedSam]:
        loaded = await self._lease(key, deadline)
        try:
            if not isinstance(loaded, LoadedSam):
                raise BadInput(f"{key} does not answer prompts")
            yield loaded
            self._counts[key, "predictions"] += 1
        finally:
            self.async_batcher.release_on_loop(loaded)

    async def _lease(self, key: ModelKey, deadline: float) -> LoadedModel:
        return self.engine.try_lease(key) or await self._lease_after_load(key, deadline)

    async def _lease_after_load(self, key: ModelKey, deadline: float) -> LoadedModel:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(loop.time() + deadline - time.monotonic()):
                while True:
                    await self.load(key)
                    if (loaded := self.engine.try_lease(key)) is not None:  # None: unloaded again meanwhile
                        return loaded
        except TimeoutError:
            raise Unavailable(f"{key} is still being loaded", code="model_loading", retry_after_s=5) from None

    def _queue(self, key: ModelKey, loaded: LoadedNetwork) -> UnetQueue:
        known = self._queues.get(key)
        if known is not None and known[0] is loaded:
            return known[1]
        limit = loaded.session.max_batch or 64
        queue = self.batcher.open_queue(
            key, ImageBatchSteps(loaded), max_concurrency=loaded.max_concurrency, max_batch=limit
        )
        self._queues[key] = (loaded, queue)
        return queue

    def _open(self, key: ModelKey) -> LoadedModel:
        return load_model(key, self._locate(key), self._options, self._limits)

    def _overdue(self, thread_id: int) -> None:
        self.batcher.relieve(thread_id)
        self.engine.pass_on(thread_id)

    def _disable(self, key: ModelKey, limit: str, reason: str) -> None:
        log.error("model disabled: %s", reason, extra={"model": key.name, "version": key.version, "limit": limit})
        metrics.models_disabled.labels(key.name, str(key.version), limit).inc()
        self.on_disabled(key, reason)
        self.disable(key, reason)

    def _closed(self, loaded: LoadedModel) -> None:
        if isinstance(loaded, LoadedSam):
            self.sam.close_queues(loaded)
            return
        # The model may have been loaded again meanwhile: then the queue is the new one's.
        known = self._queues.get(loaded.key)
        if known is not None and known[0] is loaded:
            self._queues.pop(loaded.key, None)
            self.batcher.close_queue(loaded.key)

    def _ran(self, key: Any, count: int, _seconds: float) -> None:
        if isinstance(key, ModelKey):  # the queues of Segment Anything have other keys, and count their own runs
            self._counts[key, "batches"] += 1
            gauges.batch_size.labels(key.name).observe(count)
