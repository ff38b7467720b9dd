"""The server that is asked: its models, and what is stored in it before the run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests import toy_models, toy_sam
from tests.conftest import publish
from tests.fuzz import archive_files, raster_files
from tests.fuzz.known import MODELS, SPARE, SPARE_VERSIONS, Known
from tests.serving import ROOT, Server, serving, wait_ready

SETTINGS = {
    "EKIBEN_WORKERS": "1",
    "EKIBEN_TIMEOUT_S": "10",
    "EKIBEN_AUTO_TIMEOUT_S": "10",
    "EKIBEN_JOB_TIMEOUT_S": "60",
    "EKIBEN_CACHE_MB": "64",
    "EKIBEN_TRAININGS_AT_ONCE": "0",
    "EKIBEN_WEBHOOK_SECRET": "fuzz",
}
"""Limits that end soon: what is too much work for a request is 504 after ten seconds. The cache of embeddings is small,
because its growth is no fault. Trainings are accepted and cancelled."""


@contextmanager
def asked_server(folder: Path, **settings: str) -> Iterator[Server]:
    """A server with a worker, the toys, a model of many versions, and nuclei_unet; ``settings`` beside SETTINGS."""
    artifacts, home = folder / "artifacts", folder / "var"
    toy_models.classifier(artifacts / "colours")
    toy_models.segmenter(artifacts / "areas")
    toy_models.unet(artifacts / "cells", binary=True, overlap=0.5)
    toy_sam.sam(artifacts / "sam_toy")
    for name in ("colours", "areas", "cells", "sam_toy"):
        publish(home, name, artifacts / name)
    for _ in range(SPARE_VERSIONS):
        publish(home, SPARE, artifacts / "colours")
    publish(home, "nuclei_unet", ROOT / "models" / "shipped" / "nuclei_unet")
    with serving(home, wait=False, **{**SETTINGS, **settings}) as server:
        wait_ready(server, seconds=180)  # the machine may be busy
        yield server


def fill(client: httpx.Client) -> Known:
    """Store images, predictions, jobs and a dataset, and give their ids."""
    known = Known()
    # Of a size that no request sends: an image that is sent again is the stored one, and may be removed.
    images = [raster_files.valid(form, "RGB", 26, 18) for form in ("PNG", "JPEG", "WEBP", "TIFF")]
    for data in images:
        known.lasting.setdefault("image", []).append(_ok(client.post("/v1/images", content=data))["id"])
    for operation, path in (
        ("classify", "/v1/classify"),
        ("segment", "/v1/segment?render=color"),
        ("masks", "/v1/masks?logits=true"),
    ):
        joint = "&" if "?" in path else "?"
        body = _ok(client.post(f"{path}{joint}model={MODELS[operation]}", content=images[0]))
        known.lasting.setdefault("prediction", []).append(body["id"])
        if operation == "segment":
            links = [link for link in body["artifacts"].values() if link]
            known.lasting["artifact"] = [link.rsplit("/", 1)[1] for link in links]
        if operation == "masks":
            known.lasting["mask"] = [mask["id"] for mask in body["results"][0]["masks"]]
    made = client.post("/v1/datasets", data={"name": "first"}, files={"file": ("d.zip", archive_files.dataset())})
    known.lasting["dataset"] = [_ok(made)["dataset_id"]]
    jobs = [_ok(made)["job_id"]]
    _ended(client, jobs[0])
    tree = {"operation": "classify", "parameters": {"model": "colours"}, "image_ids": known.lasting["image"]}
    jobs.append(_ok(client.post("/v1/batches", json=tree))["job_id"])
    asynchronous = client.post("/v1/segment?model=areas", content=images[1], headers={"Prefer": "respond-async"})
    jobs.append(_ok(asynchronous)["job_id"])
    known.lasting["job"] = jobs
    for name in ("one", "two"):
        training = _ok(client.post("/v1/trainings", json={"dataset_id": known.lasting["dataset"][0], "name": name}))
        _ok(client.post(f"/v1/jobs/{training['job_id']}/cancel"))
        known.lasting.setdefault("training", []).append(training["job_id"])
    for job in jobs:
        _ended(client, job)
    return known


def _ended(client: httpx.Client, job: str) -> None:
    end = time.monotonic() + 120
    while (body := _ok(client.get(f"/v1/jobs/{job}")))["state"] in ("queued", "running"):
        if time.monotonic() > end:
            raise AssertionError(f"the job did not end: {body}")
        time.sleep(0.1)
    if body["state"] != "succeeded":
        raise AssertionError(f"the job failed: {body}")


def _ok(answer: httpx.Response) -> Any:
    if answer.status_code >= 300:
        raise AssertionError(f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text[:500]}")
    return answer.json()


def right_answers(client: httpx.Client) -> dict[str, Any]:
    """Answers to valid requests, without what differs from one to the next: equal before and after a run."""
    found: dict[str, Any] = {}
    shapes = toy_models.encoded(toy_sam.shapes(80, 60))
    noise = toy_models.encoded(toy_models.noise(32, 32, seed=3))
    box = '[{"box": [5, 5, 36, 30]}]'
    for path, data, query in (
        ("/v1/classify", noise, {"model": "colours"}),
        ("/v1/segment", noise, {"model": "areas", "render": "color"}),
        ("/v1/segment", shapes, {"model": "cells"}),
        ("/v1/segment", shapes, {"model": "nuclei_unet"}),
        ("/v1/masks", shapes, {"model": "sam_toy", "prompts": box}),
        ("/v1/masks/auto", shapes, {"model": "sam_toy", "points_per_side": "4"}),
        ("/v1/cutouts", shapes, {"model": "sam_toy", "prompts": box}),
    ):
        for attempt in range(5):
            answer = client.post(path, params={**query, "store": "false"}, content=data)
            if answer.status_code != 503:
                break
            time.sleep(1 + attempt)
        found[f"{path} {query['model']}"] = _lasting(_ok(answer))
    return found


def _lasting(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _lasting(value) for key, value in tree.items() if key not in ("timing", "embedding", "id")}
    if isinstance(tree, list):
        return [_lasting(value) for value in tree]
    return tree
