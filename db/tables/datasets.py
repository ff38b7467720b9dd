"""The table of datasets."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlmodel import Field

from db.tables.rows import JSON, Owned, now


class Dataset(Owned, table=True):
    """Images with masks to train on. Its files lie under keys that are made of its id: see db/datasets.py.

    ``state`` stays importing when the import job fails or is cancelled: then the dataset counts as failed. ``report``:
    findings of the import (services/datasets/importer/report.py). ``bytes``: size of the prepared archive.
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
