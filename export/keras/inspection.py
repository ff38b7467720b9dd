"""The configuration of a Keras model, read before Keras does: refuses code in it, and finds what scales pixels."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from models.onnx_import.checks import Refused

MAX_CONFIG_BYTES = 64 << 20  # EfficientNetB7's has 0.6 MB
_MAX_DEPTH = 200
_HDF5 = b"\x89HDF\r\n\x1a\n"

# What Keras does to images in training only, or without a change of the values' scale.
_PASSED = ("InputLayer", "Resizing", "CenterCrop", "ZeroPadding2D", "Identity", "Activation")
_NESTED = ("Functional", "Sequential", "Model")


@dataclass(frozen=True)
class KerasConfig:
    """The configuration of a model, as Keras wrote it, and the version of that Keras; empty where it is not said.

    ``ending``: of a file name that tells Keras the format in which the configuration was found.
    """

    content: dict[str, Any]
    version: str
    ending: Literal[".keras", ".h5"] = ".keras"


def inspect(source: Path) -> KerasConfig | None:
    """The configuration in a .keras or .h5 file; None for a folder, which may be a SavedModel.

    Refused where the file is neither, is damaged, or needs code.
    """
    if source.is_dir():
        return None
    with source.open("rb") as file:
        start = file.read(8)
        if zipfile.is_zipfile(file) and _is_hdf5(file):
            raise Refused("it is both a ZIP and an HDF5 file, so that its readers would not read the same model")
    if start[:2] == b"PK":
        config = read_keras_zip(source)
    elif start == _HDF5:
        config = _read_h5(source)
    else:
        raise Refused("it is neither a .keras file (a ZIP), nor a .h5 file (HDF5), nor the folder of a SavedModel")
    refuse_code(config.content)
    return config


def _is_hdf5(file: BinaryIO) -> bool:
    """Whether the HDF5 library would read it: its signature lies at the start, or after a block of 512 bytes or a power
    of two times as many, which may hold anything."""
    end, position = file.seek(0, io.SEEK_END), 0
    while position < end:
        file.seek(position)
        if file.read(len(_HDF5)) == _HDF5:
            return True
        position = 2 * position or 512
    return False


def _read_h5(path: Path) -> KerasConfig:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            text, version = file.attrs.get("model_config"), file.attrs.get("keras_version", "")
    except (OSError, RuntimeError, ValueError, KeyError):
        raise Refused("its HDF5 structure is damaged") from None
    if text is None:
        raise Refused("it holds weights without a model; save the whole model: model.save('model.keras')")
    said = version.decode(errors="replace") if isinstance(version, bytes) else str(version)
    return KerasConfig(parse_config(text, "model_config"), said, ".h5")


def read_keras_zip(path: Path) -> KerasConfig:
    """The configuration in a ``.keras`` file. Refused where it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            config = _member(archive, "config.json")
            version = _member(archive, "metadata.json").get("keras_version", "")
    except (zipfile.BadZipFile, EOFError, KeyError, OSError, NotImplementedError, RuntimeError):
        raise Refused("it is no .keras file (a ZIP with config.json and metadata.json), or it is damaged") from None
    return KerasConfig(config, str(version))


def _member(archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    with archive.open(name) as file:
        data = file.read(MAX_CONFIG_BYTES + 1)
    if len(data) > MAX_CONFIG_BYTES:
        raise Refused(f"its {name} has more than {MAX_CONFIG_BYTES >> 20} MB")
    return parse_config(data, name)


def parse_config(data: bytes | str, name: str) -> dict[str, Any]:
    """The object that ``data`` is as JSON. Refused where it is none; ``name`` says what it is."""
    try:
        config = json.loads(data)
    except (ValueError, RecursionError):
        raise Refused(f"its {name} is not JSON") from None
    if not isinstance(config, dict):
        raise Refused(f"its {name} is not a JSON object")
    return config


def refuse_code(config: dict[str, Any]) -> None:
    """Refused where the model needs code that is not Keras': Lambda layers, functions, classes of the user's own.

    Keras refuses lambdas by itself (safe_mode). This is wider, and says which layer it is: a function that is named in
    the file would be looked up in any module. The loss and the optimizer are not looked at, since they are not loaded.
    """
    for entry in _entries(config, 0):
        kind, module = entry.get("class_name"), entry.get("module")
        where = _name_of(entry)
        if kind == "Lambda":
            raise Refused(
                f"it has a Lambda layer{where}, which is Python code inside the file; code of a file is never run "
                "(safe_mode). Put a layer of Keras in its place and save the model again, or export a SavedModel"
            )
        if kind in (
            "function",
            "__lambda__",
            "__marshal__",
            "TorchModuleWrapper",
            "JaxLayer",
            "FlaxLayer",
            "TFSMLayer",
        ):
            raise Refused(f"it refers to Python code or to another file ({kind}{where}), which is not loaded")
        registered = entry.get("registered_name")
        own = isinstance(registered, str) and (module is None or ">" in registered)
        foreign = isinstance(module, str) and module.split(".")[0] not in ("keras", "builtins", "tf_keras")
        if own or foreign or (isinstance(kind, str) and ">" in kind):
            raise Refused(
                f"it has the class {kind!r}{where} of the user's own, whose code is not in the file; "
                "export a SavedModel (model.export) where the class is known"
            )


def _entries(value: Any, depth: int) -> Iterator[dict[str, Any]]:
    """All objects that name a class, at any depth; without those of compile_config."""
    if depth > _MAX_DEPTH:
        raise Refused(f"its configuration is nested more than {_MAX_DEPTH} deep")
    if isinstance(value, dict):
        if "class_name" in value:
            yield value
        for key, part in value.items():
            if key not in ("compile_config", "training_config"):
                yield from _entries(part, depth + 1)
    elif isinstance(value, list):
        for part in value:
            yield from _entries(part, depth + 1)


def _name_of(entry: dict[str, Any]) -> str:
    config = entry.get("config")
    name = entry.get("name") or (config.get("name") if isinstance(config, dict) else None)
    return f" {str(name)[:100]!r}" if name else ""


def scales_pixels(config: dict[str, Any]) -> str | None:
    """The name of the Rescaling layer with which the model begins, so that it takes pixels of 0 to 255; else None.

    Augmentation and resizing may come before it. A Normalization layer alone does not say what it was adapted to.
    """
    inner = config.get("config")
    layers = inner.get("layers") if isinstance(inner, dict) else None
    for layer in layers if isinstance(layers, list) else []:
        if not isinstance(layer, dict):
            return None
        kind = str(layer.get("class_name"))
        if kind in _PASSED or kind.startswith("Random"):
            continue
        if kind in _NESTED:
            nested = layer.get("config")
            if _only_passed(nested):  # a Sequential of augmentation
                continue
            return scales_pixels(layer)
        settings = layer.get("config")
        if kind != "Rescaling" or not isinstance(settings, dict):
            return None
        scale = settings.get("scale")
        scaled = isinstance(scale, int | float) and 0 < scale < 0.1
        return str(layer.get("name") or settings.get("name")) if scaled else None
    return None


def _only_passed(config: Any) -> bool:
    layers = config.get("layers") if isinstance(config, dict) else None
    kinds = [str(layer.get("class_name")) for layer in layers or [] if isinstance(layer, dict)]
    return bool(kinds) and all(kind in _PASSED or kind.startswith("Random") for kind in kinds)
