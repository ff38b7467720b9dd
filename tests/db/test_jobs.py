"""Jobs as their owners see them: submitted once, found, and removed with all that they made."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlmodel import Session

from db import job_states
from db.job_states import ItemResult
from db.jobs import JobRecords
from db.records import Records
from db.session import writing
from db.tables import Job, JobEvent, JobItem, now
from ekiben.errors import Conflict, NotFound, Unavailable
from tests.db import rows
from tests.db.answered_jobs import BAD, MINUTE, NOON, answered, settle
from tests.db.job_rows import (
    change,
    claimed,
    count,
    events_now,
    items,
    items_now,
    job,
    job_now,
    states_now,
    submitted,
    unqueued,
)


def test_submit_stores_all_of_it(engine: sa.Engine, jobs: JobRecords) -> None:
    given = items(2)
    given[1] = {"id": given[1]["id"], "image_id": "image-1"}
    queued: list[tuple[str, int]] = []
    requested = job(2, priority=7, parameters={"top_k": 3}, owner="ann", created_at=NOON)
    stored, created = jobs.submit(requested, given, 3, lambda session, job, number: queued.append((job.id, number)))
    assert created and stored.id == requested.id
    assert queued == [(requested.id, 0), (requested.id, 1), (requested.id, 2)]
    found = jobs.job("ann", requested.id)
    assert (found.state, found.total, found.entries, found.last_event, found.priority) == ("queued", 2, 3, 1, 7)
    assert (found.parameters, found.succeeded, found.failed, found.started_at) == ({"top_k": 3}, 0, 0, None)
    one, two = items_now(engine, requested.id)
    assert (one.id, one.filename, one.bytes, one.storage_key) == (
        given[0]["id"],
        "0.jpg",
        1000,
        given[0]["storage_key"],
    )
    assert (two.id, two.image_id, two.filename, two.storage_key, two.bytes) == (
        given[1]["id"],
        "image-1",
        None,
        None,
        0,
    )
    assert [(item.owner, item.created_at, item.state, item.attempts) for item in (one, two)] == [
        ("ann", NOON, "queued", 0)
    ] * 2
    assert events_now(engine, requested.id) == [(1, "state", {"state": "queued"})]


def test_entries_are_numbered_on(jobs: JobRecords) -> None:
    numbers: list[int] = []

    def enqueue(session: Session, job: Job, number: int) -> None:
        numbers.append(number)

    stored, _ = jobs.submit(job(2), items(2), 2, enqueue)
    jobs.enqueue_entry(stored.id, enqueue)
    jobs.cancel("local", stored.id)
    jobs.enqueue_entry(stored.id, enqueue)  # it is over: nobody need work on it
    jobs.enqueue_entry("no such job", enqueue)
    jobs.retry("local", stored.id, lambda items: items, enqueue)
    assert numbers == [0, 1, 2, 3, 4]
    assert jobs.job("local", stored.id).entries == 5


def test_a_queue_that_refuses_leaves_nothing(engine: sa.Engine, jobs: JobRecords) -> None:
    def enqueue(session: Session, job: Job, number: int) -> None:
        if number == 1:
            raise Unavailable("the queue is away")

    with pytest.raises(Unavailable, match="the queue is away"):
        jobs.submit(job(3, idempotency_key="k"), items(3), 2, enqueue)
    assert [count(engine, table) for table in (Job, JobItem, JobEvent)] == [0, 0, 0]

    job_id = submitted(engine)
    jobs.cancel("local", job_id)
    with pytest.raises(Unavailable):
        jobs.retry("local", job_id, lambda items: 2, enqueue)
    assert (job_now(engine, job_id).state, job_now(engine, job_id).entries) == ("cancelled", 1)
    assert states_now(engine, job_id) == ["cancelled"] * 3


def test_an_idempotency_key_is_one_request(engine: sa.Engine, jobs: JobRecords) -> None:
    def submit(owner: str, key: str | None, fingerprint: str) -> tuple[str, bool]:
        requested = job(2, owner=owner, idempotency_key=key, fingerprint=fingerprint * 64)
        stored, created = jobs.submit(requested, items(2), 1, unqueued)
        return stored.id, created

    first, created = submit("ann", "key", "a")
    assert created
    jobs.cancel("ann", first)
    assert submit("ann", "key", "a") == (first, False)  # whatever became of it
    with pytest.raises(Conflict) as refused:
        submit("ann", "key", "b")
    assert refused.value.code == "idempotency_key_reused"
    assert submit("ann", "other", "a")[1] and submit("bob", "key", "b")[1]
    assert submit("ann", None, "a")[1] and submit("ann", None, "a")[1]
    assert (count(engine, Job), count(engine, JobItem)) == (5, 10)
    assert jobs.remove_some("ann", first)[1]
    assert submit("ann", "key", "b")[1]  # the key is free again


def test_a_conflict_of_another_kind_is_raised(engine: sa.Engine, jobs: JobRecords) -> None:
    given = items(1)
    jobs.submit(job(), given, 1, unqueued)
    with pytest.raises(Conflict, match="exist already"):
        jobs.submit(job(idempotency_key="k"), given, 1, unqueued)
    assert count(engine, Job) == 1


def test_pages_newest_first(engine: sa.Engine, jobs: JobRecords) -> None:
    for n in range(4):
        moment = NOON + timedelta(minutes=n)
        submitted(engine, 2, id=f"batch-{n}", created_at=moment)
        submitted(engine, 1, id=f"request-{n}", kind="request", created_at=moment)
    submitted(engine, 1, id="of-ann", owner="ann", kind="request")
    jobs.cancel("local", "batch-1")
    claimed(engine, "request-2")
    page = jobs.jobs("local", page=2, limit=3)
    assert [job.id for job in page.items] == ["batch-2", "request-1", "batch-1"]
    assert (page.total, page.page, page.limit) == (8, 2, 3)
    assert [job.id for job in jobs.jobs("local", kind="batch").items] == [f"batch-{n}" for n in (3, 2, 1, 0)]
    assert [job.id for job in jobs.jobs("local", state="cancelled").items] == ["batch-1"]
    assert jobs.jobs("local", state="queued", kind="request").total == 3
    assert [job.id for job in jobs.jobs("ann").items] == ["of-ann"]
    assert jobs.jobs("bob").total == 0
    assert (jobs.jobs("local", page=0, limit=0).limit, jobs.jobs("local", limit=10**9).limit) == (1, 1000)
    assert jobs.counts() == {("batch", "queued"): 3, ("request", "queued"): 4, ("request", "running"): 1}


def test_each_owner_sees_its_own(engine: sa.Engine, jobs: JobRecords, records: Records) -> None:
    job_id = submitted(engine, 2, owner="ann")
    answered(records, engine, job_id, owner="ann")
    asks: list[Callable[[], object]] = [
        lambda: jobs.job("local", job_id),
        lambda: jobs.items("local", job_id),
        lambda: jobs.events("local", job_id, 0),
        lambda: jobs.cancel("local", job_id),
        lambda: jobs.retry("local", job_id, lambda items: items, unqueued),
        lambda: jobs.remove_some("local", job_id),
        lambda: jobs.job("ann", "nothing"),
    ]
    for request in asks:
        with pytest.raises(NotFound, match="there is no job"):
            request()
    stored = items_now(engine, job_id)
    assert jobs.answers("local", stored) == {}
    assert jobs.answers("ann", stored) == {item.id: rows.prediction("i").result for item in stored}
    assert jobs.job("ann", job_id).state == "succeeded"


def test_items_in_their_order(engine: sa.Engine, jobs: JobRecords) -> None:
    job_id = submitted(engine, 7)
    taken = claimed(engine, job_id, limit=3)
    settle(engine, ItemResult(job_id, taken[1].id, "worker-1", result={"big": "x" * 1000}))
    page = jobs.items("local", job_id, page=2, limit=3)
    assert ([item.position for item in page.items], page.total) == ([3, 4, 5], 7)
    assert [item.position for item in jobs.items("local", job_id, state="running").items] == [0, 2]
    (good,) = jobs.items("local", job_id, state="succeeded").items
    assert good.result == {"big": "x" * 1000}
    (lean,) = jobs.items("local", job_id, state="succeeded", results=False).items
    assert "result" not in lean.__dict__ and lean.id == good.id
    assert jobs.running([job_id, "no such job"]) == {job_id: 2}
    assert jobs.running([]) == {}
    assert jobs.states([job_id, "no such job"]) == {job_id: "running"}


def test_answers_and_files_of_items(engine: sa.Engine, jobs: JobRecords, records: Records) -> None:
    job_id = submitted(engine, 3)
    masks = answered(records, engine, job_id)
    stored = items_now(engine, job_id)
    more = rows.artifact(stored[1].id, kind="overlay", created_at=now() + MINUTE)
    records.save([more]).result(10)
    records.delete_prediction("local", stored[0].id)
    assert set(jobs.answers("local", stored)) == {stored[1].id, stored[2].id}
    files = jobs.artifacts("local", stored)
    assert {id: [file.storage_key for file in found] for id, found in files.items()} == {
        stored[0].id: [],
        stored[1].id: [*masks[stored[1].id], more.storage_key],
        stored[2].id: masks[stored[2].id],
    }
    assert jobs.artifacts("ann", stored) == {item.id: [] for item in stored}


def test_events_after_a_number(engine: sa.Engine, jobs: JobRecords) -> None:
    job_id = submitted(engine, 1)
    with writing(engine) as session:
        for number in range(4):
            job_states.add_event(session, job_id, "note", {"n": number})

    def numbers(after: int, limit: int = 500) -> tuple[list[int], bool]:
        found, complete = jobs.events("local", job_id, after, limit)
        return [event.number for event in found], complete

    assert numbers(0) == ([1, 2, 3, 4, 5], False)
    assert numbers(5) == ([], False)
    jobs.cancel("local", job_id)
    assert numbers(3) == ([4, 5, 6], True)
    assert numbers(0, 4) == ([1, 2, 3, 4], False)
    assert numbers(4, 4) == ([5, 6], True)
    assert numbers(6) == numbers(99) == ([], True)


def test_claim_says_when_to_come_again(engine: sa.Engine, jobs: JobRecords) -> None:
    job_id = submitted(engine, 3, timeout_s=60)
    seen, mine, more_at = jobs.claim(job_id, "worker-1", lambda job: job.total - 1)
    assert seen is not None and (seen.state, seen.id) == ("running", job_id)  # as it is since this claim
    assert seen.started_at is not None and seen.started_at == job_now(engine, job_id).started_at
    assert ([item.position for item in mine], more_at) == ([0, 1], None)
    later, latest = now() + MINUTE, now() + 2 * MINUTE
    jobs.requeue("worker-1", [mine[0].id], latest)
    jobs.requeue("worker-1", [mine[1].id], later)
    assert [item.position for item in jobs.claim(job_id, "worker-1", lambda job: 5)[1]] == [2]
    seen, mine, more_at = jobs.claim(job_id, "worker-2", lambda job: 5)
    assert seen is not None and (seen.state, mine, more_at) == ("running", [], later)
    with writing(engine) as session:
        session.execute(sa.update(JobItem).values(state="running", worker_id="worker-1"))
    assert jobs.claim(job_id, "worker-2", lambda job: 5)[1:] == ([], None)  # all is claimed
    assert jobs.claim("no such job", "worker-1", lambda job: 5) == (None, [], None)


def test_nothing_is_claimed_of_what_is_over_or_late(engine: sa.Engine, jobs: JobRecords) -> None:
    cancelled, late = submitted(engine), submitted(engine, timeout_s=60)
    jobs.cancel("local", cancelled)
    seen, mine, more_at = jobs.claim(cancelled, "worker-1", lambda job: 5)
    assert seen is not None and (seen.state, mine, more_at) == ("cancelled", [], None)
    assert len(jobs.claim(late, "worker-1", lambda job: 1)[1]) == 1
    change(engine, Job, late, started_at=now() - timedelta(seconds=61))
    seen, mine, more_at = jobs.claim(late, "worker-1", lambda job: 5)
    assert seen is not None and (seen.state, mine, more_at) == ("running", [], None)
    assert states_now(engine, late) == ["running", "queued", "queued"]
    jobs.fail(late, BAD)
    assert (jobs.job("local", late).state, jobs.job("local", late).error) == ("failed", BAD)


def test_a_bound_on_items_at_once(engine: sa.Engine, jobs: JobRecords) -> None:
    """That of all workers together; the one that comes when it is reached asks again after a second."""
    job_id = submitted(engine, 6, items_at_once=3)
    assert [item.position for item in jobs.claim(job_id, "worker-1", lambda job: 2)[1]] == [0, 1]
    seen, mine, more_at = jobs.claim(job_id, "worker-2", lambda job: 2)
    assert ([item.position for item in mine], more_at) == ([2], None)
    seen, mine, more_at = jobs.claim(job_id, "worker-2", lambda job: 2)
    assert seen is not None and mine == [] and more_at is not None
    assert timedelta(0) < more_at - now() <= timedelta(seconds=1)
    settle(engine, ItemResult(job_id, items_now(engine, job_id)[0].id, "worker-1"))
    assert [item.position for item in jobs.claim(job_id, "worker-2", lambda job: 2)[1]] == [3]
    assert jobs.claimed_by("worker-1") == [items_now(engine, job_id)[1].id]
    assert len(jobs.claimed_by("worker-2")) == 2 and jobs.claimed_by("worker-3") == []


def test_due_webhooks_are_lent(engine: sa.Engine, jobs: JobRecords) -> None:
    ids = [submitted(engine, 1, id=f"job-{n}", webhook_url="https://example.org/done") for n in range(4)]
    for id in ids[:3]:
        jobs.cancel("local", id)
    for n, id in enumerate(ids[:3]):
        change(engine, Job, id, webhook_at=NOON + timedelta(seconds=10 * (2 - n)))
    lease = timedelta(seconds=30)
    assert jobs.due_webhooks(NOON - MINUTE, lease) == []
    assert [job.id for job in jobs.due_webhooks(NOON + timedelta(seconds=10), lease)] == ["job-2", "job-1"]
    assert jobs.due_webhooks(NOON + timedelta(seconds=10), lease) == []
    assert [job.id for job in jobs.due_webhooks(NOON + timedelta(seconds=20), lease, 1)] == ["job-0"]
    # The one that took them died: after the lease they are due again.
    lent = {job.id: job for job in jobs.due_webhooks(NOON + timedelta(seconds=40), lease)}
    assert set(lent) == {"job-1", "job-2"}
    jobs.webhook_tried(lent["job-1"], "delivered", 1, None)
    jobs.webhook_tried(lent["job-2"], "pending", 1, NOON + 5 * MINUTE)
    assert [job.id for job in jobs.due_webhooks(NOON + 10 * MINUTE, lease)] == ["job-0", "job-2"]
    done = jobs.job("local", "job-1")
    assert (done.webhook_state, done.webhook_tries, done.webhook_at) == ("delivered", 1, None)


@pytest.mark.parametrize("late", [("delivered", None), ("failed", None), ("pending", NOON + 5 * MINUTE)])
def test_who_lost_the_lease_of_a_webhook_says_nothing(
    engine: sa.Engine, jobs: JobRecords, late: tuple[str, datetime | None]
) -> None:
    """It stood still, and another process has taken the webhook, which it may have delivered by now."""
    job_id = submitted(engine, 1, webhook_url="https://example.org/done")
    jobs.cancel("local", job_id)
    change(engine, Job, job_id, webhook_at=NOON)
    (slow,) = jobs.due_webhooks(NOON, MINUTE)
    (fast,) = jobs.due_webhooks(NOON + MINUTE, MINUTE)
    jobs.webhook_tried(slow, late[0], 7, late[1])
    found = job_now(engine, job_id)
    assert (found.webhook_state, found.webhook_tries, found.webhook_at) == ("pending", 0, NOON + 2 * MINUTE)
    jobs.webhook_tried(fast, "delivered", 1, None)
    jobs.webhook_tried(slow, late[0], 7, late[1])
    found = job_now(engine, job_id)
    assert (found.webhook_state, found.webhook_tries, found.webhook_at) == ("delivered", 1, None)


def test_no_webhook_of_a_job_that_is_not_over(engine: sa.Engine, jobs: JobRecords) -> None:
    """It was tried again while the address was being asked, and the address refused."""
    job_id = submitted(engine, 1, webhook_url="https://example.org/done")
    jobs.cancel("local", job_id)
    (due,) = jobs.due_webhooks(now(), MINUTE)
    jobs.retry("local", job_id, lambda items: items, unqueued)
    jobs.webhook_tried(due, "pending", 1, now() + MINUTE)
    assert jobs.due_webhooks(now() + 2 * MINUTE, MINUTE) == []
    assert (job_now(engine, job_id).webhook_state, job_now(engine, job_id).webhook_tries) == (None, 0)

    # It is over once more: what came of the first end's try is not what came of this one's.
    jobs.cancel("local", job_id)
    for state in ("delivered", "failed"):
        jobs.webhook_tried(due, state, 1, None)
        again = job_now(engine, job_id)
        assert (again.webhook_state, again.webhook_tries) == ("pending", 0) and again.webhook_at is not None
    (due,) = jobs.due_webhooks(now(), MINUTE)
    jobs.webhook_tried(due, "delivered", 1, None)
    assert (job_now(engine, job_id).webhook_state, job_now(engine, job_id).webhook_tries) == ("delivered", 1)
