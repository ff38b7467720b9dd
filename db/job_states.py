"""What becomes of jobs: every change of a job's or an item's state is made in this file.

::

    queued --claim--> running --settle--> succeeded, failed
      ^                  |
      |<-- give_back ----|   a worker stops, or an error that may pass
      |<-- bury ---------|   its worker died; failed after MAX_DEATHS
      |<-- retry -------------------------- failed, cancelled
    any that is not over --cancel--> cancelled,  --fail--> failed

Every function works in the caller's transaction, and locks the job's row before it touches the rows of its items; of
several jobs, in the order of their ids. So two of them cannot wait for each other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlmodel import Session, col, func, select

from db.tables import Job, JobEvent, JobItem, Worker, now
from ekiben.errors import Conflict, NotFound

Database = Session | sa.Connection

OVER = ("succeeded", "failed", "cancelled")
MAX_DEATHS = 3
"""Workers that may die with an item in hand before it fails, or with a job before it does, when nothing of it ended."""

LOST = "item_lost"

_UNSYNCED = {"synchronize_session": False}


class ClaimedItem(NamedTuple):
    """An item in a worker's hand. ``deaths`` > 0: it may have killed a worker, so it is worked on alone."""

    id: str
    owner: str
    job_id: str
    position: int
    filename: str | None
    image_id: str | None
    storage_key: str | None
    mime_type: str | None
    bytes: int
    sha256: str | None
    tries: int
    deaths: int
    created_at: datetime


def claim(db: Session, job_id: str, worker_id: str, limit: int) -> list[ClaimedItem]:
    """The next items of a job, at most ``limit``; from now on they are in the hand of ``worker_id``.

    Fresh ones first. One that a worker died with comes last, and alone. Empty when nothing can be begun now.
    """
    moment = now()
    due = sa.or_(col(JobItem.not_before).is_(None), col(JobItem.not_before) <= moment)
    chosen = (
        select(JobItem.id, JobItem.deaths)
        .where(JobItem.job_id == job_id, JobItem.state == "queued", due)
        .order_by(col(JobItem.deaths), col(JobItem.position))
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    # The job's row first, if this is the claim that begins it.
    begun = db.execute(
        sa.update(Job)
        .where(col(Job.id) == job_id, col(Job.state) == "queued")
        .values(state="running", started_at=func.coalesce(col(Job.started_at), moment), updated_at=moment)
        .values(attempts=col(Job.attempts) + 1),
        execution_options=_UNSYNCED,
    )
    rows = db.execute(chosen).all()
    if rows and rows[0][1] > 0:
        rows = rows[:1]
    ids = [row[0] for row in rows if row[1] == rows[0][1] == 0 or len(rows) == 1]
    if begun.rowcount:  # type: ignore[attr-defined]
        add_event(db, job_id, "state", {"state": "running"})
    if not ids:
        return []
    columns = [getattr(JobItem, name) for name in ClaimedItem._fields]
    claimed = db.execute(
        sa.update(JobItem)
        .where(col(JobItem.id).in_(ids))
        .values(state="running", worker_id=worker_id, started_at=moment, begun=False)
        .values(attempts=col(JobItem.attempts) + 1)
        .returning(*columns),
        execution_options=_UNSYNCED,
    ).all()
    return sorted((ClaimedItem(*row) for row in claimed), key=lambda item: item.position)


def places_left(db: Session, job_id: str, at_once: int) -> int:
    """How many more items of a job may be in hand. Until the commit nobody else is told of the same places."""
    _locked(db, job_id)
    claimed = select(func.count()).where(JobItem.job_id == job_id, JobItem.state == "running")
    return at_once - int(db.execute(claimed).scalar_one())


class ItemResult(NamedTuple):
    """The end of one item, to be written with the rows of its answer (see ``settle``).

    ``image_id``: where its image now is. ``error`` None: succeeded.
    """

    job_id: str
    item_id: str
    worker_id: str
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    image_id: str | None = None


_ITEMS: sa.Table = JobItem.__table__  # type: ignore[attr-defined]
_END = (
    sa.update(_ITEMS)
    .where(_ITEMS.c.id == sa.bindparam("item_id"))
    .values({name: sa.bindparam(f"new_{name}") for name in ("state", "finished_at", "result", "error")})
    .values(worker_id=None, not_before=None)
)
_END_AS_IMAGE = _END.values(image_id=sa.bindparam("new_image_id"), storage_key=None)


def finish_items(db: sa.Connection, settlings: Sequence[ItemResult]) -> None:
    """End the items. Conflict (LOST) when one of them is not in its worker's hand any more: roll back then."""
    moment = now()
    for job_id in sorted({one.job_id for one in settlings}):
        own = [one for one in settlings if one.job_id == job_id]
        holders = {one.item_id: one.worker_id for one in own}
        job = _locked(db, job_id)
        chosen = sa.select(col(JobItem.id), col(JobItem.worker_id)).where(
            col(JobItem.id).in_(holders), col(JobItem.state) == "running"
        )
        held = {row[0]: row[1] for row in db.execute(chosen)}
        if job is None or held != holders or len(own) != len(holders):
            raise Conflict("this item is not in this worker's hand any more", code=LOST)
        # One statement for all: each alone would cost more than the rows that it writes.
        ends = [
            {
                "item_id": one.item_id,
                "new_state": "failed" if one.error else "succeeded",
                "new_finished_at": moment,
                "new_result": one.result,
                "new_error": one.error,
                "new_image_id": one.image_id,
            }
            for one in own
        ]
        # An image that became an image belongs to the image's row from now on.
        for statement, of_image in ((_END, False), (_END_AS_IMAGE, True)):
            if values := [end for end in ends if (end["new_image_id"] is not None) == of_image]:
                db.execute(statement, values)
        failed = sum(one.error is not None for one in own)
        _count(db, job_id, failed=failed, succeeded=len(own) - failed, deaths=0)


def requeue(db: Session, worker_id: str, item_ids: Collection[str], not_before: datetime | None = None) -> None:
    """Items that ``worker_id`` had in hand wait again; until ``not_before``, where they were tried in vain."""
    own = (col(JobItem.id).in_(item_ids), col(JobItem.worker_id) == worker_id, col(JobItem.state) == "running")
    lock_all(db, db.execute(sa.select(col(JobItem.job_id)).where(*own).distinct()).scalars().all())
    values: dict[str, Any] = {"state": "queued", "worker_id": None, "not_before": not_before}
    if not_before is not None:
        values["tries"] = col(JobItem.tries) + 1
    db.execute(sa.update(JobItem).where(*own).values(**values), execution_options=_UNSYNCED)


def fail_worker(db: Session, worker_id: str) -> list[str]:
    """A worker is dead: what it had in hand waits again, or fails after MAX_DEATHS. Gives the ids of the jobs.

    A job ends as failed when MAX_DEATHS workers died with it and none of its items ended meanwhile.
    """
    claimed = (col(JobItem.worker_id) == worker_id, col(JobItem.state) == "running")
    jobs = sorted(db.execute(sa.select(col(JobItem.job_id)).where(*claimed).distinct()).scalars())
    # One that had been in a dead worker's hand before only waited to be alone, unless it had begun.
    suspect = sa.or_(col(JobItem.deaths) == 0, col(JobItem.begun))
    for job_id in jobs:
        _locked(db, job_id)
        own = (*claimed, col(JobItem.job_id) == job_id)
        suspects = db.execute(sa.select(func.count()).where(*own, suspect)).scalar_one()
        db.execute(
            sa.update(JobItem)
            .where(*own)
            .values(state="queued", worker_id=None, deaths=col(JobItem.deaths) + sa.case((suspect, 1), else_=0)),
            execution_options=_UNSYNCED,
        )
        deaths, total = db.execute(
            sa.update(Job)
            .where(col(Job.id) == job_id)
            .values(deaths=col(Job.deaths) + (1 if suspects else 0), updated_at=now())
            .returning(col(Job.deaths), col(Job.total)),
            execution_options=_UNSYNCED,
        ).one()
        reason = {
            "code": "worker_died",
            "message": f"{MAX_DEATHS} workers died while they worked on it: it may need more memory than there is",
        }
        add_event(db, job_id, "worker_lost", {"deaths": deaths})
        if deaths >= MAX_DEATHS and total > 1:
            fail(db, job_id, {**reason, "message": f"{reason['message']}; none of its items ended meanwhile"})
            continue
        poison = db.execute(
            sa.update(JobItem)
            .where(col(JobItem.job_id) == job_id, col(JobItem.state) == "queued", col(JobItem.deaths) >= MAX_DEATHS)
            .values(state="failed", error=reason, finished_at=now())
            .returning(col(JobItem.id)),
            execution_options=_UNSYNCED,
        ).all()
        if poison:
            _count(db, job_id, failed=len(poison), succeeded=0, deaths=None)
        db.execute(  # whoever goes on makes another attempt
            sa.update(Job)
            .where(col(Job.id) == job_id, col(Job.state).not_in(OVER))
            .values(attempts=col(Job.attempts) + 1),
            execution_options=_UNSYNCED,
        )
    db.execute(sa.delete(Worker).where(col(Worker.id) == worker_id), execution_options=_UNSYNCED)
    return jobs


def cancel(db: Session, job: Job) -> None:
    """No item is begun any more; those in hand are dropped within a second or so. Conflict for a job that is over."""
    if job.state in OVER:
        raise Conflict(f"the job is over: it {'was' if job.state == 'cancelled' else 'has'} {job.state}")
    _end(db, job.id, "cancelled", None)


def fail(db: Session, job_id: str, error: dict[str, Any]) -> None:
    """End a job that is not over yet; what of it has not ended never will, unless it is retried."""
    job = _locked(db, job_id)
    if job is not None and job.state not in OVER:
        _end(db, job_id, "failed", error)


def retry(db: Session, job: Job) -> None:
    """All items that did not succeed wait again. Conflict for a job that is not over, or has none."""
    if job.state not in OVER:
        raise Conflict("the job is not over yet")
    again = db.execute(
        sa.update(JobItem)
        .where(col(JobItem.job_id) == job.id, col(JobItem.state) != "succeeded")
        .values(
            state="queued", deaths=0, attempts=0, tries=0, not_before=None, error=None, worker_id=None, finished_at=None
        ),
        execution_options=_UNSYNCED,
    )
    if not again.rowcount:  # type: ignore[attr-defined]
        raise Conflict("every item of this job has succeeded")
    values = {"state": "queued", "failed": 0, "deaths": 0, "progress": 0.0, "error": None, "finished_at": None}
    values |= {
        "head_start": job.succeeded,
        "started_at": None,
        "updated_at": now(),
        "webhook_state": None,
        "webhook_tries": 0,
        "webhook_at": None,
    }
    db.execute(sa.update(Job).where(col(Job.id) == job.id).values(**values), execution_options=_UNSYNCED)
    add_event(db, job.id, "state", {"state": "queued"})


def add_event(db: Database, job_id: str, kind: str, data: dict[str, Any]) -> None:
    """Write down what happened, under the job's next number."""
    number = db.execute(
        sa.update(Job)
        .where(col(Job.id) == job_id)
        .values(last_event=col(Job.last_event) + 1)
        .returning(col(Job.last_event)),
        execution_options=_UNSYNCED,
    ).scalar_one_or_none()
    if number is not None:
        db.execute(
            sa.insert(JobEvent).values(job_id=job_id, number=number, kind=kind, data=data, created_at=now()),
        )


def report(db: Session, job_id: str, progress: float | None = None) -> None:
    """An event that says how far a running job is; ``progress`` of a job's only item, 0-1."""
    values: dict[str, Any] = {"updated_at": now()}
    if progress is not None:
        values["progress"] = progress
    row = db.execute(
        sa.update(Job)
        .where(col(Job.id) == job_id, col(Job.state) == "running")
        .values(**values)
        .returning(col(Job.total), col(Job.succeeded), col(Job.failed), col(Job.progress)),
        execution_options=_UNSYNCED,
    ).one_or_none()
    if row is not None:
        total, succeeded, failed, of_item = row
        share = max((succeeded + failed) / total, of_item if total == 1 else 0.0)
        data = {"progress": share, "total": total, "done": succeeded + failed, "failed": failed}
        add_event(db, job_id, "progress", data)


def note(
    db: Session, item: ClaimedItem, worker_id: str, kind: str, data: dict[str, Any], progress: float | None
) -> None:
    """An event of the work on a job's only item, which is ``progress`` done, 0-1. Conflict (LOST) as ``settle``."""
    _held(db, item, worker_id)
    values: dict[str, Any] = {"updated_at": now()}
    if progress is not None:
        values["progress"] = progress
    db.execute(sa.update(Job).where(col(Job.id) == item.job_id).values(**values), execution_options=_UNSYNCED)
    add_event(db, item.job_id, kind, data)


def outlived(db: Session, item: ClaimedItem, worker_id: str) -> None:
    """The work on an item came to a step from which it can go on: earlier deaths do not count any more."""
    _held(db, item, worker_id)
    for table, ident in ((Job, item.job_id), (JobItem, item.id)):
        statement = sa.update(table).where(col(table.id) == ident, col(table.deaths) > 0).values(deaths=0)
        db.execute(statement, execution_options=_UNSYNCED)


def _held(db: Session, item: ClaimedItem, worker_id: str) -> None:
    _locked(db, item.job_id)
    held = sa.select(col(JobItem.id)).where(
        col(JobItem.id) == item.id, col(JobItem.worker_id) == worker_id, col(JobItem.state) == "running"
    )
    if db.execute(held).first() is None:
        raise Conflict("this item is not in this worker's hand any more", code=LOST)


def lock_all(db: Database, job_ids: Iterable[str]) -> None:
    """Lock several jobs, in the one order in which everybody does."""
    for job_id in sorted(set(job_ids)):
        _locked(db, job_id)


def end_of_time(job: Job) -> datetime:
    """When a job's time is up: none of its items begins after that."""
    if job.started_at is None:
        raise NotFound("the job has not begun")
    return job.started_at + timedelta(seconds=job.timeout_s)


def _locked(db: Database, job_id: str) -> Any:
    return db.execute(
        sa.select(col(Job.id), col(Job.state)).where(col(Job.id) == job_id).with_for_update()
    ).one_or_none()


def _count(db: Database, job_id: str, *, succeeded: int, failed: int, deaths: int | None) -> None:
    """Add ended items; the last one ends the job. ``deaths`` None: those of the job stay."""
    values: dict[str, Any] = {"succeeded": col(Job.succeeded) + succeeded, "failed": col(Job.failed) + failed}
    if deaths is not None:
        values["deaths"] = deaths
    row = db.execute(
        sa.update(Job)
        .where(col(Job.id) == job_id)
        .values(updated_at=now(), **values)
        .returning(col(Job.total), col(Job.succeeded), col(Job.failed), col(Job.kind), col(Job.state)),
        execution_options=_UNSYNCED,
    ).one()
    total, good, bad, kind, state = row
    if good + bad < total or state in OVER:
        return
    error = None
    if good == 0:  # a batch may have bad items and succeed; one in which nothing is good has failed
        error = db.execute(
            sa.select(col(JobItem.error)).where(col(JobItem.job_id) == job_id).order_by(col(JobItem.position)).limit(1)
        ).scalar_one()
        if kind == "batch":
            error = {"code": "all_items_failed", "message": f"all {total} items failed; the first: {error['message']}"}
    _end(db, job_id, "failed" if error else "succeeded", error)


def _end(db: Database, job_id: str, state: str, error: dict[str, Any] | None) -> None:
    moment = now()
    values: dict[str, Any] = {"state": state, "error": error, "finished_at": moment, "updated_at": moment}
    if state == "succeeded":
        values["progress"] = 1.0
    has_hook = col(Job.webhook_url).is_not(None)
    values["webhook_state"] = sa.case((has_hook, "pending"), else_=None)
    values["webhook_at"] = sa.case((has_hook, sa.literal(moment, Job.__table__.c.webhook_at.type)), else_=None)  # type: ignore[attr-defined]
    total, succeeded, failed = db.execute(
        sa.update(Job)
        .where(col(Job.id) == job_id)
        .values(**values)
        .returning(col(Job.total), col(Job.succeeded), col(Job.failed)),
        execution_options=_UNSYNCED,
    ).one()
    db.execute(
        sa.update(JobItem)
        .where(col(JobItem.job_id) == job_id, col(JobItem.state).in_(("queued", "running")))
        .values(state="cancelled", worker_id=None, finished_at=moment),
        execution_options=_UNSYNCED,
    )
    data = {"state": state, "total": total, "done": succeeded + failed, "failed": failed, "error": error}
    add_event(db, job_id, "state", data)
