"""Archives that are damaged, foreign or of another format, each with its own sentence."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from ekiben.dataset_archive import INDEX, BadDataset, DatasetArchive

SAMPLE = {
    "name": "a",
    "group": "a",
    "sha256": "00" * 32,
    "width": 2,
    "height": 1,
    "image": "images/0.png",
    "mask": "masks/0.png",
    "class_pixels": [1, 1],
    "geometry": None,
}
CLASSES = [{"name": "background", "color": [0, 0, 0]}, {"name": "cell", "color": [255, 0, 0]}]
IMAGE = b"an image" * 50


def write(path: Path, method: int = zipfile.ZIP_STORED, **changes: Any) -> Path:
    index = {"format": 1, "name": "cells", "classes": CLASSES, "grey": True, "samples": [SAMPLE], **changes}
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("images/0.png", IMAGE)
        archive.writestr(INDEX, json.dumps(index))
    return path


def test_an_archive_as_it_was_written(tmp_path: Path) -> None:
    with DatasetArchive(write(tmp_path / "a.zip")) as archive:
        assert (archive.name, len(archive), archive.index.grey) == ("cells", 1, True)
        assert [(one.name, one.color) for one in archive.classes] == [("background", (0, 0, 0)), ("cell", (255, 0, 0))]
        assert archive.samples[0].model_dump() == {**SAMPLE, "class_pixels": (1, 1)}
        assert archive.image(0) == IMAGE


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, "unknown format 2; this version reads 1"),
        ({"classes": CLASSES[:1]}, "dataset.json: classes: Tuple should have at least 2 items"),
        ({"samples": [{**SAMPLE, "width": 0}]}, "dataset.json: samples.0.width: "),
        ({"samples": None}, "dataset.json: samples: "),
    ],
    ids=["format", "one class", "no width", "no samples"],
)
def test_an_index_that_is_not_one(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match=words) as refused:
        DatasetArchive(write(tmp_path / "a.zip", **changes))
    assert refused.value.code == "bad_dataset"


@pytest.mark.parametrize("data", [None, b"", b"no archive", b"PK\x05\x06" + bytes(18)])
def test_a_file_that_is_no_archive(data: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(BadDataset, match=r"a\.zip is not a prepared dataset"):
        DatasetArchive(path)


def test_an_entry_that_is_missing(tmp_path: Path) -> None:
    with DatasetArchive(write(tmp_path / "a.zip")) as archive, pytest.raises(BadDataset, match=r"masks/0\.png"):
        archive.mask(0)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_an_entry_whose_bytes_are_damaged(method: int, tmp_path: Path) -> None:
    """Every kind of compression fails in its own way, and each is a refusal."""
    path = write(tmp_path / "a.zip", method)
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        length = archive.getinfo("images/0.png").compress_size
    start = 30 + len("images/0.png")
    for at in range(start, start + length, 3):
        data[at] ^= 0xFF
    path.write_bytes(data)
    with DatasetArchive(path) as archive, pytest.raises(BadDataset, match=r"images/0\.png of the prepared dataset"):
        archive.image(0)


@pytest.mark.parametrize(("field", "value"), [("flags", 1), ("method", 99)], ids=["encrypted", "unknown method"])
def test_an_entry_that_zipfile_does_not_read(field: str, value: int, tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip")
    data = bytearray(path.read_bytes())
    local, central = data.index(b"PK\x03\x04"), data.index(b"PK\x01\x02")
    data[local + {"flags": 6, "method": 8}[field]] |= value
    data[central + {"flags": 8, "method": 10}[field]] |= value
    path.write_bytes(data)
    with DatasetArchive(path) as archive, pytest.raises(BadDataset, match=r"images/0\.png of the prepared dataset"):
        archive.image(0)
