"""What becomes of an item whose work raised an error: retried later, failed, or left to the worker that has it now."""

from __future__ import annotations

import asyncio
import logging
import random
from concurrent.futures import Executor
from datetime import timedelta
from typing import Any

from db.job_states import LOST, ClaimedItem, ItemResult
from db.jobs import JobRecords
from db.records import Records
from db.tables import Job, now
from ekiben.errors import Conflict, Refusal, StorageFull, Temporary
from services import metrics
from services.concurrency.retry import retry_while_unavailable
from services.concurrency.run_in_executor import run_in_executor
from services.error_codes import presentable
from services.jobs.time_limit import TIMED_OUT, seconds_left

log = logging.getLogger(__name__)

MAX_TRIES = 6
FIRST_RETRY_S = 1.0
"""Seconds before the second try; doubled before each further one. Temporary errors are tried MAX_TRIES times."""

FULL_RETRY_S = 15.0
"""Seconds until an item is tried again for which no space was left."""


class ItemSettler:
    """Records how items of one worker ended. ``threads`` run the database calls; None: those of the loop."""

    def __init__(self, records: Records, jobs: JobRecords, worker_id: str, threads: Executor | None) -> None:
        self._records = records
        self._jobs = jobs
        self._worker_id = worker_id
        self._threads = threads

    async def settle_error(self, job: Job, item: ClaimedItem, error: Exception) -> None:
        """Retry the item later after a temporary error, fail it after any other one.

        Nothing is done where another worker has the item now.
        """
        match presentable(error):
            case Conflict(code=code) if code == LOST:
                log.info("an item was lost: %s", error, extra={"item": item.id})
            case Temporary() as temporary:
                await self.retry_later(job, item, temporary)
            case Refusal() as refusal:  # a Conflict, too: a row that its result refers to was removed meanwhile
                await self.fail(job.operation, item, {"code": refusal.code, "message": refusal.message})
            case _:
                log.error("internal error", exc_info=error, extra={"item": item.id})
                message = "internal error; the log has it under this job's id"
                await self.fail(job.operation, item, {"code": "internal_error", "message": message})

    async def retry_later(self, job: Job, item: ClaimedItem, error: Temporary) -> None:
        """Queue the item again after a wait; fail it after MAX_TRIES tries, or past the job's time limit.

        While there is no space left it waits as long as its job may last: only a person can mend that.
        """
        full = isinstance(error, StorageFull)
        if (item.tries + 1 >= MAX_TRIES and not full) or seconds_left(job) <= 0:
            code = TIMED_OUT if seconds_left(job) <= 0 else error.code
            await self.fail(job.operation, item, {"code": code, "message": error.message})
            return
        if full:  # the item stays claimed meanwhile: the next ones would be computed for nothing
            log.warning("an item waits for space: %s", error, extra={"item": item.id})
            await asyncio.sleep(min(FULL_RETRY_S, seconds_left(job)))
            await self.give_back([item.id])
            return
        wait_s = FIRST_RETRY_S * 2**item.tries * random.uniform(0.8, 1.2)
        log.warning("an item is tried again: %s", error, extra={"item": item.id, "in_s": round(wait_s, 1)})
        await self.give_back([item.id], wait_s)

    async def give_back(self, item_ids: list[str], wait_s: float | None = None) -> None:
        """Queue claimed items again: at once, or to be begun after ``wait_s`` seconds, which count as a try."""
        not_before = () if wait_s is None else (now() + timedelta(seconds=wait_s),)
        await retry_while_unavailable(
            lambda: run_in_executor(self._threads, self._jobs.requeue, self._worker_id, item_ids, *not_before)
        )

    async def fail(self, operation: str, item: ClaimedItem, error: dict[str, Any]) -> None:
        """End the item with ``error``, its ``code`` and ``message``."""
        item_result = ItemResult(item.job_id, item.id, self._worker_id, error=error)

        async def save() -> None:
            await asyncio.wrap_future(self._records.save([], item_result))

        try:
            await retry_while_unavailable(save)
            metrics.job_items.labels(operation, "failed").inc()
        except Conflict:
            log.info("an item was lost", extra={"item": item.id})
