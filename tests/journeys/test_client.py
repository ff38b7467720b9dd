"""The Python client against real servers: over either protocol, waiting or awaiting, the same right answers."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ekiben._client.masks import AutoMasks, DroppedMask, FoundMask, Progress
from ekiben.client import AsyncClient, Client, EkibenError, JobFailed, TimedOut
from tests import toy_models
from tests.ekiben.clients import connected
from tests.journeys.jobs.job_client import plain
from tests.journeys.sam.mask_answers import IMAGE, PROMPTS, check_mask, expected
from tests.serving import Server
from tests.toy_sam import boxes_of, middle

NOISE = toy_models.noise(40, 31, seed=7)
PIXELS = np.asarray(NOISE)
UNKNOWN = "01890000-0000-7000-8000-000000000000"
SAM = {"model": "sam_toy", "store": False}
LONG = {**SAM, "points_per_side": 100, "pred_iou_thresh": 0, "stability_score_thresh": 1}
"""Automatic masks that take some twenty seconds, next to none of which is left."""
WAYS = [f"{protocol} {kind}" for protocol in ("http", "grpc") for kind in ("sync", "async")]
SOME_WAYS = pytest.mark.parametrize("client", ["http sync", "grpc async"], indirect=True)
"""For what takes seconds."""


@pytest.fixture(params=WAYS)
def client(sam_server: Server, request: pytest.FixtureRequest) -> Iterator[Any]:
    protocol, kind = request.param.split()
    with connected(kind, address(sam_server, protocol)) as one:
        yield one


def address(server: Server, protocol: str) -> str:
    return server.url if protocol == "http" else f"grpc://{server.grpc}"


@pytest.fixture
def other(sam_server: Server) -> Iterator[Client]:
    """Over HTTP: what was asked over another protocol is compared with what this is told."""
    with Client(sam_server.url) as client:
        yield client


def strongest(pixels: np.ndarray) -> np.ndarray:
    """The class map of toys.AREAS, in numpy: the strongest channel where it is above one half, else background."""
    levels = pixels.astype(np.float64) / 255
    return np.where(levels.max(axis=2) > 0.5, levels.argmax(axis=2) + 1, 0)


def test_classes(client: Any, other: Client, tmp_path: Path) -> None:
    path = tmp_path / "noise.png"
    NOISE.save(path)
    exact = toy_models.solid((200, 30, 90))
    logits = toy_models.logits_of(np.asarray(exact))
    truth = np.exp(logits) / np.exp(logits).sum()
    answer = client.classify(exact, model="colours", top_k=4, store=False)
    assert answer.id is None and answer.image.id is None
    assert [score.class_index for score in answer.predictions] == np.argsort(-truth).tolist()
    assert [score.confidence for score in answer.predictions] == pytest.approx(np.sort(truth)[::-1], abs=1e-5)
    # However the image is given, the answer is the same; and it is stored.
    answers = [
        client.classify(given, model="colours")
        for given in (path, path.read_bytes(), io.BytesIO(path.read_bytes()), NOISE, PIXELS)
    ]
    assert {str(plain(one.raw)) for one in answers} == {str(plain(answers[0].raw))}
    row = other.prediction(answers[0].id)
    assert (row.task, row.model.name, row.top_class) == ("classify", "colours", answers[0].top.class_name)
    assert row.result == {"predictions": answers[0].raw["predictions"]}
    assert other.image(row.image.id or "").filename == "noise.png"
    again = client.classify(image_id=row.image.id, model="colours", version=1)
    assert plain(again.raw) == plain(answers[0].raw)
    assert again.image == row.image


def test_class_maps(client: Any, other: Client) -> None:
    big = toy_models.solid((0, 255, 0), toy_models.SIDE, toy_models.SIDE)
    big.paste((255, 0, 0), (0, 0, 16, 8))
    truth = strongest(np.asarray(big))
    for store in (True, False):
        answer = client.segment(big, model="areas", store=store)
        assert answer.class_map.dtype == np.uint8
        assert np.array_equal(answer.class_map, truth)
        assert {area.class_name: area.pixels for area in answer.classes} == {"green": 896, "red": 128}
        assert np.array_equal(answer.of("red"), truth == 1)
        assert (answer.id is None) == (answer.artifacts is None) == (not store)
    kept = client.segment(NOISE, model="areas", class_map=False)
    assert kept.class_map is None
    stored = np.asarray(Image.open(io.BytesIO(client.artifact(kept.artifacts["mask"]))))
    assert np.array_equal(np.asarray(client.render(NOISE, "mask", model="areas", store=False)), stored)
    overlay = client.render(NOISE, "overlay", model="areas", store=False)
    there = np.asarray(Image.open(io.BytesIO(other.artifact((kept.artifacts or {})["overlay"]))))
    assert np.array_equal(np.asarray(overlay), there)


def test_prompts(client: Any) -> None:
    answer = client.masks(IMAGE, PROMPTS, model="sam_toy")
    assert len(answer.results) == len(PROMPTS)
    for result, prompt in zip(answer.results, PROMPTS, strict=True):
        for mask, truth in zip(result.masks, expected(prompt), strict=True):
            runs = mask.segmentation
            info = {"segmentation": runs, "predicted_iou": mask.predicted_iou, "area": mask.area}
            check_mask({**info, "bbox": list(mask.bbox), "stability_score": mask.stability_score}, truth)
            assert mask.array.shape == (427, 640) and mask.array.sum() == mask.area
            clear = np.abs(truth.logits) > 1e-3
            assert np.array_equal(mask.array[clear], truth.mask[clear])
    refined = client.masks(IMAGE, points=PROMPTS[0]["points"][0][:2], mask_input=answer.best[0], multimask=False, **SAM)
    assert len(refined.results[0]) == 1 and refined.best[0].array.any()
    boxes = np.array(boxes_of(*IMAGE.size))
    several = client.masks(IMAGE, boxes=boxes, **SAM)
    for result, box in zip(several.results, boxes.tolist(), strict=True):
        truth = expected({"box": box})[0]
        clear = np.abs(truth.logits) > 1e-3
        assert np.array_equal(result[0].array[clear], truth.mask[clear])
    (whole,) = client.masks(IMAGE, **SAM).results
    assert whole.prompt == 0


def test_everything(client: Any, other: Client) -> None:
    answer = client.auto_masks(IMAGE, points_per_side=6, **SAM)
    there = other.auto_masks(IMAGE, points_per_side=6, model="sam_toy", store=False)
    assert plain(answer.raw) == plain(there.raw)
    assert answer.masks == there.masks and len(answer.masks) >= 4
    areas = [mask.area for mask in answer.masks]
    assert areas == sorted(areas, reverse=True)
    assert answer.parameters["points_per_side"] == 6


@pytest.mark.parametrize("client", ["grpc sync", "grpc async"], indirect=True)
def test_everything_as_it_is_found(client: Any, other: Client) -> None:
    *told, finished = list(client.stream_auto_masks(IMAGE, points_per_side=6, **SAM))
    there = other.auto_masks(IMAGE, points_per_side=6, model="sam_toy", store=False)
    assert isinstance(finished, AutoMasks) and finished.masks == there.masks
    found = {event.number: event.mask for event in told if isinstance(event, FoundMask)}
    dropped = {event.number for event in told if isinstance(event, DroppedMask)}
    left = [mask.segmentation for number, mask in found.items() if number not in dropped]
    assert sorted(map(str, left)) == sorted(str(mask.segmentation) for mask in there.masks)
    shares = [event.share for event in told if isinstance(event, Progress)]
    assert shares == sorted(shares) and all(0 <= share <= 1 for share in shares)


def test_cutouts(client: Any, other: Client) -> None:
    box = boxes_of(*IMAGE.size)[1]
    requested = {"points": middle(box), "padding_px": 2, **SAM}
    (found,) = client.cutouts(IMAGE, **requested).cutouts
    (there,) = other.cutouts(IMAGE, **requested).cutouts  # type: ignore[arg-type]
    assert np.array_equal(np.asarray(found.image), np.asarray(there.image))
    assert (found.image.mode, found.image.size) == ("RGBA", (found.width, found.height))
    alpha = np.asarray(found.image)[:, :, 3]
    assert (alpha > 0).sum() == found.area
    x, y = found.bbox[:2]
    inside = np.argwhere(alpha == 255)[0]
    assert tuple(np.asarray(IMAGE)[y + inside[0], x + inside[1]]) == tuple(np.asarray(found.image)[tuple(inside)][:3])


@SOME_WAYS
def test_jobs(client: Any, other: Client) -> None:
    direct = client.masks(IMAGE, points=(80, 90), model="sam_toy")
    requested = client.submit("masks", IMAGE, points=(80, 90), model="sam_toy", priority=7)
    assert (requested.kind, requested.operation, requested.priority) == ("request", "masks", 7)
    done = client.wait(requested, timeout_s=30)
    assert (done.id, done.state, done.counts.done, done.over) == (requested.id, "succeeded", 1, True)
    answer = client.result(done)
    assert plain(answer.raw["results"]) == plain(direct.raw["results"])
    assert np.array_equal(answer.best[0].array, direct.best[0].array)
    events = list(client.watch(done))
    assert [event.number for event in events] == list(range(1, len(events) + 1))
    assert [event.data["state"] for event in events if event.kind == "state"] == ["queued", "running", "succeeded"]
    assert list(client.watch(done, after=events[0].number)) == events[1:]
    assert client.job(done.id) == other.job(done.id) == done
    assert done.id in [job.id for job in client.jobs(kind="request", limit=5)]
    (item,) = client.items(done)
    assert (item.state, item.answer.best[0].area) == ("succeeded", direct.best[0].area)

    segmented = client.result(client.wait(client.submit("segment", NOISE, model="areas")))
    assert np.array_equal(segmented.class_map, client.segment(NOISE, model="areas").class_map)
    cut = client.result(client.wait(client.submit("cutouts", IMAGE, points=(80, 90), model="sam_toy")))
    assert cut.cutouts[0].image.size == (cut.cutouts[0].width, cut.cutouts[0].height)

    with pytest.raises(JobFailed) as failed:
        client.wait(client.submit("classify", toy_models.encoded(NOISE, "JPEG")[:400], model="colours"))
    assert failed.value.code == "bad_image"
    same = [client.submit("classify", NOISE, model="colours", idempotency_key=f"k-{id(client)}").id for _ in range(2)]
    assert same[0] == same[1]


@SOME_WAYS
def test_a_job_is_cancelled(client: Any, other: Client) -> None:
    requested = client.submit("auto_masks", toy_models.noise(900, 700, seed=1), **LONG)
    with pytest.raises(TimedOut) as late:
        client.wait(requested, timeout_s=0.3)
    assert late.value.code == "wait_timeout"
    assert client.cancel(requested).state in ("cancelled", "running")
    with pytest.raises(JobFailed) as stopped:
        client.wait(requested, timeout_s=30)
    assert (stopped.value.code, stopped.value.job.state) == ("cancelled", "cancelled")
    other.delete_job(requested)
    with pytest.raises(EkibenError) as gone:
        client.job(requested)
    assert gone.value.code == "not_found"


def test_refusals(client: Any) -> None:
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("bad_image", {"image": b"no image at all", "model": "colours"}),
        ("not_found", {"image": NOISE, "model": "nobody"}),
        ("not_found", {"image_id": UNKNOWN, "model": "colours"}),
        ("bad_request", {"image": NOISE, "model": "areas"}),
        ("bad_request", {"image": NOISE, "model": "colours", "top_k": 99}),
    ]
    for code, requested in wrong:
        with pytest.raises(EkibenError) as caught:
            client.classify(**requested)
        assert (caught.value.code, caught.value.retry_after_s, caught.value.safe_to_retry) == (code, None, False)
        assert caught.value.request_id and caught.value.message
    with pytest.raises(EkibenError, match="outside the image"):
        client.masks(IMAGE, points=(9999, 1), **SAM)


def test_models(client: Any, other: Client) -> None:
    listed = client.models()
    assert {"colours", "areas", "sam_toy"} <= {model.name for model in listed}
    assert client.load_model("areas").state == "ready"
    one = client.model("areas")
    assert (one.task, one.classes, one.versions[0].active) == ("segment", 4, True)
    ignored = {"counters", "replicas", "memory_bytes", "state", "desired"}
    assert {k: v for k, v in one.raw.items() if k not in ignored} == {
        k: v for k, v in other.model("areas").raw.items() if k not in ignored
    }
    client.unload_model("areas")
    assert client.segment(NOISE, model="areas", store=False).class_map.shape == PIXELS.shape[:2]


def test_a_batch(sam_server: Server, tmp_path: Path) -> None:
    """Sent over HTTP; over gRPC it is a job as any other."""
    colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
    for name, colour in colours.items():
        toy_models.solid(colour).save(tmp_path / f"{name}.png")
    with Client(sam_server.url) as http, Client(address(sam_server, "grpc")) as grpc:
        requested = http.batch("classify", tmp_path, parameters={"model": "colours", "top_k": 1})
        for client in (grpc, http):
            assert client.wait(requested, timeout_s=30).counts.done == 3
            rows = client.result(requested)
            assert isinstance(rows, tuple)
            assert {row.filename: row.answer.top.class_name for row in rows} == {
                f"{name}.png": name for name in colours
            }
        with pytest.raises(EkibenError, match="http_only"):
            grpc.batch("classify", tmp_path)
        target = http.download_result(requested, tmp_path / "answers.zip")
        assert target.read_bytes()[:2] == b"PK"
        http.delete_job(requested)


def test_the_library(sam_server: Server, tmp_path: Path, toy_artifacts: dict[str, Path]) -> None:
    """Images, predictions and models' versions, over HTTP."""
    with Client(sam_server.url) as client:
        stored = client.upload_image(PIXELS)
        assert (stored.width, stored.height, stored.mime_type) == (40, 31, "image/png")
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(client.image_content(stored)))), PIXELS)
        assert client.image(stored.id) == stored == next(iter(client.images(limit=1)))
        answer = client.classify(image_id=stored.id, model="colours")
        listed = client.predictions(task="classify", model="colours", limit=1)
        assert (listed[0].id, len(listed)) == (answer.id, 1)
        with pytest.raises(EkibenError) as kept:
            client.delete_image(stored)
        assert kept.value.status == 409
        client.delete_prediction(listed[0])
        client.delete_image(stored, cascade=True)
        with pytest.raises(EkibenError, match="not_found"):
            client.image(stored.id)

        name = f"brought-{tmp_path.name[-8:].strip('_').lower()}"
        model = toy_artifacts["colours"] / "model.onnx"
        brought = client.import_model(model, name, task="classify", labels=toy_models.CLASSES, std=1.0, mean=(0, 0, 0))
        assert (brought.version, brought.classes) == (1, 4)
        client.import_model(model, name, task="classify", labels=["a", "b", "c", "d"], licence="CC0")
        assert client.classify(toy_models.solid((255, 0, 0)), model=name).top.class_name == "b"
        assert client.activate(name, 1).version == 1
        assert client.classify(toy_models.solid((255, 0, 0)), model=name).top.class_name == "red"
        packed = client.download_version(name, 1, tmp_path / "version.zip")
        assert packed.read_bytes()[:2] == b"PK"
        client.delete_version(name, 2)
        assert [version.version for version in client.model(name).versions] == [1]
        client.delete_version(name, 1)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_threads_share_a_client(sam_server: Server, protocol: str) -> None:
    """Each gets the answer to its own image."""
    images = [toy_models.noise(20 + n, 24, seed=n) for n in range(24)]
    with Client(address(sam_server, protocol)) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda one: client.segment(one, model="areas", store=False), images))
        again = [client.segment(one, model="areas", store=False) for one in images]
    assert [answer.image.width for answer in answers] == [20 + n for n in range(24)]
    for one, other in zip(answers, again, strict=True):
        assert np.array_equal(one.class_map, other.class_map)  # type: ignore[arg-type]
        assert one.classes == other.classes


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_tasks_share_a_client(sam_server: Server, protocol: str) -> None:
    images = [toy_models.solid(colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)) * 4]

    async def request() -> list[str]:
        async with AsyncClient(address(sam_server, protocol)) as client:
            answers = await asyncio.gather(*(client.classify(one, model="colours", store=False) for one in images))
            return [answer.top.class_name for answer in answers]

    assert asyncio.run(request()) == ["red", "green", "blue"] * 4
