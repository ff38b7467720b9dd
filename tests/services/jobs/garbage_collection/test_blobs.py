"""Files of the store without a row: which are removed, and which are somebody else's."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import Session

from db.datasets import Datasets, file_key
from db.jobs import JobRecords
from db.keys import new_key
from db.migrate import migrate
from db.records import Records
from db.session import connect
from db.tables import Dataset, Installation, now
from ekiben.ids import LOCAL_OWNER, new_id
from services.inference.pipeline import ImageSource
from services.jobs.garbage_collection import MARKS, GarbageCollector
from tests.operations import ask
from tests.services.jobs.garbage_collection.past import (
    AREAS,
    IMAGES,
    KEEP,
    LONG_AGO,
    NOTHING,
    Run,
    change_images,
    clean,
    cleaner,
    id_of,
)
from tests.services.jobs.job_homes import AtWork


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
