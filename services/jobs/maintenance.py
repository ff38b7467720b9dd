"""Housekeeping: what workers do besides jobs - say that they live, take over from the dead, tidy up."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

from db.blobs import BlobStore
from db.datasets import Datasets
from db.jobs import JobRecords
from db.records import Records
from db.tables import now
from db.workers import Workers
from ekiben.errors import Refusal
from ekiben.settings import Settings
from services.jobs.dbos_queue import JobQueue
from services.jobs.executor import GRACE_S, time_is_up
from services.jobs.garbage_collection import GarbageCollector
from services.jobs.heartbeat import Heartbeat
from services.jobs.webhooks import Webhooks

log = logging.getLogger(__name__)


DEAD_S = 8.0
"""A worker not heard of for so long is dead."""

SWEEP_S = 3.0
STALLED_S = 30.0
CLEAN_UP_S = 600.0
ORPHANS_S = 86_400.0
WEBHOOK_S = 1.0
FORGET_DONE = timedelta(hours=1)
"""Entries of the queue that were worked off say nothing that our own rows do not."""


class Maintenance:
    """A thread that does the chores whose turn is this worker's."""

    def __init__(
        self,
        settings: Settings,
        records: Records,
        jobs: JobRecords,
        datasets: Datasets,
        workers: Workers,
        queue: JobQueue,
        store: BlobStore,
        heartbeat: Heartbeat,
    ) -> None:
        self._jobs = jobs
        self._workers = workers
        self._queue = queue
        self._heartbeat = heartbeat
        self._webhooks = Webhooks(jobs, settings.webhook_secret)
        self._clean_up = GarbageCollector(records, jobs, datasets, queue, store, timedelta(days=settings.keep_days))
        self._chores: list[tuple[str, float, Callable[[], object]]] = [
            ("sweep", SWEEP_S, self.sweep),
            ("clean-up", CLEAN_UP_S, self.clean_up),
            ("orphans", ORPHANS_S, lambda: self._clean_up.sweep(self._stop.is_set)),
        ]
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name="housekeeping", daemon=True),
            threading.Thread(target=self._deliver, name="webhooks", daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._webhooks.stop()
        for thread in self._threads:
            thread.join(5)

    def sweep(self) -> None:
        """Take over from dead workers; end jobs whose time is up; bring those on that nobody works on."""
        # Where the database was away a moment ago, others could not be heard either.
        if time.monotonic() - self._heartbeat.steady_since >= DEAD_S:
            for worker_id, jobs in self._workers.fail_silent(DEAD_S).items():
                log.warning("a worker died", extra={"worker": worker_id, "jobs": jobs})
        if items := self._workers.requeue_of_unknown():
            log.warning("items of a worker that is gone wait again", extra={"items": items})
        for job_id in sorted(set(self._queue.resume_orphans(self._workers.known()))):
            log.warning("a job is taken over", extra={"job": job_id})
        for job in self._workers.late(GRACE_S):
            self._jobs.fail(job.id, time_is_up(job))
        self._bring_on(self._workers.stalled(STALLED_S))

    def clean_up(self) -> None:
        """Remove what is past its time; see CleanUp."""
        self._clean_up.run(self._stop.is_set)
        self._bring_on(self._workers.stalled(CLEAN_UP_S, limit=50, state="queued"))
        while not self._stop.is_set() and self._queue.forget_done(now() - FORGET_DONE):
            pass

    def _bring_on(self, job_ids: Sequence[str]) -> None:
        for job_id in job_ids:
            if not self._queue.has_entries(job_id):
                log.warning("a job that nobody worked on goes on", extra={"job": job_id})
                self._jobs.enqueue_entry(job_id, self._queue.enqueue)

    def _run(self) -> None:
        while not self._stop.wait(SWEEP_S):
            for name, every_s, chore in self._chores:
                try:
                    if self._workers.take_turn(name, every_s):
                        chore()
                except Refusal as error:
                    log.warning("%s: %s", name, error)
                except Exception:
                    log.exception("chore %s", name)

    def _deliver(self) -> None:
        while not self._stop.wait(WEBHOOK_S):
            try:
                self._webhooks.deliver_due(now())
            except Refusal as error:
                log.warning("webhooks: %s", error)
            except Exception:
                log.exception("webhooks")
