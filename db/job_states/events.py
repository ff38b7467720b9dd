"""Events of jobs: numbered from 1 in the row of the job."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col

from db.job_states.locks import UNSYNCED, Database
from db.tables import Job, JobEvent, JobState, now


def add_event(db: Database, job_id: str, kind: str, data: dict[str, Any]) -> None:
    """Store an event under the job's next number. Nothing happens when there is no such job."""
    number = db.execute(
        sa.update(Job)
        .where(col(Job.id) == job_id)
        .values(last_event=col(Job.last_event) + 1)
        .returning(col(Job.last_event)),
        execution_options=UNSYNCED,
    ).scalar_one_or_none()
    if number is not None:
        db.execute(
            sa.insert(JobEvent).values(job_id=job_id, number=number, kind=kind, data=data, created_at=now()),
        )


def report(db: Session, job_id: str, progress: float | None = None) -> None:
    """Add a progress event to a running job; nothing happens in another state.

    ``progress``: share that is done of the only item of a job, 0-1; else the share of ended items counts.
    """
    values: dict[str, Any] = {"updated_at": now()}
    if progress is not None:
        values["progress"] = progress
    row = db.execute(
        sa.update(Job)
        .where(col(Job.id) == job_id, col(Job.state) == JobState.RUNNING)
        .values(**values)
        .returning(col(Job.total), col(Job.succeeded), col(Job.failed), col(Job.progress)),
        execution_options=UNSYNCED,
    ).one_or_none()
    if row is not None:
        total, succeeded, failed, of_item = row
        share = max((succeeded + failed) / total, of_item if total == 1 else 0.0)
        data = {"progress": share, "total": total, "done": succeeded + failed, "failed": failed}
        add_event(db, job_id, "progress", data)
