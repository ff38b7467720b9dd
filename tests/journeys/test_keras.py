"""Keras and TensorFlow models are converted, served, and answer what Keras itself predicts for the image."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ekiben.settings import Settings
from export.__main__ import main
from models.artifact import read_manifest
from tests.serving import ROOT, serving, wait_ready

# The environment with TensorFlow is made where it is missing: minutes.
pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(1800)]

PHOTO = ROOT / "docs" / "images" / "cells.png"
PYTHON = ROOT / ".venv-keras" / "bin" / "python"
FOUR, THREE, TWO = ["a", "b", "c", "d"], ["background", "x", "y"], ["no", "yes"]

CLASSIFIERS: dict[str, tuple[str, list[str], list[str], str]] = {
    # name: file, labels, arguments, prediction
    "cnn": ("cnn.keras", FOUR, [], "cnn"),
    "cnn_h5": ("cnn.h5", FOUR, [], "cnn"),
    "cnn_exported": ("cnn_exported", FOUR, ["--preprocess", "raw"], "cnn"),
    "cnn_nearest": ("cnn.keras", FOUR, ["--interpolation", "nearest"], "cnn_nearest"),
    "cnn_dataset": ("cnn.keras", FOUR, ["--interpolation", "bilinear_no_antialias"], "cnn_dataset"),
    "grey": ("grey.keras", TWO, ["--preprocess", "unit"], "grey"),
    "mobilenet": ("mobilenet.keras", [f"class {i}" for i in range(10)], ["--preprocess", "tf"], "mobilenet"),
    "mobilenet_saved": ("mobilenet_saved", [f"class {i}" for i in range(10)], ["--preprocess", "tf"], "mobilenet"),
    "heads": ("heads.keras", ["a", "b", "c"], ["--preprocess", "caffe", "--output-name", "kind"], "heads"),
    "second": ("second.h5", ["a", "b", "c"], ["--mean", "0.5", "--std", "0.5"], "second"),
}
SEGMENTERS: dict[str, tuple[str, list[str], list[str], str]] = {
    "unet": ("unet.keras", THREE, ["--preprocess", "unit"], "unet"),
    "unet_exported": ("unet_exported", THREE, ["--preprocess", "unit"], "unet"),
    "binary_unet": ("binary_unet.keras", ["thing"], ["--preprocess", "unit"], "binary_unet"),
    "any_size": ("any_size.keras", THREE, ["--preprocess", "unit", "--size", "64", "96"], "any_size"),
}


@pytest.fixture(scope="module")
def keras_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    subprocess.run(["make", "--no-print-directory", "keras", f"PYTHON={sys.executable}"], cwd=ROOT, check=True)
    folder = tmp_path_factory.mktemp("keras")
    script = ROOT / "tests" / "export" / "keras" / "keras_models.py"
    done = subprocess.run(
        [str(PYTHON), str(script), str(folder), str(PHOTO)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("keras-home") / "var"
    with pytest.MonkeyPatch.context() as patch:
        for name in Settings.model_fields:
            patch.delenv(f"EKIBEN_{name.upper()}", raising=False)
        patch.setenv("EKIBEN_HOME", str(folder))
        yield folder


def convert(source: Path, name: str, task: str, labels: list[str], arguments: list[str]) -> int:
    listed = source.parent / f"{name}.labels"
    listed.write_text("\n".join(labels) + "\n")
    given = [str(source), "--name", name, "--task", task, "--labels", str(listed), "--python", str(PYTHON)]
    return main(["keras", *given, *arguments])


@pytest.fixture(scope="module")
def client(keras_models: Path, home: Path) -> Iterator[httpx.Client]:
    for name, (file, labels, arguments, _) in CLASSIFIERS.items():
        assert convert(keras_models / file, name, "classify", labels, arguments) == 0, name
    for name, (file, labels, arguments, _) in SEGMENTERS.items():
        assert convert(keras_models / file, name, "segment", labels, arguments) == 0, name
    with serving(home, wait=False) as server, server.client() as client:
        wait_ready(server, 300)
        yield client


def predictions(folder: Path) -> Any:
    return np.load(folder / "predictions.npz")


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_answers_what_keras_predicts(client: httpx.Client, keras_models: Path, name: str) -> None:
    _, labels, _, prediction = CLASSIFIERS[name]
    expected = predictions(keras_models)[prediction]
    if expected.shape == (1,):
        expected = np.array([1 - expected[0], expected[0]])
    answer = client.post(f"/v1/classify?model={name}&top_k={len(labels)}", content=PHOTO.read_bytes())
    assert answer.status_code == 200, answer.text
    got = {score["class_name"]: score["confidence"] for score in answer.json()["predictions"]}
    # Pillow rounds what TensorFlow does not, where the four pixels are chosen as TensorFlow does: a level of 255.
    allowed = 2e-3 if prediction in ("cnn_dataset", "grey") else 2e-5
    np.testing.assert_allclose([got[label] for label in labels], expected, atol=allowed)
    assert expected.std() > 5 * allowed  # else it would hold of any answer


def class_map(client: httpx.Client, name: str, image: bytes) -> NDArray[np.uint8]:
    answer = client.post(f"/v1/segment?model={name}", content=image)
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(client.get(answer.json()["artifacts"]["mask"]).content)))


@pytest.mark.parametrize("name", SEGMENTERS)
def test_a_segmenter_answers_what_keras_predicts(client: httpx.Client, keras_models: Path, name: str) -> None:
    scores = predictions(keras_models)[SEGMENTERS[name][3]]
    expected = scores.argmax(-1) if scores.shape[-1] > 1 else (scores[..., 0] > 0).astype(int)
    small = io.BytesIO()
    Image.open(PHOTO).convert("RGB").resize((96, 64), Image.Resampling.BILINEAR).save(small, "PNG")
    got = class_map(client, name, small.getvalue())
    assert (got == expected).mean() > 0.9995
    assert 0.02 < (expected == np.bincount(expected.ravel()).argmax()).mean() < 0.98
    assert class_map(client, name, PHOTO.read_bytes()).shape == Image.open(PHOTO).size[::-1]


def test_what_was_converted_is_said(client: httpx.Client, home: Path) -> None:
    manifest = read_manifest(home / "blobs" / "models" / "mobilenet" / "1")
    assert manifest.only_output.activation == "probabilities"
    assert manifest.parity is not None
    assert "1x96x96x3, 2x96x96x3, 5x96x96x3" in manifest.parity.inputs
    assert manifest.parity.onnx_max_abs < 1e-4
    assert manifest.weights.detail.startswith("mobilenet.keras, Keras 3.")
    assert manifest.input.batch is None
    assert read_manifest(home / "blobs" / "models" / "heads" / "1").input.batch == 1
    listed = client.get("/v1/models/mobilenet").json()
    assert listed["name"] == "mobilenet"


@pytest.mark.parametrize(
    ("file", "arguments", "sentence"),
    [
        ("lambda.keras", ["--preprocess", "unit"], "it has a Lambda layer 'lambda', which is Python code"),
        ("lambda.h5", ["--preprocess", "unit"], "it has a Lambda layer 'lambda', which is Python code"),
        ("own.keras", ["--preprocess", "unit"], "it has the class 'Own' 'own' of the user's own"),
        ("writes", ["--preprocess", "unit"], "might reach files or Python (WriteFile)"),
        ("training", ["--preprocess", "raw"], "so it was exported in training mode"),
        ("only.weights.h5", ["--preprocess", "unit"], "it holds weights without a model"),
        ("cut.keras", ["--preprocess", "unit"], "it is no .keras file"),
        ("cut.h5", ["--preprocess", "unit"], "its HDF5 structure is damaged"),
        ("text.keras", ["--preprocess", "unit"], "it is neither a .keras file"),
        ("whole.keras", ["--preprocess", "unit"], "it has the class 'Own'"),
        ("mobilenet.keras", [], "nothing says how pixels are prepared for it: give --preprocess"),
        ("any_size.keras", ["--preprocess", "unit"], "give the size to convert it for with --size"),
        ("cnn.keras", ["--output", "logits"], "the model ends in softmax, so it gives probabilities, not logits"),
        ("heads.keras", ["--preprocess", "caffe"], "the model has 2 outputs (kind, age); say which with --output-name"),
        ("cnn_exported", ["--preprocess", "raw", "--signature", "x"], "the SavedModel has no x; it has serve"),
        ("mobilenet.keras", ["--preprocess", "tf"], "the graph gives 10 classes, but there are 3 labels"),
    ],
)
def test_what_cannot_be_converted_is_refused(
    keras_models: Path,
    home: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    arguments: list[str],
    sentence: str,
) -> None:
    assert convert(keras_models / file, "refused", "classify", ["a", "b", "c"], arguments) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert said.startswith("export: ")
    assert said.count("\n") == 1
    assert not (keras_models / "written").exists()
    assert not (home / "blobs" / "models" / "refused").exists()


def test_a_savedmodel_of_a_class_of_ones_own_is_read(keras_models: Path, home: Path) -> None:
    assert convert(keras_models / "own_exported", "own", "classify", ["a", "b", "c"], ["--preprocess", "unit"]) == 0
