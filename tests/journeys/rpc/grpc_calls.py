"""Asking over gRPC as a caller does, and reading answers as the JSON that /v1 would give."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

# The tests start processes, and none of them goes on with a channel.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2_grpc
from tritonclient.grpc import service_pb2_grpc

from ekiben.v1 import ekiben_pb2 as pb
from ekiben.v1 import ekiben_pb2_grpc

BYTES_BESIDE: Final = frozenset({"rendered", "png", "replayed"})
"""What no JSON answer has."""

_OPTIONS: Final = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A connection of its own for each channel, even to the same address.
    ("grpc.use_local_subchannel_pool", 1),
]


SERVICES = {
    "ekiben.v1.Vision",
    "ekiben.v1.Jobs",
    "ekiben.v1.Models",
    "ekiben.v1.Artifacts",
    "inference.GRPCInferenceService",
    "grpc.health.v1.Health",
    "grpc.reflection.v1alpha.ServerReflection",
}


@dataclass(frozen=True)
class Stubs:
    """Every service of the port, over one connection."""

    channel: grpc.Channel
    vision: Any
    jobs: Any
    models: Any
    artifacts: Any
    health: Any
    inference: Any


@contextmanager
def connected(address: str, credentials: grpc.ChannelCredentials | None = None) -> Iterator[Stubs]:
    channel = (
        grpc.insecure_channel(address, _OPTIONS)
        if credentials is None
        else grpc.secure_channel(address, credentials, _OPTIONS)
    )
    with channel:
        yield Stubs(
            channel,
            ekiben_pb2_grpc.VisionStub(channel),
            ekiben_pb2_grpc.JobsStub(channel),
            ekiben_pb2_grpc.ModelsStub(channel),
            ekiben_pb2_grpc.ArtifactsStub(channel),
            health_pb2_grpc.HealthStub(channel),
            service_pb2_grpc.GRPCInferenceServiceStub(channel),
        )


@dataclass(frozen=True)
class Refused:
    """How a call failed. ``reason`` and ``request_id`` are of the ErrorInfo, None without one."""

    code: str
    message: str
    reason: str | None
    request_id: str | None
    retry_s: float | None
    trailing: dict[str, Any]


def refused(error: grpc.RpcError) -> Refused:
    trailing = dict(error.trailing_metadata() or ())
    status, info, retry = Status(), ErrorInfo(), RetryInfo()
    status.ParseFromString(trailing.get("grpc-status-details-bin", b""))
    told = retried = False
    for detail in status.details:
        told = detail.Unpack(info) or told
        retried = detail.Unpack(retry) or retried
    if status.details:
        assert (status.code, status.message) == (error.code().value[0], error.details())
        assert info.domain == "ekiben"
    return Refused(
        error.code().name,
        str(error.details()),
        info.reason if told else None,
        info.metadata["request_id"] if told else None,
        retry.retry_delay.ToTimedelta().total_seconds() if retried else None,
        trailing,
    )


def failing(call: Callable[[], Any]) -> Refused:
    with pytest.raises(grpc.RpcError) as error:
        call()
    return refused(error.value)


def certificate_in(folder: Path) -> tuple[Path, Path]:
    """A new certificate for 127.0.0.1, signed by itself, and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command = ["openssl", "req", "-x509", *kind, *name, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return certificate, key


def image(data: bytes, filename: str = "") -> Any:
    return pb.Picture(data=data, filename=filename)


def prompts(given: Sequence[dict[str, Any]]) -> list[Any]:
    """Prompts of the JSON as messages."""
    corners = ("x0", "y0", "x1", "y1")
    return [
        pb.Prompt(
            points=[pb.Point(x=x, y=y, label=label) for x, y, label in one.get("points", ())],
            box=pb.Box(**dict(zip(corners, one["box"], strict=True))) if "box" in one else None,
            mask_input=one.get("mask_input", ""),
        )
        for one in given
    ]


def as_json(message: Message) -> Any:
    """The JSON that /v1 would give: null for what is absent, and lists where protobuf has messages for them."""
    name = message.DESCRIPTOR.full_name
    if name == "google.protobuf.Struct":
        return MessageToDict(message)
    if isinstance(message, pb.Point2):
        return [message.x, message.y]
    if isinstance(message, pb.Ring):
        return list(message.coordinates)
    if isinstance(message, pb.Segmentation):
        form = message.WhichOneof("format")
        assert form is not None
        drawn = getattr(message, form)
        if form == "polygons":
            return [as_json(part) for part in drawn.polygons]
        return drawn if form == "png" else as_json(drawn)
    return {field.name: _value(message, field) for field in message.DESCRIPTOR.fields if field.name not in BYTES_BESIDE}


def _value(message: Message, field: FieldDescriptor) -> Any:
    given = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return dict(given) or (None if field.name == "artifacts" else {})
    if field.is_repeated:
        return [as_json(one) if field.message_type is not None else one for one in given]
    if field.has_presence and not message.HasField(field.name):
        return None
    return as_json(given) if field.message_type is not None else given
