"""Frames: how asks and answers cross between gateway and runner. A JSON header, then the bytes it counts."""

from __future__ import annotations

import struct
from dataclasses import asdict
from typing import Any

import orjson

from ekiben.errors import REFUSALS, Refusal, Temporary, Unavailable
from models.asks import Answer, Ask
from models.engine import ModelKey, ModelState
from models.results import ClassArea, ClassScore, PictureFacts, Timing
from services.runner import Answered

_LENGTH = struct.Struct("<I")


def frame(header: dict[str, Any], *parts: bytes) -> bytes:
    """``header`` (JSON) and ``parts``, self-delimiting: length of the header, header with the parts' lengths, parts."""
    text = orjson.dumps({**header, "parts": [len(part) for part in parts]})
    return b"".join((_LENGTH.pack(len(text)), text, *parts))


def unframe(data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """The header and the parts. ValueError for bytes that are no frame."""
    if len(data) < _LENGTH.size:
        raise ValueError("a frame has at least 4 bytes")
    (length,) = _LENGTH.unpack_from(data)
    start = _LENGTH.size + length
    header = orjson.loads(data[_LENGTH.size : start])
    parts = []
    for size in header.pop("parts"):
        parts.append(data[start : start + size])
        start += size
    if start != len(data):
        raise ValueError(f"the frame says {start} bytes and has {len(data)}")
    return header, parts


def encode_key(key: ModelKey) -> bytes:
    return orjson.dumps(list(key))


def decode_key(data: bytes) -> ModelKey:
    owner, name, version = orjson.loads(data)
    return ModelKey(owner, name, version)


def encode_ask(key: ModelKey, ask: Ask) -> bytes:
    return frame({"key": list(key), "top_k": ask.top_k, "renders": list(ask.renders)}, ask.image)


def decode_ask(data: bytes) -> tuple[ModelKey, Ask]:
    header, (image,) = unframe(data)
    return ModelKey(*header["key"]), Ask(image, header["top_k"], tuple(header["renders"]))


def encode_answer(answered: Answered) -> bytes:
    answer, timing = answered
    header = {
        "picture": asdict(answer.picture),
        "scores": [asdict(row) for row in answer.scores],
        "areas": [asdict(row) for row in answer.areas],
        "timing": asdict(timing),
        "renders": list(answer.renders),
    }
    return frame(header, *answer.renders.values())


def decode_answer(data: bytes) -> Answered:
    header, parts = unframe(data)
    answer = Answer(
        PictureFacts(**header["picture"]),
        tuple(ClassScore(**row) for row in header["scores"]),
        tuple(ClassArea(**{**row, "color": tuple(row["color"])}) for row in header["areas"]),
        dict(zip(header["renders"], parts, strict=True)),
    )
    return Answered(answer, Timing(**header["timing"]))


def encode_refusal(error: Refusal) -> bytes:
    wait = error.retry_after_s if isinstance(error, Temporary) else None
    return orjson.dumps(
        {"kind": type(error).__name__, "code": error.code, "message": error.message, "retry_after_s": wait}
    )


def decode_refusal(data: bytes) -> Refusal:
    """The refusal that the runner raised; Unavailable for anything else it answered."""
    try:
        facts = orjson.loads(data)
        kind = REFUSALS[facts["kind"]]
    except (ValueError, KeyError, TypeError):
        return Unavailable("the runner failed; its log has the reason", retry_after_s=1)
    if issubclass(kind, Temporary):
        return kind(facts["message"], code=facts["code"], retry_after_s=facts["retry_after_s"])
    return kind(facts["message"], code=facts["code"])


def encode_states(states: list[ModelState]) -> bytes:
    return orjson.dumps([{**asdict(state), "key": list(state.key)} for state in states])


def decode_states(data: bytes) -> list[ModelState]:
    return [ModelState(**{**row, "key": ModelKey(*row["key"])}) for row in orjson.loads(data)]
