"""The manifest: what makes an artifact another one, what is refused in it, and the palette."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ekiben.errors import BadModelFile
from models.artifact import (
    MANIFEST,
    ONNX,
    Manifest,
    Preprocess,
    Weights,
    file_info,
    read_manifest,
    sha256_of,
    verify,
    voc_palette,
    write_manifest,
)
from tests import toy_models


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    toy_models.segmenter(tmp_path / "toy")
    (tmp_path / "toy" / "extra").mkdir()
    (tmp_path / "toy" / "extra" / "notes.txt").write_text("hello")
    write_manifest(tmp_path / "toy", read_manifest(tmp_path / "toy"))
    return tmp_path / "toy"


def test_the_manifest_lists_every_file_but_itself(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert set(manifest.files) == {ONNX, "extra/notes.txt"}
    assert manifest.files["extra/notes.txt"].bytes == 5
    assert manifest.files["extra/notes.txt"].sha256 == hashlib.sha256(b"hello").hexdigest()
    assert manifest.files[ONNX] == file_info(folder / ONNX)
    assert manifest.files[ONNX].sha256 == hashlib.sha256((folder / ONNX).read_bytes()).hexdigest()
    assert sha256_of(folder / ONNX) == manifest.files[ONNX].sha256


def test_written_and_read_back_is_equal(folder: Path) -> None:
    written = write_manifest(folder, read_manifest(folder))
    assert read_manifest(folder) == written
    assert json.loads((folder / MANIFEST).read_text())["family"] == "segmenter"


def test_the_digest_is_that_of_the_content(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert len(manifest.digest) == 64 and manifest.digest == read_manifest(folder).digest
    for changed in (
        {"labels": ("background", "red", "green", "yellow")},
        {"preprocess": Preprocess(mean=(0.5, 0.5, 0.5))},
        {"licence": "MIT"},
        {"weights": Weights(kind="imported", detail="another toy")},
        {"input": manifest.input.model_copy(update={"color": "BGR"})},
    ):
        assert manifest.model_copy(update=changed).digest != manifest.digest, changed
    assert manifest.model_copy(update={"metrics": {"miou": 0.5}}).digest == manifest.digest


@pytest.mark.parametrize("name", [ONNX, "extra/notes.txt"])
def test_another_file_makes_another_digest(folder: Path, name: str) -> None:
    before = read_manifest(folder).digest
    (folder / name).write_bytes((folder / name).read_bytes() + b"\0")
    assert write_manifest(folder, read_manifest(folder)).digest != before


def test_another_file_name_makes_another_digest(folder: Path) -> None:
    before = read_manifest(folder).digest
    (folder / "extra" / "notes.txt").rename(folder / "extra" / "other.txt")
    assert write_manifest(folder, read_manifest(folder)).digest != before


def test_verify_accepts_what_was_written(folder: Path) -> None:
    verify(folder, read_manifest(folder))


@pytest.mark.parametrize("name", [ONNX, "extra/notes.txt"])
def test_verify_names_the_broken_file(folder: Path, name: str) -> None:
    manifest = read_manifest(folder)
    data = (folder / name).read_bytes()
    for broken in (data[:-1], data + b"x", bytes([data[0] ^ 1]) + data[1:]):
        (folder / name).write_bytes(broken)
        with pytest.raises(BadModelFile, match=f"{name} does not have the checksum .*{manifest.files[name].sha256}"):
            verify(folder, manifest)
    (folder / name).unlink()
    with pytest.raises(BadModelFile, match=f"{name} is missing"):
        verify(folder, manifest)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "manifest.json is missing"),
        (b"", "JSON"),
        (b"not json", "JSON"),
        (b"[1, 2]", "object|dictionary"),
        (b"{}", "family: Field required"),
    ],
)
def test_what_is_no_manifest_is_refused_by_name(tmp_path: Path, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(BadModelFile, match=says) as refused:
        read_manifest(tmp_path)
    assert str(tmp_path) in refused.value.message and "\n" not in refused.value.message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"palette": []}, "4 labels but 0 palette colours"),
        ({"labels": []}, "labels"),
        ({"format": 2}, "format"),
        ({"surprise": 1}, "surprise"),
        ({"preprocess": {"crop_share": 0.5, "shorter_side": 9}}, "crop_share excludes"),
        ({"preprocess": {"center_crop": 9}}, "center_crop needs shorter_side"),
        ({"preprocess": {"std": [1, 0, 1]}}, "std must be positive"),
        ({"preprocess": {"crop_share": 1.5}}, "crop_share"),
        ({"preprocess": {"shorter_side": 0}}, "shorter_side"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(folder: Path, change: dict[str, Any], says: str) -> None:
    content = json.loads((folder / MANIFEST).read_text()) | change
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(BadModelFile, match=says):
        read_manifest(folder)
    with pytest.raises(ValidationError):
        Manifest.model_validate(content)


def test_weights_say_where_they_come_from() -> None:
    assert str(Weights(kind="random", detail="seed 7")) == "random (seed 7)"
    assert str(Weights(kind="published")) == "published"


def test_the_palette_is_pascal_voc_s() -> None:
    # The colours as the VOC development kit prints them for background, aeroplane, bicycle, bird, boat, ...
    assert voc_palette(21) == (
        (0, 0, 0),
        (128, 0, 0),
        (0, 128, 0),
        (128, 128, 0),
        (0, 0, 128),
        (128, 0, 128),
        (0, 128, 128),
        (128, 128, 128),
        (64, 0, 0),
        (192, 0, 0),
        (64, 128, 0),
        (192, 128, 0),
        (64, 0, 128),
        (192, 0, 128),
        (64, 128, 128),
        (192, 128, 128),
        (0, 64, 0),
        (128, 64, 0),
        (0, 192, 0),
        (128, 192, 0),
        (0, 64, 128),
    )
    assert voc_palette(256)[255] == (224, 224, 192)  # the kit's "void"
    assert len(set(voc_palette(256))) == 256
