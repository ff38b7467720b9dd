"""Datasets: importing, listing, reading samples, removing. Free of any transport."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from db.blobs import BlobStore
from db.datasets import Datasets, DatasetView, file_key
from db.pages import Page
from db.records import Records
from db.stored_files import check_path
from db.tables import Dataset, Job, now
from ekiben.dataset_archive import BadDataset, DatasetArchive
from ekiben.errors import BadInput, Damaged, NotFound, Unavailable
from ekiben.ids import LOCAL_OWNER, new_id
from ekiben.settings import Settings
from ekiben.temporary_files import temporary_name
from services.datasets.annotations import Annotation, classes_of, pack
from services.datasets.import_job import OPERATION
from services.jobs.service import JobService
from services.jobs.submission import JobTerms
from services.outbound import http_exchange
from services.schemas.datasets import DatasetOptions, SampleOptions

log = logging.getLogger(__name__)

_OPEN = 4  # archives kept open, the last used
_PIECE = 1 << 20
_PNG_END = b"IEND\xaeB`\x82"


class DatasetService:
    """Imports and reads datasets. All methods take ``owner``; nothing is found across owners."""

    def __init__(
        self, settings: Settings, datasets: Datasets, records: Records, store: BlobStore, jobs: JobService
    ) -> None:
        self._settings = settings
        self._datasets = datasets
        self._records = records
        self._store = store
        self._jobs = jobs
        self._open: OrderedDict[str, DatasetArchive] = OrderedDict()

    async def create(
        self,
        options: DatasetOptions,
        archive: IO[bytes] | None,
        filename: str | None,
        terms: JobTerms,
        owner: str = LOCAL_OWNER,
    ) -> tuple[str, Job, bool]:
        """Submit the import of a dataset: its id, the job, and whether the job is new; False: an earlier request had
        this idempotency key.

        ``archive``: an open file on disk. BadInput unless there is exactly one of archive, url and samples.
        """
        ways = [archive is not None, options.url is not None, options.samples is not None]
        if sum(ways) != 1:
            raise BadInput("send one of: a ZIP as multipart field 'file', url, samples")
        if options.url is not None:
            http_exchange.parse(options.url)
        if options.samples is None:
            return await self._submit(options, archive, filename, options.classes, terms, owner)
        samples = [Annotation(one.image_id, one.mask, one.class_name) for one in options.samples]
        classes = options.classes or classes_of(samples)
        if missing := sorted({one.class_name for one in samples} - set(classes)):
            raise BadInput(f"classes lacks {missing[0][:80]!r}, which a sample has")
        with tempfile.TemporaryFile(dir=self._settings.home) as made:
            await asyncio.to_thread(pack, samples, classes, self._records, self._store, owner, made)
            return await self._submit(options, made, None, classes, terms, owner)

    async def _submit(
        self,
        options: DatasetOptions,
        archive: IO[bytes] | None,
        filename: str | None,
        classes: Sequence[str] | None,
        terms: JobTerms,
        owner: str,
    ) -> tuple[str, Job, bool]:
        kind = "samples" if options.samples is not None else "url" if options.url is not None else "upload"
        source = {"kind": kind, "url": options.url, "filename": filename}
        dataset = Dataset(owner=owner, name=options.name, source=source, job_id=new_id(), created_at=now())
        key = None
        columns: dict[str, Any] = {}
        if archive is not None:
            key = file_key(dataset, "upload")
            size, sha256 = await asyncio.to_thread(self._store_archive, archive, key)
            columns = {"storage_key": key, "filename": filename, "mime_type": "application/zip"}
            columns |= {"bytes": size, "sha256": sha256}
        parameters: dict[str, Any] = {"dataset_id": dataset.id, "name": options.name, "classes": classes}
        parameters |= {"background": options.background, "url": options.url}
        # Packed samples are another file each time: ``options`` identifies the request.
        digest = columns.get("sha256") if options.samples is None else None
        given = options.model_dump(mode="json", exclude={"samples"}) | {"sha256": digest}
        # Not dumped: copying millions of run lengths would stop the event loop. The JSON is the same.
        given["samples"] = None if options.samples is None else [_sample_json(one) for one in options.samples]
        created = uncertain = False
        try:
            job, created = await self._jobs.submit_single(
                "import",
                OPERATION,
                parameters,
                terms,
                job_id=dataset.job_id,
                given=given,
                item=columns,
                rows=[dataset],
                owner=owner,
            )
        except Unavailable:  # the commit may have happened: then the archive is the job's
            uncertain = True
            raise
        finally:
            if key is not None and not created and not uncertain:
                await asyncio.to_thread(self._store.delete, key)
        return job.parameters["dataset_id"], job, created

    def _store_archive(self, archive: IO[bytes], key: str) -> tuple[int, str]:
        """Store the archive; its size in bytes and its SHA-256."""
        archive.flush()
        size = os.fstat(archive.fileno()).st_size
        archive.seek(0)
        digest = hashlib.sha256()
        while piece := archive.read(_PIECE):
            digest.update(piece)
        archive.seek(0)
        # The file has no name, so that it does not outlive this process; its descriptor has one.
        self._store.put_file(key, Path(f"/dev/fd/{archive.fileno()}"), "application/zip")
        return size, digest.hexdigest()

    async def dataset(self, id: str, *, owner: str = LOCAL_OWNER) -> DatasetView:
        """The dataset with its state. NotFound."""
        return await asyncio.to_thread(self._datasets.dataset, owner, id)

    async def datasets(
        self, page: int, limit: int, *, owner: str = LOCAL_OWNER
    ) -> tuple[Page[Dataset], list[DatasetView]]:
        """Datasets, newest first: the page of rows, and each as its owner sees it."""

        def read() -> tuple[Page[Dataset], list[DatasetView]]:
            found = self._datasets.datasets(owner, page, limit)
            return found, self._datasets.shown(found.items)

        return await asyncio.to_thread(read)

    async def prepared(self, id: str, *, owner: str = LOCAL_OWNER) -> DatasetArchive:
        """The prepared samples of a dataset. NotFound; Conflict while it is not ready."""
        dataset = await asyncio.to_thread(self._datasets.ready, owner, id)
        return await asyncio.to_thread(self._prepared, dataset)

    async def sample_image(self, id: str, position: int, *, owner: str = LOCAL_OWNER) -> bytes:
        """The encoded image of a sample. NotFound; Conflict while the dataset is not ready; Damaged."""
        prepared = await self.prepared(id, owner=owner)
        with _damaged_not_bad(id):
            return await asyncio.to_thread(prepared.image, position)

    async def sample_mask(self, id: str, position: int, *, owner: str = LOCAL_OWNER) -> bytes:
        """The mask of a sample as PNG. Raises as ``sample_image``."""
        prepared = await self.prepared(id, owner=owner)
        with _damaged_not_bad(id):
            return await asyncio.to_thread(prepared.mask, position)

    async def preview(self, id: str, *, owner: str = LOCAL_OWNER) -> bytes:
        """Some samples as one image, PNG. NotFound; Damaged where its end is missing."""
        shown = await self.dataset(id, owner=owner)
        try:
            data = await asyncio.to_thread(self._store.get, file_key(shown.dataset, "preview"))
        except NotFound:
            raise NotFound(f"dataset {id} has no preview: it is {shown.state}") from None
        if not data.endswith(_PNG_END):
            raise Damaged(f"the preview of dataset {id} is damaged: its end is missing")
        return data

    async def delete(self, id: str, *, owner: str = LOCAL_OWNER) -> None:
        """Remove a dataset with its files. NotFound; Conflict while it is imported, or a training needs it."""

        def delete() -> None:
            for key in self._datasets.delete(owner, id):
                self._store.delete(key)
            self._cached(id).unlink(missing_ok=True)

        await asyncio.to_thread(delete)
        self._open.pop(id, None)

    def _cached(self, id: str) -> Path:
        return self._settings.home.absolute() / "cache" / "datasets" / f"{id}.zip"

    def _prepared(self, dataset: Dataset) -> DatasetArchive:
        if (known := self._open.get(dataset.id)) is not None:
            return known
        key = file_key(dataset, "archive")
        path = self._store.local_path(key) or self._cached(dataset.id)
        if path == self._cached(dataset.id) and path.is_file() and path.stat().st_size != dataset.bytes:
            path.unlink()  # a copy that is damaged
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(temporary_name())
            try:
                with partial.open("wb") as file:
                    for chunk in self._store.stream(key):
                        file.write(chunk)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
        check_path(path, dataset.bytes, None, key)
        with _damaged_not_bad(dataset.id):
            prepared = DatasetArchive(path)
        self._open[dataset.id] = prepared
        while len(self._open) > _OPEN:
            self._open.popitem(last=False)
        return prepared


@contextlib.contextmanager
def _damaged_not_bad(id: str) -> Iterator[None]:
    """An archive that was prepared here, and cannot be read, is damaged: the request is not at fault."""
    try:
        yield
    except BadDataset as error:
        log.error("a prepared dataset is damaged", extra={"dataset": id, "what": error.message})
        raise Damaged(f"the prepared samples of dataset {id} are damaged: {error.message}") from None


def _sample_json(sample: SampleOptions) -> dict[str, Any]:
    """The sample as JSON, without what else its mask holds, which may be nested too deep to be written again."""
    mask = sample.mask
    if isinstance(mask, dict):
        mask = {name: value for name, value in mask.items() if name in ("size", "counts")}
    return {"image_id": sample.image_id, "mask": mask, "class_name": sample.class_name}
