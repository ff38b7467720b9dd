"""The model index: this process's copy of the registry, so that a request needs no query."""

from __future__ import annotations

import asyncio
import logging
import shutil
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from db.blobs import BlobStore
from db.model_listing import Listed
from db.registry import Registry
from db.tables import ModelVersion
from ekiben.errors import BadInput, ModelDisabled, NotFound, Refusal, Unavailable
from ekiben.temporary_files import temporary_name
from models.artifact import MANIFEST, Manifest, read_manifest, verify
from models.engine.engine import ModelKey
from models.results import ValueRange
from services import metrics

log = logging.getLogger(__name__)


Absent = Callable[[str, str, Refusal], Awaitable[Refusal]]


@dataclass(frozen=True, slots=True)
class ServableModel:
    """A model version that can run requests. ``classes``: how many; ``digest``: of its files.

    ``disabled``: why it may not; empty where it may.
    """

    key: ModelKey
    task: str
    classes: int
    family: str
    digest: str = ""
    manifest: Mapping[str, Any] = field(repr=False, compare=False, default_factory=dict)
    disabled: str = ""

    @property
    def value_range(self) -> ValueRange | None:
        """The pixel values that are black and white for this model; None: as each image says."""
        value_range = self.manifest.get("preprocess", {}).get("value_range")
        return None if value_range is None else (float(value_range[0]), float(value_range[1]))


class ModelIndex:
    """Resolves names to versions, and finds the artifact folder of a version on this machine.

    ``cache``: folder for copies of artifacts that the store does not have on this disk. Thread-safe.
    """

    def __init__(self, registry: Registry, store: BlobStore, cache: Path) -> None:
        self.registry = registry
        self._store = store
        self._cache = cache
        self._revision = -1
        self._served: dict[tuple[str, str, int | None], ServableModel] = {}
        self._listed: dict[str, list[Listed]] = {}
        self._lock = threading.Lock()
        self.absent: Absent = _as_it_is
        """Gives the refusal for a request of a model that has no version, from owner, name and the refusal so far."""

    async def resolve(self, owner: str, name: str, version: int | None, task: str) -> ServableModel:
        """As ``find_to_run``; BadInput for a model of another task."""
        return _of_task(await self.find_to_run(owner, name, version), task)

    async def find_to_run(self, owner: str, name: str, version: int | None) -> ServableModel:
        """As ``find``, for a request that needs the model: ``absent`` gives the refusal where it has no version."""
        try:
            return await self.find(owner, name, version)
        except (NotFound, Unavailable) as refusal:
            if version is not None or isinstance(refusal, ModelDisabled):
                raise
            raise await self.absent(owner, name, refusal) from None

    async def find(self, owner: str, name: str, version: int | None) -> ServableModel:
        """The version of a model, the active one for None.

        NotFound; Unavailable for a model without versions; ModelDisabled.
        """
        served = self._served.get((owner, name, version))
        if served is None:
            metrics.registry_cache.labels("miss").inc()
            served = await asyncio.to_thread(self._look_up, owner, name, version)
        else:
            metrics.registry_cache.labels("hit").inc()
        if served.disabled:
            raise ModelDisabled(f"{served.key} is disabled: {served.disabled}")
        return served

    async def resolve_first(self, owner: str, names: Sequence[str], version: int | None, task: str) -> ServableModel:
        """As ``resolve``, of the first of ``names`` that has an active version; where none has, the refusal of the
        first."""
        served = self._served
        known = (name for name in names if (one := served.get((owner, name, None))) and not one.disabled)
        if (name := next(known, None)) is not None:
            return await self.resolve(owner, name, version, task)
        refusals = []
        for name in names:  # published since the last refresh, or of an owner not looked up yet
            try:
                await self.find(owner, name, None)
            except (NotFound, Unavailable) as error:
                refusals.append(error)
            else:
                return await self.resolve(owner, name, version, task)
        raise refusals[0] if version is not None else await self.absent(owner, names[0], refusals[0])

    @property
    def revision(self) -> int:
        """The revision of the registry at the last refresh."""
        return self._revision

    def refresh(self) -> bool:
        """Copy the present state of the registry; False when it has not changed. Blocks on the database."""
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
        """The models at the last refresh."""
        return self._listed.get(owner, [])

    def locate(self, key: ModelKey) -> Path:
        """The artifact folder of a version: in a store on this disk, else a verified copy in the cache.

        Blocks. NotFound.
        """
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
        # The registry raises the refusal. A version published since the refresh is served from its row.
        return _servable(self.registry.resolve(name, version, owner))

    def _download(self, row: ModelVersion, folder: Path) -> None:
        manifest = Manifest.model_validate(row.manifest)
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = folder.parent / temporary_name()
        partial.mkdir()
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
            # Another process of this machine may have made the copy first.
            if not (folder / MANIFEST).is_file():
                raise NotFound(
                    f"the files of model {row.name} version {row.version} cannot be written: {error}"
                ) from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _servable(row: ModelVersion) -> ServableModel:
    info = row.manifest
    key = ModelKey(row.owner, row.name, row.version)
    classes, disabled = len(info["labels"]), row.disabled_reason or ""
    return ServableModel(key, row.task, classes, info["family"], row.digest, info, disabled)


def _of_task(served: ServableModel, task: str) -> ServableModel:
    if served.task != task:
        raise BadInput(f"model {served.key.name} is there to {served.task}, not to {task}")
    return served


async def _as_it_is(owner: str, name: str, refusal: Refusal) -> Refusal:
    return refusal
