"""Locks on the rows of jobs, in one order, so that two transactions cannot wait for each other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col

from db.tables import Job

Database = Session | sa.Connection

UNSYNCED = {"synchronize_session": False}
"""Execution options of bulk updates: objects that the session already holds are not brought up to date."""


def lock_job(db: Database, job_id: str) -> Any:
    """Lock the row of a job until the commit; its id and state, or None when there is no such job."""
    return db.execute(
        sa.select(col(Job.id), col(Job.state)).where(col(Job.id) == job_id).with_for_update()
    ).one_or_none()


def lock_all(db: Database, job_ids: Iterable[str]) -> None:
    """Lock several jobs in the order of their ids, which is the order of every transaction."""
    for job_id in sorted(set(job_ids)):
        lock_job(db, job_id)
