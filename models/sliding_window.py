"""Sliding-window inference: an image cut into overlapping tiles, and the logits of these blended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ekiben.errors import TooLarge

# Of MONAI's sliding_window_inference(mode="gaussian"): the standard deviation as a share of the side, and the least
# weight (monai.data.utils.compute_importance_map).
SIGMA_SHARE: Final = 0.125
LEAST_WEIGHT: Final = 1e-3

MAX_LINE_BYTES: Final = 1 << 30
"""Bytes of the logits of one line of tiles."""

PaintRegion = Callable[[slice, slice, NDArray[np.float32]], None]
"""Takes rows, columns and the logits float32 [C, h, w] of that part of an image."""


class Tile(NamedTuple):
    """A tile, by its top left corner in pixels of the padded image."""

    top: int
    left: int


class TileGrid:
    """The tiles of ``side`` x ``side`` that cover an image: the windows of MONAI's sliding_window_inference.

    They lie ``side * (1 - overlap)`` apart, the last one of a line at the edge. An image that is smaller than a tile is
    padded to one, half on each side, by reflection, repeatedly where it is smaller than its padding: what surrounds an
    object stays plausible, where MONAI's zeros would be an edge that the network never saw in training. ``tiles``
    come in lines across the shorter side, so that the unfinished line is as short as possible.
    """

    def __init__(self, height: int, width: int, side: int, overlap: float) -> None:
        self.height, self.width, self.side = height, width, side
        self.above, self.before = max(0, side - height) // 2, max(0, side - width) // 2
        self.tops = _starts(max(height, side), side, overlap)
        self.lefts = _starts(max(width, side), side, overlap)
        self.by_rows = height >= width
        if self.by_rows:
            tiles = [Tile(top, left) for top in self.tops for left in self.lefts]
        else:
            tiles = [Tile(top, left) for left in self.lefts for top in self.tops]
        self.tiles: tuple[Tile, ...] = tuple(tiles)


class TileBlender:
    """Blends the logits of a grid's tiles, given in their order, with Gaussian weights.

    ``paint`` gets every part of the image once, as soon as no later tile touches it. So only one line of tiles is held:
    channels x side x shorter side x 4 bytes (and twice that of one channel, for the weights). With one channel and
    tiles of 256 that is 8 MB + 16 MB for 8000 x 8000 pixels, of which the logits and weights would be 512 MB. TooLarge
    where it is more than MAX_LINE_BYTES.
    """

    def __init__(self, grid: TileGrid, channels: int, paint: PaintRegion) -> None:
        self._grid, self._paint = grid, paint
        self._along, self._across = (grid.tops, grid.lefts) if grid.by_rows else (grid.lefts, grid.tops)
        breadth = self._across[-1] + grid.side
        if channels * grid.side * breadth * 4 > MAX_LINE_BYTES:
            raise TooLarge(
                f"the image is {grid.width} x {grid.height}; {channels} classes in tiles of {grid.side} pixels are "
                f"blended on images with one side up to {MAX_LINE_BYTES // (4 * channels * grid.side)} pixels"
            )
        # The logits of a single tile stay exactly as the network gave them.
        self._weight = gaussian(grid.side) if len(grid.tiles) > 1 else np.ones((grid.side,) * 2, np.float32)
        self._line_weights = np.zeros((grid.side, breadth), np.float32)
        for start in self._across:
            self._line_weights[:, start : start + grid.side] += self._weight
        self._weights = self._line_weights.copy()
        self._sums = np.zeros((channels, grid.side, breadth), np.float32)
        self._weighted = np.empty((channels, grid.side, grid.side), np.float32)
        self._line = self._place = 0

    def add(self, logits: NDArray[np.floating[Any]]) -> None:
        """Take the logits [C, side, side] of the next tile."""
        side = self._grid.side
        np.multiply(logits if self._grid.by_rows else logits.swapaxes(1, 2), self._weight, out=self._weighted)
        start = self._across[self._place]
        self._sums[:, :, start : start + side] += self._weighted
        self._place += 1
        if self._place == len(self._across):
            self._finish_line()

    def _finish_line(self) -> None:
        side, start = self._grid.side, self._along[self._line]
        last = self._line + 1 == len(self._along)
        done = side if last else self._along[self._line + 1] - start
        self._give(start, self._sums[:, :done] / self._weights[:done])
        self._line, self._place = self._line + 1, 0
        for sums in (self._sums, self._weights[None]):
            sums[:, : side - done] = sums[:, done:].copy()
            sums[:, side - done :] = 0
        self._weights += self._line_weights

    def _give(self, start: int, logits: NDArray[np.float32]) -> None:
        """Paint ``logits`` [C, along, across], which begin at ``start`` of the padded image, without its padding."""
        grid = self._grid
        offset, length = (grid.above, grid.height) if grid.by_rows else (grid.before, grid.width)
        margin, breadth = (grid.before, grid.width) if grid.by_rows else (grid.above, grid.height)
        first, end = max(start - offset, 0), min(start - offset + logits.shape[1], length)
        if first >= end:
            return
        logits = logits[:, first + offset - start : end + offset - start, margin : margin + breadth]
        if grid.by_rows:
            self._paint(slice(first, end), slice(0, breadth), logits)
        else:
            self._paint(slice(0, breadth), slice(first, end), logits.swapaxes(1, 2))


def cut_tile(pixels: NDArray[np.uint8], tile: Tile, side: int) -> NDArray[np.uint8]:
    """uint8 [side, side, 3]: one tile of ``pixels`` [H, W, 3]; only the tile is padded, never the whole image."""
    height, width = pixels.shape[:2]
    top, left = tile.top - max(0, side - height) // 2, tile.left - max(0, side - width) // 2
    if side <= min(height, width):
        return pixels[top : top + side, left : left + side]
    return pixels[_reflected(top, side, height)[:, None], _reflected(left, side, width)]


def gaussian(side: int) -> NDArray[np.float32]:
    """float32 [side, side]: the weights of the pixels of a tile, 1 in the middle."""
    steps = np.arange(side, dtype=np.float32) - (side - 1) / 2
    bell = np.exp(-(steps**2) / (2 * (SIGMA_SHARE * side) ** 2))
    weights = np.outer(bell, bell)
    least = max(float(weights.min()), LEAST_WEIGHT)
    return np.maximum(weights, least).astype(np.float32)


def _starts(length: int, side: int, overlap: float) -> list[int]:
    step = max(1, int(side * (1 - overlap)))
    return [*range(0, length - side, step), length - side]


def _reflected(start: int, count: int, length: int) -> NDArray[np.intp]:
    """The indexes, of ``length`` pixels, at ``start``, ``start + 1``, ... when the pixels are mirrored at both ends."""
    turn = length - 1
    return turn - np.abs(np.arange(start, start + count) % max(1, 2 * turn) - turn)
