"""A worker's hands on real jobs: every item ends once, with the answer that a request would have got."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from db.job_states import OVER, dead_workers
from db.tables import now
from db.workers import Workers
from ekiben.errors import Conflict, NotFound, Unavailable
from ekiben.ids import LOCAL_OWNER
from models.engine import engine
from services.inference import operations
from services.inference.context import RequestContext
from services.inference.pipeline import ImageSource
from services.inference.stored_images import store_image
from services.jobs import executor
from services.jobs.executor import JobExecutor
from tests import toy_models, toy_sam
from tests.operations import ask
from tests.services.jobs.job_homes import AtWork, at_work, comparable, make_home

COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0))
SOLIDS = [toy_models.encoded(toy_models.solid(color)) for color in COLORS]
IMAGES = [
    *SOLIDS,
    toy_models.encoded(toy_models.noise(40, 30, seed=1)),
    toy_models.encoded(toy_models.noise(70, 50), "JPEG"),
]
COLOURS = {"model": "colours"}
AREAS = {"model": "areas"}
SIZE = (120, 90)
SHAPES = toy_models.encoded(toy_sam.shapes(*SIZE))
CLICKS = [{"points": [[*toy_sam.middle(box), 1]]} for box in toy_sam.boxes_of(*SIZE)[:2]]

CLAIM_SIZE = operations.OPERATIONS["segment"].claim_size
MORE = [IMAGES[number % len(IMAGES)] for number in range(CLAIM_SIZE + 2)]
"""More than a hand claims at once."""

Run = Callable[..., None]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("template"))


@pytest.fixture
def run(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(engine, "reclaim_memory", lambda: None)  # takes longer than most of these tests
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # nobody pulls the plug here
    monkeypatch.setattr(executor, "WATCH_S", 0.05)

    def run(main: Callable[[AtWork], Awaitable[None]], **given: Any) -> None:
        async def whole() -> None:
            async with at_work(template, tmp_path, **given) as bench:
                await asyncio.wait_for(main(bench), 30)

        asyncio.run(whole())

    return run


class Held:
    """The inference of a platform, which stops before it answers. ``entered`` counts those who came so far."""

    def __init__(self, bench: AtWork, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = asyncio.Event()
        self.entered = self.inside = self.most = 0
        infer = bench.app_state.runner.infer

        async def held(*given: Any) -> Any:
            self.entered += 1
            self.inside += 1
            self.most = max(self.most, self.inside)
            try:
                await self.open.wait()
                return await infer(*given)
            finally:
                self.inside -= 1

        monkeypatch.setattr(bench.app_state.runner, "infer", held)

    async def until(self, entered: int) -> None:
        while self.entered < entered:
            await asyncio.sleep(0.005)


def check_files(bench: AtWork, job_id: str) -> int:
    """Every file of the job's answers is stored as its row says, and nothing besides them and the images."""
    items = bench.items(job_id)
    files = [file for made in bench.records.artifacts(LOCAL_OWNER, items).values() for file in made]
    for file in files:
        data = bench.app_state.store.get(file.storage_key)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.bytes, file.sha256)
    images = [bench.app_state.records.image(LOCAL_OWNER, item.image_id).storage_key for item in items if item.image_id]
    waiting = [item.storage_key for item in items if item.storage_key]
    assert bench.blobs() == {*images, *waiting, *(file.storage_key for file in files)}
    return len(files)


# ---- the answers ----


def test_a_batch_is_answered_as_requests_are(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        job = await bench.submit("classify", IMAGES, {**COLOURS, "top_k": 3})
        assert (job.state, job.total, bench.rows()["predictions"]) == ("queued", 6, 0)
        job = await bench.finish(job.id)
        assert (job.state, job.total, job.succeeded, job.failed, job.error) == ("succeeded", 6, 6, 0, None)
        assert job.progress == 1.0 and job.started_at is not None and job.finished_at is not None
        assert bench.rows() == {"images": 6, "predictions": 6, "artifacts": 0}
        items, results = bench.items(job.id), await bench.results(job.id)
        assert [item.filename for item in items] == [f"{n}.png" for n in range(6)]
        for item, result, photo in zip(items, results, IMAGES, strict=True):
            wanted = await ask(bench.app_state, "classify", ImageSource(photo), model="colours", top_k=3, store=False)
            assert result is not None and comparable(result) == comparable(wanted.body)
            row = bench.app_state.records.prediction(LOCAL_OWNER, item.id)  # an item becomes the prediction of its id
            assert (result["id"], row.job_id, row.image_id) == (item.id, job.id, item.image_id)
            assert result["image"]["id"] == item.image_id
            assert (item.state, item.attempts, item.deaths, item.worker_id) == ("succeeded", 1, 0, None)
            image = bench.app_state.records.image(LOCAL_OWNER, row.image_id)
            assert (image.filename, bench.app_state.store.get(image.storage_key)) == (item.filename, photo)
        tops = [result["predictions"][0]["class_name"] for result in results[:4] if result is not None]
        assert tops == ["red", "green", "blue", "dark"]
        assert check_files(bench, job.id) == 0
        assert bench.work.busy == 0

    run(main)


REQUESTED: dict[str, tuple[dict[str, Any], bytes]] = {
    "classify": ({**COLOURS, "top_k": 2}, IMAGES[4]),
    "segment": (AREAS, IMAGES[4]),
    "masks": ({"model": "sam_toy", "prompts": CLICKS}, SHAPES),
    "auto_masks": ({"model": "sam_toy", "points_per_side": 6}, SHAPES),
    "cutouts": ({"model": "sam_toy", "prompts": CLICKS, "padding_px": 2}, SHAPES),
}


@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("operation", list(REQUESTED))
def test_every_operation_answers_as_its_own_route(run: Run, operation: str, store: bool) -> None:
    async def main(bench: AtWork) -> None:
        parameters, photo = REQUESTED[operation]
        wanted = (await ask(bench.app_state, operation, ImageSource(photo), store=store, **parameters)).body
        before = bench.rows()
        job = await bench.finish((await bench.submit(operation, [photo], parameters, kind="request", store=store)).id)
        assert (job.state, job.error) == ("succeeded", None)
        [result] = await bench.results(job.id)
        assert result is not None and set(result) == set(wanted)
        assert comparable(result) == comparable(wanted)
        [item] = bench.items(job.id)
        if store:
            assert bench.rows() == {name: 2 * count for name, count in before.items()}
            row = bench.app_state.records.prediction(LOCAL_OWNER, item.id)
            kept = {row.id: row for row in bench.app_state.records.predictions(LOCAL_OWNER).items}
            twin = next(each for ident, each in kept.items() if ident != item.id)
            assert (row.task, row.model_name, row.model_version) == (twin.task, twin.model_name, twin.model_version)
            assert row.parameters == twin.parameters and row.top_confidence == twin.top_confidence
        else:
            assert bench.rows() == {"images": 0, "predictions": 0, "artifacts": 0}
            assert (result["id"], result["image"]["id"]) == (None, None)
            assert bench.blobs() == {item.storage_key}

    run(main)


def test_not_stored_means_that_removing_the_job_removes_all(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        job = await bench.finish((await bench.submit("segment", IMAGES[:3], AREAS, store=False)).id)
        assert bench.rows() == {"images": 0, "predictions": 0, "artifacts": 0}
        assert len(bench.blobs()) == 3
        assert all(item.result is not None and item.image_id is None for item in bench.items(job.id))
        await bench.app_state.jobs.delete(job.id)
        assert bench.blobs() == set()
        with pytest.raises(NotFound):
            bench.job(job.id)
        assert not bench.app_state.job_queue.has_entries(job.id)

    run(main)


def test_a_job_about_stored_images(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        stored = [
            await store_image(RequestContext(bench.app_state.inference), ImageSource(photo)) for photo in SOLIDS[:2]
        ]
        blobs = bench.blobs()
        with pytest.raises(NotFound, match="no image nowhere"):
            await bench.app_state.jobs.stored_items([stored[0].id, "nowhere"])
        job = await bench.finish((await bench.submit("classify", [], COLOURS, image_ids=[s.id for s in stored])).id)
        results = await bench.results(job.id)
        assert [result["predictions"][0]["class_name"] for result in results if result] == ["red", "green"]
        assert [result["image"]["id"] for result in results if result] == [image.id for image in stored]
        assert (bench.blobs(), bench.rows()["images"]) == (blobs, 2)
        await bench.app_state.jobs.delete(job.id)
        assert (bench.blobs(), bench.rows()["images"]) == (blobs, 2)  # they were uploaded for themselves

    run(main)


# ---- items that fail ----


def test_a_bad_image_fails_alone(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        cut_off = IMAGES[4][:-100]
        job = await bench.finish((await bench.submit("segment", [SOLIDS[0], cut_off, b"no image", b""], AREAS)).id)
        assert (job.state, job.succeeded, job.failed) == ("succeeded", 1, 3)
        items = bench.items(job.id)
        assert [item.state for item in items] == ["succeeded", "failed", "failed", "failed"]
        codes = [item.error and item.error["code"] for item in items]
        assert codes == [None, "bad_image", "bad_image", "bad_image"]
        assert [item.attempts for item in items] == [1, 1, 1, 1]  # what will never pass is not tried again
        assert bench.rows() == {"images": 1, "predictions": 1, "artifacts": 3}
        assert check_files(bench, job.id) == 3

    run(main)


def test_a_job_in_which_nothing_is_good_has_failed(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        batch = await bench.finish((await bench.submit("classify", [b"1", b"2"], COLOURS)).id)
        assert batch.state == "failed" and batch.error is not None
        assert batch.error["code"] == "all_items_failed"
        one = await bench.finish((await bench.submit("classify", [b"1"], COLOURS, kind="request")).id)
        assert one.state == "failed" and one.error is not None
        assert one.error["code"] == "bad_image"  # of a request: what the request itself would have said

    run(main)


def test_an_image_that_was_deleted_meanwhile(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        image = await store_image(RequestContext(bench.app_state.inference), ImageSource(SOLIDS[0]))
        job = await bench.submit("classify", SOLIDS[1:2], COLOURS, image_ids=[image.id])
        bench.app_state.records.delete_image(LOCAL_OWNER, image.id)
        job = await bench.finish(job.id)
        assert (job.state, job.succeeded, job.failed) == ("succeeded", 1, 1)
        [_, item] = bench.items(job.id)
        assert item.error is not None and item.error["code"] == "not_found"

    run(main)


def test_an_image_that_is_deleted_while_it_is_computed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The item cannot be stored any more, so it ends: it must not stay in this worker's hand."""

    monkeypatch.setattr(executor, "FIRST_RETRY_S", 0.005)

    async def main(bench: AtWork) -> None:
        image = await store_image(RequestContext(bench.app_state.inference), ImageSource(SOLIDS[0]))
        job = await bench.submit("classify", SOLIDS[1:2], COLOURS, image_ids=[image.id])
        held = Held(bench, monkeypatch)
        working = asyncio.create_task(bench.work.work(job.id))
        await held.until(2)
        bench.app_state.records.delete_image(LOCAL_OWNER, image.id)
        held.open.set()
        await working
        assert "running" not in bench.states(job.id)
        await asyncio.sleep(0.05)
        job = await bench.finish(job.id)
        assert (job.succeeded, job.failed) == (1, 1)

    run(main)


def test_what_may_pass_is_tried_again_ever_later(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "FIRST_RETRY_S", 0.04)
    monkeypatch.setattr(executor, "MAX_TRIES", 4)

    async def main(bench: AtWork) -> None:
        async def away(*given: Any) -> Any:
            raise Unavailable("the store is away")

        monkeypatch.setattr(bench.app_state.runner, "infer", away)
        job = await bench.submit("segment", SOLIDS[:1], AREAS, kind="request")
        entries_before = job.entries
        for attempt in range(1, 4):
            begun = now()
            await bench.work.work(job.id)
            [item] = bench.items(job.id)
            assert (item.state, item.attempts, item.worker_id, item.deaths) == ("queued", attempt, None, 0)
            assert item.not_before is not None
            wait_s = 0.04 * 2 ** (attempt - 1)
            assert timedelta(seconds=0.8 * wait_s) <= item.not_before - begun
            assert item.not_before - now() <= timedelta(seconds=1.2 * wait_s)
            assert bench.job(job.id).entries == entries_before + attempt  # one that goes on after the wait
            assert bench.app_state.job_queue.has_entries(job.id)
            await asyncio.sleep(max(0.0, (item.not_before - now()).total_seconds()) + 0.005)
        await bench.work.work(job.id)
        [item] = bench.items(job.id)
        assert (item.state, item.attempts) == ("failed", 4)
        assert item.error == {"code": "unavailable", "message": "the store is away"}
        job = bench.job(job.id)
        assert (job.state, job.error) == ("failed", item.error)
        assert bench.rows() == {"images": 0, "predictions": 0, "artifacts": 0}

    run(main)


def test_nothing_is_begun_before_its_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "FIRST_RETRY_S", 30.0)

    async def main(bench: AtWork) -> None:
        async def away(*given: Any) -> Any:
            raise Unavailable("the store is away")

        monkeypatch.setattr(bench.app_state.runner, "infer", away)
        job = await bench.submit("segment", SOLIDS[:1], AREAS)
        for number in (1, 2):
            await bench.work.work(job.id)
            assert [(item.state, item.attempts) for item in bench.items(job.id)] == [("queued", 1)]
            assert bench.job(job.id).entries == job.entries + number

    run(main)


def test_what_passes_succeeds_after_all(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "FIRST_RETRY_S", 0.005)

    async def main(bench: AtWork) -> None:
        infer, calls = bench.app_state.runner.infer, 0

        async def flaky(*given: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls <= 2:
                raise Unavailable("not yet")
            return await infer(*given)

        monkeypatch.setattr(bench.app_state.runner, "infer", flaky)
        job = await bench.submit("segment", SOLIDS[:1], AREAS)
        for _ in range(3):
            await bench.work.work(job.id)
            await asyncio.sleep(0.03)
        job = bench.job(job.id)
        assert (job.state, job.succeeded, job.failed) == ("succeeded", 1, 0)
        assert [(item.attempts, item.error, item.not_before) for item in bench.items(job.id)] == [(3, None, None)]
        assert check_files(bench, job.id) == 3

    run(main)


def test_an_unexpected_error_is_internal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(bench: AtWork) -> None:
        async def broken(*given: Any) -> Any:
            raise ZeroDivisionError("secret detail")

        monkeypatch.setattr(bench.app_state.runner, "infer", broken)
        job = await bench.finish((await bench.submit("classify", SOLIDS[:2], COLOURS)).id)
        assert (job.state, job.failed) == ("failed", 2)
        for item in bench.items(job.id):
            assert item.error is not None and item.error["code"] == "internal_error"
            assert "secret" not in str(item.error) and "Zero" not in str(item.error)
            assert item.attempts == 1

    run(main)


# ---- jobs that end before their items ----


def test_a_cancelled_job_is_dropped(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(bench: AtWork) -> None:
        held = Held(bench, monkeypatch)
        watching = asyncio.create_task(bench.work.watch())
        job = await bench.submit("segment", MORE, AREAS)
        working = asyncio.create_task(bench.work.work(job.id))
        await held.until(1)
        assert bench.work.busy == CLAIM_SIZE  # one inside, the others at the gate
        assert (held.entered, bench.states(job.id).count("running")) == (1, CLAIM_SIZE)
        cancelled = await bench.app_state.jobs.cancel(job.id)
        assert cancelled.state == "cancelled"
        await asyncio.wait_for(working, 1.5)
        assert (held.inside, bench.work.busy) == (0, 0)
        assert bench.states(job.id) == ["cancelled"] * len(MORE)
        assert bench.rows() == {"images": 0, "predictions": 0, "artifacts": 0}
        assert bench.blobs() == {item.storage_key for item in bench.items(job.id)}  # the images: it may be retried
        assert not bench.app_state.job_queue.has_entries(job.id)
        held.open.set()
        retried = await bench.app_state.jobs.retry(job.id)
        assert (retried.state, retried.attempts) == ("queued", 1)
        job = await bench.finish(job.id)
        assert (job.state, job.succeeded, job.attempts) == ("succeeded", len(MORE), 2)
        assert check_files(bench, job.id) == 3 * len(MORE)
        watching.cancel()

    run(main, places=1)


def test_what_has_ended_stays_when_a_job_is_cancelled(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(bench: AtWork) -> None:
        watching = asyncio.create_task(bench.work.watch())
        job = await bench.submit("segment", MORE, AREAS)
        monkeypatch.setattr(executor, "SLICE_S", 0.0)
        await bench.work.work(job.id)  # one window, then others have their turn
        assert bench.states(job.id) == ["succeeded"] * CLAIM_SIZE + ["queued"] * 2
        await bench.app_state.jobs.cancel(job.id)
        await bench.work.work(job.id)
        job = bench.job(job.id)
        assert (job.state, job.succeeded) == ("cancelled", CLAIM_SIZE)
        assert bench.states(job.id) == ["succeeded"] * CLAIM_SIZE + ["cancelled"] * 2
        assert check_files(bench, job.id) == 3 * CLAIM_SIZE
        with pytest.raises(Conflict):
            await bench.app_state.jobs.cancel(job.id)
        watching.cancel()

    run(main)


def test_a_worker_that_stops_hands_back(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(bench: AtWork) -> None:
        held = Held(bench, monkeypatch)
        job = await bench.submit("segment", IMAGES[:3], AREAS)
        working = asyncio.create_task(bench.work.work(job.id))
        await held.until(2)
        await bench.work.stop(0.05)
        await asyncio.wait_for(working, 1)
        for item in bench.items(job.id):
            assert (item.state, item.deaths, item.worker_id, item.not_before) == ("queued", 0, None, None)
        after = bench.job(job.id)
        assert (after.state, after.deaths, after.entries) == ("running", 0, job.entries + 1)
        assert bench.app_state.job_queue.has_entries(job.id)
        assert bench.rows() == {"images": 0, "predictions": 0, "artifacts": 0}
        held.open.set()
        bench.work = bench.another_worker()
        done = await bench.finish(job.id)
        assert (done.state, done.succeeded) == ("succeeded", 3)
        assert check_files(bench, job.id) == 9

    run(main, places=2)


def test_a_worker_that_stops_finishes_what_it_can(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(bench: AtWork) -> None:
        held = Held(bench, monkeypatch)
        job = await bench.submit("segment", IMAGES[:3], AREAS)
        working = asyncio.create_task(bench.work.work(job.id))
        await held.until(2)
        asyncio.get_running_loop().call_later(0.1, held.open.set)
        await bench.work.stop(5)
        await working
        assert bench.states(job.id) == ["succeeded", "succeeded", "queued"]
        assert held.entered == 2  # nothing was begun any more
        assert bench.job(job.id).entries == job.entries + 1
        await bench.work.work(job.id)  # nor ever again
        assert held.entered == 2

    run(main, places=2)


def test_a_job_whose_time_is_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(bench: AtWork) -> None:
        held = Held(bench, monkeypatch)
        job = await bench.submit("segment", MORE, AREAS, timeout_s=0.15)
        working = asyncio.create_task(bench.work.work(job.id))
        await held.until(CLAIM_SIZE)
        await asyncio.sleep(0.2)
        held.open.set()
        await working
        job = bench.job(job.id)
        assert job.state == "failed" and job.error is not None and job.error["code"] == "timed_out"
        assert "0.15 s" in job.error["message"]
        # Those in hand could end; none was begun after the end.
        assert bench.states(job.id) == ["succeeded"] * CLAIM_SIZE + ["cancelled"] * 2
        assert (job.succeeded, held.entered) == (CLAIM_SIZE, CLAIM_SIZE)
        retried = await bench.app_state.jobs.retry(job.id)
        assert (retried.state, retried.error, retried.failed) == ("queued", None, 0)
        job = await bench.finish(job.id)
        assert (job.state, job.succeeded) == ("succeeded", len(MORE))

    run(main, places=CLAIM_SIZE)


def test_what_waits_at_the_gate_when_time_is_up_is_not_begun(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(bench: AtWork) -> None:
        held = Held(bench, monkeypatch)
        job = await bench.submit("segment", IMAGES[:3], AREAS, timeout_s=0.15)
        working = asyncio.create_task(bench.work.work(job.id))
        await held.until(1)
        assert bench.states(job.id) == ["running"] * 3
        await asyncio.sleep(0.2)
        held.open.set()
        await working
        job = await bench.finish(job.id)
        assert job.state == "failed" and job.error is not None and job.error["code"] == "timed_out"
        assert (job.succeeded, held.entered) == (1, 1)
        assert sorted(bench.states(job.id)) == ["cancelled", "cancelled", "succeeded"]

    run(main, places=1)


def test_time_is_not_up_while_another_worker_has_an_item(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(bench: AtWork) -> None:
        held = Held(bench, monkeypatch)
        job = await bench.submit("segment", IMAGES[:1], AREAS, timeout_s=0.1)
        working = asyncio.create_task(bench.work.work(job.id))
        await held.until(1)
        await asyncio.sleep(0.12)
        other = bench.another_worker()
        await other.work(job.id)
        assert bench.job(job.id).state == "running"
        assert bench.job(job.id).entries == job.entries + 1  # somebody looks again
        held.open.set()
        await working
        assert bench.job(job.id).state == "succeeded"

    run(main)


# ---- workers that die ----


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
        while not rows:
            await asyncio.sleep(0.005)
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

    run(main, places=3)


@pytest.mark.parametrize("seed", range(2))
def test_workers_that_are_thought_dead_at_any_moment(run: Run, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """They go on like ghosts beside those who took over: every item ends once, and no file is lost or left over."""
    chance = random.Random(seed)
    monkeypatch.setattr(executor, "FIRST_RETRY_S", 0.001)
    monkeypatch.setattr(executor, "MAX_TRIES", 1000)
    monkeypatch.setattr(dead_workers, "MAX_DEATHS", 1000)

    async def main(bench: AtWork) -> None:
        infer, workers = bench.app_state.runner.infer, Workers(bench.app_state.database)

        async def moody(*given: Any) -> Any:
            await asyncio.sleep(chance.random() * 0.02)
            if chance.random() < 0.1:
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

    run(main, places=3)


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

    run(main, places=4)


def test_answers_that_were_deleted_since(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        job = await bench.finish((await bench.submit("segment", IMAGES[:3], AREAS)).id)
        item = bench.items(job.id)[1]
        bench.app_state.records.delete_prediction(LOCAL_OWNER, item.id)
        results = await bench.results(job.id)
        assert [result is None for result in results] == [False, True, False]
        assert bench.states(job.id) == ["succeeded"] * 3
        with pytest.raises(Conflict):
            await bench.app_state.jobs.retry(job.id)

    run(main)


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
        await bench.work.work(job.id)  # it is over: no hand is needed any more
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

    async def until(self, count: int, seconds: float = 5.0) -> None:
        end = time.monotonic() + seconds
        while len(self.waiting) < count:
            assert time.monotonic() < end, f"{len(self.waiting)} came to be stored, not {count}"
            await asyncio.sleep(0.005)

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

    run(main, places=1)


def test_what_failed_and_is_being_stored_holds_no_place(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(bench: AtWork) -> None:
        async with Unstored(bench, monkeypatch) as unstored:
            job = await bench.submit("segment", [b"no image"] * 3, AREAS)
            working = asyncio.create_task(bench.work.work(job.id))
            await unstored.until(3, seconds=1)
            assert bench.work.busy == 3 and not bench.work.computing
        await working
        assert bench.states(job.id) == ["failed"] * 3

    run(main, places=1)


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
            while bench.work.busy < 2:
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.05)
            assert (held.entered, len(unstored.waiting)) == (1, 1)
            await unstored.store()
            await unstored.until(1)
            assert held.entered == 2
        await asyncio.gather(working, following)
        assert bench.states(suspect.id) == bench.states(other.id) == ["succeeded"]

    run(main, places=3)


def test_threads_that_ask_the_database(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were given, and no others: they have the priority that the database needs."""
    monkeypatch.setattr(executor, "WATCH_S", 0.01)
    monkeypatch.setattr(executor, "REPORT_S", 0.0)
    monkeypatch.setattr(executor, "SEARCH_S", 0.0)
    monkeypatch.setattr(executor, "SLICE_S", 0.0)
    monkeypatch.setattr(executor, "FIRST_RETRY_S", 0.0)

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
                places=4,
                heavy_places=1,
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
