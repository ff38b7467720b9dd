"""Jobs: the transport-free core of work that outlives a request, beside Vision and Masks."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from db.jobs import JobRecords
from db.pages import Page
from db.tables import Artifact, Job, JobEvent, JobItem, Row, now
from db.workers import Workers
from ekiben.errors import BadInput, Conflict, NotFound, Refusal
from ekiben.ids import LOCAL_OWNER, new_id
from ekiben.settings import Settings
from models.images import sniff
from services.inference import operations
from services.inference.context import RequestContext
from services.inference.pipeline import ImageSource
from services.inference.recording import Recorder
from services.inference.volumes import sniff_any
from services.jobs.dbos_queue import JobQueue
from services.jobs.garbage_collection import remove_job
from services.jobs.webhooks import check_url
from services.schemas.inference import InferenceOptions

log = logging.getLogger(__name__)

MAX_ITEMS = 100_000
MAX_ENTRIES = 8
"""Workers that may be at one batch at a time; a worker with free places takes several of its hands."""

ALIVE_S = 8.0
_UNKNOWN = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class JobTerms:
    """How a job is asked for. ``priority`` 0-9, the highest first. ``timeout_s`` None: EKIBEN_JOB_TIMEOUT_S.

    ``items_at_once``: of the job, in all workers together; None: as many as they have places.
    """

    priority: int = 5
    timeout_s: float | None = None
    items_at_once: int | None = None
    webhook: str | None = None
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class NewItem:
    """An image of a job that is about to be submitted; ``columns`` of its row."""

    columns: dict[str, Any]
    digest: str


class JobService:
    """Submits and shows jobs. All methods take ``owner``; nothing is found across owners."""

    def __init__(
        self, settings: Settings, records: JobRecords, workers: Workers, queue: JobQueue, recorder: Recorder
    ) -> None:
        self._settings = settings
        self._records = records
        self._workers = workers
        self._queue = queue
        self._recorder = recorder
        self.stopping = asyncio.Event()
        """Set when this process is asked to end: streams of events end too."""

    def check_image(self, data: bytes, operation: str) -> None:
        """What can be said of an image, or a volume, at once. BadImage, UnsupportedImage."""
        (sniff_any if operations.operation(operation).volumes else sniff)(data)

    async def new_item(self, data: bytes, filename: str | None) -> NewItem:
        """Store an image that came with a job. What is no image is kept as well: its item will say so."""
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

    def failed_item(self, filename: str | None, error: Refusal) -> NewItem:
        """An item that cannot even be tried."""
        said = {"code": error.code, "message": error.message}
        columns = {"id": new_id(), "filename": filename, "state": "failed", "finished_at": now(), "error": said}
        return NewItem(columns, error.message)

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
        """Store and queue a job: (the job, True), or the first that came with this idempotency key: (it, False).

        Unless the job is new, the images of ``items`` are removed.
        """
        created = uncertain = False
        try:
            chosen = operations.operation(operation)
            if not items:
                raise BadInput("there is no image: send files, an archive or image_ids")
            if len(items) > MAX_ITEMS:
                raise BadInput(f"{len(items)} images; a batch has at most {MAX_ITEMS}")
            failed = [item for item in items if item.columns.get("state") == "failed"]
            if len(failed) == len(items):
                raise BadInput(f"no image can be tried; the first: {failed[0].columns['error']['message']}")
            if terms.webhook is not None:
                check_url(terms.webhook, self._settings.webhook_secret)
            parameters = await operations.resolve_parameters(context, chosen, options)
            given = options.model_dump(mode="json", exclude_unset=True, exclude={"image_id", "store"})
            if isinstance(given.get("prompts"), list):  # as the fingerprints of earlier versions have them
                given["prompts"] = orjson.dumps(given["prompts"]).decode()
            job = Job(
                owner=context.owner,
                kind=kind,
                operation=operation,
                priority=terms.priority,
                parameters=parameters,
                store=store,
                total=len(items),
                failed=len(failed),
                timeout_s=terms.timeout_s or self._settings.job_timeout_s,
                items_at_once=terms.items_at_once,
                idempotency_key=terms.idempotency_key,
                fingerprint=_fingerprint(kind, operation, given, store, items),
                webhook_url=terms.webhook,
            )
            entries = self._entries(len(items), chosen.claim_size)
            # A commit whose answer is lost may have happened: then the images are the job's; if not, clean-up's.
            uncertain = True
            try:
                job, created = await asyncio.to_thread(
                    self._records.submit, job, [item.columns for item in items], entries, self._queue.enqueue
                )
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
        """A request that becomes a job, as ``submit``. BadInput for what is no image."""
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
        """Store and queue a job of one long piece of work: (the job, True), or as ``submit``.

        ``rows`` are stored with it. ``given``: what was asked, by which a repeated request is known.
        """
        if terms.webhook is not None:
            check_url(terms.webhook, self._settings.webhook_secret)
        job = Job(
            id=job_id or new_id(),
            owner=owner,
            kind=kind,
            operation=operation,
            priority=terms.priority,
            parameters=parameters,
            store=False,
            total=1,
            timeout_s=terms.timeout_s or timeout_s or self._settings.job_timeout_s,
            idempotency_key=terms.idempotency_key,
            fingerprint=_fingerprint(kind, operation, given, False, ()),
            webhook_url=terms.webhook,
        )
        columns = {"id": new_id(), "created_at": job.created_at, **(item or {})}
        return await asyncio.to_thread(self._records.submit, job, [columns], 1, self._queue.enqueue, rows)

    async def job(self, id: str, *, owner: str = LOCAL_OWNER) -> tuple[Job, int]:
        """The job, and how many of its items are in a worker's hand. NotFound."""
        job = await asyncio.to_thread(self._records.job, owner, id)
        if job.state != "running":
            return job, 0
        return job, (await asyncio.to_thread(self._records.running, [id])).get(id, 0)

    async def jobs(
        self, state: str | None, kind: str | None, page: int, limit: int, *, owner: str = LOCAL_OWNER
    ) -> tuple[Page[Job], dict[str, int]]:
        """Newest first, and how many items of each are in hand."""

        def read() -> tuple[Page[Job], dict[str, int]]:
            found = self._records.jobs(owner, state, kind, page, limit)
            return found, self._records.running([job.id for job in found.items if job.state == "running"])

        return await asyncio.to_thread(read)

    async def items(
        self, id: str, state: str | None, page: int, limit: int, *, owner: str = LOCAL_OWNER
    ) -> tuple[Page[JobItem], dict[str, dict[str, Any]]]:
        """Items in the order in which they were given, and by item id the answers of those that have one."""
        return await asyncio.to_thread(self.read_items, owner, id, state, page, limit)

    def read_items(
        self, owner: str, id: str, state: str | None, page: int, limit: int
    ) -> tuple[Page[JobItem], dict[str, dict[str, Any]]]:
        """The same, blocking."""
        job = self._records.job(owner, id)
        found = self._records.items(owner, id, state, page, limit)
        kept = self._records.answers(owner, found.items) if job.store else {}
        answers: dict[str, dict[str, Any]] = {}
        for item in found.items:
            # An answer that was stored and then deleted is gone; one that was not stored is all in the item.
            if item.state == "succeeded" and item.result is not None and (item.id in kept or not job.store):
                answers[item.id] = {**item.result, **kept.get(item.id, {})}
        return found, answers

    def files(self, owner: str, items: Sequence[JobItem]) -> dict[str, list[Artifact]]:
        """By item id, the files of their answers. Blocks."""
        return self._records.artifacts(owner, items)

    async def events(self, id: str, after: int, *, owner: str = LOCAL_OWNER) -> tuple[list[JobEvent], bool]:
        """The events numbered above ``after``, and whether none will follow."""
        return await asyncio.to_thread(self._records.events, owner, id, after)

    async def cancel(self, id: str, *, owner: str = LOCAL_OWNER) -> Job:
        """The job, which is cancelled now. Conflict when it was over."""
        job = await asyncio.to_thread(self._records.cancel, owner, id)
        await asyncio.to_thread(self._queue.withdraw, job)
        return job

    async def retry(self, id: str, *, owner: str = LOCAL_OWNER) -> Job:
        """The job, all of whose items that did not succeed wait again. Conflict."""
        known = operations.OPERATIONS.get((await asyncio.to_thread(self._records.job, owner, id)).operation)
        claim_size = known.claim_size if known is not None else 1
        return await asyncio.to_thread(
            self._records.retry, owner, id, lambda items: self._entries(items, claim_size), self._queue.enqueue
        )

    async def delete(self, id: str, *, owner: str = LOCAL_OWNER) -> None:
        """Remove a job that is over, with its results and files. Conflict."""
        loop = asyncio.get_running_loop()

        def delete(keys: list[str]) -> None:
            asyncio.run_coroutine_threadsafe(self._recorder.delete(keys), loop).result()

        await asyncio.to_thread(remove_job, self._records, self._queue, owner, id, delete)

    def check_workers(self) -> int:
        """How many workers live, on all machines."""
        return len(self._workers.alive(ALIVE_S))

    def worker_ended(self, worker_id: str) -> None:
        """A worker's process is known to have ended: what it had in hand need not wait until it is missed. Blocks."""
        try:
            self._workers.fail_worker(worker_id)
        except Refusal as error:
            log.warning("a dead worker was not signed off: %s", error)  # it will be missed

    def counts(self) -> dict[tuple[str, str], int]:
        """Jobs that are not over, by kind and state."""
        return self._records.counts()

    def _entries(self, items: int, claim_size: int) -> int:
        return min(MAX_ENTRIES, -(-items // claim_size))


def _fingerprint(kind: str, operation: str, given: Any, store: bool, items: Sequence[NewItem]) -> str:
    requested = [kind, operation, given, store, [[item.columns.get("filename"), item.digest] for item in items]]
    return hashlib.sha256(orjson.dumps(requested, option=orjson.OPT_SORT_KEYS)).hexdigest()
