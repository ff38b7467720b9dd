"""Items of jobs that are cancelled, of workers that stop, and of jobs whose time is up."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from db.tables import now
from ekiben.errors import Conflict
from services.jobs import executor, time_limit
from tests.services.jobs.executor.inputs import AREAS, CLAIM_SIZE, IMAGES, MORE, Held, Run, check_files
from tests.services.jobs.job_homes import AtWork


def test_a_cancelled_job_is_dropped(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(bench: AtWork) -> None:
        held = Held(bench, monkeypatch)
        watching = asyncio.create_task(bench.work.watch())
        job = await bench.submit("segment", MORE, AREAS)
        working = asyncio.create_task(bench.work.work(job.id))
        await held.until(1)
        assert bench.work.busy == CLAIM_SIZE  # one inside, the others at the gate
        assert (held.entered, bench.states(job.id).count("running")) == (1, CLAIM_SIZE)
        cancelled = await bench.app_state.jobs.cancel(job.id)
        assert cancelled.state == "cancelled"
        await asyncio.wait_for(working, 20)
        assert (held.inside, bench.work.busy) == (0, 0)
        assert bench.states(job.id) == ["cancelled"] * len(MORE)
        assert bench.rows() == {"images": 0, "predictions": 0, "artifacts": 0}
        assert bench.blobs() == {item.storage_key for item in bench.items(job.id)}  # the images: it may be retried
        assert not bench.app_state.job_queue.has_entries(job.id)
        held.open.set()
        retried = await bench.app_state.jobs.retry(job.id)
        assert (retried.state, retried.attempts) == ("queued", 1)
        job = await bench.finish(job.id)
        assert (job.state, job.succeeded, job.attempts) == ("succeeded", len(MORE), 2)
        assert check_files(bench, job.id) == 3 * len(MORE)
        watching.cancel()

    run(main, max_items=1)


def test_what_has_ended_stays_when_a_job_is_cancelled(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(bench: AtWork) -> None:
        watching = asyncio.create_task(bench.work.watch())
        job = await bench.submit("segment", MORE, AREAS)
        monkeypatch.setattr(executor, "SLICE_S", 0.0)
        await bench.work.work(job.id)  # one window, then others have their turn
        assert bench.states(job.id) == ["succeeded"] * CLAIM_SIZE + ["queued"] * 2
        await bench.app_state.jobs.cancel(job.id)
        await bench.work.work(job.id)
        job = bench.job(job.id)
        assert (job.state, job.succeeded) == ("cancelled", CLAIM_SIZE)
        assert bench.states(job.id) == ["succeeded"] * CLAIM_SIZE + ["cancelled"] * 2
        assert check_files(bench, job.id) == 3 * CLAIM_SIZE
        with pytest.raises(Conflict):
            await bench.app_state.jobs.cancel(job.id)
        watching.cancel()

    run(main)


def test_a_worker_that_stops_requeues_its_items(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(bench: AtWork) -> None:
        held = Held(bench, monkeypatch)
        job = await bench.submit("segment", IMAGES[:3], AREAS)
        working = asyncio.create_task(bench.work.work(job.id))
        await held.until(2)
        await bench.work.stop(0.05)
        await asyncio.wait_for(working, 20)
        for item in bench.items(job.id):
            assert (item.state, item.deaths, item.worker_id, item.not_before) == ("queued", 0, None, None)
        after = bench.job(job.id)
        assert (after.state, after.deaths, after.entries) == ("running", 0, job.entries + 1)
        assert bench.app_state.job_queue.has_entries(job.id)
        assert bench.rows() == {"images": 0, "predictions": 0, "artifacts": 0}
        held.open.set()
        bench.work = bench.another_worker()
        done = await bench.finish(job.id)
        assert (done.state, done.succeeded) == ("succeeded", 3)
        assert check_files(bench, job.id) == 9

    run(main, max_items=2)


def test_a_worker_that_stops_finishes_what_it_can(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(bench: AtWork) -> None:
        held = Held(bench, monkeypatch)
        job = await bench.submit("segment", IMAGES[:3], AREAS)
        working = asyncio.create_task(bench.work.work(job.id))
        await held.until(2)
        asyncio.get_running_loop().call_later(0.1, held.open.set)
        await bench.work.stop(5)
        await working
        assert bench.states(job.id) == ["succeeded", "succeeded", "queued"]
        assert held.entered == 2  # nothing was begun any more
        assert bench.job(job.id).entries == job.entries + 1
        await bench.work.work(job.id)  # nor ever again
        assert held.entered == 2

    run(main, max_items=2)


def test_a_job_whose_time_is_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(bench: AtWork) -> None:
        held = Held(bench, monkeypatch)
        job = await bench.submit("segment", MORE, AREAS, timeout_s=1000)
        working = asyncio.create_task(bench.work.work(job.id))
        await held.until(CLAIM_SIZE)
        bench.change_job(job.id, started_at=now() - timedelta(seconds=1001))
        held.open.set()
        await working
        job = bench.job(job.id)
        assert job.state == "failed" and job.error is not None and job.error["code"] == "timed_out"
        assert "1000 s" in job.error["message"]
        # Those that had begun could end; none was begun after the end.
        assert bench.states(job.id) == ["succeeded"] * CLAIM_SIZE + ["cancelled"] * 2
        assert (job.succeeded, held.entered) == (CLAIM_SIZE, CLAIM_SIZE)
        retried = await bench.app_state.jobs.retry(job.id)
        assert (retried.state, retried.error, retried.failed) == ("queued", None, 0)
        job = await bench.finish(job.id)
        assert (job.state, job.succeeded) == ("succeeded", len(MORE))

    run(main, max_items=CLAIM_SIZE)


def test_what_waits_at_the_gate_when_time_is_up_is_not_begun(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(bench: AtWork) -> None:
        held = Held(bench, monkeypatch)
        job = await bench.submit("segment", IMAGES[:3], AREAS, timeout_s=1000)
        working = asyncio.create_task(bench.work.work(job.id))
        await held.until(1)
        assert bench.states(job.id) == ["running"] * 3
        bench.change_job(job.id, started_at=now() - timedelta(seconds=1001))
        monkeypatch.setattr(time_limit, "now", lambda: now() + timedelta(seconds=1001))  # of what was claimed before
        held.open.set()
        await working
        job = await bench.finish(job.id)
        assert job.state == "failed" and job.error is not None and job.error["code"] == "timed_out"
        assert (job.succeeded, held.entered) == (1, 1)
        assert sorted(bench.states(job.id)) == ["cancelled", "cancelled", "succeeded"]

    run(main, max_items=1)


def test_items_that_were_claimed_when_time_is_up_are_not_claimed_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(bench: AtWork) -> None:
        held = Held(bench, monkeypatch)
        job = await bench.submit("segment", IMAGES[:3], AREAS, timeout_s=1000)
        # The clock goes on between the claim, which has the time of db.jobs, and the look at it.
        monkeypatch.setattr(time_limit, "now", lambda: now() + timedelta(seconds=1001))
        claims, claim = 0, bench.records.claim

        def counted(*given: Any) -> Any:
            nonlocal claims
            claims += 1
            return claim(*given)

        monkeypatch.setattr(bench.records, "claim", counted)
        await asyncio.wait_for(bench.work.work(job.id), 30)
        job = bench.job(job.id)
        assert job.state == "failed" and job.error is not None and job.error["code"] == "timed_out"
        assert (claims, held.entered, bench.states(job.id)) == (1, 0, ["cancelled"] * 3)

    run(main)


def test_time_is_not_up_while_another_worker_has_an_item(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(bench: AtWork) -> None:
        held = Held(bench, monkeypatch)
        job = await bench.submit("segment", IMAGES[:1], AREAS, timeout_s=1000)
        working = asyncio.create_task(bench.work.work(job.id))
        await held.until(1)
        bench.change_job(job.id, started_at=now() - timedelta(seconds=1001))
        other = bench.another_worker()
        await other.work(job.id)
        assert bench.job(job.id).state == "running"
        assert bench.job(job.id).entries == job.entries + 1  # somebody looks again
        held.open.set()
        await working
        assert bench.job(job.id).state == "succeeded"

    run(main)
