"""Imports an uploaded ONNX file as a model version."""

from __future__ import annotations

from pathlib import Path

from db.blobs import BlobStore
from db.publishing import publish_folder
from db.registry import Registry
from db.tables import ModelVersion
from ekiben.temporary_files import scratch
from models.artifact import sha256_of
from models.onnx_import.artifact_builder import build_artifact
from services.schemas.models import ModelUploadOptions

MAX_MODEL_BYTES = 512 * 1024 * 1024
"""Size of an upload over HTTP; the command line takes up to 2 GB."""


def import_upload(
    registry: Registry, store: BlobStore, data: bytes, file_name: str | None, options: ModelUploadOptions
) -> ModelVersion:
    """The version that was published. Blocks. BadModelFile says what is wrong with the file; then nothing is stored."""
    with scratch("import") as made:
        file = Path(made, "upload.onnx")
        file.write_bytes(data)
        folder = Path(made, "artifact")
        manifest = build_artifact(file, folder, options, file_name=file_name or "")
        return publish_folder(
            registry,
            store,
            folder,
            name=options.name,
            manifest=manifest.model_dump(mode="json"),
            digest=manifest.digest,
            lineage={"source": "upload", "sha256": sha256_of(file)},
        )
