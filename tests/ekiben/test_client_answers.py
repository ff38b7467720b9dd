"""Answers as values: masks out of runs, the best of them, class maps in colours; options that the server knows."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

from ekiben._client import inference_operations, jobs_operations, training_operations
from ekiben._client.async_client import AsyncClient
from ekiben._client.decoding import read
from ekiben._client.errors import EkibenError
from ekiben._client.library_operations import ModelImportOptions
from ekiben._client.masks import Mask, PromptResult, decode_rle
from ekiben._client.operations import AutoMaskOptions, prompts_of
from ekiben._client.results import Area, Classification, Segmentation
from ekiben._client.training_operations import TrainOptions
from ekiben.client import Client
from ekiben.training import TrainingOptions as ServerTrainingOptions
from models.onnx_import.options import ImportOptions as ServerImportOptions
from models.sam.auto_options import AutoOptions as ServerAutoOptions
from services.rest.async_requests import AsyncRequestOptions
from services.rest.routers.batches import BatchOptions
from services.rest.routers.datasets import DatasetUploadOptions
from services.schemas.inference import ClassifyOptions, SegmentOptions
from services.schemas.masks import AutoMasksOptions, CutoutsOptions, MasksOptions
from tests.ekiben.bodies import classification, head


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (13, 29)])
def test_runs_become_the_pixels_that_coco_has(size: tuple[int, int], share: float) -> None:
    truth = np.random.default_rng(5).random(size) < share
    flat = truth.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    compressed = coco.frPyObjects({"size": list(size), "counts": counts}, *size)
    decoded = decode_rle({"size": list(size), "counts": counts})
    assert decoded.dtype == np.bool_ and decoded.flags.c_contiguous
    assert np.array_equal(decoded, coco.decode(compressed).astype(bool))
    assert np.array_equal(decoded, truth)


def test_what_is_no_runs() -> None:
    others: list[Any] = [{"size": [2, 2], "counts": "1234"}, "/v1/artifacts/1", [{"outer": []}], {"type": "Polygon"}]
    for wrong in others:
        with pytest.raises(ValueError, match="rle"):
            decode_rle(wrong)
    with pytest.raises(ValueError, match="2 x 2"):
        decode_rle({"size": [2, 2], "counts": [1, 2]})


def test_the_best_mask() -> None:
    masks = tuple(Mask(iou, None, 1, (0, 0, 0, 0), {"size": [1, 2], "counts": [0, 1, 1]}) for iou in (0.3, 0.9, 0.5))
    result = PromptResult(0, masks)
    assert result.best is masks[1] is result[1]
    assert len(result) == 3
    assert result.best.array.tolist() == [[True, False]]
    assert result.best.array is result.best.array  # decoded once
    png = result.best._repr_png_()
    assert png[:4] == b"\x89PNG"


def test_a_segmentation() -> None:
    areas = [Area(0, "ground", (0, 0, 0), 3, 0.75), Area(2, "bird", (128, 64, 0), 1, 0.25)]
    body = head(classes=[vars(area) for area in areas], artifacts=None)
    answer = read(Segmentation, body, class_map=np.array([[0, 2], [0, 0]], np.uint8))
    assert answer.classes == tuple(areas)
    assert answer.of("bird").tolist() == [[False, True], [False, False]]
    assert not answer.of("cat").any()
    assert np.asarray(answer.to_image()).tolist() == [[[0, 0, 0], [128, 64, 0]], [[0, 0, 0], [0, 0, 0]]]
    assert str(answer) == "ground 75.0%, bird 25.0%"
    assert (answer._repr_png_() or b"")[:4] == b"\x89PNG"
    without = read(Segmentation, body)
    assert without._repr_png_() is None
    for request in (without.to_image, lambda: without.of("bird")):
        with pytest.raises(ValueError, match="no class map"):
            request()


def test_a_newer_server_and_another_server() -> None:
    body = classification("red", "dark")
    answer = read(Classification, {**body, "new": 1})
    assert (answer.top.class_name, str(answer)) == ("red", "red 50.0%, dark 25.0%")
    assert answer.raw["new"] == 1
    assert isinstance(answer.timing.inference_ms, float)
    with pytest.raises(EkibenError) as caught:
        read(Classification, {"hello": "world"})
    assert caught.value.code == "bad_answer"


def test_prompts() -> None:
    assert prompts_of() is None
    assert prompts_of(points=(3, 4)) == [{"points": [[3, 4, 1]]}]
    several = prompts_of(points=np.array([[3, 4], [5.5, 6]]), labels=[1, 0], box=(0, 1, 2, 3), mask_input="m")
    assert several == [{"points": [[3, 4, 1], [5.5, 6, 0]], "box": [0, 1, 2, 3], "mask_input": "m"}]
    refined = Mask(0.5, None, 1, (), None, id="m-1")
    assert prompts_of(mask_input=refined) == [{"mask_input": "m-1"}]
    assert prompts_of(boxes=np.arange(8).reshape(2, 4)) == [{"box": [0, 1, 2, 3]}, {"box": [4, 5, 6, 7]}]
    listed: list[dict[str, Any]] = [{"points": np.array([[1, 2, 1]])}, {"box": (1, 2, 3, 4), "mask_input": refined}]
    assert prompts_of(listed) == [{"points": [[1, 2, 1]]}, {"box": [1, 2, 3, 4], "mask_input": "m-1"}]
    assert prompts_of([]) == []
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"points": [[1, 2]], "boxes": [[1, 2, 3, 4]]}, "give prompts"),
        ({"prompts": [], "box": (1, 2, 3, 4)}, "give prompts"),
        ({"labels": [1]}, "labels"),
        ({"points": [[1, 2]], "labels": [1, 0]}, "1 points and 2 labels"),
        ({"points": [[1, 2, 3]]}, "rows of 2"),
        ({"boxes": [["a", "b", "c", "d"]]}, "rows of 4"),
        ({"mask_input": Mask(0.5, None, 1, (), None)}, "not stored"),
    ]
    for given, said in wrong:
        with pytest.raises(ValueError, match=said):
            prompts_of(**given)


def names(steps: Any) -> set[str]:
    return set(inspect.signature(steps).parameters)


def test_every_option_of_the_server_can_be_given() -> None:
    auto = set(AutoMaskOptions.__annotations__)
    assert auto == set(ServerAutoOptions.model_fields)
    assert set(ClassifyOptions.model_fields) <= names(inference_operations.classify)
    drawn = names(inference_operations.segment) | names(inference_operations.render)
    assert set(SegmentOptions.model_fields) - drawn == {"render"}  # kind, of render and segment_volume
    assert set(MasksOptions.model_fields) - names(inference_operations.masks) == {"format"}  # runs; .array decodes them
    assert set(AutoMasksOptions.model_fields) - names(inference_operations.auto_masks) - auto == {"format"}
    assert set(CutoutsOptions.model_fields) <= names(inference_operations.cutouts) | auto
    assert set(AsyncRequestOptions.model_fields) <= names(jobs_operations.submit)
    assert set(BatchOptions.model_fields) <= names(jobs_operations.batch)
    assert set(DatasetUploadOptions.model_fields) <= names(training_operations.upload_dataset)
    training = set(TrainOptions.__annotations__)
    assert training == set(ServerTrainingOptions.model_fields) | set(AsyncRequestOptions.model_fields)
    assert set(ModelImportOptions.__annotations__) | {"task", "labels"} == set(ServerImportOptions.model_fields)


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> dict[str, list[str]]:
        found = inspect.getmembers(kind, inspect.isfunction)
        return {name: list(inspect.signature(one).parameters) for name, one in found if not name.startswith("_")}

    assert methods(Client) == methods(AsyncClient)
    for name, method in inspect.getmembers(Client, inspect.isfunction):
        assert name.startswith("_") or name == "close" or method.__doc__, name
    signature = inspect.signature(Client().classify)
    assert (next(iter(signature.parameters)), signature.return_annotation) == ("image", "Classification")


def test_nothing_is_imported_that_is_not_used() -> None:
    script = """
import sys
from ekiben.client import Client
heavy = {"httpx", "grpc", "google.protobuf", "rich", "pydantic", "torch"}
print(sorted(heavy & set(sys.modules)))
Client("http://localhost:1")
print(sorted(heavy & set(sys.modules) - {"rich"}))
Client("grpc://localhost:1")
print(sorted({"grpc", "torch"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "['httpx']", "['grpc']"]
