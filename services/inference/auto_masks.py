"""auto_masks: Segment Anything's masks of everything in an image."""

from __future__ import annotations

from services.concurrency.cpu_executor import CheckCancelled, run_cpu_bound
from services.inference import mask_encoding
from services.inference.answers import artifact_urls, embedding_body, head
from services.inference.context import Outcome, RequestContext
from services.inference.pipeline import ImageSource
from services.inference.recording import RecordIds
from services.inference.sam_model import infer_everything, resolve
from services.schemas.body import timing_body
from services.schemas.masks import AutoArtifacts, AutoMaskBody, AutoMasksBody, AutoMasksOptions


async def run(context: RequestContext, source: ImageSource, options: AutoMasksOptions) -> Outcome[AutoMasksBody]:
    """The masks of everything, the largest first; where they are stored, with images of all of them."""
    servable = await resolve(context, options)
    auto = options.auto
    answer, timing, pending = await infer_everything(context, source, servable, auto, options)

    def encode(check: CheckCancelled) -> tuple[list[AutoMaskBody], dict[str, str]]:
        masks = mask_encoding.auto_masks(answer, options.format, pending.files, check, store=options.store)
        images = mask_encoding.add_overviews(answer, pending.data, pending.files, check) if options.store else {}
        return masks, images

    pipeline = context.core.pipeline
    async with pipeline.abandoning(pending), pipeline.drawing(pending):
        masks, images = await run_cpu_bound(pending.deadline, encode)

    def body(ids: RecordIds) -> AutoMasksBody:
        return AutoMasksBody(
            **head(ids, servable, answer.image),
            masks=masks,
            parameters=auto.parameters,
            artifacts=AutoArtifacts(**artifact_urls(images)) if images else None,
            embedding=embedding_body(answer.embedding),
            timing=timing_body(timing),
        )

    answered = await pipeline.record(
        pending,
        servable,
        answer.image,
        timing,
        body,
        task="auto_masks",
        result_field="masks",
        parameters={**auto.parameters, "format": options.format, **options.recorded_range},
        top=(None, max((mask.predicted_iou for mask in answer.masks), default=None)),
        on_recorded=context.on_recorded,
    )
    return Outcome(answered, masks=answer)
