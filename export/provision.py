"""``python -m export.provision``: what ``make serve`` does before it serves, so that the default models are there.

Publish the models that come with Ekiben (models/shipped). For each default model that has no version: download its
published weights (no torch), make torch's environment if it is missing, export. What cannot be had is listed as
unavailable with the reason, in one line; serving goes on without it, and no later start tries again by itself
(``make models`` does).
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
from db.session import connect
from ekiben.errors import Refusal
from ekiben.settings import Settings
from export.weights import ShownProgress, WeightsUnavailable, fetch
from export.zoo import ZOO, Row
from models.artifact import MANIFEST, read_manifest, verify

_NOT_YET = "its weights have not been downloaded; make models does it"

DEFAULTS = ("efficientnet_b0", "deeplabv3_resnet50")

SHIPPED = Path(models.__file__).parent / "shipped"
"""Artifact folders that come with Ekiben."""

_SHIPPED_SOURCE = "shipped"


def main(arguments: Sequence[str] | None = None) -> int:
    """0, whatever could be had; 1 when the registry itself cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m export.provision", description="Have the default models.")
    parser.add_argument("--again", action="store_true", help="try again what an earlier start could not get")
    parser.add_argument("--no-download", action="store_true", help="only list what is missing")
    parser.add_argument("--torch", type=Path, default=Path(sys.executable), help="Python of torch's environment")
    parser.add_argument("--make", default="", help="command that makes torch's environment")
    given = parser.parse_args(arguments)
    settings = Settings.from_environ()
    try:
        migrate(settings.resolved_database_url)
        engine = connect(settings.resolved_database_url)
        registry = Registry(engine)
        listed = {each.model.name: each for each in registry.models()}
        store = open_store(settings.resolved_store_url, settings.s3_access_key, settings.s3_secret_key)
        for folder in sorted(SHIPPED.iterdir()):
            if (folder / MANIFEST).is_file():
                _bring(folder, registry, store, listed.get(folder.name))
        store.close()
        for name in DEFAULTS:
            known = listed.get(name)
            if known is not None and known.versions:
                continue
            if known is not None and known.model.unavailable_reason and not given.again:
                _say(f"{name} is still unavailable, GET /v1/models says why; make models tries again")
                continue
            row = ZOO[name]
            reason = _NOT_YET if given.no_download else _provide(row, settings, given.torch, given.make)
            if reason is not None:
                _say(f"{name} is unavailable: {reason}")
                registry.mark_unavailable(name, ZOO[name].task, reason)
        engine.dispose()
    except Refusal as error:
        _say(error.message)
        return 1
    return 0


def _bring(folder: Path, registry: Registry, store: BlobStore, known: Listed | None) -> None:
    """Publish a model that comes with Ekiben, unless it is there, or a person has put another under its name."""
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
    _say(f"{folder.name} version {row.version} comes with Ekiben")


def _provide(row: Row, settings: Settings, torch: Path, make: str) -> str | None:
    """None when the model was published, else why not."""
    _say(f"{row.name}: downloading the published weights ({row.megabytes} MB)")
    try:
        fetch(row, settings.home / "downloads", ShownProgress(row.file))
    except WeightsUnavailable as error:
        return error.message
    if not torch.exists() and make:
        _say("torch's environment is made once, for exports; this takes some minutes")
        if subprocess.run(shlex.split(make), check=False).returncode != 0:
            return f"the environment of torch could not be made ({make})"
    _say(f"{row.name}: exporting")
    done = subprocess.run([str(torch), "-m", "export", row.name], check=False)
    return None if done.returncode == 0 else "the export failed; its message is above"


def _say(text: str) -> None:
    print(f"ekiben: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
