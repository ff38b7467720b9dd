"""Jobs as their owners see them: submitted, listed, cancelled, tried again, removed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import defer
from sqlmodel import Session, col, func, select

from db import job_states
from db.job_states import OVER, ClaimedItem
from db.records import MAX_PAGE, Page, is_needed, remove_predictions, unreferenced
from db.session import reading, writing
from db.tables import Artifact, Image, Job, JobEvent, JobItem, Prediction, Row, now
from ekiben.errors import Conflict, NotFound

Enqueue = Callable[[Session, Job, int], None]
"""Give the queue so many hands for the job, in the transaction of the session."""

_ITEMS_PER_REMOVAL = 200


class JobRecords:
    """The jobs of every owner. Every method blocks on the database: call it in a thread.

    They raise NotFound for an id that this owner does not have, and Unavailable.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def submit(
        self, job: Job, items: Sequence[dict[str, Any]], entries: int, enqueue: Enqueue, rows: Sequence[Row] = ()
    ) -> tuple[Job, bool]:
        """Store a job with its items and queue it, all or nothing, with other ``rows`` besides: (the job, True).

        Where the owner used its idempotency key before, that job: (it, False); Conflict if it was another request.
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
                common = {"owner": job.owner, "job_id": job.id, "created_at": job.created_at, "state": "queued"}
                session.execute(
                    sa.insert(JobItem.__table__),  # type: ignore[attr-defined]
                    [{**blank, **common, "position": number, **item} for number, item in enumerate(items)],
                )
                job_states.add_event(session, job.id, "state", {"state": "queued"})
                enqueue_entries(session, job, entries, enqueue)
                session.flush()
        except Conflict:
            if (earlier := self._earlier(job)) is not None:  # another process was faster, by a moment
                return earlier, False
            raise
        return job, True

    def job(self, owner: str, id: str) -> Job:
        with reading(self._engine) as session:
            return _job(session, owner, id)

    def jobs(
        self, owner: str, state: str | None = None, kind: str | None = None, page: int = 1, limit: int = 50
    ) -> Page[Job]:
        """Newest first."""
        conditions = [col(Job.owner) == owner]
        if state is not None:
            conditions.append(col(Job.state) == state)
        if kind is not None:
            conditions.append(col(Job.kind) == kind)
        page, limit = max(page, 1), min(max(limit, 1), MAX_PAGE)
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
        """In the order in which they were given. Without ``results`` these are not read: they may be large."""
        page, limit = max(page, 1), min(max(limit, 1), MAX_PAGE)
        conditions = [col(JobItem.job_id) == job_id, col(JobItem.owner) == owner]
        if state is not None:
            conditions.append(col(JobItem.state) == state)
        with reading(self._engine) as session:
            _job(session, owner, job_id)
            total = session.exec(select(func.count()).select_from(JobItem).where(*conditions)).one()
            chosen = select(JobItem).where(*conditions).order_by(col(JobItem.position))
            chosen = chosen.offset((page - 1) * limit).limit(limit)
            if not results:
                chosen = chosen.options(defer(JobItem.result))  # type: ignore[arg-type]
            return Page(session.exec(chosen).all(), total, page, limit)

    def running(self, job_ids: Sequence[str]) -> dict[str, int]:
        """How many items of each of these jobs are in a worker's hand."""
        if not job_ids:
            return {}
        with reading(self._engine) as session:
            counted = select(JobItem.job_id, func.count()).where(
                col(JobItem.job_id).in_(job_ids), JobItem.state == "running"
            )
            return dict(session.exec(counted.group_by(col(JobItem.job_id))).all())

    def answers(self, owner: str, items: Sequence[JobItem]) -> dict[str, dict[str, Any]]:
        """By item id, the stored part of the answers of those items that became predictions."""
        ids = [item.id for item in items if item.state == "succeeded"]
        with reading(self._engine) as session:
            chosen = select(Prediction.id, Prediction.result).where(
                col(Prediction.id).in_(ids), Prediction.owner == owner
            )
            return {id: dict(result or {}) for id, result in session.exec(chosen).all()}

    def artifacts(self, owner: str, items: Sequence[JobItem]) -> dict[str, list[Artifact]]:
        """By item id, the files of their predictions, in the order in which they were made."""
        ids = [item.id for item in items]
        found: dict[str, list[Artifact]] = {id: [] for id in ids}
        with reading(self._engine) as session:
            chosen = select(Artifact).where(col(Artifact.prediction_id).in_(ids), Artifact.owner == owner)
            for row in session.exec(chosen.order_by(col(Artifact.created_at), col(Artifact.id))):
                found[row.prediction_id or ""].append(row)
        return found

    def events(self, owner: str, job_id: str, after: int, limit: int = 500) -> tuple[list[JobEvent], bool]:
        """The events with numbers above ``after``, and whether these are all of a job that is over."""
        with reading(self._engine) as session:
            job = _job(session, owner, job_id)
            chosen = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.number > after)
            found = list(session.exec(chosen.order_by(col(JobEvent.number)).limit(limit)))
            last = found[-1].number if found else after
            return found, job.state in OVER and last >= job.last_event

    def told(self, owner: str, job_id: str, kind: str) -> tuple[list[JobEvent], dict[str, JobEvent]]:
        """All events of one kind, and by kind the last of every other."""
        with reading(self._engine) as session:
            _job(session, owner, job_id)
            own = select(JobEvent).where(JobEvent.job_id == job_id)
            every = session.exec(own.where(JobEvent.kind == kind).order_by(col(JobEvent.number))).all()
            newest = select(func.max(JobEvent.number)).where(JobEvent.job_id == job_id).group_by(col(JobEvent.kind))
            last = session.exec(own.where(col(JobEvent.number).in_(session.exec(newest).all()))).all()
            return list(every), {event.kind: event for event in last}

    def cancel(self, owner: str, id: str) -> Job:
        """The job, which is now cancelled. Conflict when it was over."""
        return self._change(owner, id, job_states.cancel)

    def retry(self, owner: str, id: str, entries: Callable[[int], int], enqueue: Enqueue) -> Job:
        """The job, whose items that did not succeed are queued again by ``hands(their number)``. Conflict."""

        def again(session: Session, job: Job) -> None:
            job_states.retry(session, job)
            enqueue_entries(session, job, entries(job.total - job.succeeded), enqueue)

        return self._change(owner, id, again)

    def remove_some(self, owner: str, id: str) -> tuple[list[str], bool]:
        """Remove some of a job that is over: (blob keys that nothing refers to any more, whether that was the rest).

        Its predictions go with their artifacts, its images unless they are kept or another prediction needs them.
        Call it again until all is gone; delete the blobs after each call. Conflict for a job that is not over.
        """
        with writing(self._engine) as session:
            job = _locked(session, owner, id)
            if job.state not in OVER:
                raise Conflict("the job is not over: cancel it first")
            chosen = select(JobItem).options(defer(JobItem.result)).where(JobItem.job_id == id)  # type: ignore[arg-type]
            items = list(session.exec(chosen.order_by(col(JobItem.position)).limit(_ITEMS_PER_REMOVAL)))
            keys = [item.storage_key for item in items if item.storage_key]
            ids = [item.id for item in items]
            images = sorted({item.image_id for item in items if item.image_id})
            # Images first: whoever removes predictions locks theirs before anything else.
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

    def counts(self) -> dict[tuple[str, str], int]:
        """Jobs that are not over, by kind and state."""
        with reading(self._engine) as session:
            counted = select(Job.kind, Job.state, func.count()).where(col(Job.state).in_(("queued", "running")))
            rows = session.exec(counted.group_by(Job.kind, Job.state)).all()
            return {(kind, state): count for kind, state, count in rows}

    # What workers do with jobs.

    def claim(
        self, job_id: str, worker_id: str, window: Callable[[Job], int]
    ) -> tuple[Job | None, list[ClaimedItem], datetime | None]:
        """The job, items of it that are ``worker_id``'s from now on, and when another may be begun.

        At most ``window(job)`` items.

        None for a job that is gone. No items for one that is over or has none to begin now; then the time is that of
        the next retry, or None when every item is in somebody's hand.
        """
        with writing(self._engine) as session:
            job = session.get(Job, job_id)
            if job is None or job.state in OVER:
                return job, [], None
            if job.started_at is not None and job_states.end_of_time(job) <= now():
                return job, [], None
            limit = window(job)
            if job.items_at_once is not None:
                limit = min(limit, job_states.places_left(session, job_id, job.items_at_once))
                if limit <= 0:
                    return job, [], now() + timedelta(seconds=1)
            items = job_states.claim(session, job_id, worker_id, limit)
            session.refresh(job)  # it may have begun
            if items:
                return job, items, None
            waiting = select(func.min(func.coalesce(JobItem.not_before, JobItem.created_at))).where(
                JobItem.job_id == job_id, JobItem.state == "queued"
            )
            return job, [], session.exec(waiting).one()

    def begin_alone(self, worker_id: str, item_id: str) -> None:
        """An item that a worker died with is being answered now, and nothing else beside it."""
        with writing(self._engine) as session:
            own = (col(JobItem.id) == item_id, col(JobItem.worker_id) == worker_id, col(JobItem.state) == "running")
            session.execute(sa.update(JobItem).where(*own).values(begun=True))

    def give_back(self, worker_id: str, item_ids: Sequence[str], not_before: datetime | None = None) -> None:
        with writing(self._engine) as session:
            job_states.requeue(session, worker_id, item_ids, not_before)

    def claimed_by(self, worker_id: str) -> list[str]:
        """Ids of the items that are in this worker's hand."""
        with reading(self._engine) as session:
            chosen = select(JobItem.id).where(JobItem.worker_id == worker_id, JobItem.state == "running")
            return list(session.exec(chosen))

    def fail(self, job_id: str, error: dict[str, Any]) -> None:
        with writing(self._engine) as session:
            job_states.fail(session, job_id, error)

    def note(
        self, item: ClaimedItem, worker_id: str, kind: str, data: dict[str, Any], progress: float | None = None
    ) -> None:
        """Write down what happened in the work on an item. Conflict (LOST) when it is not this worker's any more."""
        with writing(self._engine) as session:
            job_states.note(session, item, worker_id, kind, data, progress)

    def keep_file(self, item: ClaimedItem, worker_id: str, artifact: Artifact) -> str | None:
        """Remember a file that the work on an item made, or made anew. Conflict (LOST) as above.

        Gives the key of the blob that it replaces, which is to be deleted. What is kept is a step that need not be
        done again: deaths before it do not count any more.
        """
        with writing(self._engine) as session:
            job_states.outlived(session, item, worker_id)
            before = session.get(Artifact, artifact.id)
            replaced = before.storage_key if before is not None else None
            session.merge(artifact)
            return replaced

    def files(self, owner: str, job_id: str, kind: str | None = None) -> list[Artifact]:
        """The files of a job itself, in the order in which they were made."""
        chosen = select(Artifact).where(
            Artifact.owner == owner, Artifact.job_id == job_id, col(Artifact.prediction_id).is_(None)
        )
        if kind is not None:
            chosen = chosen.where(Artifact.kind == kind)
        with reading(self._engine) as session:
            return list(session.exec(chosen.order_by(col(Artifact.created_at), col(Artifact.id))))

    def forget_files(self, owner: str, job_id: str, kind: str) -> list[str]:
        """Remove a job's files of one kind; gives the blob keys to delete."""
        with writing(self._engine) as session:
            own = (Artifact.owner == owner, Artifact.job_id == job_id, Artifact.kind == kind)
            keys = list(session.exec(select(Artifact.storage_key).where(*own)))
            session.execute(sa.delete(Artifact).where(*own))  # type: ignore[arg-type]
            return keys

    def report(self, shares: dict[str, float | None]) -> None:
        """Say how far these jobs are; see ``job_states.report``."""
        with writing(self._engine) as session:
            for job_id in sorted(shares):
                job_states.report(session, job_id, shares[job_id])

    def states(self, job_ids: Sequence[str]) -> dict[str, str]:
        """The states of those of these jobs that are still there."""
        with reading(self._engine) as session:
            return dict(session.exec(select(Job.id, Job.state).where(col(Job.id).in_(job_ids))).all())

    def due_webhooks(self, moment: datetime, lease: timedelta, limit: int = 20) -> list[Job]:
        """Jobs whose webhook is due. For ``lease`` they are due for nobody else."""
        with writing(self._engine) as session:
            chosen = select(Job).where(col(Job.webhook_at) <= moment).order_by(col(Job.webhook_at)).limit(limit)
            due = list(session.exec(chosen.with_for_update(skip_locked=True)))
            for job in due:
                job.webhook_at = moment + lease
                session.add(job)
            return due

    def webhook_tried(self, job: Job, state: str, tries: int, again_at: datetime | None) -> None:
        """What came of a try. Nothing is changed when the job has been tried again since."""
        with writing(self._engine) as session:
            same_end = (col(Job.id) == job.id, col(Job.state).in_(OVER), col(Job.last_event) == job.last_event)
            values = {"webhook_state": state, "webhook_tries": tries, "webhook_at": again_at}
            session.execute(sa.update(Job).where(*same_end).values(**values))

    def oldest_active(self) -> str | None:
        """The smallest id of an item that waits or is in hand: of anybody's."""
        with reading(self._engine) as session:
            chosen = select(func.min(JobItem.id)).where(col(JobItem.state).in_(("queued", "running")))
            return session.exec(chosen).one()

    def over_since(self, before: datetime, limit: int = 1000) -> list[tuple[str, str]]:
        """Owners and ids of jobs that have been over since before then, and are only of passing interest."""
        with reading(self._engine) as session:
            # A training that made a model says where that comes from.
            lineage = sa.and_(col(Job.kind) == "training", col(Job.state) == "succeeded")
            chosen = select(Job.owner, Job.id).where(col(Job.state).in_(OVER), col(Job.finished_at) < before, ~lineage)
            return [(owner, id) for owner, id in session.exec(chosen.limit(limit))]

    def enqueue_entry(self, job_id: str, enqueue: Enqueue) -> None:
        """Queue the job once more, if it is not over."""
        with writing(self._engine) as session:
            job = session.exec(select(Job).where(Job.id == job_id).with_for_update()).first()
            if job is not None and job.state not in OVER:
                enqueue_entries(session, job, 1, enqueue)

    def _change(self, owner: str, id: str, change: Callable[[Session, Job], None]) -> Job:
        with writing(self._engine) as session:
            job = _locked(session, owner, id)
            change(session, job)
            session.flush()
            session.refresh(job)  # as this change leaves it, not as the next one does
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
    """Queue a job by ``hands`` entries. Their ids are the job's and a number that is never used twice."""
    last = session.execute(
        sa.update(Job)
        .where(col(Job.id) == job.id)
        .values(entries=col(Job.entries) + entries)
        .returning(col(Job.entries)),
        execution_options={"synchronize_session": False},
    ).scalar_one()
    for number in range(last - entries, last):
        enqueue(session, job, number)


def _job(session: Session, owner: str, id: str) -> Job:
    job = session.exec(select(Job).where(Job.id == id, Job.owner == owner)).first()
    if job is None:
        raise NotFound(f"there is no job {id}")
    return job


def _locked(session: Session, owner: str, id: str) -> Job:
    job = session.exec(select(Job).where(Job.id == id, Job.owner == owner).with_for_update()).first()
    if job is None:
        raise NotFound(f"there is no job {id}")
    return job
