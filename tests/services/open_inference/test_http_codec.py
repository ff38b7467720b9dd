"""HTTP bodies of the Open Inference Protocol: as tritonclient writes and reads them; damaged ones are refused."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult

from ekiben.errors import BadInput, Refusal, TooLarge, Unsupported
from services.open_inference.http_codec import (
    MAX_JSON,
    ResponseForm,
    chosen_encoding,
    pack,
    read_request,
    unpack,
    write_answer,
)
from services.open_inference.inference import InferAnswer
from services.open_inference.parameters import MAX_INPUTS, MAX_OUTPUTS, MAX_PARAMETERS, RequestedOutput
from services.open_inference.tensors import DATATYPES, MAX_BYTES, Tensor, texts

KINDS = ("BOOL", "UINT8", "INT64", "FP32", "FP64", "BYTES")
shapes = nps.array_shapes(max_dims=3, max_side=4)


@st.composite
def tensors(draw: st.DrawFn, name: str) -> Tensor:
    datatype, shape = draw(st.sampled_from(KINDS)), draw(shapes)
    count = int(np.prod(shape))
    if datatype == "BYTES":
        rows = draw(st.lists(st.text(max_size=4), min_size=count, max_size=count))
        return Tensor(name, texts(rows, shape))
    finite = {"allow_nan": False, "allow_infinity": False} if datatype.startswith("FP") else {}
    return Tensor(name, draw(nps.arrays(DATATYPES[datatype], shape, elements=finite or None)))


several = st.integers(1, 3).flatmap(lambda count: st.tuples(*[tensors(f"t{n}") for n in range(count)]))


def same(one: Any, other: Any) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and bool(np.array_equal(one, other))


@given(several, st.lists(st.booleans(), min_size=3, max_size=3), st.text(max_size=5))
def test_what_tritonclient_sends(given: tuple[Tensor, ...], binary: list[bool], id: str) -> None:
    inputs = []
    for tensor, as_binary in zip(given, binary, strict=False):
        made = InferInput(tensor.name, list(tensor.shape), tensor.datatype)
        inputs.append(made.set_data_from_numpy(tensor.values, binary_data=as_binary))
    outputs = [InferRequestedOutput("probs", binary_data=False, class_count=3), InferRequestedOutput("masks")]
    body, length = InferenceServerClient.generate_request_body(
        inputs, outputs=outputs, request_id=id, timeout=70, parameters={"store": False}
    )
    request, answering = read_request("m", "2", bytes(body), None if length is None else str(length))
    assert (request.model, request.version, answering.id) == ("m", "2", id)
    assert [one.name for one in request.inputs] == [one.name for one in given]
    assert all(same(got.values, sent.values) for got, sent in zip(request.inputs, given, strict=True))
    assert request.outputs == [RequestedOutput("probs", 3), RequestedOutput("masks", 0)]
    assert {"store": False, "timeout": 70}.items() <= request.parameters.items()
    probe = np.zeros(1, np.float32)
    assert (answering.binary(Tensor("probs", probe)), answering.binary(Tensor("masks", probe))) == (False, True)


@given(several, st.lists(st.booleans(), min_size=3, max_size=3), st.text(max_size=5), st.booleans())
def test_what_tritonclient_reads(given: tuple[Tensor, ...], binary: list[bool], id: str, packed: bool) -> None:
    answering = ResponseForm(id, False, {f"t{n}": flag for n, flag in enumerate(binary)})
    body, head = write_answer(InferAnswer("m", "2", given, {"prediction_id": "p"}), answering)
    result = InferResult.from_response_body(
        pack(body, "gzip") if packed else body, header_length=head, content_encoding="gzip" if packed else None
    )
    response = result.get_response()
    assert (response["model_name"], response["model_version"], response.get("id", "")) == ("m", "2", id)
    assert response["parameters"] == {"prediction_id": "p"}
    for tensor, as_binary in zip(given, binary, strict=False):
        assert ("data" in result.get_output(tensor.name)) is not as_binary
        got = result.as_numpy(tensor.name)
        if tensor.datatype == "BYTES":
            rows = [one if isinstance(one, bytes) else one.encode() for one in got.ravel()]
            assert got.shape == tensor.shape and rows == tensor.values.ravel().tolist()
        else:
            assert same(got, tensor.values)


def test_half_floats_are_answered_as_binary_data() -> None:
    """JSON has no text for them."""
    half = Tensor("h", np.array([[0.5, -2]], np.float16))
    body, head = write_answer(InferAnswer("m", "1", [half]), ResponseForm())
    assert head is not None and body[head:] == half.values.tobytes()
    assert json.loads(body[:head])["outputs"][0]["parameters"] == {"binary_data_size": 4}


def test_a_raw_image() -> None:
    request, answering = read_request("m", "", b"\xff\xd8 anything", "0")
    (image,) = request.inputs
    assert (image.name, image.datatype, image.values.tolist()) == ("image", "BYTES", [b"\xff\xd8 anything"])
    assert not answering.binary(Tensor("probs", np.zeros(1)))


# ---- damage: a request or a refusal, nothing else ----

GOOD: bytes
GOOD, LENGTH = InferenceServerClient.generate_request_body(
    [
        InferInput("image", [2], "BYTES").set_data_from_numpy(np.array([b"one", b"two"], object)),
        InferInput("boxes", [1, 4], "FP32").set_data_from_numpy(np.ones((1, 4), np.float32), binary_data=False),
        InferInput("point_labels", [1, 2], "INT64").set_data_from_numpy(np.ones((1, 2), np.int64)),
    ],
    outputs=[InferRequestedOutput("masks")],
    request_id="7",
    parameters={"store": False},
)
lengths = st.one_of(st.none(), st.integers(-2, len(GOOD) + 2).map(str), st.just(str(LENGTH)), st.text(max_size=4))


def reads(body: bytes, length: str | None) -> None:
    try:
        request, _ = read_request("m", "", body, length)
    except Refusal as refusal:
        assert refusal.message
    else:
        assert request.inputs


@given(st.integers(0, len(GOOD)), st.integers(0, 12), st.binary(max_size=12), lengths)
@example(0, 0, b"", "9" * 5000)
@example(0, 0, b"", "\u0663")
def test_a_damaged_body(at: int, gone: int, more: bytes, length: str | None) -> None:
    body = bytes(GOOD)
    reads(body[:at] + more + body[at + gone :], length)


scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=6)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=10,
)
options = values | st.dictionaries(
    st.sampled_from(["binary_data_size", "binary_data", "classification", "content_type", "shared_memory_region"]),
    scalars | st.just("base64"),
)
objects = values | st.fixed_dictionaries(
    {},
    optional={
        "name": values | st.just("image"),
        "datatype": values | st.sampled_from([*KINDS, "BF16"]),
        "shape": values | st.lists(st.integers(0, 3) | st.just(2**64 - 1), max_size=3),
        "parameters": options,
        "data": values | st.lists(st.integers(0, 255) | st.text(max_size=4), max_size=4),
    },
)
requests = st.fixed_dictionaries(
    {},
    optional={
        "id": values,
        "inputs": values | st.lists(objects, max_size=3),
        "outputs": values | st.lists(objects, max_size=3),
        "parameters": options | st.dictionaries(st.just("binary_data_output"), values),
    },
)


@given(requests, st.binary(max_size=16), st.booleans())
def test_json_of_anything(request: dict[str, Any], more: bytes, with_length: bool) -> None:
    text = json.dumps(request).encode()  # NaN and lone surrogates too, as bad writers have them
    reads(text + more, str(len(text)) if with_length else None)


@pytest.mark.parametrize("depth", [1100, 100_000])
def test_deep_json(depth: int) -> None:
    with pytest.raises(BadInput, match="JSON"):
        read_request("m", "", b'{"inputs": ' + b"[" * depth + b"]" * depth + b"}", None)


def test_long_json() -> None:
    with pytest.raises(TooLarge, match="binary"):
        read_request("m", "", b" " * (MAX_JSON + 1), None)


def counted(inputs: int, outputs: int, parameters: int) -> bytes:
    one = {"datatype": "INT32", "shape": [1], "data": [7]}
    request = {
        "inputs": [{"name": f"i{n}", **one} for n in range(inputs)],
        "outputs": [{"name": f"o{n}"} for n in range(outputs)],
        "parameters": {f"p{n}": n for n in range(parameters)},
    }
    return json.dumps(request).encode()


def test_a_request_of_too_many_parts() -> None:
    request, _ = read_request("m", "", counted(MAX_INPUTS, MAX_OUTPUTS, MAX_PARAMETERS), None)
    assert (len(request.inputs), len(request.outputs), len(request.parameters)) == (16, 64, 64)
    for counts, said in [
        ((MAX_INPUTS + 1, 0, 0), "17 inputs; at most 16"),
        ((1, MAX_OUTPUTS + 1, 0), "65 outputs; at most 64"),
        ((1, 0, MAX_PARAMETERS + 1), "65 parameters; at most 64"),
        ((0, 0, 0), "no inputs"),
    ]:
        with pytest.raises(BadInput, match=said):
            read_request("m", "", counted(*counts), None)


def test_values_as_json_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each output for itself; as binary data there is no such bound."""
    monkeypatch.setattr("services.open_inference.http_codec.MAX_JSON_VALUES", 6)
    small, large = Tensor("small", np.arange(6).reshape(2, 3)), Tensor("large", np.zeros((7, 1), np.uint8))
    body, head = write_answer(InferAnswer("m", "1", [small, small]), ResponseForm())
    assert head is None and json.loads(body)["outputs"][1]["data"] == [0, 1, 2, 3, 4, 5]
    with pytest.raises(TooLarge, match=r"large has 7 values; at most 6 .*binary_data_output"):
        write_answer(InferAnswer("m", "1", [small, large]), ResponseForm())
    for answering in (ResponseForm(binary=True), ResponseForm(by_output={"large": True})):
        body, head = write_answer(InferAnswer("m", "1", [small, large]), answering)
        assert head is not None and body[head:].endswith(bytes(7))


@given(
    st.binary(max_size=200),
    st.sampled_from(["gzip", "deflate"]),
    st.integers(0, 250),
    st.integers(0, 8),
    st.binary(max_size=4),
)
def test_packed(data: bytes, encoding: str, at: int, gone: int, more: bytes) -> None:
    packed = gzip.compress(data) if encoding == "gzip" else zlib.compress(data)
    assert unpack(packed, encoding) == data
    read = gzip.decompress if encoding == "gzip" else zlib.decompress
    assert read(pack(data, encoding)) == data
    damaged = packed[:at] + more + packed[at + gone :]
    try:
        unpack(damaged, encoding)
    except Refusal:
        return
    # What passes is what the checksum of the format lets pass.
    assert unpack(damaged, encoding) == read(damaged)


def test_encodings() -> None:
    assert unpack(b"as it is", "") == unpack(b"as it is", " Identity ") == b"as it is"
    assert unpack(gzip.compress(b"x"), "GZIP") == b"x"
    for unknown in ("br", "gzip, gzip", "x" * 300):
        with pytest.raises(Unsupported):
            unpack(b"", unknown)
    for accept, chosen in [
        ("gzip, deflate, br", "gzip"),
        ("deflate", "deflate"),
        ("GZIP;q=0.5", "gzip"),
        ("gzip; q = 0, deflate", "deflate"),
        ("gzip;q=0.000", None),
        ("*", None),
        ("", None),
        (";;,,=", None),
    ]:
        assert chosen_encoding(accept) == chosen


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_bomb(encoding: str) -> None:
    """A gibibyte of nothing in a megabyte: no more than the limit comes out of it."""
    packer = zlib.compressobj(6, zlib.DEFLATED, zlib.MAX_WBITS | (16 if encoding == "gzip" else 0))
    piece = bytes(1 << 22)
    bomb = b"".join(packer.compress(piece) for _ in range(40)) + packer.flush()
    assert len(bomb) < 200_000
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match=str(MAX_BYTES)):
            unpack(bomb, encoding)
        assert tracemalloc.get_traced_memory()[1] < 2.2 * MAX_BYTES
    finally:
        tracemalloc.stop()
