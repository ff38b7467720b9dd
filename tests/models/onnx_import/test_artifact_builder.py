"""Users' ONNX files that become artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from ekiben.errors import BadInput, BadModelFile, Conflict
from models.artifact import read_manifest, verify, voc_palette
from models.engine.loader import load_artifact
from models.engine.session_options import SessionOptions
from models.model_key import ModelKey
from models.onnx_import import check_process
from models.onnx_import.artifact_builder import build_artifact, read_graph, whole_folder
from models.onnx_import.checks import Refused, read_file
from models.onnx_import.options import read_labels
from tests import toy_models
from tests.models.onnx_import.onnx_files import classifier, image, options, save, scores, segmenter

VOC_NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
)


def test_mobilenet_becomes_an_artifact(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "models/mobilenet_v2"
    given = options(
        labels=read_labels(source / "labels.txt"),
        mean=str(128 / 255),
        std=str(128 / 255),
        crop="0.875",
        output="probabilities",
        licence="Apache-2.0",
        source="Coral",
    )
    made = build_artifact(source / "model.onnx", tmp_path / "artifact", given)
    assert (made.input.name, made.input.batch, made.input.height, made.input.width) == ("input", 1, 224, 224)
    assert (made.output.name, made.output.activation) == ("probabilities", "probabilities")
    assert (len(made.labels), made.labels[0], made.labels[3]) == (
        1001,
        "background",
        "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias",
    )
    assert (made.preprocess.crop_share, made.preprocess.mean) == (0.875, (128 / 255,) * 3)
    assert (made.weights.kind, made.weights.sha256) == ("imported", made.files["model.onnx"].sha256)
    assert (made.precision, made.opset, made.licence, made.source) == ("float32", 17, "Apache-2.0", "Coral")
    assert read_manifest(tmp_path / "artifact") == made
    verify(tmp_path / "artifact", made)
    assert (tmp_path / "artifact" / "model.onnx").read_bytes() == (source / "model.onnx").read_bytes()


def test_deeplab_becomes_an_artifact_with_the_labels_above_the_blank_line(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "models/deeplabv3_voc"
    labels = read_labels(source / "labels.txt")
    assert " ".join(labels) == VOC_NAMES
    made = build_artifact(
        source / "model.onnx", tmp_path / "artifact", options("segment", labels, mean="0.5", std="0.5")
    )
    assert (made.input.height, made.input.width, made.output.layout) == (513, 513, "NCHW")
    assert made.palette == voc_palette(21)


def test_portrait_unet_gets_a_background_and_keeps_its_dynamic_batch(shared_data: Path, tmp_path: Path) -> None:
    model = shared_data / "models/portrait_unet/model.onnx"
    made = build_artifact(model, tmp_path / "artifact", options("segment", "person", output="sigmoid"))
    assert (made.labels, made.input.batch, made.opset) == (("background", "person"), None, 7)
    info = read_graph(model)
    reference = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    zeros = reference.run(None, {info.input_name: np.zeros((1, 3, 256, 256), np.float32)})[0]
    assert info.outputs[0].shape == zeros.shape
    assert info.outputs[0].high == pytest.approx(float(zeros.max()), abs=1e-4)


def test_a_forgotten_softmax_is_noticed(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "models/mobilenet_v2"
    with pytest.raises(BadInput, match="add up to 1; say probabilities, not logits"):
        build_artifact(source / "model.onnx", tmp_path / "artifact", options(labels=read_labels(source / "labels.txt")))
    assert list(tmp_path.iterdir()) == []


def test_facts_of_a_small_classifier(tmp_path: Path) -> None:
    file = classifier(tmp_path / "model.onnx")
    info = read_file(file, "NCHW")
    assert info == {
        "input_name": "input",
        "dtype": "float32",
        "layout": "NCHW",
        "batch": None,
        "height": 8,
        "width": 8,
        "opset": 17,
        "precision": "float32",
    }
    output = check_process.try_out(file, info, None, cpu_s=1e9)["outputs"][0]  # of this process, which runs other tests
    # On zeros only the bias is left.
    assert output == {
        "name": "scores",
        "dtype": "float32",
        "shape": [1, 3],
        "batched": True,
        "low": 0.0,
        "high": 2.0,
        "mean": 1.0,
    }
    with pytest.raises(Refused, match="8 channels as NHWC; its shape looks like NCHW"):
        read_file(file, "NHWC")


def test_an_open_batch_that_is_baked_in_is_recorded_as_one(tmp_path: Path) -> None:
    shape = numpy_helper.from_array(np.array([1, 3], np.int64), "shape")
    ramp = numpy_helper.from_array(np.arange(3, dtype=np.float32), "ramp")
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["pooled"], axes=[2, 3], keepdims=0),
        helper.make_node("Reshape", ["pooled", "shape"], ["flat"]),
        helper.make_node("Add", ["flat", "ramp"], ["scores"]),
    ]
    file = save(tmp_path / "model.onnx", nodes, [image()], [scores()], initializer=[shape, ramp])
    assert build_artifact(file, tmp_path / "artifact", options()).input.batch == 1
    assert build_artifact(classifier(file), tmp_path / "other", options()).input.batch is None


def test_of_several_outputs_the_one_that_fits_is_read(tmp_path: Path) -> None:
    def two_heads(first: int, second: int) -> Path:
        weights = [numpy_helper.from_array(np.ones((3, n), np.float32), f"w{i}") for i, n in enumerate((first, second))]
        nodes = [
            helper.make_node("ReduceMean", ["input"], ["pooled"], axes=[2, 3], keepdims=0),
            helper.make_node("MatMul", ["pooled", "w0"], ["first"]),
            helper.make_node("MatMul", ["pooled", "w1"], ["second"]),
        ]
        outputs = [scores("n", first, name="first"), scores("n", second, name="second"), image(name="input_again")]
        nodes.append(helper.make_node("Identity", ["input"], ["input_again"]))
        return save(tmp_path / "model.onnx", nodes, [image()], outputs, initializer=weights)

    two_heads(5, 3)
    made = build_artifact(tmp_path / "model.onnx", tmp_path / "by_labels", options())
    assert made.output.name == "second"
    two_heads(3, 3)
    with pytest.raises(BadInput, match=r"several outputs suit classify \(first, second\); say which with output_name"):
        build_artifact(tmp_path / "model.onnx", tmp_path / "none", options())
    made = build_artifact(tmp_path / "model.onnx", tmp_path / "by_name", options(output_name="first"))
    assert made.output.name == "first"
    with pytest.raises(BadInput, match=r"no output 'third'; it has first, second, input_again"):
        build_artifact(tmp_path / "model.onnx", tmp_path / "none", options(output_name="third"))


def test_sizes_of_dynamic_graphs(tmp_path: Path) -> None:
    file = classifier(tmp_path / "model.onnx", shape=("n", 3, "h", "w"))
    made = build_artifact(file, tmp_path / "a", options(size="16", shorter_side="20"))
    assert (made.input.height, made.input.width) == (16, 16)
    assert (made.preprocess.shorter_side, made.preprocess.center_crop) == (20, 16)
    with pytest.raises(BadInput, match="at least the side of a square input is needed; the input is 16 x 24"):
        build_artifact(file, tmp_path / "none", options(size="16,24", shorter_side="32"))
    file = segmenter(tmp_path / "model.onnx", 3)
    made = build_artifact(file, tmp_path / "b", options("segment", shorter_side="20"))
    assert (made.input.height, made.input.width, made.preprocess.shorter_side) == (None, None, 20)
    assert made.preprocess.center_crop is None


def test_a_graph_with_channels_last(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", ["input"], ["scores"])]
    file = save(tmp_path / "model.onnx", nodes, [image("n", 8, 12, 3)], [image("n", 8, 12, 3, name="scores")])
    made = build_artifact(file, tmp_path / "artifact", options("segment", layout="NHWC", color="BGR"))
    assert (made.input.layout, made.output.layout, made.input.color) == ("NHWC", "NHWC", "BGR")
    assert (made.input.height, made.input.width) == (8, 12)


def test_the_labels_tell_the_output_layout(tmp_path: Path) -> None:
    nodes = [helper.make_node("Transpose", ["input"], ["scores"], perm=[0, 2, 3, 1])]
    file = save(tmp_path / "model.onnx", nodes, [image("n", 3, 8, 8)], [image("n", 8, 8, 3, name="scores")])
    made = build_artifact(file, tmp_path / "artifact", options("segment"))
    assert (made.input.layout, made.output.layout) == ("NCHW", "NHWC")


def test_sigmoid_channels_with_and_without_a_named_background(tmp_path: Path) -> None:
    file = segmenter(tmp_path / "model.onnx", 2, shape=("n", 3, 8, 8), last="Sigmoid")
    given = {"output": "sigmoid", "palette": "10 20 30\n40,50,60"}
    made = build_artifact(file, tmp_path / "added", options("segment", "cell\nnucleus", **given))
    assert made.labels == ("background", "cell", "nucleus")
    assert made.palette == ((0, 0, 0), (10, 20, 30), (40, 50, 60))
    made = build_artifact(file, tmp_path / "named", options("segment", "none\ncell\nnucleus", output="sigmoid"))
    assert made.labels == ("none", "cell", "nucleus")


def test_precision_is_that_of_the_weights(tmp_path: Path) -> None:
    half = numpy_helper.from_array(np.arange(3).astype(np.float16), "b")
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["pooled"], axes=[2, 3], keepdims=0),
        helper.make_node("Cast", ["pooled"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Add", ["half", "b"], ["scores"]),
    ]
    outputs = [scores("n", 3, kind=TensorProto.FLOAT16)]
    file = save(tmp_path / "model.onnx", nodes, [image()], outputs, initializer=[half])
    assert build_artifact(file, tmp_path / "artifact", options()).precision == "float16"


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "a") as staging:
        (staging / "half").write_text("")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with whole_folder(tmp_path / "a") as staging:
        (staging / "file").write_text("whole")
        assert not (tmp_path / "a").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755
    with pytest.raises(Conflict, match="exists; remove it"), whole_folder(tmp_path / "a"):
        pass
    assert (tmp_path / "a" / "file").read_text() == "whole"


def test_an_upload_is_called_what_the_person_calls_it(tmp_path: Path) -> None:
    file = classifier(tmp_path / "upload.onnx")
    made = build_artifact(file, tmp_path / "artifact", options(), file_name="mine.onnx")
    assert str(made.weights) == "imported (mine.onnx)"
    file.write_bytes(b"")
    with pytest.raises(BadModelFile, match=r"^mine\.onnx is empty$"):
        build_artifact(file, tmp_path / "none", options(), file_name="mine.onnx")


@pytest.mark.parametrize(
    "output",
    [
        onnx.ValueInfoProto(name="scores"),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, None),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, [None] * 4),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["", "unk__1", "a b", "?"]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, [-1, -1, 0, 0]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, []),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 4, 10, 10]),
    ],
    ids=["no type", "no shape", "no dimensions", "odd names", "not positive", "scalar", "wrong"],
)
def test_what_a_file_says_of_its_output_does_not_matter(tmp_path: Path, output: Any) -> None:
    """The trial run tells what the output is; and the imported file answers."""
    weight = numpy_helper.from_array(np.eye(4, 3, -1, np.float32)[:, :, None, None], "w")
    bias = numpy_helper.from_array(np.array([0.5, 0, 0, 0], np.float32), "b")
    nodes = [helper.make_node("Conv", ["input", "w", "b"], ["scores"])]
    file = save(tmp_path / "model.onnx", nodes, [image("n", 3, "h", "w")], [output], initializer=[weight, bias])
    made = build_artifact(file, tmp_path / "made", options("segment", toy_models.AREAS, size="32"))
    assert (made.only_output.layout, made.input.batch, made.input.height) == ("NCHW", None, 32)
    loaded = load_artifact(ModelKey("local", "m", 1), tmp_path / "made", SessionOptions(device="cpu", threads=1))
    green = np.zeros((2, 3, 32, 32), np.float32)
    green[:, 1] = 1
    assert (loaded.run(green).argmax(1) == toy_models.AREAS.index("green")).all()


@pytest.mark.parametrize(
    "given", [onnx.ValueInfoProto(name="input"), helper.make_tensor_value_info("input", TensorProto.FLOAT, None)]
)
def test_an_input_without_shape_is_the_image(tmp_path: Path, given: Any) -> None:
    file = segmenter(tmp_path / "model.onnx", 3)
    model = onnx.load(file)
    model.graph.input[0].CopyFrom(given)
    file.write_bytes(model.SerializeToString())
    if given.HasField("type"):
        made = build_artifact(file, tmp_path / "made", options("segment", size="16"))
        assert (made.input.batch, made.input.height, made.input.width) == (None, 16, 16)
    else:  # ONNX Runtime needs the type of what it is given
        with pytest.raises(BadModelFile, match="ONNX Runtime cannot open it"):
            build_artifact(file, tmp_path / "made", options("segment", size="16"))
