"""Publishes the artifact folders bundled in a Bento when it first serves."""

from __future__ import annotations

import logging
from pathlib import Path

from db.blobs import BlobStore
from db.publishing import publish_folder
from db.registry import Registry
from models.artifact import ONNX, read_manifest, verify

log = logging.getLogger(__name__)


def publish_bundled(folder: Path, registry: Registry, store: BlobStore) -> None:
    """Publish each artifact folder once: a restart must not activate it in place of a later version."""
    known = {each.model.name: {row.digest for row in each.versions} for each in registry.models()}
    for artifact in sorted(path for path in folder.iterdir() if (path / ONNX).is_file()):
        manifest = read_manifest(artifact)
        if manifest.digest in known.get(artifact.name, set()):
            continue
        present = {name: info for name, info in manifest.files.items() if (artifact / name).is_file()}
        verify(artifact, manifest.model_copy(update={"files": present}))
        row = publish_folder(
            registry,
            store,
            artifact,
            name=artifact.name,
            manifest=manifest.model_dump(mode="json"),
            digest=manifest.digest,
            lineage={"source": "bento"},
            reuse=True,
        )
        log.info("model published from the Bento", extra={"model": row.name, "version": row.version})
