"""What the three operations of Segment Anything share: the model, and a prompt's way to its masks."""

from __future__ import annotations

import asyncio
import io
from dataclasses import replace
from typing import Any

import numpy as np

from ekiben.errors import BadInput, NotFound
from models.inference_requests import AutoMaskRequest, AutoMaskResponse, MaskRequest, MaskResponse
from models.results import ImageInfo, Timing
from models.sam.auto_options import AutoOptions
from models.sam.graphs import SIDE, Floats
from models.sam.prompts import Prompt, read_prompts
from services.inference.context import RequestContext
from services.inference.pipeline import ImageSource, PendingAnswer
from services.model_registry.index import ServableModel
from services.schemas.inference import InferenceOptions
from services.schemas.masks import SamOptions

MAX_MASK_INPUTS = 64
"""Different earlier masks that one request may start from, 256 KB each."""

_INLINE_PROMPTS = 100
"""Checking so many takes about a millisecond on the event loop. More goes to a thread."""


async def resolve(context: RequestContext, options: SamOptions) -> ServableModel:
    """The version meant. NotFound, Unavailable, BadInput as ``ModelIndex.resolve``."""
    return await context.core.resolve(context.owner, options.model, options.version, "masks")


async def infer_prompts(
    context: RequestContext,
    source: ImageSource,
    servable: ServableModel,
    request: MaskRequest,
    prompts: Any,
    options: InferenceOptions,
) -> tuple[MaskResponse, Timing, PendingAnswer]:
    """The masks of ``prompts``: parsed JSON, a tuple of Prompt, or None for the whole image's box.

    BadInput names the prompt that is wrong, NotFound one whose ``mask_input`` is not stored.
    """
    core = context.core
    read: list[Prompt] = []
    mask_ids: list[str | None] = []
    if isinstance(prompts, tuple):
        read, mask_ids = list(prompts), [None] * len(prompts)
    elif prompts is not None:
        many = isinstance(prompts, list) and len(prompts) > _INLINE_PROMPTS
        read, mask_ids = await asyncio.to_thread(read_prompts, prompts) if many else read_prompts(prompts)

    async def infer(image: bytes, deadline: float) -> tuple[MaskResponse, Timing]:
        sizes = await _fill_in_masks(context, read, mask_ids)
        answer, timing = await core.runner.masks(
            servable.key, replace(request, image=image, prompts=tuple(read)), deadline
        )
        _check_sizes(sizes, answer.image)
        return answer, timing

    return await core.pipeline.infer(
        source,
        servable,
        infer,
        store=options.store,
        owner=context.owner,
        timeout_s=core.timeout_s,
        caller_timeout_s=context.timeout_s,
        value_range=options.value_range,
    )


async def infer_everything(
    context: RequestContext, source: ImageSource, servable: ServableModel, auto: AutoOptions, options: InferenceOptions
) -> tuple[AutoMaskResponse, Timing, PendingAnswer]:
    """The automatic masks of an image."""
    core = context.core

    async def infer(image: bytes, deadline: float) -> tuple[AutoMaskResponse, Timing]:
        return await core.runner.auto_masks(servable.key, AutoMaskRequest(image, auto), deadline, context.progress)

    return await core.pipeline.infer(
        source,
        servable,
        infer,
        store=options.store,
        owner=context.owner,
        timeout_s=core.auto_timeout_s,
        caller_timeout_s=context.timeout_s,
        value_range=options.value_range,
    )


async def _fill_in_masks(
    context: RequestContext, prompts: list[Prompt], mask_ids: list[str | None]
) -> dict[int, tuple[int, int]]:
    """Give the prompts their mask inputs. By number of the prompt, width and height of the image that each is of."""
    if len(set(mask_ids)) > MAX_MASK_INPUTS:
        raise BadInput(f"at most {MAX_MASK_INPUTS} different masks are refined at once")
    known: dict[str, tuple[Floats, tuple[int, int]]] = {}
    sizes: dict[int, tuple[int, int]] = {}
    for number, mask_id in enumerate(mask_ids):
        if mask_id is not None:
            if mask_id not in known:
                known[mask_id] = await earlier_logits(context, number, mask_id)
            logits, sizes[number] = known[mask_id]
            prompts[number] = replace(prompts[number], mask_input=logits)
    return sizes


async def earlier_logits(context: RequestContext, number: int, mask_id: str) -> tuple[Floats, tuple[int, int]]:
    """float32 [256, 256]: the logits of a mask that was answered before; and width and height of its image.

    NotFound says which prompt (``number``) named it.
    """
    pipeline = context.core.pipeline
    try:
        artifact = await asyncio.to_thread(pipeline.records.artifact, context.owner, mask_id)
        if artifact.kind != "logits" or artifact.prediction_id is None:
            raise NotFound("it is another artifact")
        data = await pipeline.recorder.read(artifact.storage_key, artifact.bytes, artifact.sha256)
        image = await asyncio.to_thread(pipeline.records.image_of, context.owner, artifact.prediction_id)
    except NotFound:
        raise NotFound(
            f"prompt {number}: there is no mask {mask_id[:40]!r} to refine; the id of a mask whose answer is stored "
            "is needed"
        ) from None
    logits = np.load(io.BytesIO(data), allow_pickle=False).astype(np.float32)
    return logits.reshape(SIDE, SIDE), (image.width, image.height)


def _check_sizes(sizes: dict[int, tuple[int, int]], image: ImageInfo) -> None:
    for number, size in sizes.items():
        if size != (image.width, image.height):
            raise BadInput(
                f"prompt {number}: mask_input is of an image of {size[0]} x {size[1]}, not {image.width} x "
                f"{image.height}"
            )
