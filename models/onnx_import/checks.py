"""Reads the facts of an ONNX file, and refuses it before it is run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models.limits import MAX_PIXELS

# The domains whose operators ONNX Runtime ships. Others would need a library of the file's author.
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
OLDEST_OPSET = 7  # the oldest that ONNX Runtime supports

MAX_NAME = 200  # characters of an input or output


class Refused(Exception):
    """The file is refused; the message says why, in one sentence."""


def read_file(path: Path, layout: str) -> dict[str, Any]:
    """Name, dtype, layout and shape of the input, operator set and precision, by name as in GraphInfo.

    Refused where the file is not a model that takes one image.
    """
    import onnx

    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except MemoryError:
        raise
    except Exception:  # protobuf's DecodeError, whose module has no types
        raise Refused("it is not an ONNX file, or it is cut short") from None
    if not model.graph.node:
        raise Refused("it is not an ONNX model: it has no graph with nodes")
    opset = _check_opsets(model)
    _check_tensors(model)
    _state_unknown_shapes(model.graph)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise Refused(f"the ONNX checker refuses it: {first_line(error)}") from None
    image = _image_input(model.graph)
    batch, height, width = _image_shape(image, layout)
    if max(len(value.name) for value in (image, *model.graph.output)) > MAX_NAME:
        raise Refused(f"an input or output has a name of more than {MAX_NAME} characters")
    return {
        "input_name": image.name,
        "dtype": _dtype_of(image),
        "layout": layout,
        "batch": batch,
        "height": height,
        "width": width,
        "opset": opset,
        "precision": _precision(model),
    }


def _state_unknown_shapes(graph: Any) -> None:
    """Give inputs and outputs that have no shape, or no type, those of four unknown dimensions: the checker wants some.

    Exporters leave them out, and ONNX Runtime infers them. A lone input of unknown rank is taken for the image; what an
    output is, the trial runs say. The file itself stays as it is.
    """
    from onnx import TensorProto

    for value in (*graph.input, *graph.output):
        if value.type.WhichOneof("value") not in (None, "tensor_type"):
            continue
        tensor = value.type.tensor_type
        if tensor.elem_type == TensorProto.UNDEFINED:
            tensor.elem_type = TensorProto.FLOAT
        if not tensor.HasField("shape"):
            for _ in range(4):
                tensor.shape.dim.add()


def _graphs(model: Any) -> Iterator[Any]:
    """The graph, the subgraphs of its nodes at any depth, and the bodies of the model's own functions."""
    waiting = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.HasField("g") else []
                waiting += attribute.graphs


def _check_opsets(model: Any) -> int:
    from onnx.defs import onnx_opset_version

    versions = {entry.domain: entry.version for entry in model.opset_import}
    opset = int(versions.get("", versions.get("ai.onnx", 0)))
    if not OLDEST_OPSET <= opset <= onnx_opset_version():
        raise Refused(f"its operator set is {opset}; {OLDEST_OPSET} to {onnx_opset_version()} are read")
    own = {(function.domain, function.name) for function in model.functions}
    for graph in _graphs(model):
        for node in graph.node:
            if node.domain not in DOMAINS and (node.domain, node.op_type) not in own:
                raise Refused(
                    f"it uses the custom operator {node.domain}.{node.op_type}; "
                    "only those that ONNX Runtime ships can run"
                )
    return opset


def _tensors(model: Any) -> Iterator[Any]:
    for graph in _graphs(model):
        if hasattr(graph, "initializer"):  # a function body has none
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                yield from [attribute.t] if attribute.HasField("t") else []
                yield from attribute.tensors
                for sparse in [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []:
                    yield from (sparse.values, sparse.indices)


def _check_tensors(model: Any) -> None:
    """Refused unless weights lie inside the file and every tensor holds the bytes of its shape.

    ONNX Runtime would open an external file, by any path, and would allocate what a shape says before it reads bytes.
    """
    from onnx import TensorProto

    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            where = next((entry.value for entry in tensor.external_data if entry.key == "location"), "another file")
            raise Refused(
                f"the weights of {tensor.name!r} lie in another file ({where[:MAX_NAME]!r}); save the model as one file"
            )
        if min(tensor.dims, default=0) < 0:
            raise Refused(f"the tensor {tensor.name!r} has a negative dimension: {list(tensor.dims)}")
        elements = 1
        for dim in tensor.dims:
            elements *= dim
        if tensor.data_type not in TensorProto.DataType.values() or tensor.data_type == TensorProto.UNDEFINED:
            raise Refused(f"the tensor {tensor.name!r} has no known type")
        if tensor.data_type == TensorProto.STRING:
            continue
        held, needed = _held(tensor, elements)
        if held != needed:
            raise Refused(
                f"the tensor {tensor.name!r} says it has the shape {list(tensor.dims)}, which is {needed} bytes, "
                f"but holds {held}"
            )


def _held(tensor: Any, elements: int) -> tuple[int, int]:
    """Bytes that a tensor holds, and bytes of its shape; elements of a typed field are counted as raw bytes."""
    from onnx.helper import tensor_dtype_to_field, tensor_dtype_to_np_dtype

    dtype = tensor_dtype_to_np_dtype(tensor.data_type)
    narrow = re.search(r"(?:int|float)([24])(?!\d)", dtype.name)  # int4, uint2, float4_e2m1fn: packed into bytes
    bits = int(narrow[1]) if narrow else 8 * dtype.itemsize
    needed = (elements * bits + 7) // 8
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data), needed
    stored = len(getattr(tensor, tensor_dtype_to_field(tensor.data_type)))
    if narrow:  # one byte to an int32 entry
        return stored, needed
    if dtype.kind == "c":  # real and imaginary parts are entries of their own
        return stored * bits // 16, needed
    return stored * bits // 8, needed


def _image_input(graph: Any) -> Any:
    """The one input that is not a weight: files from before 2019 list every weight among the inputs."""
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    images = [value for value in inputs if len(value.type.tensor_type.shape.dim) == 4]
    if not images:
        raise Refused("no input has four dimensions (batch, channels, height, width), so none takes an image")
    if len(inputs) > 1:
        names = ", ".join(value.name[:MAX_NAME] for value in inputs[:8])
        raise Refused(f"it takes {len(inputs)} inputs ({names}); a model that takes one image is read")
    return images[0]


def _image_shape(value: Any, layout: str) -> tuple[int | None, int | None, int | None]:
    """Batch, height and width; None is dynamic."""
    dims = [
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
        for dim in value.type.tensor_type.shape.dim
    ]
    batch, channels, height, width = dims if layout == "NCHW" else (dims[0], dims[3], dims[1], dims[2])
    if channels not in (None, 3):
        other = "NHWC" if layout == "NCHW" else "NCHW"
        fits = dims[3 if layout == "NCHW" else 1] == 3
        hint = f"; its shape looks like {other}" if fits else "; models of colour images, three channels, are read"
        raise Refused(f"input {value.name} of shape {_text(dims)} has {channels} channels as {layout}{hint}")
    if (height or 1) * (width or 1) > MAX_PIXELS:
        raise Refused(f"input {value.name} of shape {_text(dims)} has more than {MAX_PIXELS // 1_000_000} megapixels")
    return batch, height, width


def _dtype_of(image: Any) -> str:
    from onnx import TensorProto

    code = image.type.tensor_type.elem_type
    name = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.UINT8: "uint8"}.get(code)
    if name is None:
        given = TensorProto.DataType.Name(code).lower()
        raise Refused(f"input {image.name} is of type {given}; float (32 bits), float16 and uint8 are read")
    return name


def _precision(model: Any) -> str:
    """The type of most bytes of the weights."""
    from onnx import TensorProto

    known = {
        TensorProto.FLOAT: "float32",
        TensorProto.FLOAT16: "float16",
        TensorProto.BFLOAT16: "bfloat16",
        TensorProto.INT8: "int8",
        TensorProto.UINT8: "int8",
    }
    counts = dict.fromkeys(known.values(), 0)
    for tensor in _tensors(model):
        if tensor.data_type in known:
            counts[known[tensor.data_type]] += tensor.ByteSize()
    return max(counts, key=lambda name: counts[name])


def _text(dims: list[int | None]) -> str:
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in dims) + "]"


def first_line(error: Exception) -> str:
    """The first line of the message, at most 300 characters; else the name of the type."""
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
