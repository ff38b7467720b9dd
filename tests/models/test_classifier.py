"""Scores of classes: confidences against float64, the order of the best, and what cannot be asked for."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ekiben.errors import BadInput
from models.artifact import Activation, Manifest
from models.classifier import Classifier, check_top_k
from models.images import DecodedImage
from models.inference_requests import InferenceRequest
from tests import toy_models

IMAGE = DecodedImage(toy_models.solid((255, 0, 0), 20, 10), "image/png")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return toy_models.classifier(tmp_path_factory.mktemp("toy"))


def of(manifest: Manifest, labels: int, activation: Activation = "logits") -> Classifier:
    return Classifier(
        manifest.model_copy(
            update={
                "labels": tuple(f"class {i}" for i in range(labels)),
                "output": manifest.output.model_copy(update={"activation": activation}),
            }
        )
    )


def softmax(logits: list[float]) -> list[float]:
    """In float64, by the definition."""
    highest = max(logits)
    exps = [math.exp(value - highest) for value in logits]
    return [value / math.fsum(exps) for value in exps]


@settings(deadline=None, max_examples=100)
@given(logits=st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=50))
def test_confidences_are_the_softmax(logits: list[float], manifest: Manifest) -> None:
    confidences = of(manifest, len(logits)).confidences(np.array(logits, np.float32))
    assert confidences.dtype == np.float32 and confidences.shape == (len(logits),)
    assert confidences == pytest.approx(softmax(logits), rel=2e-5, abs=1e-7)


@pytest.mark.parametrize("shift", [1000.0, -1000.0, 1e30])
def test_softmax_of_huge_logits_does_not_overflow(manifest: Manifest, shift: float) -> None:
    confidences = of(manifest, 3).confidences(np.array([shift, shift, -shift], np.float32))
    expected = [0.5, 0.5, 0.0] if shift > 0 else [0.0, 0.0, 1.0]
    assert confidences == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("activation", ["probabilities", "sigmoid"])
def test_values_that_are_confidences_already_stay_as_they_are(manifest: Manifest, activation: Activation) -> None:
    values = [0.7, 0.9, 0.001, 0.7]
    answer = of(manifest, 4, activation).postprocess(
        np.array(values, np.float32), IMAGE, InferenceRequest(b"", top_k=4)
    )
    assert [s.class_index for s in answer.scores] == [1, 0, 3, 2]
    assert [s.confidence for s in answer.scores] == pytest.approx([0.9, 0.7, 0.7, 0.001], rel=1e-6)


@pytest.mark.parametrize("shape", [(5,), (5, 1, 1), (1, 1, 5), (1, 5)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_axes_of_length_one_and_the_float_type_do_not_matter(
    manifest: Manifest, shape: tuple[int, ...], dtype: type[np.floating]
) -> None:
    logits = np.array([0.5, 2, -1, 4, 0.25])
    assert of(manifest, 5).confidences(logits.astype(dtype).reshape(shape)) == pytest.approx(
        softmax([*logits]), abs=1e-6
    )


def test_the_best_come_first_with_name_index_and_plain_numbers(manifest: Manifest) -> None:
    answer = of(manifest, 4).postprocess(np.array([1, 3, 2, -5], np.float32), IMAGE, InferenceRequest(b"", top_k=3))
    expected = softmax([1, 3, 2, -5])
    assert [(s.class_index, s.class_name) for s in answer.scores] == [(1, "class 1"), (2, "class 2"), (0, "class 0")]
    assert [s.confidence for s in answer.scores] == pytest.approx([expected[1], expected[2], expected[0]], abs=1e-6)
    assert all(type(s.class_index) is int and type(s.confidence) is float for s in answer.scores)
    assert (answer.image.width, answer.image.height, answer.areas, dict(answer.renders)) == (20, 10, (), {})


@settings(deadline=None, max_examples=50)
@given(levels=st.lists(st.integers(0, 3), min_size=1, max_size=40), data=st.data())
def test_ties_keep_the_order_of_the_labels(levels: list[int], data: st.DataObject, manifest: Manifest) -> None:
    top_k = data.draw(st.integers(1, len(levels)))
    answer = of(manifest, len(levels)).postprocess(
        np.array(levels, np.float32), IMAGE, InferenceRequest(b"", top_k=top_k)
    )
    expected = sorted(range(len(levels)), key=lambda i: (-levels[i], i))[:top_k]
    assert [s.class_index for s in answer.scores] == expected


@pytest.mark.parametrize("top_k", [0, -1, 5, 10**9])
def test_top_k_outside_the_classes_is_refused(manifest: Manifest, top_k: int) -> None:
    message = f"top_k is {top_k}; this model has 4 classes, so 1 to 4 can be asked for"
    with pytest.raises(BadInput, match=message):
        of(manifest, 4).postprocess(np.zeros(4, np.float32), IMAGE, InferenceRequest(b"", top_k=top_k))
    with pytest.raises(BadInput):
        check_top_k(top_k, 4)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_top_k_within_the_classes_gives_so_many(manifest: Manifest, top_k: int) -> None:
    answer = of(manifest, 4).postprocess(np.zeros(4, np.float32), IMAGE, InferenceRequest(b"", top_k=top_k))
    assert len(answer.scores) == top_k


def test_preprocess_is_the_manifest_s(tmp_path: Path) -> None:
    classifier = Classifier(toy_models.classifier(tmp_path, layout="NHWC", color="BGR", dtype="uint8"))
    tensor = classifier.preprocess(DecodedImage(toy_models.solid((1, 2, 3)), "image/png"))
    assert tensor.shape == (toy_models.SIDE, toy_models.SIDE, 3) and tensor.dtype == np.uint8
    assert tensor[0, 0].tolist() == [3, 2, 1]
