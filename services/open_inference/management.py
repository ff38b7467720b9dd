"""Management by the Open Inference Protocol: readiness, metadata, configuration, repository and statistics."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from ekiben import __version__
from ekiben.errors import BadInput, NotFound, Unavailable, Unsupported
from ekiben.ids import LOCAL_OWNER
from services import metrics
from services.model_registry.repository import ModelRepository
from services.open_inference import metadata
from services.open_inference.inference import OpenInference
from services.processes.health_checks import HealthChecks
from services.schemas.models import ModelBody
from services.schemas.validation import short

Info = dict[str, Any]


class ProtocolManagement:
    """The protocol's methods besides inference. Results are JSON-ready dicts with the protocol's fields."""

    def __init__(self, models: ModelRepository, inference: OpenInference, health: HealthChecks) -> None:
        self._models = models
        self._inference = inference
        self._health = health

    async def ready(self) -> bool:
        """Whether requests can be served."""
        return all(part.ok for part in (await self._health.parts()).values())

    def server(self) -> Info:
        """The metadata of the server."""
        return metadata.server_metadata(__version__)

    async def model_ready(self, name: str, version: str, *, owner: str = LOCAL_OWNER) -> bool:
        """Whether it is loaded, or would be on a request. False from an unload to the next load. NotFound."""
        try:
            served = await self._inference.find(name, version, owner=owner)
        except Unavailable:
            return False
        body = await self._models.model(name, owner=owner)
        return served.key.version != body.version or _ready(body)

    async def metadata(self, name: str, version: str, *, owner: str = LOCAL_OWNER) -> Info:
        """The metadata of a model. NotFound, Unavailable."""
        served = await self._inference.find(name, version, owner=owner)
        body = await self._models.model(name, owner=owner)
        return metadata.metadata(served, sorted(row.version for row in body.versions))

    async def config(self, name: str, version: str, *, owner: str = LOCAL_OWNER) -> Info:
        """The configuration of a model, as far as clients need Triton's. NotFound, Unavailable."""
        return metadata.config(await self._inference.find(name, version, owner=owner))

    async def repository(self, repository: str = "", *, ready: bool = False, owner: str = LOCAL_OWNER) -> list[Info]:
        """Every version of every model; ``ready``: only those that can run requests.

        NotFound for a named repository.
        """
        if repository:
            raise NotFound(f"there is no repository {short(repository)!r}; there is one, without a name")
        rows: list[Info] = []
        for body in await self._models.models(owner=owner):
            versions: list[int | None] = [row.version for row in reversed(body.versions)]
            for version in versions or [None]:
                rows.append(_indexed(body, version))
        return [row for row in rows if not ready or row["state"] == "READY"]

    async def load(self, name: str, parameters: Mapping[str, Any], *, owner: str = LOCAL_OWNER) -> None:
        """Load a model and keep it loaded.

        NotFound; Unsupported for a configuration or files in the request; BadInput.
        """
        for given in parameters:
            if given == "config" or given.startswith("file:"):
                raise Unsupported(
                    "a model is loaded as it was imported: configurations and files with the request are refused; "
                    "POST /v1/models imports a model"
                )
            raise BadInput(f"load has no parameter {short(given)!r}")
        await self._models.load(name, owner=owner)

    async def unload(self, name: str, parameters: Mapping[str, Any], *, owner: str = LOCAL_OWNER) -> None:
        """Unload a model. ``unload_dependents`` is accepted: no model depends on another. NotFound, BadInput."""
        for given in parameters:
            if given != "unload_dependents":
                raise BadInput(f"unload has no parameter {short(given)!r}; there is unload_dependents")
        await self._models.unload(name, owner=owner)

    async def statistics(self, name: str, version: str, *, owner: str = LOCAL_OWNER) -> Info:
        """Statistics since the server started, of every protocol and all gateway processes.

        ``name`` "": of all models.
        """
        if name:
            served = await self._inference.find(name, version, owner=owner)
            keys = [(name, str(served.key.version))]
            if not version:
                body = await self._models.model(name, owner=owner)
                keys = [(name, str(row.version)) for row in reversed(body.versions)]
        else:
            bodies = await self._models.models(owner=owner)
            keys = [(body.name, str(row.version)) for body in bodies for row in reversed(body.versions)]
        totals = await asyncio.to_thread(metrics.model_totals)
        return {"model_stats": [_statistics(key, totals.get(key, {})) for key in keys]}


def _ready(body: ModelBody) -> bool:
    return body.state != "unavailable" and body.desired != "unloaded"


def _indexed(body: ModelBody, version: int | None) -> Info:
    row: Info = {"name": body.name}
    if version is None:
        return {**row, "state": "UNAVAILABLE", "reason": body.reason or "it has no version"}
    row["version"] = str(version)
    if version != body.version or _ready(body):  # a version that is not active is loaded on request
        loading = version == body.version and body.state == "loading"
        return {**row, "state": "LOADING" if loading else "READY", "reason": ""}
    return {**row, "state": "UNAVAILABLE", "reason": body.reason or "unloaded"}


def _statistics(key: tuple[str, str], totals: Mapping[str, float]) -> Info:
    succeeded, failed = int(totals.get("succeeded", 0)), int(totals.get("failed", 0))

    def spent(count: int, phase: str) -> Info:
        return {"count": count, "ns": round(totals.get(phase, 0.0) * 1e9)}

    return {
        "name": key[0],
        "version": key[1],
        "last_inference": round(totals.get("last", 0.0) * 1e3),
        "inference_count": succeeded,
        "execution_count": round(totals.get("runs", 0.0)),
        "inference_stats": {
            "success": spent(succeeded, "all"),
            "fail": spent(failed, "failed_seconds"),
            "queue": spent(succeeded, "queue"),
            "compute_input": spent(succeeded, "prepare"),
            "compute_infer": spent(succeeded, "run"),
            "compute_output": spent(succeeded, "finish"),
            "cache_hit": {"count": 0, "ns": 0},
            "cache_miss": {"count": 0, "ns": 0},
        },
        "batch_stats": [],
    }
