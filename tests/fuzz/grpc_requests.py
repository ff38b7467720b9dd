"""Valid gRPC requests for every method of the services, and mutations of their fields by type."""

from __future__ import annotations

import random
import struct
from typing import Any

from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from tritonclient.grpc import service_pb2

from ekiben.v1 import ekiben_pb2
from tests.fuzz import archive_files, hostile
from tests.fuzz.drafts import Call
from tests.fuzz.http_requests import tensor_request
from tests.fuzz.known import MODELS, SPARE, Known

WEIGHTS = {
    "Classify": 8, "Segment": 6, "PromptMasks": 5, "AutoMasks": 0.8, "Cutouts": 2, "SubmitJob": 0.8, "WatchJob": 0.4,
    "ModelInfer": 8,
    "ModelStreamInfer": 1, "Watch": 0,
}  # fmt: skip

OPERATION_OF = {
    "ClassifyRequest": "classify", "SegmentRequest": "segment", "PromptMasksRequest": "masks",
    "AutoMasksRequest": "auto_masks",
    "CutoutsRequest": "cutouts",
}  # fmt: skip
INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}
FLOATS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)


class GrpcRequests:
    """Makes requests about what is ``known``."""

    def __init__(self, known: Known) -> None:
        self.known = known
        files = (ekiben_pb2.DESCRIPTOR, service_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR)
        services = [service for file in files for service in file.services_by_name.values()]
        self.methods: list[MethodDescriptor] = [method for service in services for method in service.methods]
        self.weights = [_weight(method.name) for method in self.methods]

    def call(self, index: int, rng: random.Random, method: MethodDescriptor | None = None) -> Call:
        """Request ``index``, of ``method`` or of any: valid, then with up to three mutations."""
        method = method or rng.choices(self.methods, self.weights)[0]
        message = GetMessageClass(method.input_type)()
        self._fill(message, method.name, rng)
        changes = rng.choice((0, 1, 1, 1, 2, 3))
        for _ in range(changes):
            mutate(message, rng)
        body = message.SerializeToString()
        if rng.random() < 0.005:
            body = body[: len(body) // 2]
        service = method.containing_service.full_name
        name = f"/{service}/{method.name}".encode()
        return Call(
            index,
            f"grpc {service}/{method.name}",
            "GRPC",
            name,
            (),
            body,
            f"{changes} changes",
            method.server_streaming,
        )

    def _fill(self, message: Any, method: str, rng: random.Random) -> None:
        kind = message.DESCRIPTOR.name
        if kind in OPERATION_OF:
            self._operation(message, OPERATION_OF[kind], rng)
        elif kind == "SubmitJobRequest":
            name = rng.choice(("classify", "segment", "masks", "cutouts"))
            self._operation(getattr(message, name), name, rng)
            if rng.random() < 0.3:
                message.idempotency_key = f"grpc-{rng.randrange(30)}"
        elif kind == "ModelInferRequest":
            self._infer(message, rng)
        elif kind in ("GetModelRequest", "LoadModelRequest", "UnloadModelRequest"):
            message.name = SPARE if kind[0] == "U" else rng.choice(("colours", "areas", SPARE))
        elif kind == "GetArtifactRequest":
            message.id = self.known.one("artifact", rng)
        elif "Job" in kind and "id" in message.DESCRIPTOR.fields_by_name:
            message.id = self.known.one("job", rng, passing=kind == "CancelJobRequest")
        elif kind in ("ModelReadyRequest", "ModelMetadataRequest", "ModelConfigRequest", "ModelStatisticsRequest"):
            message.name = rng.choice(("colours", "areas", "sam_toy"))
        elif kind in ("RepositoryModelLoadRequest", "RepositoryModelUnloadRequest"):
            message.model_name = SPARE
        elif kind == "HealthCheckRequest":
            message.service = rng.choice(("", "ekiben.v1.Vision"))

    def _operation(self, message: Any, operation: str, rng: random.Random) -> None:
        if rng.random() < 0.3:
            message.image.image_id = self.known.one("image", rng)
        else:
            message.image.data = archive_files.image_file(rng)
        message.model = MODELS[operation]
        message.store = rng.random() < 0.2
        if operation in ("auto_masks", "cutouts"):
            message.points_per_side = rng.choice((1, 2))
        if operation in ("masks", "cutouts"):
            for _ in range(rng.choice((0, 1, 1, 2)) if operation == "cutouts" else 1):
                prompt = message.prompts.add()
                for _ in range(rng.choice((1, 2))):
                    prompt.points.add(x=rng.uniform(0, 24), y=rng.uniform(0, 16), label=rng.randrange(2))
                if rng.random() < 0.3:
                    prompt.box.x0, prompt.box.y0, prompt.box.x1, prompt.box.y1 = 1, 2, 12, 10.5
                if rng.random() < 0.1:
                    prompt.mask_input = self.known.one("mask", rng)
        if rng.random() < 0.3:
            message.range = "0,255"
        if operation == "segment" and rng.random() < 0.4:
            message.render = rng.choice(("mask", "color", "overlay", "probability", "nifti", "dicom_seg"))
        if operation in ("masks", "auto_masks") and rng.random() < 0.5:
            message.format = rng.choice(("rle", "coco", "polygons", "geojson", "png"))

    def _infer(self, message: Any, rng: random.Random) -> None:
        message.model_name = rng.choice(("colours", "areas", "sam_toy", "cells"))
        tree, data = tensor_request(message.model_name, rng)
        raw = rng.random() < 0.7
        for tensor, values in zip(tree["inputs"], data, strict=True):
            one = message.inputs.add(name=tensor["name"], datatype=tensor["datatype"])
            one.shape.extend(min(side, 2**63 - 1) for side in tensor["shape"])
            if isinstance(values, list):
                values = struct.pack(f"<{len(values)}f", *values)
            if raw:
                message.raw_input_contents.append(values)
            elif one.datatype == "BYTES":
                one.contents.bytes_contents.append(values[4:])
            elif one.datatype == "UINT8":
                one.contents.uint_contents.extend(values)
            elif one.datatype == "FP32":
                one.contents.fp32_contents.extend(
                    struct.unpack(f"<{len(values) // 4}f", values[: len(values) // 4 * 4])
                )
        if message.inputs[0].datatype == "BYTES":
            message.parameters["store"].bool_param = rng.random() < 0.2
        for output in tree.get("outputs", ()):
            wanted = message.outputs.add(name=output["name"])
            if rng.random() < 0.5:
                wanted.parameters["classification"].int64_param = rng.choice((0, 1, 4, -1, 2**62))


def _weight(method: str) -> float:
    refused = ("SharedMemory", "TraceSetting", "LogSettings")
    return 0.05 if any(word in method for word in refused) else WEIGHTS.get(method, 0.5)


def mutate(message: Any, rng: random.Random) -> None:
    """Change, add or remove one field somewhere in ``message``."""
    places: list[tuple[Message, FieldDescriptor]] = []

    def walk(node: Message, depth: int) -> None:
        for field in node.DESCRIPTOR.fields:
            places.append((node, field))
            if field.message_type is None or field.message_type.GetOptions().map_entry or depth > 4:
                continue
            if field.is_repeated:
                for one in list(getattr(node, field.name))[:5]:
                    walk(one, depth + 1)
            elif node.HasField(field.name):
                walk(getattr(node, field.name), depth + 1)

    walk(message, 0)
    if not places:
        return
    present = [(node, field) for node, field in places if _is_set(node, field)]
    node, field = rng.choice(present if present and rng.random() < 0.75 else places)
    if rng.random() < 0.12:
        node.ClearField(field.name)
        return
    _set(node, field, rng)


def _is_set(node: Any, field: FieldDescriptor) -> bool:
    return bool(len(getattr(node, field.name))) if field.is_repeated else bool(getattr(node, field.name))


def _set(node: Any, field: FieldDescriptor, rng: random.Random) -> None:
    if field.message_type is not None:
        if field.message_type.GetOptions().map_entry:
            _entry(getattr(node, field.name), field, rng)
        elif field.is_repeated:
            values = getattr(node, field.name)
            for _ in range(rng.choice((1, 1, 3, 200))):
                new = values.add()
                if len(values) > 1 and rng.random() < 0.8:
                    new.CopyFrom(values[0])
        else:
            getattr(node, field.name).SetInParent()
        return
    if field.is_repeated:
        values = getattr(node, field.name)
        if values and rng.random() < 0.6:
            values[rng.randrange(len(values))] = _scalar(field, rng)
        else:
            values.extend([_scalar(field, rng)] * rng.choice((1, 1, 2, 1000)))
        return
    setattr(node, field.name, _scalar(field, rng))


def _entry(entries: Any, field: FieldDescriptor, rng: random.Random) -> None:
    key = rng.choice(
        (
            "store",
            "timeout",
            "priority",
            "prompts",
            "points_per_side",
            "flips",
            "content_type",
            "x",
            hostile.word(rng)[:20],
        )
    )
    key = key.encode("utf-8", "replace").decode()
    value = field.message_type.fields_by_name["value"]
    if value.message_type is None:
        entries[key] = _scalar(value, rng)
    elif choices := value.message_type.fields:
        one = rng.choice(choices)
        if one.message_type is None and not one.is_repeated:
            setattr(entries[key], one.name, _scalar(one, rng))


def _scalar(field: FieldDescriptor, rng: random.Random) -> Any:
    if field.cpp_type in INTEGERS:
        low, high = INTEGERS[field.cpp_type]
        return min(max(hostile.integer(rng), low), high)
    if field.cpp_type in FLOATS:
        value = float(hostile.number(rng))
        return value if abs(value) < 3e38 or field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE else 1e38
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if field.type == FieldDescriptor.TYPE_BYTES:
        return archive_files.image_file(rng) if rng.random() < 0.7 else rng.randbytes(rng.choice((0, 1, 4, 100)))
    return hostile.word(rng).encode("utf-8", "replace").decode()
