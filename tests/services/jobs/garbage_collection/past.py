"""Rows and ids of long ago, and runs of the garbage collector."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, select

from db.datasets import Datasets
from db.jobs import JobRecords
from db.tables import Image, Installation, JobEvent, JobItem
from services.jobs.garbage_collection import GarbageCollector
from tests import toy_models
from tests.services.jobs.job_homes import AtWork

KEEP = timedelta(days=7)
IMAGES = [toy_models.encoded(toy_models.noise(40, 30, seed=n)) for n in range(3)]
AREAS = {"model": "areas"}
LONG_AGO = datetime(2024, 1, 1, tzinfo=UTC)
NOTHING = {"jobs": 0, "images": 0, "blobs": 0}

Run = Callable[[Callable[[AtWork], Awaitable[None]]], None]


def cleaner(bench: AtWork, jobs: JobRecords | None = None, *, since: datetime = LONG_AGO) -> GarbageCollector:
    """Of a database that keeps records since then."""
    app_state = bench.app_state
    app_state.records.installation()
    with Session(app_state.database) as session:
        session.execute(sa.update(Installation).values(since=since))
        session.commit()
    return GarbageCollector(
        app_state.records,
        jobs or bench.records,
        Datasets(app_state.database),
        app_state.job_queue,
        app_state.store,
        KEEP,
    )


async def clean(bench: AtWork, jobs: JobRecords | None = None, stop_after: int = 1000) -> dict[str, int]:
    """What all of clean-up removed."""
    cleaning = cleaner(bench, jobs)
    requested = 0

    def stopping() -> bool:
        nonlocal requested
        requested += 1
        return requested > stop_after

    removed = await asyncio.to_thread(cleaning.run, stopping)
    return {**removed, "blobs": await asyncio.to_thread(cleaning.sweep, stopping)}


def change_images(bench: AtWork, id: str, **values: Any) -> None:
    with Session(bench.app_state.database) as session:
        session.execute(sa.update(Image).where(col(Image.id) == id).values(**values))
        session.commit()


def left(bench: AtWork, job_id: str) -> tuple[int, int]:
    """Items and events of a job."""
    with Session(bench.app_state.database) as session:
        items = session.exec(select(JobItem).where(JobItem.job_id == job_id)).all()
        return len(items), len(session.exec(select(JobEvent).where(JobEvent.job_id == job_id)).all())


def id_of(moment: datetime) -> str:
    """A UUIDv7 of then."""
    value = int(moment.timestamp() * 1000) << 80 | int.from_bytes(os.urandom(10), "big")
    return str(uuid.UUID(int=value & ~(0xF << 76 | 0x3 << 62) | 0x7 << 76 | 0x2 << 62))
