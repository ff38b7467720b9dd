"""A home and a database for tests that kill: servers and workers are started in it, and looked at from outside."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from db.session import connect
from ekiben.settings import Settings
from tests import toy_models
from tests.conftest import publish
from tests.journeys.jobs.job_client import LONG, batch, blobs, eventually
from tests.serving import JobWorker, Server, serving, working
from tests.toy_sam import shapes

SECONDS = {**LONG, "points_per_side": "20", "store": "true"}
"""Automatic masks that take about a second of an image of 900 x 700."""


@dataclass
class Place:
    """``settings``: where its database is, if that is not a file in ``home``."""

    home: Path
    settings: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        own = Settings.from_environ({"EKIBEN_HOME": str(self.home), **self.settings})
        self.database = connect(own.resolved_database_url)

    def publish(self, name: str, artifact: Path) -> None:
        publish(self.home, name, artifact, **self.settings)

    def serving(self, **more: str) -> AbstractContextManager[Server]:
        return serving(self.home, **{**self.settings, **more})  # type: ignore[arg-type]

    def working(self, **more: str) -> AbstractContextManager[JobWorker]:
        return working(self.home, **{**self.settings, **more})

    def rows(self, statement: str, **values: Any) -> list[tuple[Any, ...]]:
        with self.database.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.text(statement), values)]

    def count(self, statement: str, **values: Any) -> int:
        return int(self.rows(f"SELECT count(*) FROM {statement}", **values)[0][0])

    def done(self, job_id: str) -> int:
        """Items that have succeeded."""
        return self.count("job_items WHERE job_id = :id AND state = 'succeeded'", id=job_id)

    def holders(self, job_id: str) -> dict[int, set[int]]:
        """By process id of a worker, the positions of the items that it has claimed."""
        found = self.rows(
            "SELECT w.pid, i.position FROM job_items i JOIN workers w ON w.id = i.worker_id "
            "WHERE i.job_id = :id AND i.state = 'running'",
            id=job_id,
        )
        return {pid: {position for other, position in found if other == pid} for pid, _ in found}

    def holder(self, job_id: str, *, but: Collection[int] = (), seconds: float = 60.0) -> int:
        """The process id of a worker that has claimed items of the job, once there is one."""
        return eventually(
            lambda: next((pid for pid in self.holders(job_id) if pid not in but), None), "a worker is at it", seconds
        )

    def strangers(self) -> tuple[set[str], set[str]]:
        """Files of the store that no row knows, and files that a row knows but the store has not."""
        there = blobs(self.home)
        known = {
            key
            for table in ("images", "artifacts", "job_items")
            for (key,) in self.rows(f"SELECT storage_key FROM {table} WHERE storage_key IS NOT NULL")
        }
        return there - known, known - there

    def check_each_once(self, job_id: str, total: int) -> None:
        """Every item succeeded and is one prediction, of one image; every file is somebody's."""
        job = self.rows("SELECT state, total, succeeded, failed FROM jobs WHERE id = :id", id=job_id)
        assert job == [("succeeded", total, total, 0)], job
        items = self.rows("SELECT id, position, state FROM job_items WHERE job_id = :id ORDER BY position", id=job_id)
        assert [(position, state) for _, position, state in items] == [(n, "succeeded") for n in range(total)], items
        stored = self.rows("SELECT id, image_id FROM predictions WHERE job_id = :id", id=job_id)
        assert len(stored) == total, len(stored)
        assert {ident for ident, _ in stored} == {ident for ident, _, _ in items}
        assert len({image for _, image in stored}) == total == self.count("images")
        strangers, missing = self.strangers()
        assert not missing, sorted(missing)
        assert not strangers, sorted(strangers)

    def items(self, job_id: str) -> list[tuple[str, int, int, int]]:
        """State, process id of the worker (0: not claimed), attempts and deaths, in order."""
        found = self.rows(
            "SELECT i.state, w.pid, i.attempts, i.deaths FROM job_items i LEFT JOIN workers w ON w.id = i.worker_id "
            "WHERE i.job_id = :id ORDER BY i.position",
            id=job_id,
        )
        return [(state, pid or 0, attempts, deaths) for state, pid, attempts, deaths in found]

    def deaths(self, job_id: str) -> int:
        """Of workers, summed over the items."""
        return int(self.rows("SELECT sum(deaths) FROM job_items WHERE job_id = :id", id=job_id)[0][0])


def seconds_each(client: httpx.Client, count: int, **more: str) -> str:
    """A batch of images that take about a second each."""
    images = [(f"{n}.png", toy_models.encoded(shapes(900 + n, 700))) for n in range(count)]
    return batch(client, images, "auto_masks", **{**SECONDS, **more})
