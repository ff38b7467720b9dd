"""Tables of the records: images, predictions and the files that these made."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlmodel import Field

from db.tables.rows import JSON, Owned, now


class Image(Owned, table=True):
    """An uploaded image. ``width`` and ``height`` are in pixels, after the EXIF orientation was applied."""

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
    kept: bool = Field(default=False, description="Uploaded for itself: it stays when its last prediction is removed.")


class Prediction(Owned, table=True):
    """One result of one model for one image. Times are in milliseconds; ``batch_size`` is of its run.

    ``status`` is always succeeded and ``error`` NULL: a request that fails leaves no row (docs/decisions/0003).
    """

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
    value_range: list[float] | None = Field(default=None, sa_type=JSON)


class Artifact(Owned, table=True):
    """A file that a prediction or a job made: a mask, an overlay, an archive. Its bytes lie under ``storage_key``."""

    __tablename__ = "artifacts"
    __table_args__ = (sa.Index(None, "prediction_id"), sa.Index(None, "storage_key"), sa.Index(None, "job_id"))

    prediction_id: str | None = Field(default=None, foreign_key="predictions.id", ondelete="CASCADE", max_length=36)
    job_id: str | None = Field(default=None, max_length=36)
    kind: str
    storage_key: str
    mime_type: str
    bytes: int = Field(sa_type=sa.BigInteger)
    sha256: str = Field(max_length=64)
