"""Frames: how asks and answers cross between gateway and runner. A JSON header, then the bytes it counts."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ekiben.errors import REFUSALS, Refusal, Temporary, Unavailable
from models.engine.engine import ModelKey, ModelState
from models.inference_requests import (
    AutoMaskRequest,
    AutoMaskResponse,
    EmbeddingUse,
    InferenceRequest,
    InferenceResponse,
    MaskRequest,
    MaskResponse,
    PreparedTensor,
)
from models.masks.predicted_masks import AutoMask, MaskUpdate, PromptMask
from models.masks.rle import Rle
from models.results import ClassArea, ClassScore, ImageInfo, Timing
from models.sam.auto_options import AutoOptions
from models.sam.graphs import SIDE
from models.sam.prompts import Prompt
from services.runners.interface import TimedAnswer

_LENGTH = struct.Struct("<I")


def pack_message(header: dict[str, Any], *parts: bytes) -> bytes:
    """``header`` (JSON) and ``parts``, self-delimiting: length of the header, header with the parts' lengths, parts."""
    text = orjson.dumps({**header, "parts": [len(pack_part) for pack_part in parts]})
    return b"".join((_LENGTH.pack(len(text)), text, *parts))


def unpack_message(data: bytes) -> tuple[dict[str, Any], list[bytes]]:
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


UPDATE_PART, ANSWER_PART, REFUSAL_PART = b"n", b"a", b"r"
"""Of an answer that comes in parts: news first, then the answer or a refusal."""


def pack_part(kind: bytes, data: bytes) -> bytes:
    """One part of a streamed answer: kind, length, bytes."""
    return b"".join((kind, _LENGTH.pack(len(data)), data))


class PartReader:
    """Cuts a stream into its parts again."""

    def __init__(self) -> None:
        self._left = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Kind and bytes of each part that is complete now."""
        self._left += data
        head = 1 + _LENGTH.size
        while len(self._left) >= head:
            end = head + _LENGTH.unpack_from(self._left, 1)[0]
            if len(self._left) < end:
                return
            kind, body = bytes(self._left[:1]), bytes(self._left[head:end])
            del self._left[:end]
            yield kind, body


def encode_key(key: ModelKey) -> bytes:
    return orjson.dumps(list(key))


def decode_key(data: bytes) -> ModelKey:
    owner, name, version = orjson.loads(data)
    return ModelKey(owner, name, version)


def encode_request(key: ModelKey, request: InferenceRequest) -> bytes:
    header = {
        "key": list(key),
        "top_k": request.top_k,
        "renders": list(request.renders),
        "flips": request.flips,
        "tensors": list(request.tensors),
    }
    if isinstance(request.image, bytes):
        return pack_message({**header, "image": "encoded"}, request.image)
    prepared = isinstance(request.image, PreparedTensor)
    info, data = _array(request.image.values if isinstance(request.image, PreparedTensor) else request.image)
    return pack_message({**header, "image": "prepared" if prepared else "pixels", "array": info}, data)


def decode_request(data: bytes) -> tuple[ModelKey, InferenceRequest]:
    header, (pack_part,) = unpack_message(data)
    image: Any = pack_part
    if header["image"] != "encoded":
        image = _read_array(header["array"], pack_part)
    if header["image"] == "prepared":
        image = PreparedTensor(image)
    request = InferenceRequest(
        image, header["top_k"], tuple(header["renders"]), header["flips"], tuple(header["tensors"])
    )
    return ModelKey(*header["key"]), request


def encode_response(answered: TimedAnswer) -> bytes:
    answer, timing = answered
    header = {
        "image": asdict(answer.image),
        "scores": [asdict(row) for row in answer.scores],
        "areas": [asdict(row) for row in answer.areas],
        "timing": asdict(timing),
        "renders": list(answer.renders),
        "tensors": {name: _array(values)[0] for name, values in answer.tensors.items()},
    }
    return pack_message(header, *answer.renders.values(), *(_array(values)[1] for values in answer.tensors.values()))


def decode_response(data: bytes) -> TimedAnswer:
    header, parts = unpack_message(data)
    answer = InferenceResponse(
        ImageInfo(**header["image"]),
        tuple(ClassScore(**row) for row in header["scores"]),
        tuple(ClassArea(**{**row, "color": tuple(row["color"])}) for row in header["areas"]),
        dict(zip(header["renders"], parts, strict=False)),
        {
            name: _read_array(info, pack_part)
            for (name, info), pack_part in zip(header["tensors"].items(), parts[len(header["renders"]) :], strict=True)
        },
    )
    return TimedAnswer(answer, Timing(**header["timing"]))


def encode_mask_request(key: ModelKey, request: MaskRequest) -> bytes:
    prompts, masks = [], []
    for prompt in request.prompts:
        prompts.append({"points": prompt.points, "box": prompt.box, "masked": prompt.mask_input is not None})
        if prompt.mask_input is not None:
            masks.append(np.ascontiguousarray(prompt.mask_input, np.float32).tobytes())
    header = {"key": list(key), "prompts": prompts, "multimask": request.multimask, "keep_logits": request.keep_logits}
    return pack_message(header, request.image, *masks)


def decode_mask_request(data: bytes) -> tuple[ModelKey, MaskRequest]:
    header, (image, *masks) = unpack_message(data)
    logits = iter(masks)
    prompts = tuple(
        Prompt(
            tuple((x, y, label) for x, y, label in row["points"]),
            tuple(row["box"]) if row["box"] is not None else None,
            _logits(next(logits)) if row["masked"] else None,
        )
        for row in header["prompts"]
    )
    return ModelKey(*header["key"]), MaskRequest(image, prompts, header["multimask"], header["keep_logits"])


def encode_mask_response(answer: MaskResponse, timing: Timing) -> bytes:
    masks = [mask for row in answer.results for mask in row]
    header = {
        "image": asdict(answer.image),
        "embedding": asdict(answer.embedding),
        "timing": asdict(timing),
        "prompts": [len(row) for row in answer.results],
        "masks": [
            [mask.predicted_iou, mask.stability_score, len(mask.rle.counts), mask.logits is not None] for mask in masks
        ],
    }
    logits = [mask.logits.tobytes() for mask in masks if mask.logits is not None]
    return pack_message(header, _counts(mask.rle for mask in masks), *logits)


def decode_mask_response(data: bytes) -> tuple[MaskResponse, Timing]:
    header, (counts, *parts) = unpack_message(data)
    image = ImageInfo(**header["image"])
    logits = iter(parts)
    rles = _rles(counts, [row[2] for row in header["masks"]], image.height, image.width)
    masks = iter(
        [
            PromptMask(rle, iou, stability, _logits(next(logits)) if with_logits else None)
            for rle, (iou, stability, _, with_logits) in zip(rles, header["masks"], strict=True)
        ]
    )
    results = tuple(tuple(next(masks) for _ in range(count)) for count in header["prompts"])
    return MaskResponse(image, EmbeddingUse(**header["embedding"]), results), Timing(**header["timing"])


def encode_auto_mask_request(key: ModelKey, request: AutoMaskRequest) -> bytes:
    return pack_message({"key": list(key), "options": request.options.parameters}, request.image)


def decode_auto_mask_request(data: bytes) -> tuple[ModelKey, AutoMaskRequest]:
    header, (image,) = unpack_message(data)
    return ModelKey(*header["key"]), AutoMaskRequest(image, AutoOptions(**header["options"]))


def encode_auto_mask_response(answer: AutoMaskResponse, timing: Timing) -> bytes:
    header = {
        "image": asdict(answer.image),
        "embedding": asdict(answer.embedding),
        "timing": asdict(timing),
        "masks": [_auto_mask_info(mask) for mask in answer.masks],
    }
    return pack_message(header, _counts(mask.rle for mask in answer.masks))


def decode_auto_mask_response(data: bytes) -> tuple[AutoMaskResponse, Timing]:
    header, (counts,) = unpack_message(data)
    image = ImageInfo(**header["image"])
    masks = _auto_masks(header["masks"], counts, image.height, image.width)
    return AutoMaskResponse(image, EmbeddingUse(**header["embedding"]), masks), Timing(**header["timing"])


def _array(values: NDArray[Any]) -> tuple[list[Any], bytes]:
    """Its dtype and shape, and its values in C order."""
    return [values.dtype.str, list(values.shape)], values.tobytes()


def _read_array(info: list[Any], data: bytes) -> NDArray[Any]:
    return np.frombuffer(data, np.dtype(info[0])).reshape(info[1])


def encode_mask_update(news: MaskUpdate) -> bytes:
    masks = [mask for _, mask in news.found]
    size = [masks[0].rle.height, masks[0].rle.width] if masks else [0, 0]
    header = {
        "numbers": [number for number, _ in news.found],
        "dropped": news.dropped,
        "progress": news.progress,
        "size": size,
        "masks": [_auto_mask_info(mask) for mask in masks],
    }
    return pack_message(header, _counts(mask.rle for mask in masks))


def decode_mask_update(data: bytes) -> MaskUpdate:
    header, (counts,) = unpack_message(data)
    masks = _auto_masks(header["masks"], counts, *header["size"])
    found = tuple(zip(header["numbers"], masks, strict=True))
    return MaskUpdate(found, tuple(header["dropped"]), header["progress"])


def _auto_mask_info(mask: AutoMask) -> list[Any]:
    return [mask.predicted_iou, mask.stability_score, mask.point, mask.crop_box, len(mask.rle.counts)]


def _auto_masks(info: list[list[Any]], counts: bytes, height: int, width: int) -> tuple[AutoMask, ...]:
    rles = _rles(counts, [row[4] for row in info], height, width)
    return tuple(
        AutoMask(rle, iou, stability, tuple(point), tuple(crop))
        for rle, (iou, stability, point, crop, _) in zip(rles, info, strict=True)
    )


def _counts(rles: Iterable[Rle]) -> bytes:
    """The runs of all masks, one after the other, uint32 little-endian."""
    return b"".join(rle.counts.astype("<u4").tobytes() for rle in rles)


def _rles(data: bytes, lengths: list[int], height: int, width: int) -> list[Rle]:
    ends = np.cumsum(lengths, dtype=np.int64)
    pieces = np.split(np.frombuffer(data, "<u4").astype(np.uint32), ends[:-1]) if lengths else []
    return [Rle(height, width, piece) for piece in pieces]


def _logits(data: bytes) -> NDArray[np.float32]:
    return np.frombuffer(data, "<f4").reshape(SIDE, SIDE)


def encode_refusal(error: Refusal) -> bytes:
    wait = error.retry_after_s if isinstance(error, Temporary) else None
    return orjson.dumps(
        {"kind": type(error).__name__, "code": error.code, "message": error.message, "retry_after_s": wait}
    )


def decode_refusal(data: bytes) -> Refusal:
    """The refusal that the runner raised; Unavailable for anything else it answered."""
    try:
        info = orjson.loads(data)
        kind = REFUSALS[info["kind"]]
    except (ValueError, KeyError, TypeError):
        return Unavailable("the runner failed; its log has the reason", retry_after_s=1)
    if issubclass(kind, Temporary):
        return kind(info["message"], code=info["code"], retry_after_s=info["retry_after_s"])
    return kind(info["message"], code=info["code"])


def encode_states(states: list[ModelState]) -> bytes:
    return orjson.dumps([{**asdict(state), "key": list(state.key)} for state in states])


def decode_states(data: bytes) -> list[ModelState]:
    return [ModelState(**{**row, "key": ModelKey(*row["key"])}) for row in orjson.loads(data)]
