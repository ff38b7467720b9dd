"""``python -m export.provision``: makes the default models available; ``make serve`` runs it before it serves.

Publishes the models that come with Ekiben (models/shipped). For each default model without a version: downloads its
published weights (without torch), makes torch's environment if it is missing, and exports. A model that cannot be
obtained is listed as unavailable with the reason, and serving starts without it. Only ``--again`` (``make models``)
tries again.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import models
from db.blobs import BlobStore, open_store
from db.migrate import migrate
from db.model_listing import Listed
from db.publishing import publish_folder
from db.registry import Registry
from db.schema.sqlite_file import check_database_file
from db.session import connect
from ekiben.errors import Refusal
from ekiben.private_files import set_umask
from ekiben.settings import Settings
from export.weights import ShownProgress, WeightsUnavailable, fetch
from export.zoo import ZOO, ZooRow, by_settings
from models.artifact import MANIFEST, read_manifest, verify

_NOT_YET = "its weights have not been downloaded; make models does it"

DEFAULTS = ("efficientnet_b0", "deeplabv3_resnet50")

SHIPPED = Path(models.__file__).parent / "shipped"
"""Artifact folders that come with Ekiben."""

_SHIPPED_SOURCE = "shipped"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, even when models are unavailable; 1 when the registry or the store cannot be used."""
    parser = argparse.ArgumentParser(
        prog="python -m export.provision", description="Make the default models available."
    )
    parser.add_argument("--again", action="store_true", help="try again what an earlier run could not obtain")
    parser.add_argument("--no-download", action="store_true", help="only list what is missing")
    parser.add_argument("--torch", type=Path, default=Path(sys.executable), help="Python of torch's environment")
    parser.add_argument("--make", default="", help="command that makes torch's environment")
    given = parser.parse_args(arguments)
    settings = Settings.from_environ()
    set_umask(settings)
    try:
        store = open_store(settings.resolved_store_url, settings.s3_access_key, settings.s3_secret_key)
        check_database_file(settings.resolved_database_url, store)
        migrate(settings.resolved_database_url)
        engine = connect(settings.resolved_database_url)
        registry = Registry(engine)
        listed = {each.model.name: each for each in registry.models()}
        for folder in sorted(SHIPPED.iterdir()):
            if (folder / MANIFEST).is_file():
                _publish_shipped(folder, registry, store, listed.get(folder.name))
        store.close()
        for name in DEFAULTS:
            known = listed.get(name)
            if known is not None and known.versions:
                continue
            if known is not None and known.model.unavailable_reason and not given.again:
                _log(f"{name} is still unavailable, GET /v1/models says why; make models tries again")
                continue
            row = ZOO[name]
            reason = (
                _NOT_YET
                if given.no_download
                else _export_published(by_settings(row, settings), settings, given.torch, given.make)
            )
            if reason is not None:
                _log(f"{name} is unavailable: {reason}")
                registry.mark_unavailable(name, ZOO[name].task, reason)
        engine.dispose()
    except Refusal as error:
        _log(error.message)
        return 1
    return 0


def _publish_shipped(folder: Path, registry: Registry, store: BlobStore, known: Listed | None) -> None:
    """Publish a shipped model, unless it is active already or a user has published another under its name."""
    manifest = read_manifest(folder)
    if known is not None and known.active is not None:
        active = known.active
        if active.digest == manifest.digest or active.lineage.get("source") != _SHIPPED_SOURCE:
            return
    verify(folder, manifest)
    row = publish_folder(
        registry,
        store,
        folder,
        name=folder.name,
        manifest=manifest.model_dump(mode="json"),
        digest=manifest.digest,
        lineage={"source": _SHIPPED_SOURCE},
    )
    _log(f"{folder.name} version {row.version} comes with Ekiben")


def _export_published(row: ZooRow, settings: Settings, torch: Path, make: str) -> str | None:
    """Download, export and publish a model. Returns None on success, else the reason in a sentence."""
    _log(f"{row.name}: downloading the published weights ({row.megabytes} MB)")
    try:
        fetch(row, settings.cache_folder / "downloads", ShownProgress(row.file))
    except WeightsUnavailable as error:
        return error.message
    if not torch.exists() and make:
        _log("torch's environment is made once, for exports; this takes some minutes")
        if subprocess.run(shlex.split(make), check=False).returncode != 0:
            return f"the environment of torch could not be made ({make})"
    _log(f"{row.name}: exporting")
    done = subprocess.run([str(torch), "-m", "export", row.name], check=False)
    return None if done.returncode == 0 else "the export failed; its message is above"


def _log(text: str) -> None:
    print(f"ekiben: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
