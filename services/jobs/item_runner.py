"""Runs one claimed item: an inference operation within the worker's limits, or a job handler."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor

from db.job_states import ClaimedItem
from db.jobs import JobRecords
from db.tables import Job
from ekiben.logs import request_id
from services import metrics
from services.concurrency.limiter import ConcurrencyLimiter
from services.concurrency.run_in_executor import run_in_executor
from services.inference import operations
from services.inference.context import InferenceCore, RequestContext
from services.inference.pipeline import ImageSource, JobItemSource
from services.jobs.item_settler import ItemSettler
from services.jobs.time_limit import seconds_left, timeout_error
from services.jobs.workspace import JobHandler
from services.runners.progress import ProgressSink
from services.schemas.inference import InferenceOptions


class ItemRunner:
    """Runs items of one worker. ``stopping``: whether the worker begins nothing more.

    ``threads`` run the database calls; None: those of the loop. ``grace_s``: seconds that an item under way has to end
    when the time of its job is up.
    """

    def __init__(
        self,
        inference: InferenceCore,
        jobs: JobRecords,
        worker_id: str,
        limiter: ConcurrencyLimiter,
        settler: ItemSettler,
        stopping: Callable[[], bool],
        threads: Executor | None,
        grace_s: float,
    ) -> None:
        self._inference = inference
        self._jobs = jobs
        self._worker_id = worker_id
        self._limiter = limiter
        self._settler = settler
        self._stopping = stopping
        self._threads = threads
        self._grace_s = grace_s

    async def run_operation(
        self, job: Job, item: ClaimedItem, options: InferenceOptions, data: bytes | None, progress: ProgressSink
    ) -> None:
        """Run the operation of ``job`` on one image, and settle the item.

        ``data``: the encoded image, where it was read ahead. CancelledError where nothing may begin any more.
        """
        chosen = operations.OPERATIONS[job.operation]
        exclusive = item.deaths > 0  # it may have killed a worker: no other item is to die with it
        async with self._limiter.acquire(heavy=chosen.heavy, exclusive=exclusive) as permit:
            if self._stopping() or seconds_left(job) <= 0:
                raise asyncio.CancelledError
            if exclusive:
                await self._begin_exclusive(item)
            request_id.set(job.id)
            context = RequestContext(self._inference, owner=job.owner, progress=progress)
            source = ImageSource(
                filename=item.filename,
                item=JobItemSource(
                    item,
                    self._worker_id,
                    timeout_s=max(1.0, seconds_left(job) + self._grace_s),
                    # While this one is stored the next may be computed. An exclusive item keeps its permit to the end.
                    on_computed=_nothing if exclusive else permit.leave,
                    data=data,
                ),
            )
            try:
                await chosen.run(context, source, options)
                metrics.job_items.labels(job.operation, "succeeded").inc()
            except Exception as error:
                if not exclusive:
                    permit.leave()
                await self._settler.settle_error(job, item, error)

    async def run_handler(self, job: Job, item: ClaimedItem, handler: JobHandler) -> None:
        """Run a job handler, and settle the item where it raises; past the time limit the whole job fails.

        Without a permit: a handler works in a process of its own, perhaps for hours. CancelledError where nothing may
        begin any more.
        """
        if self._stopping():
            raise asyncio.CancelledError
        request_id.set(job.id)
        if item.deaths > 0:
            await self._begin_exclusive(item)
        limit = asyncio.timeout(max(0.0, seconds_left(job)))
        try:
            async with limit:
                await handler(job, item)
            metrics.job_items.labels(job.operation, "succeeded").inc()
        except Exception as error:
            if limit.expired() and isinstance(error, TimeoutError):
                await run_in_executor(self._threads, self._jobs.fail, job.id, timeout_error(job))
                return
            await self._settler.settle_error(job, item, error)

    async def _begin_exclusive(self, item: ClaimedItem) -> None:
        """Record that this item alone is to blame if the worker dies now."""
        await run_in_executor(self._threads, self._jobs.begin_alone, self._worker_id, item.id)


def _nothing() -> None:
    pass
