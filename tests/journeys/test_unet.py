"""A U-Net is asked over HTTP: windows, mirror images and probabilities, at once and as a job, in every topology."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests import toy_models
from tests.conftest import publish
from tests.journeys.jobs.job_client import finished, submit
from tests.serving import TOPOLOGIES, first_in, serving

IMAGE = toy_models.noise(230, 170)
DATA = toy_models.encoded(IMAGE)
LOGITS = toy_models.cell_logits(np.asarray(IMAGE))
MASK = (LOGITS >= 0).astype(np.uint8)
WINDOWS = 10 * 14
PNG = {"accept": "image/png"}


@pytest.fixture(scope="module", params=first_in("embedded"))
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """``nuclei_unet`` of two classes is tiled, ``areas_unet`` of four is not; ``areas`` is no unet. With a worker."""
    folder = tmp_path_factory.mktemp("unets")
    toy_models.unet(folder / "nuclei_unet", binary=True, overlap=0.5)
    toy_models.unet(folder / "areas_unet")
    toy_models.segmenter(folder / "areas")
    for name in ("nuclei_unet", "areas_unet", "areas"):
        publish(folder / "var", name, folder / name)
    with (
        serving(folder / "var", wait=True, EKIBEN_WORKERS="1", **TOPOLOGIES[request.param]) as server,
        server.client() as client,
    ):
        yield client


def ok(answer: httpx.Response, status: int = 200) -> Any:
    assert answer.status_code == status, answer.text
    return answer.json()


def image(data: bytes) -> NDArray[Any]:
    return np.asarray(Image.open(io.BytesIO(data)))


def fetched(client: httpx.Client, body: dict[str, Any], kind: str) -> NDArray[Any]:
    return image(client.get(body["artifacts"][kind], follow_redirects=True).raise_for_status().content)


def probable(levels: NDArray[Any]) -> bool:
    """Whether these are the image's probabilities in 65535ths."""
    expected = 1 / (1 + np.exp(-LOGITS))
    return levels.shape == MASK.shape and bool(np.abs(levels / 65535 - expected).max() < 2e-5)


def test_the_default_reads_the_image_in_windows(client: httpx.Client) -> None:
    body = ok(client.post("/v1/segment", content=DATA))
    assert body["model"] == {"name": "nuclei_unet", "version": 1}
    assert (body["image"]["width"], body["image"]["height"]) == (230, 170)
    assert {c["class_name"]: c["pixels"] for c in body["classes"]} == {
        "cell": int(MASK.sum()),
        "background": int((1 - MASK).sum()),
    }
    assert body["timing"]["batch_size"] == WINDOWS
    assert sorted(body["artifacts"]) == ["color", "mask", "overlay"]
    assert np.array_equal(fetched(client, body, "mask"), MASK)


def test_flips_and_probability(client: httpx.Client) -> None:
    options = {"flips": "true", "probability": "true"}
    body = ok(client.post("/v1/segment", data=options, files={"file": ("cells.png", DATA)}))
    assert body["timing"]["batch_size"] == 4 * WINDOWS
    assert np.array_equal(fetched(client, body, "mask"), MASK)
    assert probable(fetched(client, body, "probability"))
    row = ok(client.get(f"/v1/predictions/{body['id']}"))
    assert row["parameters"] == {"flips": True, "probability": True}
    assert sorted(artifact["kind"] for artifact in row["artifacts"]) == ["color", "mask", "overlay", "probability"]


def test_the_probability_as_the_answer(client: httpx.Client) -> None:
    requested = {"render": "probability", "store": "false"}
    answer = client.post("/v1/segment", params=requested, content=DATA, headers=PNG)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert probable(image(answer.content))
    kept = client.post("/v1/segment", params={"render": "probability"}, content=DATA, headers=PNG)
    assert kept.content == answer.content
    row = ok(client.get(f"/v1/predictions/{kept.headers['x-prediction-id']}"))
    assert "probability" in {artifact["kind"] for artifact in row["artifacts"]}


def test_a_bento_endpoint(client: httpx.Client) -> None:
    options = {"flips": "true", "probability": "true", "model": "null"}
    body = ok(client.post("/segment", data=options, files={"image": ("cells.png", DATA)}))
    assert (body["model"]["name"], body["timing"]["batch_size"]) == ("nuclei_unet", 4 * WINDOWS)
    assert probable(fetched(client, body, "probability"))


def test_as_a_job(client: httpx.Client) -> None:
    requested = {"flips": "true", "render": "probability"}
    job = finished(client, submit(client, "/v1/segment", params=requested, content=DATA))
    assert job["state"] == "succeeded", job
    body = ok(client.get(f"/v1/jobs/{job['id']}/result"))
    assert (body["model"]["name"], body["timing"]["batch_size"]) == ("nuclei_unet", 4 * WINDOWS)
    assert np.array_equal(fetched(client, body, "mask"), MASK)
    assert probable(fetched(client, body, "probability"))


def test_an_image_that_is_resized(client: httpx.Client) -> None:
    red = toy_models.encoded(toy_models.solid((255, 0, 0), 70, 50))
    for flips in ("false", "true"):
        body = ok(client.post("/v1/segment", params={"model": "areas_unet", "flips": flips}, content=red))
        assert [(c["class_name"], c["pixels"]) for c in body["classes"]] == [("red", 3500)]
        assert body["timing"]["batch_size"] == (4 if flips == "true" else 1)


@pytest.mark.parametrize(
    ("requested", "said"),
    [
        ({"model": "areas", "flips": "true"}, "unet"),
        ({"model": "areas", "render": "probability"}, "unet"),
        ({"model": "areas_unet", "probability": "true"}, "4 classes"),
        ({"render": "logits"}, "render"),
        ({"flips": "perhaps"}, "flips"),
    ],
)
@pytest.mark.parametrize("prefer", ["respond-async", ""])
def test_what_cannot_be_asked(client: httpx.Client, requested: dict[str, str], said: str, prefer: str) -> None:
    body = ok(client.post("/v1/segment", params=requested, content=DATA, headers={"prefer": prefer}), 400)
    assert body["error"]["code"] == "bad_request"
    assert said in body["error"]["message"]


def test_the_schema_says_which_model_is_meant(client: httpx.Client) -> None:
    parameters = ok(client.get("/openapi.json"))["paths"]["/v1/segment"]["post"]["parameters"]
    options = {each["name"]: each for each in parameters}
    assert "deeplabv3_resnet50" in options["model"]["description"]
    assert "nuclei_unet" in options["model"]["description"]
    assert (options["flips"]["schema"]["default"], options["probability"]["schema"]["default"]) == (False, False)
