"""Recording: an answer's image, files and rows are safe before the answer leaves, or none of them is kept."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from db.blobs import BlobStore, new_key
from db.group_commit import Values
from db.job_states import ClaimedItem, ItemResult
from db.records import Records
from db.stored_files import read_whole
from db.tables import Artifact, Image, Prediction, now
from ekiben.errors import Refusal
from ekiben.ids import derived_id, new_id
from models.image_formats.sniffing import EXTENSIONS
from models.results import ImageInfo
from services.concurrency.shielded import shielded

log = logging.getLogger(__name__)

PNG = "image/png"
NPY = "application/x-npy"
_EXTENSIONS = {**EXTENSIONS, NPY: "npy", "application/x-nifti": "nii", "application/gzip": "nii.gz"}
UNDO_PATIENCE_S = 0.5


@dataclass(slots=True)
class StoredBytes:
    """Bytes on their way into the store. ``done`` gives their SHA-256."""

    id: str
    key: str
    mime_type: str
    size: int
    done: asyncio.Future[str]


@dataclass(slots=True)
class Record:
    """What one request leaves behind: begun when its image is here, finished when its answer is.

    ``image_id`` is that of an image that is stored already; ``upload`` an image that came with the request, or with
    the job ``job_id``. ``deadline``: of the request, in ``time.monotonic()`` seconds.
    """

    owner: str
    image_id: str | None = None
    upload: StoredBytes | None = None
    filename: str | None = None
    deadline: float = math.inf
    created_at: datetime = field(default_factory=now)
    prediction_id: str = field(default_factory=new_id)
    job_id: str | None = None


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file that an answer makes. Its ``id`` is chosen here, so that the answer's JSON can name it."""

    id: str
    kind: str
    data: bytes
    mime_type: str


class NewFiles:
    """The files of one answer, in the order in which they are made. Filled by one thread."""

    def __init__(self, next_id: Callable[[], str] = new_id) -> None:
        self._next_id = next_id
        self.all: list[NewFile] = []

    def add(self, kind: str, data: bytes, mime_type: str = PNG) -> NewFile:
        """A file with an id of its own, which is stored with the answer."""
        file = NewFile(self._next_id(), kind, data, mime_type)
        self.all.append(file)
        return file


@dataclass(frozen=True, slots=True)
class RecordIds:
    """Of what was recorded; ``artifacts`` by kind, where a kind stands once. None and empty where nothing is kept."""

    image: str | None = None
    prediction: str | None = None
    artifacts: Mapping[str, str] = field(default_factory=dict)


def image_id_of(item_id: str) -> str:
    """The id of the image that the image of a job's item becomes."""
    return derived_id(item_id, "image")


class Recorder:
    """Writes blobs on a few threads and rows through ``Records``; the event loop only waits."""

    def __init__(self, records: Records, store: BlobStore) -> None:
        self.records = records
        self.store = store
        self._threads = ThreadPoolExecutor(store.parallel, thread_name_prefix="store")
        self._undoing: set[asyncio.Task[None]] = set()

    def begin(self, data: bytes, mime_type: str, filename: str | None, owner: str) -> Record:
        """Start storing an image that came with a request; overlaps the inference."""
        record = Record(owner, filename=filename)
        record.upload = self._put("images", data, mime_type, new_id(), record.created_at)
        return record

    def begin_item(self, item: ClaimedItem, data: bytes, mime_type: str) -> Record:
        """The same for a job's item whose image, ``data``, is in the store since the job was submitted."""
        if item.storage_key is None or item.sha256 is None:
            raise ValueError(f"item {item.id} has no image of its own")
        done: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        done.set_result(item.sha256)
        stored = StoredBytes(image_id_of(item.id), item.storage_key, mime_type, len(data), done)
        record = Record(item.owner, upload=stored, filename=item.filename, created_at=item.created_at)
        return self.of_item(record, item)

    def of_item(self, record: Record, item: ClaimedItem) -> Record:
        """``record``, as that of a job's item."""
        record.prediction_id, record.job_id, record.created_at = item.id, item.job_id, item.created_at
        return record

    async def keep(self, item_id: str, data: bytes, mime_type: str, created_at: datetime) -> StoredBytes:
        """Store the image of a job's item."""
        stored = self._put("images", data, mime_type, image_id_of(item_id), created_at)
        await shielded(stored.done)
        return stored

    def ids(self, record: Record | None, made: Sequence[NewFile]) -> RecordIds:
        """What ``finish`` will store ``record`` and ``made`` under."""
        if record is None:
            return RecordIds()
        image_id = record.upload.id if record.upload is not None else record.image_id
        return RecordIds(image_id, record.prediction_id, {file.kind: file.id for file in made})

    async def finish(
        self,
        record: Record,
        image: ImageInfo,
        made: Sequence[NewFile],
        prediction: dict[str, Any] | None,
        *,
        kept: bool = False,
        then: ItemResult | None = None,
    ) -> RecordIds:
        """Commit image, prediction (its columns) and artifacts in one transaction, in which ``then`` comes last.

        On any failure nothing stays, neither row nor file; only the image of a job's item stays the job's.
        """
        files = [self._put("artifacts", file.data, file.mime_type, file.id, record.created_at) for file in made]
        prediction_id = record.prediction_id if prediction is not None else None
        try:
            rows: list[Values] = []
            image_id = record.image_id
            if record.upload is not None:
                image_id = record.upload.id
                rows.append((Image, await self._image(record, record.upload, image, kept)))
            if prediction is not None:
                own = {"id": prediction_id, "image_id": image_id, "status": "succeeded", "finished_at": now()}
                own["job_id"] = record.job_id
                rows.append((Prediction, {**self._common(record), **own, **prediction}))
            for file, stored in zip(made, files, strict=True):
                own = {"id": file.id, "prediction_id": prediction_id, "kind": file.kind, **await self._stored(stored)}
                rows.append((Artifact, {**self._common(record), **own}))
            saving = asyncio.wrap_future(self.records.save(rows, then))
        except BaseException:
            await self._undo(record, files)
            raise
        try:
            # The caller may leave while the commit is under way; whether it happened decides what becomes of the files.
            await asyncio.shield(saving)
        except BaseException:
            await asyncio.wait([saving])
            if saving.cancelled() or saving.exception() is not None:
                await self._undo(record, files)
            raise
        return RecordIds(image_id, prediction_id, {file.kind: file.id for file in made})

    async def abandon(self, record: Record) -> None:
        """The request failed: remove what was stored for it."""
        await self._undo(record, [])

    async def read(self, key: str, size: int, sha256: str | None) -> bytes:
        """The bytes of a blob, which were stored with that size and SHA-256. NotFound, Damaged, Unavailable."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, read_whole, self.store, key, size, sha256)

    async def read_some(self, blobs: Sequence[tuple[str, int, str | None]]) -> dict[str, bytes]:
        """Those of the blobs (key, size, SHA-256) that can be read now, by their keys, in one go."""

        def read() -> dict[str, bytes]:
            found: dict[str, bytes] = {}
            for key, size, sha256 in blobs:
                with contextlib.suppress(Refusal):  # the one that needs it asks again, and is told
                    found[key] = read_whole(self.store, key, size, sha256)
            return found

        return await asyncio.get_running_loop().run_in_executor(self._threads, read)

    async def delete(self, keys: list[str]) -> None:
        """Remove blobs whose last reference went. What cannot be removed now is logged with its key."""

        def remove() -> None:
            for key in keys:
                try:
                    self.store.delete(key)
                except Exception:
                    log.exception("blob not removed", extra={"key": key})

        await asyncio.get_running_loop().run_in_executor(self._threads, remove)

    async def close(self) -> None:
        """Wait for what is being removed, and end the threads."""
        if self._undoing:
            await asyncio.wait(self._undoing, timeout=10)
        await asyncio.to_thread(self._threads.shutdown)

    def _put(self, area: Any, data: bytes, mime_type: str, ident: str, created_at: datetime) -> StoredBytes:
        key = new_key(area, ident, _EXTENSIONS.get(mime_type, "bin"), created_at)

        def put() -> str:
            self.store.put(key, data, mime_type)
            return hashlib.sha256(data).hexdigest()

        context = contextvars.copy_context()  # the request's id goes into the log lines of the store
        done = asyncio.get_running_loop().run_in_executor(self._threads, context.run, put)
        # Its error is raised where it is awaited; a request that fails earlier must not log it a second time.
        done.add_done_callback(lambda future: future.cancelled() or future.exception())
        return StoredBytes(ident, key, mime_type, len(data), done)

    def _common(self, record: Record) -> dict[str, Any]:
        return {"owner": record.owner, "created_at": record.created_at}

    async def _stored(self, stored: StoredBytes) -> dict[str, Any]:
        sha256 = await shielded(stored.done)
        return {"storage_key": stored.key, "mime_type": stored.mime_type, "bytes": stored.size, "sha256": sha256}

    async def _image(self, record: Record, upload: StoredBytes, image: ImageInfo, kept: bool) -> dict[str, Any]:
        own = {
            "id": upload.id,
            "filename": record.filename,
            "width": image.width,
            "height": image.height,
            "kept": kept,
        }
        return {**self._common(record), **own, **await self._stored(upload)}

    async def _undo(self, record: Record, files: list[StoredBytes]) -> None:
        """Remove what was stored; a store that is slow is waited for in the background, not by the caller.

        Not what a job's item stored: the one that repeats it writes under the same keys, and may have done so already.
        """
        stored = [*files, *([record.upload] if record.upload else [])]
        if not stored or record.job_id is not None:
            return
        task = asyncio.create_task(self._remove(stored))
        self._undoing.add(task)
        task.add_done_callback(self._undoing.discard)
        await asyncio.wait({task}, timeout=UNDO_PATIENCE_S)

    async def _remove(self, stored: list[StoredBytes]) -> None:
        await asyncio.wait([one.done for one in stored])
        await self.delete([one.key for one in stored])
