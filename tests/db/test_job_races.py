"""Workers and owners at the same job at the same time: nothing twice, nothing lost, nobody waits for ever."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import sqlalchemy as sa

from db import job_states
from db.job_states import ItemResult
from db.jobs import JobRecords
from db.records import Records
from db.session import connect, writing
from db.tables import Chore, Job, JobItem, Prediction, Worker, now
from db.workers import Workers
from ekiben.errors import Conflict
from tests.db import rows
from tests.db.job_rows import (
    change,
    claimed,
    count,
    events_now,
    given_back,
    items,
    items_now,
    job,
    job_now,
    states_now,
    submitted,
    unqueued,
)

T = TypeVar("T")
BAD = {"code": "bad_image", "message": "not an image"}


def at_once(*works: Callable[[], T]) -> list[T]:
    """What each gives, all begun at the same moment."""
    barrier = threading.Barrier(len(works))

    def begin(work: Callable[[], T]) -> T:
        barrier.wait(10)
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result(60) for future in [pool.submit(begin, work) for work in works]]


def test_every_item_is_claimed_exactly_once(engine: sa.Engine) -> None:
    job_id = submitted(engine, 300)
    jobs = JobRecords(engine)

    def work(worker_id: str) -> list[int]:
        taken: list[int] = []
        while True:
            _, some, more_at = jobs.claim(job_id, worker_id, lambda job: 7)
            taken += [item.position for item in some]
            if not some and more_at is None:
                return taken

    taken = at_once(*(partial(work, f"worker-{n}") for n in range(4)))
    assert sorted(chain(*taken)) == list(range(300))
    stored = items_now(engine, job_id)
    assert [(item.state, item.attempts) for item in stored] == [("running", 1)] * 300
    by_worker = Counter(item.worker_id for item in stored)
    assert by_worker == {f"worker-{n}": len(some) for n, some in enumerate(taken) if some}
    assert job_now(engine, job_id).attempts == 1
    assert events_now(engine, job_id)[1:] == [(2, "state", {"state": "running"})]


def test_workers_together_keep_to_the_bound(engine: sa.Engine) -> None:
    job_id, jobs = submitted(engine, 40, items_at_once=5), JobRecords(engine)
    lots = at_once(*(partial(jobs.claim, job_id, f"worker-{n}", lambda job: 3) for n in range(4)))
    assert sorted(item.position for _, some, _ in lots for item in some) == [0, 1, 2, 3, 4]


def test_a_claim_skips_what_another_is_just_taking(engine: sa.Engine) -> None:
    """On PostgreSQL without waiting; SQLite has one writer, so there the second comes after the first."""
    job_id = submitted(engine, 4)
    claimed(engine, job_id, "worker-0", 1)  # the claim that begins the job locks its row
    with writing(engine) as session:
        assert [item.position for item in job_states.claim(session, job_id, "worker-1", 2)] == [1, 2]
        if engine.dialect.name == "postgresql":
            assert [item.position for item in claimed(engine, job_id, "worker-2", 2)] == [3]
    assert [item.position for item in claimed(engine, job_id, "worker-2", 2)] == (
        [] if engine.dialect.name == "postgresql" else [3]
    )


def test_counts_are_exact_when_many_settle(engine: sa.Engine) -> None:
    """Four worker processes, each with a writer of its own, end the items of one job."""
    job_id = submitted(engine, 120)
    writers = [Records(engine) for _ in range(4)]
    entries = [[item.id for item in claimed(engine, job_id, f"worker-{n}", 30)] for n in range(4)]

    def settle(n: int) -> None:
        futures = [
            writers[n].save([], ItemResult(job_id, item_id, f"worker-{n}", error=BAD if number % 3 == 0 else None))
            for number, item_id in enumerate(entries[n])
        ]
        for future in futures:
            assert future.result(30) is None

    at_once(*(partial(settle, n) for n in range(4)))
    for writer in writers:
        writer.close()
    over = job_now(engine, job_id)
    assert (over.state, over.succeeded, over.failed) == ("succeeded", 80, 40)
    assert Counter(states_now(engine, job_id)) == {"succeeded": 80, "failed": 40}
    ends = [data for _, kind, data in events_now(engine, job_id) if kind == "state"]
    assert [data["state"] for data in ends] == ["queued", "running", "succeeded"]  # it ended once
    assert (ends[-1]["done"], ends[-1]["failed"]) == (120, 40)


def test_two_jobs_settled_in_opposite_orders(engine: sa.Engine) -> None:
    """A group of units has items of several jobs; the one that stores such a group locks the jobs in one order."""
    writers = [Records(engine), Records(engine)]
    for _ in range(5):
        jobs = [submitted(engine, 20), submitted(engine, 20)]
        entries = [
            {job_id: [item.id for item in claimed(engine, job_id, f"worker-{n}", 10)] for job_id in jobs}
            for n in range(2)
        ]

        def settle(n: int, jobs: Sequence[str] = jobs, entries: Any = entries) -> None:
            order = jobs if n == 0 else jobs[::-1]
            futures = [
                writers[n].save([], ItemResult(job_id, entries[n][job_id][number], f"worker-{n}"))
                for number in range(10)
                for job_id in order
            ]
            for future in futures:
                future.result(30)

        at_once(partial(settle, 0), partial(settle, 1))
        assert [(job_now(engine, job_id).state, job_now(engine, job_id).succeeded) for job_id in jobs] == [
            ("succeeded", 20)
        ] * 2
    for writer in writers:
        writer.close()


ROUNDS = {"sqlite": 5, "postgresql": 25}


def test_cancelled_while_workers_settle(engine: sa.Engine) -> None:
    """Every item ends in one way, and what the job counts is what its items and the predictions say."""
    jobs, writers = JobRecords(engine), [Records(engine), Records(engine)]
    ends = Counter[str]()
    for number in range(ROUNDS[engine.dialect.name]):
        job_id = submitted(engine, 8)
        entries = [[item.id for item in claimed(engine, job_id, f"worker-{n}", 4)] for n in range(2)]
        ended = threading.Semaphore(0)

        def settle(
            n: int, job_id: str = job_id, entries: list[list[str]] = entries, ended: threading.Semaphore = ended
        ) -> list[str]:
            stored = []
            for item_id in entries[n]:
                image = rows.image()
                answer = [image, rows.prediction(image.id, id=item_id, job_id=job_id)]
                error = (
                    writers[n].save(answer, ItemResult(job_id, item_id, f"worker-{n}", image_id=image.id)).exception(20)
                )
                ended.release()
                if error is None:
                    stored.append(item_id)
                else:
                    assert isinstance(error, Conflict) and error.code == "item_lost", error
            return stored

        def cancel(job_id: str = job_id, after: int = number % 8, ended: threading.Semaphore = ended) -> list[str]:
            for _ in range(after):
                assert ended.acquire(timeout=20)
            try:
                assert jobs.cancel("local", job_id).state == "cancelled"
            except Conflict:
                assert job_now(engine, job_id).state == "succeeded"
            return []

        stored = list(chain(*at_once(partial(settle, 0), partial(settle, 1), cancel)))
        over = job_now(engine, job_id)
        ends[over.state] += 1
        found = items_now(engine, job_id)
        assert {item.id for item in found if item.state == "succeeded"} == set(stored)
        assert {item.state for item in found} <= {"succeeded", "cancelled"}
        assert (over.succeeded, over.failed) == (len(stored), 0)
        assert over.state == ("succeeded" if len(stored) == 8 else "cancelled")
        assert [data["state"] for _, _, data in events_now(engine, job_id)] == ["queued", "running", over.state]
        with engine.begin() as connection:
            predictions = connection.execute(
                sa.select(sa.func.count()).where(Prediction.job_id == job_id)  # type: ignore[arg-type]
            ).scalar_one()
        assert predictions == len(stored)
    assert ends["cancelled"] > 0  # else this test saw no race
    for writer in writers:
        writer.close()


def test_cancelled_while_workers_claim_and_give_back(engine: sa.Engine) -> None:
    jobs = JobRecords(engine)
    for number in range(ROUNDS[engine.dialect.name]):
        job_id = submitted(engine, 12)
        stop = threading.Event()

        def work(worker_id: str, job_id: str = job_id, stop: threading.Event = stop) -> None:
            while not stop.is_set():
                given_back(engine, worker_id, claimed(engine, job_id, worker_id, 5)[::-1])

        def cancel(job_id: str = job_id, stop: threading.Event = stop, wait_s: float = number % 8 / 1000) -> None:
            time.sleep(wait_s)
            try:
                jobs.cancel("local", job_id)
            finally:
                stop.set()

        at_once(partial(work, "worker-1"), partial(work, "worker-2"), cancel)
        assert set(states_now(engine, job_id)) == {"cancelled"}
        assert claimed(engine, job_id) == []


def test_events_are_numbered_without_gaps(engine: sa.Engine) -> None:
    job_id = submitted(engine, 1)

    def add(thread: int) -> None:
        for number in range(15):
            with writing(engine) as session:
                job_states.add_event(session, job_id, "note", {"thread": thread, "number": number})

    at_once(*(partial(add, n) for n in range(4)))
    found = events_now(engine, job_id)
    assert [number for number, _, _ in found] == list(range(1, 62))
    assert job_now(engine, job_id).last_event == 61
    for thread in range(4):
        assert [data["number"] for _, kind, data in found if data.get("thread") == thread] == list(range(15))


def test_one_submission_of_two_with_the_same_key(engine: sa.Engine) -> None:
    jobs = JobRecords(engine)
    for number in range(5):

        def submit(number: int = number) -> tuple[Job, bool]:
            requested = job(3, idempotency_key=f"key-{number}", fingerprint="f" * 64)
            return jobs.submit(requested, items(3), 1, unqueued)

        results = at_once(submit, submit, submit)
        assert sorted(created for _, created in results) == [False, False, True]
        assert len({stored.id for stored, _ in results}) == 1
    assert (count(engine, Job), count(engine, JobItem)) == (5, 15)


def test_a_webhook_is_lent_to_one(engine: sa.Engine) -> None:
    jobs = JobRecords(engine)
    ids = [submitted(engine, 1, webhook_url="https://example.org/done") for _ in range(6)]
    for id in ids:
        jobs.cancel("local", id)
    lent = at_once(*(partial(jobs.due_webhooks, now(), timedelta(seconds=30), 4) for _ in range(4)))
    again = jobs.due_webhooks(now(), timedelta(seconds=30))  # what was skipped because another was just taking others
    assert sorted(job.id for some in [*lent, again] for job in some) == sorted(ids)


def test_one_has_the_turn(engine: sa.Engine) -> None:
    workers = Workers(engine)
    for chore in ("new", "again"):
        turns = at_once(*(lambda: workers.take_turn("sweep", 60) for _ in range(6)))
        assert sorted(turns) == [False] * 5 + [True], chore
        with writing(engine) as session:
            session.execute(sa.update(Chore).values(due_at=now()))


def test_a_dead_worker_is_buried_once(engine: sa.Engine) -> None:
    workers = Workers(engine)
    for _ in range(5):
        job_id = submitted(engine, 3)
        workers.enter("silent")
        claimed(engine, job_id, "silent")
        change(engine, Worker, "silent", seen_at=now() - timedelta(seconds=9))
        found = at_once(*(lambda: workers.fail_silent(8) for _ in range(4)))
        assert sorted(found, key=len) == [{}, {}, {}, {"silent": [job_id]}]
        assert [item.deaths for item in items_now(engine, job_id)] == [1, 1, 1]
        assert job_now(engine, job_id).deaths == 1


class Pause:
    """The first statement of one thread that begins like this waits, in its transaction, until ``go``."""

    def __init__(self, engine: sa.Engine, beginning: str) -> None:
        self.there, self.go = threading.Event(), threading.Event()
        self.thread: int | None = None
        self._beginning = beginning
        sa.event.listen(engine, "before_cursor_execute", self._before)

    def _before(self, connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if threading.get_ident() == self.thread and statement.startswith(self._beginning) and not self.there.is_set():
            self.there.set()
            self.go.wait(10)


def test_a_worker_leaves_while_it_is_buried(engine: sa.Engine) -> None:
    """It was not heard of for a while, and now it ends: neither of the two waits for the other."""
    job_id, workers = submitted(engine, 2), Workers(engine)
    workers.enter("silent")
    claimed(engine, job_id, "silent")
    change(engine, Worker, "silent", seen_at=now() - timedelta(seconds=9))
    pause = Pause(engine, "DELETE FROM workers")

    def leave() -> None:
        pause.thread = threading.get_ident()
        workers.leave("silent")

    with ThreadPoolExecutor(2) as pool:
        leaving = pool.submit(leave)
        assert pause.there.wait(5)
        burying = pool.submit(workers.fail_silent, 8)
        time.sleep(0.2)
        pause.go.set()
        leaving.result(20)
        burying.result(20)
    assert states_now(engine, job_id) == ["queued", "queued"]
    assert workers.alive(10**9) == []


def test_who_requeues_holds_no_item_while_another_ends_the_job(migrated_postgres: str) -> None:
    """A cancel has the job and one of its items so far: if those who give both back held the other by now, each would
    wait for the other. Only PostgreSQL has locks on rows."""
    engine = connect(migrated_postgres)
    job_id = submitted(engine, 2)
    ids = [item.id for item in claimed(engine, job_id)]
    lock = "SELECT id FROM {} WHERE id = '{}' FOR UPDATE NOWAIT"
    with ThreadPoolExecutor(2) as pool:
        for had, other in (ids, ids[::-1]):
            with engine.begin() as ending:
                ending.exec_driver_sql(lock.format("jobs", job_id))
                ending.exec_driver_sql(lock.format("job_items", had))
                giving_back = pool.submit(JobRecords(engine).requeue, "worker-1", ids)
                time.sleep(0.2)
                assert not giving_back.done()
                # LockNotAvailable here is the deadlock that would be.
                assert ending.exec_driver_sql(lock.format("job_items", other)).scalar_one() == other
            giving_back.result(10)
            assert states_now(engine, job_id) == ["queued", "queued"]
            assert len(claimed(engine, job_id)) == 2
    engine.dispose()
