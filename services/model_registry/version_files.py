"""Model versions as responses, and their files: downloaded as ZIP, removed."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator

from db.blobs import BlobStore
from db.registry import Registry
from db.tables import ModelVersion
from services.archives.zip_stream import GrowingBuffer
from services.schemas.models import VersionBody


def version_body(row: ModelVersion) -> VersionBody:
    """A version as responses show it."""
    return VersionBody(
        version=row.version,
        active=row.active,
        disabled_reason=row.disabled_reason,
        digest=row.digest,
        bytes=row.bytes,
        metrics=row.metrics,
        lineage=row.lineage,
        created_at=row.created_at,
    )


def zip_version(store: BlobStore, row: ModelVersion) -> Iterator[bytes]:
    """A ZIP of the artifact folder, written as it is read. Blocks."""
    out = GrowingBuffer()
    dated = row.created_at.timetuple()[:6]
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for key in sorted(store.list(row.location)):
            entry = zipfile.ZipInfo(key.removeprefix(row.location), dated)
            entry.external_attr = 0o644 << 16
            with archive.open(entry, "w", force_zip64=True) as file:
                for piece in store.stream(key):
                    file.write(piece)
                    yield out.taken()
    yield out.taken()


def remove_files(registry: Registry, store: BlobStore, name: str, version: int) -> None:
    """Remove a version and its files. Blocks. NotFound; Conflict for the active one of several."""
    location = registry.delete_version(name, version)
    for key in list(store.list(location)):
        store.delete(key)
