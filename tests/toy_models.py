"""Toy networks whose right answers are known, as artifact folders: one per family, shared by all layers of tests.

No torch: the graphs are built node by node. Pixels reach them scaled to 0-1 unless a manifest says otherwise.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from models.artifact import (
    ONNX,
    Activation,
    Color,
    GraphInput,
    GraphOutput,
    Layout,
    Manifest,
    Preprocess,
    Tiling,
    Weights,
    voc_palette,
    write_manifest,
)

Dtype = Literal["float32", "float16", "uint8"]

OPSET = 17
SIDE = 32

CLASSES = ("dark", "red", "green", "blue")
"""The classifier's labels: the channel that dominates the image's mean colour, or dark."""

AREAS = ("background", "red", "green", "blue")
"""The segmenter's labels: the strongest channel of a pixel above one half, else background."""

MATRIX = np.array([[0.0, 4.0, -1.0, -1.0], [0.0, -1.0, 4.0, -1.0], [0.0, -1.0, -1.0, 4.0]], np.float32)
BIAS = np.array([0.5, 0.0, 0.0, 0.0], np.float32)

CELLS = ("background", "cell")
"""The labels of a unet with one channel, whose logit is CELL_MIX times the pixel, 0-1, plus CELL_LIFT: of no pixel is
it nearer to 0 than 0.001."""
CELL_MIX, CELL_LIFT = (6.0, -3.0, 1.0), -1.001
STEEPNESS = 10.0

_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "uint8": TensorProto.UINT8,
    "int64": TensorProto.INT64,
}
_GATHER_ROW = 64


def logits_of(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """float64 [4]: what the classifier says of uint8 RGB [H, W, 3] that needs no resizing."""
    mean = pixels.reshape(-1, 3).astype(np.float64).mean(axis=0) / 255.0
    return np.asarray(mean @ MATRIX.astype(np.float64) + BIAS)


def solid(color: tuple[int, int, int], width: int = SIDE, height: int = SIDE) -> Image.Image:
    return Image.new("RGB", (width, height), color)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def classifier(
    folder: Path,
    *,
    batch: int | None = None,
    side: int | None = SIDE,
    layout: Layout = "NCHW",
    color: Color = "RGB",
    dtype: Dtype = "float32",
    activation: Activation = "logits",
    preprocess: Preprocess | None = None,
    ballast_bytes: int = 0,
) -> Manifest:
    """An artifact that answers with CLASSES: the logits are ``logits_of`` the image.

    ``side`` None: dynamic height and width. ``ballast_bytes``: so much more constant data, which a run touches
    without changing the answer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    graph = Graph()
    pixels = graph.floats("input", dtype, layout)
    pooled = graph.node("ReduceMean", pixels, axes=[2, 3], keepdims=0)
    rows = MATRIX if color == "RGB" else MATRIX[::-1].copy()
    logits = graph.node("Add", graph.node("MatMul", pooled, graph.constant(rows)), graph.constant(BIAS))
    if ballast_bytes:
        logits = graph.node("Add", logits, graph.ballast(pooled, ballast_bytes))
    graph.finish(logits, activation)
    answers: list[int | str] = [batch or "batch", len(CLASSES)]
    graph.save(folder / ONNX, [value("input", _dims(layout, batch, side), dtype)], [value("output", answers)])
    return write_manifest(
        folder,
        Manifest(
            family="classifier",
            task="classify",
            input=GraphInput(
                name="input", layout=layout, color=color, dtype=dtype, batch=batch, height=side, width=side
            ),
            output=GraphOutput(name="output", activation=activation),
            preprocess=preprocess or Preprocess(),
            labels=CLASSES,
            weights=Weights(kind="imported", detail="toy"),
            opset=OPSET,
        ),
    )


def segmenter(
    folder: Path,
    *,
    batch: int | None = None,
    side: int | None = SIDE,
    layout: Layout = "NCHW",
    dtype: Dtype = "float32",
    activation: Activation = "logits",
    preprocess: Preprocess | None = None,
    stride: int = 1,
) -> Manifest:
    """An artifact that answers with AREAS: a channel's score is STEEPNESS times its level, background's half of that.

    With "sigmoid" there is no channel for the background. The output is smaller than the input by ``stride``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    graph = Graph()
    pixels = graph.floats("input", dtype, layout)
    if stride > 1:
        pixels = graph.node("AveragePool", pixels, kernel_shape=[stride, stride], strides=[stride, stride])
    mix = np.concatenate([np.zeros((1, 3)), np.eye(3)]).astype(np.float32) * STEEPNESS
    lift = np.array([STEEPNESS / 2, 0, 0, 0], np.float32)
    if activation == "sigmoid":
        mix, lift = mix[1:], np.full(3, -STEEPNESS / 2, np.float32)
    scores = graph.node("Conv", pixels, graph.constant(mix.reshape(-1, 3, 1, 1)), graph.constant(lift))
    if activation != "logits":
        scores = graph.node("Sigmoid", scores) if activation == "sigmoid" else graph.node("Softmax", scores, axis=1)
    if layout == "NHWC":
        scores = graph.node("Transpose", scores, perm=[0, 2, 3, 1])
    graph.finish(scores, "logits")
    small = None if side is None else side // stride
    names = _dims(layout, batch, small, channels=len(mix), prefix="out_")
    graph.save(folder / ONNX, [value("input", _dims(layout, batch, side), dtype)], [value("output", names)])
    return write_manifest(
        folder,
        Manifest(
            family="segmenter",
            task="segment",
            input=GraphInput(name="input", layout=layout, dtype=dtype, batch=batch, height=side, width=side),
            output=GraphOutput(name="output", activation=activation, layout=layout),
            preprocess=preprocess or (Preprocess() if side else Preprocess(shorter_side=SIDE)),
            labels=AREAS,
            palette=voc_palette(len(AREAS)),
            weights=Weights(kind="imported", detail="toy"),
            opset=OPSET,
        ),
    )


def cell_logits(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """float64 [H, W]: what the unet with one channel says of uint8 RGB [H, W, 3] at its own size."""
    return np.asarray(pixels.astype(np.float64) / 255.0 @ np.array(CELL_MIX) + CELL_LIFT)


def unet(
    folder: Path,
    *,
    binary: bool = False,
    overlap: float | None = None,
    threshold: float = 0.5,
    batch: int | None = None,
    side: int = SIDE,
    dtype: Dtype = "float32",
    preprocess: Preprocess | None = None,
) -> Manifest:
    """An artifact that answers with AREAS, as ``segmenter`` does, or with ``binary`` CELLS; tiled with ``overlap``."""
    folder.mkdir(parents=True, exist_ok=True)
    graph = Graph()
    mix = np.concatenate([np.zeros((1, 3)), np.eye(3)]).astype(np.float32) * STEEPNESS
    lift = np.array([STEEPNESS / 2, 0, 0, 0], np.float32)
    if binary:
        mix, lift = np.array([CELL_MIX], np.float32), np.array([CELL_LIFT], np.float32)
    pixels = graph.floats("input", dtype, "NCHW")
    scores = graph.node("Conv", pixels, graph.constant(mix.reshape(-1, 3, 1, 1)), graph.constant(lift))
    graph.finish(scores, "logits")
    names = _dims("NCHW", batch, side, channels=len(mix))
    graph.save(folder / ONNX, [value("input", _dims("NCHW", batch, side), dtype)], [value("output", names)])
    labels = CELLS if binary else AREAS
    return write_manifest(
        folder,
        Manifest(
            family="unet",
            task="segment",
            input=GraphInput(name="input", dtype=dtype, batch=batch, height=side, width=side),
            output=GraphOutput(name="output", threshold=threshold),
            preprocess=preprocess or Preprocess(),
            tiling=None if overlap is None else Tiling(overlap=overlap),
            labels=labels,
            palette=voc_palette(len(labels)),
            weights=Weights(kind="trained", detail="toy"),
            opset=OPSET,
        ),
    )


TOYS: dict[str, Callable[..., Manifest]] = {"classifier": classifier, "segmenter": segmenter, "unet": unet}
"""Family -> function that writes a toy artifact of it into a folder."""


class Graph:
    """Nodes and constants of a graph in the making."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def node(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = output or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, values: NDArray[Any]) -> str:
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def floats(self, name: str, dtype: Dtype, layout: Layout) -> str:
        """The input as float32 [N, C, H, W], 0-1."""
        if dtype != "float32":
            name = self.node("Cast", name, to=TensorProto.FLOAT)
        if dtype == "uint8":
            name = self.node("Mul", name, self.constant(np.array(1 / 255, np.float32)))
        return self.node("Transpose", name, perm=[0, 3, 1, 2]) if layout == "NHWC" else name

    def ballast(self, pooled: str, size: int) -> str:
        """A zero that is looked up in ``size`` bytes of constants, at a place that only a run can tell."""
        rows = max(2, size // (4 * _GATHER_ROW))
        # Zeros would be one page of memory many times over.
        table = np.arange(1, rows * _GATHER_ROW + 1, dtype=np.float32).reshape(rows, _GATHER_ROW)
        table[0] = 0
        total = self.node("ReduceSum", pooled, keepdims=0)
        zero = self.node("Mul", total, self.constant(np.array(0, np.float32)))
        index = self.node("Cast", zero, to=TensorProto.INT64)
        row = self.node("Gather", self.constant(table), index, axis=0)
        return self.node("ReduceSum", row, keepdims=0)

    def finish(self, scores: str, activation: Activation) -> None:
        if activation == "logits":
            self.node("Identity", scores, output="output")
        elif activation == "sigmoid":
            self.node("Sigmoid", scores, output="output")
        else:
            self.node("Softmax", scores, output="output", axis=1)

    def save(self, path: Path, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> None:
        graph = helper.make_graph(self._nodes, "toy", inputs, outputs, self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)


def value(name: str, dims: list[int | str], dtype: Dtype | Literal["int64"] = "float32") -> onnx.ValueInfoProto:
    """An input or output of a graph."""
    return helper.make_tensor_value_info(name, _TYPES[dtype], dims)


def _dims(
    layout: Layout, batch: int | None, side: int | None, *, channels: int = 3, prefix: str = ""
) -> list[int | str]:
    height, width = side or f"{prefix}height", side or f"{prefix}width"
    first = batch or "batch"
    return [first, channels, height, width] if layout == "NCHW" else [first, height, width, channels]
