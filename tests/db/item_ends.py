"""Ends of items, stored one by one or together."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session

from db import job_states
from db.job_states import ItemResult
from db.jobs import JobRecords
from db.records import Records
from db.session import writing
from db.tables import Worker, now
from tests.db.job_rows import (
    buried,
    claimed,
)

BAD = {"code": "bad_image", "message": "not an image"}
MINUTE = timedelta(minutes=1)


def settle(records: Records, job_id: str, item_id: str, worker_id: str = "worker-1", **given: Any) -> None:
    records.save([], ItemResult(job_id, item_id, worker_id, **given)).result(10)


def settle_all(engine: sa.Engine, *settlings: ItemResult) -> None:
    with writing(engine) as session:
        job_states.finish_items(session.connection(), settlings)


def die(engine: sa.Engine, job_id: str, number: int, limit: int = 100) -> list[int]:
    """A worker takes items, begins them and dies; their positions."""
    with Session(engine) as session:
        session.add(Worker(id=f"dead-{number}", host="h", pid=1, started_at=now(), seen_at=now()))
        session.commit()
    taken = claimed(engine, job_id, f"dead-{number}", limit)
    for item in taken:
        if item.deaths:
            JobRecords(engine).begin_alone(f"dead-{number}", item.id)
    assert buried(engine, f"dead-{number}") == [job_id]
    return [item.position for item in taken]
