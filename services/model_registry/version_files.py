"""Model versions as responses, and their files: downloaded as ZIP, removed."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator

from db.blobs import BlobStore
from db.registry import Registry
from db.stored_files import stream_whole
from db.tables import ModelVersion
from ekiben.errors import Damaged
from models.artifact import MANIFEST, Manifest
from services.archives.zip_stream import GrowingBuffer
from services.schemas.models import VersionBody

OPTIONAL = ".pt"
"""Ending of the files that a version may lack: a Bento carries no TorchScript."""


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
    """A ZIP of the artifact folder, written as it is read. Blocks.

    Damaged, raised here, where a file is missing or has another size than the manifest says, or where the manifest is
    another; while the ZIP is written, where the bytes of a file differ.
    """
    manifest = Manifest.model_validate(row.manifest)
    name = f"model {row.name} version {row.version}"
    keys = sorted(store.list(row.location))
    present = {key.removeprefix(row.location) for key in keys}
    needed = {file for file in manifest.files if not file.endswith(OPTIONAL)} | {MANIFEST}
    if missing := sorted(needed - present):
        raise Damaged(f"{name} is damaged: {', '.join(missing)} is missing")
    if Manifest.model_validate_json(store.get(row.location + MANIFEST)).digest != row.digest:
        raise Damaged(f"{name} is damaged: its manifest is not that which was published")
    for file in present & set(manifest.files):
        if (found := store.size(row.location + file)) != (size := manifest.files[file].bytes):
            raise Damaged(f"{name} is damaged: {file} has {found} bytes instead of {size}")
    return _zipped(store, row, keys, manifest)


def _zipped(store: BlobStore, row: ModelVersion, keys: list[str], manifest: Manifest) -> Iterator[bytes]:
    out = GrowingBuffer()
    dated = row.created_at.timetuple()[:6]
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for key in keys:
            name = key.removeprefix(row.location)
            entry = zipfile.ZipInfo(name, dated)
            entry.external_attr = 0o644 << 16
            info = manifest.files.get(name)
            pieces = store.stream(key) if info is None else stream_whole(store, key, info.bytes, info.sha256)
            with archive.open(entry, "w", force_zip64=True) as file:
                for piece in pieces:
                    file.write(piece)
                    yield out.taken()
    yield out.taken()


def remove_files(registry: Registry, store: BlobStore, name: str, version: int) -> None:
    """Remove a version and its files. Blocks. NotFound; Conflict for the active one of several."""
    location = registry.delete_version(name, version)
    for key in list(store.list(location)):
        store.delete(key)
