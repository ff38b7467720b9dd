"""Finding and removing records, alone and while others do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import Session, func, select

from db.jobs import JobRecords
from db.records import Records
from db.registry import Registry
from db.session import connect
from db.tables import Artifact, Image, Prediction
from ekiben.errors import Conflict, NotFound, Refusal, Unavailable
from tests.db import rows
from tests.db.job_rows import claimed, items, job, unqueued
from tests.servers import free_port

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def save(records: Records, *given: Any) -> None:
    records.save(given).result(10)


def count(engine: sa.Engine, table: type[Any]) -> int:
    with Session(engine) as session:
        return session.exec(select(func.count()).select_from(table)).one()


def test_each_owner_sees_its_own(records: Records) -> None:
    image = rows.image(owner="ann")
    prediction = rows.prediction(image.id, owner="ann")
    artifact = rows.artifact(prediction.id, owner="ann")
    save(records, image, prediction, artifact)
    assert records.image("ann", image.id).storage_key == image.storage_key
    assert records.prediction("ann", prediction.id).result == prediction.result
    assert records.artifact("ann", artifact.id).sha256 == "b" * 64
    assert [a.id for a in records.artifacts_of("ann", prediction.id)] == [artifact.id]
    asks: list[Callable[[], object]] = [
        lambda: records.image("local", image.id),
        lambda: records.prediction("local", prediction.id),
        lambda: records.artifact("local", artifact.id),
        lambda: records.delete_image("local", image.id, cascade=True),
        lambda: records.delete_prediction("local", prediction.id),
        lambda: records.image("ann", "nothing"),
    ]
    for request in asks:
        with pytest.raises(NotFound):
            request()
    assert records.artifacts_of("local", prediction.id) == []
    assert records.images("local").total == records.predictions("local").total == 0
    assert records.prediction("ann", prediction.id).id == prediction.id


def test_pages_newest_first(records: Records) -> None:
    image = rows.image()
    save(records, image)
    for n in range(5):
        for task, model in (("classify", "resnet50"), ("segment", "deeplab"), ("classify", "mobilenet")):
            moment = NOON + timedelta(minutes=n)
            given = {"id": f"{model}-{n}", "task": task, "model_name": model, "created_at": moment}
            save(records, rows.prediction(image.id, **given))
    page = records.predictions("local", page=2, limit=4)
    assert (page.total, page.page, page.limit) == (15, 2, 4)
    # Of the same moment: the later id first, so that pages neither repeat nor miss one.
    assert [p.id for p in page.items] == ["mobilenet-3", "deeplab-3", "resnet50-2", "mobilenet-2"]
    assert [p.id for p in records.predictions("local", task="segment").items] == [
        f"deeplab-{n}" for n in (4, 3, 2, 1, 0)
    ]
    assert records.predictions("local", task="classify").total == 10
    assert [p.id for p in records.predictions("local", model="resnet50", limit=1).items] == ["resnet50-4"]
    assert records.predictions("local", task="segment", model="resnet50").total == 0
    beyond = records.predictions("local", page=9, limit=4)
    assert (list(beyond.items), beyond.total) == ([], 15)
    assert records.predictions("local", page=-1, limit=0).limit == 1
    assert records.predictions("local", limit=10**9).limit == 1000


def test_images_newest_first(records: Records) -> None:
    for n in range(3):
        save(records, rows.image(id=f"image-{n}", created_at=NOON - timedelta(days=n)))
    assert [image.id for image in records.images("local", limit=2).items] == ["image-0", "image-1"]
    assert [image.id for image in records.images("local", page=2, limit=2).items] == ["image-2"]


def test_the_last_prediction_takes_its_image_along(records: Records, engine: sa.Engine) -> None:
    image = rows.image()
    first, second = rows.prediction(image.id), rows.prediction(image.id)
    masks = [rows.artifact(first.id), rows.artifact(first.id), rows.artifact(second.id)]
    save(records, image, first, second, *masks)
    assert sorted(records.delete_prediction("local", first.id)) == sorted(mask.storage_key for mask in masks[:2])
    assert records.image("local", image.id).id == image.id
    assert sorted(records.delete_prediction("local", second.id)) == sorted([masks[2].storage_key, image.storage_key])
    assert [count(engine, table) for table in (Image, Prediction, Artifact)] == [0, 0, 0]
    with pytest.raises(NotFound, match=second.id):
        records.delete_prediction("local", second.id)


def test_a_kept_image_stays(records: Records) -> None:
    image = rows.image(kept=True)
    prediction = rows.prediction(image.id)
    save(records, image, prediction)
    assert records.delete_prediction("local", prediction.id) == []
    assert records.image("local", image.id).kept
    assert records.delete_image("local", image.id) == [image.storage_key]
    with pytest.raises(NotFound):
        records.image("local", image.id)


def test_an_image_in_use_stays(records: Records, engine: sa.Engine) -> None:
    image = rows.image(kept=True)
    predictions = [rows.prediction(image.id) for _ in range(3)]
    masks = [rows.artifact(prediction.id) for prediction in predictions]
    other = rows.image()
    save(records, image, other, rows.prediction(other.id), *predictions, *masks)
    with pytest.raises(Conflict, match="3 predictions refer to this image"):
        records.delete_image("local", image.id)
    assert count(engine, Artifact) == 3
    keys = records.delete_image("local", image.id, cascade=True)
    assert sorted(keys) == sorted([image.storage_key, *(mask.storage_key for mask in masks)])
    assert [count(engine, table) for table in (Image, Prediction, Artifact)] == [1, 1, 0]


def test_a_shared_blob_goes_with_its_last_row(records: Records) -> None:
    shared = "images/2026/11/20/shared.jpg"
    one, two = rows.image(storage_key=shared, kept=True), rows.image(storage_key=shared, kept=True)
    save(records, one, two)
    assert records.delete_image("local", one.id) == []
    assert records.delete_image("local", two.id) == [shared]


def test_known_keys(records: Records, registry: Registry) -> None:
    image = rows.image()
    prediction = rows.prediction(image.id)
    mask = rows.artifact(prediction.id)
    save(records, image, prediction, mask)
    for owner in ("local", "ann"):
        registry.publish(
            name="net",
            task="classify",
            family="classifier",
            manifest={},
            digest="d",
            bytes=1,
            lineage={},
            metrics={},
            store_files=lambda prefix: None,
            owner=owner,
        )
    known = {
        image.storage_key,
        mask.storage_key,
        "models/net/1/model.onnx",
        "models/net/1/labels/en.txt",
        "models/ann/net/1/model.onnx",
    }
    unknown = {
        "images/2026/11/20/x.jpg",
        "models/net/2/model.onnx",
        "models/net/10/model.onnx",
        "models/bob/net/1/model.onnx",
        "models/net",
    }
    many = {f"images/2026/11/20/{n}.jpg" for n in range(1200)}
    assert records.known_keys([*known, *unknown, *many]) == known
    assert records.known_keys([]) == set()


def test_keys_of_jobs_are_known(records: Records, engine: sa.Engine) -> None:
    """An image belongs to its item until it becomes an image; a job that failed may be tried again."""
    given = [*items(2), {"id": "item-3", "image_id": "image-1"}]
    stored, _ = JobRecords(engine).submit(job(3), given, 1, unqueued)
    archive = rows.artifact(None, job_id=stored.id)
    save(records, archive)
    known = {given[0]["storage_key"], given[1]["storage_key"], archive.storage_key}
    assert records.known_keys([*known, "images/2026/11/20/x.jpg"]) == known
    JobRecords(engine).cancel("local", stored.id)
    assert records.known_keys(known) == known


def test_which_ids_are_images(records: Records) -> None:
    images = [rows.image() for _ in range(1100)]
    save(records, *images, rows.image(id="of-ann", owner="ann"))
    ids = [image.id for image in images]
    requested = [*ids[:600], "nothing", "of-ann", *ids[600:], ids[0]]
    assert records.image_ids("local", requested) == set(ids)
    assert records.image_ids("ann", requested) == {"of-ann"}
    assert records.image_ids("local", []) == set()


def test_unused_images_are_removed(records: Records, engine: sa.Engine) -> None:
    """Not those that are young, kept, or needed by a prediction or by a job that is not over."""
    old = {"created_at": NOON}
    names = ("unused", "waiting", "running", "cancelled", "used")
    images = [rows.image(id=name, **old) for name in names]
    twins = [rows.image(id="twin", storage_key="images/2026/11/20/twin.jpg", **old)]
    twins.append(rows.image(id="kept", kept=True, storage_key="images/2026/11/20/twin.jpg", **old))
    save(records, *images, *twins, rows.image(id="young"), rows.prediction("used"))
    jobs = JobRecords(engine)
    for name in names[1:4]:
        jobs.submit(job(id=f"job-{name}"), [{"id": f"item-{name}", "image_id": name}], 1, unqueued)
    claimed(engine, "job-running")
    jobs.cancel("local", "job-cancelled")
    assert records.remove_unused_images(NOON) == []
    later = NOON + timedelta(seconds=1)
    keys = {image.id: image.storage_key for image in images}
    first = records.remove_unused_images(later, limit=1)
    assert len(first) == 1 and count(engine, Image) == 7
    assert {*first, *records.remove_unused_images(later)} == {keys["unused"], keys["cancelled"]}  # not the twin's
    assert records.remove_unused_images(later) == []
    assert {image.id for image in records.images("local").items} == {"waiting", "running", "used", "kept", "young"}


def test_an_image_that_a_job_waits_with_stays(records: Records, engine: sa.Engine) -> None:
    """Asked about once, then once more as a job; the first answer is removed before the job began."""
    image = rows.image()
    prediction = rows.prediction(image.id)
    save(records, image, prediction)
    JobRecords(engine).submit(job(), [{"id": "item-1", "image_id": image.id}], 1, unqueued)
    assert records.delete_prediction("local", prediction.id) == []
    assert records.image("local", image.id).storage_key == image.storage_key


def held_insert(engine: sa.Engine, image_id: str, release: threading.Event, inserted: threading.Event) -> None:
    """Insert a prediction and commit only when told."""
    with Session(engine.execution_options(immediate=True)) as session, session.begin():
        session.add(rows.prediction(image_id, id="late"))
        session.flush()
        inserted.set()
        release.wait(10)


def test_an_image_about_to_be_used_stays(records: Records, engine: sa.Engine) -> None:
    """Another transaction has inserted a second prediction and not committed yet: the delete waits and then sees it."""
    image = rows.image()
    prediction = rows.prediction(image.id)
    save(records, image, prediction)
    release, inserted = threading.Event(), threading.Event()
    with ThreadPoolExecutor(2) as pool:
        inserting = pool.submit(held_insert, engine, image.id, release, inserted)
        assert inserted.wait(5)
        deleting = pool.submit(records.delete_prediction, "local", prediction.id)
        time.sleep(0.3)
        assert not deleting.done()
        release.set()
        inserting.result(10)
        assert deleting.result(10) == []
    assert [p.id for p in records.predictions("local").items] == ["late"]
    assert records.image("local", image.id).id == image.id


def test_delete_image_waits_for_a_prediction_under_way(records: Records, engine: sa.Engine) -> None:
    image = rows.image(kept=True)
    save(records, image)
    release, inserted = threading.Event(), threading.Event()
    with ThreadPoolExecutor(2) as pool:
        inserting = pool.submit(held_insert, engine, image.id, release, inserted)
        assert inserted.wait(5)
        deleting = pool.submit(records.delete_image, "local", image.id)
        time.sleep(0.3)
        release.set()
        inserting.result(10)
        with pytest.raises(Conflict, match="1 prediction refers"):
            deleting.result(10)


def test_the_same_thing_deleted_at_once(records: Records, engine: sa.Engine) -> None:
    """Every key is given to exactly one of those who delete, and the image goes with the one that is last."""
    for _ in range(8):
        image = rows.image()
        predictions = [rows.prediction(image.id), rows.prediction(image.id)]
        mask = rows.artifact(predictions[0].id)
        save(records, image, *predictions, mask)
        barrier = threading.Barrier(4)

        def delete(id: str, barrier: threading.Barrier = barrier) -> list[str] | Refusal:
            barrier.wait(5)
            try:
                return records.delete_prediction("local", id)
            except Refusal as error:
                return error

        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(delete, [p.id for p in predictions] * 2))
        refused = [result for result in results if isinstance(result, Refusal)]
        keys = [key for result in results if isinstance(result, list) for key in result]
        assert [type(refusal) for refusal in refused] == [NotFound, NotFound]
        assert sorted(keys) == sorted([image.storage_key, mask.storage_key])
    assert [count(engine, table) for table in (Image, Prediction, Artifact)] == [0, 0, 0]


def test_storing_races_deleting(records: Records, engine: sa.Engine) -> None:
    """A prediction about an image that is just going either keeps it or is refused; never the one without the other."""
    for _ in range(8):
        image = rows.image()
        first, second = rows.prediction(image.id), rows.prediction(image.id)
        save(records, image, first)
        with ThreadPoolExecutor(1) as pool:
            deleting = pool.submit(records.delete_prediction, "local", first.id)
            error = records.save([second]).exception(10)
            keys = deleting.result(10)
        if error is None:
            assert keys == [] and records.prediction("local", second.id).image_id == image.id
            records.delete_prediction("local", second.id)
        else:
            assert isinstance(error, Conflict) and keys == [image.storage_key]
    assert [count(engine, table) for table in (Image, Prediction)] == [0, 0]


def test_without_a_database() -> None:
    records = Records(connect(f"postgresql://somebody:hunter2@127.0.0.1:{free_port()}/d"))
    asks: list[Callable[[], object]] = [
        lambda: records.save([rows.image()]).result(5),
        lambda: records.image("local", "i"),
        lambda: records.predictions("local"),
        lambda: records.delete_prediction("local", "p"),
        lambda: records.known_keys(["images/2026/11/20/x.jpg"]),
    ]
    for request in asks:
        with pytest.raises(Unavailable) as refused:
            request()
        assert refused.value.message == "the database is unreachable"
    records.close()
