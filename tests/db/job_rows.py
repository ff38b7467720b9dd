"""Jobs for these tests: rows, complete and valid, and the looks at them that most tests take."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, SQLModel, col, func, select

from db import job_states
from db.job_states import ClaimedItem
from db.jobs import JobRecords
from db.session import writing
from db.tables import Job, JobEvent, JobItem
from ekiben.ids import new_id


def job(total: int = 1, **given: Any) -> Job:
    values: dict[str, Any] = {"kind": "batch", "operation": "classify", "total": total, "timeout_s": 600.0}
    return Job(**{**values, **given})


def items(total: int, **given: Any) -> list[dict[str, Any]]:
    """Columns of so many items, as ``JobRecords.submit`` takes them: each with an image of its own."""
    return [
        {
            "id": new_id(),
            "filename": f"{number}.jpg",
            "storage_key": f"images/2026/11/20/{new_id()}.jpg",
            "mime_type": "image/jpeg",
            "bytes": 1000 + number,
            "sha256": "a" * 64,
            **given,
        }
        for number in range(total)
    ]


def unqueued(session: Session, job: Job, number: int) -> None:
    """An Enqueue for tests that need no queue."""


def submitted(engine: sa.Engine, total: int = 3, item: dict[str, Any] | None = None, **given: Any) -> str:
    """The id of a job that was just submitted; ``item``: columns that all of its items have."""
    stored, created = JobRecords(engine).submit(job(total, **given), items(total, **(item or {})), 1, unqueued)
    assert created
    return stored.id


def claimed(engine: sa.Engine, job_id: str, worker_id: str = "worker-1", limit: int = 100) -> list[ClaimedItem]:
    with writing(engine) as session:
        return job_states.claim(session, job_id, worker_id, limit)


def buried(engine: sa.Engine, worker_id: str) -> list[str]:
    with writing(engine) as session:
        return job_states.fail_worker(session, worker_id)


def given_back(engine: sa.Engine, worker_id: str, items: list[ClaimedItem], not_before: datetime | None = None) -> None:
    with writing(engine) as session:
        job_states.requeue(session, worker_id, [item.id for item in items], not_before)


def job_now(engine: sa.Engine, job_id: str) -> Job:
    with Session(engine) as session:
        return session.exec(select(Job).where(Job.id == job_id)).one()


def items_now(engine: sa.Engine, job_id: str) -> list[JobItem]:
    with Session(engine) as session:
        return list(session.exec(select(JobItem).where(JobItem.job_id == job_id).order_by(col(JobItem.position))))


def states_now(engine: sa.Engine, job_id: str) -> list[str]:
    return [item.state for item in items_now(engine, job_id)]


def events_now(engine: sa.Engine, job_id: str) -> list[tuple[int, str, dict[str, Any]]]:
    with Session(engine) as session:
        chosen = select(JobEvent).where(JobEvent.job_id == job_id).order_by(col(JobEvent.number))
        return [(event.number, event.kind, event.data) for event in session.exec(chosen)]


def change(engine: sa.Engine, table: type[SQLModel], id: str, **values: Any) -> None:
    """Set columns of one row behind everybody's back."""
    with engine.execution_options(immediate=True).begin() as connection:
        found = table.__table__.c.id  # type: ignore[attr-defined]
        assert connection.execute(sa.update(table).where(found == id).values(**values)).rowcount == 1


def count(engine: sa.Engine, table: type[SQLModel]) -> int:
    with Session(engine) as session:
        return session.exec(select(func.count()).select_from(table)).one()
