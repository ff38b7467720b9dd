"""Tensors of the Open Inference Protocol in and out, beside tritonclient's own; damaged ones are refused, no more."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb
from tritonclient.utils import deserialize_bytes_tensor, np_to_triton_dtype, serialize_byte_tensor

from ekiben.errors import BadInput, Refusal
from services.open_inference.grpc_codec import read_request
from services.open_inference.tensors import DATATYPES, MAX_BYTES, Tensor, from_raw, from_values, texts, to_raw

Array = NDArray[Any]

small = nps.array_shapes(min_dims=1, max_dims=4, max_side=5)
numbers = st.sampled_from(list(DATATYPES)).flatmap(lambda name: nps.arrays(DATATYPES[name], small))
byte_texts = small.flatmap(
    lambda shape: st.lists(st.binary(max_size=9), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))).map(
        lambda rows: texts(rows, shape)
    )
)
datatypes = st.sampled_from([*DATATYPES, "BYTES", "BF16", "FP8", "", "fp32"])
sizes = st.one_of(st.integers(0, 5), st.sampled_from([-1, 2**31, 2**40, 2**63 - 1, 2**64 - 1]))


@given(numbers)
def test_numbers(array: Array) -> None:
    tensor = Tensor("x", array)
    assert tensor.datatype == np_to_triton_dtype(array.dtype)
    raw = to_raw(array)
    assert raw == array.tobytes() and len(raw) == tensor.nbytes
    back = from_raw("x", tensor.datatype, array.shape, raw)
    assert back.dtype == array.dtype and np.array_equal(back, array, equal_nan=array.dtype.kind == "f")
    assert not back.flags.writeable or back.base is None  # nobody changes a message in place


@given(byte_texts)
def test_bytes(array: Array) -> None:
    tensor = Tensor("x", array)
    raw = to_raw(array)
    assert tensor.datatype == "BYTES" and raw == serialize_byte_tensor(array).item() and len(raw) == tensor.nbytes
    back = from_raw("x", "BYTES", array.shape, raw)
    assert back.shape == array.shape
    assert back.ravel().tolist() == deserialize_bytes_tensor(raw).tolist() == array.ravel().tolist()


@given(nps.arrays(np.float32, small))
def test_bfloat16(array: Array) -> None:
    """The upper half of a float32."""
    halves = np.ascontiguousarray(array.view(np.uint16).reshape(*array.shape, 2)[..., 1])
    back = from_raw("x", "BF16", array.shape, halves.tobytes())
    assert back.dtype == np.float32
    assert np.array_equal(back.view(np.uint32), array.view(np.uint32) & 0xFFFF0000)


@given(numbers, st.booleans())
def test_values(array: Array, flat: bool) -> None:
    """As JSON has them: nested or flat."""
    datatype = Tensor("x", array).datatype
    if array.dtype.kind == "f":
        array = np.nan_to_num(array, posinf=1, neginf=-1)
    given = json.loads(json.dumps((array.ravel() if flat else array).tolist()))
    if datatype == "FP16":
        with pytest.raises(BadInput, match="binary"):
            from_values("x", datatype, array.shape, given)
        return
    back = from_values("x", datatype, array.shape, given)
    assert back.dtype == array.dtype and np.array_equal(back, array)


@pytest.mark.parametrize(
    ("datatype", "given"),
    [
        ("UINT8", [256]),
        ("UINT8", [-1]),
        ("INT8", [128]),
        ("INT64", [2**63]),
        ("UINT64", [1e30]),
        ("INT32", [1.5]),
        ("INT32", [True]),
        ("FP32", ["1"]),
        ("FP32", [None]),
        ("BOOL", [2]),
        ("BYTES", [7]),
        ("UINT8", [[1, 2]]),
        ("UINT8", [1, [2]]),
        ("UINT8", 1),
        ("UINT8", {"0": 1}),
        ("UINT8", None),
    ],
)
def test_values_that_are_not(datatype: str, given: Any) -> None:
    with pytest.raises(BadInput, match="'x'"):
        from_values("x", datatype, [1], given)


@given(datatypes, st.lists(sizes, max_size=9), st.binary(max_size=64))
@example("UINT8", [0, 2**64 - 1], b"")
@example("UINT8", [0, 2**62, 2**62], b"")
@example("BYTES", [0, 2**62, 2**62], b"")
@example("FP32", [0], b"")
@example("BYTES", [1], b"\xff\xff\xff\xff")
def test_raw_bytes_of_anything(datatype: str, shape: list[int], data: bytes) -> None:
    try:
        array = from_raw("x", datatype, shape, data)
    except BadInput:
        return
    assert list(array.shape) == shape
    assert datatype == "BF16" or to_raw(array) == data


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=12,
)


@given(datatypes, st.lists(sizes | anything, max_size=5), anything)
@example("UINT8", [0, 2**64 - 1], [])
@example("FP32", [1], [10**400])
def test_values_of_anything(datatype: str, shape: list[Any], given: Any) -> None:
    try:
        array = from_values("x", datatype, shape, given)
    except BadInput:
        return
    assert list(array.shape) == shape


contents = st.fixed_dictionaries(
    {},
    optional={
        "bool_contents": st.lists(st.booleans(), max_size=3),
        "int_contents": st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3),
        "uint64_contents": st.lists(st.integers(0, 2**64 - 1), max_size=3),
        "uint_contents": st.lists(st.integers(0, 2**32 - 1), max_size=3),
        "fp32_contents": st.lists(st.floats(width=32), max_size=3),
        "bytes_contents": st.lists(st.binary(max_size=5), max_size=3),
    },
)
inputs = st.fixed_dictionaries(
    {
        "name": st.text(max_size=3),
        "datatype": datatypes,
        "shape": st.lists(st.integers(-1, 3) | st.just(2**62), max_size=3),
    },
    optional={"contents": contents},
)


@given(st.lists(inputs, max_size=3), st.lists(st.binary(max_size=12), max_size=3))
@example([{"name": "x", "datatype": "INT8", "shape": [0, 2**62, 2**62], "contents": {}}], [])
def test_messages_of_anything(tensors: list[dict[str, Any]], raw: list[bytes]) -> None:
    try:
        request = read_request(pb.ModelInferRequest(inputs=tensors, raw_input_contents=raw), None)
    except Refusal:
        return
    assert [one.name for one in request.inputs] == [one["name"] for one in tensors]
    assert [list(one.shape) for one in request.inputs] == [one["shape"] for one in tensors]


def test_a_shape_alone_takes_no_memory() -> None:
    tracemalloc.start()
    try:
        for datatype in ("BYTES", "FP64"):
            with pytest.raises(BadInput):
                from_raw("x", datatype, [MAX_BYTES], b"")
        with pytest.raises(BadInput, match="65536"):
            from_raw("x", "BYTES", [1_000_000], bytes(4_000_000))
        assert tracemalloc.get_traced_memory()[1] < 6_000_000
    finally:
        tracemalloc.stop()
