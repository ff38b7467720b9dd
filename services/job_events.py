"""The events of a job as they come, for the doors that stream them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from db.tables import JobEvent
from ekiben.errors import Refusal
from services.jobs import Jobs
from services.vision import LOCAL

LOOK_S = 0.3
"""How often a stream of events looks for new ones."""


async def follow(jobs: Jobs, id: str, after: int, *, owner: str = LOCAL) -> AsyncIterator[list[JobEvent]]:
    """New events, every LOOK_S, perhaps none, until the job is over or this process is asked to end."""
    while True:
        try:
            found, ended = await jobs.events(id, after, owner=owner)
        except Refusal:  # the job was removed, or the database is away: the caller connects again and is told
            return
        if found:
            after = found[-1].number
        yield found
        if ended:
            return
        try:
            await asyncio.wait_for(jobs.stopping.wait(), LOOK_S)
            return
        except TimeoutError:
            continue
