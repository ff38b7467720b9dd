"""ekiben.v1.Vision: what is asked of one picture and answered at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from ekiben.v1 import ekiben_pb2 as pb
from ekiben.v1 import ekiben_pb2_grpc
from models.images import sniff
from models.masks.predicted_masks import MaskUpdate
from services.options import (
    AutoMasksOptions,
    ClassifyOptions,
    CutoutsOptions,
    MasksOptions,
    SegmentOptions,
    check,
)
from services.progress import NEWS
from services.rpc import messages
from services.rpc.calls import Door, streaming, unary
from services.volumes import medical_type


class Vision(ekiben_pb2_grpc.VisionServicer):
    NAME = "ekiben.v1.Vision"

    def __init__(self, door: Door) -> None:
        self.door = door
        self._vision = door.platform.vision
        self._masks = door.platform.masks

    @unary
    async def Classify(self, request: Any, timeout_s: float | None) -> Any:
        options = check(ClassifyOptions, messages.options(request))
        outcome = await self._vision.classify(
            messages.source(request, timeout_s),
            model=options.model,
            version=options.version,
            top_k=options.top_k,
            store=options.store,
        )
        return pb.ClassifyResponse(**outcome.body)

    @unary
    async def Segment(self, request: Any, timeout_s: float | None) -> Any:
        options = check(SegmentOptions, messages.options(request))
        source = messages.source(request, timeout_s)
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
        options = check(MasksOptions, messages.options(request))
        body = await self._masks.prompted(
            messages.source(request, timeout_s),
            messages.prompts(request),
            model=options.model,
            version=options.version,
            multimask=options.multimask,
            format=options.format,
            logits=options.logits,
            store=options.store,
        )
        return pb.PromptMasksResponse(**messages.masks(body, options.format))

    @streaming
    async def AutoMasks(self, request: Any, timeout_s: float | None) -> AsyncIterator[Any]:
        options = check(AutoMasksOptions, messages.options(request))
        queue: asyncio.Queue[MaskUpdate | None] = asyncio.Queue()
        NEWS.set(queue.put_nowait)
        asked = self._masks.automatic(
            messages.source(request, timeout_s),
            options.auto,
            model=options.model,
            version=options.version,
            format=options.format,
            store=options.store,
        )
        answering = asyncio.create_task(asked)
        answering.add_done_callback(lambda _: queue.put_nowait(None))
        try:
            while (news := await queue.get()) is not None:
                for event in messages.news(news):
                    yield pb.AutoMasksEvent(**event)
            body = answering.result()
        finally:
            answering.cancel()
        answer = await asyncio.to_thread(lambda: pb.AutoMasksResponse(**messages.auto_masks(body, options.format)))
        yield pb.AutoMasksEvent(finished=answer)

    @unary
    async def Cutouts(self, request: Any, timeout_s: float | None) -> Any:
        options = check(CutoutsOptions, messages.options(request))
        body, cuts = await self._masks.cutouts(
            messages.source(request, timeout_s),
            messages.prompts(request),
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
