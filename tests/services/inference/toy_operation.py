"""A toy operation: the mean level of an image. One module and, below, one row, as an operation of Ekiben has."""

from __future__ import annotations

import asyncio

import numpy as np
from pydantic import Field

from models.images import decode
from models.inference_requests import InferenceRequest, InferenceResponse
from models.results import Timing
from services.inference import classify
from services.inference.answers import head
from services.inference.context import Outcome, RequestContext
from services.inference.operations import Operation
from services.inference.pipeline import ImageSource
from services.inference.representations import Representation
from services.schemas.body import Body, ImageRef, ModelRef, TimingBody, timing_body
from services.schemas.inference import ClassifyOptions


class MeanOptions(ClassifyOptions):
    scale: float = Field(default=1.0, gt=0, le=10, description="The mean is multiplied by it.")


class MeanBody(Body):
    id: str | None
    model: ModelRef
    image: ImageRef
    mean: float
    timing: TimingBody


async def run(context: RequestContext, source: ImageSource, options: MeanOptions) -> Outcome[MeanBody]:
    """The mean of all levels of an image, 0-255, times ``scale``. The model is run, and its answer not used."""
    servable = await classify.resolve(context, options)
    core = context.core

    async def infer(image: bytes, deadline: float) -> tuple[tuple[float, InferenceResponse], Timing]:
        answer, timing = await core.runner.infer(servable.key, InferenceRequest(image, top_k=1), deadline)
        pixels = await asyncio.to_thread(lambda: np.asarray(decode(image).rgb))
        return (float(pixels.mean()) * options.scale, answer), timing

    (mean, answer), timing, pending = await core.pipeline.infer(
        source, servable, infer, store=options.store, owner=context.owner, timeout_s=core.timeout_s
    )
    body = await core.pipeline.record(
        pending,
        servable,
        answer.image,
        timing,
        lambda ids: MeanBody(**head(ids, servable, answer.image), mean=mean, timing=timing_body(timing)),
        task="mean",
        result_field="mean",
        parameters={"scale": options.scale},
    )
    return Outcome(body)


def _as_text(outcome: Outcome[MeanBody], _options: MeanOptions) -> tuple[bytes, str]:
    return f"{outcome.body.mean:.3f}".encode(), "text/plain"


resolve = classify.resolve
REPRESENTATIONS = (Representation("text/plain", _as_text),)

MEAN = Operation(
    "mean",
    __name__,
    MeanOptions,
    MeanBody,
    "/v1/mean",
    "Mean",
    claim_size=2,
    summary="The mean level of an image",
    tag="vision",
)
