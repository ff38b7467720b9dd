"""Clean-up: what is past its time goes with all its rows and files, and nothing else does."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import Session, col, select

from db.datasets import Datasets, file_key
from db.jobs import JobRecords
from db.keys import new_key
from db.migrate import migrate
from db.records import Records
from db.session import connect
from db.tables import Dataset, Image, Installation, Job, JobEvent, JobItem, now
from ekiben.errors import NotFound
from ekiben.ids import LOCAL_OWNER, derived_id, new_id
from models.engine import engine
from services.inference.context import RequestContext
from services.inference.pipeline import ImageSource
from services.inference.stored_images import store_image
from services.jobs.garbage_collection import MARKS, GarbageCollector
from tests import toy_models
from tests.operations import ask
from tests.services.jobs.job_homes import AtWork, at_work, make_home

KEEP = timedelta(days=7)
IMAGES = [toy_models.encoded(toy_models.noise(40, 30, seed=n)) for n in range(3)]
AREAS = {"model": "areas"}
LONG_AGO = datetime(2024, 1, 1, tzinfo=UTC)
NOTHING = {"jobs": 0, "images": 0, "blobs": 0}

Run = Callable[[Callable[[AtWork], Awaitable[None]]], None]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("template"))


@pytest.fixture
def run(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(engine, "reclaim_memory", lambda: None)
    monkeypatch.setattr(os, "fsync", lambda handle: None)

    def run(main: Callable[[AtWork], Awaitable[None]]) -> None:
        async def whole() -> None:
            async with at_work(template, tmp_path) as bench:
                await asyncio.wait_for(main(bench), 30)

        asyncio.run(whole())

    return run


def cleaner(bench: AtWork, jobs: JobRecords | None = None, *, since: datetime = LONG_AGO) -> GarbageCollector:
    """Of a database that keeps records since then."""
    app_state = bench.app_state
    app_state.records.installation()
    with Session(app_state.database) as session:
        session.execute(sa.update(Installation).values(since=since))
        session.commit()
    return GarbageCollector(
        app_state.records,
        jobs or bench.records,
        Datasets(app_state.database),
        app_state.job_queue,
        app_state.store,
        KEEP,
    )


async def clean(bench: AtWork, jobs: JobRecords | None = None, stop_after: int = 1000) -> dict[str, int]:
    """What all of clean-up removed."""
    cleaning = cleaner(bench, jobs)
    requested = 0

    def stopping() -> bool:
        nonlocal requested
        requested += 1
        return requested > stop_after

    removed = await asyncio.to_thread(cleaning.run, stopping)
    return {**removed, "blobs": await asyncio.to_thread(cleaning.sweep, stopping)}


def change_images(bench: AtWork, id: str, **values: Any) -> None:
    with Session(bench.app_state.database) as session:
        session.execute(sa.update(Image).where(col(Image.id) == id).values(**values))
        session.commit()


def left(bench: AtWork, job_id: str) -> tuple[int, int]:
    """Items and events of a job."""
    with Session(bench.app_state.database) as session:
        items = session.exec(select(JobItem).where(JobItem.job_id == job_id)).all()
        return len(items), len(session.exec(select(JobEvent).where(JobEvent.job_id == job_id)).all())


def id_of(moment: datetime) -> str:
    """A UUIDv7 of then."""
    value = int(moment.timestamp() * 1000) << 80 | int.from_bytes(os.urandom(10), "big")
    return str(uuid.UUID(int=value & ~(0xF << 76 | 0x3 << 62) | 0x7 << 76 | 0x2 << 62))


def test_ids_of_then() -> None:
    moment = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    made = uuid.UUID(id_of(moment))
    assert (made.version, made.int >> 80) == (7, int(moment.timestamp() * 1000))
    assert uuid.UUID(derived_id(str(made), "x")).int >> 80 == made.int >> 80


# ---- jobs ----


def test_old_jobs_go_with_all_they_made(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        old = await bench.finish((await bench.submit("segment", [*IMAGES[:2], b"no image"], AREAS)).id)
        unstored = await bench.finish((await bench.submit("segment", IMAGES[:2], AREAS, store=False)).id)
        ended = await bench.submit("segment", IMAGES[:2], AREAS)
        await bench.app_state.jobs.cancel(ended.id)
        before = bench.blobs()
        young = await bench.finish((await bench.submit("segment", IMAGES[2:], AREAS)).id)
        of_young = bench.blobs() - before
        waiting = await bench.submit("segment", IMAGES[:1], AREAS)
        rows = {"images": 1, "predictions": 1, "artifacts": 3}
        for job in (old, unstored, ended):
            bench.change_job(job.id, finished_at=now() - KEEP - timedelta(minutes=1))
        bench.change_job(young.id, finished_at=now() - KEEP + timedelta(minutes=1))
        # Begun long ago, not over.
        bench.change_job(waiting.id, created_at=now() - 3 * KEEP, state="running")
        assert await clean(bench) == {"jobs": 3, "images": 0, "blobs": 0}
        for job in (old, unstored, ended):
            with pytest.raises(NotFound):
                bench.job(job.id)
            assert left(bench, job.id) == (0, 0)
            assert not bench.app_state.job_queue.has_entries(job.id)
        assert bench.rows() == rows
        [item] = bench.items(waiting.id)
        assert bench.blobs() == {*of_young, item.storage_key}
        assert (bench.job(young.id).state, bench.job(waiting.id).state) == ("succeeded", "running")
        assert await clean(bench) == NOTHING
        assert (await bench.finish(waiting.id)).state == "succeeded"

    run(main)


def test_images_that_others_need_stay_when_a_job_goes(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        kept = await store_image(RequestContext(bench.app_state.inference), ImageSource(IMAGES[0]))
        first = await bench.finish((await bench.submit("segment", IMAGES[1:2], AREAS, image_ids=[kept.id])).id)
        shared = bench.items(first.id)[0].image_id
        assert shared is not None
        again = await ask(bench.app_state, "segment", ImageSource(image_id=shared), model="areas")
        bench.change_job(first.id, finished_at=now() - 2 * KEEP)
        assert await clean(bench) == {"jobs": 1, "images": 0, "blobs": 0}
        assert bench.rows() == {"images": 2, "predictions": 1, "artifacts": 3}
        for id in (kept.id, shared):
            assert bench.app_state.store.exists(bench.app_state.records.image(LOCAL_OWNER, id).storage_key)
        assert len(bench.blobs()) == 5
        assert again.body["image"]["id"] == shared

    run(main)


def test_a_job_that_somebody_else_removes_does_not_stop_the_rest(run: Run) -> None:
    """Between the look and the removal its owner deletes one job, and retries another."""

    async def main(bench: AtWork) -> None:
        jobs = [await bench.submit("segment", IMAGES[:1], AREAS) for _ in range(2)]
        for job in jobs:
            await bench.app_state.jobs.cancel(job.id)
            bench.change_job(job.id, finished_at=now() - 2 * KEEP)
        look = bench.records.over_since

        class Late(JobRecords):
            def over_since(self, before: datetime, limit: int = 1000) -> list[tuple[str, str]]:
                found = look(before, limit)
                assert sorted(id for _, id in found) == sorted(job.id for job in jobs)
                self.retry(LOCAL_OWNER, jobs[0].id, lambda items: 0, lambda *given: None)
                return [(LOCAL_OWNER, new_id()), (LOCAL_OWNER, jobs[0].id), (LOCAL_OWNER, jobs[1].id)]

        await clean(bench, Late(bench.app_state.database))
        assert bench.job(jobs[0].id).state == "queued"
        with pytest.raises(NotFound):
            bench.job(jobs[1].id)

    run(main)


def test_a_stop_ends_it(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        for _ in range(3):
            job = await bench.submit("segment", IMAGES[:1], AREAS)
            await bench.app_state.jobs.cancel(job.id)
            bench.change_job(job.id, finished_at=now() - 2 * KEEP)
        assert await clean(bench, stop_after=1) == {"jobs": 1, "images": 0, "blobs": 0}
        assert await clean(bench) == {"jobs": 2, "images": 0, "blobs": 0}

    run(main)


# ---- images that nobody needs ----


def test_images_that_nobody_needs(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        app_state = bench.app_state
        kept = await store_image(RequestContext(app_state.inference), ImageSource(IMAGES[0]))
        images = [await store_image(RequestContext(app_state.inference), ImageSource(IMAGES[1])) for _ in range(5)]
        old, young, used, needed, over = images
        for image in images:
            change_images(bench, image.id, kept=False, created_at=now() - KEEP - timedelta(minutes=1))
        change_images(bench, young.id, created_at=now() - KEEP + timedelta(minutes=1))
        change_images(bench, kept.id, created_at=now() - 2 * KEEP)
        await ask(app_state, "segment", ImageSource(image_id=used.id), model="areas")
        waiting = await bench.submit("segment", [], AREAS, image_ids=[needed.id])
        ended = await bench.submit("segment", [], AREAS, image_ids=[over.id])
        await app_state.jobs.cancel(ended.id)
        assert await clean(bench) == {"jobs": 0, "images": 2, "blobs": 0}
        for gone in (old, over):
            with pytest.raises(NotFound):
                app_state.records.image(LOCAL_OWNER, gone.id)
            assert not app_state.store.exists(gone.storage_key)
        for there in (kept, young, used, needed):
            assert app_state.store.exists(app_state.records.image(LOCAL_OWNER, there.id).storage_key)
        assert (await bench.finish(waiting.id)).state == "succeeded"
        assert await clean(bench) == NOTHING

    run(main)


# ---- blobs that no row knows ----


def test_blobs_without_rows(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        store = bench.app_state.store
        old, young = now() - timedelta(days=1, minutes=1), now() - timedelta(hours=23)
        job = await bench.submit("segment", IMAGES[:1], AREAS)
        done = await ask(bench.app_state, "segment", ImageSource(IMAGES[1]), model="areas")
        with_rows = bench.blobs()
        with_row = new_key("images", id_of(old), "png", old)  # of an old image whose row is there
        change_images(bench, done.body["image"]["id"], storage_key=with_row)
        item = new_key("images", id_of(old), "png", old)  # and of an old job that waits
        bench.change_item(bench.items(job.id)[0].id, storage_key=item)
        orphans = {
            new_key("images", id_of(old), "png", old),
            new_key("artifacts", id_of(old), "png", old),
            new_key("artifacts", id_of(datetime(2025, 1, 1, tzinfo=UTC)), "npy", old),
            new_key("images", id_of(old), "bin", now()),  # by the id, whatever the folder says
        }
        fresh = {new_key("images", id_of(young), "png", old), new_key("artifacts", new_id(), "png", old)}
        for key in {with_row, item, *orphans, *fresh}:
            store.put(key, b"x", "image/png")
        models = set(store.list("models/"))
        assert await clean(bench) == {"jobs": 0, "images": 0, "blobs": 4}
        assert bench.blobs() == {*with_rows, with_row, item, *fresh}
        assert set(store.list("models/")) == models != set()

    run(main)


def test_files_of_datasets(run: Run) -> None:
    """A dataset's own files stay, whichever they are; those of one that never was go."""

    async def main(bench: AtWork) -> None:
        store, old = bench.app_state.store, now() - timedelta(days=2)
        dataset = Dataset(id=id_of(old), name="known", job_id=new_id(), created_at=old)
        unknown = Dataset(id=id_of(old), name="unknown", job_id=new_id(), created_at=old)
        with Session(bench.app_state.database, expire_on_commit=False) as session:
            session.add(dataset)
            session.commit()
        for each in (dataset, unknown):
            for which in ("archive", "preview", "upload"):
                store.put(file_key(each, which), b"x", "application/zip")
        assert (await clean(bench))["blobs"] == 3
        assert set(store.list("datasets/")) == {file_key(dataset, which) for which in ("archive", "preview", "upload")}

    run(main)


def test_what_was_in_the_store_before_stays(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        store, begun = bench.app_state.store, now() - timedelta(days=10)
        earlier = new_key("images", id_of(begun - timedelta(minutes=1)), "png", now())
        later = new_key("images", id_of(begun + timedelta(minutes=1)), "png", now())
        for key in (earlier, later):
            store.put(key, b"x", "image/png")
        assert await asyncio.to_thread(cleaner(bench, since=begun).sweep) == 1
        assert bench.blobs() == {earlier}

    run(main)


def test_a_new_database_judges_nothing_that_was_there(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        app_state, old = bench.app_state, now() - timedelta(days=3)
        key = new_key("images", id_of(old), "png", old)
        app_state.store.put(key, b"x", "image/png")
        cleaning = GarbageCollector(
            app_state.records, bench.records, Datasets(app_state.database), app_state.job_queue, app_state.store, KEEP
        )
        assert await asyncio.to_thread(cleaning.sweep) == 0
        assert bench.blobs() == {key}

    run(main)


def test_a_store_of_two_databases(run: Run, tmp_path: Path) -> None:
    """Neither removes what it does not know: it may be the other's."""

    async def main(bench: AtWork) -> None:
        store, old = bench.app_state.store, now() - timedelta(days=3)
        url = f"sqlite:///{tmp_path / 'second.db'}"
        migrate(url)
        second = connect(url)
        records = Records(second)
        key = new_key("images", id_of(old), "png", old)
        store.put(key, b"x", "image/png")
        records.installation()
        with Session(second) as session:
            session.execute(sa.update(Installation).values(since=LONG_AGO))
            session.commit()
        other = GarbageCollector(records, JobRecords(second), Datasets(second), bench.app_state.job_queue, store, KEEP)
        own = cleaner(bench)
        store.put(MARKS + records.installation().name, b"", "text/plain")  # it was here once
        assert await asyncio.to_thread(own.sweep) == 0
        assert await asyncio.to_thread(other.sweep) == 0
        assert bench.blobs() == {key}
        store.delete(MARKS + records.installation().name)  # it has gone for good
        assert await asyncio.to_thread(own.sweep) == 1
        records.close()
        second.dispose()

    run(main)


def test_more_blobs_than_are_looked_up_at_once(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        old = now() - timedelta(days=3)
        for _ in range(1100):
            path = Path(bench.app_state.settings.resolved_store_url) / new_key("artifacts", id_of(old), "png", old)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        assert (await clean(bench))["blobs"] == 1100
        assert bench.blobs() == set()

    run(main)


STRANGE = [
    "models/areas/9/{old}.onnx",
    "backup/{old}.png",
    "{old}.png",
    "images/notes.txt",
    "images/2020/01/01/cat.png",
    "images/2020/01/01/{old}-thumbnail.png",
    "images/2020/01/01/x{old}.png",
    "artifacts/2020/01/01/00000000-0000-4000-8000-000000000000.png",
    "artifacts/2020/01/01/00000000-0000-1000-8000-000000000000.png",
    "artifacts/2020/01/01/.gitkeep",
    "imagesofcats/{old}.png",
]


def test_what_is_not_ours_stays(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        store, old = bench.app_state.store, now() - timedelta(days=400)
        keys = {key.format(old=id_of(old)) for key in STRANGE}
        for key in keys:
            store.put(key, b"x", "text/plain")
        assert await clean(bench) == NOTHING
        assert {key for key in keys if store.exists(key)} == keys

    run(main)


def test_an_id_of_a_time_that_no_calendar_has(run: Run) -> None:
    """One odd file must not be the end of all clean-up."""

    async def main(bench: AtWork) -> None:
        store, old = bench.app_state.store, now() - timedelta(days=2)
        odd = {
            "artifacts/2020/01/01/ffffffff-ffff-7fff-bfff-ffffffffffff.png",
            "images/2020/01/01/f0000000-0000-7000-8000-000000000000.png",
        }
        orphan = new_key("images", id_of(old), "png", old)
        for key in (*odd, orphan):
            store.put(key, b"x", "image/png")
        assert await clean(bench) == {"jobs": 0, "images": 0, "blobs": 1}
        assert bench.blobs() == odd

    run(main)


def test_files_of_an_old_job_that_are_not_committed_yet(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that waited, or is tried again, for more than a day: its files' ids are as old as its item, not as they."""

    async def main(bench: AtWork) -> None:
        job = await bench.submit("segment", IMAGES[:1], AREAS)
        [item] = bench.items(job.id)
        old = now() - timedelta(days=2)
        ident = id_of(old)
        bench.change_item(item.id, id=ident, created_at=old)
        save, cleaned = bench.app_state.records.save, []

        cleaning = cleaner(bench)

        def clean_up_first(rows: Any, then: Any = None) -> Any:
            cleaned.append(cleaning.sweep())
            return save(rows, then)

        monkeypatch.setattr(bench.app_state.records, "save", clean_up_first)
        job = await bench.finish(job.id)
        assert job.state == "succeeded" and cleaned == [0]
        [files] = bench.records.artifacts(LOCAL_OWNER, bench.items(job.id)).values()
        assert len(files) == 3
        assert [bench.app_state.store.exists(file.storage_key) for file in files] == [True] * 3

    run(main)


def test_jobs_are_removed_by_their_owner(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        job = await bench.finish((await bench.submit("segment", IMAGES[:1], AREAS)).id)
        for table in (Job, JobItem):
            with Session(bench.app_state.database) as session:
                session.execute(sa.update(table).values(owner="somebody"))
                session.commit()
        bench.change_job(job.id, finished_at=now() - 2 * KEEP)
        assert (await clean(bench))["jobs"] == 1

    run(main)
