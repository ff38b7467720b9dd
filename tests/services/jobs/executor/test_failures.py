"""Items that fail: alone, for good, or until a retry succeeds."""

from __future__ import annotations

import asyncio
import errno
from datetime import timedelta
from typing import Any

import pytest

from db.tables import now
from ekiben.errors import Unavailable
from ekiben.ids import LOCAL_OWNER
from services.inference.context import RequestContext
from services.inference.pipeline import ImageSource
from services.inference.stored_images import store_image
from services.jobs import item_settler
from tests.services.jobs.executor.inputs import AREAS, COLOURS, IMAGES, SOLIDS, Held, Run, check_files
from tests.services.jobs.job_homes import AtWork


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
    """The item cannot be stored any more, so it ends: it must not stay claimed by this worker."""

    monkeypatch.setattr(item_settler, "FIRST_RETRY_S", 0.005)

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
        job = await bench.finish(job.id)
        assert (job.succeeded, job.failed) == (1, 1)

    run(main)


def test_what_may_pass_is_tried_again_ever_later(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_settler, "FIRST_RETRY_S", 1000.0)
    monkeypatch.setattr(item_settler, "MAX_TRIES", 4)

    async def main(bench: AtWork) -> None:
        async def away(*given: Any) -> Any:
            raise Unavailable("the store is away")

        monkeypatch.setattr(bench.app_state.runner, "infer", away)
        job = await bench.submit("segment", SOLIDS[:1], AREAS, kind="request")
        entries_before = job.entries
        for attempt in range(1, 4):
            await bench.work.work(job.id)
            [item] = bench.items(job.id)
            assert (item.state, item.attempts, item.worker_id, item.deaths) == ("queued", attempt, None, 0)
            assert item.not_before is not None
            wait = timedelta(seconds=1000 * 2 ** (attempt - 1))
            assert 0.7 * wait < item.not_before - now() <= 1.2 * wait  # 0.8 to 1.2, less the time of this test
            assert bench.job(job.id).entries == entries_before + attempt  # one that goes on after the wait
            assert bench.app_state.job_queue.has_entries(job.id)
            bench.change_item(item.id, not_before=now())  # the wait is over
        await bench.work.work(job.id)
        [item] = bench.items(job.id)
        assert (item.state, item.attempts) == ("failed", 4)
        assert item.error == {"code": "unavailable", "message": "the store is away"}
        job = bench.job(job.id)
        assert (job.state, job.error) == ("failed", item.error)
        assert bench.rows() == {"images": 0, "predictions": 0, "artifacts": 0}

    run(main)


def test_nothing_is_begun_before_its_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(item_settler, "FIRST_RETRY_S", 30.0)

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
    monkeypatch.setattr(item_settler, "FIRST_RETRY_S", 0.005)

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


def test_items_wait_for_space_however_often_there_is_none(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full for longer than the tries of other temporary errors loses nothing."""
    monkeypatch.setattr(item_settler, "FULL_RETRY_S", 0.01)
    monkeypatch.setattr(item_settler, "MAX_TRIES", 2)

    async def main(bench: AtWork) -> None:
        put, calls = bench.app_state.store.put, 0

        def full(*given: Any) -> None:
            nonlocal calls
            calls += 1
            if calls <= 8:
                raise OSError(errno.ENOSPC, "No space left on device")
            put(*given)

        submitted = await bench.submit("segment", SOLIDS[:1], AREAS)
        monkeypatch.setattr(bench.app_state.store, "put", full)
        job = await bench.finish(submitted.id, entries=30)
        assert (job.state, job.succeeded, job.failed) == ("succeeded", 1, 0)
        [item] = bench.items(job.id)
        assert (item.tries, item.error) == (0, None)
        assert calls > 8

    run(main)
