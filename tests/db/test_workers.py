"""Workers: who lives by the database's clock, what becomes of the work of the dead, whose turn it is."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlmodel import Session

from db import job_states
from db.jobs import JobRecords
from db.session import writing
from db.tables import Chore, Job, Worker, now
from db.workers import Workers
from ekiben.errors import Unavailable
from tests.db.job_rows import change, claimed, count, given_back, items_now, job_now, states_now, submitted

TTL_S = 60.0
CLOCK = timedelta(seconds=20)  # the database's and ours are the same; the machine is busy


@pytest.fixture
def workers(engine: sa.Engine) -> Workers:
    return Workers(engine)


def unheard(engine: sa.Engine, worker_id: str, seconds: float) -> None:
    change(engine, Worker, worker_id, seen_at=now() - timedelta(seconds=seconds))


def test_a_worker_that_beats_is_alive(engine: sa.Engine, workers: Workers) -> None:
    workers.enter("b")
    workers.enter("a")
    one, two = workers.alive(TTL_S)
    assert (one.id, two.id) == ("a", "b")
    assert (one.host, one.pid, one.running) == (socket.gethostname(), os.getpid(), 0)
    assert one.started_at == one.seen_at and abs(now() - one.seen_at) < CLOCK
    unheard(engine, "a", 61)
    assert [worker.id for worker in workers.alive(TTL_S)] == ["b"]
    assert [worker.id for worker in workers.alive(600)] == ["a", "b"]
    assert workers.beat("a", 3)
    one = workers.alive(TTL_S)[0]
    assert (one.id, one.running) == ("a", 3) and abs(now() - one.seen_at) < CLOCK and one.started_at <= one.seen_at
    assert not workers.beat("nobody", 0)
    assert count(engine, Worker) == 2


def test_a_worker_that_leaves_requeues_its_items(engine: sa.Engine, workers: Workers) -> None:
    job_id = submitted(engine, 3)
    workers.enter("a")
    workers.enter("b")
    claimed(engine, job_id, "a", 2)
    claimed(engine, job_id, "b", 1)
    workers.leave("a")
    assert [worker.id for worker in workers.alive(TTL_S)] == ["b"]
    assert [(item.state, item.worker_id, item.deaths) for item in items_now(engine, job_id)] == [
        ("queued", None, 0),
        ("queued", None, 0),
        ("running", "b", 0),
    ]
    assert job_now(engine, job_id).deaths == 0
    assert not workers.beat("a", 0)
    workers.leave("a")


def test_the_dead_are_buried_and_the_living_are_not(engine: sa.Engine, workers: Workers) -> None:
    one, two, three = (submitted(engine, 2) for _ in range(3))
    for worker_id in ("dead", "idle", "alive"):
        workers.enter(worker_id)
    for job_id in (two, one):
        claimed(engine, job_id, "dead", 1)
    claimed(engine, one, "alive", 1)
    claimed(engine, three, "alive", 2)
    assert workers.fail_silent(TTL_S) == {}
    unheard(engine, "dead", 61)
    unheard(engine, "idle", 61)
    assert workers.fail_silent(TTL_S) == {"dead": sorted([one, two]), "idle": []}
    assert [worker.id for worker in workers.alive(600)] == ["alive"]
    assert [(item.state, item.worker_id, item.deaths) for item in items_now(engine, one)] == [
        ("queued", None, 1),
        ("running", "alive", 0),
    ]
    assert [item.deaths for item in items_now(engine, two)] == [1, 0]
    assert [job_now(engine, job_id).deaths for job_id in (one, two, three)] == [1, 1, 0]
    assert not workers.beat("dead", 0)  # from which it learns that it was taken for dead
    assert workers.fail_silent(TTL_S) == {}


def test_one_whose_rows_are_locked_keeps_none_of_the_others(
    engine: sa.Engine, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = submitted(engine, 1)
    for worker_id in ("a", "b", "c"):
        workers.enter(worker_id)
        unheard(engine, worker_id, 61)
    claimed(engine, job_id, "c", 1)
    fail_worker = job_states.fail_worker

    def locked(session: Session, worker_id: str) -> list[str]:
        jobs = fail_worker(session, worker_id)
        if worker_id == "b":
            raise Unavailable("lock timeout")
        return jobs

    monkeypatch.setattr(job_states, "fail_worker", locked)
    assert workers.fail_silent(TTL_S) == {"a": [], "c": [job_id]}
    monkeypatch.undo()
    assert workers.known() == {"b"}
    assert workers.fail_silent(TTL_S) == {"b": []}


def test_one_that_is_known_to_be_dead_is_buried_at_once(engine: sa.Engine, workers: Workers) -> None:
    job_id = submitted(engine, 2)
    workers.enter("dead")
    workers.enter("alive")
    claimed(engine, job_id, "dead", 1)
    claimed(engine, job_id, "alive", 1)
    assert workers.known() == {"dead", "alive"}
    assert workers.fail_worker("dead") == [job_id]
    assert workers.known() == {"alive"}
    assert [(item.state, item.deaths) for item in items_now(engine, job_id)] == [("queued", 1), ("running", 0)]
    assert workers.fail_worker("dead") == [] and workers.fail_worker("nobody") == []
    assert job_now(engine, job_id).deaths == 1


def test_what_the_dead_claim_is_not_lost(engine: sa.Engine, workers: Workers) -> None:
    """A worker that was stopped for a while goes on, claims the next items, and ends with its next beat. What it had
    then comes back when its process has ended, or with the next sweep; or it was given nothing."""
    job_id = submitted(engine, 4)
    workers.enter("stopped")
    claimed(engine, job_id, "stopped", 2)
    unheard(engine, "stopped", 61)
    workers.fail_silent(TTL_S)
    JobRecords(engine).claim(job_id, "stopped", lambda job: 2)
    assert not workers.beat("stopped", 2)
    workers.fail_worker("stopped")
    workers.fail_silent(TTL_S)
    assert states_now(engine, job_id) == ["queued"] * 4


def test_stalled(engine: sa.Engine, workers: Workers) -> None:
    """Running, with nothing claimed, and quiet."""
    stalled, quiet, items_claimed, queued, over = (submitted(engine, 2) for _ in range(5))
    for job_id in (stalled, quiet, over):
        given_back(engine, "worker-1", claimed(engine, job_id))
    claimed(engine, items_claimed)
    JobRecords(engine).cancel("local", over)
    for job_id in (stalled, items_claimed, queued, over):
        change(engine, Job, job_id, updated_at=now() - timedelta(seconds=40))
    change(engine, Job, quiet, updated_at=now() - timedelta(seconds=20))
    assert workers.stalled(30) == [stalled]
    assert sorted(workers.stalled(10)) == sorted([stalled, quiet])
    assert len(workers.stalled(10, limit=1)) == 1


def test_late(engine: sa.Engine, workers: Workers) -> None:
    late, in_time, over, queued = (submitted(engine, 1, timeout_s=100) for _ in range(4))
    for job_id, seconds in ((late, 161), (in_time, 130), (over, 500)):
        claimed(engine, job_id)
        change(engine, Job, job_id, started_at=now() - timedelta(seconds=seconds))
    JobRecords(engine).cancel("local", over)
    assert [job.id for job in workers.late(60)] == [late]
    assert {job.id for job in workers.late(0)} == {late, in_time}
    assert job_now(engine, queued).state == "queued"


def test_take_turn(engine: sa.Engine, workers: Workers) -> None:
    assert workers.take_turn("sweep", 30)
    assert not workers.take_turn("sweep", 30)
    assert workers.take_turn("clean-up", 600)
    with writing(engine) as session:
        due = {chore.name: chore.due_at - now() for chore in session.exec(sa.select(Chore)).scalars()}  # type: ignore[call-overload]
        assert abs(due["sweep"] - timedelta(seconds=30)) < CLOCK
        assert abs(due["clean-up"] - timedelta(seconds=600)) < CLOCK
        session.execute(sa.update(Chore).values(due_at=now() - timedelta(seconds=1)))
    assert workers.take_turn("sweep", 30)
    assert not workers.take_turn("sweep", 30)
