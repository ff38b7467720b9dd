"""Workers: which of them live, and whose turn it is to look after the rest."""

from __future__ import annotations

import contextlib
import os
import socket
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlmodel import Session, col, select

from db import job_states
from db.session import reading, writing
from db.tables import Chore, Job, JobItem, Worker, now
from ekiben.errors import Conflict


class Workers:
    """The workers of all machines. Ages are those of the database's clock: machines need not agree on the time."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def enter(self, worker_id: str) -> None:
        """Be known as alive."""
        with writing(self._engine) as session:
            moment = _clock(session)
            session.add(
                Worker(id=worker_id, host=socket.gethostname(), pid=os.getpid(), started_at=moment, seen_at=moment)
            )

    def beat(self, worker_id: str, running: int) -> bool:
        """Still alive, with so many items in hand. False: others thought this worker dead, and took over its work."""
        with writing(self._engine) as session:
            changed = session.execute(
                sa.update(Worker).where(col(Worker.id) == worker_id).values(seen_at=_clock(session), running=running),
                execution_options={"synchronize_session": False},
            )
            return bool(changed.rowcount)  # type: ignore[attr-defined]

    def leave(self, worker_id: str) -> None:
        """The worker ends; what it still has in hand waits again, and no death is counted."""
        with writing(self._engine) as session:
            session.exec(select(Worker).where(Worker.id == worker_id).with_for_update()).first()
            claimed = select(JobItem.id).where(JobItem.worker_id == worker_id, JobItem.state == "running")
            job_states.requeue(session, worker_id, session.exec(claimed).all())
            session.execute(sa.delete(Worker).where(col(Worker.id) == worker_id))

    def alive(self, ttl_s: float) -> list[Worker]:
        """Those heard of within ``ttl_s``."""
        with reading(self._engine) as session:
            since = _clock(session) - timedelta(seconds=ttl_s)
            return list(session.exec(select(Worker).where(col(Worker.seen_at) >= since).order_by(col(Worker.id))))

    def known(self) -> set[str]:
        """The ids of all who entered and neither left nor were buried."""
        with reading(self._engine) as session:
            return set(session.exec(select(Worker.id)))

    def bury_dead(self, ttl_s: float) -> dict[str, list[str]]:
        """Take their work from the workers not heard of for ``ttl_s``. By worker, the jobs it had in hand."""
        buried: dict[str, list[str]] = {}
        with reading(self._engine) as session:
            before = _clock(session) - timedelta(seconds=ttl_s)
            silent = session.exec(select(Worker.id).where(col(Worker.seen_at) < before)).all()
        for worker_id in silent:
            with writing(self._engine) as session:
                before = _clock(session) - timedelta(seconds=ttl_s)
                chosen = select(Worker).where(Worker.id == worker_id).with_for_update()
                worker = session.exec(chosen).first()
                if worker is not None and worker.seen_at < before:  # it may have spoken up, or be buried already
                    buried[worker_id] = job_states.fail_worker(session, worker_id)
        return buried

    def give_back_of_unknown(self) -> list[str]:
        """Items in the hand of a worker that is not known wait again: it was buried, and claimed before it noticed."""
        with writing(self._engine) as session:
            unknown = col(JobItem.worker_id).not_in(select(Worker.id))
            chosen = select(JobItem.worker_id, JobItem.id).where(JobItem.state == "running", unknown)
            items = [(worker_id or "", item_id) for worker_id, item_id in session.exec(chosen)]
            for worker_id in sorted({worker_id for worker_id, _ in items}):
                job_states.requeue(session, worker_id, [item_id for owner, item_id in items if owner == worker_id])
            return [item_id for _, item_id in items]

    def bury(self, worker_id: str) -> list[str]:
        """Take the work from a worker that is known to be dead; the jobs that it had in hand."""
        with writing(self._engine) as session:
            session.exec(select(Worker).where(Worker.id == worker_id).with_for_update()).first()
            return job_states.fail_worker(session, worker_id)

    def stalled(self, quiet_s: float, limit: int = 100, *, state: str = "running") -> list[str]:
        """Jobs in ``state``, the oldest first, of which no item is in hand and nothing was heard for ``quiet_s``."""
        with reading(self._engine) as session:
            before = now() - timedelta(seconds=quiet_s)
            claimed = select(JobItem.id).where(JobItem.job_id == Job.id, JobItem.state == "running")
            chosen = select(Job.id).where(Job.state == state, col(Job.updated_at) < before, ~sa.exists(claimed))
            return list(session.exec(chosen.order_by(col(Job.created_at)).limit(limit)))

    def late(self, grace_s: float) -> list[Job]:
        """Running jobs whose time was up ``grace_s`` ago."""
        with reading(self._engine) as session:
            chosen = select(Job).where(Job.state == "running", col(Job.started_at).is_not(None))
            late = now() - timedelta(seconds=grace_s)
            return [job for job in session.exec(chosen) if job_states.end_of_time(job) <= late]

    def take_turn(self, chore: str, every_s: float) -> bool:
        """True for the one process that is to do ``chore`` now; for the next ``every_s`` for nobody."""
        with reading(self._engine) as session:
            row = session.get(Chore, chore)
            if row is not None and row.due_at > _clock(session):
                return False
        with contextlib.suppress(Conflict), writing(self._engine) as session:  # another process made the row just now
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
    if session.get_bind().dialect.name != "postgresql":  # a file: all of its processes are on this machine
        return now()
    moment: datetime = session.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
    return moment
