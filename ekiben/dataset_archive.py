"""A prepared archive, for reading: what is in it, and the bytes of any sample."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ekiben.errors import BadInput, NotFound


@dataclass(frozen=True, slots=True)
class DatasetClass:
    """A class by its index's place; the first is the background. ``color``: RGB, for drawing."""

    name: str
    color: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Sample:
    """An image with its mask.

    ``width`` and ``height``: of the EXIF-turned image. ``sha256``: of its RGB pixels. ``group``: samples of one
    group stay on one side of a split. ``image`` and ``mask``: entries of the archive. ``class_pixels``: by class.
    ``geometry``: of a slice of a volume, and the entry with its file; else None.
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
    """An open archive. Any thread may read; ``close`` (or a ``with``) when done.

    ``images/``: images that models.images.decode reads. ``masks/``: 8-bit grey PNG, level = class index, of the
    EXIF-turned image's size. ``source/``: volumes as they came.
    """

    def __init__(self, archive: zipfile.ZipFile, index: dict[str, Any]) -> None:
        self._archive = archive
        self.name: str = index["name"]
        self.grey: bool = index["grey"]
        self.classes = tuple(DatasetClass(c["name"], tuple(c["color"])) for c in index["classes"])
        self.samples = tuple(
            Sample(**{**sample, "class_pixels": tuple(sample["class_pixels"])}) for sample in index["samples"]
        )

    @classmethod
    def open(cls, path: Path) -> DatasetArchive:
        """Raises BadInput where ``path`` is no prepared archive."""
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
        """The encoded image of sample ``number``. Raises NotFound."""
        return self._archive.read(self._sample(number).image)

    def mask(self, number: int) -> bytes:
        """The PNG of sample ``number``'s mask. Raises NotFound."""
        return self._archive.read(self._sample(number).mask)

    def close(self) -> None:
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


FORMAT = 1


INDEX = "dataset.json"
