"""Workers that die or lose an item: every item still ends exactly once."""

from __future__ import annotations

import asyncio
import random
from concurrent.futures import Future
from typing import Any

import pytest

from db.job_states import OVER, dead_workers
from db.workers import Workers
from ekiben.errors import Conflict, Unavailable
from ekiben.ids import LOCAL_OWNER
from services.inference.pipeline import ImageSource
from services.jobs import item_settler
from tests.operations import ask
from tests.services.jobs.executor.inputs import AREAS, IMAGES, Held, Run, check_files
from tests.services.jobs.job_homes import AtWork, comparable
from tests.waiting import async_eventually


def test_a_repeat_writes_over_what_was_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker dies between its last file and the commit."""

    async def main(bench: AtWork) -> None:
        workers, save = Workers(bench.app_state.database), bench.app_state.records.save
        await asyncio.to_thread(workers.enter, bench.worker_id)
        never: Future[None] = Future()
        rows: list[Any] = []

        def dead(given: Any, then: Any = None) -> Future[None]:
            rows.extend(given)
            return never

        monkeypatch.setattr(bench.app_state.records, "save", dead)
        job = await bench.submit("segment", IMAGES[4:5], AREAS)
        dying = asyncio.create_task(bench.work.work(job.id))
        await async_eventually(lambda: rows)
        written = bench.blobs()
        assert len(written) == 4  # the image and three files
        ids = sorted(values["id"] for _, values in rows)
        assert workers.fail_silent(0.0) == {bench.worker_id: [job.id]}
        assert [(item.state, item.deaths) for item in bench.items(job.id)] == [("queued", 1)]

        monkeypatch.setattr(bench.app_state.records, "save", save)
        bench.work = bench.another_worker()
        done = await bench.finish(job.id)
        assert (done.state, done.succeeded, done.deaths) == ("succeeded", 1, 0)
        assert bench.blobs() == written
        [item] = bench.items(job.id)
        files = bench.records.artifacts(LOCAL_OWNER, [item])[item.id]
        assert sorted([item.id, item.image_id or "", *(file.id for file in files)]) == ids
        assert check_files(bench, job.id) == 3

        never.set_exception(Conflict("item lost", code="item_lost"))  # it was only asleep
        await dying
        assert check_files(bench, job.id) == 3
        assert bench.job(job.id).succeeded == 1

    run(main)


@pytest.mark.parametrize("store", [True, False])
def test_an_item_that_was_lost_is_not_counted(run: Run, monkeypatch: pytest.MonkeyPatch, store: bool) -> None:
    """Taken over while it was computed: the winner's answer and files stay."""

    async def main(bench: AtWork) -> None:
        held = Held(bench, monkeypatch)
        job = await bench.submit("segment", IMAGES[4:6], AREAS, store=store)
        slow = asyncio.create_task(bench.work.work(job.id))
        await held.until(2)
        for item in bench.items(job.id):
            bench.change_item(item.id, state="queued", worker_id=None)
        winner = bench.another_worker()
        winning = asyncio.create_task(winner.work(job.id))
        await held.until(4)
        held.open.set()
        await asyncio.gather(slow, winning)
        done = bench.job(job.id)
        assert (done.state, done.succeeded, done.failed, done.total) == ("succeeded", 2, 0, 2)
        assert [item.attempts for item in bench.items(job.id)] == [2, 2]
        if store:
            assert bench.rows() == {"images": 2, "predictions": 2, "artifacts": 6}
            assert check_files(bench, job.id) == 6
        for result, photo in zip(await bench.results(job.id), IMAGES[4:6], strict=True):
            wanted = await ask(bench.app_state, "segment", ImageSource(photo), model="areas", store=False)
            assert result is not None and comparable(result["classes"]) == comparable(wanted.body["classes"])

    run(main)


def test_an_item_that_fails_after_it_was_lost_changes_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(bench: AtWork) -> None:
        job = await bench.submit("segment", [b"no image"], AREAS)
        claim = bench.records.claim

        def claim_and_lose(*given: Any) -> Any:
            found = claim(*given)
            for item in found[1]:
                bench.change_item(item.id, worker_id="another")
            return found

        monkeypatch.setattr(bench.records, "claim", claim_and_lose)
        await bench.work.work(job.id)
        [item] = bench.items(job.id)
        assert (item.state, item.worker_id, item.error) == ("running", "another", None)
        assert (bench.job(job.id).failed, bench.job(job.id).state) == (0, "running")

    run(main)


def test_an_item_that_killed_a_worker_runs_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(bench: AtWork) -> None:
        infer = bench.app_state.runner.infer
        inside: list[bytes] = []
        order: list[bytes] = []

        async def watched(key: Any, request: Any, deadline: float, *more: Any) -> Any:
            inside.append(request.image)
            order.append(request.image)
            assert IMAGES[5] not in inside or len(inside) == 1
            await asyncio.sleep(0.01)
            answer = await infer(key, request, deadline, *more)
            assert IMAGES[5] not in inside or len(inside) == 1
            inside.remove(request.image)
            return answer

        monkeypatch.setattr(bench.app_state.runner, "infer", watched)
        suspect = await bench.submit("segment", [IMAGES[5], *IMAGES[:2]], AREAS)
        others = await bench.submit("segment", IMAGES[:4], AREAS)
        bench.change_item(bench.items(suspect.id)[0].id, deaths=1)
        await asyncio.gather(*(bench.work.work(id) for id in (suspect.id, others.id, suspect.id)))
        assert bench.states(suspect.id) == ["succeeded"] * 3
        assert bench.states(others.id) == ["succeeded"] * 4
        assert len(order) == 7

    run(main, max_items=3)


@pytest.mark.parametrize("seed", range(2))
def test_workers_that_are_thought_dead_at_any_moment(run: Run, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """They go on like ghosts beside those who took over: every item ends once, and no file is lost or left over."""
    chance = random.Random(seed)
    monkeypatch.setattr(item_settler, "FIRST_RETRY_S", 0.001)
    monkeypatch.setattr(item_settler, "MAX_TRIES", 1000)
    monkeypatch.setattr(dead_workers, "MAX_DEATHS", 1000)

    async def main(bench: AtWork) -> None:
        infer, workers = bench.app_state.runner.infer, Workers(bench.app_state.database)

        async def moody(*given: Any) -> Any:
            await asyncio.sleep(chance.random() * 0.02)
            if chance.random() < 0.1 or not deaths:  # it does not end before a worker was thought dead
                raise Unavailable("not now")
            answer = await infer(*given)
            await asyncio.sleep(chance.random() * 0.02)
            return answer

        monkeypatch.setattr(bench.app_state.runner, "infer", moody)
        images = [IMAGES[number % 6] for number in range(16)]
        job = await bench.submit("segment", [*images, b"no image"], AREAS)
        tasks: list[asyncio.Task[None]] = []
        deaths = 0
        while bench.job(job.id).state not in OVER:
            work = bench.another_worker()
            worker_id = bench.worker_id
            await asyncio.to_thread(workers.enter, worker_id)
            tasks += [asyncio.create_task(work.work(job.id)) for _ in range(2)]
            await asyncio.sleep(chance.random() * 0.15)
            if deaths < 6:
                deaths += bool(await asyncio.to_thread(workers.fail_worker, worker_id))
            assert len(tasks) < 400
        await asyncio.gather(*tasks)
        monkeypatch.setattr(bench.app_state.runner, "infer", infer)
        assert deaths >= 1
        done = bench.job(job.id)
        assert (done.state, done.total, done.succeeded, done.failed) == ("succeeded", 17, 16, 1)
        assert bench.states(job.id) == ["succeeded"] * 16 + ["failed"]
        assert bench.rows() == {"images": 16, "predictions": 16, "artifacts": 48}
        assert check_files(bench, job.id) == 48
        for result, photo in zip((await bench.results(job.id))[:6], IMAGES, strict=True):
            wanted = await ask(bench.app_state, "segment", ImageSource(photo), model="areas", store=False)
            assert result is not None and comparable(result["classes"]) == comparable(wanted.body["classes"])
        events, ended = await bench.app_state.jobs.events(job.id, 0)
        assert ended and [event.number for event in events] == list(range(1, len(events) + 1))
        assert [e.data["state"] for e in events if e.kind == "state"] == ["queued", "running", "succeeded"]
        assert len([event for event in events if event.kind == "worker_lost"]) == deaths

    run(main, max_items=3)
