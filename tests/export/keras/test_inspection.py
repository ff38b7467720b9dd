"""What is read of a Keras configuration before Keras reads it: code is refused, a Rescaling layer is found."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from export.keras import inspection
from export.keras.inspection import KerasConfig, inspect, read_keras_zip, refuse_code, scales_pixels
from models.onnx_import.checks import Refused


def layer(kind: str, module: str | None = "keras.layers", registered: str | None = None, **config: Any) -> Any:
    name = config.pop("name", kind.lower())
    return {"class_name": kind, "module": module, "registered_name": registered, "config": {"name": name, **config}}


def functional(*layers: Any, kind: str = "Functional") -> dict[str, Any]:
    return {
        "class_name": kind,
        "module": "keras",
        "registered_name": kind,
        "config": {"layers": [layer("InputLayer"), *layers]},
        "compile_config": {"loss": {"class_name": "function", "module": "builtins", "config": "mine"}},
    }


PLAIN = functional(
    layer("TrueDivide", "keras.src.ops.numpy", "TrueDivide"),
    layer("Conv2D", activation="relu", dtype={"module": "keras", "class_name": "DTypePolicy", "config": {}}),
    functional(layer("Dense"), kind="Sequential"),
)


def test_layers_of_keras_pass_and_a_loss_is_not_looked_at() -> None:
    refuse_code(PLAIN)


@pytest.mark.parametrize(
    ("hostile", "sentence"),
    [
        (layer("Lambda", name="twice"), "it has a Lambda layer 'twice', which is Python code inside the file"),
        (layer("Lambda", module=None), "a Lambda layer"),
        (layer("Activation", activation={"class_name": "function", "module": "os", "config": "system"}), "function"),
        (layer("Dense", activation={"class_name": "__lambda__", "config": {"value": "4w=="}}), "__lambda__"),
        (layer("TorchModuleWrapper", "keras.layers"), "TorchModuleWrapper"),
        (layer("TFSMLayer", filepath="/elsewhere"), "TFSMLayer"),
        (layer("Mine", None, "pack>Mine"), "the class 'Mine' 'mine' of the user's own"),
        (layer("Mine", None, "Mine"), "the class 'Mine' 'mine' of the user's own"),
        (layer("pack>Mine", None), "of the user's own"),
        (layer("Popen", "subprocess"), "the class 'Popen'"),
        (layer("x", "kerasevil.layers"), "the class 'x'"),
    ],
)
@pytest.mark.parametrize("deep", [False, True])
def test_code_is_refused_at_any_depth(hostile: Any, sentence: str, deep: bool) -> None:
    config = functional(functional(hostile)) if deep else functional(hostile)
    with pytest.raises(Refused, match=sentence):
        refuse_code(config)
    # What Keras 2 writes: no module.
    assert isinstance(json.dumps(config), str)


def test_a_configuration_without_end_is_refused() -> None:
    nested: dict[str, Any] = {}
    for _ in range(300):
        nested = {"config": nested}
    with pytest.raises(Refused, match="nested more than"):
        refuse_code(nested)


RESCALING = layer("Rescaling", scale=1 / 255, name="scaled")


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (functional(RESCALING, layer("Conv2D")), "scaled"),
        (functional(layer("RandomFlip"), layer("Resizing"), RESCALING), "scaled"),
        (functional(functional(layer("RandomFlip"), kind="Sequential"), RESCALING), "scaled"),
        (functional(functional(RESCALING, layer("Normalization"))), "scaled"),
        (functional(layer("Rescaling", scale=1 / 127.5, offset=-1, name="both")), "both"),
        (functional(layer("Rescaling", scale=255.0)), None),
        (functional(layer("Normalization"), RESCALING), None),
        (functional(layer("Conv2D"), RESCALING), None),
        (functional(layer("TrueDivide"), RESCALING), None),
        (functional(), None),
        ({"config": []}, None),
        ({}, None),
    ],
)
def test_a_rescaling_layer_in_front_is_found(config: dict[str, Any], found: str | None) -> None:
    assert scales_pixels(config) == found


def write(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.json", data)
    return path


def test_a_keras_file_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "m.keras", config=json.dumps(PLAIN).encode(), metadata=b'{"keras_version": "3.15.1"}')
    assert read_keras_zip(path) == KerasConfig(PLAIN, "3.15.1") == inspect(path)
    assert inspect(tmp_path) is None
    (tmp_path / "text.keras").write_text("no model")
    with pytest.raises(Refused, match=r"it is neither a \.keras file"):
        inspect(tmp_path / "text.keras")
    hostile = json.dumps(functional(layer("Lambda"))).encode()
    with pytest.raises(Refused, match="Lambda"):
        inspect(write(tmp_path / "lambda.keras", config=hostile, metadata=b"{}"))


def test_what_is_no_keras_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write(tmp_path / "m.keras", config=json.dumps(PLAIN).encode(), metadata=b"{}").read_bytes()
    for data in (b"", b"PK", whole[: len(whole) // 2], whole[:-10]):
        (tmp_path / "cut.keras").write_bytes(data)
        with pytest.raises(Refused, match=r"it is no \.keras file"):
            read_keras_zip(tmp_path / "cut.keras")
    with pytest.raises(Refused, match=r"it is no \.keras file"):
        read_keras_zip(write(tmp_path / "without.keras", config=b"{}"))
    for bad in (b"[]", b"{", b"\xff", b"[" * 100_000):
        with pytest.raises(Refused, match="is not"):
            read_keras_zip(write(tmp_path / "bad.keras", config=bad, metadata=b"{}"))
    monkeypatch.setattr(inspection, "MAX_CONFIG_BYTES", 1 << 20)
    with pytest.raises(Refused, match="has more than"):
        read_keras_zip(write(tmp_path / "bomb.keras", config=b" " * (4 << 20), metadata=b"{}"))


@pytest.mark.parametrize("block", [0, 512, 4096])
def test_a_file_that_is_zip_and_hdf5_is_refused(tmp_path: Path, block: int) -> None:
    zipped = write(tmp_path / "m.keras", config=json.dumps(PLAIN).encode(), metadata=b"{}").read_bytes()
    both = tmp_path / "both.keras"
    both.write_bytes((b"PK" + bytes(block))[:block] + b"\x89HDF\r\n\x1a\n" + bytes(100) + zipped)
    with pytest.raises(Refused, match="both a ZIP and an HDF5 file"):
        inspect(both)
