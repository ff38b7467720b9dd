"""Replicas: which process holds which model version, as it reported last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import sqlalchemy as sa
from sqlmodel import col, select

from db.session import reading, writing
from db.tables import ModelReplica, now

ReplicaState = Literal["ready", "loading", "unloaded", "failed"]
_FORGOTTEN = timedelta(hours=1)  # rows of a process that died without removing them


@dataclass(frozen=True)
class ReplicaReport:
    """What a process reports of one model version. ``reason``: why it failed."""

    name: str
    version: int
    state: ReplicaState
    reason: str | None = None
    memory_bytes: int = 0
    owner: str = "local"


def report(engine: sa.Engine, process_id: str, host: str, pid: int, states: Sequence[ReplicaReport]) -> None:
    """Replace what a process has reported before, and remove the reports of processes that died an hour ago."""
    moment = now()
    rows = [
        {
            "process_id": process_id,
            "owner": each.owner,
            "name": each.name,
            "version": each.version,
            "host": host,
            "pid": pid,
            "state": each.state,
            "reason": each.reason,
            "memory_bytes": each.memory_bytes,
            "updated_at": moment,
        }
        for each in states
    ]
    replaced = sa.or_(col(ModelReplica.process_id) == process_id, col(ModelReplica.updated_at) < moment - _FORGOTTEN)
    with writing(engine) as session:
        session.execute(sa.delete(ModelReplica).where(replaced))
        if rows:
            session.execute(sa.insert(ModelReplica), rows)


def replicas(engine: sa.Engine, name: str | None, owner: str | None, max_age_s: float) -> list[ModelReplica]:
    """What was reported within ``max_age_s``, sorted by name, version and process; perhaps of one name or owner."""
    chosen = select(ModelReplica).where(col(ModelReplica.updated_at) >= now() - timedelta(seconds=max_age_s))
    if name is not None:
        chosen = chosen.where(ModelReplica.name == name)
    if owner is not None:
        chosen = chosen.where(ModelReplica.owner == owner)
    order = (
        col(ModelReplica.name),
        col(ModelReplica.version),
        col(ModelReplica.process_id),
        col(ModelReplica.owner),
    )
    with reading(engine) as session:
        return list(session.exec(chosen.order_by(*order)))


def forget(engine: sa.Engine, process_id: str) -> None:
    """Remove what a process reported, when it ends."""
    with writing(engine) as session:
        session.execute(sa.delete(ModelReplica).where(col(ModelReplica.process_id) == process_id))
