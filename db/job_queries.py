"""Queries of jobs, their items, events and files. Nothing here changes a row."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import aliased, defer
from sqlmodel import Session, col, func, select

from db.pages import Page, page_bounds
from db.session import reading
from db.tables import ACTIVE, OVER, Artifact, ItemState, Job, JobEvent, JobItem, JobState, Prediction
from ekiben.errors import NotFound


class JobQueries:
    """Reads the jobs of every owner. Every method blocks on the database: call it in a thread.

    They raise Unavailable, and NotFound for an id that this owner does not have.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def job(self, owner: str, id: str) -> Job:
        """One job. NotFound."""
        with reading(self._engine) as session:
            return one_job(session, owner, id)

    def jobs(
        self, owner: str, state: str | None = None, kind: str | None = None, page: int = 1, limit: int = 50
    ) -> Page[Job]:
        """The jobs of an owner, newest first, perhaps of one ``state`` or ``kind``; pages count from 1."""
        conditions = [col(Job.owner) == owner]
        if state is not None:
            conditions.append(col(Job.state) == state)
        if kind is not None:
            conditions.append(col(Job.kind) == kind)
        page, limit = page_bounds(page, limit)
        newest = (col(Job.created_at).desc(), col(Job.id).desc())
        with reading(self._engine) as session:
            total = session.exec(select(func.count()).select_from(Job).where(*conditions)).one()
            chosen = select(Job).where(*conditions).order_by(*newest).offset((page - 1) * limit).limit(limit)
            return Page(session.exec(chosen).all(), total, page, limit)

    def items(
        self,
        owner: str,
        job_id: str,
        state: str | None = None,
        page: int = 1,
        limit: int = 50,
        *,
        results: bool = True,
    ) -> Page[JobItem]:
        """The items of a job by position. Without ``results`` that column is not read: it may be large. NotFound."""
        page, limit = page_bounds(page, limit)
        conditions = [col(JobItem.job_id) == job_id, col(JobItem.owner) == owner]
        if state is not None:
            conditions.append(col(JobItem.state) == state)
        with reading(self._engine) as session:
            one_job(session, owner, job_id)
            total = session.exec(select(func.count()).select_from(JobItem).where(*conditions)).one()
            chosen = select(JobItem).where(*conditions).order_by(col(JobItem.position))
            chosen = chosen.offset((page - 1) * limit).limit(limit)
            if not results:
                chosen = chosen.options(defer(JobItem.result))  # type: ignore[arg-type]
            return Page(session.exec(chosen).all(), total, page, limit)

    def running(self, job_ids: Sequence[str]) -> dict[str, int]:
        """How many items of each of these jobs are claimed; jobs without any are left out."""
        if not job_ids:
            return {}
        with reading(self._engine) as session:
            counted = select(JobItem.job_id, func.count()).where(
                col(JobItem.job_id).in_(job_ids), JobItem.state == ItemState.RUNNING
            )
            return dict(session.exec(counted.group_by(col(JobItem.job_id))).all())

    def answers(self, owner: str, items: Sequence[JobItem]) -> dict[str, dict[str, Any]]:
        """By item id, ``Prediction.result`` of those items that became predictions."""
        ids = [item.id for item in items if item.state == ItemState.SUCCEEDED]
        with reading(self._engine) as session:
            chosen = select(Prediction.id, Prediction.result).where(
                col(Prediction.id).in_(ids), Prediction.owner == owner
            )
            return {id: dict(result or {}) for id, result in session.exec(chosen).all()}

    def artifacts(self, owner: str, items: Sequence[JobItem]) -> dict[str, list[Artifact]]:
        """By item id, the files of its prediction, oldest first; an empty list where there are none."""
        ids = [item.id for item in items]
        found: dict[str, list[Artifact]] = {id: [] for id in ids}
        with reading(self._engine) as session:
            chosen = select(Artifact).where(col(Artifact.prediction_id).in_(ids), Artifact.owner == owner)
            for row in session.exec(chosen.order_by(col(Artifact.created_at), col(Artifact.id))):
                found[row.prediction_id or ""].append(row)
        return found

    def events(self, owner: str, job_id: str, after: int, limit: int = 500) -> tuple[list[JobEvent], bool]:
        """At most ``limit`` events with numbers above ``after``, and whether no other will ever follow. NotFound."""
        with reading(self._engine) as session:
            job = one_job(session, owner, job_id)
            chosen = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.number > after)
            found = list(session.exec(chosen.order_by(col(JobEvent.number)).limit(limit)))
            last = found[-1].number if found else after
            return found, job.state in OVER and last >= job.last_event

    def event_history(self, owner: str, job_id: str, kind: str) -> tuple[list[JobEvent], dict[str, JobEvent]]:
        """All events of one ``kind`` by number, and the last event of every kind. NotFound."""
        with reading(self._engine) as session:
            one_job(session, owner, job_id)
            own = select(JobEvent).where(JobEvent.job_id == job_id)
            every = session.exec(own.where(JobEvent.kind == kind).order_by(col(JobEvent.number))).all()
            newest = select(func.max(JobEvent.number)).where(JobEvent.job_id == job_id).group_by(col(JobEvent.kind))
            last = session.exec(own.where(col(JobEvent.number).in_(session.exec(newest).all()))).all()
            return list(every), {event.kind: event for event in last}

    def files(self, owner: str, job_id: str, kind: str | None = None) -> list[Artifact]:
        """The files that belong to a job and to no prediction, oldest first, perhaps of one ``kind``."""
        chosen = select(Artifact).where(
            Artifact.owner == owner, Artifact.job_id == job_id, col(Artifact.prediction_id).is_(None)
        )
        if kind is not None:
            chosen = chosen.where(Artifact.kind == kind)
        with reading(self._engine) as session:
            return list(session.exec(chosen.order_by(col(Artifact.created_at), col(Artifact.id))))

    def states(self, job_ids: Sequence[str]) -> dict[str, str]:
        """By job id, the states of those jobs that exist."""
        with reading(self._engine) as session:
            return dict(session.exec(select(Job.id, Job.state).where(col(Job.id).in_(job_ids))).all())

    def last_keyed(self, owner: str, kind: str, prefix: str) -> Job | None:
        """Of jobs of a kind with the idempotency keys ``prefix`` + id of the job before, the last; None without any.

        The moments of their rows do not tell: the clocks of machines differ. Where jobs between were deleted there are
        several chains: an open job comes first, then the newest.
        """
        after = aliased(Job)
        followed = select(after.id).where(after.owner == owner, after.idempotency_key == sa.literal(prefix) + Job.id)
        chosen = select(Job).where(
            Job.owner == owner,
            Job.kind == kind,
            col(Job.idempotency_key).startswith(prefix, autoescape=True),
            ~sa.exists(followed),
        )
        order = (col(Job.state).in_(OVER), col(Job.created_at).desc(), col(Job.id).desc())
        with reading(self._engine) as session:
            return session.exec(chosen.order_by(*order).limit(1)).first()

    def counts(self) -> dict[tuple[str, str], int]:
        """How many jobs are queued or running, by kind and state."""
        with reading(self._engine) as session:
            active = (JobState.QUEUED, JobState.RUNNING)
            counted = select(Job.kind, Job.state, func.count()).where(col(Job.state).in_(active))
            rows = session.exec(counted.group_by(Job.kind, Job.state)).all()
            return {(kind, state): count for kind, state, count in rows}

    def any_open(self, besides: Collection[str] = ()) -> bool:
        """Whether any job is queued or running, ``besides`` those of some kinds."""
        chosen = select(Job.id).where(
            col(Job.state).in_((JobState.QUEUED, JobState.RUNNING)), col(Job.kind).not_in(besides)
        )
        with reading(self._engine) as session:
            return session.exec(chosen.limit(1)).first() is not None

    def claimed_by(self, worker_id: str) -> list[str]:
        """Ids of the items that a worker has claimed."""
        with reading(self._engine) as session:
            chosen = select(JobItem.id).where(JobItem.worker_id == worker_id, JobItem.state == ItemState.RUNNING)
            return list(session.exec(chosen))

    def oldest_active(self) -> str | None:
        """The smallest id of an item of any owner that has not ended; None when there is none.

        Ids are UUIDv7, so blobs of items that were made before it are not needed by any job.
        """
        with reading(self._engine) as session:
            chosen = select(func.min(JobItem.id)).where(col(JobItem.state).in_(ACTIVE))
            return session.exec(chosen).one()

    def over_since(self, before: datetime, limit: int = 1000) -> list[tuple[str, str]]:
        """Owners and ids of jobs that ended before then; trainings that made a model are left out."""
        with reading(self._engine) as session:
            # A training that succeeded is the lineage of its model: it stays.
            lineage = sa.and_(col(Job.kind) == "training", col(Job.state) == JobState.SUCCEEDED)
            chosen = select(Job.owner, Job.id).where(col(Job.state).in_(OVER), col(Job.finished_at) < before, ~lineage)
            return [(owner, id) for owner, id in session.exec(chosen.limit(limit))]


def one_job(session: Session, owner: str, id: str) -> Job:
    """The job, in the caller's transaction. NotFound for an id that this owner does not have."""
    job = session.exec(select(Job).where(Job.id == id, Job.owner == owner)).first()
    if job is None:
        raise NotFound(f"there is no job {id}")
    return job
