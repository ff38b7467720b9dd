"""Units of one group: the bad fail alone, and ends of items come in one order."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest
import sqlalchemy as sa
from sqlmodel import Session, col, func, select

from db import group_commit as writers
from db import job_states
from db.job_states import ClaimedItem, ItemResult
from db.records import Records
from db.tables import Artifact, JobItem, Prediction
from ekiben.errors import Conflict
from tests.db import rows
from tests.db.group_commit.units import counts, locked, unit
from tests.db.job_rows import change, claimed, items_now, job_now, states_now, submitted


def test_bad_units_fail_alone_and_whole(engine: sa.Engine, records: Records) -> None:
    records.save([rows.image(id="there")]).result(10)
    bad: dict[str, list[Any]] = {
        "duplicate": [rows.image(), rows.image(id="there")],
        "orphan": [rows.image(), rows.prediction("nowhere")],
        "check": [rows.image(id="c"), rows.prediction("c", status="perhaps")],
        "naive": [rows.image(), rows.image(created_at=datetime(2026, 11, 20))],
        "json": [rows.image(id="j"), rows.prediction("j", result={"a": object()})],
    }
    with locked(engine):  # so that all of them meet in one group
        futures = [records.save(unit()) for _ in range(20)]
        failing = {name: records.save(rows_) for name, rows_ in bad.items()}
        futures += [records.save(unit()) for _ in range(20)]
        time.sleep(0.1)
    for future in futures:
        future.result(20)
    errors = {name: future.exception(20) for name, future in failing.items()}
    assert isinstance(errors["duplicate"], Conflict) and "exist already" in errors["duplicate"].message
    assert isinstance(errors["orphan"], Conflict) and "gone" in errors["orphan"].message
    assert isinstance(errors["check"], sa.exc.IntegrityError)
    assert isinstance(errors["naive"], sa.exc.StatementError)
    assert isinstance(errors["json"], sa.exc.StatementError)
    assert counts(engine) == [41, 40, 40]  # of the bad units nothing, not even their good rows


def claimed_items(engine: sa.Engine, total: int, **given: Any) -> list[ClaimedItem]:
    """The items of a new job, claimed by worker-1."""
    return claimed(engine, submitted(engine, total, **given), "worker-1")


def ends(item: ClaimedItem, worker_id: str = "worker-1", **given: Any) -> ItemResult:
    return ItemResult(item.job_id, item.id, worker_id, **given)


def test_the_end_of_an_item_comes_after_the_rows_in_their_transaction(
    engine: sa.Engine, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, alone, lost, broken = claimed_items(engine, 4)
    seen: list[int] = []

    def settle(db: sa.Connection, settlings: Sequence[ItemResult]) -> None:
        seen.append(db.execute(sa.select(func.count()).select_from(Artifact)).scalar_one())
        job_states.finish_items(db, settlings)
        if any(one.item_id == broken.id for one in settlings):
            raise fault

    monkeypatch.setattr(writers, "finish_items", settle)
    fault = ValueError("a fault of ours")
    records.save(unit(), ends(good)).result(10)
    records.save([], ends(alone, error={"code": "bad_image", "message": "none"})).result(10)
    error = records.save(unit(), ends(lost, "worker-2")).exception(10)
    assert isinstance(error, Conflict) and error.code == "item_lost"
    assert records.save(unit(), ends(broken)).exception(10) is fault
    assert seen == [1, 1, 2, 2]  # the rows of each unit were there, and went with it
    assert counts(engine) == [1, 1, 1]
    assert states_now(engine, good.job_id) == ["succeeded", "failed", "running", "running"]


def test_lost_ones_of_a_group_fail_alone(engine: sa.Engine, records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 units in one group, each the end of an item, of three jobs; another has claimed two of the items by now."""
    items = [item for total in (7, 6, 7) for item in claimed_items(engine, total)]
    sizes: list[int] = []

    def settle(db: sa.Connection, settlings: Sequence[ItemResult]) -> None:
        sizes.append(len(settlings))
        job_states.finish_items(db, settlings)

    monkeypatch.setattr(writers, "finish_items", settle)
    for n in (3, 11):
        change(engine, JobItem, items[n].id, worker_id="worker-2")
    with locked(engine):
        first = records.save(unit())
        time.sleep(0.05)  # the writer hangs on this one; the rest meet in the group after it
        futures = []
        for item in items:
            image = rows.image()
            prediction = rows.prediction(image.id, id=item.id, job_id=item.job_id)
            futures.append(records.save([image, prediction, rows.artifact(item.id)], ends(item, image_id=image.id)))
    first.result(10)
    errors = {n: error for n, future in enumerate(futures) if (error := future.exception(20)) is not None}
    assert set(errors) == {3, 11}
    assert all(isinstance(error, Conflict) and error.code == "item_lost" for error in errors.values())
    assert sizes[0] == 20 and len(sizes) < 20  # together first, then by halves: not each for itself
    assert counts(engine) == [19, 19, 19]
    good = {item.id for n, item in enumerate(items) if n not in errors}
    with Session(engine) as session:
        assert set(session.exec(select(Prediction.id).where(col(Prediction.job_id).is_not(None)))) == good
        assert set(session.exec(select(JobItem.id).where(JobItem.state == "succeeded"))) == good
    found = [job_now(engine, job_id) for job_id in dict.fromkeys(item.job_id for item in items)]
    assert [(job.state, job.succeeded) for job in found] == [("running", 6), ("running", 5), ("succeeded", 7)]
    for n in errors:
        assert items_now(engine, items[n].job_id)[items[n].position].worker_id == "worker-2"


def test_an_item_that_ends_twice_in_a_group_ends_once(engine: sa.Engine, records: Records) -> None:
    one, two = claimed_items(engine, 2)
    with locked(engine):
        first = records.save(unit())
        time.sleep(0.05)
        futures = [records.save(unit(), ends(item)) for item in (one, two, one)]
    first.result(10)
    errors = [future.exception(20) for future in futures]
    assert errors[:2] == [None, None] and isinstance(errors[2], Conflict) and errors[2].code == "item_lost"
    assert counts(engine) == [3, 3, 3]
    over = job_now(engine, one.job_id)
    assert (over.state, over.succeeded, over.failed) == ("succeeded", 2, 0)


def test_jobs_of_a_group_come_in_one_order(engine: sa.Engine, records: Records) -> None:
    """Two processes that lock the rows of several jobs must not do it in opposite orders, nor insert before that:
    the one that removes a job locks it first, and then what it made."""
    entries = {job_id: claimed_items(engine, 2, id=job_id) for job_id in "abc"}
    order: list[str] = []

    def before(connection: Any, cursor: Any, statement: str, parameters: Any, *rest: Any) -> None:
        if statement.startswith("SELECT jobs.id"):
            order.extend(parameters.values() if isinstance(parameters, dict) else parameters)
        elif statement.startswith("INSERT INTO images"):
            order.append("rows")

    with locked(engine):
        first = records.save(unit())
        time.sleep(0.05)
        futures = [records.save(unit(), ends(entries[job_id].pop())) for job_id in "cabac"]
        sa.event.listen(engine, "before_cursor_execute", before)
    for future in (first, *futures):
        future.result(10)
    group = order[order.index("a") :]  # without the first unit, which may have come to its rows only now
    assert group[:4] == ["a", "b", "c", "rows"]
    assert group[4:] == sorted(group[4:]) and set(group[4:]) == {"a", "b", "c"}
    assert [job_now(engine, job_id).succeeded for job_id in "abc"] == [2, 1, 2]
