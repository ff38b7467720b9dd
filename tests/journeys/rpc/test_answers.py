"""ekiben.v1 and /v1 side by side on real servers: the same question has the same answer over both."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from PIL import Image

from ekiben.v1 import ekiben_pb2 as pb
from tests import toy_models
from tests.journeys.jobs.job_client import EVERY_TOPOLOGY, all_items, events, eventually, finished, get, plain, submit
from tests.journeys.rpc.grpc_calls import Stubs, as_json, connected, image, prompts, refused
from tests.journeys.sam.mask_answers import DATA, PROMPTS
from tests.serving import Server

NOISE = toy_models.encoded(toy_models.noise(40, 31, seed=11))
SAM: dict[str, Any] = {"model": "sam_toy", "store": False}
GRID = {**SAM, "points_per_side": 8, "pred_iou_thresh": 0.5}
TIMES = ("created_at", "started_at", "finished_at", "images_per_s", "time_left_s", "image_id", "prediction_id")


@pytest.fixture
def rpc(sam_server: Server) -> Iterator[Stubs]:
    with connected(sam_server.grpc) as stubs:
        yield stubs


def post(client: httpx.Client, path: str, data: bytes, **params: Any) -> dict[str, Any]:
    answer = client.post(path, params=params, content=data)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def artifact(rpc: Stubs, url: str) -> tuple[str, int, bytes]:
    """Type, size and bytes."""
    chunks = list(rpc.artifacts.GetArtifact(pb.GetArtifactRequest(id=url.rsplit("/", 1)[1])))
    return chunks[0].mime_type, chunks[0].bytes, b"".join(chunk.data for chunk in chunks)


@EVERY_TOPOLOGY
@pytest.mark.parametrize("more", [{}, {"top_k": 2}, {"version": 1, "store": False}], ids=str)
def test_classify(rpc: Stubs, client: httpx.Client, more: dict[str, Any]) -> None:
    over_http = post(client, "/v1/classify", NOISE, model="colours", **more)
    given = as_json(rpc.vision.Classify(pb.ClassifyRequest(image=image(NOISE), model="colours", **more)))
    assert plain(given) == plain(over_http)
    assert given["timing"].keys() == over_http["timing"].keys()
    assert len(given["predictions"]) == more.get("top_k", 4)
    stored = more.get("store", True)
    assert (given["id"] is not None, given["image"]["id"] is not None) == (stored, stored)
    if stored:
        row = get(client, f"/v1/predictions/{given['id']}")
        assert row["result"] == {"predictions": given["predictions"]}
        assert row["image"] == given["image"]


def test_a_stored_image_and_its_name(rpc: Stubs, client: httpx.Client) -> None:
    given = rpc.vision.Classify(pb.ClassifyRequest(image=image(NOISE, "noise.png"), model="colours"))
    kept = get(client, f"/v1/images/{given.image.id}")
    assert (kept["filename"], kept["bytes"], kept["mime_type"]) == ("noise.png", len(NOISE), "image/png")
    again = rpc.vision.Classify(pb.ClassifyRequest(image=pb.Picture(image_id=given.image.id), model="colours"))
    assert again.predictions == given.predictions
    assert again.image == given.image


@EVERY_TOPOLOGY
@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("render", [None, "mask", "color", "overlay"])
def test_segment(rpc: Stubs, client: httpx.Client, render: str | None, store: bool) -> None:
    requested: dict[str, Any] = {"model": "areas", "store": store}
    given = rpc.vision.Segment(pb.SegmentRequest(image=image(NOISE), render=render, **requested))
    over_http = post(client, "/v1/segment", NOISE, **requested)
    assert plain(as_json(given)) == plain(over_http)
    assert len(given.classes) > 1
    assert set(given.artifacts) == ({"mask", "color", "overlay"} if store else set())
    if render is None:
        assert given.rendered == b""
    else:
        drawn = client.post(
            "/v1/segment", params={**requested, "render": render}, content=NOISE, headers={"Accept": "image/png"}
        )
        assert drawn.headers["content-type"] == "image/png"
        assert given.rendered == drawn.content
    if render is not None and store:
        assert artifact(rpc, given.artifacts[render])[2] == given.rendered


@EVERY_TOPOLOGY
@pytest.mark.parametrize("format", ["rle", "coco", "polygons", "geojson", "png"])
def test_prompted_masks(rpc: Stubs, client: httpx.Client, format: str) -> None:
    requested = {**SAM, "format": format}
    request = pb.PromptMasksRequest(image=image(DATA), prompts=prompts(PROMPTS[:5]), **requested)
    given = as_json(rpc.vision.PromptMasks(request))
    over_http = post(client, "/v1/masks", DATA, prompts=json.dumps(PROMPTS[:5]), **requested)
    assert plain(given) == plain(over_http)
    assert [len(one["masks"]) for one in given["results"]] == [3] * 5
    assert given["embedding"].keys() == over_http["embedding"].keys()


def test_prompts_are_refined(rpc: Stubs, client: httpx.Client) -> None:
    """A mask's id goes into the next prompt, over either protocol; without prompts it is the whole image's box."""
    first = rpc.vision.PromptMasks(
        pb.PromptMasksRequest(image=image(DATA), prompts=prompts(PROMPTS[:1]), model="sam_toy", multimask=False)
    )
    (mask,) = first.results[0].masks
    refining = [{**PROMPTS[0], "mask_input": mask.id}]
    again = rpc.vision.PromptMasks(pb.PromptMasksRequest(image=image(DATA), prompts=prompts(refining), **SAM))
    over_http = post(client, "/v1/masks", DATA, prompts=json.dumps(refining), **SAM)
    assert plain(as_json(again)) == plain(over_http)
    assert again.results[0].masks[2].area != first.results[0].masks[0].area
    whole = rpc.vision.PromptMasks(pb.PromptMasksRequest(image=image(DATA), **SAM))
    assert plain(as_json(whole)) == plain(post(client, "/v1/masks", DATA, **SAM))
    kept = rpc.vision.PromptMasks(
        pb.PromptMasksRequest(image=image(DATA), prompts=prompts(PROMPTS[:1]), model="sam_toy", logits=False)
    )
    assert kept.HasField("id") and not any(mask.HasField("id") for mask in kept.results[0].masks)


@pytest.mark.parametrize("format", ["rle", "polygons"])
def test_automatic_masks(rpc: Stubs, client: httpx.Client, format: str) -> None:
    requested: dict[str, Any] = {**GRID, "format": format}
    stream = list(rpc.vision.AutoMasks(pb.AutoMasksRequest(image=image(DATA), **requested)))
    kinds = [event.WhichOneof("event") for event in stream]
    assert kinds.count("finished") == 1 and kinds[-1] == "finished"
    progress = [event.progress for event in stream if event.HasField("progress")]
    assert progress == sorted(progress) and all(0 <= share <= 1 for share in progress)
    given = as_json(stream[-1].finished)
    over_http = post(client, "/v1/masks/auto", DATA, **requested)
    assert plain(given) == plain(over_http)
    assert len(given["masks"]) >= 4


def test_stored_automatic_masks(rpc: Stubs, client: httpx.Client) -> None:
    requested: dict[str, Any] = {**GRID, "store": True, "preset": "fast", "min_mask_region_area": 10}
    *_, last = rpc.vision.AutoMasks(pb.AutoMasksRequest(image=image(DATA), **requested))
    over_http = post(client, "/v1/masks/auto", DATA, **requested)
    assert plain(as_json(last.finished)) == plain(over_http)
    for kind in ("color", "overlay"):
        theirs = client.get(over_http["artifacts"][kind])
        assert artifact(rpc, last.finished.artifacts[kind]) == ("image/png", len(theirs.content), theirs.content)


@pytest.mark.parametrize("more", [{"padding_px": 3, "feather_px": 1.5, "frame": "full"}, {"limit": 2}], ids=str)
def test_cutouts(rpc: Stubs, client: httpx.Client, more: dict[str, Any]) -> None:
    """Of prompts; and without any of the automatic masks."""
    chosen = PROMPTS[:2] if "frame" in more else []
    requested: dict[str, Any] = {**GRID, **more}
    given = rpc.vision.Cutouts(pb.CutoutsRequest(image=image(DATA), prompts=prompts(chosen), **requested))
    params = {**requested, **({"prompts": json.dumps(chosen)} if chosen else {})}
    assert plain(as_json(given)) == plain(post(client, "/v1/cutouts", DATA, **params))
    answer = client.post("/v1/cutouts", params=params, content=DATA, headers={"Accept": "application/zip"})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        files = [archive.read(f"cutout-{number:03d}.png") for number in range(2)]
    assert [one.png for one in given.cutouts] == files
    assert [one.HasField("prompt") for one in given.cutouts] == [bool(chosen)] * 2
    assert np.asarray(Image.open(io.BytesIO(files[0]))).shape[2] == 4


@EVERY_TOPOLOGY
def test_a_job(rpc: Stubs, client: httpx.Client) -> None:
    """Submitted over gRPC: it is the same job over HTTP, and gives what one submitted over HTTP gives."""
    requested = pb.ClassifyRequest(image=image(NOISE, "noise.png"), model="colours", top_k=2)
    made = rpc.jobs.SubmitJob(pb.SubmitJobRequest(classify=requested, priority=7, timeout_s=100))
    assert not made.replayed
    watched = list(rpc.jobs.WatchJob(pb.WatchJobRequest(id=made.job_id)))
    job = finished(client, made.job_id)
    assert as_json(rpc.jobs.GetJob(pb.GetJobRequest(id=made.job_id))) == job
    assert (job["priority"], job["timeout_s"], job["state"]) == (7, 100, "succeeded")

    over_http = events(client, made.job_id)
    assert [(one.number, one.kind, as_json(one.data)) for one in watched] == [
        (one.number, one.kind, one.data) for one in over_http
    ]
    rest = rpc.jobs.WatchJob(pb.WatchJobRequest(id=made.job_id, after=over_http[0].number))
    assert [one.number for one in rest] == [one.number for one in over_http[1:]]
    assert list(rpc.jobs.WatchJob(pb.WatchJobRequest(id=made.job_id, after=over_http[-1].number))) == []

    (item,) = all_items(client, made.job_id)
    answered = as_json(rpc.jobs.ListJobItems(pb.ListJobItemsRequest(id=made.job_id)))
    assert answered == {"items": [item], "total": 1, "page": 1, "limit": 50}
    assert item["filename"] == "noise.png"
    listed = rpc.jobs.ListJobs(pb.ListJobsRequest(limit=1, state="succeeded", kind="request"))
    assert as_json(listed) == get(client, "/v1/jobs?limit=1&state=succeeded&kind=request")

    direct = post(client, "/v1/classify", NOISE, model="colours", top_k=2)
    assert plain(item["result"]) == plain(direct)
    other = submit(
        client,
        "/v1/classify",
        params={"model": "colours", "top_k": 2, "priority": 7, "timeout_s": 100},
        files={"file": ("noise.png", NOISE)},
    )
    theirs = finished(client, other)
    assert without(plain(job), TIMES) == without(plain(theirs), TIMES)
    assert without(plain(item), TIMES) == without(plain(all_items(client, other)[0]), TIMES)


def test_jobs_of_every_operation(rpc: Stubs, client: httpx.Client) -> None:
    whole: dict[str, Any] = {"model": "sam_toy", "store": False}
    stored = rpc.vision.Classify(pb.ClassifyRequest(image=image(NOISE), model="colours")).image.id
    requested: dict[str, tuple[Any, str, dict[str, Any]]] = {
        "segment": (
            pb.SegmentRequest(image=pb.Picture(image_id=stored), model="areas"),
            "/v1/segment",
            {"model": "areas", "image_id": stored},
        ),
        "masks": (
            pb.PromptMasksRequest(image=image(DATA), prompts=prompts(PROMPTS[:3]), format="coco", **whole),
            "/v1/masks",
            {**whole, "prompts": json.dumps(PROMPTS[:3]), "format": "coco"},
        ),
        "auto_masks": (pb.AutoMasksRequest(image=image(DATA), **GRID), "/v1/masks/auto", GRID),
        "cutouts": (
            pb.CutoutsRequest(image=image(DATA), prompts=prompts(PROMPTS[:1]), min_pixels=5, **whole),
            "/v1/cutouts",
            {**whole, "prompts": json.dumps(PROMPTS[:1]), "min_pixels": 5},
        ),
    }
    ids = {name: rpc.jobs.SubmitJob(pb.SubmitJobRequest(**{name: one[0]})).job_id for name, one in requested.items()}
    for name, (_, path, params) in requested.items():
        other = submit(client, path, params=params, content=b"" if "image_id" in params else DATA)
        job, theirs = finished(client, ids[name]), finished(client, other)
        assert job["operation"] == name
        assert without(plain(job), TIMES) == without(plain(theirs), TIMES)
        items = as_json(rpc.jobs.ListJobItems(pb.ListJobItemsRequest(id=ids[name])))["items"]
        assert items == all_items(client, ids[name])
        assert without(plain(items[0]), TIMES) == without(plain(all_items(client, other)[0]), TIMES)


def test_a_job_that_fails(rpc: Stubs, client: httpx.Client) -> None:
    """An image that begins well and is cut off: what the item says is the same over both."""
    request = pb.ClassifyRequest(image=image(NOISE[:200]), model="colours")
    made = rpc.jobs.SubmitJob(pb.SubmitJobRequest(classify=request))
    job = finished(client, made.job_id, state="failed")
    answered = rpc.jobs.GetJob(pb.GetJobRequest(id=made.job_id))
    assert as_json(answered) == job
    assert answered.error.code == "bad_image"
    assert as_json(rpc.jobs.ListJobItems(pb.ListJobItemsRequest(id=made.job_id)))["items"] == all_items(
        client, made.job_id
    )
    with pytest.raises(grpc.RpcError) as error:
        rpc.jobs.CancelJob(pb.CancelJobRequest(id=made.job_id))
    over_http = client.post(f"/v1/jobs/{made.job_id}/cancel")
    refusal = refused(error.value)
    assert refusal.code == "FAILED_PRECONDITION" and over_http.status_code == 409
    assert (refusal.reason, refusal.message) == (
        over_http.json()["error"]["code"],
        over_http.json()["error"]["message"],
    )


def test_models(rpc: Stubs, client: httpx.Client) -> None:
    def same() -> bool:  # the processes report what they hold once a second
        over_http = get(client, "/v1/models")["items"]
        listed = as_json(rpc.models.ListModels(pb.ListModelsRequest()))["items"]
        one = as_json(rpc.models.GetModel(pb.GetModelRequest(name="areas")))
        return bool(listed == over_http and one == next(model for model in over_http if model["name"] == "areas"))

    eventually(same, "the models are the same over both", 10)


def without(answer: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in names}
