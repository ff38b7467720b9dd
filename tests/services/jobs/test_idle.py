"""What a worker without a job asks of the database: counted, because processor time depends on the machine."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from db.changes import DatabaseChanges
from db.datasets import Datasets
from db.jobs import JobRecords
from db.workers import Workers
from ekiben.settings import Settings
from services.app_state import AppState
from services.jobs.dbos_queue import QueueConsumer
from services.jobs.heartbeat import Heartbeat
from services.jobs.maintenance import Maintenance
from services.jobs.queue_standby import QueueStandby

WATCHED_S = 6.1
STATEMENTS_A_SECOND = 20
"""It was 10 when this was written, and over 50 by polling the queues. A slow machine makes fewer."""


def test_an_idle_worker_makes_few_statements(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, topology="embedded", preload="", grpc_port=0)
    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *given: Any) -> None:
        statements.append(statement)

    async def main() -> float:
        app_state = await AppState.start(settings, for_jobs=True)
        workers, records = Workers(app_state.database), JobRecords(app_state.database)
        workers.enter("me")
        heartbeat = Heartbeat(workers, "me", lambda: 0, lambda: None)
        maintenance = Maintenance(
            settings,
            app_state.records,
            records,
            Datasets(app_state.database),
            workers,
            app_state.job_queue,
            app_state.store,
            heartbeat,
        )
        consumer = QueueConsumer(
            settings.resolved_database_url, "me", lambda job_id: None, {"request": 16, "batch": 4, "import": 1}
        )
        standby = QueueStandby(consumer, records.any_open, DatabaseChanges(app_state.database).look)
        for start in (heartbeat.start, maintenance.start, standby.start):
            await asyncio.to_thread(start)
        statements.clear()
        began = time.monotonic()
        await asyncio.sleep(WATCHED_S)
        passed = time.monotonic() - began
        for stop in (lambda: standby.stop(0), maintenance.stop, heartbeat.stop):
            await asyncio.to_thread(stop)
        assert not app_state.job_queue.in_use  # and DBOS is not imported for a chore
        await app_state.stop()
        return passed

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        passed = asyncio.run(main())
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    assert any("workers" in each for each in statements)  # its heartbeat
    assert len(statements) / passed < STATEMENTS_A_SECOND, statements
