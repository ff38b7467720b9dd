"""Changes of a converted ONNX graph, so that it takes RGB and gives what a manifest can say. Needs onnx alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from onnx.defs import has

INPUT, OUTPUT = "input", "output"

GREY = (0.299, 0.587, 0.114)
"""ITU-R BT.601, as in Pillow's mode L and tf.image.rgb_to_grayscale (which rounds to 0.2989, 0.587, 0.114)."""

# What moves values and changes none.
_PASSED = ("Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast")
_ACTIVATIONS = {"Softmax": "probabilities", "Sigmoid": "sigmoid"}


def activation(model: Any) -> str | None:
    """``probabilities`` where the only output is a Softmax, ``sigmoid`` where it is a Sigmoid, else None."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    node = made_by.get(model.graph.output[0].name)
    while node is not None and node.op_type in _PASSED:
        node = made_by.get(node.input[0])
    return _ACTIVATIONS.get(node.op_type) if node is not None else None


def drop_unused_inputs(model: Any) -> None:
    """Remove inputs that no node reads: tf2onnx leaves some where it folded a constant (EfficientNet)."""
    read = {name for node in model.graph.node for name in node.input}
    for value in [each for each in model.graph.input if each.name != INPUT and each.name not in read]:
        model.graph.input.remove(value)


def replace_erfc(model: Any) -> None:
    """Write erfc(x), which ONNX does not have, as 1 - erf(x): Keras' exact GELU (ConvNeXt, transformers)."""
    nodes = []
    for node in model.graph.node:
        if node.op_type == "Erfc":
            error, one = f"{node.name}/erf", f"{node.name}/one"
            nodes += [
                helper.make_node("Erf", list(node.input), [error], name=error),
                helper.make_node("CastLike", ["ekiben_one", error], [one], name=one),
                helper.make_node("Sub", [one, error], list(node.output), name=node.name),
            ]
        else:
            nodes.append(node)
    if len(nodes) != len(model.graph.node):
        model.graph.initializer.append(numpy_helper.from_array(np.ones((), np.float32), "ekiben_one"))
        del model.graph.node[:]
        model.graph.node.extend(nodes)


def unknown_operators(model: Any) -> list[str]:
    """The operators that ONNX does not have: tf2onnx leaves what it cannot convert as it is."""
    nodes = {(node.op_type, node.domain) for node in model.graph.node}
    return sorted(kind for kind, domain in nodes if domain == "" and not has(kind))


def name_output(model: Any) -> None:
    """Call the only output OUTPUT."""
    _append(model, [helper.make_node("Identity", ["{}"], [OUTPUT], name="ekiben_output")], None)


def add_sigmoid(model: Any) -> None:
    """Turn the logits of the output into probabilities, each by itself."""
    _append(model, [helper.make_node("Sigmoid", ["{}"], [OUTPUT], name="ekiben_sigmoid")], None)


def two_classes(model: Any, *, probability: bool) -> None:
    """Make an output [N, 1] one of two classes, [N, 2], whose second is what the one value stands for.

    ``probability``: the value p becomes (1 - p, p). Otherwise the logit z becomes (0, z): softmax gives the second
    class sigmoid(z).
    """
    element = model.graph.output[0].type.tensor_type.elem_type
    dtype = helper.tensor_dtype_to_np_dtype(element)
    constant = numpy_helper.from_array(np.ones(1, dtype) if probability else np.zeros(1, dtype), "ekiben_constant")
    model.graph.initializer.append(constant)
    first = "Sub" if probability else "Mul"
    operands = ["ekiben_constant", "{}"] if probability else ["{}", "ekiben_constant"]
    nodes = [
        helper.make_node(first, operands, ["ekiben_other"], name="ekiben_other"),
        helper.make_node("Concat", ["ekiben_other", "{}"], [OUTPUT], axis=1, name="ekiben_two"),
    ]
    _append(model, nodes, 2)


def _append(model: Any, nodes: list[Any], classes: int | None) -> None:
    """Add nodes that read the output, as ``{}``, and write OUTPUT, with ``classes`` in its axis 1 (None: as is)."""
    graph = model.graph
    old = graph.output[0].name  # tf2onnx gives names that end in :0, so OUTPUT is free
    for node in nodes:
        for index, name in enumerate(node.input):
            node.input[index] = old if name == "{}" else name
    graph.node.extend(nodes)
    graph.output[0].name = OUTPUT
    if classes is not None:
        graph.output[0].type.tensor_type.shape.dim[1].Clear()
        graph.output[0].type.tensor_type.shape.dim[1].dim_value = classes


def grey_input(model: Any, *, bgr: bool = False) -> None:
    """Make an input [N, 1, H, W] one of [N, 3, H, W], of which the luminance (GREY) is taken."""
    graph = model.graph
    value = graph.input[0]
    weights = np.array(GREY[::-1] if bgr else GREY, np.float32).reshape(1, 3, 1, 1)
    graph.initializer.append(numpy_helper.from_array(weights, "ekiben_grey_weights"))
    grey = "ekiben_grey"
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = grey if name == value.name else name
    given, nodes = value.name, []
    if value.type.tensor_type.elem_type != TensorProto.FLOAT:  # uint8 pixels: rounded, as grey images are
        kind = value.type.tensor_type.elem_type
        nodes = [
            helper.make_node("Cast", [given], ["ekiben_float"], to=TensorProto.FLOAT, name="ekiben_float"),
            helper.make_node("Conv", ["ekiben_float", "ekiben_grey_weights"], ["ekiben_levels"], name="ekiben_levels"),
            helper.make_node("Round", ["ekiben_levels"], ["ekiben_whole"], name="ekiben_whole"),
            helper.make_node("Cast", ["ekiben_whole"], [grey], to=kind, name="ekiben_grey"),
        ]
    else:
        nodes = [helper.make_node("Conv", [given, "ekiben_grey_weights"], [grey], name="ekiben_grey")]
    for node in reversed(nodes):
        graph.node.insert(0, node)
    value.type.tensor_type.shape.dim[1].Clear()
    value.type.tensor_type.shape.dim[1].dim_value = 3


def classes_of(model: Any) -> int | None:
    """The length of the output's axis 1, where the file says it."""
    dims = model.graph.output[0].type.tensor_type.shape.dim
    return dims[1].dim_value or None if len(dims) > 1 else None
