"""What processes say of the models they hold."""

from __future__ import annotations

from datetime import timedelta

import sqlalchemy as sa
from sqlmodel import Session, select

from db.registry import Registry, ReplicaReport
from db.tables import ModelReplica, now


def test_replicas(registry: Registry, engine: sa.Engine) -> None:
    holding = ReplicaReport("resnet50", 1, "ready", memory_bytes=100 * 2**20)
    registry.report("p1", "host", 11, [holding, ReplicaReport("unet", 2, "loading")])
    registry.report("p2", "host", 12, [ReplicaReport("resnet50", 1, "failed", reason="out of memory")])
    found = [(r.process_id, r.name, r.version, r.state, r.reason) for r in registry.replicas()]
    assert found == [
        ("p1", "resnet50", 1, "ready", None),
        ("p2", "resnet50", 1, "failed", "out of memory"),
        ("p1", "unet", 2, "loading", None),
    ]
    (row,) = [r for r in registry.replicas("resnet50") if r.process_id == "p1"]
    assert (row.host, row.pid, row.memory_bytes, row.owner) == ("host", 11, 100 * 2**20, "local")
    assert abs(row.updated_at - now()) < timedelta(seconds=5)
    # A report says everything: what it does not name is gone.
    registry.report(
        "p1", "host", 11, [ReplicaReport("unet", 2, "ready"), ReplicaReport("unet", 2, "ready", owner="ann")]
    )
    assert [(r.process_id, r.owner, r.state) for r in registry.replicas("unet")] == [
        ("p1", "ann", "ready"),
        ("p1", "local", "ready"),
    ]
    assert [r.owner for r in registry.replicas("unet", owner="ann")] == ["ann"]
    assert registry.replicas(max_age_s=0) == []
    registry.forget("p1")
    assert [r.process_id for r in registry.replicas()] == ["p2"]
    # The dead say nothing more; their rows go when somebody else reports.
    with Session(engine.execution_options(immediate=True)) as session:
        session.execute(sa.update(ModelReplica).values(updated_at=now() - timedelta(hours=2)))
        session.commit()
    assert registry.replicas() == []
    registry.report("p3", "host", 13, [])
    with Session(engine) as session:
        assert session.exec(select(ModelReplica)).all() == []
