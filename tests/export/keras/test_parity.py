"""Parity and the check for training mode, with functions in Keras' place and small ONNX files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from export.keras.messages import RAW_STD, ConversionRequest
from export.keras.parity import Inputs, grey, images, measure, normalised, refuse_training_mode
from models.artifact import Preprocess
from models.onnx_import.checks import Refused
from models.preprocess import Preprocessor
from tests.models.onnx_import.onnx_files import MEAN, graph, image, scores
from tests.models.test_preprocess import preprocessor

REQUEST = ConversionRequest("m.keras", "m.onnx", "classify", 3, (0.0,) * 3, (1.0,) * 3)
INPUTS = Inputs((None, 8, 8, 3), np.float32, REQUEST)


def same(values: NDArray[Any]) -> NDArray[Any]:
    return values


def mean(pixels: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(pixels.mean((1, 2)))


@pytest.fixture
def means(tmp_path: Path) -> Path:
    """[N, 3]: the means of the channels."""
    return graph(MEAN, [image()], [scores()])(tmp_path / "m.onnx")


def test_equal_outputs_have_parity_at_batches_1_2_and_5(means: Path) -> None:
    measured = measure(means, mean, same, INPUTS)
    assert measured.max_abs < 1e-6
    assert "1x8x8x3, 2x8x8x3, 5x8x8x3" in measured.inputs
    assert measured.spread > 0.01


def test_the_tolerance_follows_the_spread(means: Path) -> None:
    """A difference of 0.0005 would pass an absolute tolerance of 0.001; the spread of these outputs is 0.1."""
    spread = measure(means, mean, same, INPUTS).spread
    assert measure(means, lambda pixels: mean(pixels) + 5e-4 * spread, same, INPUTS).max_abs > 0
    with pytest.raises(Refused, match=r"ONNX Runtime differs from Keras by .* on a batch of 1 x 8 x 8; at most"):
        measure(means, lambda pixels: mean(pixels) + 2e-3 * spread, same, INPUTS)


@pytest.mark.parametrize(
    ("predict", "sentence"),
    [
        (lambda pixels: mean(pixels)[:, :2], r"gives \[1, 3\] where Keras gives \[1, 2\]"),
        (lambda pixels: mean(pixels) * np.nan, "Keras gives values that are no finite numbers"),
        (lambda pixels: 1 / 0, "Keras cannot run it: division by zero"),
    ],
)
def test_what_cannot_be_compared_is_refused(means: Path, predict: Any, sentence: str) -> None:
    with pytest.raises(Refused, match=sentence):
        measure(means, predict, same, INPUTS)


def test_a_graph_that_does_not_open_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"nothing")
    with pytest.raises(Refused, match="ONNX Runtime cannot open"):
        measure(tmp_path / "m.onnx", mean, same, INPUTS)


def test_a_fixed_batch_is_tried_alone() -> None:
    assert Inputs((1, 8, None, 3), np.float32, REQUEST).batches() == (1,)
    assert Inputs((None, 8, None, 3), np.float32, REQUEST).sizes() == [(8, 128)]
    assert len(Inputs((None, None, None, 3), np.float32, REQUEST).sizes()) == 2
    assert Inputs((None, None, None, 3), np.float32, replace(REQUEST, size=(40, 48))).sizes() == [(40, 48)]


def test_dropout_and_the_statistics_of_a_batch_are_training_mode() -> None:
    source = np.random.default_rng(0)

    def dropout(pixels: NDArray[Any]) -> NDArray[Any]:
        return mean(pixels * (source.random(pixels.shape) > 0.2))

    def batch_normalised(pixels: NDArray[Any]) -> NDArray[Any]:
        return mean(pixels - pixels.mean((0, 1, 2)))

    refuse_training_mode(mean, INPUTS)
    with pytest.raises(Refused, match="other values when it is asked again, so it was exported in training mode"):
        refuse_training_mode(dropout, INPUTS)
    with pytest.raises(Refused, match="when other images are in its batch, so it was exported in training mode"):
        refuse_training_mode(batch_normalised, INPUTS)


@pytest.mark.parametrize("bgr", [False, True])
def test_pixels_are_prepared_as_the_server_does(bgr: bool) -> None:
    pixels = images(1, 12, 16)
    request = replace(REQUEST, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, RAW_STD), bgr=bgr)
    assert request.mean is not None
    assert request.std is not None
    steps = Preprocess(mean=request.mean, std=request.std)
    server: Preprocessor = preprocessor(steps, (12, 16), color="BGR" if bgr else "RGB")
    np.testing.assert_array_equal(normalised(pixels, request)[0].transpose(2, 0, 1), server(Image.fromarray(pixels[0])))


def test_grey_is_that_of_pillow() -> None:
    pixels = images(1, 32, 32)
    levels = np.asarray(Image.fromarray(pixels[0]).convert("L")).astype(int)
    assert np.abs(grey(pixels, bgr=False)[0, :, :, 0].astype(int) - levels).max() <= 1
    np.testing.assert_array_equal(grey(pixels[..., ::-1], bgr=True), grey(pixels, bgr=False))
