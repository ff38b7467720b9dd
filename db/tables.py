"""Tables: what the platform remembers, one class per table."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel

from ekiben.ids import new_id

NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
"""How constraints are called: a migration can only drop what has a name."""

# A dict changed in place is not noticed: assign a new one. None is SQL's NULL, not JSON's.
JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def now() -> datetime:
    """The present, in UTC. A datetime without a zone is refused when it is stored."""
    return datetime.now(UTC)


class Row(SQLModel):
    """Every table of Ekiben; ``Row.metadata`` knows them all, and nothing of other libraries' tables."""

    metadata: ClassVar[sa.MetaData] = sa.MetaData(naming_convention=NAMES)


class Owned(Row):
    """A row with an id of its own (UUIDv7) that belongs to somebody."""

    id: str = Field(default_factory=new_id, primary_key=True, max_length=36)
    owner: str = "local"
    created_at: datetime = Field(default_factory=now)


class Image(Owned, table=True):
    """An uploaded image. ``width`` and ``height`` are those of the EXIF-turned image."""

    __tablename__ = "images"
    __table_args__ = (
        sa.Index(None, "owner", "created_at"),
        sa.Index(None, "owner", "sha256"),
        sa.Index(None, "storage_key"),
    )

    filename: str | None = None
    mime_type: str
    bytes: int = Field(sa_type=sa.BigInteger)
    width: int
    height: int
    sha256: str = Field(max_length=64)
    storage_key: str
    kept: bool = Field(default=False, description="Uploaded for itself: stays when its last prediction goes.")


class Prediction(Owned, table=True):
    """One answer of one model about one image."""

    __tablename__ = "predictions"
    __table_args__ = (
        sa.CheckConstraint("status IN ('succeeded', 'failed')", name="status"),
        sa.Index(None, "owner", "created_at"),
        sa.Index(None, "owner", "task", "created_at"),
        sa.Index(None, "owner", "model_name", "created_at"),
        sa.Index(None, "image_id"),
        sa.Index(None, "job_id"),
    )

    job_id: str | None = Field(default=None, max_length=36)
    image_id: str = Field(foreign_key="images.id", ondelete="RESTRICT", max_length=36)
    task: str
    model_name: str
    model_version: int
    parameters: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    result: dict[str, Any] | None = Field(default=None, sa_type=JSON)
    status: str
    top_class: str | None = None
    top_confidence: float | None = None
    queue_ms: float = 0.0
    inference_ms: float = 0.0
    batch_size: int = 1
    error: str | None = None
    finished_at: datetime = Field(default_factory=now)


class Artifact(Owned, table=True):
    """A file that an answer or a job made: a mask, an overlay, an archive."""

    __tablename__ = "artifacts"
    __table_args__ = (sa.Index(None, "prediction_id"), sa.Index(None, "storage_key"), sa.Index(None, "job_id"))

    prediction_id: str | None = Field(default=None, foreign_key="predictions.id", ondelete="CASCADE", max_length=36)
    job_id: str | None = Field(default=None, max_length=36)
    kind: str
    storage_key: str
    mime_type: str
    bytes: int = Field(sa_type=sa.BigInteger)
    sha256: str = Field(max_length=64)


class Model(Owned, table=True):
    """A name under which versions are published, and what is wanted of it.

    ``desired`` auto: loaded on first use. ``last_version`` only grows: a number that was taken is never given to other
    bytes, because caches go by name and version.
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
    """One immutable artifact of a model; its files lie in the blob store under ``location``, which ends with ``/``."""

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


class ModelReplica(Row, table=True):
    """What one process says of one model version that it holds."""

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
    """One row (id 1) that every registry change increments, so that a process sees changes by polling it."""

    __tablename__ = "registry_revision"
    __table_args__ = (sa.CheckConstraint("id = 1", name="single"),)

    id: int = Field(default=1, primary_key=True)
    revision: int = Field(default=0, sa_type=sa.BigInteger)


class Dataset(Owned, table=True):
    """Images with masks to train on. Its files lie under keys made of its id: see db/datasets.py.

    ``state`` importing: while its job is not over; where that ended otherwise it has failed. ``report``: what was found
    (services/datasets/importer/report.py). ``bytes``: of the prepared archive.
    """

    __tablename__ = "datasets"
    __table_args__ = (
        sa.CheckConstraint("state IN ('importing', 'ready', 'refused')", name="state"),
        sa.Index(None, "owner", "created_at"),
        sa.Index(None, "job_id"),
    )

    name: str
    state: str = "importing"
    job_id: str = Field(max_length=36)
    source: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    samples: int = 0
    files: int = 0
    bytes: int = Field(default=0, sa_type=sa.BigInteger)
    classes: list[Any] = Field(default_factory=list, sa_type=JSON)
    report: dict[str, Any] | None = Field(default=None, sa_type=JSON)
    updated_at: datetime = Field(default_factory=now)


class Job(Owned, table=True):
    """Work that outlives a request. db/job_states.py owns every change of ``state``.

    ``kind`` request: one item, asked with ``Prefer: respond-async``; batch: many; import: a dataset; training: a
    model. The latter two have one item, which is no image, and ``parameters`` say what is to be done. ``succeeded``
    and ``failed`` count items. ``deaths``: workers that died with it since an item last ended. ``hands`` were given to
    the queue so far, ``last_event`` events written: both only grow.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        sa.CheckConstraint("state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", name="state"),
        sa.UniqueConstraint("owner", "idempotency_key"),
        sa.Index(None, "owner", "created_at"),
        sa.Index("ix_jobs_owner_state", "owner", "state", "created_at"),
        sa.Index("ix_jobs_owner_kind", "owner", "kind", "created_at"),
        sa.Index(None, "state", "finished_at"),
        sa.Index(None, "webhook_at"),
    )

    kind: str
    operation: str
    state: str = "queued"
    priority: int = 5
    parameters: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    store: bool = True
    total: int
    succeeded: int = 0
    failed: int = 0
    progress: float = 0.0
    attempts: int = 0
    deaths: int = 0
    head_start: int = Field(default=0, description="Items that had succeeded when it began: what a retry need not do.")
    entries: int = 0
    last_event: int = 0
    timeout_s: float
    items_at_once: int | None = Field(default=None, description="In all workers' hands together; None: no bound.")
    error: dict[str, Any] | None = Field(default=None, sa_type=JSON)
    idempotency_key: str | None = None
    fingerprint: str | None = Field(default=None, max_length=64)
    webhook_url: str | None = None
    webhook_state: str | None = None
    webhook_tries: int = 0
    webhook_at: datetime | None = Field(default=None, description="When it is due next; None: not now.")
    started_at: datetime | None = None
    finished_at: datetime | None = None
    updated_at: datetime = Field(default_factory=now)


class JobItem(Owned, table=True):
    """One image of a job. Its id is that of the prediction it becomes, so that a repeat cannot be counted twice.

    ``image_id`` is that of a stored image; else the image lies under ``storage_key``. ``result``: the answer but for
    what the prediction's row holds. ``deaths``: workers that died while they had it.
    """

    __tablename__ = "job_items"
    __table_args__ = (
        sa.CheckConstraint("state IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", name="state"),
        sa.UniqueConstraint("job_id", "position"),
        sa.Index("ix_job_items_next", "job_id", "state", "deaths", "position"),
        sa.Index(
            "ix_job_items_running",
            "worker_id",
            sqlite_where=sa.text("state = 'running'"),
            postgresql_where=sa.text("state = 'running'"),
        ),
        sa.Index(None, "storage_key"),
        sa.Index(None, "image_id"),
    )

    job_id: str = Field(foreign_key="jobs.id", ondelete="CASCADE", max_length=36)
    position: int
    state: str = "queued"
    filename: str | None = None
    image_id: str | None = Field(default=None, max_length=36)
    storage_key: str | None = None
    mime_type: str | None = None
    bytes: int = Field(default=0, sa_type=sa.BigInteger)
    sha256: str | None = Field(default=None, max_length=64)
    worker_id: str | None = Field(default=None, max_length=36)
    attempts: int = 0
    tries: int = Field(default=0, description="That ended with an error that may pass.")
    deaths: int = 0
    begun: bool = Field(default=False, description="Of one that a worker died with: it is being answered, alone.")
    not_before: datetime | None = Field(default=None, description="A retry waits until then.")
    result: dict[str, Any] | None = Field(default=None, sa_type=JSON)
    error: dict[str, Any] | None = Field(default=None, sa_type=JSON)
    started_at: datetime | None = None
    finished_at: datetime | None = None


class JobEvent(Row, table=True):
    """What happened to a job, numbered from 1 without gaps."""

    __tablename__ = "job_events"

    job_id: str = Field(foreign_key="jobs.id", ondelete="CASCADE", primary_key=True, max_length=36)
    number: int = Field(primary_key=True)
    kind: str
    data: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    created_at: datetime = Field(default_factory=now)


class Worker(Row, table=True):
    """A worker process that lives: it says so every few seconds, by the database's clock."""

    __tablename__ = "workers"

    id: str = Field(primary_key=True, max_length=36)
    host: str
    pid: int
    started_at: datetime
    seen_at: datetime
    running: int = Field(default=0, description="Items that it has in hand.")


class Installation(Row, table=True):
    """One row (id 1): this database's own name, by which a store tells whose it is, and since when it keeps records."""

    __tablename__ = "installation"
    __table_args__ = (sa.CheckConstraint("id = 1", name="single"),)

    id: int = Field(default=1, primary_key=True, sa_column_kwargs={"autoincrement": False})
    name: str = Field(max_length=36)
    since: datetime


class Chore(Row, table=True):
    """Work that one process at a time does every so often: whoever moves ``due_at`` on has it."""

    __tablename__ = "chores"

    name: str = Field(primary_key=True)
    due_at: datetime
