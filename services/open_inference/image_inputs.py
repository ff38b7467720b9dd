"""The image input of an infer request, in its three forms: encoded, pixels, or prepared for the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ekiben.errors import BadInput
from models.artifact import GraphInput
from models.inference_requests import PreparedTensor
from services.model_registry.index import ServableModel
from services.open_inference.metadata import IMAGE, graph_input
from services.open_inference.tensors import BYTES, Tensor
from services.schemas.validation import short

ImageInputs = list[bytes | NDArray[np.uint8] | PreparedTensor]

MAX_IMAGES = 1024
"""Images of one request."""

_FLOATS = ("FP16", "FP32", "FP64", "BF16")


def read(served: ServableModel, inputs: Mapping[str, Tensor]) -> tuple[ImageInputs, bool]:
    """The images, and whether it is a single one without a batch axis.

    ``image`` is BYTES [n] (encoded), UINT8 [h, w, 3] or [n, h, w, 3] (pixels, RGB), or floating-point as the graph
    takes it. An input with the name of the graph's own is passed to the graph. BadInput says what is wrong.
    """
    graph = graph_input(served)
    for name in inputs:
        if name not in (IMAGE, graph.name):
            raise BadInput(f"model {served.key.name} has no input {short(name)!r}; there is {IMAGE}")
    if len(inputs) != 1:
        raise BadInput(f"model {served.key.name} takes one input, {IMAGE}; there are {len(inputs)}")
    tensor = next(iter(inputs.values()))
    if tensor.name == IMAGE and tensor.datatype == BYTES:
        return list(encoded(tensor)), False
    if tensor.name == IMAGE and tensor.datatype == "UINT8":
        return pixels(tensor)
    return _prepared(graph, tensor)


def encoded(tensor: Tensor) -> list[bytes]:
    """The encoded images of a BYTES tensor, [n] or [n, 1]. BadInput for another shape."""
    if len(tensor.shape) not in (1, 2) or (len(tensor.shape) == 2 and tensor.shape[1] != 1):
        raise BadInput(f"{tensor.name} as BYTES is [n], n encoded images, not {list(tensor.shape)}")
    _check_count(tensor, tensor.values.size)
    files: list[bytes] = list(tensor.values.ravel())
    return files


def pixels(tensor: Tensor) -> tuple[ImageInputs, bool]:
    """The images of a UINT8 tensor, [n, h, w, 3] or [h, w, 3]; True: a single one, of the latter. BadInput."""
    shape = tensor.shape
    if len(shape) not in (3, 4) or shape[-1] != 3:
        raise BadInput(f"{tensor.name} as UINT8 is pixels, [h, w, 3] or [n, h, w, 3], RGB; not {list(shape)}")
    if 0 in shape:
        raise BadInput(f"{tensor.name} has no pixels: {list(shape)}")
    _check_count(tensor, shape[0] if len(shape) == 4 else 1)
    return (list(tensor.values), False) if len(shape) == 4 else ([tensor.values], True)


def _prepared(graph: GraphInput, tensor: Tensor) -> tuple[ImageInputs, bool]:
    rgb: tuple[int | None, ...] = (3, graph.height, graph.width)
    if graph.layout == "NHWC":
        rgb = (graph.height, graph.width, 3)
    takes = f"[{', '.join('any' if n is None else str(n) for n in rgb)}], with or without a batch axis before it"
    floats = np.dtype(graph.dtype).kind == "f"
    if (tensor.datatype not in _FLOATS) if floats else (tensor.datatype != "UINT8"):
        kinds = "BYTES (encoded images), UINT8 (pixels [h, w, 3])"
        raise BadInput(f"{tensor.name} is {tensor.datatype}; it may be {kinds} or {_kind(graph)} {takes}")
    shape = tensor.shape
    single = len(shape) == 3
    own = shape if single else shape[1:]
    if len(shape) not in (3, 4) or any(want is not None and want != has for want, has in zip(rgb, own, strict=True)):
        raise BadInput(f"{tensor.name} is {tensor.datatype} {list(shape)}; as {_kind(graph)} the model takes {takes}")
    if 0 in shape:
        raise BadInput(f"{tensor.name} is empty: {list(shape)}")
    _check_count(tensor, 1 if single else shape[0])
    with np.errstate(over="ignore"):  # a value beyond the range of the graph's type becomes infinite
        values: NDArray[Any] = tensor.values.astype(graph.dtype, copy=False)
    if floats and not np.isfinite(values).all():
        raise BadInput(f"{tensor.name} holds values that are not finite as {graph.dtype}")
    return [PreparedTensor(one) for one in (values[None] if single else values)], single


def _check_count(tensor: Tensor, images: int) -> None:
    if not 0 < images <= MAX_IMAGES:
        raise BadInput(f"{tensor.name} has {images} images; 1 to {MAX_IMAGES} are taken at once")


def _kind(graph: GraphInput) -> str:
    return "FP32" if np.dtype(graph.dtype).kind == "f" else "UINT8"
