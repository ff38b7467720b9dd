"""Vision: the transport-free core. Every door calls it; it finds the model, asks the runner and records the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from db.tables import Image
from ekiben.errors import BadInput
from models.asks import RENDERS, Answer, Ask
from models.classifier import check_top_k
from models.images import decode, sniff
from models.results import PictureFacts, Timing
from services import defaults
from services.model_index import ModelIndex, Served
from services.recording import NewFile, RecordIds
from services.requests import Asked, Requests, Source
from services.runner import Runner
from services.wire import area, score, timing

LOCAL = "local"


@dataclass(frozen=True, slots=True)
class Outcome:
    """``body``: the answer as JSON-ready values; ``renders``: PNG bytes by name."""

    body: dict[str, Any]
    renders: dict[str, bytes]


class Vision:
    """Classify and segment. All methods take ``owner``; nothing is found across owners."""

    def __init__(self, index: ModelIndex, runner: Runner, requests: Requests, timeout_s: float) -> None:
        self._index = index
        self._runner = runner
        self._requests = requests
        self._timeout_s = timeout_s

    async def classify(
        self,
        source: Source,
        *,
        model: str | None = None,
        version: int | None = None,
        top_k: int | None = None,
        store: bool = True,
        owner: str = LOCAL,
    ) -> Outcome:
        """The ``top_k`` best classes, 5 or all where there are fewer (see wire.ClassifyBody)."""
        served = await self._index.resolve(owner, model or defaults.CLASSIFY, version, "classify")
        if top_k is None:
            top_k = min(5, served.classes)
        check_top_k(top_k, served.classes)
        answer, spent, asked = await self._infer(source, served, Ask(b"", top_k=top_k), store, owner)
        scores = [score(row) for row in answer.scores]
        body = await self._requests.record(
            asked,
            served,
            answer.picture,
            spent,
            lambda ids: {**head(ids, served, answer.picture), "predictions": scores, "timing": timing(spent)},
            parameters={"top_k": top_k},
            result={"predictions": scores},
            top=(scores[0]["class_name"], scores[0]["confidence"]),
        )
        return Outcome(body, {})

    async def segment(
        self,
        source: Source,
        *,
        model: str | None = None,
        version: int | None = None,
        render: str | None = None,
        store: bool = True,
        owner: str = LOCAL,
    ) -> Outcome:
        """The classes that occur (see wire.SegmentBody); ``render`` asks for that picture's bytes besides."""
        if render is not None and render not in RENDERS:
            raise BadInput(f"render is {render!r}; it is one of {', '.join(RENDERS)}")
        served = await self._index.resolve(owner, model or defaults.SEGMENT, version, "segment")
        renders = RENDERS if store else ((render,) if render else ())
        answer, spent, asked = await self._infer(source, served, Ask(b"", renders=renders), store, owner)
        areas = [area(row) for row in answer.areas]
        body = await self._requests.record(
            asked,
            served,
            answer.picture,
            spent,
            lambda ids: {
                **head(ids, served, answer.picture),
                "classes": areas,
                "artifacts": urls(ids.artifacts) if ids.artifacts else None,
                "timing": timing(spent),
            },
            files=[NewFile(kind, data) for kind, data in answer.renders.items()],
            parameters={},
            result={"classes": areas},
            top=(areas[0]["class_name"], areas[0]["share"]),
        )
        return Outcome(body, dict(answer.renders))

    async def keep_image(self, source: Source, *, owner: str = LOCAL) -> Image:
        """Store an image for itself; it stays until it is deleted. Decoded once to be sure that it can be."""
        if source.data is None:
            raise BadInput("send an image: a multipart field 'file' or the raw bytes as body")
        data = source.data
        mime_type = sniff(data)
        picture = await asyncio.to_thread(decode, data)
        recorder = self._requests.recorder
        record = recorder.begin(data, mime_type, source.filename, owner)
        ids = await recorder.finish(record, picture.facts, [], None, kept=True)
        return await asyncio.to_thread(self._requests.records.image, owner, str(ids.image))

    async def _infer(
        self, source: Source, served: Served, ask: Ask, store: bool, owner: str
    ) -> tuple[Answer, Timing, Asked]:
        async def infer(image: bytes, deadline: float) -> tuple[Answer, Timing]:
            return await self._runner.infer(served.key, replace(ask, image=image), deadline)

        return await self._requests.infer(source, served, infer, store=store, owner=owner, timeout_s=self._timeout_s)


def urls(artifacts: Mapping[str, str]) -> dict[str, str]:
    """Where the files of an answer are, by their kind."""
    return {kind: f"/v1/artifacts/{ident}" for kind, ident in artifacts.items()}


def head(ids: RecordIds, served: Served, picture: PictureFacts) -> dict[str, Any]:
    """How every answer begins."""
    return {
        "id": ids.prediction,
        "model": {"name": served.key.name, "version": served.key.version},
        "image": {"id": ids.image, "width": picture.width, "height": picture.height},
    }
