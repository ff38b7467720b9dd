"""Changes of a converted graph give the values that they say, in ONNX Runtime."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.keras import graph

PIXELS = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)


def model(nodes: list[Any], inputs: list[Any], outputs: list[Any], **weights: NDArray[Any]) -> Any:
    made = helper.make_graph(
        nodes, "graph", inputs, outputs, [numpy_helper.from_array(value, name) for name, value in weights.items()]
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def value(name: str, *shape: int | str, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def pooled(last: str = "Identity") -> Any:
    """Means of the channels times a weight of one column, as tf2onnx names its output."""
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["means"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["means", "w"], ["mixed"]),
        helper.make_node(last, ["mixed"], ["Identity:0"]),
    ]
    weight = np.array([[1], [2], [-3]], np.float32)
    return model(nodes, [value("input", "n", 3, 4, 5)], [value("Identity:0", "n", 1)], w=weight)


def run(made: Any, pixels: NDArray[Any]) -> NDArray[Any]:
    onnx.checker.check_model(made, full_check=True)
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [given.name for given in session.get_outputs()] == [graph.OUTPUT]
    return np.asarray(session.run(None, {graph.INPUT: pixels})[0])


MIXED = PIXELS.mean((2, 3)) @ np.array([[1], [2], [-3]], np.float32)


def test_one_probability_becomes_two() -> None:
    made = pooled("Sigmoid")
    graph.two_classes(made, probability=True)
    expected = 1 / (1 + np.exp(-MIXED))
    np.testing.assert_allclose(run(made, PIXELS), np.concatenate([1 - expected, expected], 1), atol=1e-6)
    assert graph.classes_of(made) == 2


def test_softmax_of_two_logits_is_the_sigmoid_of_the_one() -> None:
    made = pooled()
    graph.two_classes(made, probability=False)
    logits = run(made, PIXELS)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(shares[:, 1:], 1 / (1 + np.exp(-MIXED)), atol=1e-6)


def test_a_sigmoid_is_added_and_a_name_is_given() -> None:
    made = pooled()
    graph.add_sigmoid(made)
    np.testing.assert_allclose(run(made, PIXELS), 1 / (1 + np.exp(-MIXED)), atol=1e-6)
    assert graph.activation(made) == "sigmoid"
    made = pooled()
    graph.name_output(made)
    np.testing.assert_allclose(run(made, PIXELS), MIXED, atol=1e-6)


@pytest.mark.parametrize(
    ("last", "found"), [("Softmax", "probabilities"), ("Sigmoid", "sigmoid"), ("Relu", None), ("Identity", None)]
)
def test_the_activation_is_found_behind_what_moves_values(last: str, found: str | None) -> None:
    made = pooled(last)
    assert graph.activation(made) == found
    made.graph.node.append(helper.make_node("Transpose", ["Identity:0"], ["turned"], perm=[1, 0]))
    made.graph.node.append(helper.make_node("Identity", ["turned"], ["end"]))
    made.graph.output[0].name = "end"
    assert graph.activation(made) == found


def test_an_activation_that_something_follows_is_none() -> None:
    made = pooled("Sigmoid")
    made.graph.node.append(helper.make_node("Neg", ["Identity:0"], ["end"]))
    made.graph.output[0].name = "end"
    assert graph.activation(made) is None


def one_channel(kind: int) -> Any:
    nodes = [
        helper.make_node("Cast", ["input"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["numbers", "one"], ["Identity:0"]),
    ]
    made = model(
        nodes,
        [value("input", "n", 1, 4, 5, kind=kind)],
        [value("Identity:0", "n", 1, 4, 5)],
        one=np.ones(1, np.float32),
    )
    graph.name_output(made)
    graph.grey_input(made)
    return made


def test_a_grey_graph_takes_the_luminance_of_colours() -> None:
    luminance = 0.299 * PIXELS[:, :1] + 0.587 * PIXELS[:, 1:2] + 0.114 * PIXELS[:, 2:]
    np.testing.assert_allclose(run(one_channel(TensorProto.FLOAT), PIXELS), luminance + 1, atol=1e-6)


def test_grey_pixels_of_uint8_stay_what_they_are() -> None:
    levels = np.arange(256, dtype=np.uint8)[:240].reshape(3, 1, 4, 20).repeat(3, axis=1)
    made = one_channel(TensorProto.UINT8)
    for dims in (made.graph.input[0].type.tensor_type.shape.dim, made.graph.output[0].type.tensor_type.shape.dim):
        dims[3].dim_value = 20
    np.testing.assert_array_equal(run(made, levels), levels[:, :1].astype(np.float32) + 1)


def test_erfc_is_one_minus_erf() -> None:
    made = pooled()
    made.graph.node.append(helper.make_node("Erfc", ["Identity:0"], ["end"], name="erfc"))
    made.graph.output[0].name = "end"
    graph.replace_erfc(made)
    graph.name_output(made)
    expected = [[math.erfc(value)] for value in MIXED[:, 0]]
    np.testing.assert_allclose(run(made, PIXELS), expected, atol=1e-6)


def test_inputs_that_nothing_reads_are_dropped() -> None:
    made = pooled()
    made.graph.input.append(value("normalization/Sub/y:0", 1))
    graph.drop_unused_inputs(made)
    graph.name_output(made)
    assert [each.name for each in made.graph.input] == ["input"]
    np.testing.assert_allclose(run(made, PIXELS), MIXED, atol=1e-6)


def test_operators_that_onnx_lacks_are_named() -> None:
    made = pooled()
    assert graph.unknown_operators(made) == []
    made.graph.node.append(helper.make_node("StatelessRandomUniformV2", ["Identity:0"], ["end"]))
    assert graph.unknown_operators(made) == ["StatelessRandomUniformV2"]
