"""Grids, crops and frames: the reference's numbers, from its golden file and, in the torch environment, its code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ekiben.errors import BadInput
from models.sam.grids import (
    Box,
    crop_boxes,
    layer_grids,
    longest_side_shape,
    near_crop_edge,
    point_grid,
    to_input_coordinates,
)

RATIO = 512 / 1500
FRAMES = [(480, 640), (1200, 1800), (600, 600), (37, 1001), (1, 1), (3, 7), (2250, 1500)]


@pytest.fixture(scope="module")
def golden(shared_data: Path) -> dict[str, Any]:
    return dict(json.loads((shared_data / "sam_golden" / "sam_amg_golden.json").read_text()))


@pytest.fixture(scope="module")
def reference() -> Any:
    pytest.importorskip("torch")
    from export.torchvision_ops import declare_missing

    declare_missing()
    pytest.importorskip("segment_anything")
    from segment_anything.utils import amg  # type: ignore[import-untyped, unused-ignore]

    return amg


def test_point_grids() -> None:
    assert point_grid(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    assert point_grid(1).tolist() == [[0.5, 0.5]]
    assert [len(grid) for grid in layer_grids(32, 2, 3)] == [1024, 100, 9]
    assert [len(grid) for grid in layer_grids(16, 1, 1)] == [256, 256]
    assert point_grid(32).dtype == np.float64


def test_a_layer_without_points_is_refused() -> None:
    with pytest.raises(BadInput, match="4 points a side leave none in layer 2"):
        layer_grids(4, 3, 3)


def test_crops_of_an_image() -> None:
    assert crop_boxes(480, 640, 1, RATIO) == [
        ((0, 0, 640, 480), 0),
        ((0, 0, 402, 322), 1),
        ((0, 159, 402, 480), 1),
        ((239, 0, 640, 322), 1),
        ((239, 159, 640, 480), 1),
    ]
    assert crop_boxes(480, 640, 0, RATIO) == [((0, 0, 640, 480), 0)]
    assert [layer for _, layer in crop_boxes(480, 640, 2, RATIO)] == [0] + [1] * 4 + [2] * 16


@pytest.mark.parametrize(
    ("original", "resized"),
    [
        ((1200, 1800), (683, 1024)),
        ((480, 640), (768, 1024)),
        ((534, 800), (684, 1024)),
        ((1752, 1314), (1024, 768)),
        ((3, 7), (439, 1024)),
        ((1024, 1024), (1024, 1024)),
        ((1, 5000), (1, 1024)),
    ],
)
def test_the_longer_side_becomes_1024_and_halves_go_up(original: tuple[int, int], resized: tuple[int, int]) -> None:
    assert longest_side_shape(*original) == resized


def test_coordinates_move_by_the_ratio_of_each_axis() -> None:
    assert to_input_coordinates([[100, 50]], (480, 640), (768, 1024)).tolist() == [[160.0, 80.0]]
    points = np.arange(24, dtype=np.int64).reshape(2, 3, 2, 2)
    moved = to_input_coordinates(points, (333, 1000), (341, 1024))
    assert moved.dtype == np.float64
    assert np.array_equal(moved[..., 0], points[..., 0] * (1024 / 1000))
    assert np.array_equal(moved[..., 1], points[..., 1] * (341 / 333))


def test_boxes_at_the_edge_of_a_crop_that_is_not_the_images() -> None:
    crop: Box = (239, 159, 640, 480)
    boxes = [
        [21, 21, 380, 300],  # 21 from the crop's left and top; near its right, which is the image's
        [20, 50, 300, 300],  # 20 from the left: near
        [21, 20, 300, 300],  # 20 from the top: near
        [21, 50, 401, 321],  # the image's own right and bottom
    ]
    assert near_crop_edge(np.array(boxes), crop, (640, 480)).tolist() == [False, True, True, False]
    assert near_crop_edge(np.array(boxes), crop, (640, 480), atol=19.5).tolist() == [False] * 4
    assert near_crop_edge(np.array(boxes), (0, 0, 640, 480), (640, 480)).tolist() == [False] * 4
    assert near_crop_edge(np.empty((0, 4)), crop, (640, 480)).tolist() == []


def test_the_golden_numbers(golden: dict[str, Any]) -> None:
    assert point_grid(2).tolist() == golden["point_grid_2"]
    assert point_grid(4)[:5].tolist() == golden["point_grid_4_first5"]
    for height, width in ((480, 640), (1200, 1800), (600, 600)):
        for layers in (1, 2):
            boxes, indexes, count = golden[f"crop_boxes_{height}x{width}_layers{layers}"]
            crops = crop_boxes(height, width, layers, RATIO)
            assert len(crops) == count
            assert [list(box) for box, _ in crops[: len(boxes)]] == boxes
            assert [layer for _, layer in crops[: len(indexes)]] == indexes
    for size, shape in golden["preprocess_shape"].items():
        height, width = (int(side) for side in size.split("x"))
        assert list(longest_side_shape(height, width)) == shape
    assert (
        to_input_coordinates([[100, 50]], (480, 640), longest_side_shape(480, 640)).tolist()
        == (golden["apply_coords_(100,50)_in_480x640"])
    )
    sizes = golden["layer_grid_sizes_32_3_2"]
    assert [round(len(grid) ** 0.5) for grid in layer_grids(32, len(sizes) - 1, 2)] == sizes


@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, 32])
def test_grids_equal_the_references_bit_for_bit(reference: Any, n: int) -> None:
    assert np.array_equal(point_grid(n), reference.build_point_grid(n))
    ours, theirs = layer_grids(n * 9, 2, 3), reference.build_all_layer_point_grids(n * 9, 2, 3)
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("size", FRAMES)
@pytest.mark.parametrize("ratio", [0.0, 0.1, RATIO, 0.9])
def test_crops_equal_the_references(reference: Any, size: tuple[int, int], ratio: float) -> None:
    boxes, layers = reference.generate_crop_boxes(size, 3, ratio)
    assert crop_boxes(*size, 3, ratio) == list(zip(map(tuple, boxes), layers, strict=True))


@pytest.mark.parametrize("size", FRAMES)
def test_frames_and_edges_equal_the_references(reference: Any, size: tuple[int, int]) -> None:
    import torch
    from segment_anything.utils.transforms import ResizeLongestSide  # type: ignore[import-untyped, unused-ignore]

    height, width = size
    rng = np.random.default_rng(height)
    resize = ResizeLongestSide(1024)
    resized = longest_side_shape(height, width)
    assert resized == resize.get_preprocess_shape(height, width, 1024)
    points = rng.uniform(0, width, (50, 2))
    assert np.array_equal(to_input_coordinates(points, size, resized), resize.apply_coords(points, size))
    for crop, _ in crop_boxes(height, width, 2, RATIO):
        boxes = rng.integers(0, [width, height, width, height], (200, 4))
        expected = reference.is_box_near_crop_edge(torch.from_numpy(boxes), list(crop), [0, 0, width, height])
        assert np.array_equal(near_crop_edge(boxes, crop, (width, height)), expected.numpy())
