"""The child process that converts one model. Its report is a JSON file; started by ``export.keras.conversion``.

It runs in the environment of ``make keras``, under limits: loading a model runs what the model says.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from export.keras import graph, inspection, parity
from export.keras.messages import RAW_STD, Conversion, ConversionRequest
from models.onnx_import.checks import Refused, first_line

OPSET = 17
Array = parity.Array


def limit(memory_bytes: int, cpu_s: int, file_bytes: int) -> None:
    """Lower the limits of this process: address space, CPU seconds, bytes of a written file, core dumps."""
    for what, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))


def convert(request: ConversionRequest) -> Conversion:
    """Load, convert, change the graph so that a manifest can say what it gives, write it, and compare it with Keras."""
    config = inspection.inspect(Path(request.source))  # before TensorFlow comes, which takes seconds
    from export.keras.loading import load

    loaded = load(request, config)
    notes = []
    if request.mean is None:
        if loaded.rescaling is None:
            raise Refused(
                "nothing says how pixels are prepared for it: give --preprocess (raw, unit, tf, torch or caffe), or "
                "--mean and --std"
            )
        request = replace(request, mean=(0.0, 0.0, 0.0), std=(RAW_STD,) * 3)
        notes.append(f"it takes pixels of 0 to 255: its layer {loaded.rescaling!r} scales them")
    elif loaded.rescaling is not None and request.std is not None and max(request.std) > 2 * RAW_STD:
        notes.append(f"its layer {loaded.rescaling!r} scales pixels once more, after what --preprocess or --std does")
    inputs = parity.Inputs(tuple(loaded.spec.shape), loaded.spec.dtype.as_numpy_dtype, request)
    parity.refuse_training_mode(loaded.predict, inputs)
    model = _to_onnx(loaded.function, loaded.spec, request.task)
    activation, expect, said = _shape_output(model, request)
    notes += said
    if inputs.shape[3] == 1:
        graph.grey_input(model, bgr=request.bgr)
        notes.append("it takes grey images: the luminance of the colours is taken")
    target = Path(request.target)
    target.write_bytes(model.SerializeToString())
    measured = parity.measure(target, loaded.predict, expect, inputs)
    if measured.spread < 1e-4 * measured.largest:
        notes.append("its output hardly varies between images (was it trained?), so that parity proves little")
    mean, std = request.mean or (0.0, 0.0, 0.0), request.std or (1.0, 1.0, 1.0)
    if inputs.dtype == np.uint8:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)  # the graph takes pixels as they are
    return Conversion(activation, mean, std, loaded.description, measured, notes)


def _to_onnx(function: Any, spec: Any, task: str) -> Any:
    import tf2onnx

    try:
        outputs = function.get_concrete_function().structured_outputs
    except Exception as error:  # whatever a layer raises
        any_size = spec.shape[1] is None or spec.shape[2] is None
        hint = "; give the size to convert it for with --size" if any_size else ""
        raise Refused(f"TensorFlow cannot trace it: {first_line(error)}{hint}") from None
    channels_last = task == "segment" and outputs.shape.rank == 4
    try:
        model, _ = tf2onnx.convert.from_function(
            function,
            [spec],
            opset=OPSET,
            inputs_as_nchw=[graph.INPUT],
            outputs_as_nchw=[_output_name(function)] if channels_last else None,
        )
    except Exception as error:  # tf2onnx raises whatever its handlers raise
        raise Refused(f"tf2onnx cannot convert it: {first_line(error)}") from None
    graph.drop_unused_inputs(model)
    graph.replace_erfc(model)
    if unknown := graph.unknown_operators(model):
        raise Refused(f"tf2onnx cannot convert its operators {', '.join(unknown)}; ONNX has nothing in their place")
    if len(model.graph.output) != 1 or len(model.graph.input) != 1:
        raise Refused("its graph has other inputs or outputs than the model")
    return model


def _output_name(function: Any) -> str:
    return str(function.get_concrete_function().outputs[0].name)


def _shape_output(model: Any, request: ConversionRequest) -> tuple[str, Callable[[Array], Array], list[str]]:
    """What the output holds after ``model`` was changed, how to get it from what Keras gives, and notes."""
    found = graph.activation(model)
    if found is not None and request.activation not in (None, found):
        last = {"probabilities": "softmax", "sigmoid": "sigmoid"}[found]
        raise Refused(f"output: the model ends in {last}, so it gives {found}, not {request.activation}")
    activation = request.activation or found or "logits"
    rank, classes = len(model.graph.output[0].type.tensor_type.shape.dim), graph.classes_of(model)
    single = classes == 1 and activation != "probabilities"
    if request.task == "classify" and rank == 2 and single and request.labels == 2:
        is_probability = activation == "sigmoid"
        graph.two_classes(model, probability=is_probability)
        said = ["its one value was made two classes: the second label is what the value stands for"]
        if is_probability:
            return "probabilities", lambda values: np.concatenate([1 - values, values], 1), said
        return "logits", lambda values: np.concatenate([values * 0, values], 1), said
    if request.task == "segment" and rank == 4 and single and activation == "logits":
        graph.add_sigmoid(model)
        said = ["its one channel of logits got a sigmoid: over 0.5 is the class"]
        return "sigmoid", lambda values: 1 / (1 + np.exp(-_first(values))), said
    graph.name_output(model)
    return activation, _first if request.task == "segment" and rank == 4 else lambda values: values, []


def _first(values: Array) -> Array:
    return values.transpose(0, 3, 1, 2)


def main(arguments: list[str]) -> int:
    """Write the report; the exit status is 0.

    ``arguments``: REQUEST (JSON) REPORT MEMORY_BYTES CPU_S FILE_BYTES.
    """
    request, report, memory_bytes, cpu_s, file_bytes = arguments
    limit(int(memory_bytes), int(cpu_s), int(file_bytes))
    fields = json.loads(request)
    for name in ("mean", "std", "size"):
        fields[name] = tuple(fields[name]) if fields[name] is not None else None
    try:
        said: dict[str, Any] = {"converted": asdict(convert(ConversionRequest(**fields)))}
    except Refused as error:
        said = {"refused": str(error)}
    except MemoryError:
        said = {"refused": f"loading or converting it needs more than {int(memory_bytes) >> 20} MB of memory"}
    except ImportError as error:
        said = {"missing": error.name or str(error)}
    Path(report).write_text(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
