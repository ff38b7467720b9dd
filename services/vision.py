"""Vision: the transport-free core. Every door calls it; it finds the model, asks the runner and records the answer."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from db.records import Records
from db.tables import Image
from ekiben.errors import BadInput, DeadlineExceeded, Overloaded
from models.asks import RENDERS, Answer, Ask
from models.classifier import check_top_k
from models.images import decode, sniff
from services import defaults, metrics
from services.model_index import ModelIndex, Served
from services.recording import Record, Recorder, RecordIds
from services.runner import Answered, Runner
from services.wire import area, score, timing

LOCAL = "local"


@dataclass(frozen=True, slots=True)
class Source:
    """The picture of a request: its bytes, or the id of a stored image."""

    data: bytes | None = None
    filename: str | None = None
    image_id: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """``body``: the answer as JSON-ready values; ``renders``: PNG bytes by name."""

    body: dict[str, Any]
    renders: dict[str, bytes]


class Vision:
    """Classify and segment. All methods take ``owner``; nothing is found across owners."""

    def __init__(
        self,
        index: ModelIndex,
        runner: Runner,
        records: Records,
        recorder: Recorder,
        timeout_s: float,
        max_open: int = 4096,
    ) -> None:
        self._index = index
        self._runner = runner
        self._records = records
        self._recorder = recorder
        self._timeout_s = timeout_s
        self._max_open = max_open
        self._open = 0

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
        answered, record = await self._infer(source, served, Ask(b"", top_k=top_k), store, owner)
        scores = [score(row) for row in answered.answer.scores]
        ids = await self._record(
            record,
            answered,
            served,
            parameters={"top_k": top_k},
            result={"predictions": scores},
            top=(scores[0]["class_name"], scores[0]["confidence"]),
        )
        return Outcome(
            {**_head(ids, served, answered.answer), "predictions": scores, "timing": timing(answered.timing)}, {}
        )

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
        answered, record = await self._infer(source, served, Ask(b"", renders=renders), store, owner)
        areas = [area(row) for row in answered.answer.areas]
        ids = await self._record(
            record,
            answered,
            served,
            parameters={},
            result={"classes": areas},
            top=(areas[0]["class_name"], areas[0]["share"]),
        )
        body = {
            **_head(ids, served, answered.answer),
            "classes": areas,
            "artifacts": {kind: f"/v1/artifacts/{i}" for kind, i in ids.artifacts.items()} if ids.artifacts else None,
            "timing": timing(answered.timing),
        }
        return Outcome(body, dict(answered.answer.renders))

    async def keep_image(self, source: Source, *, owner: str = LOCAL) -> Image:
        """Store an image for itself; it stays until it is deleted. Decoded once to be sure that it can be."""
        if source.data is None:
            raise BadInput("send an image: a multipart field 'file' or the raw bytes as body")
        data = source.data
        mime_type = sniff(data)
        picture = await asyncio.to_thread(decode, data)
        record = self._recorder.begin(data, mime_type, source.filename, owner)
        ids = await self._recorder.finish(record, picture.facts, {}, None, kept=True)
        return await asyncio.to_thread(self._records.image, owner, str(ids.image))

    async def _infer(
        self, source: Source, served: Served, ask: Ask, store: bool, owner: str
    ) -> tuple[Answered, Record | None]:
        deadline = time.monotonic() + self._timeout_s
        if self._open >= self._max_open:
            raise Overloaded(f"{self._open} requests are open", retry_after_s=1)
        self._open += 1
        record: Record | None = None
        try:
            if source.data is not None:
                if source.image_id is not None:
                    raise BadInput("send a file or image_id, not both")
                data = source.data
                mime_type = sniff(data)
                if store:
                    record = self._recorder.begin(data, mime_type, source.filename, owner)
                    record.deadline = deadline
            elif source.image_id is not None:
                image = await asyncio.to_thread(self._records.image, owner, source.image_id)
                data = await self._recorder.read(image.storage_key)
                if store:
                    record = Record(owner, image_id=image.id, deadline=deadline)
            else:
                raise BadInput("send an image: a multipart field 'file', the raw bytes as body, or image_id")
            ask = Ask(data, ask.top_k, ask.renders)
            answered = await self._runner.infer(served.key, ask, deadline)
            metrics.queue_seconds.labels(served.key.name).observe(answered.timing.queue_ms / 1e3)
            metrics.inference_seconds.labels(served.key.name).observe(answered.timing.inference_ms / 1e3)
            return answered, record
        except BaseException:
            if record is not None:
                await self._recorder.abandon(record)
            raise
        finally:
            self._open -= 1

    async def _record(
        self,
        record: Record | None,
        answered: Answered,
        served: Served,
        *,
        parameters: dict[str, Any],
        result: dict[str, Any],
        top: tuple[str, float],
    ) -> RecordIds:
        if record is None:
            return RecordIds()
        answer, spent = answered.answer, answered.timing
        columns = {
            "task": served.task,
            "model_name": served.key.name,
            "model_version": served.key.version,
            "parameters": parameters,
            "result": result,
            "top_class": top[0],
            "top_confidence": top[1],
            "queue_ms": spent.queue_ms,
            "inference_ms": spent.inference_ms,
            "batch_size": spent.batch_size,
        }
        try:
            async with asyncio.timeout(max(record.deadline - time.monotonic(), 0.05)):
                ids = await self._recorder.finish(record, answer.picture, answer.renders, columns)
        except TimeoutError:
            raise DeadlineExceeded("the answer could not be stored before the deadline", retry_after_s=1) from None
        metrics.stored.inc()
        return ids


def _head(ids: RecordIds, served: Served, answer: Answer) -> dict[str, Any]:
    return {
        "id": ids.prediction,
        "model": {"name": served.key.name, "version": served.key.version},
        "image": {"id": ids.image, "width": answer.picture.width, "height": answer.picture.height},
    }
