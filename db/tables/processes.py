"""Tables that the processes of one installation coordinate by: workers, its name, and periodic chores."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlmodel import Field

from db.tables.rows import Row


class Worker(Row, table=True):
    """A live worker process. ``seen_at`` is its last heartbeat, by the database's clock."""

    __tablename__ = "workers"

    id: str = Field(primary_key=True, max_length=36)
    host: str
    pid: int
    started_at: datetime
    seen_at: datetime
    running: int = Field(default=0, description="Items that it has claimed.")


class Installation(Row, table=True):
    """One row (id 1): the name that marks a blob store as this database's, and since when it keeps records."""

    __tablename__ = "installation"
    __table_args__ = (sa.CheckConstraint("id = 1", name="single"),)

    id: int = Field(default=1, primary_key=True, sa_column_kwargs={"autoincrement": False})
    name: str = Field(max_length=36)
    since: datetime


class Chore(Row, table=True):
    """Periodic work of one process at a time: the process that moves ``due_at`` into the future does it."""

    __tablename__ = "chores"

    name: str = Field(primary_key=True)
    due_at: datetime
