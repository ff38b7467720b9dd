"""Publishing: the files of an artifact folder into the blob store, and its version into the registry."""

from __future__ import annotations

import mimetypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlmodel import Session

from db.blobs import BlobStore
from db.registry import Registry
from db.tables import ModelVersion
from ekiben.errors import Unavailable


def publish_folder(
    registry: Registry,
    store: BlobStore,
    folder: Path,
    *,
    name: str,
    manifest: dict[str, Any],
    digest: str,
    lineage: dict[str, Any],
    owner: str = "local",
    reuse: bool = False,
    also: Callable[[Session, ModelVersion], None] | None = None,
) -> ModelVersion:
    """Publish the files of ``folder`` as a new version of ``name``; gives the version.

    ``manifest``: that of the folder as JSON-ready values; ``digest`` identifies it. With ``reuse`` an active version
    of this digest is given back instead. ``also``: see ``Registry.publish``. A failure leaves neither row nor blob,
    except that the blobs stay when the database is lost during the commit: the row may have been stored then.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())

    written: list[str] = []

    def remove() -> None:
        for key in written:
            store.delete(key)

    def store_files(prefix: str) -> None:
        try:
            for path in files:
                key = prefix + path.relative_to(folder).as_posix()
                written.append(key)
                store.put_file(key, path, mimetypes.guess_type(path.name)[0] or "application/octet-stream")
        except BaseException:
            remove()
            raise

    try:
        return registry.publish(
            name=name,
            task=manifest["task"],
            family=manifest["family"],
            manifest=manifest,
            digest=digest,
            bytes=sum(path.stat().st_size for path in files),
            lineage=lineage,
            metrics=manifest.get("metrics", {}),
            store_files=store_files,
            owner=owner,
            reuse=reuse,
            also=also,
        )
    except Unavailable:  # it may have been committed
        raise
    except Exception:  # nothing was committed
        remove()
        raise
