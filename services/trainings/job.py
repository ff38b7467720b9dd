"""Training: the job handler that turns a dataset into a new version of a model."""

from __future__ import annotations

import asyncio
import logging
import shutil
from pathlib import Path
from typing import Any

import orjson
from sqlmodel import Session

from db.datasets import Datasets, file_key
from db.job_states import ClaimedItem, ItemResult, finish_items
from db.publishing import publish_folder
from db.tables import Dataset, Job, ModelVersion
from ekiben.errors import Damaged, NotFound
from models.artifact import read_manifest
from models.engine.engine import ModelKey
from models.engine.memory import free_mb
from services.concurrency.retry import retry_while_unavailable
from services.jobs.child_process import Message, run_child
from services.jobs.torch_environment import TRAINING, torch_python
from services.jobs.workspace import JobWorkspace, child_environ
from services.model_registry.index import ModelIndex

log = logging.getLogger(__name__)

OPERATION = "train"
CHECKPOINT, PREVIEW, EVALUATION, TENSORBOARD = "checkpoint", "preview", "evaluation", "tensorboard"
"""Kinds of the artifacts of a training."""

_CHECKPOINT_FILE = "checkpoint.pt"
_FREE_SHARE = 0.8  # of the free memory, for the child where EKIBEN_TRAINING_MEMORY_MB is not set


class TrainingHandler:
    """A ``JobHandler``. The job's parameters are the dataset, the name of the model and the options."""

    def __init__(self, workspace: JobWorkspace, datasets: Datasets, index: ModelIndex) -> None:
        self._workspace = workspace
        self._datasets = datasets
        self._index = index

    async def __call__(self, job: Job, item: ClaimedItem) -> None:
        """See ``JobHandler.__call__``."""
        workspace = self._workspace
        dataset = await workspace.run(self._datasets.ready, job.owner, job.parameters["dataset_id"])
        folder = await asyncio.to_thread(workspace.folder, job)
        try:
            await self._write_inputs(job, dataset, folder)
            python = await torch_python(workspace.settings.training_python, TRAINING)
            memory_mb = workspace.settings.training_memory_mb or int(_FREE_SHARE * free_mb())
            command = [python, "-m", "training", "--folder", str(folder), "--with-parent"]
            if memory_mb:
                command += ["--memory-mb", str(memory_mb)]

            async def on_message(message: Message) -> None:
                await self._on_message(item, folder, message)

            result = await run_child(command, on_message, folder=folder, environ=child_environ())
            await self._publish(job, item, dataset, folder, result)
        finally:
            await asyncio.to_thread(workspace.clear, job)

    async def _write_inputs(self, job: Job, dataset: Dataset, folder: Path) -> None:
        """Write what the child reads: options, samples, weights to start from, the checkpoint of an earlier attempt."""
        workspace, options = self._workspace, job.parameters["options"]
        (folder / "options.json").write_bytes(orjson.dumps(options))
        await workspace.fetch(file_key(dataset, "archive"), folder / "dataset.zip", dataset.bytes)
        if (start := job.parameters.get("start_from")) is not None:
            key = ModelKey(job.owner, start["name"], start["version"])
            artifact = await retry_while_unavailable(lambda: workspace.run(self._index.locate, key))
            await asyncio.to_thread(shutil.copytree, artifact, folder / "start")
        stored = await workspace.run(workspace.jobs.files, job.owner, job.id, CHECKPOINT)
        if stored:
            last, checkpoint = stored[-1], folder / _CHECKPOINT_FILE
            try:
                await workspace.fetch(last.storage_key, checkpoint, last.bytes, last.sha256)
            except (NotFound, Damaged) as error:
                log.warning("the training begins anew: its checkpoint cannot be used: %s", error)
                checkpoint.unlink(missing_ok=True)

    async def _on_message(self, item: ClaimedItem, folder: Path, message: Message) -> None:
        workspace = self._workspace
        if message.get("file") == _CHECKPOINT_FILE:  # others are stored with the events that name them, or at the end
            await workspace.store_file(item, CHECKPOINT, folder / _CHECKPOINT_FILE)
        elif "event" in message:
            kind, data = message["event"], message["data"]
            if kind == PREVIEW:
                artifact = await workspace.store_file(item, PREVIEW, folder / data.pop("file"))
                data["url"] = f"/v1/artifacts/{artifact.id}"
            await workspace.emit_event(item, kind, data, message.get("progress"))

    async def _publish(
        self, job: Job, item: ClaimedItem, dataset: Dataset, folder: Path, result: dict[str, Any]
    ) -> None:
        """Store the artifacts and publish the newest version of the model, in one transaction with the end of the item.

        Conflict (LOST) when another worker has the item now.
        """
        workspace, name = self._workspace, job.parameters["name"]
        files = {}
        for kind, path in ((EVALUATION, folder / "evaluation.json"), (TENSORBOARD, _zipped(folder, "tensorboard"))):
            if path is not None and path.is_file():
                files[kind] = f"/v1/artifacts/{(await workspace.store_file(item, kind, path)).id}"
        artifact = folder / "artifact"
        manifest = read_manifest(artifact)
        lineage = {
            "source": "training",
            "training_id": job.id,
            "dataset": {"id": dataset.id, "name": dataset.name, "samples": dataset.samples},
            "options": job.parameters["options"],
            "start_from": job.parameters.get("start_from"),
        }
        stored_result: dict[str, Any] = {}

        def end(session: Session, version: ModelVersion) -> None:
            stored_result.update(model={"name": name, "version": version.version}, **result, artifacts=files)
            item_result = ItemResult(item.job_id, item.id, workspace.worker_id, result=stored_result)
            finish_items(session.connection(), [item_result])

        def publish() -> None:
            publish_folder(
                self._index.registry,
                workspace.store,
                artifact,
                name=name,
                manifest=manifest.model_dump(mode="json"),
                digest=manifest.digest,
                lineage=lineage,
                owner=job.owner,
                also=end,
            )

        await retry_while_unavailable(lambda: asyncio.to_thread(publish))
        log.info("trained", extra={"model": stored_result["model"], "metrics": result.get("metrics", {}).get("dice")})
        for key in await workspace.run(workspace.jobs.forget_files, job.owner, job.id, CHECKPOINT):
            await asyncio.to_thread(workspace.store.delete, key)


def _zipped(folder: Path, name: str) -> Path | None:
    if not (folder / name).is_dir():
        return None
    return Path(shutil.make_archive(str(folder / name), "zip", folder, name))
