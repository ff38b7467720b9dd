"""segment: the class of every pixel, of an image or of a volume slice by slice."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from dataclasses import replace

from ekiben.errors import BadInput
from models.inference_requests import PROBABILITY, RENDERS, InferenceRequest, InferenceResponse
from models.results import Timing
from services.inference import volumes
from services.inference.answers import artifact_urls, head
from services.inference.context import Outcome, RequestContext
from services.inference.pipeline import ImageSource
from services.inference.recording import PNG, RecordIds
from services.inference.representations import Representation
from services.model_registry.index import ServableModel
from services.schemas.body import timing_body
from services.schemas.inference import SegmentArtifacts, SegmentBody, SegmentOptions, area_body


async def resolve(context: RequestContext, options: SegmentOptions) -> ServableModel:
    """The version meant; without ``model`` that of the first default model that there is.

    BadInput for options that the model does not take; else as ``ModelIndex.resolve``.
    """
    servable = await context.core.resolve(context.owner, options.model, options.version, "segment")
    name = servable.key.name
    if options.flips and servable.family != "unet":
        raise BadInput(f"flips are averaged by a unet; model {name} is a {servable.family}")
    if options.wants_probability and (servable.family != "unet" or servable.classes != 2):
        what = f"a {servable.family}" + (f" of {servable.classes} classes" if servable.family == "unet" else "")
        raise BadInput(f"a probability is given by a unet of two classes; model {name} is {what}")
    return servable


async def run(context: RequestContext, source: ImageSource, options: SegmentOptions) -> Outcome[SegmentBody]:
    """The classes that occur, most pixels first.

    ``render`` asks for that image's bytes besides, ``context.arrays`` for arrays; a volume has none.
    """
    servable = await resolve(context, options)
    render, wants_probability = options.render, options.wants_probability
    if options.store:
        renders: tuple[str, ...] = (*RENDERS, *((PROBABILITY,) if wants_probability else ()))
    elif render in volumes.MIME_TYPES:
        renders = ("mask",)
    else:
        renders = (render,) if render else ()
    request = InferenceRequest(b"", renders=renders, flips=options.flips, tensors=context.arrays)
    core = context.core

    async def infer(image: bytes, deadline: float) -> tuple[InferenceResponse, Timing]:
        return await _segment(context, servable, replace(request, image=image), image, deadline, options)

    answer, timing, pending = await core.pipeline.infer(
        source,
        servable,
        infer,
        store=options.store,
        owner=context.owner,
        timeout_s=core.timeout_s,
        caller_timeout_s=context.timeout_s,
        value_range=options.value_range,
        volumes=True,
    )
    for kind, data in answer.renders.items():
        pending.files.add(kind, data, volumes.MIME_TYPES.get(kind, PNG))
    classes = [area_body(row) for row in answer.areas]
    given = {"flips": options.flips, "probability": wants_probability}

    def body(ids: RecordIds) -> SegmentBody:
        urls = artifact_urls(ids.artifacts) if ids.artifacts else _data_urls(render, answer.renders)
        return SegmentBody(
            **head(ids, servable, answer.image),
            classes=classes,
            artifacts=SegmentArtifacts(**urls) if urls is not None else None,
            timing=timing_body(timing),
        )

    answered = await core.pipeline.record(
        pending,
        servable,
        answer.image,
        timing,
        body,
        task="segment",
        result_field="classes",
        parameters={**{name: True for name, value in given.items() if value}, **options.recorded_range},
        top=(classes[0].class_name, classes[0].share),
        on_recorded=context.on_recorded,
    )
    return Outcome(answered, dict(answer.renders), answer.tensors)


async def _segment(
    context: RequestContext,
    servable: ServableModel,
    request: InferenceRequest,
    image: bytes,
    deadline: float,
    options: SegmentOptions,
) -> tuple[InferenceResponse, Timing]:
    """Of an image; of a volume slice by slice; of a DICOM image DICOM segments besides."""
    render = options.render

    async def infer(one: InferenceRequest) -> tuple[InferenceResponse, Timing]:
        return await context.core.runner.infer(servable.key, one, deadline, context.progress)

    in_thread = context.core.pipeline.decoding.run
    kind = volumes.medical_type(image)
    slices = await in_thread(lambda: volumes.open_slices(image), image, deadline) if kind is not None else None
    if slices is not None:
        slice_bytes = volumes.slice_bytes(slices)
        own = volumes.DICOM_SEG if kind == volumes.DICOM else volumes.NIFTI
        try:
            if options.wants_probability or render not in (None, own):
                raise BadInput(f"the answer for this volume is drawn as {own} only")
            if request.tensors:
                raise BadInput("a volume is not answered as an array; POST /v1/segment gives it as a file")
            return await volumes.segment_slices(
                slices,
                image,
                request,
                infer,
                required=render == own,
                progress=context.progress,
                in_thread=lambda work: in_thread(work, slice_bytes, deadline),
            )
        finally:
            await asyncio.to_thread(slices.close)
    answer, timing = await infer(request)
    if render == volumes.NIFTI or (render == volumes.DICOM_SEG and kind != volumes.DICOM):
        raise BadInput(f"{render} is drawn for files of that format only; this is a {answer.image.mime_type}")
    if kind == volumes.DICOM and "mask" in answer.renders:
        mask, areas, required = answer.renders["mask"], answer.areas, render == volumes.DICOM_SEG
        made = await in_thread(lambda: volumes.dicom_seg(image, mask, areas, required=required), image, deadline)
        if made is not None:
            answer = replace(answer, renders={**answer.renders, volumes.DICOM_SEG: made})
    return answer, timing


def _data_urls(render: str | None, renders: Mapping[str, bytes]) -> dict[str, str] | None:
    """The render that was requested and is not stored, as a data: URL."""
    if render is None or render not in renders:
        return None
    text = base64.b64encode(renders[render]).decode()
    return {render: f"data:{volumes.MIME_TYPES.get(render, PNG)};base64,{text}"}


def _rendered(media_type: str, default: str) -> Representation[SegmentBody, SegmentOptions]:
    """One of the renders in place of JSON; ``default`` where ``render`` does not say which."""

    def prepare(options: SegmentOptions) -> SegmentOptions:
        return options if options.render else options.model_copy(update={"render": default})

    def encode(outcome: Outcome[SegmentBody], options: SegmentOptions) -> tuple[bytes, str]:
        render = options.render or default
        return outcome.images[render], volumes.MIME_TYPES.get(render, PNG)

    return Representation(media_type, encode, prepare)


REPRESENTATIONS = (
    _rendered("image/png", "mask"),
    _rendered("application/gzip", volumes.NIFTI),
    _rendered(volumes.DICOM, volumes.DICOM_SEG),
)
"""What Accept may ask for besides JSON."""
