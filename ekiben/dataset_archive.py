"""The prepared dataset archive: the schema of its index, and the one reader of its samples."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ekiben.errors import BadInput, NotFound

FORMAT = 1
INDEX = "dataset.json"
"""The entry of the archive that holds a DatasetIndex as JSON."""

_UNREADABLE = (KeyError, OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)
"""What zipfile raises for damaged, missing, encrypted and unsupported entries."""


class BadDataset(BadInput):
    """A dataset that cannot be read or trained on."""

    code = "bad_dataset"


class ArchiveClass(BaseModel):
    """A class of a dataset; its place in ``DatasetIndex.classes`` is its index. ``color``: RGB, 0-255."""

    model_config = ConfigDict(frozen=True)

    name: str
    color: tuple[int, int, int]


class Sample(BaseModel):
    """An image with its mask.

    ``width`` and ``height``: of the EXIF-turned image. ``sha256``: of its RGB pixels, hexadecimal. ``group``: samples
    of one group stay in one part of a split. ``image`` and ``mask``: entries of the archive. ``class_pixels``: number
    of pixels by class index. ``geometry``: of a slice of a volume, with the entry of the volume's file; else None.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    group: str
    sha256: str
    width: int = Field(ge=1)
    height: int = Field(ge=1)
    image: str
    mask: str
    class_pixels: tuple[int, ...]
    geometry: dict[str, Any] | None = None


class DatasetIndex(BaseModel):
    """Contents of ``dataset.json``. The first class is the background; ``grey``: whether all images are grey."""

    model_config = ConfigDict(frozen=True)

    format: int
    name: str
    classes: tuple[ArchiveClass, ...] = Field(min_length=2, max_length=256)
    grey: bool
    samples: tuple[Sample, ...]


class DatasetArchive:
    """An open archive; a context manager that closes it. Thread-safe.

    ``images/``: files that models.images.decode reads. ``masks/``: 8-bit grey PNG, level = class index, of the size of
    the EXIF-turned image. ``source/``: volumes as uploaded. Written by services/datasets/importer/prepare.py.
    """

    def __init__(self, path: Path) -> None:
        """Open the archive at ``path``. Raises BadDataset when it is no prepared archive of this format."""
        try:
            self._archive = zipfile.ZipFile(path)
        except _UNREADABLE as error:
            raise BadDataset(f"{path.name} is not a prepared dataset: {_reason(error)}") from None
        try:
            self.index = self._read_index(path.name)
        except BaseException:
            self._archive.close()
            raise

    @property
    def name(self) -> str:
        """The dataset's name."""
        return self.index.name

    @property
    def classes(self) -> tuple[ArchiveClass, ...]:
        """Classes by class index; the first is the background."""
        return self.index.classes

    @property
    def samples(self) -> tuple[Sample, ...]:
        """All samples; methods take a number from 0 of one of them."""
        return self.index.samples

    def __len__(self) -> int:
        return len(self.samples)

    def image(self, number: int) -> bytes:
        """The encoded image of sample ``number``, as uploaded; slices of volumes are PNG.

        Raises NotFound for a number out of range, BadDataset for a damaged entry.
        """
        return self._read(self._sample(number).image)

    def mask(self, number: int) -> bytes:
        """The mask of sample ``number`` as PNG. Raises NotFound and BadDataset like ``image``."""
        return self._read(self._sample(number).mask)

    def close(self) -> None:
        """Close the file."""
        self._archive.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_index(self, name: str) -> DatasetIndex:
        try:
            data = self._archive.read(INDEX)
        except _UNREADABLE:
            raise BadDataset(f"{name} is not a prepared dataset: its {INDEX} cannot be read") from None
        try:
            index = DatasetIndex.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise BadDataset(f"{name} is not a prepared dataset: {INDEX}: {where}: {first['msg']}") from None
        if index.format != FORMAT:
            raise BadDataset(f"{name} is a dataset of the unknown format {index.format}; this version reads {FORMAT}")
        return index

    def _sample(self, number: int) -> Sample:
        if not 0 <= number < len(self.samples):
            raise NotFound(f"the dataset has {len(self.samples)} samples; there is no sample {number}")
        return self.samples[number]

    def _read(self, entry: str) -> bytes:
        try:
            return self._archive.read(entry)
        except _UNREADABLE as error:
            raise BadDataset(f"{entry} of the prepared dataset cannot be read: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
