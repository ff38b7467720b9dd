"""Claims: which items of a job a worker computes next, and whether they are still its own."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

import sqlalchemy as sa
from sqlmodel import Session, col, func, select

from db.job_states.events import add_event
from db.job_states.locks import UNSYNCED, lock_job
from db.tables import ItemState, Job, JobItem, JobState, now
from ekiben.errors import Conflict

LOST = "item_lost"
"""Code of the Conflict that a worker gets for an item that it does not hold any more."""


class ClaimedItem(NamedTuple):
    """An item that a worker has claimed. With ``deaths`` > 0 it may have killed a worker: it is computed alone."""

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
    """Claim the next items of a job for ``worker_id``, at most ``limit``, in the order of their positions.

    Items that no worker died with come first; one that a worker died with comes last and alone. Empty when no item
    can begin now. The first claim of a queued job makes it running.
    """
    moment = now()
    due = sa.or_(col(JobItem.not_before).is_(None), col(JobItem.not_before) <= moment)
    chosen = (
        select(JobItem.id, JobItem.deaths)
        .where(JobItem.job_id == job_id, JobItem.state == ItemState.QUEUED, due)
        .order_by(col(JobItem.deaths), col(JobItem.position))
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    # The job's row first, if this is the claim that begins it.
    begun = db.execute(
        sa.update(Job)
        .where(col(Job.id) == job_id, col(Job.state) == JobState.QUEUED)
        .values(state=JobState.RUNNING, started_at=func.coalesce(col(Job.started_at), moment), updated_at=moment)
        .values(attempts=col(Job.attempts) + 1),
        execution_options=UNSYNCED,
    )
    rows = db.execute(chosen).all()
    if rows and rows[0][1] > 0:
        rows = rows[:1]
    ids = [row[0] for row in rows if row[1] == rows[0][1] == 0 or len(rows) == 1]
    if begun.rowcount:  # type: ignore[attr-defined]
        add_event(db, job_id, "state", {"state": JobState.RUNNING})
    if not ids:
        return []
    columns = [getattr(JobItem, name) for name in ClaimedItem._fields]
    claimed = db.execute(
        sa.update(JobItem)
        .where(col(JobItem.id).in_(ids))
        .values(state=ItemState.RUNNING, worker_id=worker_id, started_at=moment, begun=False)
        .values(attempts=col(JobItem.attempts) + 1)
        .returning(*columns),
        execution_options=UNSYNCED,
    ).all()
    return sorted((ClaimedItem(*row) for row in claimed), key=lambda item: item.position)


def places_left(db: Session, job_id: str, at_once: int) -> int:
    """How many more items of a job may be claimed where ``at_once`` may be in all. Locks the job until the commit."""
    lock_job(db, job_id)
    claimed = select(func.count()).where(JobItem.job_id == job_id, JobItem.state == ItemState.RUNNING)
    return at_once - int(db.execute(claimed).scalar_one())


def require_claimed(db: Session, item: ClaimedItem, worker_id: str) -> None:
    """Lock the job of an item. Conflict (LOST) when ``worker_id`` has not claimed the item any more."""
    lock_job(db, item.job_id)
    held = sa.select(col(JobItem.id)).where(
        col(JobItem.id) == item.id, col(JobItem.worker_id) == worker_id, col(JobItem.state) == ItemState.RUNNING
    )
    if db.execute(held).first() is None:
        raise Conflict("this item is not claimed by this worker any more", code=LOST)
