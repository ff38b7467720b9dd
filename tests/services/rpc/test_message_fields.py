from __future__ import annotations

import random

import pytest
from tritonclient.grpc import service_pb2

from ekiben.v1 import ekiben_pb2 as pb
from services.rpc.message_fields import count_fields

INFER = service_pb2.ModelInferRequest.DESCRIPTOR


def test_fields_are_counted_at_every_depth() -> None:
    request = service_pb2.ModelInferRequest(model_name="unet")  # 1
    for number in range(3):  # each: itself, name, shape
        request.inputs.add(name=f"x{number}", shape=[1, 2, 3])
    request.inputs[0].contents.fp32_contents.extend([0.5] * 1000)  # itself, and a packed list
    request.inputs[1].parameters["a"].int64_param = 7  # the entry, its key, its value, and in that the number
    request.raw_input_contents.append(b"\x2a\x00" * 5000)  # bytes are not looked into
    data = request.SerializeToString()
    assert count_fields(data, INFER, 10**6) == 1 + 9 + 2 + 4 + 1
    assert count_fields(data, INFER, 5) == 6


def test_every_wire_type_is_stepped_over() -> None:
    unknown = b"\xf8\x07\x96\x01" + b"\xf9\x07" + b"8" * 8 + b"\xfd\x07" + b"4" * 4 + b"\xfa\x07\x03abc"
    assert count_fields(unknown + b"\x0a\x01a", INFER, 100) == 5
    assert count_fields(b"\xfb\x07\xf8\x07\x01\xfc\x07", INFER, 100) == 3  # a group with a number in it
    assert count_fields(pb.GetJobRequest(id="x" * 300).SerializeToString(), pb.GetJobRequest.DESCRIPTOR, 9) == 1


def test_whatever_the_bytes_it_ends() -> None:
    random.seed(1)
    for size in (0, 1, 2, 5, 40, 1000):
        for _ in range(300):
            assert 0 <= count_fields(random.randbytes(size), INFER, 50) <= 51
    for data in (b"\x2a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x2a\x7f" * 3, b"\xff" * 100):
        assert count_fields(data, INFER, 50) <= 51


@pytest.mark.parametrize("number", [99, 100, 101])
def test_the_limit_is_exact(number: int) -> None:
    assert count_fields(b"\x2a\x00" * number, INFER, 100) == min(number, 101)
