"""The job queue, on DBOS; no other module uses it.

A queue entry names a job: the worker that takes it works on that job for a time slice (services/jobs/executor.py). A
job may have several entries, so that several workers share it. What of a job is done is recorded in Ekiben's own rows
alone; DBOS orders the entries, gives each to one worker, and keeps those of dead workers.

DBOS takes 15 MB of a process, so it is imported where it is first used: not by a process that never sees a job.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlmodel import Session

from db.session import BUSY_MS, parse_url, refusing, set_wal
from db.tables import Job

if TYPE_CHECKING:
    from dbos import DBOSClient, DBOSConfig, EnqueueOptions

log = logging.getLogger(__name__)

QUEUES = {
    "request": "ekiben-requests",
    "batch": "ekiben-batches",
    "import": "ekiben-imports",
    "training": "ekiben-trainings",
    "provision": "ekiben-provisions",
}
"""DBOS queue by kind of job: a request, whose caller waits, is not queued behind batches and trainings."""

POLL_S = {"request": 0.25, "batch": 0.25, "import": 1.0, "training": 1.0, "provision": 2.0}
"""Seconds between polls of each queue, by a worker that is not on standby (services/jobs/queue_standby.py)."""

_NAME = "ekiben"
_VERSION = "1"  # of what an entry means: workers of another version do not take entries of this one
_WORKFLOW = "hand"  # stored in existing databases: it must not change
_WAITING = ["ENQUEUED", "DELAYED"]
_REMOVABLE = ["ENQUEUED", "DELAYED", "SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"]
_AT_ONCE = 500  # entries deleted in one transaction


class _Overtaken(logging.Filter):
    """Leaves out the errors of DBOS where a job was cancelled or deleted as a worker took its entry."""

    def filter(self, record: logging.LogRecord) -> bool:
        from dbos import error as dbos_errors

        overtaken_by = dbos_errors.DBOSAwaitedWorkflowCancelledError, dbos_errors.DBOSNonExistentWorkflowError
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, overtaken_by)


_OVERTAKEN = _Overtaken()


class JobQueue:
    """Puts entries into the queue, looks them up and removes them. Thread-safe; every method blocks."""

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self._engine: sa.Engine | None = None
        self._client: DBOSClient | None = None
        self._migrated = False
        self._lock = threading.Lock()

    @property
    def in_use(self) -> bool:
        """Whether this process has used the queue."""
        return self._client is not None

    def open(self) -> None:
        """Prepare for the first use, which may take a second: import DBOS, and migrate. Later calls do nothing.

        To be called before the first transaction that enqueues: the migration waits for those that write.
        """
        if not self._migrated:
            self.migrate()  # nothing is left to do, unless this process was started without the preflight
        self._client_of_dbos()

    def migrate(self) -> None:
        """Bring the queue's tables to this version. Any number of processes may call it at once."""
        from dbos import DBOS

        with refusing():
            DBOS.migrate(dbos_url(self._url))
        self._migrated = True

    def enqueue(self, session: Session, job: Job, number: int, *, delay_s: float = 0) -> None:
        """Add entry ``number`` of ``job`` in the session's transaction, to be taken after ``delay_s`` seconds."""
        options: EnqueueOptions = {
            "workflow_name": _WORKFLOW,
            "workflow_id": f"{job.id}.{number}",
            "queue_name": QUEUES.get(job.kind, QUEUES["batch"]),
            "priority": 10 - job.priority,  # DBOS takes the lowest number first
            "app_version": _VERSION,
        }
        if delay_s > 0:
            options["delay_seconds"] = delay_s
        self._client_of_dbos().enqueue_in_transaction(session.connection(), options, job.id)

    @refusing()
    def withdraw(self, job: Job) -> None:
        """Remove the waiting entries of a job that is over; a worker that has taken one sees the state of the job."""
        # Entries of a retry that came meanwhile have later numbers.
        ids = self._ids(job, ["ENQUEUED", "DELAYED"])
        if waiting := [ident for ident in ids if int(ident.rpartition(".")[2]) < job.entries]:
            self._opened().cancel_workflows(waiting)

    @refusing()
    def forget(self, job: Job) -> None:
        """Remove the entries of a job that is deleted, but for those that a worker has just taken.

        Their worker finds no job, and ends them; DBOS takes it for a fault where they are gone by then. ``forget_done``
        removes them later.
        """
        ids = self._ids(job, _REMOVABLE)
        for start in range(0, len(ids), _AT_ONCE):
            self._opened().delete_workflows(ids[start : start + _AT_ONCE])

    @refusing()
    def forget_done(self, before: datetime) -> int:
        """Remove some of the entries that were completed ``before`` a moment; how many. 0: there are no more."""
        done = self._opened().list_workflows(
            status=["SUCCESS", "ERROR", "CANCELLED"],
            completed_before=before.isoformat(),
            limit=_AT_ONCE,
            load_input=False,
            load_output=False,
        )
        if done:
            self._opened().delete_workflows([row.workflow_id for row in done])
        return len(done)

    @refusing()
    def has_entries(self, job_id: str) -> bool:
        """Whether an entry of the job waits; one that a worker has taken may never be begun."""
        found = self._opened().list_workflows(
            workflow_id_prefix=f"{job_id}.", status=_WAITING, limit=1, load_input=False, load_output=False
        )
        return bool(found)

    @refusing()
    def resume_orphans(self, workers: Collection[str]) -> list[str]:
        """Put entries back that a worker besides ``workers`` has taken; the ids of their jobs.

        Not to be called in a coroutine, nor in a DBOS workflow.
        """
        pending = self._opened().list_workflows(status="PENDING", load_input=False, load_output=False)
        lost = [row for row in pending if row.executor_id not in workers and row.queue_name]
        for row in lost:
            self._opened().resume_workflow(row.workflow_id, queue_name=row.queue_name)
        return [row.workflow_id.partition(".")[0] for row in lost]

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            if self._client is not None:
                self._client.destroy()
            if self._engine is not None:
                self._engine.dispose()
            self._client = self._engine = None

    def _ids(self, job: Job, status: list[str] | None = None) -> list[str]:
        found = self._opened().list_workflows(
            workflow_id_prefix=f"{job.id}.", status=status, load_input=False, load_output=False
        )
        return [row.workflow_id for row in found]

    def _opened(self) -> DBOSClient:
        self.open()
        return self._client_of_dbos()

    def _client_of_dbos(self) -> DBOSClient:
        with self._lock:
            if self._client is None:
                from dbos import DBOSClient, DBOSPortableJSONSerializer

                self._engine = _engine(self._url)
                self._client = DBOSClient(
                    system_database_url=dbos_url(self._url),
                    system_database_engine=self._engine,
                    serializer=DBOSPortableJSONSerializer(),  # its own default would be pickle
                    application_name=_NAME,
                    system_database_pool_size=2,
                    retry_connection_errors=False,
                    lazy=True,
                )
            return self._client


class QueueConsumer:
    """Takes entries from the queue: calls ``work(job_id)`` for each, on threads of its own.

    One per process: DBOS keeps its state in the module. ``start`` and ``stop`` must not be called in a coroutine; each
    can be called again after the other. An entry that was taken and not ended when ``stop`` returned is worked on again
    after the next ``start``.
    """

    def __init__(
        self, database_url: str, worker_id: str, work: Callable[[str], Any], concurrency: Mapping[str, int]
    ) -> None:
        self._url = database_url
        self._worker_id = worker_id
        self._work = work
        self._concurrency = concurrency
        self._engine: sa.Engine | None = None
        self._migrated = False

    def start(self) -> None:
        """Take entries of the kinds in ``concurrency`` from now on. If it raises, nothing runs.

        Of each kind at most so many at once as the worker that was started last takes: DBOS has one number for all.
        """
        try:
            self._launch()
        except BaseException:
            self.stop(0)
            raise

    def stop(self, patience_s: float) -> None:
        """Take no more entries; wait up to ``patience_s`` seconds for those that are worked on."""
        from dbos import DBOS

        DBOS.destroy(destroy_registry=True, workflow_completion_timeout_sec=max(0, round(patience_s)))
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    def _launch(self) -> None:
        from dbos import DBOS, DBOSPortableJSONSerializer

        if not self._migrated:
            JobQueue(self._url).migrate()
            self._migrated = True
        self._engine = _engine(self._url)
        config: DBOSConfig = {
            "name": _NAME,
            "system_database_url": dbos_url(self._url),
            "executor_id": self._worker_id,
            "application_version": _VERSION,
            "serializer": DBOSPortableJSONSerializer(),
            "log_level": "WARNING",
            "run_migrations": False,
            "use_listen_notify": False,
            "scheduler_polling_interval_sec": 600.0,  # for schedules, which are not used here
        }
        if self._engine is not None:
            config["system_database_engine"] = self._engine
        DBOS(config=config)
        logging.getLogger("dbos").addFilter(_OVERTAKEN)  # the second time it is not added again

        # Attempts are counted in our own rows; DBOS must not give up an entry that was taken over often.
        @DBOS.workflow(name=_WORKFLOW, max_recovery_attempts=1_000_000)
        def entry(job_id: str) -> str:
            self._work(job_id)
            return ""

        DBOS.listen_queues([QUEUES[kind] for kind in self._concurrency])  # else every queue that any worker registered
        DBOS.launch()
        for kind, at_once in self._concurrency.items():
            DBOS.register_queue(
                QUEUES[kind], worker_concurrency=at_once, polling_interval_sec=POLL_S[kind], on_conflict="always_update"
            )


def dbos_url(database_url: str) -> str:
    """The database URL for DBOS, which brings a PostgreSQL driver of its own."""
    url = parse_url(database_url)
    if url.get_backend_name() == "postgresql":
        url = url.set(drivername="postgresql")
    return url.render_as_string(hide_password=False)


def _engine(database_url: str) -> sa.Engine | None:
    """For SQLite, an engine set up as ours: DBOS would leave journal mode and timeout to the driver.

    None: DBOS's own.
    """
    url = parse_url(database_url)
    if url.get_backend_name() != "sqlite":
        return None
    engine = sa.create_engine(url, pool_size=4, max_overflow=8, connect_args={"check_same_thread": False})

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, record: object) -> None:
        connection.isolation_level = "IMMEDIATE"  # for transactions that write; those that only read take no lock
        connection.execute(f"PRAGMA busy_timeout={BUSY_MS}")
        set_wal(connection)
        # Entries lost in a power cut are made again from our rows (Maintenance.sweep).
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")

    return engine
