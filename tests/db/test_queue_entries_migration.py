"""Migration 0004: the queue entries of a job keep their count, and go back under the old name."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlmodel import Session

from db.jobs import JobRecords
from db.migrate import check, downgrade, migrate
from db.session import connect
from ekiben.ids import new_id


def insert_job(url: str, job_id: str, entries: int) -> None:
    """A job as the version before 0004 wrote it."""
    moment = datetime(2026, 11, 20, tzinfo=UTC)
    columns = {
        "id": job_id, "owner": "local", "created_at": moment, "updated_at": moment, "kind": "batch",
        "operation": "classify", "state": "running", "priority": 5, "parameters": "{}", "store": True, "total": 4,
        "succeeded": 1, "failed": 0, "progress": 0.25, "attempts": 1, "deaths": 0, "head_start": 0, "hands": entries,
        "last_event": 2, "timeout_s": 60.0, "webhook_tries": 0,
    }  # fmt: skip
    engine = connect(url)
    with engine.begin() as connection:
        known = {column["name"] for column in sa.inspect(connection).get_columns("jobs")}
        assert "hands" in known and "entries" not in known
        given = {name: value for name, value in columns.items() if name in known}
        table = sa.Table("jobs", sa.MetaData(), autoload_with=connection)
        given["parameters"] = {}
        connection.execute(table.insert().values(**given))
    engine.dispose()


def test_the_count_is_kept_up_and_down(empty_url: str) -> None:
    migrate(empty_url, "0003")
    job_id = new_id()
    insert_job(empty_url, job_id, 3)
    migrate(empty_url)
    assert check(empty_url) == []
    engine = connect(empty_url)
    job = JobRecords(engine).job("local", job_id)
    assert (job.entries, job.total, job.succeeded, job.state) == (3, 4, 1, "running")
    engine.dispose()
    downgrade(empty_url, "0003")
    engine = connect(empty_url)
    with Session(engine) as session:
        assert session.execute(sa.text("SELECT hands FROM jobs")).scalar_one() == 3
    engine.dispose()
