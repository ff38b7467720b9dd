"""Transitions of jobs: cancelled, failed, retried, and ended with their last item."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col

from db.job_states.events import add_event
from db.job_states.locks import UNSYNCED, Database, lock_job
from db.tables import ACTIVE, OVER, ItemState, Job, JobItem, JobState, now
from ekiben.errors import Conflict, NotFound


def cancel(db: Session, job: Job) -> None:
    """End a job as cancelled. Conflict for a job that is over.

    No item begins any more; workers notice within a second and drop those that they have claimed.
    """
    if job.state in OVER:
        raise Conflict(f"the job is over: it {'was' if job.state == JobState.CANCELLED else 'has'} {job.state}")
    end_job(db, job.id, JobState.CANCELLED, None)


def fail(db: Session, job_id: str, error: dict[str, Any]) -> None:
    """End a job as failed; its items that have not ended become cancelled. Nothing happens to a job that is over."""
    job = lock_job(db, job_id)
    if job is not None and job.state not in OVER:
        end_job(db, job_id, JobState.FAILED, error)


def retry(db: Session, job: Job) -> None:
    """Queue all items that did not succeed again. Conflict for a job that is not over, or has no such item."""
    if job.state not in OVER:
        raise Conflict("the job is not over yet")
    again = db.execute(
        sa.update(JobItem)
        .where(col(JobItem.job_id) == job.id, col(JobItem.state) != ItemState.SUCCEEDED)
        .values(
            state=ItemState.QUEUED,
            deaths=0,
            attempts=0,
            tries=0,
            not_before=None,
            error=None,
            worker_id=None,
            finished_at=None,
        ),
        execution_options=UNSYNCED,
    )
    if not again.rowcount:  # type: ignore[attr-defined]
        raise Conflict("every item of this job has succeeded")
    values = {
        "state": JobState.QUEUED,
        "failed": 0,
        "deaths": 0,
        "progress": 0.0,
        "error": None,
        "finished_at": None,
        "head_start": job.succeeded,
        "started_at": None,
        "updated_at": now(),
        "webhook_state": None,
        "webhook_tries": 0,
        "webhook_at": None,
    }
    db.execute(sa.update(Job).where(col(Job.id) == job.id).values(**values), execution_options=UNSYNCED)
    add_event(db, job.id, "state", {"state": JobState.QUEUED})


def end_of_time(job: Job) -> datetime:
    """When the time of a job is up: no item begins after that. NotFound for a job that has not begun."""
    if job.started_at is None:
        raise NotFound("the job has not begun")
    return job.started_at + timedelta(seconds=job.timeout_s)


def count_ended(db: Database, job_id: str, *, succeeded: int, failed: int, deaths: int | None) -> None:
    """Add ended items to the counts of a job; the last one ends the job. ``deaths`` None leaves that count alone."""
    values: dict[str, Any] = {"succeeded": col(Job.succeeded) + succeeded, "failed": col(Job.failed) + failed}
    if deaths is not None:
        values["deaths"] = deaths
    row = db.execute(
        sa.update(Job)
        .where(col(Job.id) == job_id)
        .values(updated_at=now(), **values)
        .returning(col(Job.total), col(Job.succeeded), col(Job.failed), col(Job.kind), col(Job.state)),
        execution_options=UNSYNCED,
    ).one()
    total, good, bad, kind, state = row
    if good + bad < total or state in OVER:
        return
    error = None
    if good == 0:  # a job with some failed items succeeds; it fails when no item succeeded
        error = db.execute(
            sa.select(col(JobItem.error)).where(col(JobItem.job_id) == job_id).order_by(col(JobItem.position)).limit(1)
        ).scalar_one()
        if kind == "batch":
            error = {"code": "all_items_failed", "message": f"all {total} items failed; the first: {error['message']}"}
    end_job(db, job_id, JobState.FAILED if error else JobState.SUCCEEDED, error)


def end_job(db: Database, job_id: str, state: JobState, error: dict[str, Any] | None) -> None:
    """End a job in ``state``: its unfinished items are cancelled, its webhook is due now."""
    moment = now()
    values: dict[str, Any] = {"state": state, "error": error, "finished_at": moment, "updated_at": moment}
    if state == JobState.SUCCEEDED:
        values["progress"] = 1.0
    has_hook = col(Job.webhook_url).is_not(None)
    values["webhook_state"] = sa.case((has_hook, "pending"), else_=None)
    values["webhook_at"] = sa.case((has_hook, sa.literal(moment, Job.__table__.c.webhook_at.type)), else_=None)  # type: ignore[attr-defined]
    total, succeeded, failed = db.execute(
        sa.update(Job)
        .where(col(Job.id) == job_id)
        .values(**values)
        .returning(col(Job.total), col(Job.succeeded), col(Job.failed)),
        execution_options=UNSYNCED,
    ).one()
    db.execute(
        sa.update(JobItem)
        .where(col(JobItem.job_id) == job_id, col(JobItem.state).in_(ACTIVE))
        .values(state=ItemState.CANCELLED, worker_id=None, finished_at=moment),
        execution_options=UNSYNCED,
    )
    data = {"state": state, "total": total, "done": succeeded + failed, "failed": failed, "error": error}
    add_event(db, job_id, "state", data)
