"""masks: Segment Anything's masks of points and boxes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from models.inference_requests import MaskRequest, MaskResponse
from models.sam.prompts import read_prompts
from services.concurrency.cpu_executor import run_cpu_bound
from services.inference import mask_encoding
from services.inference.answers import embedding_body, head
from services.inference.context import Outcome, RequestContext
from services.inference.pipeline import ImageSource
from services.inference.sam_model import infer_prompts, resolve
from services.schemas.body import timing_body
from services.schemas.masks import CutoutsOptions, MasksBody, MasksOptions

MAX_KEPT_LOGITS = 256
"""Masks of one answer whose logits are kept, 256 KB each; the masks of a larger answer have no id to refine from."""

LOW_RES_MASKS = "low_res_masks"
"""The array of ``RequestContext.arrays`` that asks for the logits of the masks."""

_INLINE_RUNS = 20_000
"""Encoding so many runs takes about a millisecond on the event loop. More goes to a thread."""


async def run(context: RequestContext, source: ImageSource, options: MasksOptions) -> Outcome[MasksBody]:
    """The masks of each prompt, in order; of the whole image's box where there are no prompts."""
    servable = await resolve(context, options)
    prompts = options.prompts
    keep_logits = _few_enough(prompts, options.multimask) and options.store and options.logits
    give_logits = LOW_RES_MASKS in context.arrays
    request = MaskRequest(b"", (), options.multimask, keep_logits=keep_logits or give_logits)
    given, timing, pending = await infer_prompts(context, source, servable, request, prompts, options)
    answer = given if keep_logits or not give_logits else _without_logits(given)
    async with context.core.pipeline.abandoning(pending):
        runs = sum(len(mask.rle.counts) for row in answer.results for mask in row)
        if runs < _INLINE_RUNS and options.format in ("rle", "coco"):
            results = mask_encoding.prompt_results(answer, options.format, pending.files, store=options.store)
        else:
            results = await run_cpu_bound(
                pending.deadline,
                lambda check: mask_encoding.prompt_results(
                    answer, options.format, pending.files, store=options.store, check=check
                ),
            )
    best = max((mask.predicted_iou for row in answer.results for mask in row), default=None)
    body = await context.core.pipeline.record(
        pending,
        servable,
        answer.image,
        timing,
        lambda ids: MasksBody(
            **head(ids, servable, answer.image),
            results=results,
            embedding=embedding_body(answer.embedding),
            timing=timing_body(timing),
        ),
        task="masks",
        result_field="results",
        parameters={
            "prompts": _as_json(prompts),
            "multimask": options.multimask,
            "format": options.format,
            **options.recorded_range,
        },
        top=(None, best),
        on_recorded=context.on_recorded,
    )
    return Outcome(body, masks=given)


def validate(options: MasksOptions | CutoutsOptions) -> None:
    """BadInput for prompts that are wrong whatever the image is."""
    if options.prompts is not None:
        read_prompts(options.prompts)


def _few_enough(prompts: Any, multimask: bool) -> bool:
    count = len(prompts) if isinstance(prompts, (list, tuple)) and prompts else 1
    return count * (3 if multimask else 1) <= MAX_KEPT_LOGITS


def _without_logits(answer: MaskResponse) -> MaskResponse:
    results = tuple(tuple(replace(mask, logits=None) for mask in row) for row in answer.results)
    return replace(answer, results=results)


def _as_json(prompts: Any) -> Any:
    """Prompts as JSON has them; a mask that came as an array is left out."""
    if not isinstance(prompts, tuple):
        return prompts
    return [
        {"points": [list(point) for point in one.points], "box": list(one.box) if one.box is not None else None}
        for one in prompts
    ]
