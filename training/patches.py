"""The patches that a step trains on, cut from the training images ahead of time by threads."""

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
"""Patches of one image in one epoch at most, so that large images do not dominate an epoch."""

_FOREGROUND_SHARE = 1 / 3
"""Share of the patches of an image larger than a patch that are placed on foreground, as in nnU-Net."""
_BATCHES_AHEAD = 3
_SUBSAMPLE_PIXELS = 1 << 20  # masks with more pixels are searched on a coarser grid first


@dataclass(frozen=True)
class TrainingBatch:
    """``images`` uint8 [N, 3, side, side] and ``classes`` uint8 [N, side, side]."""

    images: Tensor
    classes: Tensor


class PatchSampler:
    """Random patches, epoch by epoch.

    All random numbers follow from (seed, fold, epoch, step); there is no other state.

    ``side``: of the square patches, in pixels. Each of ``world`` processes takes every world-th patch of a step, so
    that a step has equal patches on any number of processes. ``count``: patches of an epoch over all processes;
    ``steps``: steps of an epoch.
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
        # Every process has equally many patches in a step, so that the mean over processes is the mean of the step.
        self._batch = math.ceil(batch_size / world) * world
        padded = math.ceil(len(self._images) / world) * world
        self.count = padded
        self.steps = math.ceil(padded / self._batch)

    def _count(self, index: int) -> int:
        height, width = self._archive.shape(index)
        return min(MAX_PATCHES, math.ceil(height * width / self._side**2))

    def epoch(self, number: int) -> Iterator[TrainingBatch]:
        """The batches of epoch ``number``, in order; they depend on the seed and the epoch alone."""
        order = np.random.default_rng([*self._seed, number]).permutation(self._images)
        order = np.resize(order, self.count)
        pending: deque[Future[TrainingBatch]] = deque()
        with ThreadPoolExecutor(2, thread_name_prefix="patches") as threads:
            try:
                for step in range(self.steps):
                    images = order[step * self._batch : (step + 1) * self._batch]
                    pending.append(threads.submit(self._cut_batch, images, number, step))
                    if len(pending) > _BATCHES_AHEAD:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def _cut_batch(self, images: NDArray[np.int64], epoch: int, step: int) -> TrainingBatch:
        # step + 1: numpy gives equal streams for the seeds [1, 2, 3] and [1, 2, 3, 0], and epoch() uses the former.
        draws = np.random.default_rng([*self._seed, epoch, step + 1])
        # Drawn for the patches of all processes; only those of this process are cut.
        corners = draws.random((len(images), 4))
        chosen = range(self._rank, len(images), self._world)
        cut = [self._cut(int(images[at]), corners[at]) for at in chosen]
        rgb = np.stack([pixels for pixels, _ in cut])
        classes = np.stack([mask for _, mask in cut])
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
                # The pixel lies anywhere in the patch, not always at its centre.
                top = min(max(spot[0] - int(draws[0] * side), 0), rows)
                left = min(max(spot[1] - int(draws[1] * side), 0), columns)
        area = (slice(top, top + side), slice(left, left + side))
        return rgb[area], mask[area]


def foreground_spot(mask: Pixels, draw: float) -> tuple[int, int] | None:
    """Row and column of a foreground pixel; every class other than 0 is equally likely. None without foreground.

    ``mask`` uint8 [H, W]; ``draw``: a random number in [0, 1). A large mask is searched on a coarser grid first.
    """
    stride = max(1, math.isqrt(mask.size // _SUBSAMPLE_PIXELS))
    for step in sorted({stride, 1}, reverse=True):
        seen = mask[::step, ::step]
        present = np.flatnonzero(np.bincount(seen.ravel(), minlength=2)[1:]) + 1
        if len(present):
            scaled = draw * len(present)
            spots = np.flatnonzero(seen == present[int(scaled)])
            row, column = divmod(int(spots[int((scaled % 1) * len(spots))]), seen.shape[1])
            return row * step, column * step
    return None
