"""What one step is fed: windows cut from the training images, made ahead of time by threads."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data import Pixels, TrainingData

MAX_PATCHES = 16
"""Of one image in one epoch: a large image does not crowd out the others."""

_FOREGROUND_SHARE = 1 / 3
"""Of the windows of an image larger than a window, so many surely have foreground in them (as nnU-Net does)."""
_AHEAD = 3
_FEW_ROWS = 1 << 20


@dataclass(frozen=True)
class TrainingBatch:
    """``images`` uint8 [N, 3, side, side] and ``classes`` uint8 [N, side, side]."""

    images: Tensor
    classes: Tensor


class PatchSampler:
    """The windows of one epoch after another. All draws follow from (seed, fold, epoch, step): none is carried over.

    Each of ``world`` processes takes every world-th window of a step, so that one or four of them learn the same.
    """

    def __init__(
        self,
        archive: TrainingData,
        indices: Sequence[int],
        side: int,
        batch_size: int,
        seed: tuple[int, int],
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._archive, self._side, self._seed = archive, side, seed
        self._rank, self._world = rank, world
        self._images = np.array([index for index in indices for _ in range(self._count(index))])
        # Every process has the same number of windows in a step: the mean over processes is then the step's mean.
        self._batch = math.ceil(batch_size / world) * world
        padded = math.ceil(len(self._images) / world) * world
        self.count = padded
        self.steps = math.ceil(padded / self._batch)

    def _count(self, index: int) -> int:
        height, width = self._archive.shape(index)
        return min(MAX_PATCHES, math.ceil(height * width / self._side**2))

    def epoch(self, number: int) -> Iterator[TrainingBatch]:
        """The batches of one epoch, in an order and with windows that depend on the seed and the epoch alone."""
        order = np.random.default_rng([*self._seed, number]).permutation(self._images)
        order = np.resize(order, self.count)
        waiting: deque[Future[TrainingBatch]] = deque()
        with ThreadPoolExecutor(2, thread_name_prefix="windows") as threads:
            try:
                for step in range(self.steps):
                    mine = order[step * self._batch : (step + 1) * self._batch]
                    waiting.append(threads.submit(self._cut_batch, mine, number, step))
                    if len(waiting) > _AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _cut_batch(self, images: NDArray[np.int64], epoch: int, step: int) -> TrainingBatch:
        # step + 1: numpy takes [1, 2, 3] and [1, 2, 3, 0] for the same seed.
        draws = np.random.default_rng([*self._seed, epoch, step + 1])
        # Drawn for all processes, cut for this one.
        corners = draws.random((len(images), 4))
        chosen = range(self._rank, len(images), self._world)
        cut = [self._cut(int(images[at]), corners[at]) for at in chosen]
        rgb = np.stack([patch for patch, _ in cut])
        classes = np.stack([patch for _, patch in cut])
        return TrainingBatch(torch.from_numpy(rgb).permute(0, 3, 1, 2), torch.from_numpy(classes))

    def _cut(self, index: int, draws: NDArray[np.float64]) -> tuple[Pixels, Pixels]:
        rgb, mask = self._archive.pixels(index)
        side = self._side
        height, width = mask.shape
        if height < side or width < side:
            missing = ((0, max(0, side - height)), (0, max(0, side - width)))
            rgb = np.pad(rgb, (*missing, (0, 0)), mode="reflect")
            mask = np.pad(mask, missing, mode="reflect")
        rows, columns = mask.shape[0] - side, mask.shape[1] - side
        top, left = int(draws[0] * (rows + 1)), int(draws[1] * (columns + 1))
        if (rows or columns) and draws[2] < _FOREGROUND_SHARE:
            spot = foreground_spot(mask, float(draws[3]))
            if spot is not None:
                # The window is put so that the spot lies anywhere in it, not always at its middle.
                top = min(max(spot[0] - int(draws[0] * side), 0), rows)
                left = min(max(spot[1] - int(draws[1] * side), 0), columns)
        area = (slice(top, top + side), slice(left, left + side))
        return rgb[area], mask[area]


def foreground_spot(mask: Pixels, draw: float) -> tuple[int, int] | None:
    """Row and column of a pixel of a class other than 0; every such class is as likely. None where there is none.

    ``draw`` in [0, 1). A large mask is looked at every few pixels first.
    """
    stride = max(1, math.isqrt(mask.size // _FEW_ROWS))
    for step in sorted({stride, 1}, reverse=True):
        seen = mask[::step, ::step]
        present = np.flatnonzero(np.bincount(seen.ravel(), minlength=2)[1:]) + 1
        if len(present):
            scaled = draw * len(present)
            spots = np.flatnonzero(seen == present[int(scaled)])
            row, column = divmod(int(spots[int((scaled % 1) * len(spots))]), seen.shape[1])
            return row * step, column * step
    return None
