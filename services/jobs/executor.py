"""The executor: how a worker works on a job. It claims some of its items, runs and settles them, and after a time slice
makes room for other jobs."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping
from concurrent.futures import Executor
from functools import partial

from db.job_states import OVER, ClaimedItem
from db.jobs import JobRecords
from db.tables import Job, now
from ekiben.errors import Refusal, Unavailable
from services.concurrency.limiter import ConcurrencyLimiter
from services.concurrency.retry import retry_while_unavailable
from services.concurrency.run_in_executor import run_in_executor
from services.inference import operations
from services.inference.context import InferenceCore
from services.jobs.active_jobs import JobPlaces, JobProgress
from services.jobs.dbos_queue import JobQueue
from services.jobs.item_runner import ItemRunner
from services.jobs.item_settler import ItemSettler
from services.jobs.time_limit import seconds_left, timeout_error
from services.jobs.workspace import JobHandler
from services.runners.progress import NO_PROGRESS, ProgressSink
from services.schemas.inference import InferenceOptions

log = logging.getLogger(__name__)

SLICE_S = 5.0
"""Seconds, on average, that a queue entry is worked on before it goes back to the end of the queue: jobs of equal
priority take turns."""

WATCH_S = 0.5
"""Seconds between looks for jobs that are over."""

REPORT_S = 1.0
"""Least seconds between two reports of progress."""

SEARCH_S = 30.0
"""Seconds between looks for claimed items that nothing in this worker works on."""

AFTER_FAULT_S = 5.0
"""Seconds until a queue entry that failed, or a job whose last items run past its limit, is worked on again."""

READ_AHEAD_BYTES = 16_000_000
"""Bytes of images that one claim reads before their turn."""


class JobExecutor:
    """Works on the queue entries of one worker, as many at once as the queue gives. Runs on one event loop.

    ``max_items``: items that run at once, of them ``max_heavy`` of heavy operations. ``handlers``: by operation, of
    jobs that are no inference. ``grace_s``: as ItemRunner. ``threads`` run the database calls; None: those of the loop.
    ``limits``: jobs at once by kind (JobPlaces); the entry of one for which there is no place goes back to the queue.
    """

    def __init__(
        self,
        inference: InferenceCore,
        jobs: JobRecords,
        queue: JobQueue,
        worker_id: str,
        *,
        max_items: int,
        max_heavy: int,
        threads: Executor | None = None,
        handlers: Mapping[str, JobHandler] | None = None,
        grace_s: float = 60.0,
        limits: Mapping[str, int] | None = None,
    ) -> None:
        self._threads = threads
        self._inference = inference
        self._jobs = jobs
        self._queue = queue
        self._worker_id = worker_id
        self._handlers = handlers or {}
        self._places = JobPlaces(limits or {})
        self._stopping = False
        self._limiter = ConcurrencyLimiter(max_items, max_heavy)
        self._settler = ItemSettler(inference.pipeline.records, jobs, worker_id, threads)
        self._runner = ItemRunner(
            inference, jobs, worker_id, self._limiter, self._settler, lambda: self._stopping, threads, grace_s
        )
        self._handling: set[asyncio.Task[None]] = set()
        self._active: dict[str, JobProgress] = {}
        self._slices: set[asyncio.Task[None]] = set()
        self._astray: set[str] = set()
        self.last_busy = time.monotonic()
        """When it last worked on anything, by ``time.monotonic()``."""

    @property
    def busy(self) -> int:
        """How many items are claimed and not settled."""
        return sum(len(each.tasks) for each in self._active.values())

    @property
    def computing(self) -> bool:
        """Whether any item is computed; one that only has to be stored does not count. From any thread."""
        return self._limiter.inside > 0

    async def work(self, job_id: str) -> None:
        """Work on one queue entry: until the job is done, other workers have the rest, or the time slice is over.

        Whatever fails, claimed items are queued again, and an entry for them is in the queue.
        """
        progress = self._active.setdefault(job_id, JobProgress())
        progress.slices += 1
        current = asyncio.current_task()
        if current is not None:
            self._slices.add(current)
            current.add_done_callback(self._slices.discard)
        try:
            try:
                delay = await self._work_slice(progress, job_id)
            except Exception:
                log.exception("a queue entry failed", extra={"job": job_id})
                delay = AFTER_FAULT_S
            if delay is not None:
                enqueue = partial(self._queue.enqueue, delay_s=delay)
                await retry_while_unavailable(
                    lambda: run_in_executor(self._threads, self._jobs.enqueue_entry, job_id, enqueue)
                )
        finally:
            self.last_busy = time.monotonic()
            progress.slices -= 1
            if progress.slices == 0:
                del self._active[job_id]
                self._places.leave(job_id)

    async def watch(self) -> None:
        """Cancel the items of jobs that are over, and report the progress of the others. Runs until it is cancelled."""
        last_report = last_search = time.monotonic()
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                if time.monotonic() - last_search >= SEARCH_S:
                    last_search = time.monotonic()
                    await self._requeue_lost()
                if not self._active:
                    continue
                self.last_busy = time.monotonic()
                await self._cancel_ended()
                if time.monotonic() - last_report >= REPORT_S:
                    last_report = time.monotonic()
                    await self._report()
            except Refusal as error:
                log.warning("jobs not watched: %s", error)
            except Exception:
                log.exception("jobs not watched")

    async def stop(self, patience_s: float) -> None:
        """Begin nothing more, let claimed items end within ``patience_s`` seconds, then give the rest back.

        Items of job handlers are given back at once: another worker resumes them from what they have stored.
        """
        self._stopping = True
        for task in self._handling:
            task.cancel()
        tasks = [task for progress in self._active.values() for task in progress.tasks]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=patience_s)
            for task in late:
                task.cancel()
        if self._slices:
            await asyncio.wait(self._slices, timeout=5)

    async def _work_slice(self, progress: JobProgress, job_id: str) -> float | None:
        """None: this entry is done. Else the seconds until another entry of the job is due."""
        # Random, so that the entries of a worker do not all end at once: until the queue gives out new ones, its cores
        # would be idle.
        slice_end = time.monotonic() + SLICE_S * random.uniform(0.5, 1.5)
        while not self._stopping:
            job, items, more_at = await run_in_executor(
                self._threads, self._jobs.claim, job_id, self._worker_id, self._claim_size
            )
            if job is None or job.state in OVER:
                return None
            if seconds_left(job) <= 0:
                if items:  # claimed in the last moment: they would be given back one by one, and claimed again
                    await self._settler.give_back([item.id for item in items])
                return await self._time_out(job)
            if not items:
                return None if more_at is None else max(0.0, (more_at - now()).total_seconds())
            await self._run_claimed(progress, job, items)
            if time.monotonic() > slice_end:
                break
        return 0.0

    async def _run_claimed(self, progress: JobProgress, job: Job, items: list[ClaimedItem]) -> None:
        if (handler := self._handlers.get(job.operation)) is not None:
            run = self._runner.run_handler
            tasks = [asyncio.create_task(run(job, item, handler), name=item.id) for item in items]
            self._handling.update(tasks)
            await self._wait_for(progress, job, items, tasks)
            self._handling.difference_update(tasks)
            return
        try:
            chosen = operations.operation(job.operation)
            options = operations.read_parameters(chosen, {**job.parameters, "store": job.store})
        except Refusal as error:  # they were right when the job was submitted, to another version of Ekiben
            for item in items:
                await self._settler.fail(job.operation, item, {"code": error.code, "message": error.message})
            return
        images = await self._read_images(items)
        tasks = [
            asyncio.create_task(
                self._run_item(progress, job, item, options, images.pop(item.storage_key or "", None)), name=item.id
            )
            for item in items
        ]
        await self._wait_for(progress, job, items, tasks)

    async def _run_item(
        self, progress: JobProgress, job: Job, item: ClaimedItem, options: InferenceOptions, data: bytes | None
    ) -> None:
        sink = ProgressSink(progress.advance) if job.total == 1 else NO_PROGRESS
        await self._runner.run_operation(job, item, options, data, sink)
        progress.ended += 1

    async def _wait_for(
        self, progress: JobProgress, job: Job, items: list[ClaimedItem], tasks: list[asyncio.Task[None]]
    ) -> None:
        """Wait for ``tasks``, one for each item; items that were cancelled or not settled are queued again."""
        progress.tasks.update(tasks)
        await asyncio.wait(tasks)
        progress.tasks.difference_update(tasks)
        if left := [item.id for item, task in zip(items, tasks, strict=True) if task.cancelled()]:
            await self._settler.give_back(left)
        for item, task in zip(items, tasks, strict=True):
            if not task.cancelled() and (broken := task.exception()) is not None:
                log.error("an item could not be ended", exc_info=broken, extra={"item": item.id})
                await self._settler.retry_later(job, item, Unavailable("its end could not be stored"))

    async def _read_images(self, items: list[ClaimedItem]) -> dict[str, bytes]:
        """Images by their keys, read in one call: for small files a thread hop each costs more than the read."""
        small = (item for item in items if item.storage_key and item.bytes <= READ_AHEAD_BYTES // len(items))
        blobs = [(item.storage_key or "", item.bytes, item.sha256) for item in small]
        return await self._inference.pipeline.recorder.read_some(blobs) if len(blobs) > 1 else {}

    async def _time_out(self, job: Job) -> float | None:
        """Fail the job once none of its items is claimed; maintenance fails it after EKIBEN_JOB_GRACE_S in any case."""
        if (await run_in_executor(self._threads, self._jobs.running, [job.id])).get(job.id):
            return AFTER_FAULT_S
        await run_in_executor(self._threads, self._jobs.fail, job.id, timeout_error(job))
        return None

    async def _cancel_ended(self) -> None:
        states = await run_in_executor(self._threads, self._jobs.states, list(self._active))
        for job_id, progress in list(self._active.items()):
            if states.get(job_id, "gone") in (*OVER, "gone"):
                for task in list(progress.tasks):
                    task.cancel()

    async def _requeue_lost(self) -> None:
        """Queue items again that the database has as this worker's, but no task works on: a response of the database
        was lost.

        Only those found at the last look too: others may have been claimed just now.
        """
        claimed = {task.get_name() for progress in self._active.values() for task in progress.tasks}
        astray = set(await run_in_executor(self._threads, self._jobs.claimed_by, self._worker_id)) - claimed
        if lost := sorted(astray & self._astray):
            log.warning("items had gone astray, and wait again", extra={"items": lost})
            await run_in_executor(self._threads, self._jobs.requeue, self._worker_id, lost)
        self._astray = astray

    async def _report(self) -> None:
        changed = {job_id: progress for job_id, progress in self._active.items() if progress.changed}
        shares = {job_id: progress.share for job_id, progress in changed.items()}
        for progress in changed.values():
            progress.reported = (progress.ended, progress.share)
        if shares:
            await run_in_executor(self._threads, self._jobs.report, shares)

    def _claim_size(self, job: Job) -> int:
        if not self._places.take(job.id, job.kind):
            return 0
        known = operations.OPERATIONS.get(job.operation)
        return known.claim_size if known is not None else 1
