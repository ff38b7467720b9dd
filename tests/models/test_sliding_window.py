"""Windows and how they are blended, against MONAI's sliding_window_inference where torch is installed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ekiben.errors import TooLarge
from models.sliding_window import Tile, TileBlender, TileGrid, cut_tile, gaussian

# height, width: of one window, larger, a multiple of the step and not, smaller on one side or both, strips.
SIZES = [(32, 32), (96, 64), (65, 77), (77, 65), (33, 32), (20, 50), (50, 20), (17, 25), (128, 33), (33, 128)]
OVERLAPS = [0.0, 0.25, 0.5, 0.7]
SIDE = 32


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def uneven(batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """Two channels [N, 2, side, side], which depend on where in the window a pixel lies: blending is no identity."""
    ramp = np.linspace(-1, 1, SIDE, dtype=np.float32)
    first = batch[:, 0] * ramp[:, None] + 3 * batch[:, 1] * ramp
    return np.stack([first, batch[:, 2] - ramp[:, None] ** 2 + batch.mean(axis=(1, 2, 3))[:, None, None]], axis=1)


def blended(pixels: NDArray[np.uint8], overlap: float) -> NDArray[np.float32]:
    height, width = pixels.shape[:2]
    grid = TileGrid(height, width, SIDE, overlap)
    out = np.full((2, height, width), np.nan, np.float32)
    painted = np.zeros((height, width), int)

    def paint(rows: slice, columns: slice, logits: NDArray[np.float32]) -> None:
        out[:, rows, columns] = logits
        painted[rows, columns] += 1

    blender = TileBlender(grid, 2, paint)
    for tile in grid.tiles:
        square = cut_tile(pixels, tile, SIDE).transpose(2, 0, 1).astype(np.float32)[None] / np.float32(255)
        blender.add(uneven(square)[0])
    assert (painted == 1).all()
    return out


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_as_monai_does(size: tuple[int, int], overlap: float) -> None:
    torch = pytest.importorskip("torch")
    inferers = pytest.importorskip("monai.inferers")

    def run(batch: Any) -> Any:
        return torch.from_numpy(uneven(batch.numpy()))

    pixels = noise(*size)
    tensor = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32) / 255)[None]
    expected = inferers.sliding_window_inference(
        tensor, SIDE, 4, run, overlap=overlap, mode="gaussian", sigma_scale=0.125, padding_mode="reflect"
    )[0].numpy()
    assert np.abs(blended(pixels, overlap) - expected).max() <= 1e-4


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_windows_cover_the_image(size: tuple[int, int]) -> None:
    grid = TileGrid(*size, SIDE, 0.5)
    covered = np.zeros((max(size[0], SIDE), max(size[1], SIDE)), bool)
    for top, left in grid.tiles:
        assert 0 <= top <= covered.shape[0] - SIDE and 0 <= left <= covered.shape[1] - SIDE
        covered[top : top + SIDE, left : left + SIDE] = True
    assert covered.all()
    assert len(set(grid.tiles)) == len(grid.tiles)


def test_the_lines_run_along_the_longer_side() -> None:
    tall, wide = TileGrid(70, 40, 32, 0.5), TileGrid(40, 70, 32, 0.5)
    assert tall.tiles[:3] == (Tile(0, 0), Tile(0, 8), Tile(16, 0))
    assert wide.tiles == tuple(Tile(left, top) for top, left in tall.tiles)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 40), (31, 5), (2, 2)], ids=str)
def test_small_images_are_mirrored_until_they_fill_a_window(size: tuple[int, int]) -> None:
    """As numpy pads, also where torch refuses: less image than padding."""
    pixels = noise(*size)
    missing = [(max(0, SIDE - each) // 2, max(0, SIDE - each) - max(0, SIDE - each) // 2) for each in size]
    whole = np.pad(pixels, [*missing, (0, 0)], mode="reflect")
    grid = TileGrid(*size, SIDE, 0.5)
    for tile in grid.tiles:
        expected = whole[tile.top : tile.top + SIDE, tile.left : tile.left + SIDE]
        assert np.array_equal(cut_tile(pixels, tile, SIDE), expected)


def test_the_weights_are_highest_in_the_middle() -> None:
    weights = gaussian(64)
    assert weights[31, 31] == weights[32, 32] == weights.max()
    assert weights.max() == pytest.approx(np.exp(-(0.5**2) * 2 / (2 * 8**2)), rel=1e-6)
    assert weights.min() == np.float32(1e-3)
    assert np.array_equal(weights, weights[::-1]) and np.array_equal(weights, weights.T)


def test_one_window_is_left_as_it_is() -> None:
    logits = np.random.default_rng(1).normal(size=(3, SIDE, SIDE)).astype(np.float32)
    parts: list[NDArray[np.float32]] = []
    TileBlender(TileGrid(SIDE, SIDE, SIDE, 0.5), 3, lambda _rows, _columns, part: parts.append(part)).add(logits)
    assert np.array_equal(parts[0], logits)


@pytest.mark.parametrize("size", [(64_000_000, 1), (1, 64_000_000), (8000, 8000)], ids=str)
def test_what_is_held_is_bounded(size: tuple[int, int]) -> None:
    """One line of windows across the shorter side: a strip of 64 megapixels needs no more than a window."""
    blender = TileBlender(TileGrid(*size, 256, 0.5), 1, lambda *_: None)
    held = sum(each.nbytes for each in vars(blender).values() if isinstance(each, np.ndarray))
    assert held <= 3 * 256 * max(256, min(size)) * 4 + 2 * 256 * 256 * 4


def test_more_than_a_gigabyte_is_refused() -> None:
    with pytest.raises(TooLarge, match="256 classes in tiles of 512"):
        TileBlender(TileGrid(4000, 4000, 512, 0.5), 256, lambda *_: None)
