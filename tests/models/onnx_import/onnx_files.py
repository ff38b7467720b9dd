"""Small ONNX files for the tests of ONNX imports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from models.onnx_import.options import ImportOptions, parse_options

FLOAT = TensorProto.FLOAT


def save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], **extra: Any) -> Path:
    """An ONNX file of opset 17; ``extra`` goes to make_graph, ``opset`` and ``domains`` excepted."""
    opsets = [helper.make_opsetid("", extra.pop("opset", 17))]
    opsets += [helper.make_opsetid(domain, 1) for domain in extra.pop("domains", [])]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, **extra)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def image(*shape: int | str | None, name: str = "input", kind: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape or ["n", 3, 8, 8])


def scores(*shape: int | str | None, name: str = "scores", kind: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape or ["n", 3])


def classifier(
    path: Path, classes: int = 3, *, shape: tuple[Any, ...] = ("n", 3, 8, 8), last: str = "Identity"
) -> Path:
    """Mean over the pixels, then a linear layer of seeded weights and a bias of 0, 1, 2, ..."""
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(3, classes)).astype(np.float32), "w")
    bias = numpy_helper.from_array(np.arange(classes, dtype=np.float32), "b")
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["pooled"], axes=[2, 3], keepdims=0),
        helper.make_node("Gemm", ["pooled", "w", "b"], ["mixed"]),
        helper.make_node(last, ["mixed"], ["scores"]),
    ]
    return save(path, nodes, [image(*shape)], [scores("n", classes)], initializer=[weight, bias])


def segmenter(
    path: Path, channels: int, *, shape: tuple[Any, ...] = ("n", 3, "h", "w"), last: str = "Identity"
) -> Path:
    """One 1x1 convolution."""
    weight = numpy_helper.from_array(np.ones((channels, 3, 1, 1), np.float32), "w")
    nodes = [helper.make_node("Conv", ["input", "w"], ["mixed"]), helper.make_node(last, ["mixed"], ["scores"])]
    return save(path, nodes, [image(*shape)], [scores("n", channels, "h", "w")], initializer=[weight])


def graph(nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> Callable[[Path], Path]:
    """A function that writes the graph to a path."""
    return lambda path: save(path, nodes, inputs, outputs)


MEAN = [helper.make_node("ReduceMean", ["input"], ["scores"], axes=[2, 3], keepdims=0)]


def options(task: str = "classify", labels: Any = "a\nb\nc", **given: Any) -> ImportOptions:
    """Options as a form gives them."""
    return parse_options({"task": task, "labels": labels, **given})
