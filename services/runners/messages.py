"""Requests, responses, updates and refusals as the bytes that gateway and runner exchange."""

from __future__ import annotations

from collections.abc import Iterable
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
from services.runners.message_format import pack_array, pack_message, unpack_array, unpack_message


def encode_key(key: ModelKey) -> bytes:
    """The key as JSON: owner, name, version."""
    return orjson.dumps(list(key))


def decode_key(data: bytes) -> ModelKey:
    """The key that ``encode_key`` wrote."""
    owner, name, version = orjson.loads(data)
    return ModelKey(owner, name, version)


def encode_request(key: ModelKey, request: InferenceRequest) -> bytes:
    """A message of one part: the encoded image, or its pixels or prepared tensor as an array."""
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
    info, data = pack_array(request.image.values if isinstance(request.image, PreparedTensor) else request.image)
    return pack_message({**header, "image": "prepared" if prepared else "pixels", "array": info}, data)


def decode_request(data: bytes) -> tuple[ModelKey, InferenceRequest]:
    """The model and the request that ``encode_request`` wrote."""
    header, (part,) = unpack_message(data)
    image: Any = part
    if header["image"] != "encoded":
        image = unpack_array(header["array"], part)
    if header["image"] == "prepared":
        image = PreparedTensor(image)
    request = InferenceRequest(
        image, header["top_k"], tuple(header["renders"]), header["flips"], tuple(header["tensors"])
    )
    return ModelKey(*header["key"]), request


def encode_response(timed: TimedAnswer) -> bytes:
    """A message whose parts are the rendered images, then the tensors."""
    response, timing = timed
    header = {
        "image": asdict(response.image),
        "scores": [asdict(row) for row in response.scores],
        "areas": [asdict(row) for row in response.areas],
        "timing": asdict(timing),
        "renders": list(response.renders),
        "tensors": {name: pack_array(values)[0] for name, values in response.tensors.items()},
    }
    return pack_message(
        header, *response.renders.values(), *(pack_array(values)[1] for values in response.tensors.values())
    )


def decode_response(data: bytes) -> TimedAnswer:
    """The response and timing that ``encode_response`` wrote."""
    header, parts = unpack_message(data)
    response = InferenceResponse(
        _image_info(header["image"]),
        tuple(ClassScore(**row) for row in header["scores"]),
        tuple(ClassArea(**{**row, "color": tuple(row["color"])}) for row in header["areas"]),
        dict(zip(header["renders"], parts, strict=False)),
        {
            name: unpack_array(info, part)
            for (name, info), part in zip(header["tensors"].items(), parts[len(header["renders"]) :], strict=True)
        },
    )
    return TimedAnswer(response, Timing(**header["timing"]))


def encode_mask_request(key: ModelKey, request: MaskRequest) -> bytes:
    """A message whose parts are the image, then the mask inputs: float32 [256, 256] each."""
    prompts, masks = [], []
    for prompt in request.prompts:
        prompts.append({"points": prompt.points, "box": prompt.box, "masked": prompt.mask_input is not None})
        if prompt.mask_input is not None:
            masks.append(np.ascontiguousarray(prompt.mask_input, np.float32).tobytes())
    header = {"key": list(key), "prompts": prompts, "multimask": request.multimask, "keep_logits": request.keep_logits}
    return pack_message(header, request.image, *masks)


def decode_mask_request(data: bytes) -> tuple[ModelKey, MaskRequest]:
    """The model and the request that ``encode_mask_request`` wrote."""
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


def encode_mask_response(response: MaskResponse, timing: Timing) -> bytes:
    """A message whose parts are the run lengths of all masks, then their logits: float32 [256, 256] each."""
    masks = [mask for row in response.results for mask in row]
    header = {
        "image": asdict(response.image),
        "embedding": asdict(response.embedding),
        "timing": asdict(timing),
        "prompts": [len(row) for row in response.results],
        "masks": [
            [mask.predicted_iou, mask.stability_score, len(mask.rle.counts), mask.logits is not None] for mask in masks
        ],
    }
    logits = [mask.logits.tobytes() for mask in masks if mask.logits is not None]
    return pack_message(header, _counts(mask.rle for mask in masks), *logits)


def decode_mask_response(data: bytes) -> tuple[MaskResponse, Timing]:
    """The response and timing that ``encode_mask_response`` wrote."""
    header, (counts, *parts) = unpack_message(data)
    image = _image_info(header["image"])
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
    """A message of one part, the image."""
    return pack_message({"key": list(key), "options": request.options.parameters}, request.image)


def decode_auto_mask_request(data: bytes) -> tuple[ModelKey, AutoMaskRequest]:
    """The model and the request that ``encode_auto_mask_request`` wrote."""
    header, (image,) = unpack_message(data)
    return ModelKey(*header["key"]), AutoMaskRequest(image, AutoOptions(**header["options"]))


def encode_auto_mask_response(response: AutoMaskResponse, timing: Timing) -> bytes:
    """A message of one part, the run lengths of all masks."""
    header = {
        "image": asdict(response.image),
        "embedding": asdict(response.embedding),
        "timing": asdict(timing),
        "masks": [_auto_mask_info(mask) for mask in response.masks],
    }
    return pack_message(header, _counts(mask.rle for mask in response.masks))


def decode_auto_mask_response(data: bytes) -> tuple[AutoMaskResponse, Timing]:
    """The response and timing that ``encode_auto_mask_response`` wrote."""
    header, (counts,) = unpack_message(data)
    image = _image_info(header["image"])
    masks = _auto_masks(header["masks"], counts, image.height, image.width)
    return AutoMaskResponse(image, EmbeddingUse(**header["embedding"]), masks), Timing(**header["timing"])


def encode_mask_update(update: MaskUpdate) -> bytes:
    """A message of one part, the run lengths of the masks found since the last update."""
    masks = [mask for _, mask in update.found]
    size = [masks[0].rle.height, masks[0].rle.width] if masks else [0, 0]
    header = {
        "numbers": [number for number, _ in update.found],
        "dropped": update.dropped,
        "progress": update.progress,
        "size": size,
        "masks": [_auto_mask_info(mask) for mask in masks],
    }
    return pack_message(header, _counts(mask.rle for mask in masks))


def decode_mask_update(data: bytes) -> MaskUpdate:
    """The update that ``encode_mask_update`` wrote."""
    header, (counts,) = unpack_message(data)
    masks = _auto_masks(header["masks"], counts, *header["size"])
    found = tuple(zip(header["numbers"], masks, strict=True))
    return MaskUpdate(found, tuple(header["dropped"]), header["progress"])


def _image_info(row: dict[str, Any]) -> ImageInfo:
    value_range = row["value_range"]
    return ImageInfo(**{**row, "value_range": None if value_range is None else tuple(value_range)})


def _auto_mask_info(mask: AutoMask) -> list[Any]:
    return [mask.predicted_iou, mask.stability_score, mask.point, mask.crop_box, len(mask.rle.counts)]


def _auto_masks(info: list[list[Any]], counts: bytes, height: int, width: int) -> tuple[AutoMask, ...]:
    rles = _rles(counts, [row[4] for row in info], height, width)
    return tuple(
        AutoMask(rle, iou, stability, tuple(point), tuple(crop))
        for rle, (iou, stability, point, crop, _) in zip(rles, info, strict=True)
    )


def _counts(rles: Iterable[Rle]) -> bytes:
    """The run lengths of all masks, one after the other: uint32, little-endian."""
    return b"".join(rle.counts.astype("<u4").tobytes() for rle in rles)


def _rles(data: bytes, lengths: list[int], height: int, width: int) -> list[Rle]:
    ends = np.cumsum(lengths, dtype=np.int64)
    pieces = np.split(np.frombuffer(data, "<u4").astype(np.uint32), ends[:-1]) if lengths else []
    return [Rle(height, width, piece) for piece in pieces]


def _logits(data: bytes) -> NDArray[np.float32]:
    return np.frombuffer(data, "<f4").reshape(SIDE, SIDE)


def encode_refusal(error: Refusal) -> bytes:
    """A refusal as JSON: class, code, message and, of a temporary one, the seconds to wait."""
    wait = error.retry_after_s if isinstance(error, Temporary) else None
    return orjson.dumps(
        {"kind": type(error).__name__, "code": error.code, "message": error.message, "retry_after_s": wait}
    )


def decode_refusal(data: bytes) -> Refusal:
    """The refusal that the runner raised; Unavailable where ``data`` is none."""
    try:
        info = orjson.loads(data)
        kind = REFUSALS[info["kind"]]
    except (ValueError, KeyError, TypeError):
        return Unavailable("the runner failed; its log has the reason", retry_after_s=1)
    if issubclass(kind, Temporary):
        return kind(info["message"], code=info["code"], retry_after_s=info["retry_after_s"])
    return kind(info["message"], code=info["code"])


def encode_states(states: list[ModelState]) -> bytes:
    """The states of models as JSON."""
    return orjson.dumps([{**asdict(state), "key": list(state.key)} for state in states])


def decode_states(data: bytes) -> list[ModelState]:
    """The states that ``encode_states`` wrote."""
    return [ModelState(**{**row, "key": ModelKey(*row["key"])}) for row in orjson.loads(data)]
