"""The registry: models, their versions, and which process holds which of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import sqlalchemy as sa
from sqlmodel import Session, select

from db import replicas
from db.changes import DatabaseChanges
from db.model_listing import (
    Listed,
    absent,
    active_of,
    check_name,
    expected,
    listed,
    location,
    model_of,
    numbers,
    version_of,
    versions_of,
)
from db.replicas import ReplicaReport
from db.session import reading, writing
from db.tables import Model, ModelReplica, ModelVersion, RegistryRevision, now
from ekiben.errors import BadInput, Conflict, NotFound, Unavailable

__all__ = ["Desired", "Listed", "Registry", "ReplicaReport"]

Desired = Literal["auto", "loaded", "unloaded"]


class Registry:
    """Models by owner and name. Every method blocks on the database and may raise Unavailable.

    Every change first increments ``revision`` in its transaction: so changes wait for each other on the lock of that
    row, and none of them reads what another is about to change.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def publish(
        self,
        *,
        name: str,
        task: str,
        family: str,
        manifest: dict[str, Any],
        digest: str,
        bytes: int,
        lineage: dict[str, Any],
        metrics: dict[str, Any],
        store_files: Callable[[str], None],
        owner: str = "local",
        activate: bool = True,
        reuse: bool = False,
        also: Callable[[Session, ModelVersion], None] | None = None,
    ) -> ModelVersion:
        """A new version of ``name``, after ``store_files(prefix)`` has written its blobs under that prefix.

        It becomes the active one unless ``activate`` is off or a later version is active already. With ``reuse`` an
        active version of this digest is given back instead. An error of ``store_files`` is passed on, and nothing
        of the version stays in the database; the blobs are removed by the caller. ``also`` is called in the transaction
        that makes the version visible; an error of it undoes that. BadInput for a name that a model cannot have.
        """
        check_name(name)
        if reuse:
            with reading(self._engine) as session:
                active = active_of(session, owner, name)
            if active is not None and active.digest == digest:
                return active
        version = self._take_number(owner, name, task)
        prefix = location(owner, name, version)
        try:
            store_files(prefix)
        except BaseException:
            with contextlib.suppress(Unavailable):
                self._give_number_back(owner, name, version)
            raise
        row = ModelVersion(
            owner=owner,
            name=name,
            version=version,
            task=task,
            family=family,
            location=prefix,
            manifest=manifest,
            digest=digest,
            bytes=bytes,
            active=activate,
            metrics=metrics,
            lineage=lineage,
        )
        # From here on the number is never given back: a commit may have happened although its response got lost.
        return self._commit(row, reuse, also)

    def _take_number(self, owner: str, name: str, task: str) -> int:
        # A transaction of its own: no other change should wait while the files are written.
        with self._changing() as session:
            model = model_of(session, owner, name) or Model(owner=owner, name=name, task=task)
            model.last_version += 1
            session.add(model)
            return model.last_version

    def _give_number_back(self, owner: str, name: str, version: int) -> None:
        with self._changing() as session:
            model = model_of(session, owner, name)
            if model is None or model.last_version != version:
                return  # a later number is taken: this one stays unused
            model.last_version -= 1
            untouched = model.unavailable_reason is None and model.desired == "auto"
            if model.last_version == 0 and untouched:
                session.delete(model)

    def _commit(
        self, row: ModelVersion, reuse: bool, also: Callable[[Session, ModelVersion], None] | None
    ) -> ModelVersion:
        with self._changing() as session:
            active = active_of(session, row.owner, row.name)
            if reuse and active is not None and active.digest == row.digest:
                return active  # another process published these bytes meanwhile; garbage collection removes our blobs
            if active is not None and row.active:
                if active.version > row.version:
                    row.active = False
                else:
                    active.active = False
                    session.flush()  # before the insert: only one may be active at any time
            session.add(row)
            model = expected(session, row.owner, row.name)
            model.task, model.unavailable_reason, model.updated_at = row.task, None, now()
            if also is not None:
                session.flush()
                also(session, row)
            return row

    def mark_unavailable(self, name: str, task: str | None, reason: str, owner: str = "local") -> None:
        """List ``name`` with the reason why it has no version; nothing changes when it has one.

        BadInput for a name that a model cannot have.
        """
        check_name(name)
        with self._changing() as session:
            if versions_of(session, owner, name):
                return
            model = model_of(session, owner, name) or Model(owner=owner, name=name)
            model.task, model.unavailable_reason, model.updated_at = task or model.task, reason, now()
            session.add(model)

    def set_desired(self, name: str, desired: Desired, owner: str = "local") -> Model:
        """Set whether processes hold a model in memory; gives the model.

        NotFound or Unavailable for a name without versions. BadInput for another value of ``desired``.
        """
        if desired not in ("auto", "loaded", "unloaded"):
            raise BadInput("a model can be wanted auto, loaded or unloaded")
        with self._changing() as session:
            model = expected(session, owner, name)
            model.desired, model.updated_at = desired, now()
            return model

    def activate(self, name: str, version: int, owner: str = "local") -> ModelVersion:
        """Make a version the active one of its name, and let it run if it was disabled; gives the version. NotFound."""
        with self._changing() as session:
            chosen = version_of(session, owner, name, version)
            active = active_of(session, owner, name)
            if active is not None and active.version != version:
                active.active = False
                session.flush()
            chosen.active, chosen.disabled_reason = True, None
            return chosen

    def disable(self, name: str, version: int, reason: str, owner: str = "local") -> None:
        """Let no process run a version any more, which stays active if it is. NotFound."""
        with self._changing() as session:
            version_of(session, owner, name, version).disabled_reason = reason

    def delete_version(self, name: str, version: int, owner: str = "local") -> str:
        """Remove a version; gives the key prefix of its blobs, to be deleted. Its number is not used again.

        NotFound. Conflict while it is active and others exist: activate one of them first.
        """
        with self._changing() as session:
            chosen = version_of(session, owner, name, version)
            others = [other for other in versions_of(session, owner, name) if other.version != version]
            if chosen.active and others:
                raise Conflict(f"version {version} of model {name} is active: activate one of {numbers(others)} first")
            session.delete(chosen)
            return chosen.location

    def resolve(self, name: str, version: int | None = None, owner: str = "local") -> ModelVersion:
        """One version of a name; ``version`` None means the active one.

        NotFound names what exists. Unavailable, with the reason, for a model that is listed but has no version.
        """
        with reading(self._engine) as session:
            if version is not None:
                return version_of(session, owner, name, version)
            if active := active_of(session, owner, name):
                return active
            versions = versions_of(session, owner, name)
            if versions:
                raise NotFound(f"model {name} has no active version; say which: {numbers(versions)}")
            raise absent(session, owner, name)

    def models(self, owner: str = "local") -> list[Listed]:
        """Every model that has a version or a reason why not, by name."""
        with reading(self._engine) as session:
            return listed(session, owner)

    def versions(self, name: str, owner: str = "local") -> list[ModelVersion]:
        """The versions of a name, newest first. NotFound or Unavailable, as for ``resolve``, when there is none."""
        with reading(self._engine) as session:
            if versions := versions_of(session, owner, name):
                return versions
            raise absent(session, owner, name)

    def revision(self) -> int:
        """A number that grows with every change of models and versions; cheap enough to poll."""
        with reading(self._engine) as session:
            return session.exec(select(RegistryRevision.revision)).one()

    def changes(self) -> DatabaseChanges:
        """Tells whether ``revision`` may have changed since the last look. Close it at the end."""
        return DatabaseChanges(self._engine)

    def report(self, process_id: str, host: str, pid: int, states: Sequence[ReplicaReport]) -> None:
        """Replace what a process has reported before. Call it every few seconds: older reports count as dead."""
        replicas.report(self._engine, process_id, host, pid, states)

    def replicas(self, name: str | None = None, max_age_s: float = 15, owner: str | None = None) -> list[ModelReplica]:
        """What processes reported within ``max_age_s``; an older report is that of a dead process."""
        return replicas.replicas(self._engine, name, owner, max_age_s)

    def forget(self, process_id: str) -> None:
        """Remove what a process reported, when it ends."""
        replicas.forget(self._engine, process_id)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[Session]:
        with writing(self._engine) as session:
            session.execute(sa.update(RegistryRevision).values(revision=RegistryRevision.revision + 1))
            yield session
