"""The three graphs of the toy Segment Anything, node by node; what they compute is said in tests/toy_sam.py."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from tests.toy_models import Graph, value

SIDE_PX, CELL = 1024, 16
GRID = SIDE_PX // CELL
LOW = 256

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

STEEPNESS = 20.0
REACH = (0.25, 0.15, 0.25, 0.4)
"""Of each mask: how far a cell's colour may be from the prompt's, in the channel that differs most."""
IOU = (0.80, 0.97, 0.95, 0.90)
"""Predicted of each mask, for a prompt on a colour that is not dark."""
DARK, DARKNESS = 0.3, 2.0
"""A prompt whose strongest channel is below DARK loses DARKNESS times what is missing from every predicted IoU."""
REFUSED, REFUSAL = 0.1, 100.0
"""A background point takes REFUSAL times (REFUSED - distance) from the cells whose colour is that near to its own."""
SHIFT = 0.25
"""How much of an earlier logit is added under a mask prompt."""
OUTSIDE = -20.0
"""The logit of cells whose centre is outside the prompt's box."""


def features(first: str, channels: int, prefix: str = "") -> list[onnx.ValueInfoProto]:
    """What the decoder takes of an image. Shapes that all differ: the one that mixes them up is refused."""
    cells = GRID * GRID
    return [
        value(f"{prefix}tokens", [first, cells, channels]),
        value(f"{prefix}keys", [first, cells, 3]),
        value(f"{prefix}values", [first, 1, cells]),
        value(f"{prefix}queries", [first, 3, cells]),
    ]


def _ints(graph: Graph, *values: int) -> str:
    return graph.constant(np.array(values, np.int64))


def _number(graph: Graph, number: float) -> str:
    return graph.constant(np.array(number, np.float32))


def _slice(graph: Graph, name: str, start: int, end: int, *, axis: int) -> str:
    return graph.node("Slice", name, _ints(graph, start), _ints(graph, end), _ints(graph, axis))


def _derive(graph: Graph, tokens: str, prefix: str = "") -> None:
    """keys: the colours; values: what a mask adds; queries: the colours, transposed."""
    keys = graph.node("Identity", _slice(graph, tokens, 0, 3, axis=2), output=f"{prefix}keys")
    graph.node("Transpose", _slice(graph, tokens, 3, 4, axis=2), output=f"{prefix}values", perm=[0, 2, 1])
    graph.node("Transpose", keys, output=f"{prefix}queries", perm=[0, 2, 1])


def encoder(channels: int) -> Graph:
    graph = Graph()
    pooled = graph.node("AveragePool", "pixels", kernel_shape=[CELL, CELL], strides=[CELL, CELL])
    weight, bias = np.zeros((channels, 3, 1, 1), np.float32), np.zeros(channels, np.float32)
    weight[:3, :, 0, 0], bias[:3] = np.diag(STD), MEAN
    graph.node("Conv", pooled, graph.constant(weight), graph.constant(bias), output="embedding")
    flat = graph.node("Reshape", "embedding", _ints(graph, 0, channels, GRID * GRID))
    graph.node("Transpose", flat, output="tokens", perm=[0, 2, 1])
    _derive(graph, "tokens")
    return graph


def mask_prompt(channels: int) -> Graph:
    graph = Graph()
    fold = LOW // GRID
    pooled = graph.node("AveragePool", "mask_input", kernel_shape=[fold, fold], strides=[fold, fold])
    flat = graph.node("Reshape", pooled, _ints(graph, 0, GRID * GRID, 1))
    place = np.zeros((1, channels), np.float32)
    place[0, 3] = SHIFT
    graph.node("Add", "tokens", graph.node("MatMul", flat, graph.constant(place)), output="masked_tokens")
    _derive(graph, "masked_tokens", "masked_")
    return graph


def decoder() -> Graph:
    graph = Graph()
    centred = graph.node("Add", "point_coords", _number(graph, 0.5))
    hot = _one_hot(graph, centred)
    has_box, start, end = _box(graph, centred)
    colour = _colour(graph, hot, has_box, graph.node("Mul", graph.node("Add", start, end), _number(graph, 0.5)))

    away = graph.node("ReduceMax", graph.node("Abs", graph.node("Sub", "keys", colour)), axes=[2], keepdims=0)
    away = graph.node("Unsqueeze", away, _ints(graph, 1))
    reach = graph.constant(np.array(REACH, np.float32).reshape(1, -1, 1))
    logits = graph.node("Mul", graph.node("Sub", reach, away), _number(graph, STEEPNESS))
    logits = graph.node("Add", graph.node("Sub", logits, _refused(graph, hot)), "values")
    inside = _inside(graph, start, end)
    outside = graph.node("And", has_box, graph.node("Not", inside))
    logits = graph.node("Where", graph.node("Unsqueeze", outside, _ints(graph, 1)), _number(graph, OUTSIDE), logits)

    missing = graph.node("Sub", _number(graph, DARK), graph.node("ReduceMax", colour, axes=[2], keepdims=0))
    loss = graph.node("Mul", graph.node("Relu", missing), _number(graph, DARKNESS))
    graph.node("Sub", graph.constant(np.array([IOU], np.float32)), loss, output="iou")
    best = graph.node("ReduceMax", _slice(graph, "iou", 1, len(IOU), axis=1), axes=[1], keepdims=0)
    found = graph.node("NonZero", graph.node("Greater", best, "min_iou"))
    graph.node("Squeeze", found, _ints(graph, 0), output="kept")

    fold = LOW // GRID
    kept = graph.node("Gather", logits, "kept", axis=0)
    kept = graph.node("Reshape", kept, _ints(graph, 0, len(IOU), GRID, 1, GRID, 1))
    kept = graph.node("Expand", kept, _ints(graph, 1, 1, 1, fold, 1, fold))
    graph.node("Reshape", kept, _ints(graph, 0, len(IOU), LOW, LOW), output="logits")
    return graph


def _is(graph: Graph, label: float) -> str:
    """float32 [B, P]: 1 for the points with that label."""
    return graph.node("Cast", graph.node("Equal", "point_labels", _number(graph, label)), to=TensorProto.FLOAT)


def _one_hot(graph: Graph, centred: str) -> str:
    """float32 [..., 4096]: 1 at the cell of each place."""
    cell = graph.node("Floor", graph.node("Mul", centred, _number(graph, 1 / CELL)))
    cell = graph.node("Clip", cell, _number(graph, 0), _number(graph, GRID - 1))
    index = graph.node("MatMul", cell, graph.constant(np.array([1, GRID], np.float32)))
    index = graph.node("Cast", index, to=TensorProto.INT64)
    return graph.node("OneHot", index, _ints(graph, GRID * GRID), graph.constant(np.array([0, 1], np.float32)))


def _box(graph: Graph, centred: str) -> tuple[str, str, str]:
    """Whether there is a box, bool [B, 1], and its corners, [B, 2]."""
    corners = []
    for label in (2, 3):
        mark = graph.node("Unsqueeze", _is(graph, label), _ints(graph, 2))
        corners.append(graph.node("ReduceSum", graph.node("Mul", centred, mark), _ints(graph, 1), keepdims=0))
    has = graph.node("ReduceMax", _is(graph, 2), axes=[1], keepdims=1)
    return graph.node("Cast", has, to=TensorProto.BOOL), corners[0], corners[1]


def _colour(graph: Graph, hot: str, has_box: str, centre: str) -> str:
    """float32 [B, 1, 3]: the colour that the prompt asks for, from tokens and queries alike."""
    marks = _is(graph, 1)
    count = graph.node("ReduceSum", marks, _ints(graph, 1), keepdims=1)
    share = graph.node("Div", marks, graph.node("Max", count, _number(graph, 1)))
    under = graph.node("MatMul", graph.node("Unsqueeze", share, _ints(graph, 1)), hot)
    none = graph.node("Equal", count, _number(graph, 0))
    by_box = graph.node("Cast", graph.node("And", none, has_box), to=TensorProto.FLOAT)
    at_centre = graph.node("Mul", _one_hot(graph, centre), by_box)
    weight = graph.node("Add", under, graph.node("Unsqueeze", at_centre, _ints(graph, 1)))
    one = graph.node("MatMul", weight, _slice(graph, "tokens", 0, 3, axis=2))
    column = graph.node("MatMul", "queries", graph.node("Transpose", weight, perm=[0, 2, 1]))
    other = graph.node("Transpose", column, perm=[0, 2, 1])
    return graph.node("Mul", graph.node("Add", one, other), _number(graph, 0.5))


def _refused(graph: Graph, hot: str) -> str:
    """float32 [B, 1, 4096]: what the background points take away."""
    colours = graph.node("MatMul", hot, _slice(graph, "tokens", 0, 3, axis=2))
    cells = graph.node("Unsqueeze", "keys", _ints(graph, 1))
    apart = graph.node("Abs", graph.node("Sub", cells, graph.node("Unsqueeze", colours, _ints(graph, 2))))
    near = graph.node("ReduceMax", apart, axes=[3], keepdims=0)
    taken = graph.node("Relu", graph.node("Sub", _number(graph, REFUSED), near))
    taken = graph.node("Mul", taken, _number(graph, REFUSAL))
    marked = graph.node("Mul", taken, graph.node("Unsqueeze", _is(graph, 0), _ints(graph, 2)))
    return graph.node("ReduceSum", marked, _ints(graph, 1), keepdims=1)


def _inside(graph: Graph, start: str, end: str) -> str:
    """bool [B, 4096]: the cells whose centre is in the box."""
    along = np.arange(GRID, dtype=np.float32) * CELL + CELL / 2
    sides = []
    for axis, centres in enumerate((np.tile(along, GRID), along.repeat(GRID))):
        places = graph.constant(centres.astype(np.float32)[None])
        sides.append(graph.node("GreaterOrEqual", places, _slice(graph, start, axis, axis + 1, axis=1)))
        sides.append(graph.node("LessOrEqual", places, _slice(graph, end, axis, axis + 1, axis=1)))
    return graph.node("And", graph.node("And", *sides[:2]), graph.node("And", *sides[2:]))
