"""Tables of the model registry: models, their versions, and which process holds which version."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlmodel import Field

from db.tables.rows import JSON, Owned, Row, now


class Model(Owned, table=True):
    """A name under which versions are published, and whether processes should hold it in memory.

    ``desired``: auto (loaded on first use), loaded or unloaded. ``last_version`` only grows: a number that was taken
    is never given to other bytes, because caches are keyed by name and version.
    """

    __tablename__ = "models"
    __table_args__ = (
        sa.CheckConstraint("desired IN ('auto', 'loaded', 'unloaded')", name="desired"),
        sa.UniqueConstraint("owner", "name"),
    )

    name: str
    desired: str = "auto"
    unavailable_reason: str | None = Field(default=None, description="Why no version exists.")
    task: str | None = None
    last_version: int = 0
    updated_at: datetime = Field(default_factory=now)


class ModelVersion(Owned, table=True):
    """One immutable artifact of a model. ``location`` is the key prefix of its blobs and ends with ``/``."""

    __tablename__ = "model_versions"
    __table_args__ = (
        sa.UniqueConstraint("owner", "name", "version"),
        sa.Index(
            "uq_model_versions_active",
            "owner",
            "name",
            unique=True,
            sqlite_where=sa.text("active"),
            postgresql_where=sa.text("active"),
        ),
        sa.Index(None, "location"),
    )

    name: str
    version: int
    task: str
    family: str
    location: str
    manifest: dict[str, Any] = Field(sa_type=JSON)
    digest: str = Field(max_length=64)
    bytes: int = Field(sa_type=sa.BigInteger)
    active: bool = False
    metrics: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    lineage: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    disabled_reason: str | None = Field(default=None, description="Which limit it exceeded; activating it clears it.")


class ModelReplica(Row, table=True):
    """What one process last reported of one model version that it holds."""

    __tablename__ = "model_replicas"
    __table_args__ = (sa.CheckConstraint("state IN ('ready', 'loading', 'unloaded', 'failed')", name="state"),)

    process_id: str = Field(primary_key=True, max_length=36)
    owner: str = Field(default="local", primary_key=True)
    name: str = Field(primary_key=True)
    version: int = Field(primary_key=True)
    host: str
    pid: int
    state: str
    reason: str | None = None
    memory_bytes: int = Field(default=0, sa_type=sa.BigInteger)
    updated_at: datetime = Field(default_factory=now)


class RegistryRevision(Row, table=True):
    """One row (id 1) that every change of the registry increments, so that processes see changes by polling it."""

    __tablename__ = "registry_revision"
    __table_args__ = (sa.CheckConstraint("id = 1", name="single"),)

    id: int = Field(default=1, primary_key=True)
    revision: int = Field(default=0, sa_type=sa.BigInteger)
