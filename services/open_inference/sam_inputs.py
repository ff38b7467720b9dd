"""Segment Anything by the Open Inference Protocol: prompts as parameters or as tensors, masks as tensors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ekiben.errors import BadInput, TooLarge
from models.images import encode_png
from models.inference_requests import AutoMaskResponse, MaskResponse
from models.masks.predicted_masks import AutoMask, PromptMask
from models.sam.graphs import SIDE
from models.sam.prompts import MAX_POINTS, MAX_PROMPTS, Prompt, read_prompts
from services.inference import auto_masks, prompt_masks
from services.inference.context import RequestContext
from services.inference.pipeline import ImageSource
from services.model_registry.index import ServableModel
from services.open_inference.image_inputs import encoded, pixels
from services.open_inference.metadata import IMAGE
from services.open_inference.parameters import Parameters, RequestedOutput
from services.open_inference.tensors import BYTES, MAX_BYTES, Tensor
from services.schemas.masks import AutoMasksOptions, MasksOptions
from services.schemas.validation import read_json, short

INPUTS = ("point_coords", "point_labels", "boxes", "mask_input")
_PADDING = -1


async def infer(
    context: RequestContext,
    served: ServableModel,
    inputs: Mapping[str, Tensor],
    wanted: Sequence[RequestedOutput],
    parameters: Parameters,
) -> list[Tensor]:
    """The outputs ``wanted``. ``masks`` is [prompts, masks of each, h, w]; of automatic masks, which are computed where
    one of their options is given, [1, masks, h, w]. BadInput, TooLarge."""
    for name in inputs:
        if name not in (IMAGE, *INPUTS):
            raise BadInput(
                f"model {served.key.name} has no input {short(name)!r}; there are {', '.join((IMAGE, *INPUTS))}"
            )
    if IMAGE not in inputs:
        raise BadInput(f"the input {IMAGE} is missing")
    tensors = {name: tensor.values for name, tensor in inputs.items() if name != IMAGE}
    names = [one.name for one in wanted]
    began = time.monotonic()
    data, is_file = await _image(inputs[IMAGE])
    left_s = None if parameters.timeout_s is None else max(0.0, parameters.timeout_s - (time.monotonic() - began))
    if not is_file and parameters.given("store"):
        raise BadInput("store is for encoded images: of pixels nothing is kept")
    context = replace(context, timeout_s=left_s)
    source = ImageSource(data)
    version = {
        "model": served.key.name,
        "version": served.key.version,
        "store": parameters.store and is_file,
    }
    rows: Sequence[Sequence[PromptMask | AutoMask]]
    response: MaskResponse | AutoMaskResponse | None
    if parameters.auto is not None:
        if tensors or parameters.prompts is not None or parameters.given("multimask"):
            raise BadInput("options of automatic masks go without prompts")
        if "low_res_masks" in names:
            raise BadInput("low_res_masks are of prompts; automatic masks have none")
        options = AutoMasksOptions(**version, **parameters.auto.model_dump(exclude_unset=True))
        response = (await auto_masks.run(context, source, options)).masks
        if not isinstance(response, AutoMaskResponse):
            raise TypeError("auto_masks gave no masks")
        rows = [response.masks]
    else:
        prompts: Any = read_tensors(tensors) if tensors else None
        if parameters.prompts is not None:
            if tensors:
                raise BadInput("prompts come as a parameter or as inputs, not both")
            prompts = await read_json("prompts", parameters.prompts)
        count = (len(prompts) if isinstance(prompts, (list, tuple)) else 1) * (3 if parameters.multimask else 1)
        if "low_res_masks" in names and count * SIDE * SIDE * 4 > MAX_BYTES:
            raise TooLarge(
                f"low_res_masks of {count} masks have {count * SIDE * SIDE * 4} bytes; at most {MAX_BYTES} are sent"
            )
        if "low_res_masks" in names:
            context = replace(context, arrays=(prompt_masks.LOW_RES_MASKS,))
        requested = MasksOptions(**version, prompts=prompts, multimask=parameters.multimask)
        response = (await prompt_masks.run(context, source, requested)).masks
        if not isinstance(response, MaskResponse):
            raise TypeError("masks gave no masks")
        rows = response.results
    size = response.image.height, response.image.width
    return await asyncio.to_thread(lambda: [Tensor(name, _output(name, rows, size)) for name in names])


def read_tensors(tensors: Mapping[str, NDArray[Any]]) -> tuple[Prompt, ...]:
    """Prompts from ``point_coords`` [P, K, 2] with ``point_labels`` [P, K] (-1 pads), ``boxes`` [P, 4] and
    ``mask_input`` [P, 256, 256] or [P, 1, 256, 256]. A single prompt may lack the first axis. BadInput."""
    coords, labels = _axes(tensors, "point_coords", 3), _axes(tensors, "point_labels", 2)
    boxes, logits = _axes(tensors, "boxes", 2), _mask_input(tensors)
    if (coords is None) != (labels is None):
        raise BadInput("point_coords and point_labels go together")
    counts = {len(one) for one in (coords, boxes, logits) if one is not None}
    if len(counts) != 1:
        raise BadInput(f"point_coords, boxes and mask_input have one row per prompt each; there are {sorted(counts)}")
    count = counts.pop()
    if not 0 < count <= MAX_PROMPTS:
        raise BadInput(f"there are {count} prompts; 1 to {MAX_PROMPTS} are taken at once")
    if coords is not None and labels is not None and coords.shape != (*labels.shape, 2):
        raise BadInput(
            f"point_coords are [prompts, points, 2] and point_labels [prompts, points]; they are {list(coords.shape)} "
            f"and {list(labels.shape)}"
        )
    if labels is not None and labels.shape[1] > MAX_POINTS:
        raise BadInput(f"a prompt has at most {MAX_POINTS} points, padding included; these have {labels.shape[1]}")
    if boxes is not None and boxes.shape[1:] != (4,):
        raise BadInput(f"boxes are [prompts, 4], x0, y0, x1, y1; they are {list(boxes.shape)}")
    given = []
    for row in range(count):
        one: dict[str, Any] = {}
        if coords is not None and labels is not None:
            real = labels[row] != _PADDING
            one["points"] = [[x, y, n] for (x, y), n in zip(coords[row].tolist(), labels[row].tolist(), strict=True)]
            one["points"] = [point for point, keep in zip(one["points"], real, strict=True) if keep]
        if boxes is not None:
            one["box"] = boxes[row].tolist()
        given.append(one)
    # ``read_prompts`` reads JSON, where masks are ids: a prompt of a mask alone gets a placeholder box.
    mask_only = [logits is not None and not one.get("points") and "box" not in one for one in given]
    read, _ = read_prompts([{"box": [0, 0, 1, 1]} if only else one for one, only in zip(given, mask_only, strict=True)])
    prompts = [Prompt() if only else prompt for prompt, only in zip(read, mask_only, strict=True)]
    if logits is not None:
        prompts = [replace(one, mask_input=each) for one, each in zip(prompts, logits, strict=True)]
    return tuple(prompts)


def _axes(tensors: Mapping[str, NDArray[Any]], name: str, axes: int) -> NDArray[Any] | None:
    values = tensors.get(name)
    if values is None:
        return None
    if values.dtype == object or values.dtype == bool:
        raise BadInput(f"{name} is a tensor of numbers")
    values = values[None] if values.ndim == axes - 1 else values
    if values.ndim != axes:
        raise BadInput(f"{name} has {axes} axes; it is {list(values.shape)}")
    return values


def _mask_input(tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.float32] | None:
    values = tensors.get("mask_input")
    if values is None:
        return None
    if values.dtype.kind != "f" or values.ndim not in (2, 3, 4) or values.shape[-2:] != (SIDE, SIDE):
        raise BadInput(f"mask_input is floating-point [prompts, {SIDE}, {SIDE}]; it is {list(values.shape)}")
    if values.ndim == 4 and values.shape[1] != 1:
        raise BadInput(f"mask_input has one mask per prompt; it is {list(values.shape)}")
    with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite
        logits = values.reshape(-1, SIDE, SIDE).astype(np.float32, copy=False)
    if not np.isfinite(logits).all():
        raise BadInput("mask_input holds values that are not finite")
    return logits


async def _image(tensor: Tensor) -> tuple[bytes, bool]:
    """The encoded image, and whether it was sent encoded. Pixels become a PNG: embeddings are cached by file hash."""
    if tensor.datatype == BYTES:
        files = encoded(tensor)
        if len(files) != 1:
            raise BadInput(f"prompts are of one image; {IMAGE} has {len(files)}")
        return files[0], True
    if tensor.datatype != "UINT8":
        raise BadInput(f"{IMAGE} is BYTES (an encoded image) or UINT8 (pixels [h, w, 3]), not {tensor.datatype}")
    arrays, _ = pixels(tensor)
    if len(arrays) != 1:
        raise BadInput(f"prompts are of one image; {IMAGE} has {len(arrays)}")
    array = np.ascontiguousarray(arrays[0])
    return await asyncio.to_thread(lambda: encode_png(Image.fromarray(array))), False


def _output(name: str, rows: Sequence[Sequence[PromptMask | AutoMask]], size: tuple[int, int]) -> NDArray[Any]:
    per_prompt = len(rows[0]) if rows else 0
    lead = (len(rows), per_prompt)
    flat = [mask for row in rows for mask in row]
    if name == "iou_predictions":
        return np.array([mask.predicted_iou for mask in flat], np.float32).reshape(lead)
    if name == "stability_scores":
        scores = [np.nan if mask.stability_score is None else mask.stability_score for mask in flat]
        return np.array(scores, np.float32).reshape(lead)
    if name == "low_res_masks":
        logits = [mask.logits for mask in flat if isinstance(mask, PromptMask) and mask.logits is not None]
        return np.stack(logits).astype(np.float32, copy=False).reshape(*lead, SIDE, SIDE)
    if (count := len(flat) * size[0] * size[1]) > MAX_BYTES:
        raise TooLarge(
            f"{len(flat)} masks of {size[1]} x {size[0]} are {count} bytes; at most {MAX_BYTES} are sent. "
            "POST /v1/masks gives them as runs of pixels"
        )
    whole = np.zeros((*lead, *size), np.bool_)
    for target, mask in zip(whole.reshape(-1, *size), flat, strict=True):
        target[:] = mask.rle.decode()
    return whole
