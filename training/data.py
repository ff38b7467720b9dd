"""The prepared archive for training: images decoded as at serve time, masks as class indices."""

from __future__ import annotations

import io
import os
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ekiben.errors import BadInput
from models.images import decode
from training.split import BadDataset

Pixels = NDArray[np.uint8]

_DESCRIPTION = "dataset.json"
_LEAST_STD = 1 / 255  # one grey level: a constant channel must not be divided by zero


class ClassEntry(BaseModel):
    """A class in ``dataset.json``. ``color``: RGB, 0-255."""

    model_config = ConfigDict(frozen=True)

    name: str
    color: tuple[int, int, int]


class SampleEntry(BaseModel):
    """An image and its mask in ``dataset.json``.

    ``group``: samples of one group stay in one part of a split. ``sha256``: of the RGB pixels. ``width``, ``height``:
    of the EXIF-turned image. ``image``, ``mask``: names of entries in the archive.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    group: str
    sha256: str
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    image: str
    mask: str


class Description(BaseModel):
    """Contents of ``dataset.json`` that training reads; class 0 is the background.

    Written by services/datasets/importer.
    """

    model_config = ConfigDict(frozen=True)

    format: int
    name: str
    classes: tuple[ClassEntry, ...] = Field(min_length=2, max_length=256)
    grey: bool = False
    samples: tuple[SampleEntry, ...]


class TrainingData:
    """A prepared archive. Thread-safe. Decoded images are cached while they fit into ``cache_bytes``.

    With ``side`` every image is resized to side x side (bilinear; masks nearest). Raises BadDataset for an archive that
    cannot be read, as do the methods.
    """

    def __init__(self, path: Path, *, side: int | None, cache_bytes: int) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
            self.description = Description.model_validate_json(self._zip.read(_DESCRIPTION))
        except (OSError, zipfile.BadZipFile, KeyError) as error:
            raise BadDataset(f"the prepared archive cannot be read: {_first_line(error)}") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise BadDataset(f"the prepared archive's {_DESCRIPTION}: {where}: {first['msg']}") from None
        if self.description.format != 1:
            raise BadDataset(f"the prepared archive is of format {self.description.format}; this training reads 1")
        if not self.samples:
            raise BadDataset("the dataset has no images")
        self._side = side
        self._free_bytes = cache_bytes
        self._cached: OrderedDict[int, tuple[Pixels, Pixels]] = OrderedDict()
        self._read_lock = threading.Lock()  # a ZipFile has one file position
        self._cache_lock = threading.Lock()

    @property
    def samples(self) -> tuple[SampleEntry, ...]:
        """All samples; methods take an index into them."""
        return self.description.samples

    @property
    def labels(self) -> list[str]:
        """Class names by class index; the first is the background."""
        return [item.name for item in self.description.classes]

    @property
    def palette(self) -> list[tuple[int, int, int]]:
        """RGB colours, 0-255, by class index."""
        return [item.color for item in self.description.classes]

    def bytes_of(self, index: int) -> bytes:
        """Encoded image, as uploaded; slices of volumes are PNG."""
        return self._read(self.samples[index].image)

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
        with self._cache_lock:
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
        with self._cache_lock:
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
            mask = Image.open(io.BytesIO(self._read(sample.mask)), formats=["PNG"])
            mask.load()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise BadDataset(f"{sample.name}: its mask cannot be read: {_first_line(error)}") from None
        if mask.mode != "L":
            raise BadDataset(f"{sample.name}: its mask is of mode {mask.mode}, not 8-bit grey")
        highest = int(np.asarray(mask).max())
        if highest >= len(self.labels):
            raise BadDataset(f"{sample.name}: its mask has class {highest}, the dataset {len(self.labels)} classes")
        return mask

    def _read(self, name: str) -> bytes:
        try:
            with self._read_lock:
                return self._zip.read(name)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise BadDataset(f"the prepared archive cannot be read: {_first_line(error)}") from None


def normalisation(
    archive: TrainingData, indices: Sequence[int]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation per RGB channel, of values scaled to 0-1, over all pixels of these images."""
    counts = np.zeros((3, 256), np.int64)
    for index in indices:
        rgb, _ = archive.pixels(index)
        for channel in range(3):
            counts[channel] += np.bincount(rgb[:, :, channel].ravel(), minlength=256)
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
