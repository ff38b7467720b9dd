"""tritonclient's four clients ask every family, in every form, and are answered with the right tensors."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco

from tests import toy_models
from tests.journeys.jobs.job_client import EVERY_TOPOLOGY
from tests.journeys.open_inference.client_processes import EACH_CLIENT, Client, areas, files, softmax, tensor
from tests.serving import Server
from tests.toy_sam import boxes_of, expected_masks, middle, shapes

pytest_plugins = ("tests.journeys.open_inference.fixtures",)
pytestmark = EACH_CLIENT

KEPT = {"store": False}
IMAGES = [toy_models.noise(32, 32, seed=seed) for seed in (72, 73, 74)]
PIXELS = [np.asarray(image) for image in IMAGES]
PNGS = [toy_models.encoded(image) for image in IMAGES]
PROBS = softmax(PIXELS)
PREPARED = np.stack([one.transpose(2, 0, 1) for one in PIXELS]).astype(np.float32) / np.float32(255)

SHAPES = shapes(160, 120)
RED, GREEN, BLUE, YELLOW = boxes_of(160, 120)


def near(given: NDArray[np.float32], expected: NDArray[np.float64], most: float = 1e-5) -> bool:
    return given.dtype == np.float32 and given.shape == expected.shape and bool(np.abs(given - expected).max() < most)


def decoded(masks: list[dict[str, Any]]) -> NDArray[np.bool_]:
    """[masks, h, w] of an answer of /v1."""
    return np.array([coco.decode(mask["segmentation"]) == 1 for mask in masks], np.bool_)


# ---- in every topology ----


@EVERY_TOPOLOGY
def test_encoded_images(oip: Client, sam_server: Server) -> None:
    one = oip.infer("oip_colours", files(PNGS[0]), request_id="mine-7")
    assert (one.model, one.version, one.id) == ("oip_colours", "2", "mine-7")
    assert one.datatypes == {"probs": "FP32"} and near(one.tensors["probs"], PROBS[:1])
    # It is remembered under the id that came with the answer.
    with sam_server.client() as client:
        row = client.get(f"/v1/predictions/{one.parameters['prediction_id']}").json()
        jpegs = [toy_models.encoded(image, "JPEG") for image in IMAGES]
        over_v1 = [
            client.post("/v1/classify?model=oip_mine&top_k=4&store=false", content=data).json() for data in jpegs
        ]
    assert (row["task"], row["model"]) == ("classify", {"name": "oip_colours", "version": 2})
    three = oip.infer("oip_mine", files(*jpegs), parameters=KEPT)
    assert (three.model, three.version, three.parameters) == ("oip_mine", "1", {})
    by_index = [sorted(body["predictions"], key=lambda p: p["class_index"]) for body in over_v1]
    assert near(three.tensors["probs"], np.array([[p["confidence"] for p in row] for row in by_index]))


def test_pixels_and_the_prepared_tensor(oip: Client) -> None:
    for given, expected in [
        (tensor("image", "UINT8", np.stack(PIXELS)), PROBS),
        (tensor("image", "UINT8", PIXELS[1]), PROBS[1]),  # no batch axis in, none out
        (tensor("image", "FP32", PREPARED), PROBS),
        (tensor("image", "FP32", PREPARED[2]), PROBS[2]),
        (tensor("input", "FP32", PREPARED), PROBS),  # by the graph's own name
    ]:
        assert near(oip.infer("oip_colours", given).tensors["probs"], expected)


@EVERY_TOPOLOGY
def test_class_maps(oip: Client) -> None:
    assert np.array_equal(
        oip.infer("areas", files(*PNGS), parameters=KEPT).tensors["class_map"], areas(np.stack(PIXELS))
    )
    image = toy_models.noise(90, 70, seed=75)  # in windows
    said = oip.infer("oip_cells", files(toy_models.encoded(image)), parameters=KEPT)
    assert said.datatypes == {"class_map": "UINT8"}
    assert np.array_equal(said.tensors["class_map"], [toy_models.cell_logits(np.asarray(image)) >= 0])


@EVERY_TOPOLOGY
def test_prompts_as_tensors(oip: Client, sam_server: Server) -> None:
    """Two prompts of different lengths and the image: three inputs, two outputs."""
    data = toy_models.encoded(SHAPES)
    points = [[*middle(RED)], [-1, -1]], [[*middle(BLUE)], [*middle(RED)]]
    labels = [[1, -1], [1, 0]]
    answer = oip.infer(
        "sam_toy",
        files(data),
        tensor("point_coords", "FP32", np.array(points, np.float32)),
        tensor("point_labels", "INT64", np.array(labels, np.int64)),
        parameters=KEPT,
    )
    assert answer.datatypes == {"masks": "BOOL", "iou_predictions": "FP32"}
    masks, iou = answer.tensors["masks"], answer.tensors["iou_predictions"]
    assert (masks.shape, iou.shape) == ((2, 3, 120, 160), (2, 3))
    prompts = [[[*middle(RED), 1]], [[*middle(BLUE), 1], [*middle(RED), 0]]]
    for row, prompt in enumerate(prompts):
        for number, one in enumerate(expected_masks(SHAPES, prompt)):
            clear = np.abs(one.logits) > 1e-3
            assert np.array_equal(masks[row, number][clear], one.mask[clear])
            assert iou[row, number] == pytest.approx(one.predicted_iou, abs=1e-4)
    with sam_server.client() as client:  # and every pixel as /v1 has it
        requested = json.dumps([{"points": prompt} for prompt in prompts])
        params = {"model": "sam_toy", "prompts": requested, "format": "coco", "store": "false"}
        results = client.post("/v1/masks", params=params, content=data).json()["results"]
    assert np.array_equal(masks, [decoded(row["masks"]) for row in results])


# ---- once: the rest is the same code in every topology ----


def test_the_other_outputs_by_name(oip: Client) -> None:
    image = toy_models.noise(90, 70, seed=75)
    outputs = [{"name": "probability"}, {"name": "class_map"}]
    given = tensor("image", "UINT8", np.asarray(image))
    said = oip.infer("oip_cells", given, outputs=outputs, parameters={"flips": True})
    expected = toy_models.cell_logits(np.asarray(image))
    assert list(said.tensors) == ["probability", "class_map"]
    assert near(said.tensors["probability"], 1 / (1 + np.exp(-expected)))
    assert np.array_equal(said.tensors["class_map"], expected >= 0)

    box = tensor("boxes", "FP32", np.array([GREEN], np.float32))
    names = ["iou_predictions", "stability_scores", "low_res_masks", "masks"]
    first = oip.infer(
        "sam_toy", files(toy_models.encoded(SHAPES)), box, outputs=[{"name": n} for n in names], parameters=KEPT
    )
    assert {name: one.shape for name, one in first.tensors.items()} == {
        "iou_predictions": (1, 3),
        "stability_scores": (1, 3),
        "low_res_masks": (1, 3, 256, 256),
        "masks": (1, 3, 120, 160),
    }
    # The logits of one answer refine the next.
    logits = first.tensors["low_res_masks"][:, 1]
    refined = oip.infer(
        "sam_toy",
        tensor("image", "UINT8", np.asarray(SHAPES)),
        box,
        tensor("mask_input", "FP32", logits),
        parameters={"multimask": False},
    )
    (one,) = expected_masks(SHAPES, box=GREEN, mask_input=logits[0], multimask=False)
    clear = np.abs(one.logits) > 1e-2
    assert refined.tensors["masks"].shape == (1, 1, 120, 160)
    assert np.array_equal(refined.tensors["masks"][0, 0][clear], one.mask[clear])
    assert refined.tensors["iou_predictions"] == pytest.approx(one.predicted_iou, abs=1e-4)


def test_prompts_as_a_parameter(oip: Client, sam_server: Server) -> None:
    data = files(toy_models.encoded(SHAPES))
    with sam_server.client() as client:
        params: dict[str, Any] = {"model": "sam_toy", "points_per_side": 8, "format": "coco", "store": "false"}
        found = client.post("/v1/masks/auto", params=params, content=toy_models.encoded(SHAPES)).json()["masks"]
    as_tensors = oip.infer("sam_toy", data, tensor("boxes", "FP32", np.array([RED, BLUE], np.float32)), parameters=KEPT)
    prompts = json.dumps([{"box": RED}, {"box": BLUE}])
    as_text = oip.infer("sam_toy", data, parameters={**KEPT, "prompts": prompts})
    assert np.array_equal(as_text.tensors["masks"], as_tensors.tensors["masks"])
    everything = oip.infer("sam_toy", data, parameters={**KEPT, "points_per_side": 8})
    assert np.array_equal(everything.tensors["masks"], [decoded(found)]) and len(found) > 1
    labels = tensor("point_labels", "INT64", np.array([[1]]))
    assert "point_coords" in oip.refusal("sam_toy", data, labels)[1]
    assert "not both" in oip.refusal("sam_toy", data, tensor("boxes", "FP32", np.zeros((1, 4), np.float32)),
                                     parameters={"prompts": "[]"})[1]  # fmt: skip


def test_classification(oip: Client) -> None:
    outputs = [{"name": "probs", "class_count": 3}]
    for given, rows, lead in [
        (files(*PNGS), PROBS, (3,)),
        (tensor("image", "UINT8", PIXELS[0]), PROBS[:1], ()),
    ]:
        answer = oip.infer("oip_colours", given, outputs=outputs)
        assert answer.datatypes == {"probs": "BYTES"}
        texts = answer.tensors["probs"]
        assert texts.shape == (*lead, 3)
        for row, expected in zip(texts.reshape(-1, 3), rows, strict=True):
            parts = [one.decode().split(":") for one in row]
            best = np.argsort(-expected)[:3]
            assert [(int(index), label) for _, index, label in parts] == [(i, toy_models.CLASSES[i]) for i in best]
            assert [float(value) for value, _, _ in parts] == pytest.approx(expected[best], abs=1e-5)
    # More than there are: all of them, as Triton answers.
    more = oip.infer("oip_colours", files(PNGS[0]), outputs=[{"name": "probs", "class_count": 5}], parameters=KEPT)
    assert [one.decode().split(":")[2] for one in more.tensors["probs"][0]] == [
        toy_models.CLASSES[i] for i in np.argsort(-PROBS[0])
    ]
    code, message = oip.refusal("areas", files(PNGS[0]), outputs=[{"name": "class_map", "class_count": 1}])
    assert code == oip.code(501, "UNIMPLEMENTED") and "class_map" in message


def test_half_floats(oip: Client) -> None:
    half = PREPARED.astype(np.float16)
    answer = oip.infer("oip_colours", tensor("image", "FP16", half))
    assert near(answer.tensors["probs"], softmax([one.transpose(1, 2, 0) * 255.0 for one in half.astype(np.float64)]))
