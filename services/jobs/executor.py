"""Hands: how a worker works on a job - claims some of its items, answers them, ends them, and makes room for others."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

from db.job_states import LOST, OVER, ClaimedItem, ItemResult
from db.jobs import JobRecords
from db.tables import Job, now
from ekiben.errors import Conflict, Refusal, Temporary, Unavailable
from ekiben.logs import request_id
from services import metrics
from services.concurrency.limiter import ConcurrencyLimiter
from services.concurrency.retry import retry_while_unavailable
from services.inference import operations
from services.inference.context import InferenceCore, RequestContext
from services.inference.pipeline import ImageSource, JobItemSource
from services.jobs.dbos_queue import JobQueue
from services.jobs.workspace import JobHandler
from services.runners.progress import NO_PROGRESS, ProgressSink
from services.schemas.inference import InferenceOptions

log = logging.getLogger(__name__)

T = TypeVar("T")

SLICE_S = 5.0
"""A hand that worked about so long goes back to the end of the queue: jobs of equal priority take turns."""

MAX_TRIES = 6
FIRST_RETRY_S = 1.0
"""What may pass is tried so often; before the second try this long is waited, then twice as long each time."""

WATCH_S = 0.5
REPORT_S = 1.0
SEARCH_S = 30.0
GRACE_S = 60.0
"""When a job's time is up none of its items begins; those in hand have so long to end."""

AFTER_FAULT_S = 5.0
READ_AHEAD_BYTES = 16_000_000
"""Of images that one hand may have read before their turn."""
_TIME_IS_UP = "timed_out"


@dataclass(slots=True)
class _JobProgress:
    """A job that hands of this worker are at."""

    slices: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    ended: int = 0
    share: float | None = None
    reported: tuple[int, float | None] = (0, None)

    @property
    def news(self) -> bool:
        return (self.ended, self.share) != self.reported


class JobExecutor:
    """Works on jobs, as many hands at once as the queue gives. Runs on one event loop.

    ``threads`` ask the database; None: those of the loop.
    """

    def __init__(
        self,
        inference: InferenceCore,
        jobs: JobRecords,
        queue: JobQueue,
        worker_id: str,
        *,
        places: int,
        heavy_places: int,
        threads: Executor | None = None,
        handlers: Mapping[str, JobHandler] | None = None,
    ) -> None:
        self._threads = threads
        self._inference = inference
        self._jobs = jobs
        self._queue = queue
        self._worker_id = worker_id
        self._limiter = ConcurrencyLimiter(places, heavy_places)
        self._handlers = handlers or {}
        self._handling: set[asyncio.Task[None]] = set()
        self._active: dict[str, _JobProgress] = {}
        self._slices: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._astray: set[str] = set()
        self.last_busy = time.monotonic()

    @property
    def busy(self) -> int:
        """Items in hand."""
        return sum(len(each.tasks) for each in self._active.values())

    @property
    def computing(self) -> bool:
        """Whether any item is being answered, apart from those that only have to be stored. From any thread."""
        return self._limiter.inside > 0

    async def work(self, job_id: str) -> None:
        """One hand: work on the job until it is done, others have the rest, or the time slice is over.

        Whatever goes wrong, what was claimed waits again, and a hand is in the queue for it.
        """
        progress = self._active.setdefault(job_id, _JobProgress())
        progress.slices += 1
        current = asyncio.current_task()
        if current is not None:
            self._slices.add(current)
            current.add_done_callback(self._slices.discard)
        try:
            try:
                delay = await self._work(progress, job_id)
            except Exception:
                log.exception("a hand broke off", extra={"job": job_id})
                delay = AFTER_FAULT_S
            if delay is not None:
                enqueue = partial(self._queue.enqueue, delay_s=delay)
                await retry_while_unavailable(lambda: self._in_thread(self._jobs.enqueue_entry, job_id, enqueue))
        finally:
            self.last_busy = time.monotonic()
            progress.slices -= 1
            if progress.slices == 0:
                del self._active[job_id]

    async def watch(self) -> None:
        """Drop what belongs to jobs that are over, and say how far the others are. Runs until it is cancelled."""
        last_report = last_search = time.monotonic()
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                if time.monotonic() - last_search >= SEARCH_S:
                    last_search = time.monotonic()
                    await self._give_back_astray()
                if not self._active:
                    continue
                self.last_busy = time.monotonic()
                await self._drop_ended()
                if time.monotonic() - last_report >= REPORT_S:
                    last_report = time.monotonic()
                    await self._report()
            except Refusal as error:
                log.warning("jobs not watched: %s", error)
            except Exception:
                log.exception("jobs not watched")

    async def stop(self, patience_s: float) -> None:
        """Begin nothing more; let what is in hand end, then hand back the rest.

        Undertakings are handed back at once: whoever takes one over goes on where it got to.
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

    async def _work(self, progress: _JobProgress, job_id: str) -> float | None:
        """None: this hand is done. Else after how many seconds another is to go on."""
        # Not all hands of a worker at once: until the queue gives them out again, nobody would work.
        slice_end = time.monotonic() + SLICE_S * random.uniform(0.5, 1.5)
        while not self._stopping:
            job, items, more_at = await self._in_thread(self._jobs.claim, job_id, self._worker_id, _claim_size)
            if job is None or job.state in OVER:
                return None
            if not items and _seconds_left(job) <= 0:
                return await self._time_is_up(job)
            if not items:
                return None if more_at is None else max(0.0, (more_at - now()).total_seconds())
            await self._run(progress, job, items)
            if time.monotonic() > slice_end:
                break
        return 0.0

    async def _run(self, progress: _JobProgress, job: Job, items: list[ClaimedItem]) -> None:
        if (handler := self._handlers.get(job.operation)) is not None:
            tasks = [asyncio.create_task(self._handle(job, item, handler), name=item.id) for item in items]
            self._handling.update(tasks)
            await self._all(progress, job, items, tasks)
            self._handling.difference_update(tasks)
            return
        try:
            chosen = operations.operation(job.operation)
            options = operations.read_parameters(chosen, {**job.parameters, "store": job.store})
        except Refusal as error:  # they were right when the job was submitted, to another version of Ekiben
            for item in items:
                await self._fail(job.operation, item, {"code": error.code, "message": error.message})
            return
        images = await self._images(items)
        tasks = [
            asyncio.create_task(
                self._item(progress, job, item, options, images.pop(item.storage_key or "", None)), name=item.id
            )
            for item in items
        ]
        await self._all(progress, job, items, tasks)

    async def _all(
        self, progress: _JobProgress, job: Job, items: list[ClaimedItem], tasks: list[asyncio.Task[None]]
    ) -> None:
        """Wait for all ``tasks``, one for each item; what was not ended goes back."""
        progress.tasks.update(tasks)
        await asyncio.wait(tasks)
        progress.tasks.difference_update(tasks)
        left = [item.id for item, task in zip(items, tasks, strict=True) if task.cancelled()]
        if left:
            await retry_while_unavailable(lambda: self._in_thread(self._jobs.requeue, self._worker_id, left))
        for item, task in zip(items, tasks, strict=True):
            if not task.cancelled() and (broken := task.exception()) is not None:
                log.error("an item could not be ended", exc_info=broken, extra={"item": item.id})
                await self._try_later(job, item, Unavailable("its end could not be stored"))

    async def _images(self, items: list[ClaimedItem]) -> dict[str, bytes]:
        """Images of the items by their keys, read together: a hop for each costs more than to read a small one."""
        keys = [item.storage_key for item in items if item.storage_key and item.bytes <= READ_AHEAD_BYTES // len(items)]
        return await self._inference.pipeline.recorder.read_some(keys) if len(keys) > 1 else {}

    async def _item(
        self, progress: _JobProgress, job: Job, item: ClaimedItem, options: InferenceOptions, data: bytes | None
    ) -> None:
        chosen = operations.OPERATIONS[job.operation]
        alone = item.deaths > 0
        async with self._limiter.acquire(heavy=chosen.heavy, exclusive=alone) as place:
            if self._stopping or _seconds_left(job) <= 0:
                raise asyncio.CancelledError
            if alone:
                await self._in_thread(self._jobs.begin_alone, self._worker_id, item.id)
            request_id.set(job.id)
            sink = ProgressSink(partial(self._advanced, progress)) if job.total == 1 else NO_PROGRESS
            context = RequestContext(self._inference, owner=job.owner, progress=sink)
            source = ImageSource(
                filename=item.filename,
                item=JobItemSource(
                    item,
                    self._worker_id,
                    timeout_s=max(1.0, _seconds_left(job) + GRACE_S),
                    # While it is stored the next one may be computed. One that is alone stays so to its end.
                    on_computed=_nothing if alone else place.leave,
                    data=data,
                ),
            )
            try:
                await chosen.run(context, source, options)
                metrics.job_items.labels(job.operation, "succeeded").inc()
            except Exception as error:
                if not alone:
                    place.leave()
                await self._not_answered(job, item, error)
            progress.ended += 1

    async def _handle(self, job: Job, item: ClaimedItem, handler: JobHandler) -> None:
        """Outside the gate: it works in a process of its own, for hours perhaps."""
        if self._stopping:
            raise asyncio.CancelledError
        request_id.set(job.id)
        if item.deaths > 0:  # a worker that dies now died of it
            await self._in_thread(self._jobs.begin_alone, self._worker_id, item.id)
        limit = asyncio.timeout(max(0.0, _seconds_left(job)))
        try:
            async with limit:
                await handler(job, item)
            metrics.job_items.labels(job.operation, "succeeded").inc()
        except Exception as error:
            if limit.expired() and isinstance(error, TimeoutError):
                await self._in_thread(self._jobs.fail, job.id, time_is_up(job))
                return
            await self._not_answered(job, item, error)

    async def _not_answered(self, job: Job, item: ClaimedItem, error: Exception) -> None:
        match error:
            case Conflict(code=code) if code == LOST:
                log.info("an item was lost: %s", error, extra={"item": item.id})
            case Temporary():
                await self._try_later(job, item, error)
            case Refusal():  # a Conflict, too: a row that its answer refers to was removed meanwhile
                await self._fail(job.operation, item, {"code": error.code, "message": error.message})
            case _:
                log.error("internal error", exc_info=error, extra={"item": item.id})
                message = "internal error; the log has it under this job's id"
                await self._fail(job.operation, item, {"code": "internal_error", "message": message})

    async def _try_later(self, job: Job, item: ClaimedItem, error: Temporary) -> None:
        """Once more after a while, twice as long each time; what has been tried MAX_TRIES times fails."""
        if item.tries + 1 >= MAX_TRIES or _seconds_left(job) <= 0:
            code = _TIME_IS_UP if _seconds_left(job) <= 0 else error.code
            await self._fail(job.operation, item, {"code": code, "message": error.message})
            return
        wait_s = FIRST_RETRY_S * 2**item.tries * random.uniform(0.8, 1.2)
        log.warning("an item is tried again: %s", error, extra={"item": item.id, "in_s": round(wait_s, 1)})
        at = now() + timedelta(seconds=wait_s)
        await retry_while_unavailable(lambda: self._in_thread(self._jobs.requeue, self._worker_id, [item.id], at))

    async def _fail(self, operation: str, item: ClaimedItem, error: dict[str, Any]) -> None:
        item_result = ItemResult(item.job_id, item.id, self._worker_id, error=error)

        async def save() -> None:
            await asyncio.wrap_future(self._inference.pipeline.records.save([], item_result))

        try:
            await retry_while_unavailable(save)
            metrics.job_items.labels(operation, "failed").inc()
        except Conflict:
            log.info("an item was lost", extra={"item": item.id})

    async def _time_is_up(self, job: Job) -> float | None:
        """Fail the job, once nothing of it is in anybody's hand; Housekeeping does not wait for that for ever."""
        if (await self._in_thread(self._jobs.running, [job.id])).get(job.id):
            return AFTER_FAULT_S
        await self._in_thread(self._jobs.fail, job.id, time_is_up(job))
        return None

    def _advanced(self, progress: _JobProgress, share: float) -> None:
        progress.share = share

    async def _drop_ended(self) -> None:
        states = await self._in_thread(self._jobs.states, list(self._active))
        for job_id, progress in list(self._active.items()):
            if states.get(job_id, "gone") in (*OVER, "gone"):
                for task in list(progress.tasks):
                    task.cancel()

    async def _give_back_astray(self) -> None:
        """Items that are this worker's by the database but in none of its hands: an answer of the database got lost.

        Only those that were astray the last time too: others may just be on their way.
        """
        claimed = {task.get_name() for progress in self._active.values() for task in progress.tasks}
        astray = set(await self._in_thread(self._jobs.claimed_by, self._worker_id)) - claimed
        if lost := sorted(astray & self._astray):
            log.warning("items had gone astray, and wait again", extra={"items": lost})
            await self._in_thread(self._jobs.requeue, self._worker_id, lost)
        self._astray = astray

    async def _in_thread(self, work: Callable[..., T], *given: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *given)

    async def _report(self) -> None:
        news = {job_id: progress for job_id, progress in self._active.items() if progress.news}
        shares = {job_id: progress.share for job_id, progress in news.items()}
        for progress in news.values():
            progress.reported = (progress.ended, progress.share)
        if shares:
            await self._in_thread(self._jobs.report, shares)


def _nothing() -> None:
    pass


def time_is_up(job: Job) -> dict[str, Any]:
    """The error of a job that ran into its limit."""
    return {"code": _TIME_IS_UP, "message": f"the job ran for more than {job.timeout_s:g} s"}


def _claim_size(job: Job) -> int:
    known = operations.OPERATIONS.get(job.operation)
    return known.claim_size if known is not None else 1


def _seconds_left(job: Job) -> float:
    if job.started_at is None:
        return job.timeout_s
    return (job.started_at + timedelta(seconds=job.timeout_s) - now()).total_seconds()
