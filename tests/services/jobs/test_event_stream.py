"""Following a job: to its end, or to a refusal that says why not."""

from __future__ import annotations

import asyncio
import time

import pytest

from db.tables import JobEvent
from ekiben.errors import NotFound, Unavailable
from services.jobs import event_stream
from services.jobs.event_stream import follow
from services.jobs.service import JobService


class Told(JobService):
    """Events as they are given to it, instead of a database's."""

    def __init__(self, *looks: tuple[list[int], bool] | Exception) -> None:
        self.stopping = asyncio.Event()
        self.requested: list[int] = []
        self._looks = list(looks)

    async def events(self, id: str, after: int, *, owner: str = "local") -> tuple[list[JobEvent], bool]:
        self.requested.append(after)
        look = self._looks.pop(0) if self._looks else ([], False)
        if isinstance(look, Exception):
            raise look
        numbers, over = look
        return [JobEvent(job_id=id, number=number, kind="progress", data={}) for number in numbers], over


async def followed(jobs: Told, seen: list[int]) -> None:
    async for found in follow(jobs, "a job", 3):
        seen += [event.number for event in found]


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "LOOK_S", 0.01)


def test_to_the_end() -> None:
    async def run() -> tuple[list[int], list[int]]:
        jobs, seen = Told(([4, 5], False), ([], False), ([6], True)), list[int]()
        await followed(jobs, seen)
        return seen, jobs.requested

    assert asyncio.run(run()) == ([4, 5, 6], [3, 5, 5])


def test_a_stop_is_no_end_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who follows it over gRPC must not take OK for the job's end; and is told at once."""
    monkeypatch.setattr(event_stream, "LOOK_S", 30)

    async def run() -> tuple[list[int], Unavailable, float]:
        jobs, seen = Told(([4], False)), list[int]()
        task = asyncio.create_task(followed(jobs, seen))
        while not seen:
            await asyncio.sleep(0.001)
        began = time.monotonic()
        jobs.stopping.set()
        with pytest.raises(Unavailable) as caught:
            await task
        return seen, caught.value, time.monotonic() - began

    seen, refusal, took_s = asyncio.run(run())
    assert seen == [4] and took_s < 15
    assert (refusal.code, refusal.retry_after_s) == ("stopping", 1)


def test_what_was_told_before_a_stop_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the job is over the stream ends well, even while the process stops."""

    async def run() -> list[int]:
        jobs, seen = Told(([4, 5], True)), list[int]()
        jobs.stopping.set()
        await followed(jobs, seen)
        return seen

    assert asyncio.run(run()) == [4, 5]


@pytest.mark.parametrize("refusal", [NotFound("there is no job"), Unavailable("the database is away")])
def test_refusals_pass_through(refusal: Exception) -> None:
    async def run() -> list[int]:
        jobs, seen = Told(([4], False), refusal), list[int]()
        with pytest.raises(type(refusal)) as caught:
            await followed(jobs, seen)
        assert caught.value is refusal
        return seen

    assert asyncio.run(run()) == [4]
