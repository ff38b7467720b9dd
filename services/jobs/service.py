"""Jobs: submitting, reading and ending work that outlives a request. Free of any transport."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from db.jobs import JobRecords
from db.pages import Page
from db.tables import Artifact, Job, JobEvent, JobItem, Row, now
from db.workers import Workers
from ekiben.errors import BadInput, Conflict, NotFound, Refusal
from ekiben.ids import LOCAL_OWNER, new_id
from ekiben.settings import Settings
from services.inference import operations
from services.inference.context import RequestContext
from services.inference.image_limits import ImageLimits
from services.inference.pipeline import ImageSource
from services.inference.recording import Recorder
from services.inference.volumes import sniff_any
from services.jobs.dbos_queue import JobQueue
from services.jobs.garbage_collection import remove_job
from services.jobs.heartbeat import DEAD_S
from services.jobs.submission import JobTerms, NewItem, entry_count, inference_job, single_job
from services.schemas.inference import InferenceOptions

log = logging.getLogger(__name__)

_UNKNOWN = "application/octet-stream"


class JobService:
    """Submits jobs, reads and ends them. Methods take ``owner``; nothing is found across owners."""

    def __init__(
        self, settings: Settings, records: JobRecords, workers: Workers, queue: JobQueue, recorder: Recorder
    ) -> None:
        self._settings = settings
        self._limits = ImageLimits.of(settings)
        self._records = records
        self._workers = workers
        self._queue = queue
        self._recorder = recorder
        self.stopping = asyncio.Event()
        """Set when this process has to end: it ends the streams of events."""

    def check_image(self, data: bytes, operation: str) -> None:
        """Check an image, or a volume, by its first bytes and their number. BadImage, UnsupportedImage, TooLarge."""
        self._limits.check_file(data, volumes=operations.operation(operation).volumes)

    async def new_item(self, data: bytes, filename: str | None) -> NewItem:
        """Store an image of a job, and make its item. Bytes that are no image are kept too: the item will fail."""
        ident, created_at = new_id(), now()
        try:
            mime_type = sniff_any(data)
        except Refusal:
            mime_type = _UNKNOWN
        stored = await self._recorder.keep(ident, data, mime_type, created_at)
        digest = await stored.done
        columns = {"id": ident, "filename": filename, "storage_key": stored.key, "mime_type": mime_type}
        return NewItem({**columns, "bytes": len(data), "sha256": digest, "created_at": created_at}, digest)

    async def stored_items(self, image_ids: Sequence[str], owner: str = LOCAL_OWNER) -> list[NewItem]:
        """Items of images that are stored already. NotFound names the first that is not."""
        known = await asyncio.to_thread(self._recorder.records.image_ids, owner, image_ids)
        for image_id in image_ids:
            if image_id not in known:
                raise NotFound(f"there is no image {image_id[:80]}")
        return [NewItem({"id": new_id(), "image_id": image_id}, image_id) for image_id in image_ids]

    async def discard(self, items: Sequence[NewItem]) -> None:
        """Remove the images of items that were not submitted."""
        await self._recorder.delete([item.columns["storage_key"] for item in items if "storage_key" in item.columns])

    async def submit(
        self,
        context: RequestContext,
        kind: str,
        operation: str,
        options: InferenceOptions,
        items: Sequence[NewItem],
        terms: JobTerms,
        *,
        store: bool = True,
    ) -> tuple[Job, bool]:
        """Store and queue a job: (the job, True), or the first one with this idempotency key: (it, False).

        Unless the job is new, the images of ``items`` are removed. BadInput; Conflict where the key came with another
        request.
        """
        created = uncertain = False
        try:
            job = await inference_job(context, self._settings, kind, operation, options, items, terms, store=store)
            entries = entry_count(len(items), operations.operation(operation).claim_size)
            # A commit whose response is lost may have happened: then the images are the job's; if not, the garbage
            # collector removes them.
            uncertain = True
            try:
                job, created = await asyncio.to_thread(self._store, job, [item.columns for item in items], entries)
                uncertain = False
            except Conflict:
                uncertain = False
                raise
            return job, created
        finally:
            if not created and not uncertain:
                await self.discard(items)

    async def submit_image(
        self,
        context: RequestContext,
        operation: str,
        options: InferenceOptions,
        source: ImageSource,
        terms: JobTerms,
    ) -> tuple[Job, bool]:
        """Submit a request of one image as a job, as ``submit`` does. BadInput, too, for what is no image."""
        if source.data is not None and source.image_id is not None:
            raise BadInput("send a file or image_id, not both")
        if source.image_id is not None:
            items = await self.stored_items([source.image_id], context.owner)
        elif source.data is not None:
            self.check_image(source.data, operation)
            items = [await self.new_item(source.data, source.filename)]
        else:
            raise BadInput("send an image: a multipart field 'file', the raw bytes as body, or image_id")
        return await self.submit(context, "request", operation, options, items, terms, store=options.store)

    async def submit_single(
        self,
        kind: str,
        operation: str,
        parameters: dict[str, Any],
        terms: JobTerms,
        *,
        given: Any,
        job_id: str | None = None,
        item: dict[str, Any] | None = None,
        rows: Sequence[Row] = (),
        timeout_s: float | None = None,
        owner: str = LOCAL_OWNER,
    ) -> tuple[Job, bool]:
        """Store and queue a job of one long piece of work: (the job, whether it is new), as ``submit``.

        ``rows`` are stored with it. ``given``: the request as JSON, by which a repeated one is recognized.
        """
        job = await single_job(
            self._settings,
            kind,
            operation,
            parameters,
            terms,
            owner=owner,
            given=given,
            job_id=job_id,
            timeout_s=timeout_s,
        )
        columns = {"id": new_id(), "created_at": job.created_at, **(item or {})}
        return await asyncio.to_thread(self._store, job, [columns], 1, rows)

    def _store(
        self, job: Job, items: Sequence[dict[str, Any]], entries: int, rows: Sequence[Row] = ()
    ) -> tuple[Job, bool]:
        self._queue.open()
        return self._records.submit(job, items, entries, self._queue.enqueue, rows)

    async def job(self, id: str, *, owner: str = LOCAL_OWNER) -> tuple[Job, int]:
        """The job, and how many of its items are claimed by a worker. NotFound."""
        job = await asyncio.to_thread(self._records.job, owner, id)
        if job.state != "running":
            return job, 0
        return job, (await asyncio.to_thread(self._records.running, [id])).get(id, 0)

    async def jobs(
        self, state: str | None, kind: str | None, page: int, limit: int, *, owner: str = LOCAL_OWNER
    ) -> tuple[Page[Job], dict[str, int]]:
        """Jobs, newest first, and by job id how many items are claimed."""

        def read() -> tuple[Page[Job], dict[str, int]]:
            found = self._records.jobs(owner, state, kind, page, limit)
            return found, self._records.running([job.id for job in found.items if job.state == "running"])

        return await asyncio.to_thread(read)

    async def items(
        self, id: str, state: str | None, page: int, limit: int, *, owner: str = LOCAL_OWNER
    ) -> tuple[Page[JobItem], dict[str, dict[str, Any]]]:
        """Items in the order of the request, and by item id the results of those that have one. NotFound."""
        return await asyncio.to_thread(self.read_items, owner, id, state, page, limit)

    def read_items(
        self, owner: str, id: str, state: str | None, page: int, limit: int
    ) -> tuple[Page[JobItem], dict[str, dict[str, Any]]]:
        """As ``items``; blocks."""
        job = self._records.job(owner, id)
        found = self._records.items(owner, id, state, page, limit)
        stored = self._records.answers(owner, found.items) if job.store else {}
        results: dict[str, dict[str, Any]] = {}
        for item in found.items:
            # A stored prediction may have been deleted since; what was not stored is all in the item.
            if item.state == "succeeded" and item.result is not None and (item.id in stored or not job.store):
                results[item.id] = {**item.result, **stored.get(item.id, {})}
        return found, results

    def files(self, owner: str, items: Sequence[JobItem]) -> dict[str, list[Artifact]]:
        """By item id, the artifacts of their results. Blocks."""
        return self._records.artifacts(owner, items)

    async def events(self, id: str, after: int, *, owner: str = LOCAL_OWNER) -> tuple[list[JobEvent], bool]:
        """The events numbered above ``after``, and whether the job is over, so that none will follow. NotFound."""
        return await asyncio.to_thread(self._records.events, owner, id, after)

    async def cancel(self, id: str, *, owner: str = LOCAL_OWNER) -> Job:
        """Cancel a job; the job as it is then. NotFound; Conflict when it is over."""
        job = await asyncio.to_thread(self._records.cancel, owner, id)
        await asyncio.to_thread(self._queue.withdraw, job)
        return job

    async def retry(self, id: str, *, owner: str = LOCAL_OWNER) -> Job:
        """Queue the items again that did not succeed; the job as it is then.

        NotFound; Conflict when it is not over, or all succeeded.
        """
        known = operations.OPERATIONS.get((await asyncio.to_thread(self._records.job, owner, id)).operation)
        claim_size = known.claim_size if known is not None else 1
        await asyncio.to_thread(self._queue.open)
        return await asyncio.to_thread(
            self._records.retry, owner, id, lambda items: entry_count(items, claim_size), self._queue.enqueue
        )

    async def delete(self, id: str, *, owner: str = LOCAL_OWNER) -> None:
        """Remove a job that is over, with its results and artifacts. NotFound; Conflict when it is not over."""
        loop = asyncio.get_running_loop()

        def delete(keys: list[str]) -> None:
            asyncio.run_coroutine_threadsafe(self._recorder.delete(keys), loop).result()

        await asyncio.to_thread(remove_job, self._records, self._queue, owner, id, delete)

    def check_workers(self) -> int:
        """How many workers are alive, on all machines. Blocks."""
        return len(self._workers.alive(DEAD_S))

    def worker_ended(self, worker_id: str) -> None:
        """Record that a worker's process has ended, so that others need not wait for its heartbeat to be overdue.

        Blocks.
        """
        try:
            self._workers.fail_worker(worker_id)
        except Refusal as error:
            log.warning("a dead worker was not signed off: %s", error)  # its heartbeat will be overdue

    def counts(self) -> dict[tuple[str, str], int]:
        """How many jobs are not over, by kind and state. Blocks."""
        return self._records.counts()
