"""The model index: this process's copy of the registry, so that a request costs no query."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from db.blobs import BlobStore
from db.model_listing import Listed
from db.registry import Registry
from db.tables import ModelVersion
from ekiben.errors import BadInput, NotFound, Unavailable
from models.artifact import MANIFEST, Manifest, read_manifest, verify
from models.engine.engine import ModelKey
from services import metrics

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServableModel:
    """A version that can be asked."""

    key: ModelKey
    task: str
    classes: int
    family: str
    digest: str = ""
    manifest: Mapping[str, Any] = field(repr=False, compare=False, default_factory=dict)


class ModelIndex:
    """Resolves names, and finds the artifact folder of a version on this machine."""

    def __init__(self, registry: Registry, store: BlobStore, cache: Path) -> None:
        self.registry = registry
        self._store = store
        self._cache = cache
        self._revision = -1
        self._served: dict[tuple[str, str, int | None], ServableModel] = {}
        self._listed: dict[str, list[Listed]] = {}
        self._lock = threading.Lock()

    async def resolve(self, owner: str, name: str, version: int | None, task: str) -> ServableModel:
        """``find``, and BadInput for a model of another task."""
        served = await self.find(owner, name, version)
        if served.task != task:
            raise BadInput(f"model {name} is there to {served.task}, not to {task}")
        return served

    async def find(self, owner: str, name: str, version: int | None) -> ServableModel:
        """The version meant, the active one for None. NotFound, Unavailable (with why)."""
        served = self._served.get((owner, name, version))
        if served is None:
            metrics.registry_cache.labels("miss").inc()
            served = await asyncio.to_thread(self._look_up, owner, name, version)
        else:
            metrics.registry_cache.labels("hit").inc()
        return served

    async def resolve_first(self, owner: str, names: Sequence[str], version: int | None, task: str) -> ServableModel:
        """The same of the first of ``names`` that has an active version. Where none has, the first one's refusal."""
        known = (name for name in names if (owner, name, None) in self._served)
        if (name := next(known, None)) is not None:
            return await self.resolve(owner, name, version, task)
        refusals = []
        for name in names:  # what was published this instant, or of an owner who was not seen yet
            try:
                await self.resolve(owner, name, None, task)
            except (NotFound, Unavailable) as error:
                refusals.append(error)
            else:
                return await self.resolve(owner, name, version, task)
        raise refusals[0]

    @property
    def revision(self) -> int:
        """The registry's revision as of the last refresh."""
        return self._revision

    def refresh(self) -> bool:
        """Take over the registry's present state; False when it has not changed. Blocks on the database."""
        revision = self.registry.revision()
        if revision == self._revision:
            return False
        with self._lock:
            owners = set(self._listed) | {"local"}
            listed = {owner: self.registry.models(owner) for owner in owners}
            served: dict[tuple[str, str, int | None], ServableModel] = {}
            for owner, models in listed.items():
                for model in models:
                    for row in model.versions:
                        served[owner, row.name, row.version] = _servable(row)
                    if model.active is not None:
                        served[owner, model.active.name, None] = _servable(model.active)
            self._served, self._listed, self._revision = served, listed, revision
        return True

    def listed(self, owner: str = "local") -> list[Listed]:
        """The models as of the last refresh."""
        return self._listed.get(owner, [])

    def locate(self, key: ModelKey) -> Path:
        """The artifact folder of a version: in the folder store itself, else a checked copy under the cache."""
        row = self.registry.resolve(key.name, key.version, key.owner)
        local = self._store.local_path(row.location + MANIFEST)
        if local is not None:
            return local.parent
        folder = self._cache / key.owner / key.name / str(key.version)
        if (folder / MANIFEST).is_file() and read_manifest(folder).digest == row.digest:
            return folder
        self._download(row, folder)
        return folder

    def _look_up(self, owner: str, name: str, version: int | None) -> ServableModel:
        self._listed.setdefault(owner, [])
        self.refresh()
        if (served := self._served.get((owner, name, version))) is not None:
            return served
        # Not there: the registry has the words for it. A version published this instant is served from its row.
        return _servable(self.registry.resolve(name, version, owner))

    def _download(self, row: ModelVersion, folder: Path) -> None:
        manifest = Manifest.model_validate(row.manifest)
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
        try:
            for name in [*manifest.files, MANIFEST]:
                path = partial / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("wb") as file:
                    for chunk in self._store.stream(row.location + name):
                        file.write(chunk)
            verify(partial, read_manifest(partial))
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        except OSError as error:
            # Another process of this machine may have put the same files there first.
            if not (folder / MANIFEST).is_file():
                raise NotFound(
                    f"the files of model {row.name} version {row.version} cannot be written: {error}"
                ) from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _servable(row: ModelVersion) -> ServableModel:
    info = row.manifest
    return ServableModel(
        ModelKey(row.owner, row.name, row.version), row.task, len(info["labels"]), info["family"], row.digest, info
    )
