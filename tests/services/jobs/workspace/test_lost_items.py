"""A worker that lost its item or died writes nothing more, and the job goes on elsewhere."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlmodel import Session

from db.job_states import LOST, ClaimedItem, ItemResult, finish_items
from db.tables import Job, ModelVersion
from db.workers import Workers
from ekiben.errors import Conflict, NotFound, Unavailable
from ekiben.ids import LOCAL_OWNER
from services.jobs.workspace import JobWorkspace
from tests.services.jobs.workspace.bench import Bench, Run, never, nothing, publishing

# ---- a worker that lost its item ----
from tests.waiting import async_eventually


def test_a_worker_that_lost_it_leaves_nothing(run: Run) -> None:
    """Another worker has the item now, and has kept a later checkpoint."""

    async def main(bench: Bench) -> None:
        refused: list[str | None] = []

        async def does(bench: Bench, job: Job, item: ClaimedItem) -> None:
            first = bench.workspace
            await first.store_file(item, "checkpoint", bench.file("checkpoint.pt", "mine"))
            bench.at.change_item(item.id, worker_id="another")
            another = JobWorkspace(first.settings, first.store, first.jobs, "another", first.threads)
            await another.store_file(item, "checkpoint", bench.file("checkpoint.pt", "later, of another"))
            blobs, told = bench.at.blobs(), len(bench.told(job.id))

            def settle_also(session: Session, version: ModelVersion) -> None:
                finish_items(session.connection(), [ItemResult(item.job_id, item.id, first.worker_id, result={})])

            attempts: list[Callable[[], Awaitable[Any]]] = [
                lambda: first.emit_event(item, "epoch", {"epoch": 9}, 0.9),
                lambda: first.store_file(item, "checkpoint", bench.file("checkpoint.pt", "too late")),
                lambda: first.store_file(item, "preview", bench.file("0002.png", "too late")),
                lambda: asyncio.to_thread(publishing(bench, item, settle_also)),
            ]
            for attempt in attempts:
                with pytest.raises(Conflict) as lost:
                    await attempt()
                refused.append(lost.value.code)
            assert (len(bench.told(job.id)), bench.at.job(job.id).progress) == (told, 0.0)
            [file] = bench.records.files(LOCAL_OWNER, job.id)
            content = bench.app_state.store.get(file.storage_key)
            assert (content, file.sha256) == (b"later, of another", hashlib.sha256(content).hexdigest())
            assert bench.at.blobs() == blobs
            assert list(bench.app_state.store.list("models/painted/")) == []
            with pytest.raises((NotFound, Unavailable)):
                bench.app_state.registry.resolve("painted")
            raise Conflict("this item is not claimed by this worker any more", code=LOST)

        bench.does = does
        job = await bench.submit()
        await bench.work.work(job.id)
        assert refused == [LOST] * 4
        [item] = bench.at.items(job.id)
        assert (item.state, item.worker_id, item.error) == ("running", "another", None)

    run(main)


@pytest.mark.parametrize("error", [Conflict("taken"), NotFound("no dataset"), ValueError("a fault")])
def test_what_is_raised_beside_a_version_undoes_it(run: Run, error: Exception) -> None:
    async def main(bench: Bench) -> None:
        def fail(session: Session, version: ModelVersion) -> None:
            assert version.version == 1
            raise error

        revision = bench.app_state.registry.revision()
        publish = publishing(bench, None, fail)  # type: ignore[arg-type]
        with pytest.raises(type(error)):
            await asyncio.to_thread(publish)
        assert list(bench.app_state.store.list("models/painted/")) == []
        with pytest.raises((NotFound, Unavailable)):
            bench.app_state.registry.resolve("painted")
        assert "painted" not in [row.model.name for row in bench.app_state.registry.models()]
        assert bench.app_state.registry.revision() >= revision

    run(main)


def test_a_version_whose_commit_is_unsure_keeps_its_files(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database went away in the commit: the row may be there, so its files must be."""

    async def main(bench: Bench) -> None:
        def away(session: Session, version: ModelVersion) -> None:
            raise Unavailable("the database is away")

        with pytest.raises(Unavailable):
            await asyncio.to_thread(publishing(bench, None, away))  # type: ignore[arg-type]
        stored = [key.removeprefix("models/painted/1/") for key in bench.app_state.store.list("models/painted/")]
        assert sorted(stored) == ["manifest.json", "model.onnx"]

    run(main)


# ---- workers that die ----


async def begun_and_killed(bench: Bench, job_id: str) -> None:
    """A worker is at it and dies: its task is dropped without a word to the database."""
    workers = Workers(bench.app_state.database)
    workers.enter(bench.workspace.worker_id)
    before = bench.attempts
    working = asyncio.create_task(bench.work.work(job_id))
    await async_eventually(lambda: bench.attempts > before)
    await asyncio.sleep(0.02)
    workers.fail_worker(bench.workspace.worker_id)
    bench.work._stopping = True  # the dead do not claim
    for entry in bench.work._active.values():
        for task in entry.tasks:
            task.cancel()
    await working
    bench.workspace, bench.work = bench.another_worker()


def test_three_deaths_fail_it(run: Run) -> None:
    async def main(bench: Bench) -> None:
        bench.does = never
        job = await bench.submit()
        for death in range(3):
            assert bench.at.job(job.id).state == ("queued" if death == 0 else "running")
            await begun_and_killed(bench, job.id)
        job = bench.at.job(job.id)
        assert job.state == "failed" and job.error is not None
        assert (job.error["code"], bench.attempts) == ("worker_died", 3)
        assert "memory" in job.error["message"]
        lost = [event.data for event in bench.told(job.id) if event.kind == "worker_lost"]
        assert lost == [{"deaths": 1}, {"deaths": 2}, {"deaths": 3}]

    run(main)


def test_deaths_between_which_it_got_on_do_not_fail_it(run: Run) -> None:
    async def main(bench: Bench) -> None:
        async def does(bench: Bench, job: Job, item: ClaimedItem) -> None:
            await bench.workspace.store_file(item, "checkpoint", bench.file("checkpoint.pt", f"epoch {bench.attempts}"))
            if bench.attempts <= 5:
                await asyncio.Event().wait()
            await nothing(bench, job, item)

        bench.does = does
        job = await bench.submit()
        for death in range(1, 6):
            before = len(bench.told(job.id))
            await begun_and_killed(bench, job.id)
            assert bench.at.job(job.id).state == "running", f"after {death} deaths"
            assert len(bench.told(job.id)) > before
        assert (await bench.finish(job.id)).state == "succeeded"
        assert bench.attempts == 6

    run(main)
