"""Job handlers in a worker: they end once, are handed on, and the one that lost one leaves nothing behind."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from sqlmodel import Session

from db.job_states import ClaimedItem, finish_items
from db.tables import Job, ModelVersion
from ekiben.errors import NotFound, Refusal, Unavailable
from services.jobs import item_settler
from services.jobs.child_process import ChildFailed
from tests import toy_models
from tests.services.jobs.workspace.bench import Bench, Run, never, nothing, publishing
from tests.waiting import async_eventually

RED = toy_models.encoded(toy_models.solid((255, 0, 0)))

# ---- how it ends ----


def test_it_ends_its_item(run: Run) -> None:
    async def main(bench: Bench) -> None:
        job = await bench.submit()
        assert (job.kind, job.operation, job.total, job.parameters) == ("training", "paint", 1, {"wide": 3})
        job = await bench.finish(job.id)
        assert (job.state, job.progress, job.error, job.attempts) == ("succeeded", 1.0, None, 1)
        [item] = bench.at.items(job.id)
        assert (item.state, item.result, item.worker_id) == ("succeeded", {"painted": True}, None)
        assert await bench.at.results(job.id) == [{"painted": True}]
        assert bench.work.busy == 0

    run(main)


def test_result_and_version_are_one_transaction(run: Run) -> None:
    """The one that sees the version sees the job ended, and a version that cannot be stored ends nothing."""

    async def main(bench: Bench) -> None:
        seen = []

        async def does(bench: Bench, job: Job, item: ClaimedItem) -> None:
            def end(session: Session, version: ModelVersion) -> None:
                finish_items(session.connection(), [bench.item_result(item, version=version.version)])
                # Nobody else sees either of them yet.
                seen.append(bench.at.job(job.id).state)
                with pytest.raises((NotFound, Unavailable)):
                    bench.app_state.registry.resolve("painted")

            await asyncio.to_thread(publishing(bench, item, end))

        bench.does = does
        job = await bench.finish((await bench.submit()).id)
        assert seen == ["running"]
        assert job.state == "succeeded"
        assert bench.at.items(job.id)[0].result == {"version": 1}
        assert bench.app_state.registry.resolve("painted").version == 1

    run(main)


@pytest.mark.parametrize(
    "error",
    [ChildFailed("diverged", "the loss is no longer a number"), Refusal("half of it", code="odd"), NotFound("gone")],
)
def test_a_refusal_fails_the_job_in_its_own_words(run: Run, error: Refusal) -> None:
    async def main(bench: Bench) -> None:
        async def does(*given: Any) -> None:
            raise error

        bench.does = does
        job = await bench.finish((await bench.submit()).id)
        assert job.state == "failed"
        assert job.error == {"code": error.code, "message": error.message}  # not all_items_failed
        assert bench.at.items(job.id)[0].error == job.error
        assert bench.attempts == 1

    run(main)


def test_what_is_no_refusal_stays_in_the_log(run: Run) -> None:
    async def main(bench: Bench) -> None:
        async def does(*given: Any) -> None:
            raise ValueError("/home/somebody/secret")

        bench.does = does
        job = await bench.finish((await bench.submit()).id)
        assert job.error is not None and job.error["code"] == "internal_error"
        assert "secret" not in job.error["message"]

    run(main)


def test_what_may_pass_is_tried_again(run: Run) -> None:
    async def main(bench: Bench) -> None:
        async def does(bench: Bench, job: Job, item: ClaimedItem) -> None:
            if bench.attempts < 3:
                raise Unavailable("the store is away")
            await nothing(bench, job, item)

        bench.does = does
        job = await bench.finish((await bench.submit()).id)
        assert (job.state, bench.attempts) == ("succeeded", 3)
        assert bench.at.items(job.id)[0].tries == 2
        bench.attempts = -1000
        job = await bench.finish((await bench.submit()).id)
        assert job.error == {"code": "unavailable", "message": "the store is away"}
        assert bench.attempts == -1000 + item_settler.MAX_TRIES

    run(main)


def test_cancelled_while_it_runs_it_ends_at_once(run: Run) -> None:
    async def main(bench: Bench) -> None:
        ended = asyncio.Event()

        async def does(*given: Any) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        bench.does = does
        job = await bench.submit()
        watching = asyncio.create_task(bench.work.watch())
        working = asyncio.create_task(bench.work.work(job.id))
        await async_eventually(lambda: bench.attempts)
        await bench.app_state.jobs.cancel(job.id)
        await asyncio.wait_for(ended.wait(), 20)
        await working
        assert (bench.at.job(job.id).state, bench.at.states(job.id)) == ("cancelled", ["cancelled"])
        assert (bench.work.busy, bench.attempts) == (0, 1)
        watching.cancel()

    run(main)


def test_a_job_that_was_cancelled_can_be_tried_again(run: Run) -> None:
    async def main(bench: Bench) -> None:
        job = await bench.submit()
        await bench.app_state.jobs.cancel(job.id)
        await bench.work.work(job.id)
        assert bench.attempts == 0
        await bench.app_state.jobs.retry(job.id)
        assert (await bench.finish(job.id)).state == "succeeded"

    run(main)


def test_its_time_is_up(run: Run) -> None:
    """At once: nothing else would end it for hours."""

    async def main(bench: Bench) -> None:
        bench.does = never
        job = await bench.submit(timeout_s=0.3)
        begun = time.monotonic()
        await asyncio.wait_for(bench.work.work(job.id), 20)
        assert time.monotonic() - begun > 0.2
        job = bench.at.job(job.id)
        assert job.state == "failed" and job.error is not None and job.error["code"] == "timed_out"

    run(main)


# ---- stopping ----


def test_a_worker_that_stops_requeues_it_at_once(run: Run) -> None:
    async def main(bench: Bench) -> None:
        bench.does = never
        job = await bench.submit()
        working = asyncio.create_task(bench.work.work(job.id))
        await async_eventually(lambda: bench.attempts)
        begun = time.monotonic()
        await bench.work.stop(1000)
        await working
        assert time.monotonic() - begun < 20
        [item] = bench.at.items(job.id)
        assert (item.state, item.worker_id, item.deaths, item.tries) == ("queued", None, 0, 0)
        assert bench.at.job(job.id).state == "running"
        bench.does = nothing
        _, bench.work = bench.another_worker()
        assert (await bench.finish(job.id)).state == "succeeded"

    run(main)


def test_none_begins_in_a_worker_that_stops(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was claimed in the very moment in which the worker was asked to stop."""

    async def main(bench: Bench) -> None:
        bench.does = never
        job = await bench.submit()
        claim, claiming, let = bench.records.claim, asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def slow(*given: Any) -> Any:
            found = claim(*given)
            loop.call_soon_threadsafe(claiming.set)
            asyncio.run_coroutine_threadsafe(let.wait(), loop).result()
            return found

        monkeypatch.setattr(bench.records, "claim", slow)
        working = asyncio.create_task(bench.work.work(job.id))
        await claiming.wait()
        stopping = asyncio.create_task(bench.work.stop(0.1))
        await asyncio.sleep(0.05)
        let.set()
        await asyncio.wait_for(asyncio.gather(working, stopping), 20)
        assert bench.attempts == 0
        assert bench.at.states(job.id) == ["queued"]

    run(main)


# ---- beside other work ----


def test_a_batch_goes_on_meanwhile(run: Run) -> None:
    """With a single place: a job handler works in a process of its own and takes none."""

    async def main(bench: Bench) -> None:
        bench.does = never
        job = await bench.submit()
        working = asyncio.create_task(bench.work.work(job.id))
        await async_eventually(lambda: bench.attempts)
        assert not bench.work.computing
        batch = await bench.at.submit("classify", [RED] * 3, {"model": "colours"})
        await asyncio.create_task(bench.work.work(batch.id))
        assert bench.at.job(batch.id).state == "succeeded"
        # Nor does it wait for one that has to be alone.
        batch = await bench.at.submit("classify", [RED], {"model": "colours"})
        bench.at.change_item(bench.at.items(batch.id)[0].id, deaths=1)
        await asyncio.create_task(bench.work.work(batch.id))
        assert bench.at.job(batch.id).state == "succeeded"
        assert bench.at.states(job.id) == ["running"]
        await bench.work.stop(1)
        await working

    run(main)


def test_a_worker_works_on_no_more_jobs_of_a_kind_than_its_own_limit(run: Run) -> None:
    """The queue has one number for all workers: that of the worker that was started last."""

    async def main(bench: Bench) -> None:
        bench.trainings = 2
        bench.workspace, bench.work = bench.another_worker()
        going_on, entered = asyncio.Event(), 0

        async def held(bench: Bench, job: Job, item: ClaimedItem) -> None:
            nonlocal entered
            entered += 1
            await going_on.wait()
            await nothing(bench, job, item)

        bench.does = held
        jobs = [await bench.submit() for _ in range(4)]
        working = [asyncio.create_task(bench.work.work(job.id)) for job in jobs[:3]]
        await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
        await async_eventually(lambda: entered == 2)
        await bench.work.work(jobs[3].id)
        rows = [bench.at.job(job.id) for job in jobs]
        assert sorted(job.state for job in rows) == ["queued", "queued", "running", "running"]
        # An entry goes back to the queue, and the time of the job has not begun.
        assert {(job.entries, job.started_at) for job in rows if job.state == "queued"} == {(2, None)}
        going_on.set()
        await asyncio.gather(*working)
        for job in jobs:
            assert (await bench.finish(job.id)).state == "succeeded"

        bench.trainings = 0
        bench.workspace, bench.work = bench.another_worker()
        job = await bench.submit()
        await bench.work.work(job.id)
        assert (bench.at.job(job.id).state, bench.attempts) == ("queued", 4)

    run(main)
