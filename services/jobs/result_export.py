"""All results of a job in one file: JSON lines, or a ZIP with the artifacts. Written as they are read."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import orjson

from db.blobs import BlobStore
from db.stored_files import read_whole
from db.tables import Job, JobItem
from ekiben.errors import NotFound
from services.archives.zip_stream import GrowingBuffer
from services.jobs.service import JobService
from services.schemas.body import to_dict
from services.schemas.jobs import item_body, job_body

_PAGE = 200  # items read at a time
_EXTENSIONS = {
    "image/png": "png",
    "application/x-npy": "npy",
    "application/zip": "zip",
    "application/gzip": "nii.gz",
    "application/dicom": "dcm",
}


def json_lines(jobs: JobService, store: BlobStore, owner: str, job: Job) -> Iterator[bytes]:
    """One ItemBody per line, in the order of the items in the request. Blocks."""
    for items in _pages(jobs, owner, job):
        yield b"".join(_line(item, result) for item, result in items)


def zip_archive(jobs: JobService, store: BlobStore, owner: str, job: Job) -> Iterator[bytes]:
    """``job.json``, ``results.jsonl``, and a folder ``00012-NAME/`` with the artifacts of each item. Blocks.

    Damaged, which ends the archive before its end, where an artifact is not what was stored.
    """
    out = GrowingBuffer()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        dated = (job.finished_at or job.created_at).timetuple()[:6]
        archive.writestr(
            _entry("job.json", dated),
            orjson.dumps(to_dict(job_body(job, 0)), option=orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z),
        )
        with archive.open(_entry("results.jsonl", dated), "w", force_zip64=True) as lines:
            for piece in json_lines(jobs, store, owner, job):
                lines.write(piece)
                yield out.taken()
        for items in _pages(jobs, owner, job):
            files = jobs.files(owner, [item for item, _ in items])
            for item, _ in items:
                seen: dict[str, int] = {}
                for file in files.get(item.id, []):
                    number = seen[file.kind] = seen.get(file.kind, -1) + 1
                    name = f"{item.position:05d}-{_stem(item)}/{file.kind}{f'-{number:03d}' if number else ''}"
                    try:
                        data = read_whole(store, file.storage_key, file.bytes, file.sha256)
                    except NotFound:
                        continue
                    # Images are compressed already.
                    ending = _EXTENSIONS.get(file.mime_type, "bin")
                    archive.writestr(_entry(f"{name}.{ending}", dated), data, zipfile.ZIP_STORED)
                    yield out.taken()
    yield out.taken()


def _pages(jobs: JobService, owner: str, job: Job) -> Iterator[list[tuple[JobItem, dict[str, Any] | None]]]:
    page = 1
    while True:
        found, results = jobs.read_items(owner, job.id, None, page, _PAGE)
        yield [(item, results.get(item.id)) for item in found.items]
        if page * _PAGE >= found.total:
            return
        page += 1


def _line(item: JobItem, result: dict[str, Any] | None) -> bytes:
    return orjson.dumps(to_dict(item_body(item, result)), option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)


def _stem(item: JobItem) -> str:
    name = PurePosixPath(item.filename or "").stem or item.image_id or item.id
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:80].strip(".") or "image"


def _entry(name: str, dated: tuple[int, ...]) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, dated)  # type: ignore[arg-type]
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry
