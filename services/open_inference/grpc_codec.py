"""Converts the messages of the Open Inference Protocol's gRPC service to infer requests, and responses to messages."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from tritonclient.grpc import service_pb2 as pb

from ekiben.errors import BadInput
from services.open_inference.inference import InferAnswer, InferRequest
from services.open_inference.parameters import (
    MAX_INPUTS,
    MAX_PARAMETERS,
    check_counts,
    refuse_unsupported,
    requested_outputs,
)
from services.open_inference.tensors import BYTES, DATATYPES, Tensor, checked_count, from_raw, texts, to_raw
from services.schemas.validation import short

_IN_THREAD: Final = 256 * 1024  # bytes of a message with typed contents
_PIECE: Final = 1 << 16  # numbers
_MANY: Final = 1024  # elements of BYTES
_CONTENTS: Final = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}


async def read_request_in_thread(request: Any, timeout_s: float | None) -> InferRequest:
    """As ``read_request``, in a thread where it takes long: typed contents and BYTES are read element by element."""
    elements = any(one.datatype == BYTES and one.shape and one.shape[0] > _MANY for one in request.inputs[:MAX_INPUTS])
    if (request.raw_input_contents and not elements) or request.ByteSize() < _IN_THREAD:
        return read_request(request, timeout_s)
    return await asyncio.to_thread(read_request, request, timeout_s)


def read_request(message: Any, timeout_s: float | None) -> InferRequest:
    """The request of a ModelInferRequest. BadInput names the tensor that is wrong; Unsupported."""
    check_counts(len(message.inputs), len(message.outputs), len(message.parameters))
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise BadInput(f"there are {len(message.inputs)} inputs, but {len(raw)} raw_input_contents")
    tensors = []
    for number, one in enumerate(message.inputs):
        refuse_unsupported(parameters_of(one.parameters))
        shape = list(one.shape)
        if not raw:
            values = _typed(one, shape)
        elif one.HasField("contents"):
            raise BadInput(f"input {short(one.name)!r} has contents beside raw_input_contents: send one of them")
        else:
            values = from_raw(one.name, one.datatype, shape, raw[number])
        tensors.append(Tensor(one.name, values))
    outputs = [requested_outputs(one.name, parameters_of(one.parameters)) for one in message.outputs]
    return InferRequest(
        message.model_name, message.model_version, tensors, outputs, parameters_of(message.parameters), timeout_s
    )


def write_answer(answer: InferAnswer, id: str) -> Any:
    """The ModelInferResponse, with raw contents: tritonclient reads no other."""
    return pb.ModelInferResponse(
        model_name=answer.model,
        model_version=answer.version,
        id=id,
        parameters={name: pb.InferParameter(string_param=value) for name, value in answer.parameters.items()},
        outputs=[{"name": one.name, "datatype": one.datatype, "shape": one.shape} for one in answer.outputs],
        raw_output_contents=[to_raw(one.values) for one in answer.outputs],
    )


def _typed(tensor: Any, shape: list[int]) -> Any:
    count = checked_count(tensor.name, tensor.datatype, shape)
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise BadInput(f"input {short(tensor.name)!r} is {tensor.datatype}, which goes as raw_input_contents only")
    given = getattr(tensor.contents, field)
    if len(given) != count:
        raise BadInput(f"input {short(tensor.name)!r} is {shape}: {count} values, but {field} has {len(given)}")
    if tensor.datatype == BYTES:
        return texts(given, shape)
    values = np.empty(count, DATATYPES[tensor.datatype])
    try:
        for start in range(0, count, _PIECE):  # in pieces: each holds the interpreter lock
            values[start : start + _PIECE] = given[start : start + _PIECE]
        return values.reshape(shape)
    except OverflowError:
        raise BadInput(f"the data of input {short(tensor.name)!r} is not {tensor.datatype}") from None


def parameters_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of InferParameter messages, by name. BadInput for more than MAX_PARAMETERS."""
    if len(given) > MAX_PARAMETERS:
        raise BadInput(f"there are {len(given)} parameters; at most {MAX_PARAMETERS} are read")
    return {
        name: getattr(value, which) for name, value in given.items() if (which := value.WhichOneof("parameter_choice"))
    }
