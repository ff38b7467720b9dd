"""Importing: an uploaded ONNX file becomes a model version."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pydantic import Field

from db.blobs import BlobStore
from db.publishing import publish_folder
from db.registry import Registry
from db.tables import ModelVersion
from models.artifact import sha256_of
from models.onnx_import.artifact_builder import build_artifact
from models.onnx_import.options import ImportOptions

MAX_MODEL_BYTES = 512 * 1024 * 1024
"""Of an upload over HTTP; the command line takes up to 2 GB."""


class UploadOptions(ImportOptions):
    """What an upload says besides the file."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="Name of the model; a known name gets a new version."
    )


def import_upload(
    registry: Registry, store: BlobStore, data: bytes, file_name: str | None, options: UploadOptions
) -> ModelVersion:
    """The version that was published. BadModelFile says what is wrong with the file; nothing is left behind then."""
    with tempfile.TemporaryDirectory(prefix="ekiben-import-") as scratch:
        file = Path(scratch, "upload.onnx")
        file.write_bytes(data)
        folder = Path(scratch, "artifact")
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
