"""How many items are computed at once, which job is next, and which threads query the database."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from db.tables import now
from ekiben.errors import Unavailable
from services.jobs import executor, item_settler
from services.jobs.executor import JobExecutor
from tests.services.jobs.executor.inputs import AREAS, CLAIM_SIZE, COLOURS, IMAGES, SOLIDS, Held, Run
from tests.services.jobs.job_homes import AtWork
from tests.waiting import async_eventually

# ---- turns, and faults of what is around ----


def test_so_many_items_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(bench: AtWork) -> None:
        held = Held(bench, monkeypatch)
        job = await bench.submit("segment", IMAGES[:2] * 4, AREAS)
        bench.change_job(job.id, items_at_once=3)
        other = bench.another_worker()
        working = [asyncio.create_task(work.work(job.id)) for work in (bench.work, other, bench.work)]
        await held.until(3)
        await asyncio.sleep(0.1)
        assert (held.entered, bench.states(job.id).count("running")) == (3, 3)
        held.open.set()
        await asyncio.gather(*working)
        assert (await bench.finish(job.id)).succeeded == 8
        assert held.most <= 3

    run(main, max_items=4)


def test_jobs_take_turns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "SLICE_S", 0.0)

    async def main(bench: AtWork) -> None:
        job = await bench.submit("segment", IMAGES[:1] * (2 * CLAIM_SIZE + 1), AREAS)
        done = []
        for _ in range(3):
            await bench.work.work(job.id)
            done.append(bench.states(job.id).count("succeeded"))
        assert done == [CLAIM_SIZE, 2 * CLAIM_SIZE, 2 * CLAIM_SIZE + 1]
        entries_now = bench.job(job.id).entries
        await bench.work.work(job.id)  # it is over: no entry is needed any more
        assert bench.job(job.id).entries == entries_now

    run(main)


def test_a_hand_that_breaks_off_is_replaced(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(bench: AtWork) -> None:
        job = await bench.submit("classify", SOLIDS[:1], COLOURS)

        def broken(*given: Any) -> Any:
            raise RuntimeError("a fault")

        claim = bench.records.claim
        monkeypatch.setattr(bench.records, "claim", broken)
        await bench.work.work(job.id)
        assert bench.job(job.id).entries == job.entries + 1
        monkeypatch.setattr(bench.records, "claim", claim)
        assert (await bench.finish(job.id)).state == "succeeded"

    run(main)


def test_a_job_that_is_gone_needs_no_hand(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        job = await bench.submit("classify", SOLIDS[:1], COLOURS)
        await bench.app_state.jobs.cancel(job.id)
        await bench.app_state.jobs.delete(job.id)
        await bench.work.work(job.id)
        assert bench.blobs() == set()

    run(main)


# ---- what is around the computing ----


class Unstored:
    """The records of a platform, which store nothing before ``store``, or before the block ends."""

    def __init__(self, bench: AtWork, monkeypatch: pytest.MonkeyPatch) -> None:
        self.waiting: list[tuple[Any, Any, Future[None]]] = []
        self._open = False
        self._save = bench.app_state.records.save
        monkeypatch.setattr(bench.app_state.records, "save", self._wait)

    async def __aenter__(self) -> Unstored:
        return self

    async def __aexit__(self, *given: object) -> None:
        self._open = True  # else the platform would wait for them when it stops
        await self.store()

    def _wait(self, rows: Any, then: Any = None) -> Future[None]:
        if self._open:
            return self._save(rows, then)
        self.waiting.append((rows, then, Future()))
        return self.waiting[-1][2]

    async def until(self, count: int) -> None:
        await async_eventually(lambda: len(self.waiting) >= count, f"storing {count}", limit_s=20)

    async def store(self) -> None:
        waiting, self.waiting = self.waiting, []
        for rows, then, future in waiting:
            await asyncio.wrap_future(self._save(rows, then))
            future.set_result(None)


@pytest.mark.parametrize("store", [True, False])
def test_what_is_being_stored_holds_no_place(run: Run, monkeypatch: pytest.MonkeyPatch, store: bool) -> None:
    """One item at once is computed, and the next while it is stored: its answer, or no more than its end."""

    async def main(bench: AtWork) -> None:
        async with Unstored(bench, monkeypatch) as unstored:
            held = Held(bench, monkeypatch)
            held.open.set()
            job = await bench.submit("segment", IMAGES[:3], AREAS, store=store)
            working = asyncio.create_task(bench.work.work(job.id))
            await unstored.until(3)
            assert (held.entered, held.most) == (3, 1)
            assert bench.states(job.id) == ["running"] * 3
            assert bench.work.busy == 3 and not bench.work.computing
        await working
        assert bench.states(job.id) == ["succeeded"] * 3

    run(main, max_items=1)


def test_what_failed_and_is_being_stored_holds_no_place(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(bench: AtWork) -> None:
        async with Unstored(bench, monkeypatch) as unstored:
            job = await bench.submit("segment", [b"no image"] * 3, AREAS)
            working = asyncio.create_task(bench.work.work(job.id))
            await unstored.until(3)
            assert bench.work.busy == 3 and not bench.work.computing
        await working
        assert bench.states(job.id) == ["failed"] * 3

    run(main, max_items=1)


def test_one_that_is_alone_is_so_until_it_is_stored(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(bench: AtWork) -> None:
        async with Unstored(bench, monkeypatch) as unstored:
            held = Held(bench, monkeypatch)
            held.open.set()
            suspect, other = [await bench.submit("segment", IMAGES[:1], AREAS) for _ in range(2)]
            bench.change_item(bench.items(suspect.id)[0].id, deaths=1)
            working = asyncio.create_task(bench.work.work(suspect.id))
            await unstored.until(1)
            following = asyncio.create_task(bench.work.work(other.id))
            await async_eventually(lambda: bench.work.busy == 2)
            await asyncio.sleep(0.05)
            assert (held.entered, len(unstored.waiting)) == (1, 1)
            await unstored.store()
            await unstored.until(1)
            assert held.entered == 2
        await asyncio.gather(working, following)
        assert bench.states(suspect.id) == bench.states(other.id) == ["succeeded"]

    run(main, max_items=3)


def test_threads_that_ask_the_database(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were given, and no others: they have the priority that the database needs."""
    monkeypatch.setattr(executor, "WATCH_S", 0.01)
    monkeypatch.setattr(executor, "REPORT_S", 0.0)
    monkeypatch.setattr(executor, "SEARCH_S", 0.0)
    monkeypatch.setattr(executor, "SLICE_S", 0.0)
    monkeypatch.setattr(item_settler, "FIRST_RETRY_S", 0.0)

    async def main(bench: AtWork) -> None:
        requested: set[tuple[str, bool]] = set()

        def noted(name: str) -> Callable[..., Any]:
            method = getattr(bench.records, name)

            def call(*given: Any) -> Any:
                requested.add((name, threading.current_thread().name.startswith("given")))
                return method(*given)

            return call

        names = ("claim", "requeue", "claimed_by", "running", "fail", "enqueue_entry", "states", "report")
        for name in names:
            monkeypatch.setattr(bench.records, name, noted(name))
        infer, calls = bench.app_state.runner.infer, 0

        async def flaky(*given: Any) -> Any:
            nonlocal calls
            calls += 1
            number = calls
            await asyncio.sleep(0.05)
            if number == 1:
                raise Unavailable("not yet")
            return await infer(*given)

        monkeypatch.setattr(bench.app_state.runner, "infer", flaky)
        with ThreadPoolExecutor(2, thread_name_prefix="given") as threads:
            bench.work = JobExecutor(
                bench.app_state.inference,
                bench.records,
                bench.app_state.job_queue,
                "worker-1",
                max_items=4,
                max_heavy=1,
                threads=threads,
            )
            watching = asyncio.create_task(bench.work.watch())
            job = await bench.finish((await bench.submit("segment", IMAGES[:3], AREAS)).id)
            late = await bench.submit("segment", IMAGES[:1], AREAS, timeout_s=0.001)
            bench.change_job(late.id, state="running", started_at=now() - timedelta(seconds=1))
            assert (await bench.finish(late.id)).state == "failed"
            watching.cancel()
        assert job.state == "succeeded"
        assert requested == {(name, True) for name in names}

    run(main)
