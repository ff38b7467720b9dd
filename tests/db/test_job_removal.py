"""Removing a job: what goes with it, and what others still need."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import chain

import pytest
import sqlalchemy as sa

from db import group_commit, job_states
from db.job_states import ItemResult
from db.jobs import JobRecords
from db.records import Records
from db.tables import Artifact, Image, Job, JobEvent, JobItem, Prediction, now
from ekiben.errors import Conflict, NotFound, Refusal
from tests.db import rows
from tests.db.answered_jobs import BAD, MINUTE, NOON, answered
from tests.db.job_rows import (
    change,
    claimed,
    count,
    items,
    items_now,
    job,
    submitted,
    unqueued,
)


def test_over_since(engine: sa.Engine, jobs: JobRecords) -> None:
    old, fresh, running = (submitted(engine, 1, owner=owner) for owner in ("ann", "ann", "bob"))
    jobs.cancel("ann", old)
    jobs.cancel("ann", fresh)
    change(engine, Job, old, finished_at=NOON)
    claimed(engine, running)
    assert jobs.over_since(NOON) == []
    assert jobs.over_since(NOON + timedelta(seconds=1)) == [("ann", old)]
    assert sorted(jobs.over_since(now() + MINUTE)) == sorted([("ann", old), ("ann", fresh)])
    assert len(jobs.over_since(now() + MINUTE, limit=1)) == 1


def test_remove_takes_all_that_the_job_made(engine: sa.Engine, jobs: JobRecords, records: Records) -> None:
    job_id, other = submitted(engine, 3), submitted(engine, 1)
    with pytest.raises(Conflict, match="the job is not over: cancel it first"):
        jobs.remove_some("local", job_id)
    (bad,) = claimed(engine, job_id, limit=1)
    records.save([], ItemResult(job_id, bad.id, "worker-1", error=BAD)).result(10)
    masks = answered(records, engine, job_id)
    assert jobs.job("local", job_id).state == "succeeded"
    archive = rows.artifact(None, kind="archive", job_id=job_id)
    elsewhere = rows.image()
    mine = rows.prediction(elsewhere.id)
    records.save([archive, elsewhere, mine, rows.artifact(mine.id)]).result(10)
    images = [
        item.storage_key or records.image("local", item.image_id or "").storage_key
        for item in items_now(engine, job_id)
    ]
    keys, last = jobs.remove_some("local", job_id)
    assert last
    assert sorted(keys) == sorted([*images, *chain(*masks.values()), archive.storage_key])
    assert [count(engine, table) for table in (Job, JobItem, JobEvent)] == [1, 1, 1]
    assert [count(engine, table) for table in (Image, Prediction, Artifact)] == [1, 1, 1]
    assert jobs.job("local", other).state == "queued"
    with pytest.raises(NotFound):
        jobs.remove_some("local", job_id)


def test_remove_leaves_images_that_others_need(engine: sa.Engine, jobs: JobRecords, records: Records) -> None:
    kept, used, shared = rows.image(kept=True), rows.image(), rows.image()
    mine = rows.prediction(used.id)
    records.save([kept, used, shared, mine]).result(10)
    given = [{"id": f"item-{n}", "image_id": image.id} for n, image in enumerate((kept, used, shared, shared))]
    stored, _ = jobs.submit(job(4), given, 1, unqueued)
    masks = answered(records, engine, stored.id)
    assert records.predictions("local").total == 5
    keys, last = jobs.remove_some("local", stored.id)
    assert last
    assert sorted(keys) == sorted([*chain(*masks.values()), shared.storage_key])
    assert {image.id for image in records.images("local").items} == {kept.id, used.id}
    assert [prediction.id for prediction in records.predictions("local").items] == [mine.id]


def test_remove_leaves_an_image_that_a_job_waits_with(engine: sa.Engine, jobs: JobRecords, records: Records) -> None:
    """Two jobs were asked about one image; the first is removed before the second began."""
    image = rows.image()
    records.save([image]).result(10)
    first, _ = jobs.submit(job(1), [{"id": "item-1", "image_id": image.id}], 1, unqueued)
    jobs.submit(job(1), [{"id": "item-2", "image_id": image.id}], 1, unqueued)
    answered(records, engine, first.id)
    keys, _ = jobs.remove_some("local", first.id)
    assert image.storage_key not in keys
    assert records.image("local", image.id).id == image.id


def test_a_large_job_is_removed_in_several_calls(engine: sa.Engine, jobs: JobRecords) -> None:
    given = items(450)
    stored, _ = jobs.submit(job(450), given, 1, unqueued)
    jobs.cancel("local", stored.id)
    calls = [jobs.remove_some("local", stored.id) for _ in range(3)]
    assert [(len(keys), last) for keys, last in calls] == [(200, False), (200, False), (50, True)]
    assert [key for keys, _ in calls for key in keys] == [item["storage_key"] for item in given]
    assert [count(engine, table) for table in (Job, JobItem, JobEvent)] == [0, 0, 0]


def test_removed_while_a_worker_settles(
    engine: sa.Engine, jobs: JobRecords, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was too late has its prediction in the open transaction when the job goes: it loses, nobody waits
    for the other."""
    image = rows.image(kept=True)
    records.save([image]).result(10)
    stored, _ = jobs.submit(job(1), [{"id": "item-1", "image_id": image.id}], 1, unqueued)
    claimed(engine, stored.id)
    jobs.cancel("local", stored.id)
    inserted, go = threading.Event(), threading.Event()

    def late(db: sa.Connection, settlings: Sequence[ItemResult]) -> None:
        assert db.execute(sa.select(Prediction.job_id)).scalars().all() == [stored.id]  # type: ignore[call-overload]
        inserted.set()
        go.wait(10)
        job_states.finish_items(db, settlings)

    monkeypatch.setattr(group_commit, "finish_items", late)
    item_result = records.save(
        [rows.prediction(image.id, id="item-1", job_id=stored.id)], ItemResult(stored.id, "item-1", "worker-1")
    )
    assert inserted.wait(5)
    with ThreadPoolExecutor(1) as pool:
        removing = pool.submit(jobs.remove_some, "local", stored.id)
        time.sleep(0.2)
        go.set()
        error = item_result.exception(20)
        assert isinstance(error, Refusal) and error.code == "item_lost"
        assert removing.result(20) == ([], True)
    assert records.predictions("local").total == 0
