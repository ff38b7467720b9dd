"""Loads a .keras file, a legacy .h5 file or a SavedModel folder. Runs in the environment that has TensorFlow."""

from __future__ import annotations

import functools
import importlib.util
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from export.keras.graph import INPUT
from export.keras.inspection import KerasConfig, scales_pixels
from export.keras.messages import ConversionRequest
from export.keras.reached_operators import refused_operators
from models.onnx_import.checks import Refused, first_line

# Where TensorFlow defines operators that compute, and reach neither files nor Python.
_COMPUTING = [
    "array_ops",
    "bitwise_ops",
    "control_flow_ops",
    "image_ops",
    "linalg_ops",
    "list_ops",
    "manip_ops",
    "math_ops",
    "nn_ops",
    "random_ops",
    "resource_variable_ops",
    "sparse_ops",
    "special_math_ops",
    "spectral_ops",
    "state_ops",
    "stateful_random_ops",
    "stateless_random_ops",
    "stateless_random_ops_v2",
    "string_ops",
]
_ALLOWED_BESIDES = frozenset(
    [
        "Assert",
        "Case",
        "If",
        "PartitionedCall",
        "StatefulPartitionedCall",
        "StatelessCase",
        "StatelessIf",
        "StatelessWhile",
        "While",
        "HashTableV2",
        "InitializeTableV2",
        "LookupTableFindV2",
        "LookupTableImportV2",
        "LookupTableSizeV2",
    ]
)


@dataclass(frozen=True)
class Loaded:
    """A model that was loaded, cut to one input and one output.

    ``function`` takes a tensor of ``spec`` [N, H, W, C]; ``predict`` gives what the framework itself predicts.
    ``rescaling``: the layer that scales pixels of 0 to 255, if one was found.
    """

    function: Any
    spec: Any
    predict: Callable[[NDArray[Any]], NDArray[Any]]
    description: str
    rescaling: str | None = None
    owner: Any = None
    """What was loaded: the variables of a SavedModel live as long as it does; the function alone does not hold it."""


def load(request: ConversionRequest, config: KerasConfig | None) -> Loaded:
    """The model of ``request.source``; ``config`` is None for a SavedModel.

    Refused, with the reason, where it cannot be loaded or is no image model.
    """
    source = Path(request.source)
    if config is None:
        return _load_saved_model(source, request)
    if request.signature is not None:
        raise Refused("signature: only a SavedModel has signatures")
    return _load_keras(source, config, request)


def _load_keras(path: Path, config: KerasConfig, request: ConversionRequest) -> Loaded:
    version = config.version
    # Keras 3 reads most of what Keras 2 wrote, and refuses the rest; tf_keras is Keras 2 itself.
    second = version.startswith("2.")
    if second:
        import tf_keras as keras
    else:
        import keras
    # Keras 2 has no safe_mode for HDF5 files.
    keras.layers.Lambda.from_config = classmethod(_refuse_lambda)
    try:
        # The name's ending tells Keras the format: it must not take the file for another one than was inspected.
        with tempfile.TemporaryDirectory() as folder:
            named = Path(folder) / f"model{config.ending}"
            named.symlink_to(path.absolute())
            model = keras.models.load_model(named, compile=False, safe_mode=True)
    except Refused:
        raise
    except Exception as error:  # whatever the layers of the file raise
        raise Refused(f"Keras {keras.__version__} cannot load it: {first_line(error)}") from None
    inputs, outputs = list(model.inputs or []), list(model.outputs or [])
    if len(inputs) != 1:
        raise Refused(f"it takes {len(inputs)} inputs; a model that takes one image is read")
    # A Sequential has no names of outputs, and one output.
    names = [str(name) for name in getattr(model, "output_names", None) or ["output"]]
    which = _choose(names, request.output_name)
    spec = tf.TensorSpec(_image_shape(inputs[0].shape, request), tf.as_dtype(inputs[0].dtype), name=INPUT)

    def call(pixels: Any) -> Any:
        return tf.nest.flatten(model(pixels, training=False))[which]

    def predict(pixels: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(tf.nest.flatten(model.predict_on_batch(pixels))[which])

    if len(names) != len(outputs):
        raise Refused("its outputs cannot be told apart by name")
    kind = f"{type(model).__name__} {model.name}"
    return Loaded(
        tf.function(call, input_signature=[spec]),
        spec,
        predict,
        f"Keras {version or 'of unknown version'}, {kind}",
        scales_pixels(config.content),
    )


def _refuse_lambda(*_: Any, **__: Any) -> Any:
    raise Refused("it has a Lambda layer, which is Python code inside the file; code of a file is never run")


def _load_saved_model(folder: Path, request: ConversionRequest) -> Loaded:
    if not (folder / "saved_model.pb").is_file():
        raise Refused("the folder has no saved_model.pb, so it is no SavedModel")
    version = _refuse_reaching_out(folder / "saved_model.pb")
    try:
        model = tf.saved_model.load(str(folder))
    except Exception as error:  # whatever the operators of the file raise
        raise Refused(f"TensorFlow {tf.__version__} cannot load it: {first_line(error)}") from None
    signatures = dict(model.signatures)
    name = request.signature or ("serving_default" if "serving_default" in signatures else None)
    if name is None and len(signatures) == 1:
        name = next(iter(signatures))
    if name not in signatures:
        known = ", ".join(sorted(signatures)) or "none"
        raise Refused(f"signature: the SavedModel has no {name or 'serving_default'}; it has {known}")
    signature = signatures[name]
    arguments = signature.structured_input_signature[1]
    if len(arguments) != 1:
        raise Refused(f"the signature {name} takes {len(arguments)} inputs; a model that takes one image is read")
    argument, given = next(iter(arguments.items()))
    outputs = sorted(signature.structured_outputs)
    output = outputs[_choose(outputs, request.output_name)]
    spec = tf.TensorSpec(_image_shape(given.shape, request), given.dtype, name=INPUT)

    def call(pixels: Any) -> Any:
        return signature(**{argument: pixels})[output]

    def predict(pixels: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(signature(**{argument: tf.constant(pixels)})[output])

    return Loaded(
        tf.function(call, input_signature=[spec]),
        spec,
        predict,
        f"TensorFlow {version}, SavedModel, signature {name}",
        owner=model,
    )


def _refuse_reaching_out(path: Path) -> str:
    """Refused where what is run of a graph might reach files or Python: TensorFlow runs a SavedModel as it is.

    Gives the version of TensorFlow.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    try:
        saved.ParseFromString(path.read_bytes())
    except Exception:  # protobuf's DecodeError, whose module differs by version
        raise Refused("saved_model.pb is damaged") from None
    for meta in saved.meta_graphs:
        found = refused_operators(meta, _computes)
        if found:
            raise Refused(f"its graph has operators that might reach files or Python ({', '.join(found)})")
    return next((meta.meta_info_def.tensorflow_version for meta in saved.meta_graphs), "") or "of unknown version"


def _computes(operator: str) -> bool:
    """Whether an operator does no more than compute."""
    return operator in _ALLOWED_BESIDES or any(
        operator in vars(module) and operator[:1].isupper() for module in _computing_modules()
    )


@functools.cache
def _computing_modules() -> list[ModuleType]:
    found = (importlib.util.find_spec(f"tensorflow.python.ops.gen_{name}") for name in _COMPUTING)
    return [importlib.import_module(spec.name) for spec in found if spec is not None]


def _choose(names: list[str], wanted: str | None) -> int:
    listed = ", ".join(names)
    if wanted is not None:
        if names.count(wanted) != 1:
            raise Refused(f"output_name: the model has no output {wanted!r}; it has {listed}")
        return names.index(wanted)
    if len(names) != 1:
        raise Refused(f"the model has {len(names)} outputs ({listed}); say which with --output-name")
    return 0


def _image_shape(shape: Any, request: ConversionRequest) -> list[int | None]:
    """[batch, height, width, channels] as a list; None is dynamic. Refused where it is no image.

    A size that was given is fixed: some layers (bilinear UpSampling2D) cannot be traced for any size.
    """
    sides = list(tf.TensorShape(shape).as_list()) if tf.TensorShape(shape).rank is not None else []
    if len(sides) != 4 or sides[3] not in (1, 3):
        shown = ", ".join("?" if side is None else str(side) for side in sides)
        raise Refused(
            f"its input has the shape [{shown}]; [batch, height, width, channels] with 3 or 1 channels is read"
        )
    if request.size is not None:
        sides[1:3] = [side or given for side, given in zip(sides[1:3], request.size, strict=True)]
    return sides
