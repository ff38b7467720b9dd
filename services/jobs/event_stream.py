"""The events of a job as they happen, for the protocols that stream them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from db.tables import JobEvent
from ekiben.errors import Unavailable
from ekiben.ids import LOCAL_OWNER
from services.jobs.service import JobService

LOOK_S = 0.3
"""Seconds between two looks for new events."""


async def follow(jobs: JobService, id: str, after: int, *, owner: str = LOCAL_OWNER) -> AsyncIterator[list[JobEvent]]:
    """The events numbered above ``after``: a list every LOOK_S, perhaps empty, until the job is over.

    NotFound once the job is removed; Unavailable without the database, and when this process is stopping.
    """
    while True:
        found, ended = await jobs.events(id, after, owner=owner)
        if found:
            after = found[-1].number
        yield found
        if ended:
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(jobs.stopping.wait(), LOOK_S)
            raise Unavailable("the server is stopping", code="stopping", retry_after_s=1)
