"""Datasets as rows: what has become of them, who may see them, and when they may be removed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from db import job_states
from db.datasets import Datasets, file_key
from db.job_states import LOST, ClaimedItem, ItemResult
from db.jobs import JobRecords
from db.session import writing
from db.tables import Dataset, JobItem, now
from ekiben.errors import Conflict, NotFound
from ekiben.ids import derived_id, new_id
from tests.db.job_rows import claimed, count, given_back, items, items_now, job, job_now, unqueued

REPORT = {"ok": True, "samples": 3, "files": 6, "errors": [], "warnings": []}
BAD_REPORT = {
    "ok": False,
    "samples": 0,
    "files": 2,
    "errors": [
        {"code": "image_without_mask", "message": "2 images have no mask", "count": 2, "samples": []},
        {"code": "other", "message": "not the first", "count": 1, "samples": []},
    ],
}
READY = {"state": "ready", "samples": 3, "files": 6, "bytes": 2_500_000, "classes": [{"name": "cell"}]}


@pytest.fixture
def datasets(engine: sa.Engine) -> Datasets:
    return Datasets(engine)


def brought(engine: sa.Engine, owner: str = "local", **given: Any) -> Dataset:
    """A dataset that was just submitted with its import."""
    dataset = Dataset(owner=owner, **{"name": "cells", "source": {"kind": "upload"}, "job_id": new_id(), **given})
    importing = job(
        id=dataset.job_id,
        owner=owner,
        kind="import",
        operation="import_dataset",
        parameters={"dataset_id": dataset.id},
    )
    upload = items(1, storage_key=file_key(dataset, "upload"))
    _, created = JobRecords(engine).submit(importing, upload, 1, unqueued, [dataset])
    assert created
    return dataset


def claimed_item(engine: sa.Engine, dataset: Dataset, worker_id: str = "worker-1") -> ClaimedItem:
    [item] = claimed(engine, dataset.job_id, worker_id)
    return item


def item_result(item: ClaimedItem, worker_id: str = "worker-1", error: dict[str, Any] | None = None) -> ItemResult:
    result = None if error else {"dataset_id": "x"}
    return ItemResult(item.job_id, item.id, worker_id, result=result, error=error)


def made_ready(engine: sa.Engine, dataset: Dataset) -> None:
    found = {**READY, "report": REPORT}
    Datasets(engine).imported(dataset.id, item_result(claimed_item(engine, dataset)), found)


def training(engine: sa.Engine, dataset: Dataset, owner: str = "local") -> str:
    wanted = job(owner=owner, kind="training", operation="train", parameters={"dataset_id": dataset.id})
    stored, _ = JobRecords(engine).submit(wanted, items(1, storage_key=None), 1, unqueued)
    return stored.id


# ---- what has become of it ----


def test_it_is_stored_with_its_job_or_not_at_all(engine: sa.Engine, datasets: Datasets) -> None:
    dataset = brought(engine)
    shown = datasets.dataset("local", dataset.id)
    assert (shown.dataset.name, shown.state, shown.error) == ("cells", "importing", None)
    assert job_now(engine, dataset.job_id).state == "queued"

    def broken(*given: Any) -> None:
        raise RuntimeError("no queue")

    other = Dataset(name="other", job_id=new_id())
    with pytest.raises(RuntimeError):
        JobRecords(engine).submit(job(id=other.job_id, kind="import"), items(1), 1, broken, [other])
    assert count(engine, Dataset) == 1 and count(engine, JobItem) == 1


def test_the_same_key_again_makes_no_second_dataset(engine: sa.Engine, datasets: Datasets) -> None:
    records, ids = JobRecords(engine), []
    for _ in range(2):
        dataset = Dataset(name="cells", job_id=new_id())
        requested = job(id=dataset.job_id, kind="import", idempotency_key="k", fingerprint="f")
        stored, created = records.submit(requested, items(1), 1, unqueued, [dataset])
        ids.append((stored.id, created))
    assert ids == [(ids[0][0], True), (ids[0][0], False)]
    assert datasets.datasets("local").total == 1


def test_ready(engine: sa.Engine, datasets: Datasets) -> None:
    dataset = brought(engine)
    item = claimed_item(engine, dataset)
    assert datasets.dataset("local", dataset.id).state == "importing"
    with pytest.raises(Conflict, match=f"being imported by job {dataset.job_id}") as early:
        datasets.ready("local", dataset.id)
    assert early.value.code == "dataset_not_ready"
    datasets.imported(dataset.id, item_result(item), {**READY, "report": REPORT})
    shown = datasets.dataset("local", dataset.id)
    assert (shown.state, shown.error) == ("ready", None)
    found = shown.dataset
    assert (found.samples, found.files, found.bytes) == (3, 6, 2_500_000)
    assert (found.classes, found.report) == ([{"name": "cell"}], REPORT)
    assert found.updated_at > dataset.updated_at
    assert datasets.ready("local", dataset.id).id == dataset.id
    assert job_now(engine, dataset.job_id).state == "succeeded"
    assert items_now(engine, dataset.job_id)[0].storage_key is None  # what came is not needed any more


def test_refused(engine: sa.Engine, datasets: Datasets) -> None:
    """The report's first error is the reason; what came stays, so that the import can be tried again."""
    dataset = brought(engine)
    error = {"code": "bad_dataset", "message": "2 images have no mask"}
    found = {"state": "refused", "samples": 0, "files": 2, "report": BAD_REPORT}
    datasets.imported(dataset.id, item_result(claimed_item(engine, dataset), error=error), found)
    shown = datasets.dataset("local", dataset.id)
    assert shown.state == "refused"
    assert shown.error == {"code": "image_without_mask", "message": "2 images have no mask"}
    assert (shown.dataset.report, shown.dataset.samples) == (BAD_REPORT, 0)
    assert job_now(engine, dataset.job_id).error == error
    assert items_now(engine, dataset.job_id)[0].storage_key == file_key(dataset, "upload")
    with pytest.raises(Conflict, match="2 images have no mask") as refused:
        datasets.ready("local", dataset.id)
    assert refused.value.code == "dataset_not_ready"

    # Tried again it is being imported, whatever was found before, and may well become ready.
    JobRecords(engine).retry("local", dataset.job_id, lambda count: 1, unqueued)
    assert datasets.dataset("local", dataset.id).state == "importing"
    with pytest.raises(Conflict, match="being imported"):
        datasets.delete("local", dataset.id)
    made_ready(engine, dataset)
    assert datasets.dataset("local", dataset.id).state == "ready"


def test_failed_because_the_job_did(engine: sa.Engine, datasets: Datasets) -> None:
    dataset, error = brought(engine), {"code": "out_of_memory", "message": "it needed more than there is"}
    item = claimed_item(engine, dataset)
    with writing(engine) as session:
        job_states.finish_items(session.connection(), [item_result(item, error=error)])
    shown = datasets.dataset("local", dataset.id)
    assert (shown.state, shown.error) == ("failed", error)
    with pytest.raises(Conflict, match="it needed more than there is"):
        datasets.ready("local", dataset.id)


def test_failed_because_the_job_was_cancelled(engine: sa.Engine, datasets: Datasets) -> None:
    dataset = brought(engine)
    item = claimed_item(engine, dataset)
    JobRecords(engine).cancel("local", dataset.job_id)
    shown = datasets.dataset("local", dataset.id)
    assert shown.state == "failed" and shown.error is not None
    assert (shown.error["code"], "cancelled" in shown.error["message"]) == ("cancelled", True)
    # What the worker found in this very moment comes too late.
    with pytest.raises(Conflict) as late:
        datasets.imported(dataset.id, item_result(item), {**READY, "report": REPORT})
    assert late.value.code == LOST
    assert datasets.dataset("local", dataset.id).state == "failed"


def test_failed_and_its_job_is_not_remembered(engine: sa.Engine, datasets: Datasets) -> None:
    records = JobRecords(engine)
    failed, ready = brought(engine), brought(engine, name="good")
    made_ready(engine, ready)
    records.cancel("local", failed.job_id)
    for dataset in (failed, ready):
        keys, last = records.remove_some("local", dataset.job_id)
        assert last
        assert keys == ([file_key(failed, "upload")] if dataset is failed else [])
    shown = datasets.dataset("local", failed.id)
    assert shown.state == "failed" and shown.error is not None and shown.error["code"] == "import_failed"
    assert datasets.dataset("local", ready.id).state == "ready"  # the dataset outlives the job that made it


def test_only_the_worker_that_has_it_may_end_an_import(engine: sa.Engine, datasets: Datasets) -> None:
    dataset = brought(engine)
    first = claimed_item(engine, dataset, "worker-1")
    given_back(engine, "worker-1", [first])
    second = claimed_item(engine, dataset, "worker-2")
    for error in (None, {"code": "bad_dataset", "message": "no"}):
        with pytest.raises(Conflict) as lost:
            datasets.imported(dataset.id, item_result(first, "worker-1", error), {**READY, "report": REPORT})
        assert lost.value.code == LOST
    shown = datasets.dataset("local", dataset.id)
    assert (shown.state, shown.dataset.samples, shown.dataset.report) == ("importing", 0, None)
    assert items_now(engine, dataset.job_id)[0].worker_id == "worker-2"
    datasets.imported(dataset.id, item_result(second, "worker-2"), {**READY, "report": REPORT})
    with pytest.raises(Conflict) as twice:
        datasets.imported(dataset.id, item_result(second, "worker-2"), {**READY, "samples": 99, "report": REPORT})
    assert twice.value.code == LOST
    assert datasets.dataset("local", dataset.id).dataset.samples == 3


def test_an_import_whose_dataset_is_gone_ends_nothing(engine: sa.Engine, datasets: Datasets) -> None:
    dataset = brought(engine)
    item = claimed_item(engine, dataset)
    with writing(engine) as session:
        session.delete(session.get(Dataset, dataset.id))
    with pytest.raises(NotFound):
        datasets.imported(dataset.id, item_result(item), {**READY, "report": REPORT})
    assert items_now(engine, dataset.job_id)[0].state == "running"  # one transaction: it was not settled either


# ---- removing ----


def test_delete(engine: sa.Engine, datasets: Datasets) -> None:
    dataset = brought(engine)
    with pytest.raises(Conflict, match=f"cancel job {dataset.job_id}"):
        datasets.delete("local", dataset.id)
    made_ready(engine, dataset)
    keys = datasets.delete("local", dataset.id)
    day = f"datasets/{dataset.created_at:%Y/%m/%d}"
    wanted = [f"{day}/{dataset.id}.zip"]
    wanted += [f"{day}/{derived_id(dataset.id, 'preview')}.png", f"{day}/{derived_id(dataset.id, 'upload')}.zip"]
    assert keys == wanted
    for look in (datasets.dataset, datasets.ready, datasets.delete):
        with pytest.raises(NotFound):
            look("local", dataset.id)


@pytest.mark.parametrize("state", ["queued", "running"])
def test_a_dataset_that_a_training_needs_stays(engine: sa.Engine, datasets: Datasets, state: str) -> None:
    dataset, other = brought(engine), brought(engine)
    made_ready(engine, dataset)
    made_ready(engine, other)
    job_id = training(engine, dataset)
    if state == "running":
        claimed(engine, job_id)
    with pytest.raises(Conflict, match=f"training {job_id}: cancel it first"):
        datasets.delete("local", dataset.id)
    datasets.delete("local", other.id)
    JobRecords(engine).cancel("local", job_id)
    datasets.delete("local", dataset.id)
    assert count(engine, Dataset) == 0


# ---- finding ----


def test_pages_newest_first_and_only_ones_own(engine: sa.Engine, datasets: Datasets) -> None:
    moment = now()
    made = [brought(engine, name=f"{n}", created_at=moment + timedelta(seconds=n)) for n in range(5)]
    theirs = brought(engine, owner="someone")
    made_ready(engine, made[3])
    page = datasets.datasets("local", 1, 2)
    assert ([one.name for one in page.items], page.total, page.page, page.limit) == (["4", "3"], 5, 1, 2)
    assert [shown.state for shown in datasets.shown(page.items)] == ["importing", "ready"]
    assert [one.name for one in datasets.datasets("local", 3, 2).items] == ["0"]
    assert list(datasets.datasets("local", 4, 2).items) == []
    assert [one.name for one in datasets.datasets("local", 0, 0).items] == ["4"]
    assert datasets.datasets("someone").total == 1
    assert datasets.shown([]) == []
    for look in (datasets.dataset, datasets.ready, datasets.delete):
        with pytest.raises(NotFound):
            look("local", theirs.id)
        with pytest.raises(NotFound):
            look("someone", made[0].id)
    made_ready(engine, theirs)
    training(engine, theirs, owner="local")  # somebody else's job says nothing about it
    datasets.delete("someone", theirs.id)
