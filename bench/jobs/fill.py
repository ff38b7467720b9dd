"""Fill the queue of a home: copies of a job that was submitted over HTTP, by the functions that submit one."""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

import sqlalchemy as sa

from db.jobs import JobRecords
from db.session import connect
from db.tables import Job
from ekiben.ids import new_id
from ekiben.settings import Settings
from services.jobs.dbos_queue import JobQueue

_COPIED = ("kind", "operation", "parameters", "store", "total", "timeout_s", "fingerprint")
_ITEM = ("filename", "image_id", "storage_key", "mime_type", "bytes", "sha256")


def main() -> None:
    """Print how many seconds it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", help="the id of the job to copy; it has one item")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--priority", type=int, required=True)
    given = parser.parse_args()
    settings = Settings.from_environ(os.environ)
    engine = connect(settings.resolved_database_url)
    if engine.dialect.name == "sqlite":
        # These rows need not survive a power cut; each job is still a transaction of its own.
        sa.event.listen(engine, "connect", lambda connection, record: connection.execute("PRAGMA synchronous=OFF"))
    records, queue = JobRecords(engine), JobQueue(settings.resolved_database_url)
    first = records.job("local", given.job)
    item = records.items("local", given.job).items[0]
    start = time.perf_counter()
    for _ in range(given.count):
        columns: dict[str, Any] = {name: getattr(item, name) for name in _ITEM}
        job = Job(owner="local", priority=given.priority, **{name: getattr(first, name) for name in _COPIED})
        records.submit(job, [{**columns, "id": new_id()}], 1, queue.enqueue)
    print(time.perf_counter() - start)
    queue.close()


if __name__ == "__main__":
    main()
