"""Bodies of the Open Inference Protocol over HTTP: JSON, JSON followed by binary tensors, or one raw tensor."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Mapping
from typing import Any, Final

import orjson

from ekiben.errors import BadInput, TooLarge, Unsupported
from services.open_inference.inference import InferAnswer, InferRequest
from services.open_inference.parameters import check_counts, refuse_unsupported, requested_outputs
from services.open_inference.tensors import BYTES, MAX_BYTES, Tensor, from_raw, from_values, texts, to_raw
from services.schemas.validation import short

HEADER_LENGTH: Final = "inference-header-content-length"
MAX_JSON: Final = 16 * 1024 * 1024
"""Bytes of the JSON of a request: parsed it takes ten times as much memory. Larger tensors have to be binary data."""
MAX_JSON_VALUES: Final = 4_000_000
"""Values of one output that is written as JSON."""
_WINDOW_BITS: Final = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}  # deflate is the zlib format (RFC 9110)
_PIECE: Final = 1 << 20

InferHttpRequest = tuple[InferRequest, "ResponseForm"]


class ResponseForm:
    """How the response is to be written: the ``id`` to repeat, and which outputs as binary data.

    ``binary``: unless ``by_output`` says otherwise.
    """

    def __init__(self, id: str = "", binary: bool = False, by_output: Mapping[str, bool] | None = None) -> None:
        self.id = id
        self._binary = binary
        self._by_output = by_output or {}

    def binary(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` is to be written as binary data."""
        # The protocol has no JSON form of half floats.
        return self._by_output.get(tensor.name, self._binary) or tensor.datatype == "FP16"


def unpack(body: bytes, encoding: str) -> bytes:
    """The body without its Content-Encoding. TooLarge beyond MAX_BYTES; Unsupported, BadInput."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in _WINDOW_BITS:
        raise Unsupported(f"Content-Encoding {short(encoding)!r} is not read; gzip and deflate are")
    inflate = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        data = inflate.decompress(body, MAX_BYTES + 1)
    except zlib.error:
        raise BadInput(f"the body is not {encoding}") from None
    if len(data) > MAX_BYTES:
        raise TooLarge(f"the body unpacks to more than {MAX_BYTES} bytes")
    if not inflate.eof or inflate.unused_data:
        raise BadInput(f"the {encoding} body is cut off, or something follows it")
    return data


def pack(body: bytes, encoding: str) -> bytes:
    """The body in ``encoding``, gzip or deflate."""
    deflate = zlib.compressobj(1, zlib.DEFLATED, _WINDOW_BITS[encoding])
    return deflate.compress(body) + deflate.flush()


def chosen_encoding(accept: str) -> str | None:
    """gzip or deflate, where the header Accept-Encoding has one of them."""
    taken = {}
    for part in accept.lower().split(","):
        name, *options = (piece.strip() for piece in part.split(";"))
        taken[name] = not any(option.replace(" ", "") in ("q=0", "q=0.0", "q=0.00", "q=0.000") for option in options)
    return next((name for name in ("gzip", "deflate") if taken.get(name)), None)


def read_request(model: str, version: str, body: bytes, header_length: str | None) -> InferHttpRequest:
    """The request, and the form of its response. BadInput, Unsupported, TooLarge.

    ``header_length``: the header Inference-Header-Content-Length; with 0 the body is one encoded image.
    """
    if header_length is None:
        head, rest = body, memoryview(b"")
    else:
        digits = header_length.isascii() and header_length.isdigit() and len(header_length) < 20
        if not (digits and int(header_length) <= len(body)):
            raise BadInput(f"Inference-Header-Content-Length is the length of the JSON, 0 to {len(body)} bytes here")
        length = int(header_length)
        if length == 0:
            image = Tensor("image", texts([body], (1,)))
            return InferRequest(model, version, [image]), ResponseForm()
        head, rest = body[:length], memoryview(body)[length:]
    if len(head) > MAX_JSON:
        raise TooLarge(f"the JSON has {len(head)} bytes; at most {MAX_JSON} are read: send tensors as binary data")
    try:
        given = orjson.loads(head)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"the request is not JSON: {error.msg} at character {error.pos}") from None
    if not isinstance(given, dict):
        raise BadInput("an infer request is a JSON object with inputs")
    parameters = _object(given, "parameters")
    outputs = _objects(given, "outputs")
    inputs = _objects(given, "inputs")
    check_counts(len(inputs), len(outputs), len(parameters))
    requested = [requested_outputs(one.get("name"), _object(one, "parameters")) for one in outputs]
    tensors = []
    for one in inputs:
        tensor, taken = _input(one, rest)
        tensors.append(tensor)
        rest = rest[taken:]
    if len(rest):
        raise BadInput(f"{len(rest)} bytes follow the tensors that the request describes")
    id = given.get("id", "")
    if not isinstance(id, str):
        raise BadInput("the id of a request is text")
    by_output = {}
    for one in outputs:
        options = _object(one, "parameters")
        if "binary_data" in options:
            by_output[str(one.get("name"))] = _flag(options, "binary_data")
    form = ResponseForm(id, _flag(parameters, "binary_data_output"), by_output)
    return InferRequest(model, version, tensors, requested, parameters), form


def write_answer(answer: InferAnswer, form: ResponseForm) -> tuple[bytes, int | None]:
    """The body, and the length of its JSON where binary tensors follow. TooLarge."""
    blocks: list[bytes] = []
    outputs = []
    for tensor in answer.outputs:
        info: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if form.binary(tensor):
            blocks.append(to_raw(tensor.values))
            info["parameters"] = {"binary_data_size": len(blocks[-1])}
        elif tensor.values.size > MAX_JSON_VALUES:
            raise TooLarge(
                f"output {tensor.name} has {tensor.values.size} values; at most {MAX_JSON_VALUES} are written as JSON: "
                "ask for binary data (binary_data_output)"
            )
        elif tensor.datatype == BYTES:
            info["data"] = [one.decode() for one in tensor.values.ravel()]
        else:
            info["data"] = tensor.values.ravel()
        outputs.append(info)
    body: dict[str, Any] = {"model_name": answer.model, "model_version": answer.version}
    if form.id:
        body["id"] = form.id
    if answer.parameters:
        body["parameters"] = answer.parameters
    text = orjson.dumps({**body, "outputs": outputs}, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join((text, *blocks)), len(text)) if blocks else (text, None)


def _input(given: dict[str, Any], rest: memoryview) -> tuple[Tensor, int]:
    """One input, and how many bytes of ``rest`` it has taken."""
    name, datatype, shape = given.get("name"), given.get("datatype"), given.get("shape")
    if not isinstance(name, str) or not isinstance(datatype, str) or not isinstance(shape, list):
        raise BadInput("an input has a name, a datatype and a shape")
    parameters = _object(given, "parameters")
    refuse_unsupported(parameters)
    size = parameters.get("binary_data_size")
    if size is None:
        values = from_values(name, datatype, shape, given.get("data"))
        if datatype == BYTES and parameters.get("content_type") == "base64":
            values = texts([_base64(name, one) for one in values.ravel()], values.shape)
        return Tensor(name, values), 0
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(rest):
        raise BadInput(f"binary_data_size of input {short(name)!r} is more than the {len(rest)} bytes that follow")
    if "data" in given:
        raise BadInput(f"input {short(name)!r} comes as JSON or as binary data, not both")
    return Tensor(name, from_raw(name, datatype, shape, rest[:size])), size


def _object(given: dict[str, Any], name: str) -> dict[str, Any]:
    value = given.get(name, {})
    if not isinstance(value, dict):
        raise BadInput(f"{name} is a JSON object")
    return value


def _objects(given: dict[str, Any], name: str) -> list[dict[str, Any]]:
    value = given.get(name, [])
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise BadInput(f"{name} is a list of JSON objects")
    return value


def _flag(given: dict[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise BadInput(f"the parameter {name} is true or false")
    return value


def _base64(name: str, text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        raise BadInput(f"the data of input {short(name)!r} is not base64") from None
