"""Recording: an answer's image, files and rows are safe before the answer leaves, or none of them is kept."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from db.blobs import BlobStore, new_key
from db.records import Records
from db.tables import Artifact, Image, Prediction
from ekiben.ids import new_id
from models.images import EXTENSIONS
from models.results import PictureFacts

log = logging.getLogger(__name__)

_PNG = "image/png"


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
    """What one request leaves behind: begun when its image is here, finished when its answer is."""

    owner: str
    image: Image | None = None
    upload: StoredBytes | None = None
    filename: str | None = None
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))


class Recorder:
    """Writes blobs on a few threads and rows through ``Records``; the event loop only waits."""

    def __init__(self, records: Records, store: BlobStore) -> None:
        self.records = records
        self.store = store
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="store")

    def begin(self, data: bytes, mime_type: str, filename: str | None, owner: str) -> Record:
        """Start storing an image that came with a request; overlaps the inference."""
        stored = self._put("images", data, mime_type)
        return Record(owner, upload=stored, filename=filename)

    async def finish(
        self,
        record: Record,
        picture: PictureFacts,
        renders: Mapping[str, bytes],
        prediction: dict[str, Any] | None,
        *,
        kept: bool = False,
    ) -> tuple[Image, Prediction | None, dict[str, str]]:
        """Commit image, prediction (its columns) and artifacts in one transaction.

        Gives the rows and, per render, its artifact id. On any failure nothing stays, neither row nor file.
        """
        files = {kind: self._put("artifacts", data, _PNG) for kind, data in renders.items()}
        try:
            rows: list[Any] = []
            image = record.image
            if image is None:
                image = await self._image_row(record, picture, kept)
                rows.append(image)
            row = None
            if prediction is not None:
                row = Prediction(
                    owner=record.owner,
                    image_id=image.id,
                    created_at=record.created_at,
                    status="succeeded",
                    **prediction,
                )
                rows.append(row)
            for kind, stored in files.items():
                rows.append(
                    Artifact(
                        id=stored.id,
                        owner=record.owner,
                        prediction_id=row.id if row else None,
                        kind=kind,
                        storage_key=stored.key,
                        mime_type=stored.mime_type,
                        bytes=stored.size,
                        sha256=await stored.done,
                    )
                )
            saving = asyncio.wrap_future(self.records.save(rows))
        except BaseException:
            await asyncio.shield(self._undo(record, list(files.values())))
            raise
        try:
            # The caller may leave while the commit is under way; whether it happened decides what becomes of the files.
            await asyncio.shield(saving)
        except BaseException:
            await asyncio.wait([saving])
            if saving.cancelled() or saving.exception() is not None:
                await asyncio.shield(self._undo(record, list(files.values())))
            raise
        return image, row, {kind: stored.id for kind, stored in files.items()}

    async def abandon(self, record: Record) -> None:
        """The request failed: remove what was stored for it."""
        await self._undo(record, [])

    async def read(self, key: str) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.store.get, key)

    async def delete(self, keys: list[str]) -> None:
        """Remove blobs whose last reference went. What cannot be removed now is logged with its key."""

        def remove() -> None:
            for key in keys:
                try:
                    self.store.delete(key)
                except Exception:
                    log.exception("blob not removed", extra={"key": key})

        await asyncio.get_running_loop().run_in_executor(self._threads, remove)

    def close(self) -> None:
        self._threads.shutdown(wait=True)

    def _put(self, area: Any, data: bytes, mime_type: str) -> StoredBytes:
        ident = new_id()
        key = new_key(area, ident, EXTENSIONS[mime_type], datetime.now(UTC))

        def put() -> str:
            self.store.put(key, data, mime_type)
            return hashlib.sha256(data).hexdigest()

        done = asyncio.get_running_loop().run_in_executor(self._threads, put)
        # Its error is raised where it is awaited; a request that fails earlier must not log it a second time.
        done.add_done_callback(lambda future: future.cancelled() or future.exception())
        return StoredBytes(ident, key, mime_type, len(data), done)

    async def _image_row(self, record: Record, picture: PictureFacts, kept: bool) -> Image:
        upload = record.upload
        if upload is None:
            raise ValueError("a record has either a stored image or an upload")
        return Image(
            id=upload.id,
            owner=record.owner,
            filename=record.filename,
            mime_type=picture.mime_type,
            bytes=upload.size,
            width=picture.width,
            height=picture.height,
            sha256=await upload.done,
            storage_key=upload.key,
            kept=kept,
            created_at=record.created_at,
        )

    async def _undo(self, record: Record, files: list[StoredBytes]) -> None:
        stored = [*files, *([record.upload] if record.upload else [])]
        for one in stored:
            await asyncio.wait([one.done])
        if stored:
            await self.delete([one.key for one in stored])
