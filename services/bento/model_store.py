"""The models of a Bento: written to BentoML's model store when it is built, published when it first serves."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import bentoml

from db.blobs import open_store
from db.registry import Registry
from db.schema.ensure import ensure_newest
from db.schema.sqlite_file import check_database_file
from db.session import connect
from ekiben.settings import Settings
from models.artifact import MANIFEST, read_manifest
from models.engine.engine import ModelKey
from services.bento.hosting import MODEL_STORE_TAG
from services.model_registry.index import ModelIndex

log = logging.getLogger(__name__)


def write_to_model_store(settings: Settings) -> bentoml.Model:
    """Copy the artifact folders of the chosen models into BentoML's model store: one entry, a folder per model name.

    SystemExit where EKIBEN_BENTO_MODELS names a model that is not there.
    """
    url = settings.resolved_database_url
    store = open_store(settings.resolved_store_url, settings.s3_access_key, settings.s3_secret_key)
    check_database_file(url, store)
    ensure_newest(url)
    registry = Registry(connect(url))
    index = ModelIndex(registry, store, settings.cache_folder / "models")
    chosen = [name.strip() for name in settings.bento_models.split(",") if name.strip()]
    active = {m.model.name: m.active for m in registry.models() if m.active is not None}
    if missing := [name for name in chosen if name not in active]:
        raise SystemExit(f"EKIBEN_BENTO_MODELS names models that are not there: {', '.join(missing)}")
    names = chosen or sorted(active)
    labels = {name: str(active[name].version) for name in names}
    with bentoml.models.create(MODEL_STORE_TAG, labels=labels, metadata={"format": 1}) as entry:
        for name in names:
            row = active[name]
            source = index.locate(ModelKey(row.owner, row.name, row.version))
            target = Path(entry.path) / name
            target.mkdir()
            # TorchScript is left out: a Bento serves without torch.
            manifest = read_manifest(source)
            for file in [*manifest.files, MANIFEST]:
                if file == MANIFEST or not file.endswith(".pt"):
                    (target / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(source / file, target / file)
    return entry


def bundled_folder(bento: Any) -> Path | None:
    """Where the models of the Bento being served lie, or None when it is no Bento or bundles none."""
    if bento is None:
        return None
    for info in bento.info.all_models:
        if info.tag.name == MODEL_STORE_TAG:
            return Path(bentoml.models.get(info.tag).path)
    return None
