"""Workers that die: whose item is blamed, and when the job fails."""

from __future__ import annotations

import sqlalchemy as sa

from db.jobs import JobRecords
from db.records import Records
from db.tables import JobItem, Worker
from tests.db.item_ends import die, settle
from tests.db.job_rows import (
    buried,
    change,
    claimed,
    count,
    events_now,
    given_back,
    items_now,
    job_now,
    states_now,
    submitted,
)

DIED = "3 workers died while they worked on it: it may need more memory than there is"


def test_who_only_waited_to_be_alone_is_not_blamed(engine: sa.Engine) -> None:
    """A dead worker had claimed the item before, and again, but not begun it; another job killed that worker."""
    jobs, job_id = JobRecords(engine), submitted(engine, 1)
    assert die(engine, job_id, 1) == [0]
    for number in (2, 3, 4):
        (mine,) = claimed(engine, job_id, f"worker-{number}")
        jobs.begin_alone("another worker", mine.id)
        assert buried(engine, f"worker-{number}") == [job_id]
        (stored,) = items_now(engine, job_id)
        assert (stored.state, stored.worker_id, stored.deaths) == ("queued", None, 1)
        assert (job_now(engine, job_id).state, job_now(engine, job_id).deaths) == ("running", 1)
    for number in (5, 6):  # what it began before, given back since, is no longer begun
        (mine,) = claimed(engine, job_id, f"worker-{number}")
        jobs.begin_alone(f"worker-{number}", mine.id)
        given_back(engine, f"worker-{number}", [mine])
        claimed(engine, job_id, f"worker-{number}")
        assert buried(engine, f"worker-{number}") == [job_id]
        assert items_now(engine, job_id)[0].deaths == 1
    assert die(engine, job_id, 7) == [0]
    assert (items_now(engine, job_id)[0].deaths, job_now(engine, job_id).deaths) == (2, 2)


def test_blame_is_for_those_beside_who_only_waited(engine: sa.Engine) -> None:
    job_id = submitted(engine, 3)
    change(engine, JobItem, items_now(engine, job_id)[0].id, deaths=1)
    fresh = claimed(engine, job_id, "dead-1", 1)
    change(engine, JobItem, items_now(engine, job_id)[2].id, state="failed")
    waiting = claimed(engine, job_id, "dead-1", 1)
    assert [item.position for item in (*fresh, *waiting)] == [1, 0]
    assert buried(engine, "dead-1") == [job_id]
    assert [item.deaths for item in items_now(engine, job_id)] == [1, 1, 0]
    assert job_now(engine, job_id).deaths == 1


def test_a_death_is_counted_for_all_in_hand(engine: sa.Engine) -> None:
    job_id, other = submitted(engine, 3), submitted(engine, 1)
    claimed(engine, other, "worker-2")
    assert die(engine, job_id, 1, limit=2) == [0, 1]
    stored = items_now(engine, job_id)
    assert [(item.state, item.deaths, item.worker_id, item.attempts) for item in stored] == [
        ("queued", 1, None, 1),
        ("queued", 1, None, 1),
        ("queued", 0, None, 0),
    ]
    hit = job_now(engine, job_id)
    assert (hit.state, hit.deaths, hit.attempts) == ("running", 1, 2)
    assert events_now(engine, job_id)[-1] == (3, "worker_lost", {"deaths": 1})
    assert count(engine, Worker) == 0
    assert states_now(engine, other) == ["running"]
    assert buried(engine, "dead-1") == []  # it had nothing any more
    assert job_now(engine, job_id).deaths == 1


def test_what_kills_workers_fails_and_the_innocent_live(engine: sa.Engine, records: Records) -> None:
    """Item 1 kills the one that works on it. Beside it at first is item 0; after that the poison runs alone."""
    job_id = submitted(engine, 4)
    assert die(engine, job_id, 1, limit=2) == [0, 1]
    for item in claimed(engine, job_id):  # the fresh ones come first
        assert item.position in (2, 3)
        settle(records, job_id, item.id)
    assert job_now(engine, job_id).deaths == 0  # an item ended
    (innocent,) = claimed(engine, job_id)
    assert innocent.position == 0
    settle(records, job_id, innocent.id)
    assert die(engine, job_id, 2) == [1]
    assert (job_now(engine, job_id).state, states_now(engine, job_id)[1]) == ("running", "queued")
    assert die(engine, job_id, 3) == [1]
    poison = items_now(engine, job_id)[1]
    assert (poison.state, poison.deaths, poison.error) == ("failed", 3, {"code": "worker_died", "message": DIED})
    over = job_now(engine, job_id)
    assert (over.state, over.succeeded, over.failed, over.error) == ("succeeded", 3, 1, None)
    assert [kind for _, kind, _ in events_now(engine, job_id)] == [
        "state",
        "state",
        "worker_lost",
        "worker_lost",
        "worker_lost",
        "state",
    ]


def test_three_deaths_without_an_end_fail_the_job(engine: sa.Engine) -> None:
    """Whatever they had claimed: a batch whose every item kills would kill three workers for each of them."""
    job_id = submitted(engine, 10)
    assert [die(engine, job_id, number, limit=2) for number in (1, 2, 3)] == [[0, 1], [2, 3], [4, 5]]
    over = job_now(engine, job_id)
    error = {"code": "worker_died", "message": f"{DIED}; none of its items ended meanwhile"}
    assert (over.state, over.error, over.deaths, over.failed) == ("failed", error, 3, 0)
    assert over.attempts == 3  # nobody goes on after the third
    stored = items_now(engine, job_id)
    assert {item.state for item in stored} == {"cancelled"}  # they can be tried again
    assert [item.deaths for item in stored] == [1] * 6 + [0] * 4
    assert events_now(engine, job_id)[-1][2] == {
        "state": "failed",
        "total": 10,
        "done": 0,
        "failed": 0,
        "error": error,
    }


def test_three_deaths_fail_a_request(engine: sa.Engine) -> None:
    job_id = submitted(engine, 1, kind="request")
    assert [die(engine, job_id, number) for number in (1, 2, 3)] == [[0]] * 3
    over = job_now(engine, job_id)
    error = {"code": "worker_died", "message": DIED}
    assert (over.state, over.error, over.failed, over.deaths) == ("failed", error, 1, 3)
    assert states_now(engine, job_id) == ["failed"]
