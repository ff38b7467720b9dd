"""The end of a worker that died: what it had claimed is queued again, or fails after several deaths."""

from __future__ import annotations

import sqlalchemy as sa
from sqlmodel import Session, col, func

from db.job_states.events import add_event
from db.job_states.jobs import count_ended, fail
from db.job_states.locks import UNSYNCED, lock_job
from db.tables import OVER, ItemState, Job, JobItem, Worker, now

MAX_DEATHS = 3
"""Workers that may die with an item before it fails, or with a job before it fails when none of its items ended."""


def fail_worker(db: Session, worker_id: str) -> list[str]:
    """Remove a dead worker: what it had claimed waits again, or fails after MAX_DEATHS. Gives the ids of those jobs.

    A job fails as a whole when MAX_DEATHS workers died with it and none of its items ended meanwhile.
    """
    claimed = (col(JobItem.worker_id) == worker_id, col(JobItem.state) == ItemState.RUNNING)
    jobs = sorted(db.execute(sa.select(col(JobItem.job_id)).where(*claimed).distinct()).scalars())
    # An item that a worker died with before only waited to be computed alone, unless it had begun.
    suspect = sa.or_(col(JobItem.deaths) == 0, col(JobItem.begun))
    for job_id in jobs:
        lock_job(db, job_id)
        own = (*claimed, col(JobItem.job_id) == job_id)
        suspects = db.execute(sa.select(func.count()).where(*own, suspect)).scalar_one()
        db.execute(
            sa.update(JobItem)
            .where(*own)
            .values(
                state=ItemState.QUEUED, worker_id=None, deaths=col(JobItem.deaths) + sa.case((suspect, 1), else_=0)
            ),
            execution_options=UNSYNCED,
        )
        deaths, total = db.execute(
            sa.update(Job)
            .where(col(Job.id) == job_id)
            .values(deaths=col(Job.deaths) + (1 if suspects else 0), updated_at=now())
            .returning(col(Job.deaths), col(Job.total)),
            execution_options=UNSYNCED,
        ).one()
        reason = {
            "code": "worker_died",
            "message": f"{MAX_DEATHS} workers died while they worked on it: it may need more memory than there is",
        }
        add_event(db, job_id, "worker_lost", {"deaths": deaths})
        if deaths >= MAX_DEATHS and total > 1:
            fail(db, job_id, {**reason, "message": f"{reason['message']}; none of its items ended meanwhile"})
            continue
        fatal = db.execute(
            sa.update(JobItem)
            .where(
                col(JobItem.job_id) == job_id, col(JobItem.state) == ItemState.QUEUED, col(JobItem.deaths) >= MAX_DEATHS
            )
            .values(state=ItemState.FAILED, error=reason, finished_at=now())
            .returning(col(JobItem.id)),
            execution_options=UNSYNCED,
        ).all()
        if fatal:
            count_ended(db, job_id, failed=len(fatal), succeeded=0, deaths=None)
        db.execute(  # the worker that goes on makes another attempt
            sa.update(Job)
            .where(col(Job.id) == job_id, col(Job.state).not_in(OVER))
            .values(attempts=col(Job.attempts) + 1),
            execution_options=UNSYNCED,
        )
    db.execute(sa.delete(Worker).where(col(Worker.id) == worker_id), execution_options=UNSYNCED)
    return jobs
