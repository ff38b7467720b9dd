"""The events and files that a job handler stores, and its working folder."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from datetime import timedelta
from typing import Any

import pytest
from sqlmodel import Session, select

from db.datasets import Datasets
from db.job_states import ClaimedItem
from db.keys import new_key
from db.tables import Artifact, Job, now
from ekiben.errors import Conflict, Damaged, NotFound, Refusal, Unavailable
from ekiben.ids import LOCAL_OWNER, derived_id
from services.jobs.child_process import ChildFailed
from services.jobs.garbage_collection import GarbageCollector
from services.jobs.submission import JobTerms
from services.schemas.datasets import DatasetOptions
from tests.services.jobs.workspace.bench import Bench, Run, nothing

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
                await bench.workspace.fetch(kept[-1].storage_key, path, kept[-1].bytes, kept[-1].sha256)
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
            await bench.workspace.fetch(key, target, 3_000_000)
        assert not target.exists() and not list(bench.folder.glob(".target*"))
        # And from a store that is not on this disk.
        store.put(key, b"x" * 3_000_000, "text/plain")
        monkeypatch.setattr(type(store), "local_path", lambda self, key: None)
        await bench.workspace.fetch(key, target, 3_000_000)
        assert target.read_bytes() == b"x" * 3_000_000
        for size, sha256 in ((2_999_999, None), (3_000_000, hashlib.sha256(b"y").hexdigest())):
            with pytest.raises(Damaged):
                await bench.workspace.fetch(key, target, size, sha256)
        store.delete(key)
        target.unlink()
        with pytest.raises(NotFound):
            await bench.workspace.fetch(key, target, 3_000_000)
        assert not target.exists()

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
        second.tidy(lambda: {second.worker_id})
        assert not folder.parent.exists() and other.exists()
        second.clear(job)
        second.tidy(list)
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
                await app_state.datasets.create(DatasetOptions(name="cells"), upload, "a.zip", JobTerms())
        keys = list(app_state.store.list("datasets/"))
        assert [app_state.store.get(key) for key in keys] == [b"PK"] * kept

    run(main)
