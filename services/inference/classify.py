"""classify: the best classes of an image."""

from __future__ import annotations

from dataclasses import replace

from models.classifier import check_top_k
from models.inference_requests import InferenceRequest, InferenceResponse
from models.results import Timing
from services.inference.answers import head
from services.inference.context import Outcome, RequestContext
from services.inference.pipeline import ImageSource
from services.model_registry.index import ServableModel
from services.schemas.body import timing_body
from services.schemas.inference import ClassifyBody, ClassifyOptions, score_body

DEFAULT_TOP_K = 5


async def resolve(context: RequestContext, options: ClassifyOptions) -> ServableModel:
    """The version meant. BadInput for a ``top_k`` that it does not have; else as ``ModelIndex.resolve``."""
    servable = await context.core.resolve(context.owner, options.model, options.version, "classify")
    if options.top_k is not None:
        check_top_k(options.top_k, servable.classes)
    return servable


async def run(context: RequestContext, source: ImageSource, options: ClassifyOptions) -> Outcome[ClassifyBody]:
    """The ``top_k`` best classes, highest confidence first; 5, or all where there are fewer."""
    servable = await resolve(context, options)
    top_k = options.top_k if options.top_k is not None else min(DEFAULT_TOP_K, servable.classes)
    request = InferenceRequest(b"", top_k=top_k, tensors=context.arrays)
    core = context.core

    async def infer(image: bytes, deadline: float) -> tuple[InferenceResponse, Timing]:
        return await core.runner.infer(servable.key, replace(request, image=image), deadline, context.progress)

    answer, timing, pending = await core.pipeline.infer(
        source,
        servable,
        infer,
        store=options.store,
        owner=context.owner,
        timeout_s=core.timeout_s,
        caller_timeout_s=context.timeout_s,
        value_range=options.value_range,
    )
    predictions = [score_body(row) for row in answer.scores]
    body = await core.pipeline.record(
        pending,
        servable,
        answer.image,
        timing,
        lambda ids: ClassifyBody(
            **head(ids, servable, answer.image), predictions=predictions, timing=timing_body(timing)
        ),
        task="classify",
        result_field="predictions",
        parameters={"top_k": top_k, **options.recorded_range},
        top=(predictions[0].class_name, predictions[0].confidence),
        on_recorded=context.on_recorded,
    )
    return Outcome(body, arrays=answer.tensors)
