"""Tables of jobs, their items and their events."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlmodel import Field

from db.tables.rows import JSON, Owned, Row, now
from db.tables.states import ItemState, JobState


class Job(Owned, table=True):
    """Work that outlives a request. db/job_states/ owns every change of ``state``.

    ``kind`` request: one item, sent with ``Prefer: respond-async``; batch: many items; import: a dataset; training: a
    model; provision: a model of the zoo. The latter three have one item, which is no image, and ``parameters`` say what
    to do. ``succeeded`` and
    ``failed`` count items. ``deaths``: workers that died with it since an item last ended. ``entries``: queue entries
    made so far; ``last_event``: number of the newest event. Both only grow.
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
    state: str = JobState.QUEUED.value
    priority: int = 5
    parameters: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    store: bool = True
    total: int
    succeeded: int = 0
    failed: int = 0
    progress: float = 0.0
    attempts: int = 0
    deaths: int = 0
    head_start: int = Field(
        default=0, description="Items that had succeeded before the last retry, which does not repeat them."
    )
    entries: int = 0
    last_event: int = 0
    timeout_s: float
    items_at_once: int | None = Field(
        default=None, description="Claimed by all workers together, at most; None: no bound."
    )
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

    ``image_id`` names a stored image; without it the image's bytes lie under ``storage_key``. ``result``: the response
    without what the prediction's row holds. ``deaths``: workers that died while they had claimed it.
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
    state: str = ItemState.QUEUED.value
    filename: str | None = None
    image_id: str | None = Field(default=None, max_length=36)
    storage_key: str | None = None
    mime_type: str | None = None
    bytes: int = Field(default=0, sa_type=sa.BigInteger)
    sha256: str | None = Field(default=None, max_length=64)
    worker_id: str | None = Field(default=None, max_length=36)
    attempts: int = 0
    tries: int = Field(default=0, description="Attempts that ended with a temporary error.")
    deaths: int = 0
    begun: bool = Field(default=False, description="An item that a worker died with is now computed, alone.")
    not_before: datetime | None = Field(default=None, description="It is not claimed before then.")
    result: dict[str, Any] | None = Field(default=None, sa_type=JSON)
    error: dict[str, Any] | None = Field(default=None, sa_type=JSON)
    started_at: datetime | None = None
    finished_at: datetime | None = None


class JobEvent(Row, table=True):
    """What happened to a job. ``number`` counts from 1 without gaps."""

    __tablename__ = "job_events"

    job_id: str = Field(foreign_key="jobs.id", ondelete="CASCADE", primary_key=True, max_length=36)
    number: int = Field(primary_key=True)
    kind: str
    data: dict[str, Any] = Field(default_factory=dict, sa_type=JSON)
    created_at: datetime = Field(default_factory=now)
