"""cutouts: objects of an image as RGBA PNGs with a transparent background."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import orjson

from models.inference_requests import AutoMaskResponse, MaskRequest, MaskResponse
from models.masks.predicted_masks import AutoMask, PromptMask
from services.concurrency.cpu_executor import run_cpu_bound
from services.inference import mask_encoding
from services.inference.answers import embedding_body, head
from services.inference.context import Outcome, RequestContext
from services.inference.pipeline import ImageSource
from services.inference.prompt_masks import validate
from services.inference.representations import Representation
from services.inference.sam_model import infer_everything, infer_prompts, resolve
from services.schemas.body import timing_body, to_dict
from services.schemas.masks import CutoutsBody, CutoutsOptions

__all__ = ["REPRESENTATIONS", "resolve", "run", "validate"]

ZIP = "application/zip"


async def run(context: RequestContext, source: ImageSource, options: CutoutsOptions) -> Outcome[CutoutsBody]:
    """Objects of the prompts in their order, else of the automatic masks, the largest first.

    With ``multimask`` the mask of a prompt with the best predicted IoU is cut. ``images`` of the outcome: the PNGs, by
    their numbers in the answer.
    """
    servable = await resolve(context, options)
    auto, style, prompts = options.auto, options.style, options.prompts
    objects: list[tuple[int | None, PromptMask | AutoMask]]
    answer: MaskResponse | AutoMaskResponse
    if prompts:
        request = MaskRequest(b"", (), options.multimask)
        answer, timing, pending = await infer_prompts(context, source, servable, request, prompts, options)
        best = (max(row, key=lambda mask: mask.predicted_iou) for row in answer.results)
        objects = list(enumerate(best))
    else:
        answer, timing, pending = await infer_everything(context, source, servable, auto, options)
        objects = [(None, mask) for mask in answer.masks]
    objects = [(prompt, mask) for prompt, mask in objects if mask.rle.area >= max(1, options.min_pixels)]
    objects = objects[: options.limit]
    pipeline = context.core.pipeline
    async with pipeline.abandoning(pending), pipeline.drawing(pending):
        cutouts, pngs = await run_cpu_bound(
            pending.deadline,
            lambda check: mask_encoding.cut_out(
                pending.data, objects, style, pending.files, check, store=options.store
            ),
        )
    parameters: dict[str, Any] = {"min_pixels": options.min_pixels, "limit": options.limit, "frame": style.frame}
    parameters |= {**options.recorded_range, "padding_px": style.padding_px, "feather_px": style.feather_px}
    parameters |= {"prompts": prompts, "multimask": options.multimask} if prompts else auto.parameters
    body = await pipeline.record(
        pending,
        servable,
        answer.image,
        timing,
        lambda ids: CutoutsBody(
            **head(ids, servable, answer.image),
            cutouts=cutouts,
            embedding=embedding_body(answer.embedding),
            timing=timing_body(timing),
        ),
        task="cutouts",
        result_field="cutouts",
        parameters=parameters,
        top=(None, max((mask.predicted_iou for _, mask in objects), default=None)),
        on_recorded=context.on_recorded,
    )
    return Outcome(body, {str(number): png for number, png in enumerate(pngs)}, masks=answer)


def _zipped(outcome: Outcome[CutoutsBody], options: CutoutsOptions) -> tuple[bytes, str]:
    """A ZIP of ``cutout-000.png`` and so on, in the answer's order, and the answer itself as ``cutouts.json``."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for number, png in enumerate(outcome.images.values()):
            archive.writestr(f"cutout-{number:03d}.png", png)
        archive.writestr("cutouts.json", orjson.dumps(to_dict(outcome.body), option=orjson.OPT_INDENT_2))
    return out.getvalue(), ZIP


REPRESENTATIONS = (Representation(ZIP, _zipped, filename="cutouts.zip"),)
"""What Accept may ask for besides JSON."""
