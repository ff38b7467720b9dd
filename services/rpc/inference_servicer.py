"""ekiben.v1.Vision: what is asked of one image and answered at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from ekiben.v1 import ekiben_pb2 as pb
from ekiben.v1 import ekiben_pb2_grpc
from models.images import sniff
from models.masks.predicted_masks import MaskUpdate
from services.inference.volumes import medical_type
from services.rpc import converters
from services.rpc.method_wrappers import ServicerState, streaming, unary
from services.runners.progress import NEWS
from services.schemas.inference import ClassifyOptions, SegmentOptions
from services.schemas.masks import AutoMasksOptions, CutoutsOptions, MasksOptions
from services.schemas.validation import check


class InferenceServicer(ekiben_pb2_grpc.VisionServicer):
    NAME = "ekiben.v1.Vision"

    def __init__(self, state: ServicerState) -> None:
        self.state = state
        self._vision = state.app_state.vision
        self._masks = state.app_state.masks

    @unary
    async def Classify(self, request: Any, timeout_s: float | None) -> Any:
        options = check(ClassifyOptions, converters.options(request))
        outcome = await self._vision.classify(
            converters.source(request, timeout_s),
            model=options.model,
            version=options.version,
            top_k=options.top_k,
            store=options.store,
        )
        return pb.ClassifyResponse(**outcome.body)

    @unary
    async def Segment(self, request: Any, timeout_s: float | None) -> Any:
        options = check(SegmentOptions, converters.options(request))
        source = converters.source(request, timeout_s)
        if source.data is not None and medical_type(source.data) is None:
            sniff(source.data)
        outcome = await self._vision.segment(
            source,
            model=options.model,
            version=options.version,
            render=options.render,
            flips=options.flips,
            probability=options.probability,
            store=options.store,
        )
        rendered = outcome.renders[options.render] if options.render is not None else b""
        # What is not stored has no URL, and is in ``rendered``.
        artifacts = outcome.body["artifacts"] if outcome.body["id"] else None
        return pb.SegmentResponse(**{**outcome.body, "artifacts": artifacts}, rendered=rendered)

    @unary
    async def PromptMasks(self, request: Any, timeout_s: float | None) -> Any:
        options = check(MasksOptions, converters.options(request))
        body = await self._masks.prompted(
            converters.source(request, timeout_s),
            converters.prompts(request),
            model=options.model,
            version=options.version,
            multimask=options.multimask,
            format=options.format,
            logits=options.logits,
            store=options.store,
        )
        return pb.PromptMasksResponse(**converters.masks(body, options.format))

    @streaming
    async def AutoMasks(self, request: Any, timeout_s: float | None) -> AsyncIterator[Any]:
        options = check(AutoMasksOptions, converters.options(request))
        queue: asyncio.Queue[MaskUpdate | None] = asyncio.Queue()
        NEWS.set(queue.put_nowait)
        requested = self._masks.automatic(
            converters.source(request, timeout_s),
            options.auto,
            model=options.model,
            version=options.version,
            format=options.format,
            store=options.store,
        )
        answering = asyncio.create_task(requested)
        answering.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            while (news := await queue.get()) is not None:
                for event in converters.mask_update_events(news):
                    yield pb.AutoMasksEvent(**event)
            body = answering.result()
        finally:
            answering.cancel()
        answer = await asyncio.to_thread(lambda: pb.AutoMasksResponse(**converters.auto_masks(body, options.format)))
        yield pb.AutoMasksEvent(finished=answer)

    @unary
    async def Cutouts(self, request: Any, timeout_s: float | None) -> Any:
        options = check(CutoutsOptions, converters.options(request))
        body, cuts = await self._masks.cutouts(
            converters.source(request, timeout_s),
            converters.prompts(request),
            options.auto,
            style=options.style,
            min_pixels=options.min_pixels,
            limit=options.limit,
            multimask=options.multimask,
            model=options.model,
            version=options.version,
            store=options.store,
        )
        return pb.CutoutsResponse(**{**body, "cutouts": [{**one.body, "png": one.png} for one in cuts]})
