"""Requests: what every operation does around its inference - the image's bytes, the bounds, the record."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from db.job_states import ClaimedItem, ItemResult
from db.records import Records
from ekiben.errors import BadInput, DeadlineExceeded, NotFound, Overloaded
from models.images import sniff
from models.results import ImageInfo, Timing
from services import metrics
from services.inference.recording import NewFile, Record, Recorder, RecordIds
from services.model_registry.index import ServableModel

A = TypeVar("A")


@dataclass(frozen=True, slots=True)
class ImageSource:
    """The image of a request: its bytes, or the id of a stored image; or the item of a job.

    ``timeout_s``: how long its caller waits, where that is said; the deadline of requests holds besides. ``told``: is
    given the id of the prediction before it is committed, so that a caller of many can take it back.
    """

    data: bytes | None = None
    filename: str | None = None
    image_id: str | None = None
    item: JobItemSource | None = None
    timeout_s: float | None = None
    told: Callable[[str], None] | None = None


@dataclass(frozen=True, slots=True)
class JobItemSource:
    """An item that a worker has in hand: it is answered as a request, and ended in the same transaction.

    ``computed`` is called when its answer is there and only has to be stored. ``data``: its image, if it was read.
    """

    item: ClaimedItem
    worker_id: str
    timeout_s: float
    computed: Callable[[], None] = lambda: None
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class PendingAnswer:
    """An answer's image and what is to become of it. ``record`` is None where nothing is stored."""

    data: bytes
    record: Record | None
    deadline: float
    item: JobItemSource | None = None
    told: Callable[[str], None] | None = None


class InferencePipeline:
    """Opens and closes the requests of one process."""

    def __init__(self, records: Records, recorder: Recorder, max_open: int = 4096) -> None:
        self.records = records
        self.recorder = recorder
        self._max_open = max_open
        self._open = 0

    async def infer(
        self,
        source: ImageSource,
        served: ServableModel,
        infer: Callable[[bytes, float], Awaitable[tuple[A, Timing]]],
        *,
        store: bool,
        owner: str,
        timeout_s: float,
        sniff: Callable[[bytes], str] = sniff,
    ) -> tuple[A, Timing, PendingAnswer]:
        """The answer of ``infer(image bytes, deadline)``; storing the image overlaps it.

        ``sniff`` gives the MIME type of what can be asked about, and refuses the rest. When it fails, or the caller
        leaves, nothing stays stored.
        """
        limit_s = source.item.timeout_s if source.item is not None else timeout_s
        deadline = time.monotonic() + min(limit_s, source.timeout_s if source.timeout_s is not None else limit_s)
        record: Record | None = None
        try:
            with self._counted(served) as spent:
                data, record = await self._begin(source, store, owner, deadline, sniff)
                answer, timing = await infer(data, deadline)
                spent(timing)
            return answer, timing, PendingAnswer(data, record, deadline, source.item, source.told)
        except BaseException:
            if record is not None:
                await self.recorder.abandon(record)
            raise

    async def compute(
        self, served: ServableModel, infer: Callable[[float], Awaitable[tuple[A, Timing]]], timeout_s: float
    ) -> tuple[A, Timing]:
        """The answer of ``infer(deadline)``, of which nothing is recorded."""
        with self._counted(served) as spent:
            answer, timing = await infer(time.monotonic() + timeout_s)
            spent(timing)
        return answer, timing

    @contextlib.contextmanager
    def _counted(self, served: ServableModel) -> Iterator[Callable[[Timing], None]]:
        """One open request; it calls what it is given when it has its answer. Overloaded when too many are open."""
        if self._open >= self._max_open:
            raise Overloaded(f"{self._open} requests are open", retry_after_s=1)
        self._open += 1
        began = time.perf_counter()

        def spent(timing: Timing) -> None:
            metrics.queue_seconds.labels(served.key.name).observe(timing.queue_ms / 1e3)
            metrics.inference_seconds.labels(served.key.name).observe(timing.inference_ms / 1e3)
            # Images of one size share a run; what is answered in several runs counts as one.
            share = 1 / timing.batch_size if served.family in ("classifier", "segmenter") else 1.0
            metrics.model_served(served.key.name, served.key.version, time.perf_counter() - began, timing, share)

        try:
            yield spent
        except Exception:
            metrics.model_failed(served.key.name, served.key.version, time.perf_counter() - began)
            raise
        finally:
            self._open -= 1

    async def record(
        self,
        pending: PendingAnswer,
        served: ServableModel,
        image: ImageInfo,
        timing: Timing,
        body: Callable[[RecordIds], dict[str, Any]],
        *,
        parameters: dict[str, Any],
        result: dict[str, Any],
        task: str | None = None,
        files: Sequence[NewFile] = (),
        top: tuple[str | None, float | None] = (None, None),
    ) -> dict[str, Any]:
        """The answer, ``body`` with the ids of what is stored, once that is committed.

        Row and files are committed before the deadline, or nothing of them stays. ``result``: the part of the answer
        that the row keeps.
        """
        ids = self.recorder.ids(pending.record, files)
        answer = body(ids)
        if pending.told is not None and ids.prediction is not None:
            pending.told(ids.prediction)
        then = None
        if pending.item is not None:
            pending.item.computed()
            then = _item_result(pending.item, ids, answer, () if pending.record is None else result)
        columns = {
            "task": task or served.task,
            "model_name": served.key.name,
            "model_version": served.key.version,
            "parameters": parameters,
            "result": result,
            "top_class": top[0],
            "top_confidence": top[1],
            "queue_ms": timing.queue_ms,
            "inference_ms": timing.inference_ms,
            "batch_size": timing.batch_size,
        }
        try:
            async with asyncio.timeout(max(pending.deadline - time.monotonic(), 0.05)):
                if pending.record is not None:
                    await self.recorder.finish(pending.record, image, files, columns, then=then)
                elif then is not None:
                    await asyncio.shield(asyncio.wrap_future(self.records.save([], then)))
        except TimeoutError:
            raise DeadlineExceeded("the answer could not be stored before the deadline", retry_after_s=1) from None
        if pending.record is not None:
            metrics.stored.inc()
        return answer

    async def abandon(self, pending: PendingAnswer) -> None:
        """What follows the inference failed: nothing stays stored."""
        if pending.record is not None:
            await self.recorder.abandon(pending.record)

    async def _begin(
        self, source: ImageSource, store: bool, owner: str, deadline: float, sniff: Callable[[bytes], str]
    ) -> tuple[bytes, Record | None]:
        if source.item is not None:
            return await self._begin_item(source.item.item, source.item.data, store, sniff)
        if source.data is not None:
            if source.image_id is not None:
                raise BadInput("send a file or image_id, not both")
            mime_type = sniff(source.data)
            if not store:
                return source.data, None
            record = self.recorder.begin(source.data, mime_type, source.filename, owner)
            record.deadline = deadline
            return source.data, record
        if source.image_id is None:
            raise BadInput("send an image: a multipart field 'file', the raw bytes as body, or image_id")
        image = await asyncio.to_thread(self.records.image, owner, source.image_id)
        data = await self.recorder.read(image.storage_key)
        return data, Record(owner, image_id=image.id, deadline=deadline) if store else None

    async def _begin_item(
        self, item: ClaimedItem, data: bytes | None, store: bool, sniff: Callable[[bytes], str]
    ) -> tuple[bytes, Record | None]:
        if item.image_id is not None:
            image = await asyncio.to_thread(self.records.image, item.owner, item.image_id)
            data = await self.recorder.read(image.storage_key)
            return data, self.recorder.of_item(Record(item.owner, image_id=image.id), item) if store else None
        if item.storage_key is None:
            raise NotFound("the image of this item is gone")
        if data is None:
            data = await self.recorder.read(item.storage_key)
        mime_type = sniff(data)
        return data, self.recorder.begin_item(item, data, mime_type) if store else None


def _item_result(source: JobItemSource, ids: RecordIds, answer: dict[str, Any], kept: Collection[str]) -> ItemResult:
    """``kept``: what of the answer the prediction's row has."""
    rest = {name: value for name, value in answer.items() if name not in kept}
    item = source.item
    image_id = ids.image if item.image_id is None else None
    return ItemResult(item.job_id, item.id, source.worker_id, result=rest, image_id=image_id)
