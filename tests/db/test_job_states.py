"""Every change of a job's state, one at a time, with what it leaves in the rows; races are in test_job_races.py."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from db import job_states
from db.job_states import ItemResult
from db.jobs import JobRecords
from db.records import Records
from db.session import writing
from db.tables import Image, Job, JobEvent, JobItem, Prediction, now
from ekiben.errors import Conflict, NotFound
from tests.db import rows
from tests.db.item_ends import BAD, MINUTE, die, settle, settle_all
from tests.db.job_rows import (
    buried,
    change,
    claimed,
    count,
    events_now,
    given_back,
    items,
    items_now,
    job,
    job_now,
    states_now,
    submitted,
    unqueued,
)


def test_claim_marks_what_it_takes(engine: sa.Engine) -> None:
    before = now()
    job_id = submitted(engine, 5)
    first = claimed(engine, job_id, "worker-1", 2)
    assert [(item.position, item.filename, item.bytes, item.tries) for item in first] == [
        (0, "0.jpg", 1000, 0),
        (1, "1.jpg", 1001, 0),
    ]
    stored = items_now(engine, job_id)
    assert first[0] == job_states.ClaimedItem(*(getattr(stored[0], name) for name in job_states.ClaimedItem._fields))
    assert [item.position for item in claimed(engine, job_id, "worker-2", 2)] == [2, 3]
    assert [item.position for item in claimed(engine, job_id, "worker-1", 2)] == [4]
    assert claimed(engine, job_id, "worker-2", 2) == []
    stored = items_now(engine, job_id)
    assert [item.worker_id for item in stored] == ["worker-1", "worker-1", "worker-2", "worker-2", "worker-1"]
    assert [(item.state, item.attempts, item.deaths) for item in stored] == [("running", 1, 0)] * 5
    assert all(before <= item.started_at <= now() for item in stored if item.started_at)
    begun = job_now(engine, job_id)
    assert (begun.state, begun.attempts, begun.succeeded, begun.failed) == ("running", 1, 0, 0)
    assert begun.started_at == stored[0].started_at  # the first claim began it
    assert events_now(engine, job_id) == [(1, "state", {"state": "queued"}), (2, "state", {"state": "running"})]
    assert begun.last_event == 2


def test_what_a_worker_died_with_comes_last_and_alone(engine: sa.Engine) -> None:
    job_id = submitted(engine, 5)
    stored = items_now(engine, job_id)
    change(engine, JobItem, stored[0].id, deaths=2)
    change(engine, JobItem, stored[1].id, deaths=1)
    change(engine, JobItem, stored[3].id, deaths=1)
    claims = [[(item.position, item.deaths) for item in claimed(engine, job_id)] for _ in range(5)]
    assert claims == [[(2, 0), (4, 0)], [(1, 1)], [(3, 1)], [(0, 2)], []]


def test_a_retry_waits_for_its_time(engine: sa.Engine) -> None:
    job_id = submitted(engine, 3)
    given_back(engine, "worker-1", claimed(engine, job_id, limit=1), now() + MINUTE)
    assert [item.position for item in claimed(engine, job_id)] == [1, 2]
    assert claimed(engine, job_id) == []
    change(engine, JobItem, items_now(engine, job_id)[0].id, not_before=now() - timedelta(milliseconds=1))
    (again,) = claimed(engine, job_id)
    assert (again.position, again.tries) == (0, 1)  # it was tried once


def test_claim_leaves_other_jobs_and_jobs_that_are_over(engine: sa.Engine) -> None:
    job_id, other = submitted(engine, 2), submitted(engine, 2)
    with writing(engine) as session:
        job_states.fail(session, job_id, BAD)
    assert claimed(engine, job_id) == []
    assert (job_now(engine, job_id).state, job_now(engine, other).state) == ("failed", "queued")
    assert states_now(engine, other) == ["queued", "queued"]


def test_an_answer_its_item_and_the_counts_are_one_transaction(engine: sa.Engine, records: Records) -> None:
    job_id = submitted(engine, 2, webhook_url="https://example.org/done")
    one, two = claimed(engine, job_id)
    image = rows.image(storage_key=one.storage_key)
    answer = [image, rows.prediction(image.id, id=one.id, job_id=job_id)]
    records.save(answer, ItemResult(job_id, one.id, "worker-1", result={"took_ms": 12.5}, image_id=image.id)).result(10)
    first, second = items_now(engine, job_id)
    assert (first.state, first.result, first.error, first.worker_id) == ("succeeded", {"took_ms": 12.5}, None, None)
    assert (first.image_id, first.storage_key) == (image.id, None)  # the image is the image's from now on
    assert first.finished_at is not None and second.state == "running"
    half = job_now(engine, job_id)
    assert (half.state, half.succeeded, half.failed, half.finished_at) == ("running", 1, 0, None)
    assert (half.webhook_state, half.webhook_at, half.progress) == (None, None, 0.0)
    assert records.prediction("local", one.id).job_id == job_id

    settle(records, job_id, two.id, error=BAD)
    second = items_now(engine, job_id)[1]
    assert (second.state, second.result, second.error) == ("failed", None, BAD)
    assert second.storage_key == two.storage_key  # so that it can be tried again
    over = job_now(engine, job_id)
    assert (over.state, over.succeeded, over.failed, over.progress, over.error) == ("succeeded", 1, 1, 1.0, None)
    assert over.finished_at is not None and over.finished_at == over.webhook_at and over.webhook_state == "pending"
    assert events_now(engine, job_id)[2:] == [
        (3, "state", {"state": "succeeded", "total": 2, "done": 2, "failed": 1, "error": None})
    ]


def test_an_item_that_was_lost_takes_its_answer_along(engine: sa.Engine, records: Records) -> None:
    """The one that came too late leaves nothing: not the prediction, not the image, not a count."""
    job_id = submitted(engine, 4)
    mine = claimed(engine, job_id, "worker-1", 3)
    settle(records, job_id, mine[0].id)
    given_back(engine, "worker-1", [mine[1]])
    assert [item.id for item in claimed(engine, job_id, "worker-2", 1)] == [mine[1].id]
    never_claimed = items_now(engine, job_id)[3].id
    for item_id in (mine[0].id, mine[1].id, never_claimed, "no such item"):
        image = rows.image()
        answer = [image, rows.prediction(image.id, id=f"{item_id[:30]}-late", job_id=job_id)]
        error = records.save(answer, ItemResult(job_id, item_id, "worker-1", image_id=image.id)).exception(10)
        assert isinstance(error, Conflict) and error.code == "item_lost"
    error = records.save([], ItemResult("no such job", mine[2].id, "worker-1")).exception(10)
    assert isinstance(error, Conflict) and error.code == "item_lost"
    assert [count(engine, Prediction), count(engine, Image)] == [0, 0]
    assert states_now(engine, job_id) == ["succeeded", "running", "running", "queued"]
    assert (job_now(engine, job_id).succeeded, job_now(engine, job_id).failed) == (1, 0)


def test_many_ends_at_once(engine: sa.Engine) -> None:
    """Of several jobs and workers, good and bad, with an image that became an image and with one that did not."""
    image = rows.image()
    with writing(engine) as session:
        session.add(image)
    half, whole, bad = submitted(engine, 4), submitted(engine, 3), submitted(engine, 2)
    ours, theirs = claimed(engine, half, "worker-1", 2), claimed(engine, half, "worker-2", 1)
    three, two = claimed(engine, whole), claimed(engine, bad)
    before = now()
    settle_all(
        engine,
        ItemResult(whole, three[2].id, "worker-1", result={"n": 2}),
        ItemResult(half, theirs[0].id, "worker-2", error=BAD),
        ItemResult(bad, two[1].id, "worker-1", error={"code": "too_large", "message": "more pixels than the limit"}),
        ItemResult(half, ours[1].id, "worker-1", result={"n": 1}, image_id=image.id),
        ItemResult(whole, three[0].id, "worker-1", result={"n": 0}),
        ItemResult(bad, two[0].id, "worker-1", error=BAD),
        ItemResult(whole, three[1].id, "worker-1", error=BAD, image_id=image.id),
    )
    stored = items_now(engine, half)
    assert [item.state for item in stored] == ["running", "succeeded", "failed", "queued"]
    assert [item.worker_id for item in stored] == ["worker-1", None, None, None]
    assert [item.result for item in stored] == [None, {"n": 1}, None, None]
    assert [item.error for item in stored] == [None, None, BAD, None]
    assert [item.image_id for item in stored] == [None, image.id, None, None]
    assert [item.storage_key is None for item in stored] == [False, True, False, False]
    assert [item.finished_at is not None for item in stored] == [False, True, True, False]
    assert all(before <= item.finished_at <= now() for item in stored if item.finished_at is not None)
    stored = items_now(engine, whole)
    assert [(item.state, item.result, item.error) for item in stored] == [
        ("succeeded", {"n": 0}, None),
        ("failed", None, BAD),
        ("succeeded", {"n": 2}, None),
    ]
    assert [(item.image_id, item.storage_key is None) for item in stored] == [
        (None, False),
        (image.id, True),
        (None, False),
    ]
    ends = [job_now(engine, job_id) for job_id in (half, whole, bad)]
    assert [(job.state, job.succeeded, job.failed) for job in ends] == [
        ("running", 1, 1),
        ("succeeded", 2, 1),
        ("failed", 0, 2),
    ]
    message = "all 2 items failed; the first: not an image"
    assert [job.error for job in ends] == [None, None, {"code": "all_items_failed", "message": message}]
    for job_id, said in (
        (half, []),
        (whole, [("succeeded", 3)]),
        (bad, [("failed", 2)]),
    ):  # each ended once, as a whole
        events = events_now(engine, job_id)[2:]
        assert [(data["state"], data["done"]) for _, _, data in events] == said


def test_one_lost_among_many_ends_none(engine: sa.Engine) -> None:
    """Whether it was given back, is claimed by another, has ended, is named twice, or never was; in whichever job."""
    first, second = sorted((submitted(engine, 3), submitted(engine, 4)))
    mine = claimed(engine, first, limit=3)
    later = claimed(engine, second, limit=4)[:2]
    settle_all(engine, ItemResult(second, items_now(engine, second)[3].id, "worker-1"))
    with writing(engine) as session:
        job_states.requeue(session, "worker-1", [items_now(engine, second)[2].id])
    good = [ItemResult(first, item.id, "worker-1") for item in mine] + [
        ItemResult(second, item.id, "worker-1") for item in later
    ]
    before = [
        (job_now(engine, id).model_dump(), states_now(engine, id), events_now(engine, id)) for id in (first, second)
    ]
    lost = [
        ItemResult(second, items_now(engine, second)[2].id, "worker-1"),  # waits again
        ItemResult(second, items_now(engine, second)[3].id, "worker-1"),  # has ended
        ItemResult(second, later[0].id, "worker-1", error=BAD),  # twice in one group
        ItemResult(second, "no such item", "worker-1"),
        ItemResult(second, mine[0].id, "worker-1"),  # an item of another job
        ItemResult("no such job", later[0].id, "worker-1"),
    ]
    groups = [[*good[:3], one, *good[3:]] for one in lost]
    groups.append([*good[:-1], good[-1]._replace(worker_id="worker-2")])  # claimed by another
    for group in groups:
        with pytest.raises(Conflict) as refused:
            settle_all(engine, *group)
        assert refused.value.code == "item_lost"
        after = [
            (job_now(engine, id).model_dump(), states_now(engine, id), events_now(engine, id)) for id in (first, second)
        ]
        assert after == before
    settle_all(engine, *good)  # without it they all end
    assert states_now(engine, first) == ["succeeded"] * 3
    assert states_now(engine, second) == ["succeeded", "succeeded", "queued", "succeeded"]


@pytest.mark.parametrize(
    ("kind", "total", "error"),
    [
        ("request", 1, BAD),
        ("batch", 3, {"code": "all_items_failed", "message": "all 3 items failed; the first: not an image"}),
    ],
)
def test_nothing_good_is_a_failed_job(
    engine: sa.Engine, records: Records, kind: str, total: int, error: dict[str, str]
) -> None:
    job_id = submitted(engine, total, kind=kind)
    for item in claimed(engine, job_id)[::-1]:  # "the first" is that of the order in which they were given
        said = BAD if item.position == 0 else {"code": "too_large", "message": "more pixels than the limit"}
        settle(records, job_id, item.id, error=said)
    over = job_now(engine, job_id)
    assert (over.state, over.error, over.succeeded, over.failed) == ("failed", error, 0, total)
    assert (over.progress, over.webhook_state, over.webhook_at) == (0.0, None, None)
    data = {"state": "failed", "total": total, "done": total, "failed": total, "error": error}
    assert events_now(engine, job_id)[-1] == (3, "state", data)


def test_items_that_could_not_be_tried_count(engine: sa.Engine, records: Records) -> None:
    """A batch may be submitted with items that failed already."""
    given = items(2)
    given[0] |= {"state": "failed", "storage_key": None, "error": BAD, "finished_at": now()}
    stored, _ = JobRecords(engine).submit(job(2, failed=1), given, 1, unqueued)
    (item,) = claimed(engine, stored.id)
    assert item.position == 1
    settle(records, stored.id, item.id)
    over = job_now(engine, stored.id)
    assert (over.state, over.succeeded, over.failed) == ("succeeded", 1, 1)


def test_requeue(engine: sa.Engine) -> None:
    job_id = submitted(engine, 3)
    mine = claimed(engine, job_id, "worker-1", 2)
    (other,) = claimed(engine, job_id, "worker-2", 2)
    at = datetime(2026, 11, 20, 12, tzinfo=UTC)
    given_back(engine, "worker-1", [mine[1], other], at)  # what another has claimed stays so
    stored = items_now(engine, job_id)
    assert [(item.state, item.worker_id, item.not_before) for item in stored] == [
        ("running", "worker-1", None),
        ("queued", None, at),
        ("running", "worker-2", None),
    ]
    assert [(item.attempts, item.deaths) for item in stored] == [(1, 0)] * 3
    given_back(engine, "worker-1", [])
    assert states_now(engine, job_id) == ["running", "queued", "running"]


def test_cancel(engine: sa.Engine, records: Records) -> None:
    jobs = JobRecords(engine)
    job_id = submitted(engine, 4, webhook_url="https://example.org/done")
    done, bad, items_claimed = claimed(engine, job_id, limit=3)
    settle(records, job_id, done.id)
    settle(records, job_id, bad.id, error=BAD)
    cancelled = jobs.cancel("local", job_id)
    assert (cancelled.state, cancelled.succeeded, cancelled.failed, cancelled.error) == ("cancelled", 1, 1, None)
    assert cancelled.finished_at is not None and cancelled.webhook_state == "pending" and cancelled.progress == 0.0
    assert states_now(engine, job_id) == ["succeeded", "failed", "cancelled", "cancelled"]
    assert {item.worker_id for item in items_now(engine, job_id)} == {None}
    data = {"state": "cancelled", "total": 4, "done": 2, "failed": 1, "error": None}
    assert events_now(engine, job_id)[-1] == (3, "state", data)
    with pytest.raises(Conflict, match="the job is over: it was cancelled"):
        jobs.cancel("local", job_id)
    error = records.save([], ItemResult(job_id, items_claimed.id, "worker-1")).exception(10)
    assert isinstance(error, Conflict) and error.code == "item_lost"
    given_back(engine, "worker-1", [items_claimed])
    assert states_now(engine, job_id)[2] == "cancelled"
    assert buried(engine, "worker-1") == []
    assert len(events_now(engine, job_id)) == 3


def test_fail_ends_what_is_not_over(engine: sa.Engine, records: Records) -> None:
    job_id = submitted(engine, 2)
    with writing(engine) as session:
        job_states.fail(session, job_id, {"code": "timed_out", "message": "600 s"})
        job_states.fail(session, job_id, BAD)
        job_states.fail(session, "no such job", BAD)
    over = job_now(engine, job_id)
    assert (over.state, over.error) == ("failed", {"code": "timed_out", "message": "600 s"})
    assert states_now(engine, job_id) == ["cancelled", "cancelled"]
    assert [number for number, _, _ in events_now(engine, job_id)] == [1, 2]


def test_retry_begins_again_with_what_did_not_succeed(engine: sa.Engine, records: Records) -> None:
    jobs = JobRecords(engine)
    job_id = submitted(engine, 4, webhook_url="https://example.org/done")
    with pytest.raises(Conflict, match="the job is not over yet"):
        jobs.retry("local", job_id, lambda items: items, unqueued)
    die(engine, job_id, 1, limit=1)
    good, bad, items_claimed = claimed(engine, job_id)
    settle(records, job_id, good.id, result={"a": 1})
    settle(records, job_id, bad.id, error=BAD)
    given_back(engine, "worker-1", [items_claimed], now() + MINUTE)
    with writing(engine) as session:
        job_states.report(session, job_id, 0.5)
        job_states.fail(session, job_id, {"code": "timed_out", "message": "600 s"})
    jobs.webhook_tried(job_now(engine, job_id), "pending", 2, now() + MINUTE)
    assert job_now(engine, job_id).webhook_tries == 2
    finished = items_now(engine, job_id)[1].finished_at
    requested: list[int] = []

    again = jobs.retry("local", job_id, lambda items: requested.append(items) or 2, unqueued)  # type: ignore[func-returns-value]
    assert requested == [3]
    assert (again.state, again.succeeded, again.failed, again.deaths, again.progress) == ("queued", 1, 0, 0, 0.0)
    assert (again.error, again.started_at, again.finished_at) == (None, None, None)
    assert (again.webhook_state, again.webhook_tries, again.webhook_at) == (None, 0, None)
    assert (again.entries, again.attempts) == (3, 2)  # these only grow
    assert again.head_start == 1
    stored = items_now(engine, job_id)
    assert [item.state for item in stored] == ["queued", "succeeded", "queued", "queued"]
    assert (stored[1].result, stored[1].finished_at, stored[1].attempts) == ({"a": 1}, finished, 1)
    for item in (stored[0], stored[2], stored[3]):
        assert (item.attempts, item.deaths, item.not_before, item.error, item.finished_at) == (0, 0, None, None, None)
    assert events_now(engine, job_id)[-1][1:] == ("state", {"state": "queued"})

    for mine in claimed(engine, job_id):
        settle(records, job_id, mine.id)
    over = job_now(engine, job_id)
    assert (over.state, over.succeeded, over.failed, over.webhook_state) == ("succeeded", 4, 0, "pending")
    with pytest.raises(Conflict, match="every item of this job has succeeded"):
        jobs.retry("local", job_id, lambda items: items, unqueued)
    assert job_now(engine, job_id).state == "succeeded"


def test_events_of_a_job_that_is_gone_are_dropped(engine: sa.Engine) -> None:
    with writing(engine) as session:
        job_states.add_event(session, "no such job", "state", {})
    assert count(engine, JobEvent) == 0


def test_report(engine: sa.Engine, records: Records) -> None:
    batch, request = submitted(engine, 4), submitted(engine, 1, kind="request")
    with writing(engine) as session:
        job_states.report(session, batch)  # it has not begun
    assert len(events_now(engine, batch)) == 1
    one, two = claimed(engine, batch, limit=2)
    settle(records, batch, one.id)
    settle(records, batch, two.id, error=BAD)
    claimed(engine, request)
    quiet = datetime(2026, 11, 20, 12, tzinfo=UTC)
    change(engine, Job, batch, updated_at=quiet)
    JobRecords(engine).report({request: 0.25, batch: None, "no such job": 0.5})
    assert events_now(engine, batch)[-1] == (3, "progress", {"progress": 0.5, "total": 4, "done": 2, "failed": 1})
    assert events_now(engine, request)[-1] == (3, "progress", {"progress": 0.25, "total": 1, "done": 0, "failed": 0})
    assert (job_now(engine, request).progress, job_now(engine, batch).progress) == (0.25, 0.0)
    assert job_now(engine, batch).updated_at > quiet  # so that it does not look stalled
    JobRecords(engine).cancel("local", batch)
    JobRecords(engine).report({batch: None})
    assert events_now(engine, batch)[-1][1] == "state"


def test_end_of_time() -> None:
    noon = datetime(2026, 11, 20, 12, tzinfo=UTC)
    assert job_states.end_of_time(job(started_at=noon, timeout_s=90.5)) == noon + timedelta(seconds=90.5)
    with pytest.raises(NotFound):
        job_states.end_of_time(job())
