"""A prepared archive in training: images decoded as at serve time, masks as class indices."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ekiben.dataset_archive import BadDataset, DatasetArchive, Sample
from ekiben.errors import BadInput
from models.images import decode

Pixels = NDArray[np.uint8]

_LEAST_STD = 1 / 255  # one grey level: a constant channel must not be divided by zero


class TrainingData:
    """A prepared archive, decoded. Thread-safe. Decoded images are cached while they fit into ``cache_bytes``.

    With ``side`` every image is resized to side x side (bilinear; masks nearest). Raises BadDataset for an archive that
    cannot be read, as do the methods.
    """

    def __init__(self, path: Path, *, side: int | None, cache_bytes: int) -> None:
        self._archive = DatasetArchive(path)
        if not self.samples:
            raise BadDataset("the dataset has no images")
        self._side = side
        self._free_bytes = cache_bytes
        self._cached: OrderedDict[int, tuple[Pixels, Pixels]] = OrderedDict()
        self._lock = threading.Lock()  # of the cache

    @property
    def samples(self) -> tuple[Sample, ...]:
        """All samples; methods take an index into them."""
        return self._archive.samples

    @property
    def name(self) -> str:
        """The dataset's name."""
        return self._archive.name

    @property
    def labels(self) -> list[str]:
        """Class names by class index; the first is the background."""
        return [item.name for item in self._archive.classes]

    @property
    def palette(self) -> list[tuple[int, int, int]]:
        """RGB colours, 0-255, by class index."""
        return [item.color for item in self._archive.classes]

    def bytes_of(self, index: int) -> bytes:
        """Encoded image, as uploaded; slices of volumes are PNG."""
        return self._archive.image(index)

    def image(self, index: int) -> Image.Image:
        """The image decoded as in a request: RGB, EXIF-turned, at its own size."""
        sample = self.samples[index]
        try:
            return decode(self.bytes_of(index)).rgb
        except BadInput as error:
            raise BadDataset(f"{sample.name}: {error.message}") from None

    def truth(self, index: int) -> Pixels:
        """uint8 [H, W]: the class index of each pixel, at the image's own size."""
        return np.asarray(self._mask(index))

    def pixels(self, index: int) -> tuple[Pixels, Pixels]:
        """RGB uint8 [H, W, 3] and class indices uint8 [H, W], resized where ``side`` is set.

        Cached arrays: do not modify.
        """
        with self._lock:
            cached = self._cached.get(index)
        if cached is not None:
            return cached
        rgb, mask = self.image(index), self._mask(index)
        if rgb.size != mask.size:
            raise BadDataset(f"{self.samples[index].name}: the image is {rgb.size}, its mask {mask.size}")
        if self._side is not None:
            square = (self._side, self._side)
            rgb = rgb.resize(square, Image.Resampling.BILINEAR)
            mask = mask.resize(square, Image.Resampling.NEAREST)
        decoded = (np.asarray(rgb), np.asarray(mask))
        size = decoded[0].nbytes + decoded[1].nbytes
        with self._lock:
            if index not in self._cached and size <= self._free_bytes:
                self._cached[index] = decoded
                self._free_bytes -= size
        return decoded

    def shape(self, index: int) -> tuple[int, int]:
        """(H, W) of the arrays that ``pixels`` returns, without decoding."""
        sample = self.samples[index]
        return (self._side, self._side) if self._side else (sample.height, sample.width)

    def _mask(self, index: int) -> Image.Image:
        sample = self.samples[index]
        try:
            mask = Image.open(io.BytesIO(self._archive.mask(index)), formats=["PNG"])
            mask.load()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise BadDataset(f"{sample.name}: its mask cannot be read: {_first_line(error)}") from None
        if mask.mode != "L":
            raise BadDataset(f"{sample.name}: its mask is of mode {mask.mode}, not 8-bit grey")
        highest = int(np.asarray(mask).max())
        if highest >= len(self.labels):
            raise BadDataset(f"{sample.name}: its mask has class {highest}, the dataset {len(self.labels)} classes")
        return mask


def normalisation(
    archive: TrainingData, indices: Sequence[int]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation per RGB channel, of values scaled to 0-1, over all pixels of these images.

    Raises BadDataset where all pixels have one colour. Normalised they are all 0, and the logits of a network are
    what its normalising layers make of rounding errors.
    """
    counts = np.zeros((3, 256), np.int64)
    for index in indices:
        rgb, _ = archive.pixels(index)
        for channel in range(3):
            counts[channel] += np.bincount(rgb[:, :, channel].ravel(), minlength=256)
    if (np.count_nonzero(counts, axis=1) == 1).all():
        raise BadDataset("all pixels of the images to train on have the same colour: there is nothing to learn from")
    levels = np.arange(256) / 255.0
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ levels
    std = np.sqrt(np.maximum(share @ levels**2 - mean**2, 0.0))
    red, green, blue = (round(float(value), 6) for value in mean)
    r, g, b = (round(float(max(value, _LEAST_STD)), 6) for value in std)
    return (red, green, blue), (r, g, b)


def cache_budget(memory_mb: int | None) -> int:
    """Bytes for decoded images: a quarter of the free memory, or of ``memory_mb`` MiB where that is less."""
    free = 4 << 30  # where the system does not report it
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if memory_mb is not None:
        free = min(free, memory_mb << 20)
    return free // 4


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
