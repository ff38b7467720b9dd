"""Clean-up: what is past its time goes with all its rows and files, and nothing else does."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlmodel import Session

from db.jobs import JobRecords
from db.tables import Job, JobItem, now
from ekiben.errors import NotFound
from ekiben.ids import LOCAL_OWNER, derived_id, new_id
from services.inference.context import RequestContext
from services.inference.pipeline import ImageSource
from services.inference.stored_images import store_image
from tests.operations import ask
from tests.services.jobs.garbage_collection.past import (
    AREAS,
    IMAGES,
    KEEP,
    NOTHING,
    Run,
    change_images,
    clean,
    id_of,
    left,
)
from tests.services.jobs.job_homes import AtWork


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
