"""Maintenance: what workers do besides jobs - take over from dead workers, clean up, deliver webhooks."""

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
from services.jobs.garbage_collection import GarbageCollector
from services.jobs.heartbeat import DEAD_S, Heartbeat
from services.jobs.temporary_files import sweep_temporary_files
from services.jobs.time_limit import timeout_error
from services.jobs.webhooks import Webhooks

log = logging.getLogger(__name__)

SWEEP_S = 3.0
STALLED_S = 30.0
"""Seconds without a change after which a running job may have lost its queue entries."""

CLEAN_UP_S = 600.0
ORPHANS_S = 86_400.0
WEBHOOK_S = 1.0
_TRIES = 0.05
"""Share of a chore's interval between two looks whether it is due: it is late by no more than that, or by SWEEP_S."""

FORGET_DONE = timedelta(hours=1)
"""Completed queue entries are kept so long; our own rows have all that they say."""


class Maintenance:
    """Threads of a worker for periodic tasks; of all workers, one at a time does each."""

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
        tidy: Callable[[], object] = lambda: None,
    ) -> None:
        """``tidy`` removes the working folders that killed workers left on this machine."""
        self._settings = settings
        self._store = store
        self._tidy = tidy
        self._jobs = jobs
        self._workers = workers
        self._queue = queue
        self._heartbeat = heartbeat
        self._grace_s = settings.job_grace_s
        self._webhooks = Webhooks(jobs, settings.webhook_secret, allow_private=settings.private_urls)
        self._garbage = GarbageCollector(records, jobs, datasets, queue, store, timedelta(days=settings.keep_days))
        self._chores: list[tuple[str, float, Callable[[], object]]] = [
            ("sweep", SWEEP_S, self.sweep),
            ("clean-up", CLEAN_UP_S, self.clean_up),
            ("queue entries", CLEAN_UP_S, self.forget_entries),
            ("files", CLEAN_UP_S, self.sweep_files),
            ("orphans", ORPHANS_S, self._remove_orphans),
        ]
        self._swept = time.monotonic()
        self._next_try: dict[str, float] = {}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, name="maintenance", daemon=True)]
        if settings.webhook_secret:  # else none is sent
            self._threads.append(threading.Thread(target=self._deliver, name="webhooks", daemon=True))

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop the threads; waits up to 5 s for each."""
        self._stop.set()
        self._webhooks.stop()
        for thread in self._threads:
            thread.join(5)

    def sweep(self) -> None:
        """Take over from dead workers, end jobs past their time limit, queue jobs again that lost their entries."""
        # If the database was unavailable or the machine asleep a moment ago, the beats of others are missing too.
        if self._heartbeat.steady_s() >= DEAD_S:
            for worker_id, jobs in self._workers.fail_silent(DEAD_S).items():
                log.warning("a worker died", extra={"worker": worker_id, "jobs": jobs})
        if items := self._workers.requeue_of_unknown():
            log.warning("items of a worker that is gone wait again", extra={"items": items})
        if not self._jobs.any_open():
            return
        for job_id in sorted(set(self._queue.resume_orphans(self._workers.known()))):
            log.warning("a job is taken over", extra={"job": job_id})
        for job in self._workers.late(self._grace_s):
            self._jobs.fail(job.id, timeout_error(job))
        self._enqueue_stalled(self._workers.stalled(STALLED_S))

    def clean_up(self) -> None:
        """Remove old jobs and images (services/jobs/garbage_collection.py); queue jobs again that nobody begins."""
        self._garbage.run(self._stop.is_set)
        self._enqueue_stalled(self._workers.stalled(CLEAN_UP_S, limit=50, state="queued"))

    def forget_entries(self) -> None:
        """Remove queue entries that were completed."""
        while not self._stop.is_set() and self._queue.forget_done(now() - FORGET_DONE):
            pass

    def sweep_files(self) -> None:
        """Remove the temporary files that killed processes left on this machine and in the store."""
        self._tidy()
        sweep_temporary_files(self._settings, self._store)

    def _remove_orphans(self) -> None:
        self._garbage.sweep(self._stop.is_set)
        self._store.remove_abandoned(everywhere=True)

    def _enqueue_stalled(self, job_ids: Sequence[str]) -> None:
        for job_id in job_ids:
            if not self._queue.has_entries(job_id):
                log.warning("a job without a queue entry is queued again", extra={"job": job_id})
                self._jobs.enqueue_entry(job_id, self._queue.enqueue)

    def _is_own_turn(self, name: str, every_s: float) -> bool:
        """Whether a task is due here: temporary files of this machine are seen by its own workers alone."""
        if name != "files":
            return self._workers.take_turn(name, every_s)
        due = time.monotonic() - self._swept >= every_s
        self._swept = time.monotonic() if due else self._swept
        return due

    def _run(self) -> None:
        while not self._stop.wait(SWEEP_S):
            for name, every_s, chore in self._chores:
                if time.monotonic() < self._next_try.get(name, 0.0):
                    continue
                if chore == self.forget_entries and not self._queue.in_use:
                    continue  # a worker that has had no job leaves it to others, rather than import DBOS
                self._next_try[name] = time.monotonic() + every_s * _TRIES
                try:
                    if self._is_own_turn(name, every_s):
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
