"""Undertakings in a worker's hands: they end once, are handed on, and whoever lost one leaves nothing behind."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlmodel import Session, select

import services
from db.datasets import Datasets
from db.job_states import LOST, OVER, ClaimedItem, ItemResult, finish_items
from db.keys import new_key
from db.publishing import publish_folder
from db.tables import Artifact, Job, JobEvent, ModelVersion, now
from db.workers import Workers
from ekiben.errors import Conflict, NotFound, Refusal, Unavailable
from ekiben.ids import LOCAL_OWNER, derived_id
from models.artifact import read_manifest
from models.engine import engine
from services.jobs import executor, workspace
from services.jobs.child_process import ChildFailed
from services.jobs.executor import JobExecutor
from services.jobs.garbage_collection import GarbageCollector
from services.jobs.service import JobTerms
from services.jobs.workspace import JobWorkspace, child_environ
from services.schemas.datasets import DatasetOptions
from services.trainings import environment
from services.trainings.environment import TorchMissing, training_python
from tests import toy_models
from tests.services.jobs.job_homes import AtWork, at_work, make_home

RED = toy_models.encoded(toy_models.solid((255, 0, 0)))

Run = Callable[..., None]
Work = Callable[["Bench", Job, ClaimedItem], Awaitable[None]]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("template"))


@pytest.fixture
def run(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(engine, "reclaim_memory", lambda: None)  # takes longer than most of these tests
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # nobody pulls the plug here
    monkeypatch.setattr(executor, "WATCH_S", 0.02)
    monkeypatch.setattr(executor, "FIRST_RETRY_S", 0.01)

    def run(main: Callable[[Bench], Awaitable[None]], **given: Any) -> None:
        async def whole() -> None:
            async with at_work(template, tmp_path, **given) as at:
                with ThreadPoolExecutor(2) as threads:
                    bench = Bench(at, threads, tmp_path)
                    await asyncio.wait_for(main(bench), 30)
                    if bench.wrong:
                        raise bench.wrong[0]

        asyncio.run(whole())

    return run


class Bench:
    """A worker whose only undertaking, ``paint``, is whatever the test says."""

    def __init__(self, at: AtWork, threads: ThreadPoolExecutor, folder: Path) -> None:
        self.at, self.app_state, self.records, self.folder = at, at.app_state, at.records, folder
        self._threads = threads
        self.does: Work = nothing
        self.attempts = 0
        self.wrong: list[AssertionError] = []
        self.workspace, self.work = self.another_worker()

    def another_worker(self) -> tuple[JobWorkspace, JobExecutor]:
        at = self.at
        at.another_worker()
        workshop = JobWorkspace(
            self.app_state.settings, self.app_state.store, self.records, at.worker_id, self._threads
        )
        work = JobExecutor(
            self.app_state.inference,
            self.records,
            self.app_state.job_queue,
            at.worker_id,
            places=1,
            heavy_places=1,
            handlers={"paint": self._undertaking(workshop)},
        )
        return workshop, work

    def _undertaking(self, workshop: JobWorkspace) -> Any:
        async def handler(job: Job, item: ClaimedItem) -> None:
            self.attempts += 1
            self.workspace = workshop
            try:
                await self.does(self, job, item)
            except AssertionError as error:  # it would end the item with an internal error, and nobody would see it
                self.wrong.append(error)
                raise

        return handler

    async def submit(self, timeout_s: float | None = None, **given: Any) -> Job:
        terms = JobTerms(timeout_s=timeout_s)
        job, created = await self.app_state.jobs.submit_single(
            "training", "paint", {"wide": 3}, terms, given="x", **given
        )
        assert created
        return job

    async def finish(self, job_id: str, seconds: float = 10.0) -> Job:
        """Give hand after hand until it is over."""
        end = time.monotonic() + seconds
        while (job := self.at.job(job_id)).state not in OVER:
            assert time.monotonic() < end, self.at.items(job_id)
            await self.work.work(job_id)
            await asyncio.sleep(0.01)
        return job

    def told(self, job_id: str) -> list[JobEvent]:
        return self.records.events(LOCAL_OWNER, job_id, 0)[0]

    def file(self, name: str, content: str) -> Path:
        path = self.folder / "made" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        return path

    def item_result(self, item: ClaimedItem, **result: Any) -> ItemResult:
        return ItemResult(item.job_id, item.id, self.workspace.worker_id, result=result)


async def nothing(bench: Bench, job: Job, item: ClaimedItem) -> None:
    """It ends well."""
    await asyncio.wrap_future(bench.app_state.records.save([], bench.item_result(item, painted=True)))


async def never(bench: Bench, job: Job, item: ClaimedItem) -> None:
    await asyncio.Event().wait()


async def until(true: Callable[[], Any], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.005)


def publishing(bench: Bench, item: ClaimedItem, also: Callable[[Session, ModelVersion], None]) -> Callable[[], object]:
    folder = bench.folder / "colours"
    if not folder.is_dir():
        toy_models.classifier(folder)
    manifest = read_manifest(folder)
    return lambda: publish_folder(
        bench.app_state.registry,
        bench.app_state.store,
        folder,
        name="painted",
        manifest=manifest.model_dump(mode="json"),
        digest=manifest.digest,
        lineage={},
        also=also,
    )


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
    """Whoever sees the version sees the job ended, and a version that cannot be stored ends nothing."""

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
        assert bench.attempts == -1000 + executor.MAX_TRIES

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
        await until(lambda: bench.attempts)
        await bench.app_state.jobs.cancel(job.id)
        begun = time.monotonic()
        await asyncio.wait_for(ended.wait(), 3)
        await working
        assert time.monotonic() - begun < 1
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
        await asyncio.wait_for(bench.work.work(job.id), 10)
        assert 0.2 < time.monotonic() - begun < 5
        job = bench.at.job(job.id)
        assert job.state == "failed" and job.error is not None and job.error["code"] == "timed_out"

    run(main)


# ---- stopping ----


def test_a_worker_that_stops_hands_it_on_at_once(run: Run) -> None:
    async def main(bench: Bench) -> None:
        bench.does = never
        job = await bench.submit()
        working = asyncio.create_task(bench.work.work(job.id))
        await until(lambda: bench.attempts)
        begun = time.monotonic()
        await bench.work.stop(20)
        await working
        assert time.monotonic() - begun < 2
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
        begun = time.monotonic()
        await asyncio.wait_for(asyncio.gather(working, stopping), 10)
        assert time.monotonic() - begun < 2
        assert bench.attempts == 0
        assert bench.at.states(job.id) == ["queued"]

    run(main)


# ---- beside other work ----


def test_a_batch_goes_on_meanwhile(run: Run) -> None:
    """With a single place: an undertaking works in a process of its own and takes none."""

    async def main(bench: Bench) -> None:
        bench.does = never
        job = await bench.submit()
        working = asyncio.create_task(bench.work.work(job.id))
        await until(lambda: bench.attempts)
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


# ---- what it tells and keeps ----


def test_what_it_tells(run: Run) -> None:
    async def main(bench: Bench) -> None:
        async def does(bench: Bench, job: Job, item: ClaimedItem) -> None:
            await bench.workspace.emit_event(item, "plan", {"parts": 2}, 0.0)
            await bench.workspace.emit_event(item, "step", {"loss": 0.5, "name": "große Zelle"}, 0.25)
            assert bench.at.job(job.id).progress == 0.25
            await bench.workspace.emit_event(item, "epoch", {"epoch": 1})
            assert bench.at.job(job.id).progress == 0.25  # it says nothing about that
            await nothing(bench, job, item)

        bench.does = does
        job = await bench.finish((await bench.submit()).id)
        told = bench.told(job.id)
        assert [event.kind for event in told] == ["state", "state", "plan", "step", "epoch", "state"]
        assert [event.number for event in told] == [1, 2, 3, 4, 5, 6]
        assert told[3].data == {"loss": 0.5, "name": "große Zelle"}
        epochs, last = bench.records.event_history(LOCAL_OWNER, job.id, "epoch")
        assert [event.data for event in epochs] == [{"epoch": 1}]
        assert {kind: event.number for kind, event in last.items()} == {"state": 6, "plan": 3, "step": 4, "epoch": 5}
        with pytest.raises(NotFound):
            bench.records.event_history("someone", job.id, "epoch")

    run(main)


def test_a_kept_file_is_replaced_and_clears_the_deaths(run: Run) -> None:
    async def main(bench: Bench) -> None:
        async def does(bench: Bench, job: Job, item: ClaimedItem) -> None:
            path = bench.file("checkpoint.pt", "one")
            first = await bench.workspace.store_file(item, "checkpoint", path)
            bench.at.change_item(item.id, deaths=2)
            bench.at.change_job(job.id, deaths=2)
            path.write_text("three")
            second = await bench.workspace.store_file(item, "checkpoint", path)
            assert (first.id, second.bytes) == (second.id, 5)
            assert (bench.at.items(job.id)[0].deaths, bench.at.job(job.id).deaths) == (0, 0)
            other = await bench.workspace.store_file(item, "preview", bench.file("0001.png", "image"))
            assert (other.id != first.id, other.mime_type) == (True, "image/png")
            assert sorted(os.listdir(path.parent)) == ["0001.png", "checkpoint.pt"]
            await nothing(bench, job, item)

        bench.does = does
        job = await bench.finish((await bench.submit()).id)
        files = bench.records.files(LOCAL_OWNER, job.id)
        assert sorted(file.kind for file in files) == ["checkpoint", "preview"]
        for file, content in zip(sorted(files, key=lambda file: file.kind), (b"three", b"image"), strict=True):
            assert bench.app_state.store.get(file.storage_key) == content
            assert (file.bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
            assert bench.app_state.records.artifact(LOCAL_OWNER, file.id).storage_key == file.storage_key
        assert bench.at.blobs() == {file.storage_key for file in files}  # what was replaced is gone
        assert bench.records.files("someone", job.id) == []
        keys = bench.records.forget_files(LOCAL_OWNER, job.id, "checkpoint")
        assert keys == [file.storage_key for file in files if file.kind == "checkpoint"]
        assert [file.kind for file in bench.records.files(LOCAL_OWNER, job.id)] == ["preview"]

    run(main)


def test_the_next_attempt_goes_on_from_what_was_kept(run: Run) -> None:
    async def main(bench: Bench) -> None:
        found = []

        async def does(bench: Bench, job: Job, item: ClaimedItem) -> None:
            folder = bench.workspace.folder(job)
            assert folder == bench.app_state.settings.home.absolute() / "work" / bench.workspace.worker_id / job.id
            assert not os.listdir(folder)
            path = folder / "checkpoint.pt"
            if kept := bench.records.files(LOCAL_OWNER, job.id, "checkpoint"):
                await bench.workspace.fetch(kept[-1].storage_key, path)
                found.append(path.read_text())
            if bench.attempts == 1:
                path.write_text("after one epoch")
                await bench.workspace.store_file(item, "checkpoint", path)
                raise Unavailable("the store is away")
            # A fetched file may be the store's own: the child replaces it, and never writes into it.
            staging = folder / "new"
            staging.write_text("after two")
            os.replace(staging, path)
            await bench.workspace.store_file(item, "checkpoint", path)
            bench.workspace.clear(job)
            assert not folder.parent.exists()
            await nothing(bench, job, item)

        bench.does = does
        job = await bench.finish((await bench.submit()).id)
        assert (job.state, found) == ("succeeded", ["after one epoch"])
        [file] = bench.records.files(LOCAL_OWNER, job.id)
        assert bench.app_state.store.get(file.storage_key) == b"after two"

    run(main)


def test_fetching_what_is_gone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(bench: Bench) -> None:
        store, target = bench.app_state.store, bench.folder / "target"
        key = new_key("artifacts", derived_id("0190a0a0-0000-7000-8000-000000000000", "x"), ".bin", now())
        with pytest.raises(NotFound):
            await bench.workspace.fetch(key, target)
        assert not target.exists() and not list(bench.folder.glob(".target*"))
        # And from a store that is not on this disk.
        store.put(key, b"x" * 3_000_000, "text/plain")
        monkeypatch.setattr(type(store), "local_path", lambda self, key: None)
        await bench.workspace.fetch(key, target)
        assert target.read_bytes() == b"x" * 3_000_000
        store.delete(key)
        target.unlink()
        with pytest.raises(NotFound):
            await bench.workspace.fetch(key, target)
        assert not target.exists()

    run(main)


# ---- a worker that lost its item ----


def test_whoever_lost_it_leaves_nothing(run: Run) -> None:
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
    """A worker is at it and dies: its hand is dropped without a word to the database."""
    workers = Workers(bench.app_state.database)
    workers.enter(bench.workspace.worker_id)
    before = bench.attempts
    working = asyncio.create_task(bench.work.work(job_id))
    await until(lambda: bench.attempts > before)
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


# ---- clean-up ----


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_clean_up(run: Run, state: str) -> None:
    """A training that made a model says where that comes from, and stays; others go with their files."""

    async def main(bench: Bench) -> None:
        async def does(bench: Bench, job: Job, item: ClaimedItem) -> None:
            await bench.workspace.store_file(item, "preview", bench.file("0001.png", "image"))
            if state == "failed":
                raise ChildFailed("diverged", "the loss is no longer a number")
            if state == "cancelled":
                await bench.app_state.jobs.cancel(job.id)
                raise asyncio.CancelledError
            await nothing(bench, job, item)

        bench.does = does
        job = await bench.finish((await bench.submit()).id)
        assert job.state == state
        keys = bench.at.blobs()
        assert len(keys) == 1
        app_state = bench.app_state

        def clean_up(keep: timedelta) -> dict[str, int]:
            store = app_state.store
            return GarbageCollector(
                app_state.records, bench.records, Datasets(app_state.database), app_state.job_queue, store, keep
            ).run()

        assert await asyncio.to_thread(clean_up, timedelta(days=1)) == {"jobs": 0, "images": 0}
        removed = await asyncio.to_thread(clean_up, timedelta(seconds=-5))
        if state == "succeeded":
            assert removed == {"jobs": 0, "images": 0}
            assert (bench.at.job(job.id).state, bench.at.blobs()) == ("succeeded", keys)
            await app_state.jobs.delete(job.id)  # its owner may, of course
        else:
            assert removed == {"jobs": 1, "images": 0}
        assert bench.at.blobs() == set()
        with pytest.raises(NotFound):
            bench.at.job(job.id)
        with Session(app_state.database) as session:
            assert session.exec(select(Artifact)).all() == []

    run(main)


# ---- what children get ----


def test_children_are_told_nothing_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EKIBEN_S3_SECRET_KEY", "hidden")
    monkeypatch.setenv("EKIBEN_DATABASE_URL", "postgresql://user:hidden@db/ekiben")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    given = child_environ()
    assert not [name for name in given if name.startswith("EKIBEN_")]
    assert "hidden" not in repr(given)
    assert (given["CUDA_VISIBLE_DEVICES"], given["PATH"]) == ("1", os.environ["PATH"])


@pytest.mark.parametrize("path", [None, "/somewhere"])
def test_children_find_ekiben_where_it_is_not_installed(
    path: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if path is not None:
        monkeypatch.setenv("PYTHONPATH", path)
    code = "import services, sys; print(services.__file__, '/somewhere' in sys.path)"
    command = [sys.executable, "-S", "-c", code]  # without what is installed
    said = subprocess.run(command, cwd=tmp_path, env=child_environ(), capture_output=True, text=True, check=True)
    assert said.stdout.split() == [services.__file__, str(path is not None)]


def test_children_of_an_installed_ekiben_see_their_own_packages_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(workspace, "_HERE", Path("/opt/ekiben/lib/python3.11/site-packages"))
    assert "PYTHONPATH" not in child_environ()


def pretend(known: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """This interpreter has the packages that are ``known``, and no others."""
    finder = SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: name if name in known else None))
    monkeypatch.setattr(environment, "importlib", finder)


def test_which_python_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known: set[str] = set()
    pretend(known, monkeypatch)
    monkeypatch.setattr(environment, "_ROOT", tmp_path)
    # The setting goes first, and has to be there.
    assert asyncio.run(training_python(sys.executable)) == sys.executable
    with pytest.raises(TorchMissing, match="EKIBEN_TRAINING_PYTHON is /nowhere/python") as missing:
        asyncio.run(training_python("/nowhere/python"))
    assert missing.value.code == "training_unavailable"
    # Then this one, if it has all that it takes.
    known.update(("torch", "monai"))
    assert asyncio.run(training_python("")) == sys.executable
    known.remove("monai")
    with pytest.raises(TorchMissing, match="EKIBEN_TRAINING_PYTHON"):
        asyncio.run(training_python(""))
    # Then that of the checkout, which make brings up to date.
    makefile = tmp_path / "Makefile"
    makefile.write_text(".venv-torch/.installed:\n\tmkdir -p .venv-torch/bin && touch $@\n")
    assert asyncio.run(training_python("")) == str(tmp_path / ".venv-torch" / "bin" / "python")
    assert (tmp_path / ".venv-torch" / ".installed").is_file()
    makefile.write_text(".venv-torch/.installed: .PHONY\n\techo no network here >&2; exit 1\n.PHONY:\n")
    with pytest.raises(TorchMissing, match="could not be made") as failed:
        asyncio.run(training_python(""))
    assert failed.value.code == "training_unavailable"


def test_making_the_environment_can_be_cancelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that make has started: pip would go on for minutes."""
    pretend(set(), monkeypatch)
    monkeypatch.setattr(environment, "_ROOT", tmp_path)
    recipe = "sh -c 'echo $$$$ > pid.new; mv pid.new pid; sleep 20; true'"
    (tmp_path / "Makefile").write_text(f".venv-torch/.installed:\n\t{recipe}\n")

    async def main() -> None:
        task = asyncio.create_task(training_python(""))
        await until((tmp_path / "pid").is_file)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    begun = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - begun < 10
    pid = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 10
    while _alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_do_not_write_into_each_others_folders(run: Run) -> None:
    """A child of a worker that is thought dead may still be at it; what is left when it was killed goes."""

    async def main(bench: Bench) -> None:
        job, other_job = await bench.submit(), await bench.submit()
        first, second = bench.workspace, bench.another_worker()[0]
        folder, other = first.folder(job), second.folder(job)
        assert folder != other
        (folder / "left over").write_text("of an earlier attempt")
        assert os.listdir(first.folder(job)) == []
        first.folder(other_job)
        first.clear(job)
        assert not folder.exists() and folder.parent.exists() and other.exists()
        first.clear(job)
        second.tidy({second.worker_id})
        assert not folder.parent.exists() and other.exists()
        second.clear(job)
        second.tidy([])
        assert os.listdir(bench.app_state.settings.home / "work") == []

    run(main)


# ---- what comes with them ----


@pytest.mark.parametrize(
    ("error", "kept"), [(Unavailable("the answer of a commit got lost"), 1), (Conflict("reused"), 0)]
)
def test_what_came_is_kept_where_the_commit_is_unsure(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Refusal, kept: int
) -> None:
    """The job may be there, and would find nothing to import."""

    async def main(bench: Bench) -> None:
        def failing(*given: Any) -> Any:
            raise error

        app_state = bench.app_state
        monkeypatch.setattr(app_state.jobs._records, "submit", failing)
        with tempfile.TemporaryFile() as upload:
            upload.write(b"PK")
            with pytest.raises(type(error)):
                await app_state.datasets.bring(DatasetOptions(name="cells"), upload, "a.zip", JobTerms())
        keys = list(app_state.store.list("datasets/"))
        assert [app_state.store.get(key) for key in keys] == [b"PK"] * kept

    run(main)
