"""Garbage collection: old finished jobs, images without reference, blobs without a row."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from itertools import islice

from db.blobs import BlobStore
from db.datasets import Datasets
from db.jobs import JobRecords
from db.records import Records
from db.tables import now
from ekiben.errors import Conflict, NotFound, Refusal
from services.jobs.dbos_queue import JobQueue

log = logging.getLogger(__name__)

ORPHAN_AGE = timedelta(days=1)
"""A blob is written before its row; one of this age without a row is garbage."""

MARKS = "ekiben/databases/"
"""Prefix of the keys under which a store holds the names of the databases that use it."""


class GarbageCollector:
    """Removes what ended longer than ``keep`` ago. An image uploaded by POST /v1/images stays until it is deleted."""

    def __init__(
        self,
        records: Records,
        jobs: JobRecords,
        datasets: Datasets,
        queue: JobQueue,
        store: BlobStore,
        keep: timedelta,
    ) -> None:
        self._records = records
        self._datasets = datasets
        self._jobs = jobs
        self._queue = queue
        self._store = store
        self._keep = keep

    def run(self, stopping: Callable[[], bool] = lambda: False) -> dict[str, int]:
        """Remove jobs and unused images older than ``keep``; how many of each. Ends early once ``stopping()``."""
        counts = {"jobs": 0, "images": 0}
        before = now() - self._keep
        for owner, job_id in self._jobs.over_since(before):
            if stopping():
                return counts
            # It may be removed or retried at this moment.
            with contextlib.suppress(NotFound, Conflict):
                remove_job(self._jobs, self._queue, owner, job_id, self._delete)
                counts["jobs"] += 1
        while not stopping() and (keys := self._records.remove_unused_images(before)):
            counts["images"] += len(keys)
            self._delete(keys)
        if any(counts.values()):
            log.info("cleaned up", extra=counts)
        return counts

    def sweep(self, stopping: Callable[[], bool] = lambda: False) -> int:
        """Remove blobs without a row; how many. Lists the whole store.

        Only blobs older than ORPHAN_AGE and younger than this database: earlier ones may belong to another database.
        None in a store that another database uses as well.
        """
        since = self._own_since()
        if since is None:
            return 0
        removed = 0
        for keys in _chunks(self._blobs(since, now() - ORPHAN_AGE), 500):
            if stopping():
                break
            # Results of an item have ids from the time of the item; their rows may be written only now.
            active = self._jobs.oldest_active()
            spared = {key for key in keys if active is not None and _id_time(key) >= _id_time(active)}
            known = self._records.known_keys(keys) | self._datasets.known_keys(keys)
            orphans = sorted(set(keys) - spared - known)
            removed += len(orphans)
            self._delete(orphans)
        if removed:
            log.info("files without a row were removed", extra={"files": removed})
        return removed

    def _own_since(self) -> datetime | None:
        """Since when this database has used the store; None where another one uses it too."""
        installation = self._records.installation()
        own = MARKS + installation.name
        marks = set(self._store.list(MARKS))
        if own not in marks:
            # Written before the second look: databases that begin at one moment see each other's mark.
            self._store.put(own, b"", "text/plain")
            marks = set(self._store.list(MARKS))
        if marks != {own}:
            log.warning(
                "files without a row stay: another database uses the same store",
                extra={"marks": sorted(marks), "own": own},
            )
            return None
        return installation.since

    def _blobs(self, after: datetime, before: datetime) -> Iterator[str]:
        """Blobs made between the two, by the time in their ids: not every store knows when a blob was written."""
        first, last = int(after.timestamp() * 1000), int(before.timestamp() * 1000)
        for area in ("images/", "artifacts/", "datasets/"):
            for key in self._store.list(area):
                if first < _id_time(key) < last:
                    yield key

    def _delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            try:
                self._store.delete(key)
            except Refusal as error:
                log.warning("blob not removed: %s", error, extra={"key": key})


def remove_job(
    jobs: JobRecords, queue: JobQueue, owner: str, job_id: str, delete: Callable[[list[str]], object]
) -> None:
    """Remove a job that is over with its rows, files and queue entries. ``delete`` removes blobs by their keys.

    NotFound; Conflict for a job that is not over. Blocks.
    """
    job = jobs.job(owner, job_id)
    done = False
    while not done:
        keys, done = jobs.remove_some(owner, job_id)
        delete(keys)
    try:
        queue.forget(job)
    except (NotFound, Conflict):
        log.exception("queue entries were not removed", extra={"job": job_id})


def _id_time(key: str) -> int:
    """Unix time in milliseconds of an id (UUID version 7), or of the id in a blob's key; -1 where there is none."""
    stem = key.rpartition("/")[2].partition(".")[0]
    try:
        ident = uuid.UUID(stem)
    except ValueError:
        return -1
    return ident.int >> 80 if ident.version == 7 else -1


def _chunks(keys: Iterator[str], size: int) -> Iterator[list[str]]:
    while some := list(islice(keys, size)):
        yield some
