"""ImageBatchSteps on a graph of any size whose shape arithmetic does not take every size."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ekiben.errors import BadInput, Refusal
from models.artifact import ONNX
from models.engine.batch_run import Item, run_batch
from models.engine.engine import ModelKey
from models.engine.loader import LoadedNetwork, load_artifact
from models.engine.session_options import SessionOptions
from models.image_batch_steps import ImageBatchSteps, TileInput
from models.images import DecodedImage
from models.inference_requests import InferenceRequest, InferenceResponse, PreparedTensor
from tests import toy_models

MIX = np.concatenate([np.zeros((1, 3)), np.eye(3)]).astype(np.float32) * toy_models.STEEPNESS
LIFT = np.array([toy_models.STEEPNESS / 2, 0, 0, 0], np.float32)


def skipping(folder: Path) -> None:
    """A segmenter that answers AREAS and looks at a halved and doubled copy besides: both sides must be even."""
    toy_models.segmenter(folder, side=None)
    graph = toy_models.Graph()
    halved = graph.node("MaxPool", "input", kernel_shape=[2, 2], strides=[2, 2])
    doubled = graph.node("Resize", halved, "", graph.constant(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    both = graph.node("Concat", "input", doubled, axis=1)
    mix = np.concatenate([MIX, np.zeros_like(MIX)], axis=1).reshape(-1, 6, 1, 1)
    graph.finish(graph.node("Conv", both, graph.constant(mix), graph.constant(LIFT)), "logits")
    graph.save(
        folder / ONNX,
        [toy_models.value("input", ["batch", 3, "height", "width"])],
        [toy_models.value("output", ["batch", 4, "out_height", "out_width"])],
    )


def opened(folder: Path) -> LoadedNetwork:
    return load_artifact(ModelKey("local", "toy", 1), folder, SessionOptions(device="cpu"))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedNetwork]:
    folder = tmp_path_factory.mktemp("skipping")
    skipping(folder)
    loaded = opened(folder)
    yield loaded
    loaded.close()


def tensor(height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((3, height, width), np.float32)


def areas(prepared: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.where(prepared.max(axis=0) > 0.5, prepared.argmax(axis=0) + 1, 0).astype(np.uint8)


def test_a_prepared_tensor_that_the_graph_does_not_take(loaded: LoadedNetwork) -> None:
    with pytest.raises(BadInput) as caught:
        ImageBatchSteps(loaded).run([(tensor(33, 47), None)])
    # Not the runtime's text: that names nodes of the graph.
    assert caught.value.message == "the network does not take a tensor of [3, 33, 47]"
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_one_that_it_takes(loaded: LoadedNetwork) -> None:
    given = tensor(34, 48)
    (output,) = ImageBatchSteps(loaded).run([(given, None)])
    expected = np.einsum("kc,chw->khw", MIX, given) + LIFT[:, None, None]
    assert output.shape == (4, 34, 48) and np.abs(output - expected).max() < 1e-4


def test_each_of_a_batch_is_answered_for_itself(loaded: LoadedNetwork) -> None:
    """Also where tensors that are not taken share a run."""
    sizes = [(34, 48), (33, 47), (33, 47), (34, 48), (20, 21), (2, 2)]
    given = [tensor(*size, seed=seed) for seed, size in enumerate(sizes)]
    answers: list[tuple[InferenceResponse | None, BaseException | None]] = []
    items: list[Item[InferenceRequest | TileInput, InferenceResponse | int]] = []
    for number, one in enumerate(given):
        answers.append((None, None))

        def take(result: Any, _: Any, error: BaseException | None, number: int = number) -> None:
            answers[number] = result, error

        items.append(
            Item(InferenceRequest(PreparedTensor(one), tensors=("class_map",)), one.nbytes, time.monotonic() + 30, take)
        )
    assert run_batch(ImageBatchSteps(loaded), items, time.monotonic()) == len(items)
    for one, (answer, error) in zip(given, answers, strict=True):
        if one.shape[1] % 2 or one.shape[2] % 2:
            assert isinstance(error, BadInput) and error.message.endswith(str(list(one.shape)))
        else:
            assert error is None and answer is not None
            assert np.array_equal(answer.tensors["class_map"], areas(one))


def test_of_an_image_that_ekiben_prepared_itself_the_error_is_a_fault(loaded: LoadedNetwork) -> None:
    with pytest.raises(Exception, match="Concat") as caught:
        ImageBatchSteps(loaded).run([(tensor(33, 47), DecodedImage(toy_models.noise(47, 33), "image/png"))])
    assert not isinstance(caught.value, Refusal)


def test_of_a_graph_of_fixed_size_the_error_is_a_fault(tmp_path: Path) -> None:
    """What it takes is checked before: that it fails is not the caller's doing."""
    toy_models.segmenter(tmp_path)
    fixed = opened(tmp_path)
    try:
        with pytest.raises(Exception, match=r"16.*32") as caught:
            ImageBatchSteps(fixed).run([(tensor(16, 16), None)])
        assert not isinstance(caught.value, Refusal)
    finally:
        fixed.close()
