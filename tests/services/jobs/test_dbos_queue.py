"""The queue of entries: DBOS's tables in our database and our transactions; what is given back, and what is removed."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from dbos import error as dbos_errors
from sqlmodel import Session

from db.jobs import JobRecords
from db.migrate import check, migrate
from db.session import connect, writing
from db.tables import Job, JobEvent, JobItem, Row, now
from ekiben.errors import Conflict
from services.jobs import dbos_queue
from services.jobs.dbos_queue import JobQueue
from tests.db.job_rows import change, count, items, job, job_now, states_now
from tests.servers import new_database, postgres


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database with our tables and the queue's, for all tests of this file."""
    with ExitStack() as stack:
        if request.param == "sqlite":
            url = f"sqlite:///{tmp_path_factory.mktemp('queue') / 'ekiben.db'}"
        else:
            url = stack.enter_context(new_database(stack.enter_context(postgres()).url))
        migrate(url)
        JobQueue(url).migrate()
        yield url


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    engine = connect(database_url)
    with engine.execution_options(immediate=True).begin() as connection:
        for table in ("job_events", "job_items", "jobs", _table(engine)):
            connection.exec_driver_sql(f"DELETE FROM {table}")
    yield engine
    engine.dispose()


@pytest.fixture
def queue(database_url: str, engine: sa.Engine) -> Iterator[JobQueue]:
    queue = JobQueue(database_url)
    yield queue
    queue.close()


def _table(engine: sa.Engine) -> str:
    return "dbos.workflow_status" if engine.dialect.name == "postgresql" else "workflow_status"


def entries(engine: sa.Engine, columns: str = "workflow_uuid, status, queue_name") -> list[tuple[Any, ...]]:
    """The queue as DBOS's table has it, in the order in which it is worked off."""
    question = f"SELECT {columns} FROM {_table(engine)} ORDER BY priority, created_at, workflow_uuid"
    with engine.begin() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(question)]


def taken(engine: sa.Engine, workflow_id: str, **values: Any) -> None:
    """What DBOS writes when a worker takes an entry, or ends it."""
    given = ", ".join(f"{name} = :{name}" for name in values)
    with engine.execution_options(immediate=True).begin() as connection:
        changed = connection.execute(
            sa.text(f"UPDATE {_table(engine)} SET {given} WHERE workflow_uuid = :id"), {"id": workflow_id, **values}
        )
        assert changed.rowcount == 1


def submitted(engine: sa.Engine, queue: JobQueue, queue_entries: int = 1, total: int = 1, **given: Any) -> Job:
    stored, created = JobRecords(engine).submit(job(total, **given), items(total), queue_entries, queue.enqueue)
    assert created
    return job_now(engine, stored.id)


def test_our_check_leaves_the_tables_of_the_queue_alone(database_url: str, engine: sa.Engine) -> None:
    assert check(database_url) == []
    there = set(sa.inspect(engine).get_table_names(schema="dbos" if engine.dialect.name == "postgresql" else None))
    assert {"workflow_status", "queues"} <= there
    assert not {"workflow_status", "queues"} & set(Row.metadata.tables)
    JobQueue(database_url).migrate()  # nothing happens
    assert check(database_url) == []


def test_submit_queues_in_its_transaction(engine: sa.Engine, queue: JobQueue) -> None:
    stored = submitted(engine, queue, queue_entries=2, total=3, priority=7)
    assert entries(engine) == [
        (f"{stored.id}.0", "ENQUEUED", "ekiben-batches"),
        (f"{stored.id}.1", "ENQUEUED", "ekiben-batches"),
    ]
    request = submitted(engine, queue, kind="request", priority=9)
    found = entries(engine, "workflow_uuid, queue_name, name, priority, application_version, application_name")
    assert found[0] == (f"{request.id}.0", "ekiben-requests", "hand", 1, "1", "ekiben")
    assert [row[3] for row in found] == [1, 3, 3]


def test_a_submission_that_breaks_off_leaves_no_entry(engine: sa.Engine, queue: JobQueue) -> None:
    class Broken(Exception):
        pass

    def enqueue(session: Session, job: Job, number: int) -> None:
        queue.enqueue(session, job, number)
        if number == 1:
            raise Broken

    with pytest.raises(Broken):
        JobRecords(engine).submit(job(3), items(3), 2, enqueue)
    assert [count(engine, table) for table in (Job, JobItem, JobEvent)] == [0, 0, 0]
    assert entries(engine) == []

    given = items(1)
    stored, _ = JobRecords(engine).submit(job(), given, 1, queue.enqueue)
    with pytest.raises(Conflict):  # the rows are refused after the first entry was written
        JobRecords(engine).submit(job(id=stored.id), items(1), 1, queue.enqueue)
    with pytest.raises(Conflict):
        JobRecords(engine).submit(job(), given, 1, queue.enqueue)
    with pytest.raises(Broken), writing(engine) as session:
        queue.enqueue(session, stored, 7)
        raise Broken
    assert entries(engine, "workflow_uuid") == [(f"{stored.id}.0",)]


def test_a_repeated_key_queues_nothing(engine: sa.Engine, queue: JobQueue) -> None:
    first = submitted(engine, queue, idempotency_key="k", fingerprint="a")
    requested = job(idempotency_key="k", fingerprint="a")
    assert JobRecords(engine).submit(requested, items(1), 1, queue.enqueue)[0].id == first.id
    with pytest.raises(Conflict):
        JobRecords(engine).submit(job(idempotency_key="k", fingerprint="b"), items(1), 1, queue.enqueue)
    assert entries(engine, "workflow_uuid") == [(f"{first.id}.0",)]


def test_the_most_urgent_first_and_then_in_turn(engine: sa.Engine, queue: JobQueue) -> None:
    ids = {}
    for name, priority in (("low", 0), ("usual", 5), ("high", 9), ("usual too", 5)):
        ids[name] = submitted(engine, queue, priority=priority).id
        time.sleep(0.003)  # created_at has milliseconds
    order = [row[0].partition(".")[0] for row in entries(engine)]
    assert order == [ids[name] for name in ("high", "usual", "usual too", "low")]


def test_a_delayed_hand(engine: sa.Engine, queue: JobQueue) -> None:
    stored = submitted(engine, queue)
    before = time.time()
    with writing(engine) as session:
        queue.enqueue(session, stored, 1, delay_s=60)
    ((status, until_ms),) = [
        row[1:] for row in entries(engine, "workflow_uuid, status, delay_until_epoch_ms") if row[0] == f"{stored.id}.1"
    ]
    assert status == "DELAYED" and 59 < until_ms / 1000 - before < 90


def test_withdraw(engine: sa.Engine, queue: JobQueue) -> None:
    """Of a job that is over, the entries that wait; after a retry the new ones have other ids."""
    jobs = JobRecords(engine)
    stored, other = submitted(engine, queue, queue_entries=3), submitted(engine, queue)
    with writing(engine) as session:
        queue.enqueue(session, stored, 3, delay_s=60)
        queue.enqueue(session, stored, 4)
    taken(engine, f"{stored.id}.0", status="SUCCESS")
    taken(engine, f"{stored.id}.4", status="PENDING", executor_id="worker-1")
    change(engine, Job, stored.id, entries=5)
    queue.withdraw(jobs.cancel("local", stored.id))
    statuses = {row[0]: row[1] for row in entries(engine)}
    assert statuses == {
        f"{stored.id}.0": "SUCCESS",
        f"{stored.id}.1": "CANCELLED",
        f"{stored.id}.2": "CANCELLED",
        f"{stored.id}.3": "CANCELLED",
        f"{stored.id}.4": "PENDING",  # the one that has it sees for itself
        f"{other.id}.0": "ENQUEUED",
    }
    jobs.retry("local", stored.id, lambda items: items, queue.enqueue)
    assert {row[0]: row[1] for row in entries(engine)}[f"{stored.id}.5"] == "ENQUEUED"


def test_a_late_withdrawal_leaves_the_entries_of_a_retry(engine: sa.Engine, queue: JobQueue) -> None:
    """Cancelled by one and tried again by another, who was faster than the second half of the cancel."""
    jobs = JobRecords(engine)
    stored = submitted(engine, queue, queue_entries=2)
    cancelled = jobs.cancel("local", stored.id)
    jobs.retry("local", stored.id, lambda items: items, queue.enqueue)
    queue.withdraw(cancelled)
    assert {row[0]: row[1] for row in entries(engine)} == {
        f"{stored.id}.0": "CANCELLED",
        f"{stored.id}.1": "CANCELLED",
        f"{stored.id}.2": "ENQUEUED",
    }


def test_forget(engine: sa.Engine, queue: JobQueue) -> None:
    stored, other = submitted(engine, queue, queue_entries=501), submitted(engine, queue)
    JobRecords(engine).cancel("local", stored.id)
    queue.forget(stored)
    assert entries(engine, "workflow_uuid") == [(f"{other.id}.0",)]
    queue.forget(stored)  # nothing is there


def test_forget_done(engine: sa.Engine, queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = submitted(engine, queue, queue_entries=6)
    ids = [f"{stored.id}.{n}" for n in range(6)]
    ended = now() - timedelta(hours=1)
    for n, (status, later_s) in enumerate([("SUCCESS", 0), ("ERROR", 0), ("CANCELLED", 1), ("SUCCESS", 1800)]):
        at_ms = int((ended + timedelta(seconds=later_s)).timestamp() * 1000)
        taken(engine, ids[n], status=status, completed_at=at_ms)
    taken(engine, ids[4], status="PENDING")
    monkeypatch.setattr(dbos_queue, "_AT_ONCE", 2)
    assert queue.forget_done(ended - timedelta(seconds=1)) == 0
    assert len(entries(engine)) == 6
    before = ended + timedelta(seconds=60)
    assert [queue.forget_done(before) for _ in range(3)] == [2, 1, 0]
    assert {row[0] for row in entries(engine)} == set(ids[3:])


def test_has_entries(engine: sa.Engine, queue: JobQueue) -> None:
    stored = submitted(engine, queue)
    entry = f"{stored.id}.0"
    for status, waits in [
        ("ENQUEUED", True),
        ("PENDING", False),
        ("DELAYED", True),
        ("SUCCESS", False),
        ("ERROR", False),
        ("CANCELLED", False),
    ]:
        taken(engine, entry, status=status)
        assert queue.has_entries(stored.id) is waits, status
    assert not queue.has_entries("no such job")
    taken(engine, entry, status="ENQUEUED")
    assert not queue.has_entries(stored.id[:-1])  # ids that begin alike are others


def test_entries_of_dead_workers_come_back(engine: sa.Engine, queue: JobQueue) -> None:
    one, two, three = (
        submitted(engine, queue, queue_entries=2),
        submitted(engine, queue, kind="request"),
        submitted(engine, queue),
    )
    for entry, worker in ((f"{one.id}.0", "dead"), (f"{one.id}.1", "alive"), (f"{two.id}.0", "dead too")):
        taken(engine, entry, status="PENDING", executor_id=worker, owner_xid="x", started_at_epoch_ms=1)
    assert queue.resume_orphans({"alive", "dead", "dead too"}) == []
    assert sorted(queue.resume_orphans({"alive"})) == sorted([one.id, two.id])
    found = {row[0]: row[1:] for row in entries(engine, "workflow_uuid, status, queue_name, owner_xid")}
    assert found == {
        f"{one.id}.0": ("ENQUEUED", "ekiben-batches", None),
        f"{one.id}.1": ("PENDING", "ekiben-batches", "x"),
        f"{two.id}.0": ("ENQUEUED", "ekiben-requests", None),
        f"{three.id}.0": ("ENQUEUED", "ekiben-batches", None),
    }
    assert queue.resume_orphans({"alive"}) == []


TAKER = """
import os, sys, time
from services.jobs.dbos_queue import QueueConsumer
seen = []
def work(job_id):
    seen.append(job_id)
    print(job_id, flush=True)
QueueConsumer(sys.argv[1], "worker-1", work, dict.fromkeys(sys.argv[3].split(","), 1)).start()
deadline = time.monotonic() + 30
while len(seen) < int(sys.argv[2]) and time.monotonic() < deadline:
    time.sleep(0.02)
time.sleep(0.2)
os._exit(0)  # an orderly end takes two seconds
"""


def take(url: str, count: int, kinds: str) -> subprocess.CompletedProcess[str]:
    """What a worker for ``kinds`` takes, until it has taken ``count`` entries or 30 s are over."""
    return subprocess.run(
        [sys.executable, "-c", TAKER, url, str(count), kinds],
        cwd=Path(dbos_queue.__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_worker_takes_them_in_this_order(tmp_path: Path) -> None:
    """As a worker really does; one database is enough, because each start takes seconds."""
    url = f"sqlite:///{tmp_path / 'ekiben.db'}"
    migrate(url)
    queue, engine = JobQueue(url), connect(url)
    queue.migrate()
    low, usual, high = (submitted(engine, queue, priority=priority).id for priority in (1, 5, 9))
    lost = submitted(engine, queue, priority=9)
    taken(engine, f"{lost.id}.0", status="PENDING", executor_id="dead")
    queue.withdraw(submitted(engine, queue, priority=9))
    assert queue.resume_orphans(set()) == [lost.id]
    done = take(url, 4, "request,batch")
    assert done.stdout.split() == [high, lost.id, usual, low], done.stderr
    assert {row[0]: row[1] for row in entries(engine)}[f"{high}.0"] == "SUCCESS"
    assert states_now(engine, high) == ["queued"]  # DBOS knows nothing of items
    queue.close()
    engine.dispose()


def test_a_worker_takes_no_kind_that_others_take(tmp_path: Path) -> None:
    """DBOS polls every queue that any worker has registered, unless it is told which."""
    url = f"sqlite:///{tmp_path / 'ekiben.db'}"
    migrate(url)
    queue, engine = JobQueue(url), connect(url)
    queue.migrate()
    assert take(url, 0, "training,provision,batch").returncode == 0  # another worker, which registers its queues
    left = [submitted(engine, queue, kind=kind, priority=9).id for kind in ("training", "provision")]
    own = submitted(engine, queue)
    with writing(engine) as session:
        queue.enqueue(session, own, 1, delay_s=4)  # every queue is polled every two seconds, or more often
    done = take(url, 2, "request,batch")
    assert done.stdout.split() == [own.id, own.id], done.stderr
    assert {row[0]: row[1] for row in entries(engine)} == {
        **{f"{ident}.0": "ENQUEUED" for ident in left},
        f"{own.id}.0": "SUCCESS",
        f"{own.id}.1": "SUCCESS",
    }
    queue.close()
    engine.dispose()


def test_an_entry_that_a_worker_has_taken_is_not_forgotten_with_its_job(engine: sa.Engine, queue: JobQueue) -> None:
    """DBOS takes it for a fault where the entry that it works on is gone when it ends."""
    stored = submitted(engine, queue, queue_entries=3)
    taken(engine, f"{stored.id}.0", status="PENDING", executor_id="w1")
    taken(engine, f"{stored.id}.1", status="SUCCESS")
    queue.forget(stored)
    assert entries(engine, "workflow_uuid, status") == [(f"{stored.id}.0", "PENDING")]
    ended = int(now().timestamp() * 1000) - 5000
    taken(engine, f"{stored.id}.0", status="SUCCESS", completed_at=ended)
    assert queue.forget_done(now()) == 1
    assert entries(engine) == []


@pytest.mark.parametrize(
    ("error", "logged"),
    [
        (dbos_errors.DBOSAwaitedWorkflowCancelledError("a-job.0"), False),
        (dbos_errors.DBOSNonExistentWorkflowError("target", "a-job.0"), False),
        (ValueError("a fault"), True),
        (None, True),
    ],
)
def test_an_entry_that_was_withdrawn_as_it_was_taken_is_no_fault(
    error: Exception | None, logged: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"sqlite:///{tmp_path / 'ekiben.db'}"
    migrate(url)
    JobQueue(url).migrate()
    consumer = dbos_queue.QueueConsumer(url, "w1", lambda job_id: None, {})
    consumer.start()
    logger = logging.getLogger("dbos")
    logger.addHandler(caplog.handler)
    try:
        logger.error("Exception encountered in background workflow:", exc_info=error)
    finally:
        logger.removeHandler(caplog.handler)
        consumer.stop(5)
    assert any(record.levelno >= logging.ERROR for record in caplog.records) is logged
