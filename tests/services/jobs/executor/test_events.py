"""The events of a job while it is computed."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from services.jobs import executor
from tests.services.jobs.executor.inputs import AREAS, IMAGES, MORE, Run
from tests.services.jobs.job_homes import AtWork


def test_events_tell_what_happened(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """How far a job is, is said by the watch, every so often, and only when there is something new."""
    monkeypatch.setattr(executor, "WATCH_S", 0.01)
    monkeypatch.setattr(executor, "REPORT_S", 0.1)

    async def main(bench: AtWork) -> None:
        infer, calls, last = bench.app_state.runner.infer, 0, asyncio.Event()

        async def slow(*given: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 5:
                await last.wait()
            return await infer(*given)

        async def shares() -> list[dict[str, Any]]:
            events, _ = await bench.app_state.jobs.events(job.id, 0)
            return [event.data for event in events if event.kind == "progress"]

        monkeypatch.setattr(bench.app_state.runner, "infer", slow)
        job = await bench.submit("segment", [*IMAGES[:5], b"bad"], AREAS)
        begun = time.monotonic()
        working, watching = asyncio.create_task(bench.work.work(job.id)), asyncio.create_task(bench.work.watch())
        while not (said := await shares()) or said[-1]["done"] < 5:
            await asyncio.sleep(0.01)
        await asyncio.sleep(2 * executor.REPORT_S)  # what ends while it is told how far the job is, is told once more
        said = await shares()
        assert said[-1] == {"progress": 5 / 6, "total": 6, "done": 5, "failed": 1}
        await asyncio.sleep(3 * executor.REPORT_S)
        assert await shares() == said  # nothing was new
        assert len(said) <= (time.monotonic() - begun) / executor.REPORT_S
        last.set()
        await working
        watching.cancel()

        assert bench.job(job.id).state == "succeeded"
        events, ended = await bench.app_state.jobs.events(job.id, 0)
        assert ended
        assert [event.number for event in events] == list(range(1, len(events) + 1))
        states = [event.data["state"] for event in events if event.kind == "state"]
        assert states == ["queued", "running", "succeeded"]
        assert events[-1].data == {"state": "succeeded", "total": 6, "done": 6, "failed": 1, "error": None}
        done = [share["done"] for share in await shares()]
        assert done == sorted(done)
        later, ended = await bench.app_state.jobs.events(job.id, events[-2].number)
        assert ([event.number for event in later], ended) == ([events[-1].number], True)

    run(main)


def test_no_progress_is_told_but_by_the_watch(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        job = await bench.finish((await bench.submit("segment", MORE, AREAS)).id)
        events, _ = await bench.app_state.jobs.events(job.id, 0)
        assert [(event.kind, event.data["state"]) for event in events] == [
            ("state", "queued"),
            ("state", "running"),
            ("state", "succeeded"),
        ]

    run(main)
