"""Graphs whose time or memory depends on the pixels, as files and as artifacts; each ends by itself at some time."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.artifact import ONNX, GraphInput, GraphOutput, Manifest, Preprocess, Weights, write_manifest

SIDE = 32
LABELS = ("red", "green", "blue")

MINUTES = 2e9
"""Rounds of a loop that takes minutes on any machine: 1.2 microseconds each on a core of 2024."""


def _constant(name: str, value: Any) -> onnx.TensorProto:
    array: NDArray[Any] = np.asarray(value)
    return numpy_helper.from_array(array, name)


def _save(path: Path, nodes: list[Any], constants: list[onnx.TensorProto]) -> Path:
    """A classifier whose logits are the mean colour and a hundredth of the index, plus ``extra``, which is near 0."""
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["colour"], axes=[2, 3], keepdims=0),
        *nodes,
        helper.make_node("Add", ["colour", "extra"], ["mixed"]),
        helper.make_node("Add", ["mixed", "ramp"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["n", 3])],
        [*constants, _constant("ramp", np.arange(3, dtype=np.float32) / 100)],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def _count(of: str, above: float, times: float) -> tuple[list[Any], list[onnx.TensorProto]]:
    """Nodes of "count", int64: how far the mean or the spread of all values lies above ``above``, ``times``; 1 at most
    in what is multiplied."""
    nodes = [helper.make_node("ReduceMean", ["input"], ["mean"], keepdims=0)]
    if of == "spread":
        nodes += [
            helper.make_node("Sub", ["input", "mean"], ["off"]),
            helper.make_node("Abs", ["off"], ["far"]),
            helper.make_node("ReduceMean", ["far"], ["measure"], keepdims=0),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["mean"], ["measure"]))
    nodes += [
        helper.make_node("Sub", ["measure", "above"], ["over"]),
        helper.make_node("Clip", ["over", "least", "most"], ["share"]),
        helper.make_node("Mul", ["share", "times"], ["rounds"]),
        helper.make_node("Cast", ["rounds"], ["count"], to=TensorProto.INT64),
    ]
    constants = [
        _constant(name, np.float32(value))
        for name, value in (("above", above), ("least", 0), ("most", 1), ("times", times))
    ]
    return nodes, constants


def looping(path: Path, *, above: float, trips: float = MINUTES, of: Literal["mean", "spread"] = "mean") -> Path:
    """A Loop of up to ``trips`` rounds, counted by how far the brightness (or contrast) lies above ``above``."""
    nodes, constants = _count(of, above, trips)
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still_on"]), helper.make_node("Sin", ["x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("still_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
        ],
    )
    nodes += [
        helper.make_node("Loop", ["count", "", "zero"], ["looped"], body=body),
        helper.make_node("Identity", ["looped"], ["extra"]),
    ]
    return _save(path, nodes, [*constants, _constant("zero", np.float32(0))])


def allocating(path: Path, size: int, *, above: float = 0.0) -> Path:
    """A tensor of up to ``size`` bytes, of as many as the brightness lies above ``above``."""
    nodes, constants = _count("mean", above, size / 4)
    nodes += [
        helper.make_node("Reshape", ["count", "one"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["big"], value=_constant("", np.zeros(1, np.float32))),
        helper.make_node("ReduceSum", ["big"], ["extra"], keepdims=0),
    ]
    return _save(path, nodes, [*constants, _constant("one", np.array([1], np.int64))])


def artifact(folder: Path, file: Path) -> Manifest:
    """The artifact of a file as it would be had its import not tried it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ONNX).write_bytes(file.read_bytes())
    return write_manifest(
        folder,
        Manifest(
            family="classifier",
            task="classify",
            input=GraphInput(name="input", height=SIDE, width=SIDE),
            output=GraphOutput(name="output"),
            preprocess=Preprocess(),
            labels=LABELS,
            weights=Weights(kind="imported", detail="hostile"),
            opset=17,
        ),
    )
