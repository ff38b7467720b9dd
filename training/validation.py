"""Validation during a fit: predictions by sliding window, and the search for the best threshold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.inferers.utils import sliding_window_inference
from numpy.typing import NDArray
from torch import Tensor, nn

from training import metrics
from training.data import Pixels, TrainingData

_OVERLAP = 0.25  # at serve time 0.5; less overlap is faster and chooses the epochs as well
_REGION_TILES = 4  # side of the largest region that is predicted, in overlapping tiles
_BINS = 200  # of the histograms; every threshold of the grid is an edge of a bin
_GRID = np.arange(0.1, 0.901, 0.02)


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation per RGB channel, of pixels scaled to 0-1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: Tensor) -> Tensor:
        """Normalised images float32 [N, 3, H, W], in channels-last memory format, of ``images`` in 0-1."""
        mean = torch.tensor(self.mean, device=images.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, 3, 1, 1)
        return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class ValidationScores:
    """One validation image: RGB uint8 [H, W, 3], truth uint8 [H, W], class probabilities [C, H, W], and the loss.

    One channel holds the probability of class 1.
    """

    index: int
    rgb: Pixels
    truth: Pixels
    probabilities: NDArray[np.float32]
    loss: float

    def classes(self, threshold: float) -> Pixels:
        """Predicted class indices, uint8 [H, W]. ``threshold`` counts with one channel alone."""
        if len(self.probabilities) == 1:
            return np.asarray(self.probabilities[0] >= threshold, np.uint8)
        return np.asarray(self.probabilities.argmax(axis=0), np.uint8)


class Validation:
    """Predicts the validation images of one fold. Of a large image one region around the foreground is predicted.

    ``side``: of the network's square input, in pixels.
    """

    def __init__(
        self,
        archive: TrainingData,
        indices: Sequence[int],
        side: int,
        normalization: Normalization,
        device: torch.device,
    ) -> None:
        self.indices = tuple(indices)
        self._archive, self._side, self._normalization, self._device = archive, side, normalization, device

    def evaluate(
        self, network: nn.Module, criterion: Callable[[Tensor, Tensor], Tensor], indices: Sequence[int], batch: int
    ) -> Iterator[ValidationScores]:
        """The scores of these images, one by one. Leaves the network in eval mode.

        ``batch``: patches per forward pass.
        """
        network.eval()
        for index in indices:
            rgb, truth = self._region(index)
            with torch.inference_mode():
                logits = self._logits(network, rgb, batch)
                target = torch.from_numpy(truth.astype(np.int64)).to(logits.device)[None]
                loss = float(criterion(logits, target))
                probabilities = torch.sigmoid(logits) if logits.shape[1] == 1 else torch.softmax(logits, dim=1)
            yield ValidationScores(index, rgb, truth, probabilities[0].cpu().numpy(), loss)

    def _logits(self, network: nn.Module, rgb: Pixels, batch: int) -> Tensor:
        height, width = rgb.shape[:2]
        missing = ((0, max(0, self._side - height)), (0, max(0, self._side - width)), (0, 0))
        padded = np.ascontiguousarray(np.pad(rgb, missing, mode="reflect").transpose(2, 0, 1))
        images = self._normalization(torch.from_numpy(padded).to(self._device)[None].float() / 255)
        if padded.shape[1:] == (self._side, self._side):
            logits: Tensor = network(images)
        else:
            tile = (self._side, self._side)
            blended = sliding_window_inference(images, tile, batch, network, _OVERLAP, mode="gaussian")
            logits = torch.as_tensor(blended)
        return logits[:, :, :height, :width].float()

    def _region(self, index: int) -> tuple[Pixels, Pixels]:
        rgb, truth = self._archive.pixels(index)
        most = int(self._side * (1 + (_REGION_TILES - 1) * (1 - _OVERLAP)))
        if max(truth.shape) <= most:
            return rgb, truth
        rows, columns = np.nonzero(truth[::4, ::4])
        middle = [
            4 * int(np.median(at)) if len(at) else length // 2
            for at, length in ((rows, truth.shape[0]), (columns, truth.shape[1]))
        ]
        top, left = (
            min(max(at - most // 2, 0), max(length - most, 0)) for at, length in zip(middle, truth.shape, strict=True)
        )
        area = (slice(top, top + most), slice(left, left + most))
        return rgb[area], truth[area]


class ThresholdSearch:
    """Finds the threshold with the best mean Dice, from histograms of probabilities inside and outside the truth."""

    def __init__(self) -> None:
        self._images: list[NDArray[np.int64]] = []

    def add(self, probability: NDArray[np.float32], truth: Pixels) -> None:
        """Add an image: the probability of class 1 and class indices, both [H, W]."""
        bins = np.minimum((probability * _BINS).astype(np.int64), _BINS - 1)
        inside = np.bincount(bins[truth == 1], minlength=_BINS)
        outside = np.bincount(bins[truth != 1], minlength=_BINS)
        self._images.append(np.stack([inside, outside]))

    def best(self) -> float:
        """The best threshold of 0.1, 0.12 ... 0.9; of equally good ones the nearest to 0.5."""
        found = []
        for threshold in _GRID:
            first = math.floor(threshold * _BINS + 0.5)
            tables = np.array(
                [
                    [inside[first:].sum(), outside[first:].sum(), inside[:first].sum()]
                    for inside, outside in self._images
                ]
            )
            found.append((metrics.mean(metrics.dice(tables)) or 0.0, -abs(threshold - 0.5), float(threshold)))
        return round(max(found)[2], 2)
