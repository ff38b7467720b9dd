"""Outlines: valid by GEOS, and filled again they are exactly the mask; known shapes corner by corner."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from models.masks.polygons import Polygon, Ring, polygons, to_geojson, to_polygons
from models.masks.rle import encode
from tests.models.masks.test_regions import BESIDE, flooded, hard_masks
from tests.models.masks.test_rle import blobs

Mask = NDArray[np.bool_]

sides = st.integers(1, 12)
masks = st.tuples(sides, sides).flatmap(lambda shape: arrays(np.bool_, shape))


def drawn(*rows: str) -> Mask:
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def filled(parts: list[Polygon], height: int, width: int) -> Mask:
    """Even-odd along each row of pixel centres, by the upright edges of all rings."""
    flips = np.zeros((height, width + 1), np.int64)
    for part in parts:
        for ring in (part.outer, *part.holes):
            for (ax, ay), (bx, by) in zip(ring, [*ring[1:], ring[0]], strict=True):
                if ax == bx:
                    flips[min(ay, by) : max(ay, by), ax] += 1
    return np.asarray(flips.cumsum(axis=1)[:, :width] % 2 == 1)


def area_of(ring: Ring) -> float:
    """Positive for a ring that is counter-clockwise by its numbers."""
    x, y = np.array(ring, np.int64).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def check(mask: Mask) -> None:
    """All that is promised of any mask."""
    shapely = pytest.importorskip("shapely")
    rle = encode(mask)
    parts = polygons(rle)
    regions = flooded(mask, BESIDE)
    assert len(parts) == len(regions)
    areas = [area_of(part.outer) + sum(area_of(hole) for hole in part.holes) for part in parts]
    assert sorted(areas) == sorted(len(region) for region in regions)
    assert np.array_equal(filled(parts, *mask.shape), mask)
    for part in parts:
        assert area_of(part.outer) > 0
        assert all(area_of(hole) < 0 for hole in part.holes)
        for ring in (part.outer, *part.holes):
            assert len(set(ring)) == len(ring)
            steps = np.diff(np.array([*ring, ring[0], ring[1]]), axis=0)
            across = steps[:, 1] == 0
            assert np.all(across != (steps[:, 0] == 0))  # each edge goes along one axis
            assert np.all(across[1:] != across[:-1])  # and each corner turns
    shape = shapely.from_geojson(json.dumps(to_geojson(rle)))
    assert shape.is_valid
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
    assert np.array_equal(shapely.contains_xy(shape, x, y), mask)


@given(masks)
@settings(max_examples=300, deadline=None)
def test_any_mask_comes_back(mask: Mask) -> None:
    check(mask)


@pytest.mark.parametrize("name", hard_masks())
def test_hard_masks_come_back(name: str) -> None:
    check(hard_masks()[name])


def test_one_pixel() -> None:
    mask = np.zeros((9, 8), np.bool_)
    mask[5, 3] = True
    assert polygons(encode(mask)) == [Polygon([(3, 5), (4, 5), (4, 6), (3, 6)])]
    assert to_polygons(encode(mask)) == [{"outer": [3, 5, 4, 5, 4, 6, 3, 6], "holes": []}]
    assert to_geojson(encode(mask)) == {
        "type": "Polygon",
        "coordinates": [[[3, 5], [4, 5], [4, 6], [3, 6], [3, 5]]],
    }


def test_a_hole_runs_the_other_way() -> None:
    mask = drawn("####", "#..#", "####")
    assert polygons(encode(mask)) == [Polygon([(0, 0), (4, 0), (4, 3), (0, 3)], [[(1, 2), (3, 2), (3, 1), (1, 1)]])]


def test_pixels_that_touch_at_a_corner_are_two_parts() -> None:
    assert polygons(encode(drawn("#.", ".#"))) == [
        Polygon([(0, 0), (1, 0), (1, 1), (0, 1)]),
        Polygon([(1, 1), (2, 1), (2, 2), (1, 2)]),
    ]


def test_a_part_that_closes_at_a_corner_has_a_hole_there() -> None:
    (part,) = polygons(encode(drawn("##.", "#.#", "###")))
    assert area_of(part.outer) == 8
    assert len(part.holes) == 1
    assert set(part.holes[0]) == {(1, 1), (2, 1), (2, 2), (1, 2)}
    assert (2, 1) in part.outer


def test_an_island_in_a_hole_is_a_part_of_its_own() -> None:
    mask = drawn("#####", "#...#", "#.#.#", "#...#", "#####")
    big, island = polygons(encode(mask))
    assert (len(big.holes), len(island.holes)) == (1, 0)
    assert island.outer == [(2, 2), (3, 2), (3, 3), (2, 3)]


def test_empty_and_full_masks() -> None:
    assert polygons(encode(np.zeros((4, 5), np.bool_))) == []
    assert to_polygons(encode(np.zeros((4, 5), np.bool_))) == []
    assert to_geojson(encode(np.zeros((4, 5), np.bool_))) == {"type": "MultiPolygon", "coordinates": []}
    assert polygons(encode(np.ones((4, 5), np.bool_))) == [Polygon([(0, 0), (5, 0), (5, 4), (0, 4)])]


def test_several_parts_are_a_multipolygon() -> None:
    shape = to_geojson(encode(drawn("#.#")))
    assert shape == {
        "type": "MultiPolygon",
        "coordinates": [[[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]], [[[2, 0], [3, 0], [3, 1], [2, 1], [2, 0]]]],
    }
    assert json.loads(json.dumps(shape)) == shape


@pytest.mark.parametrize("seed", range(4))
def test_coco_fills_outer_rings_without_holes_to_the_same_mask(seed: int) -> None:
    rows = np.random.default_rng(seed).integers(2, 30, (40, 2))
    mask = np.array([(np.arange(60) >= 30 - a) & (np.arange(60) < 30 + b) for a, b in rows])
    (outline,) = to_polygons(encode(mask))
    assert outline["holes"] == []
    rles = coco_mask.frPyObjects([outline["outer"]], *mask.shape)
    assert np.array_equal(coco_mask.decode(rles)[:, :, 0], mask)


def test_an_ordinary_mask_takes_few_calls() -> None:
    """Of functions, in Python or C: some thousands, not one for each of the 427,200 pixels."""
    rle = encode(blobs(534, 800))
    calls = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        found: Any = polygons(rle)
    finally:
        sys.setprofile(before)
    assert 1 <= len(found) <= 10
    assert calls < 20_000
