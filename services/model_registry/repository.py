"""Model management: listing, loading, unloading and activating models. Free of any transport."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, cast

from db.model_listing import Listed
from db.registry import Registry
from db.tables import ModelReplica
from ekiben.errors import NotFound, Temporary, Unavailable
from ekiben.ids import LOCAL_OWNER
from models.engine.engine import ModelKey, ModelState
from services.model_registry.index import ModelIndex
from services.model_registry.version_files import version_body
from services.runners.interface import ModelRunner
from services.schemas.models import Desired, ModelBody, ReplicaBody, ReplicaState, State, Task

_NO_COUNTS = {"predictions": 0, "batches": 0, "loads": 0, "waiting": 0, "batch_size": 1}


class ModelRepository:
    """Lists models with their states, loads and unloads them. All methods take ``owner``.

    ``process_id``: the one under which this process reports its states.
    """

    def __init__(self, registry: Registry, index: ModelIndex, runner: ModelRunner, process_id: str) -> None:
        self._process_id = process_id
        self._registry = registry
        self._index = index
        self._runner = runner

    async def models(self, *, owner: str = LOCAL_OWNER) -> list[ModelBody]:
        """All models."""
        return await self._bodies(await asyncio.to_thread(self._registry.models, owner))

    async def model(self, name: str, *, owner: str = LOCAL_OWNER) -> ModelBody:
        """One model. NotFound lists the names that exist."""
        listed = await asyncio.to_thread(self._registry.models, owner)
        for row in listed:
            if row.model.name == name:
                return (await self._bodies([row]))[0]
        known = ", ".join(row.model.name for row in listed) or "none"
        raise NotFound(f"there is no model {name[:80]!r}; there are: {known}")

    async def load(self, name: str, *, owner: str = LOCAL_OWNER) -> ModelBody:
        """Load the active version and keep it loaded; it is ready in this process when this returns.

        NotFound, Unavailable.
        """
        key = await self._active(name, owner)
        before = (await self.model(name, owner=owner)).desired
        # Recorded first: a reconciler that has not yet acted on a recent unload would unload it again.
        await asyncio.to_thread(self._registry.set_desired, name, "loaded")
        try:
            await self._runner.load(key, pin=True)
        except BaseException:
            await asyncio.to_thread(self._registry.set_desired, name, before)
            raise
        return await self.model(name, owner=owner)

    async def unload(self, name: str, *, owner: str = LOCAL_OWNER) -> ModelBody:
        """Unload a model; requests under way finish first. NotFound, Unavailable."""
        key = await self._active(name, owner)
        await asyncio.to_thread(self._registry.set_desired, name, "unloaded")
        await self._runner.unload(key)
        return await self.model(name, owner=owner)

    async def activate(self, name: str, version: int, *, owner: str = LOCAL_OWNER) -> ModelBody:
        """Make ``version`` the active one. NotFound."""
        row = await asyncio.to_thread(self._registry.activate, name, version)
        await self._runner.enable(ModelKey(row.owner, row.name, row.version))
        await asyncio.to_thread(self._index.refresh)
        return await self.model(name, owner=owner)

    async def _active(self, name: str, owner: str) -> ModelKey:
        try:
            row = await asyncio.to_thread(self._registry.resolve, name, None, owner)
        except (NotFound, Unavailable) as refusal:
            raise await self._index.absent(owner, name, refusal) from None
        return ModelKey(row.owner, row.name, row.version)

    async def _bodies(self, listed: Sequence[Listed]) -> list[ModelBody]:
        replicas = await asyncio.to_thread(self._registry.replicas)
        held: dict[ModelKey, ModelState] | None
        try:
            held = {state.key: state for state in await self._runner.states()}
        except Temporary:
            held = None
        return [await self._body(row, replicas, held) for row in listed]

    async def _body(
        self, listed: Listed, replicas: Sequence[ModelReplica], held: dict[ModelKey, ModelState] | None
    ) -> ModelBody:
        model, active = listed.model, listed.active
        mine = [row for row in replicas if row.name == model.name]
        manifest: dict[str, Any] = active.manifest if active else {}
        state: State = "unavailable"
        reason, memory, counters = model.unavailable_reason, 0, _NO_COUNTS
        if active is not None:
            key = ModelKey(active.owner, active.name, active.version)
            # Its own report may be a second old; the runner knows the present state.
            others = [row for row in mine if row.process_id != self._process_id]
            state, reason, memory = _state(key, held, others)
            if active.disabled_reason:
                state, reason = "unavailable", f"disabled: {active.disabled_reason}"
            if held is not None and key in held:
                counters = await self._runner.counters(key)
        weights = manifest.get("weights")
        return ModelBody(
            name=model.name,
            task=cast(Task | None, active.task if active else model.task),
            version=active.version if active else None,
            state=state,
            reason=reason,
            desired=cast(Desired, model.desired),
            memory_bytes=memory,
            weights=_weights(weights) if weights else None,
            licence=manifest.get("licence"),
            source=manifest.get("source"),
            precision=manifest.get("precision"),
            classes=len(manifest["labels"]) or None if manifest else None,
            counters=counters,
            replicas=[_replica_body(row) for row in mine],
            versions=[version_body(row) for row in listed.versions],
        )


def _replica_body(row: ModelReplica) -> ReplicaBody:
    return ReplicaBody(
        process_id=row.process_id,
        host=row.host,
        version=row.version,
        state=cast(ReplicaState, row.state),
        reason=row.reason,
        memory_bytes=row.memory_bytes,
    )


def _state(
    key: ModelKey, held: dict[ModelKey, ModelState] | None, replicas: Sequence[ModelReplica]
) -> tuple[State, str | None, int]:
    """State, reason and bytes of memory: of this process (or its runner), else the best that others have reported."""
    if held is None:
        return "unavailable", "the runner is not reachable", 0
    own = held.get(key)
    if own is not None and own.state != "unloaded":
        return "unavailable" if own.state == "failed" else own.state, own.reason or None, own.memory_bytes
    others = [r for r in replicas if r.version == key.version and r.state in ("ready", "loading")]
    if others:
        best = min(others, key=lambda r: r.state != "ready")
        return cast(State, best.state), None, best.memory_bytes
    return "unloaded", None, 0


def _weights(weights: dict[str, Any]) -> str:
    return f"{weights['kind']} ({weights['detail']})" if weights.get("detail") else str(weights["kind"])
