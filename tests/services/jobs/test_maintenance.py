"""Maintenance: beats, taking over from the dead, and bringing on what nobody works on."""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import Session, col

from db.datasets import Datasets
from db.tables import Chore, Job, Worker, now
from db.workers import Workers
from ekiben.errors import Unavailable
from ekiben.ids import LOCAL_OWNER, new_id
from ekiben.temporary_files import temporary_name
from models.engine import engine
from services.jobs import heartbeat as heartbeats
from services.jobs import maintenance
from services.jobs.heartbeat import BEAT_S, DEAD_S, Heartbeat
from services.jobs.maintenance import STALLED_S, Maintenance
from tests import toy_models
from tests.services.jobs.job_homes import AtWork, at_work, make_home
from tests.waiting import async_eventually

IMAGES = [toy_models.encoded(toy_models.noise(40, 30, seed=n)) for n in range(3)]
AREAS = {"model": "areas"}

Run = Callable[..., None]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("template"))


@pytest.fixture
def run(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(engine, "reclaim_memory", lambda: None)
    monkeypatch.setattr(os, "fsync", lambda handle: None)

    def run(main: Callable[[AtWork], Awaitable[None]], **given: Any) -> None:
        async def whole() -> None:
            async with at_work(template, tmp_path, **given) as bench:
                await asyncio.wait_for(main(bench), 60)

        asyncio.run(whole())

    return run


def maintenance_of(bench: AtWork, steady_s: float = DEAD_S + 1) -> Maintenance:
    """Of a worker whose every beat was heard for so long."""
    app_state = bench.app_state
    workers = Workers(app_state.database)
    heartbeat = Heartbeat(workers, "me", lambda: 0, lambda: None)
    heartbeat.steady_since = time.monotonic() - steady_s
    return Maintenance(
        app_state.settings,
        app_state.records,
        bench.records,
        Datasets(app_state.database),
        workers,
        app_state.job_queue,
        app_state.store,
        heartbeat,
    )


def worker(bench: AtWork, silent_s: float) -> str:
    """The id of a worker that was last heard of so long ago."""
    ident = new_id()
    workers = Workers(bench.app_state.database)
    workers.enter(ident)
    with Session(bench.app_state.database) as session:
        seen = now() - timedelta(seconds=silent_s)
        session.execute(sa.update(Worker).where(col(Worker.id) == ident).values(seen_at=seen))
        session.commit()
    return ident


def take_entries(bench: AtWork, job_id: str, worker_id: str) -> None:
    """As the queue's tables look while a worker has the job's entries."""
    with bench.app_state.database.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE workflow_status SET status = 'PENDING', executor_id = ? WHERE workflow_uuid LIKE ?",
            (worker_id, f"{job_id}.%"),
        )


def entries(bench: AtWork, job_id: str) -> list[str]:
    """States of the job's entries in the queue."""
    with bench.app_state.database.connect() as connection:
        found = connection.exec_driver_sql(
            "SELECT status FROM workflow_status WHERE workflow_uuid LIKE ? ORDER BY workflow_uuid", (f"{job_id}.%",)
        )
        return [row[0] for row in found]


def claim(bench: AtWork, job_id: str, worker_id: str, count: int) -> list[str]:
    return [item.id for item in bench.records.claim(job_id, worker_id, lambda job: count)[1]]


# ---- the sweep ----


def test_what_a_dead_worker_had_is_taken_over(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        dead, slow = worker(bench, DEAD_S + 1), worker(bench, DEAD_S - 2)
        lost = await bench.submit("segment", IMAGES, AREAS)
        going_on = await bench.submit("segment", IMAGES, AREAS)
        claim(bench, lost.id, dead, 2)
        claim(bench, going_on.id, slow, 2)
        take_entries(bench, lost.id, dead)
        take_entries(bench, going_on.id, slow)
        await asyncio.to_thread(maintenance_of(bench).sweep)
        assert bench.states(lost.id) == ["queued"] * 3
        assert [item.deaths for item in bench.items(lost.id)] == [1, 1, 0]
        assert entries(bench, lost.id) == ["ENQUEUED"]
        assert bench.job(lost.id).deaths == 1
        assert bench.states(going_on.id) == ["running", "running", "queued"]
        assert entries(bench, going_on.id) == ["PENDING"]
        assert Workers(bench.app_state.database).known() == {slow}
        done = await bench.finish(lost.id)
        assert (done.state, done.succeeded, done.deaths) == ("succeeded", 3, 0)
        kinds = [event.kind for event in (await bench.app_state.jobs.events(lost.id, 0))[0]]
        assert "worker_lost" in kinds

    run(main)


def test_a_worker_that_was_not_heard_itself_says_nobody_is_dead(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        dead = worker(bench, 10 * DEAD_S)
        job = await bench.submit("segment", IMAGES, AREAS)
        claim(bench, job.id, dead, 3)
        take_entries(bench, job.id, dead)
        for steady_s in (0.0, DEAD_S - 0.5):
            await asyncio.to_thread(maintenance_of(bench, steady_s).sweep)
            assert bench.states(job.id) == ["running"] * 3
            assert entries(bench, job.id) == ["PENDING"]
            assert Workers(bench.app_state.database).known() == {dead}
        await asyncio.to_thread(maintenance_of(bench).sweep)
        assert bench.states(job.id) == ["queued"] * 3

    run(main)


@pytest.mark.parametrize("ahead", [(0, 3600, 3600), (0, 3600, 0), (60, 60, 60), (0, DEAD_S - 1, DEAD_S - 1)])
def test_after_a_pause_of_the_machine_nobody_is_dead_yet(run: Run, ahead: tuple[float, ...]) -> None:
    """Asleep, its clock set, its processes frozen: a sweep may come before the first beat of the other workers."""

    async def main(bench: AtWork) -> None:
        other = worker(bench, 10 * DEAD_S)
        past = [0.0, 0.0, 0.0]
        heartbeat = Heartbeat(Workers(bench.app_state.database), "me", lambda: 0, lambda: None, lambda: tuple(past))
        heartbeat.steady_since = time.monotonic() - 100
        keeper = maintenance_of(bench)
        keeper._heartbeat = heartbeat
        past[:] = ahead
        for _ in range(2):
            await asyncio.to_thread(keeper.sweep)
            assert Workers(bench.app_state.database).known() == {other}
        heartbeat.steady_since -= DEAD_S  # so much later
        past[:] = [seconds + BEAT_S for seconds in past]
        await asyncio.to_thread(keeper.sweep)
        assert Workers(bench.app_state.database).known() == set()

    run(main)


def test_entries_of_a_worker_that_left_are_requeued(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        job = await bench.submit("segment", IMAGES, AREAS)
        take_entries(bench, job.id, new_id())
        await asyncio.to_thread(maintenance_of(bench).sweep)
        assert entries(bench, job.id) == ["ENQUEUED"]
        assert bench.job(job.id).entries == 1

    run(main)


def test_three_deaths_of_an_item(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        job = await bench.submit("segment", IMAGES[:1], AREAS, kind="request")
        for deaths in (1, 2, 3):
            dead = worker(bench, DEAD_S + 1)
            [claimed] = claim(bench, job.id, dead, 4)
            if deaths > 1:  # from the second time on only those that have begun are blamed
                bench.records.begin_alone(dead, claimed)
            await asyncio.to_thread(maintenance_of(bench).sweep)
            [item] = bench.items(job.id)
            assert item.deaths == deaths
            assert item.state == ("failed" if deaths == 3 else "queued")
        job = bench.job(job.id)
        assert job.state == "failed" and job.error is not None and job.error["code"] == "worker_died"

    run(main)


@pytest.mark.parametrize("grace_s", [0, 60, 500])
def test_a_job_far_beyond_its_time(run: Run, grace_s: float) -> None:
    async def main(bench: AtWork) -> None:
        alive = worker(bench, 0)
        late = await bench.submit("segment", IMAGES, AREAS, timeout_s=5)
        in_time = await bench.submit("segment", IMAGES, AREAS, timeout_s=5)
        for job in (late, in_time):
            claim(bench, job.id, alive, 1)
        bench.change_job(late.id, started_at=now() - timedelta(seconds=5 + grace_s + 1))
        bench.change_job(in_time.id, started_at=now() - timedelta(seconds=5 + grace_s - 5))
        await asyncio.to_thread(maintenance_of(bench).sweep)
        job = bench.job(late.id)
        assert job.state == "failed" and job.error is not None and job.error["code"] == "timed_out"
        assert bench.states(late.id) == ["cancelled"] * 3
        assert bench.job(in_time.id).state == "running"

    run(main, job_grace_s=grace_s)


def test_a_job_that_nobody_works_on(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        alive = worker(bench, 0)
        jobs = [await bench.submit("segment", IMAGES, AREAS) for _ in range(4)]
        stalled, waiting, items_claimed, fresh = (job.id for job in jobs)
        for ident in (stalled, waiting, items_claimed, fresh):
            claimed = claim(bench, ident, alive, 1)
            if ident != items_claimed:
                bench.records.requeue(alive, claimed)
            bench.change_job(ident, updated_at=now() - timedelta(seconds=STALLED_S + 1))
        for ident in (stalled, items_claimed, fresh):
            bench.app_state.job_queue.withdraw(bench.job(ident))
        bench.change_job(fresh, updated_at=now() - timedelta(seconds=STALLED_S - 5))
        await asyncio.to_thread(maintenance_of(bench).sweep)
        counts = {ident: bench.job(ident).entries for ident in (stalled, waiting, items_claimed, fresh)}
        assert counts == {stalled: 2, waiting: 1, items_claimed: 1, fresh: 1}
        assert bench.app_state.job_queue.has_entries(stalled)
        assert (await bench.finish(stalled)).state == "succeeded"

    run(main)


def test_an_entry_that_a_living_worker_took_and_never_began(run: Run) -> None:
    """Its dequeue was committed, but the worker did not hear of it: nobody will work on it."""

    async def main(bench: AtWork) -> None:
        alive = worker(bench, 0)
        job = await bench.submit("segment", IMAGES, AREAS)
        bench.records.requeue(alive, claim(bench, job.id, alive, 1))
        take_entries(bench, job.id, alive)
        bench.change_job(job.id, updated_at=now() - timedelta(seconds=STALLED_S + 1))
        for _ in range(2):
            await asyncio.to_thread(maintenance_of(bench).sweep)
            assert entries(bench, job.id) == ["PENDING", "ENQUEUED"]  # one more, not one for every sweep
        assert (await bench.finish(job.id)).state == "succeeded"

    run(main)


# ---- beats ----


def test_beats(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "BEAT_S", 0.02)
    assert BEAT_S * 3 < DEAD_S  # one beat that is lost is no death

    async def main(bench: AtWork) -> None:
        ident, workers = worker(bench, 60), Workers(bench.app_state.database)
        buried = threading.Event()
        heartbeat = Heartbeat(workers, ident, lambda: 7, buried.set)
        heartbeat.start()
        alive = await async_eventually(lambda: workers.alive(30))
        assert [(one.id, one.running, one.pid) for one in alive] == [(ident, 7, os.getpid())]
        assert not buried.is_set()
        workers.fail_worker(ident)
        assert await asyncio.to_thread(buried.wait, 20)
        heartbeat.stop()

    run(main)


def test_beats_that_are_not_heard(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeats, "BEAT_S", 0.02)

    async def main(bench: AtWork) -> None:
        ident, workers = worker(bench, 0), Workers(bench.app_state.database)
        away = [True]
        beats = recorded = 0

        class Away(Workers):
            def beat(self, worker_id: str, running: int) -> bool:
                nonlocal beats, recorded
                beats += 1
                if away[0]:
                    raise Unavailable("the database is away")
                alive = super().beat(worker_id, running)
                recorded += 1
                return alive

        buried = threading.Event()
        heartbeat = Heartbeat(Away(bench.app_state.database), ident, lambda: 0, buried.set)
        begun = time.monotonic()
        heartbeat.steady_since = begun - 100
        heartbeat.start()
        await async_eventually(lambda: beats >= 3)
        away[0] = False
        assert heartbeat.steady_since >= begun
        await async_eventually(lambda: recorded >= 1)
        since = heartbeat.steady_since
        await async_eventually(lambda: recorded >= 4)
        assert heartbeat.steady_since == since  # from the first on every beat was heard
        assert not buried.is_set()
        heartbeat.stop()
        assert [one.id for one in workers.alive(60)] == [ident]

    run(main)


def test_a_beat_that_the_database_refused_late_is_no_pause(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says what it was, once."""
    monkeypatch.setattr(heartbeats, "BEAT_S", 0.02)

    async def main(bench: AtWork) -> None:
        past, beats = [0.0], 0

        class Locked(Workers):
            def beat(self, worker_id: str, running: int) -> bool:
                nonlocal beats
                beats += 1
                past[0] += 10.0
                raise Unavailable("the database is locked")

        workers = Locked(bench.app_state.database)
        heartbeat = Heartbeat(workers, "me", lambda: 0, lambda: None, lambda: (past[0],))
        begun = heartbeat.steady_since
        heartbeat.start()
        await async_eventually(lambda: beats >= 3)
        heartbeat.stop()
        assert heartbeat.steady_since > begun

    run(main)
    assert not [record for record in caplog.records if "stood still" in record.getMessage()]


# ---- the threads ----


def test_chores_are_done_in_turn(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "SWEEP_S", 0.05)
    monkeypatch.setattr(maintenance, "WEBHOOK_S", 0.05)

    async def main(bench: AtWork) -> None:
        dead = worker(bench, DEAD_S + 1)
        job = await bench.submit("segment", IMAGES[:1], AREAS)
        claim(bench, job.id, dead, 1)
        old = await bench.submit("segment", IMAGES[:1], AREAS)
        await bench.app_state.jobs.cancel(old.id)
        bench.change_job(old.id, finished_at=now() - timedelta(days=8))
        keepers = [maintenance_of(bench) for _ in range(2)]
        done: list[str] = []
        for name in ("sweep", "clean-up"):
            for keeper in keepers:
                chores: list[tuple[str, float, Callable[[], object]]] = keeper._chores
                for number, (chore, every_s, work) in enumerate(chores):
                    if chore == name:
                        chores[number] = (chore, every_s, _noted(done, name, work))
        for keeper in keepers:
            keeper.start()
        await async_eventually(
            lambda: bench.states(job.id) == ["queued"] and bench.records.jobs(LOCAL_OWNER).total == 1
        )
        for keeper in keepers:
            await asyncio.to_thread(keeper.stop)
            assert not any(thread.is_alive() for thread in keeper._threads)
        assert done.count("clean-up") == 1  # of the two the first did it, for the next ten minutes
        with Session(bench.app_state.database) as session:
            due: datetime = session.execute(
                sa.select(col(Chore.due_at)).where(col(Chore.name) == "clean-up")
            ).scalar_one()
        assert timedelta(minutes=9) < due - now() < timedelta(minutes=11)

    run(main)


def _noted(done: list[str], name: str, work: Callable[[], object]) -> Callable[[], object]:
    def noted() -> None:
        done.append(name)
        work()

    return noted


def test_a_chore_that_fails_is_tried_at_its_next_turn(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "SWEEP_S", 0.02)

    async def main(bench: AtWork) -> None:
        calls: list[str] = []
        keeper = maintenance_of(bench)

        def fail() -> None:
            calls.append("fail")
            raise RuntimeError("a fault") if len(calls) % 2 else Unavailable("away")

        keeper._chores[:] = [("fail", 0.0, fail), ("other", 0.0, lambda: calls.append("other"))]
        keeper.start()
        await async_eventually(lambda: calls.count("fail") >= 3 and calls.count("other") >= 3)
        await asyncio.to_thread(keeper.stop)

    run(main)


def test_every_worker_sweeps_the_files_of_its_machine(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "SWEEP_S", 0.02)
    monkeypatch.setattr(maintenance, "CLEAN_UP_S", 0.1)

    async def main(bench: AtWork) -> None:
        home = bench.app_state.settings.home
        left = home / "downloads" / re.sub(r"-\d+-\d+-", "-1-1-", temporary_name())  # process 1 began at another time
        (home / "downloads").mkdir()
        keepers = [maintenance_of(bench) for _ in range(2)]
        for keeper in keepers:
            left.write_bytes(b"half")
            keeper.start()
            await async_eventually(lambda: not left.exists())
            await asyncio.to_thread(keeper.stop)

    run(main)


def test_webhooks_that_are_due_are_tried(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maintenance, "WEBHOOK_S", 0.02)

    async def main(bench: AtWork) -> None:
        job = await bench.submit("segment", IMAGES[:1], AREAS)
        bench.change_job(job.id, webhook_url="http://127.0.0.1:9/")
        await bench.app_state.jobs.cancel(job.id)
        keeper = maintenance_of(bench)
        keeper.start()
        await async_eventually(lambda: bench.job(job.id).webhook_tries >= 1)
        await asyncio.to_thread(keeper.stop)
        found: Job = bench.job(job.id)
        assert (found.webhook_state, found.webhook_tries) == ("pending", 1)

    run(main, webhook_secret="secret")


def test_entries_that_were_worked_off_are_forgotten(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        jobs = [await bench.submit("segment", IMAGES[:1], AREAS) for _ in range(3)]
        old, young, waiting = (job.id for job in jobs)
        for ident, hours in ((old, 2), (young, 0.5)):
            moment = int((now() - timedelta(hours=hours)).timestamp() * 1000)
            with bench.app_state.database.begin() as connection:
                connection.exec_driver_sql(
                    "UPDATE workflow_status SET status = 'SUCCESS', completed_at = ? WHERE workflow_uuid LIKE ?",
                    (moment, f"{ident}.%"),
                )
        await asyncio.to_thread(maintenance_of(bench).forget_entries)
        assert [entries(bench, ident) for ident in (old, young, waiting)] == [[], ["SUCCESS"], ["ENQUEUED"]]

    run(main)
