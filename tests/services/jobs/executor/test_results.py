"""A worker's executor on real jobs: every item ends once, with the answer that a request would have got."""

from __future__ import annotations

from typing import Any

import pytest

from ekiben.errors import Conflict, NotFound
from ekiben.ids import LOCAL_OWNER
from services.inference.context import RequestContext
from services.inference.pipeline import ImageSource
from services.inference.stored_images import store_image
from tests.operations import ask
from tests.services.jobs.executor.inputs import AREAS, CLICKS, COLOURS, IMAGES, SHAPES, SOLIDS, Run, check_files
from tests.services.jobs.job_homes import AtWork, comparable


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
