"""Small datasets, good and bad, as the files of an upload, and the import of one within this process."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ekiben.errors import Refusal
from services.datasets.importer.__main__ import import_dataset
from services.datasets.importer.report import Report
from tests.toy_models import encoded, noise

SIDE = 40
Files = dict[str, bytes]


class Row(NamedTuple):
    """One dataset with something wrong, and the code and the sentence with which it is said."""

    name: str
    make: Callable[[], Files]
    code: str
    sentence: str
    options: Mapping[str, Any] = MappingProxyType({})


def image(seed: int, width: int = SIDE, height: int = SIDE, format: str = "PNG") -> bytes:
    return encoded(noise(width, height, seed), format)


def blob(seed: int, value: int = 255, width: int = SIDE, height: int = SIDE) -> NDArray[np.uint8]:
    """uint8 [height, width]: a rectangle of ``value`` on 0, a fifth to a third of the image."""
    random = np.random.default_rng(seed)
    mask = np.zeros((height, width), np.uint8)
    top, left = int(random.integers(1, height // 3)), int(random.integers(1, width // 3))
    mask[top : top + height // 2, left : left + width // 2] = value
    return mask


def png(pixels: NDArray[Any]) -> bytes:
    return encoded(Image.fromarray(pixels))


def paletted(indices: NDArray[np.uint8], colors: list[tuple[int, int, int]]) -> bytes:
    image = Image.fromarray(indices).convert("P")
    image.putpalette([level for color in colors for level in color])
    image.putdata(indices.ravel().tolist())
    return encoded(image)


def dataset(count: int = 24, mask: Callable[[int], bytes] | None = None, first: int = 0) -> Files:
    """``images/img_00.png`` and ``masks/img_00.png``, and so on; ``mask(i)`` instead of a 0/255 rectangle."""
    files: Files = {}
    for i in range(first, first + count):
        files[f"images/img_{i:02d}.png"] = image(i)
        files[f"masks/img_{i:02d}.png"] = mask(i) if mask else png(blob(i))
    return files


def zipped(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def upload(folder: Path, files: Mapping[str, bytes], **options: Any) -> Path:
    """A folder as the worker makes it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "upload.zip").write_bytes(zipped(files))
    (folder / "import.json").write_text(json.dumps({"name": "toy", "source": "upload", **options}))
    return folder


@dataclass(frozen=True)
class Imported:
    """``report``: as in report.json; ``refusal``: its code, or None."""

    folder: Path
    report: dict[str, Any]
    refusal: Refusal | None

    @property
    def archive(self) -> Path:
        return self.folder / "dataset.zip"

    def finding(self, code: str) -> dict[str, Any]:
        found = [f for kind in ("errors", "warnings", "notes") for f in self.report[kind] if f["code"] == code]
        assert len(found) == 1, (code, self.codes)
        return dict(found[0])

    @property
    def codes(self) -> dict[str, list[str]]:
        return {kind: [f["code"] for f in self.report[kind]] for kind in ("errors", "warnings", "notes")}


def imported(folder: Path, files: Mapping[str, bytes], **options: Any) -> Imported:
    upload(folder, files, **options)
    report = Report()
    refusal = None
    try:
        import_dataset(folder, report, lambda phase, done, total: None)
    except Refusal as error:
        refusal = error
    return Imported(folder, json.loads(json.dumps(report.as_json())), refusal)
