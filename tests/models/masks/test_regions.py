"""Small regions: against flood filling pixel by pixel, and bit for bit against the reference's OpenCV."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from models.masks.regions import components, remove_small_regions
from models.masks.rle import encode
from tests.models.masks.test_rle import blobs

Mask = NDArray[np.bool_]
Mode = Literal["holes", "islands"]

MODES: tuple[Mode, ...] = ("holes", "islands")
AROUND = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
BESIDE = [(-1, 0), (1, 0), (0, -1), (0, 1)]

sides = st.integers(1, 14)
masks = st.tuples(sides, sides).flatmap(lambda shape: arrays(np.bool_, shape))


@pytest.fixture(scope="module")
def reference() -> Any:
    pytest.importorskip("torch")
    pytest.importorskip("cv2")
    from export.torchvision_ops import declare_missing

    declare_missing()
    pytest.importorskip("segment_anything")
    from segment_anything.utils import amg  # type: ignore[import-untyped, unused-ignore]

    return amg.remove_small_regions


def flooded(mask: Mask, steps: list[tuple[int, int]]) -> list[set[tuple[int, int]]]:
    """The regions of a mask, pixel by pixel."""
    left: set[tuple[int, int]] = {(y, x) for y, x in np.argwhere(mask).tolist()}
    regions = []
    while left:
        edge = [left.pop()]
        region = set(edge)
        while edge:
            y, x = edge.pop()
            for near in ((y + dy, x + dx) for dy, dx in steps):
                if near in left:
                    left.remove(near)
                    region.add(near)
                    edge.append(near)
        regions.append(region)
    return regions


def without_small(mask: Mask, min_area: int, mode: Mode) -> Mask:
    """The reference's rule, pixel by pixel; for masks without two largest islands of one size."""
    regions = flooded(~mask if mode == "holes" else mask, AROUND)
    small = [region for region in regions if len(region) < min_area]
    if mode == "islands" and len(small) == len(regions):
        small = sorted(small, key=len)[:-1]
    out = mask.copy()
    for y, x in (pixel for region in small for pixel in region):
        out[y, x] = mode == "holes"
    return out


def spiral(side: int) -> Mask:
    """One line of one pixel that turns inwards, its turns one pixel apart."""
    mask = np.zeros((side, side), np.bool_)
    y, x, dy, dx = 0, 0, 0, 1
    mask[0, 0] = True
    for length in (side - 1, *(n for m in range(side - 1, 0, -2) for n in (m, m))):
        for _ in range(length):
            y, x = y + dy, x + dx
            mask[y, x] = True
        dy, dx = dx, -dy
    return mask


def hard_masks() -> dict[str, Mask]:
    rng = np.random.default_rng(3)
    grain = np.asarray(blobs(90, 130, 1) ^ (rng.random((90, 130)) < 0.03))
    one = np.zeros((9, 9), np.bool_)
    one[4, 5] = True
    bars = np.tile(np.arange(40) % 2 == 0, (40, 1))
    return {
        "empty": np.zeros((20, 30), np.bool_),
        "full": np.ones((20, 30), np.bool_),
        "one pixel": one,
        "one pixel missing": ~one,
        "checkerboard": np.asarray(np.indices((21, 30)).sum(0) % 2 == 0),
        "spiral": spiral(41),
        "inverse spiral": ~spiral(41),
        "bars": bars,
        "comb": np.asarray(bars | (np.arange(40) == 39)[:, None]),
        "lying comb": np.asarray(bars | (np.arange(40) == 39)[:, None]).T.copy(),
        "grain": grain,
        "blobs": blobs(200, 300),
        "noise": rng.random((64, 80)) < 0.4,
        "sparse": rng.random((64, 80)) < 0.08,
        "one row": rng.random((1, 60)) < 0.5,
        "one column": rng.random((60, 1)) < 0.5,
        "two equal islands": np.isin(np.arange(15 * 12).reshape(15, 12), (9, 20, 31, 150, 139, 128)),
    }


@given(masks, st.integers(0, 20), st.sampled_from(MODES))
@settings(max_examples=200, deadline=None)
def test_components_are_those_of_flood_filling(mask: Mask, min_area: int, mode: Mode) -> None:
    rle = encode(mask)
    columns, tops, bottoms = rle.column_runs()
    heads = columns * rle.height
    for diagonal, steps in ((True, AROUND), (False, BESIDE)):
        labels = components(heads + tops, heads + bottoms, rle.height, diagonal=diagonal)
        found: dict[int, set[tuple[int, int]]] = {}
        for label, x, top, bottom in zip(
            labels.tolist(), columns.tolist(), tops.tolist(), bottoms.tolist(), strict=True
        ):
            found.setdefault(label, set()).update((y, x) for y in range(top, bottom))
        assert sorted(map(sorted, found.values())) == sorted(map(sorted, flooded(mask, steps)))
    areas = sorted(len(region) for region in flooded(mask, AROUND))
    if mode == "holes" or len(areas) < 2 or areas[-1] > areas[-2]:
        cleaned, changed = remove_small_regions(rle, min_area, mode)
        expected = without_small(mask, min_area, mode)
        assert np.array_equal(cleaned.decode(), expected)
        # As the reference: a lone island that is too small stays, and still counts as a change.
        assert changed == any(len(region) < min_area for region in flooded(~mask if mode == "holes" else mask, AROUND))


@given(masks, st.integers(0, 20), st.sampled_from(MODES))
@settings(max_examples=400, deadline=None)
def test_random_masks_as_the_reference(reference: Any, mask: Mask, min_area: int, mode: Mode) -> None:
    expected, expected_change = reference(mask, min_area, mode)
    cleaned, changed = remove_small_regions(encode(mask), min_area, mode)
    assert np.array_equal(cleaned.decode(), expected)
    assert changed == expected_change


@pytest.mark.parametrize("name", hard_masks())
@pytest.mark.parametrize("mode", MODES)
def test_hard_masks_as_the_reference(reference: Any, name: str, mode: Mode) -> None:
    mask = hard_masks()[name]
    for min_area in (0, 1, 2, 3, 5, 12.5, 100, 10**9):
        expected, expected_change = reference(mask, min_area, mode)
        cleaned, changed = remove_small_regions(encode(mask), min_area, mode)
        assert np.array_equal(cleaned.decode(), expected), min_area
        assert changed == expected_change
        assert cleaned == encode(expected)


@pytest.mark.parametrize("seed", range(3))
def test_of_many_equal_islands_in_a_large_image_the_references_stays(reference: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = np.zeros((700, 900), np.bool_)
    for y, x in zip(rng.integers(0, 690, 60), rng.integers(0, 890, 60), strict=True):
        mask[y : y + 2, x : x + 2] = True
    expected, _ = reference(mask, 10**6, "islands")
    assert np.array_equal(remove_small_regions(encode(mask), 10**6, "islands")[0].decode(), expected)


def test_a_known_mask() -> None:
    mask = np.zeros((8, 10), np.bool_)
    mask[1:6, 1:6] = True
    mask[3, 3] = False  # a hole of 1
    mask[6, 6] = True  # hangs on by a corner: no island
    mask[0, 9] = True  # an island of 1
    rle = encode(mask)
    filled, changed = remove_small_regions(rle, 2, "holes")
    assert (filled.area, changed) == (rle.area + 1, True)
    kept, changed = remove_small_regions(filled, 2, "islands")
    assert (kept.area, changed, kept.box_xyxy) == (26, True, (1, 1, 6, 6))
    assert remove_small_regions(kept, 2, "islands") == (kept, False)
    assert remove_small_regions(kept, 2, "holes") == (kept, False)
