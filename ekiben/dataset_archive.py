"""Reads a prepared dataset archive: its classes and samples, and the bytes of any sample."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ekiben.errors import BadInput, NotFound

FORMAT = 1
INDEX = "dataset.json"
"""The entry of the archive with names, classes and samples."""


@dataclass(frozen=True, slots=True)
class ArchiveClass:
    """A class of a dataset; its place in ``DatasetArchive.classes`` is its index. ``color``: RGB, 0-255."""

    name: str
    color: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Sample:
    """An image with its mask.

    ``width`` and ``height``: of the EXIF-turned image. ``sha256``: of its RGB pixels, hexadecimal. ``group``: samples
    of one group stay in one part of a split. ``image`` and ``mask``: entries of the archive. ``class_pixels``: number
    of pixels by class index. ``geometry``: of a slice of a volume, with the entry of the volume's file; else None.
    """

    name: str
    group: str
    sha256: str
    width: int
    height: int
    image: str
    mask: str
    class_pixels: tuple[int, ...]
    geometry: dict[str, Any] | None


class DatasetArchive:
    """An open archive; a context manager that closes it. Thread-safe.

    ``images/``: files that models.images.decode reads. ``masks/``: 8-bit grey PNG, level = class index, of the size of
    the EXIF-turned image. ``source/``: volumes as uploaded. The first of ``classes`` is the background; ``grey``:
    whether all images are grey.
    """

    def __init__(self, archive: zipfile.ZipFile, index: dict[str, Any]) -> None:
        self._archive = archive
        self.name: str = index["name"]
        self.grey: bool = index["grey"]
        self.classes = tuple(ArchiveClass(c["name"], tuple(c["color"])) for c in index["classes"])
        self.samples = tuple(
            Sample(**{**sample, "class_pixels": tuple(sample["class_pixels"])}) for sample in index["samples"]
        )

    @classmethod
    def open(cls, path: Path) -> DatasetArchive:
        """Open the archive at ``path``.

        Raises BadInput ``bad_dataset`` when it is no prepared archive of this format.
        """
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError):
            raise BadInput(f"{path.name} is not a prepared dataset", code="bad_dataset") from None
        try:
            index = json.loads(archive.read(INDEX))
            if index["format"] != FORMAT:
                raise BadInput(f"{path.name} is a dataset of an unknown format {index['format']}", code="bad_dataset")
            return cls(archive, index)
        except (KeyError, TypeError, ValueError, zipfile.BadZipFile):
            archive.close()
            raise BadInput(f"{path.name} is not a prepared dataset", code="bad_dataset") from None

    def __len__(self) -> int:
        return len(self.samples)

    def image(self, number: int) -> bytes:
        """The encoded image of sample ``number``, from 0. Raises NotFound."""
        return self._archive.read(self._sample(number).image)

    def mask(self, number: int) -> bytes:
        """The mask of sample ``number``, from 0, as PNG. Raises NotFound."""
        return self._archive.read(self._sample(number).mask)

    def close(self) -> None:
        """Close the file."""
        self._archive.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _sample(self, number: int) -> Sample:
        if not 0 <= number < len(self.samples):
            raise NotFound(f"the dataset has {len(self.samples)} samples; there is no sample {number}")
        return self.samples[number]
