"""Training over the API: from a folder of images to a model that is asked, whatever dies on the way."""

from __future__ import annotations

import io
import json
import os
import time
import zipfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from models.masks.rle import encode
from tests.journeys.datasets.dataset_client import (
    SMALL,
    as_openapi_says,
    bring,
    brought,
    dice,
    disc,
    discs,
    listening,
    png,
    segmented,
    train,
)
from tests.journeys.jobs.job_client import accepted, finished, get, refusal
from tests.journeys.trainings.limits import MINUTES, works
from tests.serving import Server

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def first(server: Server, dataset_id: str) -> dict[str, Any]:
    """A training that succeeded, with what was heard of it; and how long it took."""
    with server.client(timeout=120) as client:
        begun = time.monotonic()
        job_id = train(client, dataset_id, "discs", **SMALL, epochs=25)
        with listening(client, job_id) as heard:
            job = finished(client, job_id, MINUTES)
        print(f"25 epochs of 40 images: {time.monotonic() - begun:.1f} s; longest silence {heard.silence_s:.2f} s")
        return {"id": job_id, "heard": heard, "job": job}


def test_a_model_that_is_asked_without_a_restart(server: Server, client: httpx.Client, first: dict[str, Any]) -> None:
    body = get(client, f"/v1/trainings/{first['id']}")
    openapi = get(client, "/openapi.json")
    as_openapi_says(openapi, "/v1/trainings/{id}", body)
    assert body["model"] == {"name": "discs", "version": 1}
    assert body["metrics"]["dice"] > 0.85 and body["metrics"]["protocol"] == "holdout"
    low, high = body["metrics"]["dice_interval"]
    assert low <= body["metrics"]["dice"] <= high
    assert get(client, f"/v1/jobs/{first['id']}/result")["metrics"] == body["metrics"]
    for number in (1000, 1001):
        image, truth = disc(number)
        found = segmented(client, "discs", image)
        assert found.shape == truth.shape
        assert dice(found, truth) > 0.85
    shown = get(client, "/v1/models/discs")
    assert (shown["task"], shown["version"], shown["classes"]) == ("segment", 1, 2)
    [version] = get(client, "/v1/models/discs/versions")["items"]
    assert version["metrics"]["dice"] == body["metrics"]["dice"]
    assert version["lineage"]["training_id"] == first["id"]
    assert version["lineage"]["dataset"]["id"] == body["dataset_id"]
    assert not works(server.home, first["id"])
    zipped = client.get(f"/v1/jobs/{first['id']}/result", headers={"accept": "application/zip"})
    with zipfile.ZipFile(io.BytesIO(zipped.content)) as archive:
        assert "job.json" in archive.namelist()


def test_what_is_told_while_it_runs(client: httpx.Client, first: dict[str, Any]) -> None:
    heard = first["heard"]
    kinds = [event.kind for _, event in heard.events]
    assert kinds[:2] == ["state", "state"] and kinds[-1] == "state"
    assert {"plan", "step", "epoch", "preview"} <= set(kinds)
    assert [event.number for _, event in heard.events] == list(range(1, len(kinds) + 1))
    begun = kinds.index("plan")
    gaps = [b[0] - a[0] for a, b in pairwise(heard.events[begun:])]
    assert max(gaps) <= 2.5, sorted(gaps)[-3:]  # every 2 s; what is looked for every 0.3 s
    [plan] = heard.of("plan")
    assert plan["resumed_epoch"] is None
    epochs = heard.of("epoch")
    assert [epoch["epoch"] for epoch in epochs] == list(range(1, 26))
    for epoch in epochs:
        assert epoch["train_loss"] > 0 and 0 <= epoch["dice"] <= 1 and epoch["images_per_s"] > 0
        assert epoch["per_class"][0]["class_index"] == 1
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"]
    for preview in heard.of("preview"):
        answer = client.get(preview["url"])
        assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
        assert "file" not in preview
    body = get(client, f"/v1/trainings/{first['id']}")
    assert [point["epoch"] for point in body["epochs"]] == list(range(1, 26))
    assert set(body["previews"]) >= {preview["url"] for preview in heard.of("preview")}
    progress = [event.data.get("progress", 0) for _, event in heard.events if event.kind == "progress"]
    assert progress == sorted(progress)


def test_the_same_curves_for_tensorboard(client: httpx.Client, first: dict[str, Any], tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    artifacts = get(client, f"/v1/trainings/{first['id']}")["artifacts"]
    assert set(artifacts) == {"evaluation", "tensorboard"}
    with zipfile.ZipFile(io.BytesIO(client.get(artifacts["tensorboard"]).content)) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path)
    [found] = {path.parent for path in tmp_path.rglob("events.out.tfevents.*")}
    curves = accumulator.EventAccumulator(str(found)).Reload()
    told = first["heard"].of("epoch")
    for name in ("train_loss", "dice"):
        read = [(scalar.step, scalar.value) for scalar in curves.Scalars(name)]
        assert [step for step, _ in read] == [epoch["epoch"] for epoch in told]
        assert [value for _, value in read] == pytest.approx([epoch[name] for epoch in told], rel=1e-5)
    evaluation = json.loads(client.get(artifacts["evaluation"]).content)
    parts = Counter(sample["part"] for sample in evaluation["samples"])
    [plan] = first["heard"].of("plan")
    assert parts == {part: plan[part] for part in ("train", "validation", "test")} and plan["images"] == 40
    scores = [sample["dice"] for sample in evaluation["samples"] if sample["part"] == "test"]
    metrics = get(client, f"/v1/trainings/{first['id']}")["metrics"]
    assert metrics["dice"] == pytest.approx(np.mean(scores), abs=1e-4)


def test_two_trainings_side_by_side(client: httpx.Client, dataset_id: str, first: dict[str, Any]) -> None:
    requested = {"dataset_id": dataset_id, "name": "discs", **SMALL, "epochs": 2}
    key = {"Idempotency-Key": os.urandom(8).hex()}
    answers = [client.post("/v1/trainings", json=requested, headers=key) for _ in range(2)]
    second = accepted(answers[0])
    assert (accepted(answers[1]), answers[1].headers["idempotency-replayed"]) == (second, "true")
    other = client.post("/v1/trainings", json={**requested, "epochs": 3}, headers=key)
    assert refusal(other, 409)[0] == "idempotency_key_reused"
    finished(client, second, MINUTES)
    body = get(client, f"/v1/trainings/compare?ids={first['id']},{second}")
    as_openapi_says(get(client, "/openapi.json"), "/v1/trainings/compare", body)
    assert (body["same_split"], body["common_images"]) == (True, first["heard"].of("plan")[0]["test"])
    assert [row["id"] for row in body["items"]] == [first["id"], second]
    assert [row["model"]["version"] for row in body["items"]] == [1, 2]
    for row in body["items"]:
        assert row["common_dice"] == pytest.approx(row["metrics"]["dice"], abs=1e-4)
        assert row["training"]["parameters"] > 0
    assert body["items"][0]["common_dice"] > body["items"][1]["common_dice"]
    # The second is what the name means, until somebody chooses.
    assert get(client, "/v1/models/discs")["version"] == 2
    image, truth = disc(1000)
    before = dice(segmented(client, "discs", image, version=1), truth)
    assert client.post("/v1/models/discs/activate", json={"version": 1}).status_code == 200
    assert dice(segmented(client, "discs", image), truth) == before
    for ids, status in ((first["id"], 400), (f"{first['id']},{first['id']}", 400), (f"{first['id']},x", 404)):
        refusal(client.get("/v1/trainings/compare", params={"ids": ids}), status)


def test_five_corrected_masks_change_the_next_answer(client: httpx.Client, first: dict[str, Any]) -> None:
    """The model knows bright discs only; somebody shows it dark ones."""
    made = [disc(2000 + number, lift=-70) for number in range(5)]
    ids = [client.post("/v1/images", content=png(image)).json()["id"] for image, _ in made]
    before = [segmented(client, "discs", image, version=1) for image, _ in made]
    samples = []
    for ident, (_, truth) in zip(ids, made, strict=True):
        rle = encode(truth)
        mask = {"size": [rle.height, rle.width], "counts": rle.counts.tolist()}
        samples.append({"image_id": ident, "mask": mask, "class_name": "foreground"})
    body = brought(client.post("/v1/datasets", json={"name": "corrected", "samples": samples}))
    finished(client, body["job_id"], 120)
    names = [one["name"] for one in get(client, f"/v1/datasets/{body['dataset_id']}")["classes"]]
    options = {**SMALL, "epochs": 20, "start_from": "discs/1", "folds": 3}
    job_id = train(client, body["dataset_id"], "discs", **options)
    finished(client, job_id, MINUTES)
    shown = get(client, f"/v1/trainings/{job_id}")
    assert shown["metrics"]["protocol"] == "cross_validation"
    version = shown["model"]["version"]
    after = [segmented(client, "discs", image, version=version) for image, _ in made]
    earlier = [dice(found, truth) for found, (_, truth) in zip(before, made, strict=True)]
    later = [dice(found, truth) for found, (_, truth) in zip(after, made, strict=True)]
    print(f"classes {names}; Dice of the five before {np.round(earlier, 3)}, after {np.round(later, 3)}")
    assert all(a > b for a, b in zip(later, earlier, strict=True))
    assert np.mean(later) > np.mean(earlier) + 0.2
    assert get(client, "/v1/models/discs/versions")["items"][0]["lineage"]["start_from"] == {
        "name": "discs",
        "version": 1,
    }


def test_what_is_refused_at_once(client: httpx.Client, dataset_id: str) -> None:
    nowhere = "01890000-0000-7000-8000-000000000000"

    def refused(status: int, **given: Any) -> tuple[str, str]:
        body = {"dataset_id": dataset_id, "name": "refused", **given}
        return refusal(client.post("/v1/trainings", json=body), status)

    assert nowhere in refused(404, dataset_id=nowhere)[1]
    assert "epochs" in refused(400, epochs=0)[1]
    assert "tile" in refused(400, tile=100)[1]
    assert "not both" in refused(400, tile=64, image_size=64)[1]
    assert "learningrate" in refused(400, learningrate=1)[1]
    assert "name" in refused(400, name="Not A Name")[1]
    assert "nobody" in refused(404, start_from="nobody")[1]
    waiting = bring(client, discs(range(2)))
    assert refused(409, dataset_id=waiting["dataset_id"])[0] == "dataset_not_ready"
    finished(client, waiting["job_id"], 60, None)
