"""The prepared archive: a dataset's images and masks, decoded as they will be at serve time."""

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
_LEAST_STD = 1 / 255


class DatasetClass(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    color: tuple[int, int, int]


class Sample(BaseModel):
    """One image and its mask. ``group``: samples of one group stay on one side of a split."""

    model_config = ConfigDict(frozen=True)

    name: str
    group: str
    sha256: str
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    image: str
    mask: str


class Description(BaseModel):
    """What ``dataset.json`` says; class 0 is the background."""

    model_config = ConfigDict(frozen=True)

    format: int
    name: str
    classes: tuple[DatasetClass, ...] = Field(min_length=2, max_length=256)
    grey: bool = False
    samples: tuple[Sample, ...]


class TrainingData:
    """A prepared archive. Thread-safe. Decoded images are kept while they fit into ``cache_bytes``.

    With ``side`` every image is brought to side x side: bilinear, its mask nearest.
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
        self._room = cache_bytes
        self._kept: OrderedDict[int, tuple[Pixels, Pixels]] = OrderedDict()
        self._reading = threading.Lock()  # a ZipFile has one file position
        self._keeping = threading.Lock()

    @property
    def samples(self) -> tuple[Sample, ...]:
        return self.description.samples

    @property
    def labels(self) -> list[str]:
        return [item.name for item in self.description.classes]

    @property
    def palette(self) -> list[tuple[int, int, int]]:
        return [item.color for item in self.description.classes]

    def bytes_of(self, index: int) -> bytes:
        """The image's bytes as the user sent them (a slice of a volume: as PNG)."""
        return self._read(self.samples[index].image)

    def image(self, index: int) -> Image.Image:
        """The image as a request would bring it: RGB, EXIF-turned, at its own size."""
        sample = self.samples[index]
        try:
            return decode(self.bytes_of(index)).rgb
        except BadInput as error:
            raise BadDataset(f"{sample.name}: {error.message}") from None

    def truth(self, index: int) -> Pixels:
        """uint8 [height, width]: the class of each pixel, at the image's own size."""
        return np.asarray(self._mask(index))

    def pixels(self, index: int) -> tuple[Pixels, Pixels]:
        """uint8 [H, W, 3] and uint8 [H, W]: what is trained on. Not to be written to."""
        with self._keeping:
            kept = self._kept.get(index)
        if kept is not None:
            return kept
        rgb, mask = self.image(index), self._mask(index)
        if rgb.size != mask.size:
            raise BadDataset(f"{self.samples[index].name}: the image is {rgb.size}, its mask {mask.size}")
        if self._side is not None:
            square = (self._side, self._side)
            rgb = rgb.resize(square, Image.Resampling.BILINEAR)
            mask = mask.resize(square, Image.Resampling.NEAREST)
        made = (np.asarray(rgb), np.asarray(mask))
        size = made[0].nbytes + made[1].nbytes
        with self._keeping:
            if index not in self._kept and size <= self._room:
                self._kept[index] = made
                self._room -= size
        return made

    def shape(self, index: int) -> tuple[int, int]:
        """Height and width of what ``pixels`` gives, without decoding."""
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
            with self._reading:
                return self._zip.read(name)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise BadDataset(f"the prepared archive cannot be read: {_first_line(error)}") from None


def normalisation(
    archive: TrainingData, indices: Sequence[int]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation per channel (RGB, 0-1) over all pixels of these images."""
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


def cache_room(memory_mb: int | None) -> int:
    """Bytes for decoded images: a quarter of the memory that is free, or of what this process may use at most."""
    free = 4 << 30
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
