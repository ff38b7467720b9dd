"""Jobs: submitted, cancelled, retried and removed by their owners, claimed and finished by workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm import defer
from sqlmodel import Session, col, func, select

from db import job_states
from db.job_queries import JobQueries
from db.job_states import ClaimedItem
from db.references import is_needed, remove_predictions, unreferenced
from db.session import reading, writing
from db.tables import OVER, Artifact, Image, ItemState, Job, JobEvent, JobItem, JobState, Prediction, Row, now
from ekiben.errors import Conflict, NotFound

Enqueue = Callable[[Session, Job, int], None]
"""Makes the queue entry of a number for a job, in the transaction of the session."""

_ITEMS_PER_REMOVAL = 200
_PLACES_TAKEN: Final = timedelta(seconds=1)
"""When to try again to claim items of a job of which as many as allowed are claimed."""


class JobRecords(JobQueries):
    """Changes the jobs of every owner. Every method blocks on the database: call it in a thread.

    They raise Unavailable, and NotFound for an id that this owner does not have.
    """

    # What owners do with jobs.

    def submit(
        self, job: Job, items: Sequence[dict[str, Any]], entries: int, enqueue: Enqueue, rows: Sequence[Row] = ()
    ) -> tuple[Job, bool]:
        """Store a job, its items and other ``rows``, and queue it, in one transaction: (the job, True).

        ``items``: columns of JobItem by name, in order of position; ``entries``: queue entries to make. Where the owner
        has used its idempotency key before: (the earlier job, False), or Conflict if that was another request.
        """
        if (earlier := self._earlier(job)) is not None:
            return earlier, False
        try:
            with writing(self._engine) as session:
                session.add(job)
                session.add_all(rows)
                session.flush()
                columns = JobItem.__table__.columns.keys()  # type: ignore[attr-defined]
                blank: dict[str, Any] = {
                    **dict.fromkeys(columns),
                    "attempts": 0,
                    "tries": 0,
                    "deaths": 0,
                    "begun": False,
                    "bytes": 0,
                }
                common = {"owner": job.owner, "job_id": job.id, "created_at": job.created_at, "state": ItemState.QUEUED}
                session.execute(
                    sa.insert(JobItem.__table__),  # type: ignore[attr-defined]
                    [{**blank, **common, "position": number, **item} for number, item in enumerate(items)],
                )
                job_states.add_event(session, job.id, "state", {"state": JobState.QUEUED})
                enqueue_entries(session, job, entries, enqueue)
                session.flush()
        except Conflict:
            if (earlier := self._earlier(job)) is not None:  # another process stored it meanwhile
                return earlier, False
            raise
        return job, True

    def cancel(self, owner: str, id: str) -> Job:
        """Cancel a job and give it back. NotFound; Conflict when it is over."""
        return self._change(owner, id, job_states.cancel)

    def retry(self, owner: str, id: str, entries: Callable[[int], int], enqueue: Enqueue) -> Job:
        """Queue the items that did not succeed again, by ``entries(their number)`` queue entries; gives the job back.

        NotFound. Conflict when the job is not over, or every item has succeeded.
        """

        def again(session: Session, job: Job) -> None:
            job_states.retry(session, job)
            enqueue_entries(session, job, entries(job.total - job.succeeded), enqueue)

        return self._change(owner, id, again)

    def remove_some(self, owner: str, id: str) -> tuple[list[str], bool]:
        """Remove at most 200 items of a job that is over, and the job itself with the last ones.

        Gives the blob keys that nothing refers to any more, which are to be deleted after each call, and whether the
        job is gone; call it until then. Predictions go with their artifacts; an image stays when it is kept or another
        prediction or job needs it. NotFound. Conflict for a job that is not over.
        """
        with writing(self._engine) as session:
            job = _locked_job(session, owner, id)
            if job.state not in OVER:
                raise Conflict("the job is not over: cancel it first")
            chosen = select(JobItem).options(defer(JobItem.result)).where(JobItem.job_id == id)  # type: ignore[arg-type]
            items = list(session.exec(chosen.order_by(col(JobItem.position)).limit(_ITEMS_PER_REMOVAL)))
            keys = [item.storage_key for item in items if item.storage_key]
            ids = [item.id for item in items]
            images = sorted({item.image_id for item in items if item.image_id})
            # Images first: every removal of predictions locks their images before anything else.
            locked = session.exec(
                select(Image).where(col(Image.id).in_(images)).order_by(col(Image.id)).with_for_update()
            ).all()
            keys += remove_predictions(session, [col(Prediction.id).in_(ids), col(Prediction.owner) == owner]) or []
            session.execute(sa.delete(JobItem).where(col(JobItem.id).in_(ids)))
            for image in locked:
                if not image.kept and not is_needed(session, image.id):
                    session.delete(image)
                    keys.append(image.storage_key)
            session.flush()
            last = len(items) < _ITEMS_PER_REMOVAL
            if last:
                own = select(Artifact.storage_key).where(Artifact.job_id == id)
                keys += list(session.exec(own))
                session.execute(sa.delete(Artifact).where(col(Artifact.job_id) == id))
                session.execute(sa.delete(JobEvent).where(col(JobEvent.job_id) == id))
                session.execute(sa.delete(Job).where(col(Job.id) == id))
            return unreferenced(session, keys), last

    # What workers do with items.

    def claim(
        self, job_id: str, worker_id: str, limit_for: Callable[[Job], int]
    ) -> tuple[Job | None, list[ClaimedItem], datetime | None]:
        """Claim at most ``limit_for(job)`` items: (the job, the claimed items, when to try again).

        The job is None when it does not exist. There are no items when it is over, its time is up, or none can begin
        now; the time is then that of the next retry, or None when no item waits.
        """
        with writing(self._engine) as session:
            job = session.get(Job, job_id)
            if job is None or job.state in OVER:
                return job, [], None
            if job.started_at is not None and job_states.end_of_time(job) <= now():
                return job, [], None
            limit = limit_for(job)
            if job.items_at_once is not None and limit > 0:
                limit = min(limit, job_states.places_left(session, job_id, job.items_at_once))
            if limit <= 0:  # before the job counts as begun, which is when its time begins
                return job, [], now() + _PLACES_TAKEN
            items = job_states.claim(session, job_id, worker_id, limit)
            session.refresh(job)  # the claim may have made it running
            if items:
                return job, items, None
            waiting = select(func.min(func.coalesce(JobItem.not_before, JobItem.created_at))).where(
                JobItem.job_id == job_id, JobItem.state == ItemState.QUEUED
            )
            return job, [], session.exec(waiting).one()

    def begin_alone(self, worker_id: str, item_id: str) -> None:
        """Note that an item that a worker died with is now computed, alone: another death counts against it.

        Nothing happens when ``worker_id`` has not claimed the item.
        """
        with writing(self._engine) as session:
            own = (
                col(JobItem.id) == item_id,
                col(JobItem.worker_id) == worker_id,
                col(JobItem.state) == ItemState.RUNNING,
            )
            session.execute(sa.update(JobItem).where(*own).values(begun=True))

    def requeue(self, worker_id: str, item_ids: Sequence[str], not_before: datetime | None = None) -> None:
        """Let items that a worker has claimed wait again; with ``not_before`` a try is counted."""
        with writing(self._engine) as session:
            job_states.requeue(session, worker_id, item_ids, not_before)

    def fail(self, job_id: str, error: dict[str, Any]) -> None:
        """End a job as failed with ``error`` (code and message), if it is not over."""
        with writing(self._engine) as session:
            job_states.fail(session, job_id, error)

    def note(
        self, item: ClaimedItem, worker_id: str, kind: str, data: dict[str, Any], progress: float | None = None
    ) -> None:
        """Add an event of the work on an item; ``progress``: share that is done, 0-1.

        Conflict (LOST) when the worker has not claimed the item any more.
        """
        with writing(self._engine) as session:
            job_states.note(session, item, worker_id, kind, data, progress)

    def keep_file(self, item: ClaimedItem, worker_id: str, artifact: Artifact) -> str | None:
        """Store a file that the work on an item made; gives the key of the blob that it replaces, to be deleted.

        Deaths of workers before it do not count any more: the work can go on from this file. Conflict (LOST) when the
        worker has not claimed the item any more.
        """
        with writing(self._engine) as session:
            job_states.reset_deaths(session, item, worker_id)
            before = session.get(Artifact, artifact.id)
            replaced = before.storage_key if before is not None else None
            session.merge(artifact)
            return replaced

    def forget_files(self, owner: str, job_id: str, kind: str) -> list[str]:
        """Remove the files of a job of one kind; gives the blob keys to delete."""
        with writing(self._engine) as session:
            own = (Artifact.owner == owner, Artifact.job_id == job_id, Artifact.kind == kind)
            keys = list(session.exec(select(Artifact.storage_key).where(*own)))
            session.execute(sa.delete(Artifact).where(*own))  # type: ignore[arg-type]
            return keys

    def report(self, shares: dict[str, float | None]) -> None:
        """Add a progress event to each of these jobs that is running; ``shares``: see ``job_states.report``."""
        with writing(self._engine) as session:
            for job_id in sorted(shares):
                job_states.report(session, job_id, shares[job_id])

    # What maintenance does with jobs.

    def due_webhooks(self, moment: datetime, lease: timedelta, limit: int = 20) -> list[Job]:
        """At most ``limit`` jobs whose webhook is due at ``moment``. Nobody else gets them until ``lease`` later."""
        with reading(self._engine) as session:  # mostly there is none: no lock for that
            if session.exec(select(Job.id).where(col(Job.webhook_at) <= moment).limit(1)).first() is None:
                return []
        with writing(self._engine) as session:
            chosen = select(Job).where(col(Job.webhook_at) <= moment).order_by(col(Job.webhook_at)).limit(limit)
            due = list(session.exec(chosen.with_for_update(skip_locked=True)))
            for job in due:
                job.webhook_at = moment + lease
                session.add(job)
            return due

    def webhook_tried(self, job: Job, state: str, tries: int, again_at: datetime | None) -> None:
        """Store the outcome of a delivery of a job that ``due_webhooks`` gave; ``again_at``: when it is due next.

        Ignored if the job was retried, or the lease was over and another process took one.
        """
        with writing(self._engine) as session:
            same_end = (
                col(Job.id) == job.id,
                col(Job.state).in_(OVER),
                col(Job.last_event) == job.last_event,
                col(Job.webhook_at) == job.webhook_at,
            )
            values = {"webhook_state": state, "webhook_tries": tries, "webhook_at": again_at}
            session.execute(sa.update(Job).where(*same_end).values(**values))

    def enqueue_entry(self, job_id: str, enqueue: Enqueue) -> None:
        """Make one more queue entry for a job, if it is not over."""
        with writing(self._engine) as session:
            job = session.exec(select(Job).where(Job.id == job_id).with_for_update()).first()
            if job is not None and job.state not in OVER:
                enqueue_entries(session, job, 1, enqueue)

    def _change(self, owner: str, id: str, change: Callable[[Session, Job], None]) -> Job:
        with writing(self._engine) as session:
            job = _locked_job(session, owner, id)
            change(session, job)
            session.flush()
            session.refresh(job)  # as this change left it: the next transaction may change it again
            return job

    def _earlier(self, job: Job) -> Job | None:
        if job.idempotency_key is None:
            return None
        with reading(self._engine) as session:
            chosen = select(Job).where(Job.owner == job.owner, Job.idempotency_key == job.idempotency_key)
            earlier = session.exec(chosen).first()
        if earlier is not None and earlier.fingerprint != job.fingerprint:
            raise Conflict("this Idempotency-Key was used for another request", code="idempotency_key_reused")
        return earlier


def enqueue_entries(session: Session, job: Job, entries: int, enqueue: Enqueue) -> None:
    """Make queue entries for a job. Each gets a number that is never used twice for the same job."""
    last = session.execute(
        sa.update(Job)
        .where(col(Job.id) == job.id)
        .values(entries=col(Job.entries) + entries)
        .returning(col(Job.entries)),
        execution_options={"synchronize_session": False},
    ).scalar_one()
    for number in range(last - entries, last):
        enqueue(session, job, number)


def _locked_job(session: Session, owner: str, id: str) -> Job:
    job = session.exec(select(Job).where(Job.id == id, Job.owner == owner).with_for_update()).first()
    if job is None:
        raise NotFound(f"there is no job {id}")
    return job
