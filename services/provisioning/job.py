"""Provisioning: the job handler that turns published weights into the first version of a model."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from sqlmodel import Session

from db.job_states import LOST, ClaimedItem, ItemResult, finish_items
from db.publishing import publish_folder
from db.tables import Job, ModelVersion
from ekiben.errors import Conflict, NotFound, Refusal, Temporary
from models.artifact import read_manifest
from services.concurrency.retry import retry_while_unavailable
from services.jobs.child_process import Message, run_child
from services.jobs.torch_environment import EXPORTING, torch_python
from services.jobs.workspace import JobWorkspace, child_environ
from services.model_registry.index import ModelIndex

if TYPE_CHECKING:
    from export.zoo import ZooRow

log = logging.getLogger(__name__)

KIND, OPERATION = "provision", "provision_model"
EVENT = "provision"
"""Kind of the events that say how far it is."""

_REASON = 1000  # characters, of why a model is unavailable


class ProvisionHandler:
    """A ``JobHandler``. The job's parameters name the model."""

    def __init__(self, workspace: JobWorkspace, index: ModelIndex) -> None:
        self._workspace = workspace
        self._index = index

    async def __call__(self, job: Job, item: ClaimedItem) -> None:
        """See ``JobHandler.__call__``. Where it fails for good the model is listed as unavailable, with the reason."""
        workspace, name = self._workspace, job.parameters["name"]
        row = _row(name, workspace)
        folder = await asyncio.to_thread(workspace.folder, job)
        try:
            await self._provide(job, item, row, folder)
        except Refusal as refusal:
            # Where another worker has the item now, it says what becomes of the model.
            if not isinstance(refusal, Temporary) and refusal.code != LOST:
                log.warning("model not provided: %s", refusal, extra={"model": name})
                await self._mark_unavailable(job, row, refusal.message)
            raise
        finally:
            await asyncio.to_thread(workspace.clear, job)

    async def _mark_unavailable(self, job: Job, row: ZooRow, reason: str) -> None:
        mark = self._index.registry.mark_unavailable
        await retry_while_unavailable(
            lambda: self._workspace.run(mark, row.name, row.task, reason[:_REASON], job.owner)
        )

    async def _provide(self, job: Job, item: ClaimedItem, row: ZooRow, folder: Path) -> None:
        workspace = self._workspace
        listed = await workspace.run(self._index.registry.models, job.owner)
        if any(each.model.name == row.name and each.versions for each in listed):
            raise Conflict(f"model {row.name} has a version already")
        await workspace.emit_event(item, EVENT, {"phase": "environment"}, 0.0)
        python = await torch_python(workspace.settings.training_python, EXPORTING)
        options = {
            "name": row.name,
            "url": row.url,
            "sha256": row.sha256_prefix,
            "published": row.published,
            "downloads": str(workspace.settings.cache_folder / "downloads"),
        }
        (folder / "options.json").write_bytes(orjson.dumps(options))

        async def on_message(message: Message) -> None:
            if "event" in message:
                await workspace.emit_event(item, message["event"], message["data"], message.get("progress"))

        command = [python, "-m", "export.provide", "--folder", str(folder), "--with-parent"]
        result = await run_child(command, on_message, folder=folder, environ=child_environ())
        await workspace.emit_event(item, EVENT, {"phase": "publish"}, 0.97)
        await self._publish(job, item, row, folder / "artifact", result)

    async def _publish(self, job: Job, item: ClaimedItem, row: ZooRow, artifact: Path, result: dict[str, Any]) -> None:
        """Publish the version, in one transaction with the end of the item. Conflict (LOST) when another worker has the
        item now."""
        workspace, manifest = self._workspace, read_manifest(artifact)
        lineage = {
            "source": "provision",
            "job_id": job.id,
            "url": row.url,
            "weights": manifest.weights.model_dump(mode="json"),
        }
        stored: dict[str, Any] = {}

        def end(session: Session, version: ModelVersion) -> None:
            stored.update(model={"name": row.name, "version": version.version}, **result)
            done = ItemResult(item.job_id, item.id, workspace.worker_id, result=stored)
            finish_items(session.connection(), [done])

        def publish() -> None:
            publish_folder(
                self._index.registry,
                workspace.store,
                artifact,
                name=row.name,
                manifest=manifest.model_dump(mode="json"),
                digest=manifest.digest,
                lineage=lineage,
                owner=job.owner,
                also=end,
            )

        await retry_while_unavailable(lambda: asyncio.to_thread(publish))
        log.info("model provided", extra={"model": stored["model"]})


def _row(name: str, workspace: JobWorkspace) -> ZooRow:
    """The row of the zoo with the addresses of the settings. NotFound where this worker does not have it."""
    try:
        from export.zoo import ZOO, by_settings
    except ImportError:
        raise NotFound("this worker has no exporter (package export): it runs in a Bento") from None
    if name not in ZOO:  # submitted to another version of Ekiben
        raise NotFound(f"this worker has no recipe for a model {name}")
    return by_settings(ZOO[name], workspace.settings)
