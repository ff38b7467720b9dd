"""The model index: this process's copy of the registry, so that a request needs no query."""

from __future__ import annotations

import asyncio
import logging
import shutil
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from db.blobs import BlobStore
from db.model_listing import Listed
from db.registry import Registry
from db.stored_files import check_path
from db.tables import ModelVersion
from ekiben.disk_full import NO_SPACE, is_disk_full
from ekiben.errors import BadInput, BadModelFile, Damaged, ModelDisabled, NotFound, Refusal, StorageFull, Unavailable
from ekiben.temporary_files import temporary_name
from models.artifact import MANIFEST, Manifest, read_manifest
from models.engine.engine import ModelKey
from models.results import ValueRange
from services import metrics
from services.model_registry.version_files import OPTIONAL

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
        """The artifact folder of a version: in a store on this disk, else a copy in the cache.

        Its files are those that were published: they are compared when they are new here, or were written since.
        Blocks. NotFound, Damaged; StorageFull where there is no space for a copy.
        """
        row = self.registry.resolve(key.name, key.version, key.owner)
        try:
            local = self._store.local_path(row.location + MANIFEST)
        except NotFound:
            raise _damaged(row, f"{MANIFEST} is missing") from None
        if local is not None:
            _check_folder(row, local.parent)
            return local.parent
        folder = self._cache / key.owner / key.name / str(key.version)
        if (folder / MANIFEST).is_file():
            try:
                _check_folder(row, folder)
                return folder
            except Damaged as error:
                log.warning("the copy of a model is made anew: %s", error)
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
                try:
                    with path.open("wb") as file:
                        for chunk in self._store.stream(row.location + name):
                            file.write(chunk)
                except NotFound:
                    path.unlink()
                    if not name.endswith(OPTIONAL):
                        raise _damaged(row, f"{name} is missing") from None
            _check_folder(row, partial)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        except OSError as error:
            if is_disk_full(error):
                raise StorageFull(NO_SPACE) from None
            # Another process of this machine may have made the copy first.
            if not (folder / MANIFEST).is_file():
                raise NotFound(
                    f"the files of model {row.name} version {row.version} cannot be written: {error}"
                ) from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _check_folder(row: ModelVersion, folder: Path) -> None:
    """Damaged where a file in ``folder`` is missing or not what was published as ``row``."""
    try:
        if read_manifest(folder).digest != row.digest:
            raise _damaged(row, f"{MANIFEST} is not that which was published")
    except BadModelFile:
        raise _damaged(row, f"{MANIFEST} cannot be read") from None
    for name, info in Manifest.model_validate(row.manifest).files.items():
        try:
            check_path(folder / name, info.bytes, info.sha256, f"{row.location}{name}", sys.maxsize)
        except Damaged as error:
            raise _damaged(row, f"{name}: {error.message}") from None
        except FileNotFoundError:
            if not name.endswith(OPTIONAL):
                raise _damaged(row, f"{name} is missing") from None


def _damaged(row: ModelVersion, what: str) -> Damaged:
    return Damaged(f"the files of model {row.name} version {row.version} are damaged: {what}")


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
