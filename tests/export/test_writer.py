"""Artifact folders: what lies in them, and that a graph which is not the network never gets there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch")

from ekiben.errors import Conflict  # noqa: E402
from export import writer  # noqa: E402
from export.recipe import Recipe, images  # noqa: E402
from export.verify import ParityError, measure_parity  # noqa: E402
from models.artifact import read_manifest, verify, voc_palette  # noqa: E402
from models.onnx_import.artifact_builder import read_graph  # noqa: E402

ONE_AND_THREE = ((1, 224, 224), (3, 224, 224))


def run(folder: Path, pixels: torch.Tensor) -> np.ndarray:
    session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"input": pixels.numpy()})[0]


def test_the_classifiers_artifact(efficientnet: Recipe, efficientnet_folder: Path) -> None:
    assert sorted(path.name for path in efficientnet_folder.iterdir()) == [
        "manifest.json",
        "model.onnx",
        "model.torchscript.pt",
    ]
    manifest = read_manifest(efficientnet_folder)
    verify(efficientnet_folder, manifest)
    assert (manifest.family, manifest.task, manifest.architecture) == ("classifier", "classify", "efficientnet_b0")
    assert (manifest.input.name, manifest.input.layout, manifest.input.dtype) == ("input", "NCHW", "float32")
    assert (manifest.input.batch, manifest.input.height, manifest.input.width) == (None, 224, 224)
    assert (manifest.output.name, manifest.output.activation, manifest.opset) == ("logits", "logits", 17)
    assert (manifest.preprocess.shorter_side, manifest.preprocess.center_crop) == (256, 224)
    assert (len(manifest.labels), manifest.labels[207], manifest.palette) == (1000, "golden retriever", ())
    # Random weights carry neither the licence nor the accuracy of the published ones.
    assert (str(manifest.weights), manifest.licence, manifest.metrics) == ("random (seed 0)", "unknown", {})
    assert manifest.parity is not None
    assert manifest.parity.onnx_max_abs < 1e-4
    assert manifest.parity.torchscript_max_abs is not None
    assert manifest.parity.torchscript_max_abs < 1e-4
    assert manifest.parity.inputs == "seeded images (seed 7) of 1x3x224x224, 3x3x224x224"


def test_the_classifiers_graph_is_the_network(efficientnet: Recipe, efficientnet_folder: Path) -> None:
    pixels = images(5, 224, 224, seed=11)
    with torch.inference_mode():
        expected = efficientnet.network(pixels).numpy()
        scripted = torch.jit.load(efficientnet_folder / "model.torchscript.pt")(pixels).numpy()
    np.testing.assert_allclose(run(efficientnet_folder, pixels), expected, atol=1e-4)
    np.testing.assert_allclose(scripted, expected, atol=1e-4)
    assert np.ptp(expected, axis=0).max() > 0.01


@pytest.mark.acceptance
def test_the_segmenters_graph_takes_any_size(deeplab: Recipe, deeplab_folder: Path) -> None:
    scripted = torch.jit.load(deeplab_folder / "model.torchscript.pt")
    for shape in ((2, 65, 97), (1, 128, 64)):
        pixels = images(*shape, seed=11)
        with torch.inference_mode():
            expected = deeplab.network(pixels).numpy()
            np.testing.assert_allclose(scripted(pixels).numpy(), expected, atol=1e-4)
        assert expected.shape == (shape[0], 21, *shape[1:])
        np.testing.assert_allclose(run(deeplab_folder, pixels), expected, atol=1e-3)


@pytest.mark.acceptance
def test_the_segmenters_artifact(deeplab_folder: Path) -> None:
    manifest = read_manifest(deeplab_folder)
    verify(deeplab_folder, manifest)
    assert (manifest.family, manifest.task) == ("segmenter", "segment")
    assert (manifest.input.batch, manifest.input.height, manifest.input.width) == (None, None, None)
    assert (manifest.preprocess.shorter_side, manifest.preprocess.center_crop) == (520, None)
    assert (manifest.labels[0], manifest.labels[12], manifest.palette) == ("__background__", "dog", voc_palette(21))
    assert manifest.parity is not None
    assert manifest.parity.onnx_max_abs < 1e-3
    # One output with a known number of classes: the auxiliary head is not there.
    output = onnx.load(deeplab_folder / "model.onnx").graph.output
    assert [value.name for value in output] == ["logits"]
    dims = output[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 21, "height", "width"]


def test_what_is_exported_can_be_imported(efficientnet_folder: Path) -> None:
    info = read_graph(efficientnet_folder / "model.onnx")
    assert (info.batch, info.height, info.width, info.precision) == (None, 224, 224, "float32")
    assert (info.outputs[0].shape, info.outputs[0].batched) == ((1, 1000), True)


def bend(folder: Path, target: Path, value: float) -> Path:
    """The folder's graph with one bias of its last layer changed."""
    model = onnx.load(folder / "model.onnx")
    [bias] = [tensor for tensor in model.graph.initializer if tensor.name.endswith("classifier.1.bias")]
    numbers = numpy_helper.to_array(bias).copy()
    numbers[7] += value
    bias.CopyFrom(numpy_helper.from_array(numbers, bias.name))
    onnx.save(model, target)
    return target


@pytest.mark.parametrize(("value", "said"), [(0.01, "0.01"), (float("nan"), "inf")])
def test_a_graph_that_differs_is_refused(
    efficientnet: Recipe, efficientnet_folder: Path, tmp_path: Path, value: float, said: str
) -> None:
    bent = bend(efficientnet_folder, tmp_path / "bent.onnx", value)
    script = efficientnet_folder / "model.torchscript.pt"
    with pytest.raises(
        ParityError, match=rf"^model.onnx differs from torch by {said} on a batch of 1 x 224 x 224; at most"
    ):
        measure_parity(efficientnet.network, bent, script, ONE_AND_THREE)


def test_a_small_difference_is_measured(efficientnet: Recipe, efficientnet_folder: Path, tmp_path: Path) -> None:
    bent = bend(efficientnet_folder, tmp_path / "bent.onnx", 0.0005)
    script = efficientnet_folder / "model.torchscript.pt"
    parity = measure_parity(efficientnet.network, bent, script, ONE_AND_THREE[:1])
    assert parity.onnx_max_abs == pytest.approx(0.0005, abs=1e-5)


def test_a_traced_network_that_differs_is_refused(
    efficientnet: Recipe, efficientnet_folder: Path, tmp_path: Path
) -> None:
    script = tmp_path / "other.pt"

    class Shifted(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.zeros(pixels.shape[0], 1000)

    torch.jit.save(torch.jit.trace(Shifted(), torch.zeros(1, 3, 224, 224)), script)
    with pytest.raises(ParityError, match=r"^model.torchscript.pt differs from torch by"):
        measure_parity(efficientnet.network, efficientnet_folder / "model.onnx", script, ONE_AND_THREE)


def test_nothing_is_written_when_the_graph_is_wrong(
    efficientnet: Recipe, efficientnet_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(network: object, example: object, path: Path, **settings: object) -> None:
        bend(efficientnet_folder, path, 1.0)

    monkeypatch.setattr(writer, "write_onnx", broken)
    with pytest.raises(ParityError):
        writer.write_artifact(efficientnet, tmp_path / "artifact", shapes=ONE_AND_THREE[:1])
    assert list(tmp_path.iterdir()) == []


def test_a_baked_batch_is_refused(efficientnet: Recipe, efficientnet_folder: Path, tmp_path: Path) -> None:
    fixed = onnx.load(efficientnet_folder / "model.onnx")
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(fixed, tmp_path / "fixed.onnx")
    script = efficientnet_folder / "model.torchscript.pt"
    with pytest.raises(ParityError, match=r"^model.onnx on images of shape \[3, 3, 224, 224\] fails: "):
        measure_parity(efficientnet.network, tmp_path / "fixed.onnx", script, ONE_AND_THREE)


def test_a_folder_that_is_there_is_not_overwritten(efficientnet: Recipe, efficientnet_folder: Path) -> None:
    before = (efficientnet_folder / "manifest.json").read_bytes()
    with pytest.raises(Conflict, match="exists; remove it"):
        writer.write_artifact(efficientnet, efficientnet_folder)
    assert (efficientnet_folder / "manifest.json").read_bytes() == before
