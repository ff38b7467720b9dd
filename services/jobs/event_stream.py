"""The events of a job as they come, for the doors that stream them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from db.tables import JobEvent
from ekiben.errors import Unavailable
from ekiben.ids import LOCAL_OWNER
from services.jobs.service import JobService

LOOK_S = 0.3
"""How often a stream of events looks for new ones."""


async def follow(jobs: JobService, id: str, after: int, *, owner: str = LOCAL_OWNER) -> AsyncIterator[list[JobEvent]]:
    """New events, every LOOK_S, perhaps none, until the job is over.

    A refusal where it cannot be followed to its end: NotFound once it is removed, Unavailable while the database is
    away, and when this process is asked to end.
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
