"""ONNX files that cannot become a model, and files that are not what was said of them: a sentence for each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ekiben.errors import BadInput, BadModelFile
from models.onnx_import.artifact_builder import build_artifact
from tests.models.onnx_import.onnx_files import (
    FLOAT,
    MEAN,
    classifier,
    graph,
    image,
    options,
    save,
    scores,
    segmenter,
)


def _truncated(path: Path) -> None:
    whole = classifier(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def _external(location: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        weight = TensorProto(name="w", data_type=FLOAT, dims=[3, 3], data_location=TensorProto.EXTERNAL)
        weight.external_data.add(key="location", value=location)
        nodes = [
            helper.make_node("ReduceMean", ["input"], ["pooled"], axes=[2, 3], keepdims=0),
            helper.make_node("MatMul", ["pooled", "w"], ["scores"]),
        ]
        save(path, nodes, [image()], [scores()], initializer=[weight])

    return write


def _external_in_a_branch(path: Path) -> None:
    hidden = TensorProto(name="k", data_type=FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    hidden.external_data.add(key="location", value="/etc/passwd")
    value = [helper.make_tensor_value_info("y", FLOAT, None)]
    branch = helper.make_graph([helper.make_node("Constant", [], ["y"], value=hidden)], "branch", [], value)
    condition = numpy_helper.from_array(np.array(True), "yes")
    nodes = [helper.make_node("If", ["yes"], ["scores"], then_branch=branch, else_branch=branch)]
    save(path, nodes, [image()], [scores()], initializer=[condition])


def _custom_operator(path: Path) -> None:
    save(
        path,
        [helper.make_node("Evil", ["input"], ["scores"], domain="my.ops")],
        [image()],
        [scores()],
        domains=["my.ops"],
    )


def _oversized(path: Path) -> None:
    weight = TensorProto(name="w", data_type=FLOAT, dims=[1 << 20, 1 << 20], raw_data=b"1234")
    save(path, [helper.make_node("Flatten", ["input"], ["scores"])], [image()], [scores()], initializer=[weight])


def _negative_dimension(path: Path) -> None:
    weight = TensorProto(name="w", data_type=FLOAT, dims=[-1], raw_data=b"")
    save(path, [helper.make_node("Flatten", ["input"], ["scores"])], [image()], [scores()], initializer=[weight])


def _opset(number: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        save(path, [helper.make_node("Flatten", ["input"], ["scores"])], [image()], [scores("n", 192)], opset=number)

    return write


def _huge_constant(path: Path) -> None:
    """Four kilobytes that ask for 40 GB."""
    shape = numpy_helper.from_array(np.array([10_000_000_000], np.int64), "shape")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["huge"]),
        helper.make_node("ReduceMax", ["huge"], ["top"], keepdims=0),
        helper.make_node("ReduceMean", ["input"], ["pooled"], axes=[2, 3], keepdims=0),
        helper.make_node("Add", ["pooled", "top"], ["scores"]),
    ]
    save(path, nodes, [image()], [scores()], initializer=[shape])


def _bad_reshape(path: Path) -> None:
    shape = numpy_helper.from_array(np.array([1, 7], np.int64), "shape")
    nodes = [helper.make_node("Reshape", ["input", "shape"], ["scores"])]
    save(path, nodes, [image("n", 3, "h", "w")], [scores("n", 7)], initializer=[shape])


BAD_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "model.onnx is empty"),
    "garbage": (lambda path: path.write_bytes(b"\x89PNG not a model" * 99), "not an ONNX file, or it is cut short"),
    "truncated": (_truncated, "not an ONNX file, or it is cut short"),
    "no graph": (
        lambda path: path.write_bytes(onnx.ModelProto(ir_version=8).SerializeToString()),
        "no graph with nodes",
    ),
    "external": (_external("weights.bin"), "weights of 'w' lie in another file ('weights.bin'); save the model as one"),
    "escaping": (_external("../../../etc/passwd"), "lie in another file ('../../../etc/passwd')"),
    "external in a branch": (_external_in_a_branch, "weights of 'k' lie in another file ('/etc/passwd')"),
    "custom operator": (_custom_operator, "uses the custom operator my.ops.Evil; only those that ONNX Runtime ships"),
    "oversized": (_oversized, "shape [1048576, 1048576], which is 4398046511104 bytes, but holds 4"),
    "negative": (_negative_dimension, "the tensor 'w' has a negative dimension: [-1]"),
    "old opset": (_opset(6), "its operator set is 6; 7 to"),
    "future opset": (_opset(999), "its operator set is 999; 7 to"),
    "checker": (
        graph([helper.make_node("Relu", ["nowhere"], ["scores"])], [image()], [scores()]),
        "the ONNX checker refuses it: Nodes in a graph must be topologically sorted",
    ),
    "no image": (
        graph([helper.make_node("Relu", ["input"], ["scores"])], [image("n", 10)], [scores("n", 10)]),
        "no input has four dimensions",
    ),
    "two images": (
        graph(
            [helper.make_node("Add", ["a", "b"], ["scores"])],
            [image(name="a"), image(name="b")],
            [image(name="scores")],
        ),
        "it takes 2 inputs (a, b); a model that takes one image is read",
    ),
    "grey": (
        graph(MEAN, [image("n", 1, 8, 8)], [scores("n", 1)]),
        "has 1 channels as NCHW; models of colour images",
    ),
    "other layout": (
        graph(MEAN, [image("n", 8, 8, 3)], [scores("n", 8)]),
        "8 channels as NCHW; its shape looks like NHWC",
    ),
    "double": (
        graph(MEAN, [image("n", 3, 8, 8, kind=TensorProto.DOUBLE)], [scores("n", 3, kind=TensorProto.DOUBLE)]),
        "input input is of type double; float (32 bits), float16 and uint8 are read",
    ),
    "too many pixels": (graph(MEAN, [image(1, 3, 99_999, 99_999)], [scores(1, 3)]), "has more than 64 megapixels"),
    "no session": (
        lambda path: save(
            path,
            [helper.make_node("NoSuchOperator", ["input"], ["scores"], domain="com.microsoft")],
            [image()],
            [scores()],
            domains=["com.microsoft"],
        ),
        "model.onnx: ONNX Runtime cannot open it: ",
    ),
    "fails when run": (_bad_reshape, "a trial run on zeros of shape [1, 3, 64, 64] fails: "),
    "too much memory": (_huge_constant, "needs more than"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_with_its_own_sentence(case: str, tmp_path: Path) -> None:
    write, sentence = BAD_FILES[case]
    file = tmp_path / "model.onnx"
    write(file)
    with pytest.raises(BadModelFile) as refused:
        build_artifact(file, tmp_path / "artifact", options(size="64"))
    assert sentence in refused.value.message
    assert refused.value.message.startswith("model.onnx")
    assert "\n" not in refused.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


MISFITS: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "label count": (classifier, {"labels": "a\nb"}, "labels: the graph gives 3 classes, but there are 2 labels"),
    "segment, rank 2": (
        classifier,
        {"task": "segment"},
        "no output suits segment: output scores of shape [1, 3] is not",
    ),
    "classify, rank 4": (
        lambda path: segmenter(path, 3),
        {"size": "16"},
        "no output suits classify: output scores of shape [1, 3, 16, 16] is not [batch, classes]",
    ),
    "class indices": (
        graph(
            [MEAN[0], helper.make_node("ArgMax", ["scores"], ["best"], axis=1)],
            [image()],
            [scores("n", 1, name="best", kind=TensorProto.INT64)],
        ),
        {},
        "output best is of type int64; a score per class, in floats, is read",
    ),
    "no batch": (
        graph(
            [helper.make_node("ReduceMean", ["input"], ["scores"], axes=[0, 2, 3], keepdims=0)], [image()], [scores(3)]
        ),
        {},
        "output scores of shape [3] has no batch axis in front",
    ),
    "not finite": (
        graph([MEAN[0], helper.make_node("Log", ["scores"], ["logs"])], [image()], [scores(name="logs")]),
        {},
        "output logs is not a finite number everywhere in a trial run on a black image",
    ),
    "no probabilities": (
        classifier,
        {"output": "probabilities"},
        "output: probabilities lie in 0-1, but a trial run gave 0 to 2",
    ),
    "softmax as logits": (lambda path: classifier(path, last="Softmax"), {}, "say probabilities, not logits"),
    "one channel as logits": (
        lambda path: segmenter(path, 1, shape=("n", 3, 8, 8)),
        {"task": "segment", "labels": "cell"},
        "a single channel is read as sigmoid",
    ),
    "sigmoid labels": (
        lambda path: segmenter(path, 2, shape=("n", 3, 8, 8), last="Sigmoid"),
        {"task": "segment", "labels": "a\nb\nc\nd", "output": "sigmoid"},
        "labels: the graph gives 2 classes, but there are 4 labels",
    ),
    "palette": (
        lambda path: segmenter(path, 3, shape=("n", 3, 8, 8)),
        {"task": "segment", "palette": "#000000\n#ffffff"},
        "palette: 3 classes, but 2 colours",
    ),
    "257 classes": (
        lambda path: segmenter(path, 257, shape=("n", 3, 8, 8)),
        {"task": "segment", "labels": "\n".join(map(str, range(257)))},
        "labels: a mask holds 256 classes at most; there are 257",
    ),
    "no size": (
        lambda path: classifier(path, shape=("n", 3, "h", "w")),
        {},
        "size: the graph's size is any x any; say which height and width to bring images to",
    ),
    "another size": (classifier, {"size": "9,8"}, "size: the graph's size is fixed at 8 x 8"),
    "shorter side, fixed": (
        lambda path: segmenter(path, 3, shape=("n", 3, 8, 8)),
        {"task": "segment", "shorter_side": "32"},
        "shorter_side: the graph's size is fixed at 8 x 8",
    ),
    "mean of uint8": (
        graph(
            [
                helper.make_node("Cast", ["input"], ["pixels"], to=FLOAT),
                helper.make_node("ReduceMean", ["pixels"], ["scores"], axes=[2, 3], keepdims=0),
            ],
            [image("n", 3, 8, 8, kind=TensorProto.UINT8)],
            [scores()],
        ),
        {"mean": "0.5"},
        "the graph takes uint8 pixels, which are not normalised: leave out mean and std",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_refused_with_its_own_sentence(case: str, tmp_path: Path) -> None:
    write, given, sentence = MISFITS[case]
    write(tmp_path / "model.onnx")
    with pytest.raises(BadInput) as refused:
        build_artifact(tmp_path / "model.onnx", tmp_path / "artifact", options(**given))
    assert sentence in refused.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
