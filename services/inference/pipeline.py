"""What every operation does around its inference: the image's bytes, the bounds, the metrics, the record."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from db.job_states import ClaimedItem, ItemResult
from db.records import Records
from ekiben.errors import BadInput, DeadlineExceeded, NotFound, Overloaded
from ekiben.ids import derived_id, new_id
from models.catalog import family_row
from models.images import with_range
from models.inference_requests import AutoMaskResponse, InferenceResponse, MaskResponse
from models.results import ImageInfo, Timing, ValueRange
from services import metrics
from services.concurrency.shielded import shielded
from services.concurrency.until_stop import UntilStop
from services.inference.decode_threads import DecodeThreads
from services.inference.image_limits import ImageLimits
from services.inference.recording import NewFiles, Record, Recorder, RecordIds
from services.inference.value_range import wanted_range
from services.model_registry.index import ServableModel
from services.schemas.body import Body, to_dict

A = TypeVar("A", bound="InferenceResponse | MaskResponse | AutoMaskResponse")
BodyT = TypeVar("BodyT", bound=Body)


@dataclass(frozen=True, slots=True)
class ImageSource:
    """The image of a request: its bytes, or the id of a stored image; or the item of a job."""

    data: bytes | None = None
    filename: str | None = None
    image_id: str | None = None
    item: JobItemSource | None = None


@dataclass(frozen=True, slots=True)
class JobItemSource:
    """An item that a worker has claimed: it is answered as a request, and ended in the same transaction.

    ``on_computed`` is called when its answer is there and only has to be stored. ``data``: its image, if it was read.
    """

    item: ClaimedItem
    worker_id: str
    timeout_s: float
    on_computed: Callable[[], None] = lambda: None
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class PendingAnswer:
    """An image that has been inferred, until its answer is recorded.

    ``record`` is None where nothing is stored. ``files``: takes the files that the answer makes. ``deadline`` is in
    ``time.monotonic()`` seconds.
    """

    data: bytes
    record: Record | None
    deadline: float
    files: NewFiles
    item: JobItemSource | None = None


class InferencePipeline:
    """Opens and closes the requests of one process. ``decoding``: of images outside its models."""

    def __init__(
        self,
        records: Records,
        recorder: Recorder,
        decoding: DecodeThreads,
        max_open: int = 4096,
        limits: ImageLimits | None = None,
    ) -> None:
        self.records = records
        self.recorder = recorder
        self.decoding = decoding
        self.limits = limits or ImageLimits()
        self._max_open = max_open
        self._open = 0
        self.until_stop = UntilStop()

    async def infer(
        self,
        source: ImageSource,
        servable: ServableModel,
        infer: Callable[[bytes, float], Awaitable[tuple[A, Timing]]],
        *,
        store: bool,
        owner: str,
        timeout_s: float,
        caller_timeout_s: float | None = None,
        value_range: ValueRange | None = None,
        volumes: bool = False,
    ) -> tuple[A, Timing, PendingAnswer]:
        """The answer of ``infer(image bytes, deadline)``; storing the image overlaps it.

        ``volumes``: they can be answered, too. ``value_range``: the values that are black and white; the bytes are then
        those of an 8-bit image. When it fails, or the caller leaves, nothing stays stored.
        """
        limit_s = source.item.timeout_s if source.item is not None else timeout_s
        deadline = time.monotonic() + min(limit_s, caller_timeout_s if caller_timeout_s is not None else limit_s)
        record: Record | None = None
        try:
            with self._counted(servable) as observe:
                data, record = await self._begin(source, store, owner, deadline, volumes)
                wanted = wanted_range(data, value_range, servable.value_range)
                if wanted is not None:
                    data, shown = await self.decoding.run(partial(with_range, data, wanted), data, deadline)
                async with self.until_stop.scope():
                    answer, timing = await infer(data, deadline)
                if wanted is not None:
                    answer = replace(answer, image=replace(answer.image, value_range=shown))
                observe(timing)
            return answer, timing, PendingAnswer(data, record, deadline, NewFiles(_file_ids(source.item)), source.item)
        except BaseException:
            if record is not None:
                await self.recorder.abandon(record)
            raise

    async def compute(
        self, servable: ServableModel, infer: Callable[[float], Awaitable[tuple[A, Timing]]], timeout_s: float
    ) -> tuple[A, Timing]:
        """The answer of ``infer(deadline)``, of which nothing is recorded."""
        with self._counted(servable) as observe:
            async with self.until_stop.scope():
                answer, timing = await infer(time.monotonic() + timeout_s)
            observe(timing)
        return answer, timing

    @contextlib.contextmanager
    def _counted(self, servable: ServableModel) -> Iterator[Callable[[Timing], None]]:
        """One open request; the function that it gives takes the timing of its answer. Overloaded when too many are
        open."""
        if self._open >= self._max_open:
            raise Overloaded(f"{self._open} requests are open", retry_after_s=1)
        self._open += 1
        began = time.perf_counter()

        def observe(timing: Timing) -> None:
            metrics.queue_seconds.labels(servable.key.name).observe(timing.queue_ms / 1e3)
            metrics.inference_seconds.labels(servable.key.name).observe(timing.inference_ms / 1e3)
            # Images of one size share a run; what is answered in several runs counts as one.
            share = 1 / timing.batch_size if family_row(servable.family).shares_runs else 1.0
            metrics.model_served(servable.key.name, servable.key.version, time.perf_counter() - began, timing, share)

        try:
            yield observe
        except Exception:
            metrics.model_failed(servable.key.name, servable.key.version, time.perf_counter() - began)
            raise
        finally:
            self._open -= 1

    async def record(
        self,
        pending: PendingAnswer,
        servable: ServableModel,
        image: ImageInfo,
        timing: Timing,
        body: Callable[[RecordIds], BodyT],
        *,
        task: str,
        result_field: str,
        parameters: Mapping[str, Any],
        top: tuple[str | None, float | None] = (None, None),
        on_recorded: Callable[[str], None] | None = None,
    ) -> BodyT:
        """The answer, ``body`` with the ids of what is stored, once that is committed.

        Row and files are committed before the deadline, or nothing of them stays. ``result_field``: the part of the
        answer that the row keeps. TooLarge for an image beyond the limits of the settings.
        """
        async with self.abandoning(pending):
            self.limits.check_size(image.width, image.height)
        ids = self.recorder.ids(pending.record, pending.files.all)
        answer = body(ids)
        if on_recorded is not None and ids.prediction is not None:
            on_recorded(ids.prediction)
        result: dict[str, Any] = {}
        if pending.record is not None:
            result = {result_field: to_dict(getattr(answer, result_field))}
        item_result = None
        if pending.item is not None:
            pending.item.on_computed()
            item_result = _item_result(pending.item, ids, to_dict(answer), result)
        columns = {
            "task": task,
            "model_name": servable.key.name,
            "model_version": servable.key.version,
            "parameters": dict(parameters),
            "result": result,
            "top_class": top[0],
            "top_confidence": top[1],
            "queue_ms": timing.queue_ms,
            "inference_ms": timing.inference_ms,
            "batch_size": timing.batch_size,
            "value_range": list(image.value_range or ()),
        }
        try:
            async with asyncio.timeout(max(pending.deadline - time.monotonic(), 0.05)):
                if pending.record is not None:
                    await self.recorder.finish(pending.record, image, pending.files.all, columns, then=item_result)
                elif item_result is not None:
                    await shielded(asyncio.wrap_future(self.records.save([], item_result)))
        except TimeoutError:
            raise DeadlineExceeded("the answer could not be stored before the deadline", retry_after_s=1) from None
        if pending.record is not None:
            metrics.stored.inc()
        return answer

    @contextlib.asynccontextmanager
    async def abandoning(self, pending: PendingAnswer) -> Any:
        """What fails inside leaves nothing stored of the answer."""
        try:
            yield
        except BaseException:
            if pending.record is not None:
                await self.recorder.abandon(pending.record)
            raise

    @contextlib.asynccontextmanager
    async def drawing(self, pending: PendingAnswer) -> AsyncIterator[None]:
        """Waits until there is memory to decode the image and to draw on it."""
        async with self.decoding.lease(pending.data, pending.deadline):
            yield

    async def forget(self, predictions: list[str], *, owner: str) -> None:
        """Remove predictions that were recorded, for what they were part of has failed."""
        for id in predictions:
            with contextlib.suppress(NotFound):
                keys = await asyncio.to_thread(self.records.delete_prediction, owner, id)
                await self.recorder.delete(keys)

    async def _begin(
        self, source: ImageSource, store: bool, owner: str, deadline: float, volumes: bool
    ) -> tuple[bytes, Record | None]:
        if source.item is not None:
            return await self._begin_item(source.item.item, source.item.data, store, volumes)
        if source.data is not None:
            if source.image_id is not None:
                raise BadInput("send a file or image_id, not both")
            mime_type = await self.limits.checked(source.data, volumes=volumes)
            if not store:
                return source.data, None
            record = self.recorder.begin(source.data, mime_type, source.filename, owner)
            record.deadline = deadline
            return source.data, record
        if source.image_id is None:
            raise BadInput("send an image: a multipart field 'file', the raw bytes as body, or image_id")
        image = await asyncio.to_thread(self.records.image, owner, source.image_id)
        data = await self.recorder.read(image.storage_key, image.bytes, image.sha256)
        return data, Record(owner, image_id=image.id, deadline=deadline) if store else None

    async def _begin_item(
        self, item: ClaimedItem, data: bytes | None, store: bool, volumes: bool
    ) -> tuple[bytes, Record | None]:
        if item.image_id is not None:
            image = await asyncio.to_thread(self.records.image, item.owner, item.image_id)
            data = await self.recorder.read(image.storage_key, image.bytes, image.sha256)
            return data, self.recorder.of_item(Record(item.owner, image_id=image.id), item) if store else None
        if item.storage_key is None:
            raise NotFound("the image of this item is gone")
        if data is None:
            data = await self.recorder.read(item.storage_key, item.bytes, item.sha256)
        mime_type = await self.limits.checked(data, volumes=volumes)
        return data, self.recorder.begin_item(item, data, mime_type) if store else None


def _file_ids(item: JobItemSource | None) -> Callable[[], str]:
    """Ids of the files that an answer makes. Of a job's item they are derived from it: when it is repeated it writes
    over what it wrote before."""
    if item is None:
        return new_id
    item_id, numbers = item.item.id, itertools.count()
    return lambda: derived_id(item_id, "file", next(numbers))


def _item_result(
    source: JobItemSource, ids: RecordIds, answer: Mapping[str, Any], recorded: Mapping[str, Any]
) -> ItemResult:
    """The end of a job's item. ``recorded``: what of the answer the prediction's row has; the item has the rest."""
    rest = {name: value for name, value in answer.items() if name not in recorded}
    item = source.item
    image_id = ids.image if item.image_id is None else None
    return ItemResult(item.job_id, item.id, source.worker_id, result=rest, image_id=image_id)
