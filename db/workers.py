"""Workers: which of them are alive, what dead ones had claimed, and which process does periodic chores."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlmodel import Session, col, select

from db import job_states
from db.session import reading, writing
from db.tables import Chore, ItemState, Job, JobItem, JobState, Worker, now
from ekiben.errors import Conflict, Refusal

log = logging.getLogger(__name__)


class Workers:
    """The workers of all machines. Ages are by the database's clock, because the clocks of machines differ."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def enter(self, worker_id: str) -> None:
        """Register a worker as alive."""
        with writing(self._engine) as session:
            moment = _clock(session)
            session.add(
                Worker(id=worker_id, host=socket.gethostname(), pid=os.getpid(), started_at=moment, seen_at=moment)
            )

    def beat(self, worker_id: str, running: int) -> bool:
        """Store a heartbeat of a worker that has claimed ``running`` items.

        False: the worker was removed as dead, and its items were queued again.
        """
        with writing(self._engine) as session:
            changed = session.execute(
                sa.update(Worker).where(col(Worker.id) == worker_id).values(seen_at=_clock(session), running=running),
                execution_options={"synchronize_session": False},
            )
            return bool(changed.rowcount)  # type: ignore[attr-defined]

    def leave(self, worker_id: str) -> None:
        """Remove a worker that ends; what it has still claimed waits again, and no death is counted."""
        with writing(self._engine) as session:
            session.exec(select(Worker).where(Worker.id == worker_id).with_for_update()).first()
            claimed = select(JobItem.id).where(JobItem.worker_id == worker_id, JobItem.state == ItemState.RUNNING)
            job_states.requeue(session, worker_id, session.exec(claimed).all())
            session.execute(sa.delete(Worker).where(col(Worker.id) == worker_id))

    def alive(self, ttl_s: float) -> list[Worker]:
        """The workers whose last heartbeat is at most ``ttl_s`` old."""
        with reading(self._engine) as session:
            since = _clock(session) - timedelta(seconds=ttl_s)
            return list(session.exec(select(Worker).where(col(Worker.seen_at) >= since).order_by(col(Worker.id))))

    def known(self) -> set[str]:
        """The ids of all registered workers, also of those that may be dead."""
        with reading(self._engine) as session:
            return set(session.exec(select(Worker.id)))

    def fail_silent(self, ttl_s: float) -> dict[str, list[str]]:
        """Remove the workers without a heartbeat for ``ttl_s``; by worker, the jobs of which it claimed items.

        One that cannot be removed now, because somebody has its row or a job locked, is left to the next call.
        """
        failed: dict[str, list[str]] = {}
        with reading(self._engine) as session:
            before = _clock(session) - timedelta(seconds=ttl_s)
            silent = session.exec(select(Worker.id).where(col(Worker.seen_at) < before)).all()
        for worker_id in silent:
            try:
                with writing(self._engine) as session:
                    before = _clock(session) - timedelta(seconds=ttl_s)
                    chosen = select(Worker).where(Worker.id == worker_id).with_for_update()
                    worker = session.exec(chosen).first()
                    if worker is None or worker.seen_at >= before:  # it may have sent a heartbeat meanwhile
                        continue
                    jobs = job_states.fail_worker(session, worker_id)
            except Refusal as error:
                log.warning("a dead worker is not removed: %s", error, extra={"worker": worker_id})
                continue
            failed[worker_id] = jobs
        return failed

    def requeue_of_unknown(self) -> list[str]:
        """Let items wait again that a worker claimed after it was removed as dead; gives their ids."""
        unknown = col(JobItem.worker_id).not_in(select(Worker.id))
        chosen = select(JobItem.worker_id, JobItem.id).where(JobItem.state == ItemState.RUNNING, unknown)
        with reading(self._engine) as session:  # mostly there is none: no lock for that
            if session.exec(chosen.limit(1)).first() is None:
                return []
        with writing(self._engine) as session:
            items = [(worker_id or "", item_id) for worker_id, item_id in session.exec(chosen)]
            for worker_id in sorted({worker_id for worker_id, _ in items}):
                job_states.requeue(session, worker_id, [item_id for owner, item_id in items if owner == worker_id])
            return [item_id for _, item_id in items]

    def fail_worker(self, worker_id: str) -> list[str]:
        """Remove a worker that is known to be dead; gives the ids of the jobs of which it had claimed items."""
        with writing(self._engine) as session:
            session.exec(select(Worker).where(Worker.id == worker_id).with_for_update()).first()
            return job_states.fail_worker(session, worker_id)

    def stalled(self, quiet_s: float, limit: int = 100, *, state: str = JobState.RUNNING) -> list[str]:
        """Ids of jobs in ``state``, oldest first, with no claimed item and no change for ``quiet_s``."""
        with reading(self._engine) as session:
            before = now() - timedelta(seconds=quiet_s)
            claimed = select(JobItem.id).where(JobItem.job_id == Job.id, JobItem.state == ItemState.RUNNING)
            chosen = select(Job.id).where(Job.state == state, col(Job.updated_at) < before, ~sa.exists(claimed))
            return list(session.exec(chosen.order_by(col(Job.created_at)).limit(limit)))

    def late(self, grace_s: float) -> list[Job]:
        """Running jobs whose time was up at least ``grace_s`` ago."""
        with reading(self._engine) as session:
            chosen = select(Job).where(Job.state == JobState.RUNNING, col(Job.started_at).is_not(None))
            late = now() - timedelta(seconds=grace_s)
            return [job for job in session.exec(chosen) if job_states.end_of_time(job) <= late]

    def take_turn(self, chore: str, every_s: float) -> bool:
        """True for one process, which does the chore now; then False for all processes for ``every_s``."""
        with reading(self._engine) as session:
            row = session.get(Chore, chore)
            if row is not None and row.due_at > _clock(session):
                return False
        with contextlib.suppress(Conflict), writing(self._engine) as session:  # another process may make the row first
            moment = _clock(session)
            row = session.exec(select(Chore).where(Chore.name == chore).with_for_update()).first()
            if row is None:
                row = Chore(name=chore, due_at=moment)
            elif row.due_at > moment:
                return False
            row.due_at = moment + timedelta(seconds=every_s)
            session.add(row)
            session.flush()
            return True
        return False


def _clock(session: Session) -> datetime:
    if session.get_bind().dialect.name != "postgresql":  # SQLite: all processes are on this machine
        return now()
    moment: datetime = session.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
    return moment
