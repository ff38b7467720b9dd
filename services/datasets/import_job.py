"""Importing datasets: the job handler that turns an uploaded or fetched ZIP into checked samples."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import orjson

from db.datasets import Datasets, file_key
from db.job_states import ClaimedItem, ItemResult
from db.tables import Dataset, Job
from ekiben.errors import NotFound
from models.engine.memory import free_mb
from services.concurrency.retry import retry_while_unavailable
from services.jobs.child_process import ChildFailed, Message, run_child
from services.jobs.workspace import JobWorkspace, child_environ

OPERATION = "import_dataset"

_FREE_SHARE = 0.8  # of the free memory, for the child where EKIBEN_DATASET_MEMORY_MB is not set
_LEAST_MB = 256  # the program and its libraries alone take 100


class DatasetImportHandler:
    """A ``JobHandler``. The job's parameters name the dataset."""

    def __init__(self, workspace: JobWorkspace, datasets: Datasets) -> None:
        self._workspace = workspace
        self._datasets = datasets

    async def __call__(self, job: Job, item: ClaimedItem) -> None:
        """See ``JobHandler.__call__``. A dataset with errors fails the item, and keeps its report."""
        workspace = self._workspace
        dataset = (await workspace.run(self._datasets.dataset, job.owner, job.parameters["dataset_id"])).dataset
        folder = await asyncio.to_thread(workspace.folder, job)
        try:
            (folder / "import.json").write_bytes(orjson.dumps(self._options(job, dataset)))
            if item.storage_key is not None:
                await workspace.fetch(item.storage_key, folder / "upload.zip", item.bytes, item.sha256)
            elif dataset.source["kind"] != "url":
                raise NotFound("what was uploaded is gone")

            async def on_message(message: Message) -> None:
                if "event" in message:
                    await workspace.emit_event(item, message["event"], message["data"], message.get("progress"))

            command = [sys.executable, "-m", "services.datasets.importer", "--folder", str(folder), "--with-parent"]
            if memory_mb := workspace.settings.dataset_memory_mb or _free_share():
                command += ["--memory-mb", str(memory_mb)]
            try:
                result = await run_child(command, on_message, folder=folder, environ=child_environ())
            except ChildFailed as failed:
                if not (folder / "report.json").is_file():
                    raise
                await self._refused(item, dataset, folder, failed)
                return
            await self._imported(item, dataset, folder, result)
        finally:
            await asyncio.to_thread(workspace.clear, job)

    def _options(self, job: Job, dataset: Dataset) -> dict[str, Any]:
        settings = self._workspace.settings
        return {
            "name": dataset.name,
            "source": "url" if dataset.source["kind"] == "url" else "upload",
            "url": dataset.source.get("url"),
            "classes": job.parameters.get("classes"),
            "background": job.parameters.get("background"),
            "max_mb": settings.dataset_mb,
            "timeout_s": job.timeout_s,
            "allow_private": settings.private_urls,
        }

    async def _imported(self, item: ClaimedItem, dataset: Dataset, folder: Path, result: dict[str, Any]) -> None:
        workspace, report = self._workspace, _report(folder)
        archive = folder / "dataset.zip"
        preview = folder / "preview.png"
        await workspace.put(file_key(dataset, "archive"), archive, "application/zip")
        if preview.is_file():
            await workspace.put(file_key(dataset, "preview"), preview, "image/png")
        found = {
            "state": "ready",
            "samples": report["samples"],
            "files": report["files"],
            "bytes": archive.stat().st_size,
            "classes": report["classes"],
            "report": report,
        }
        stored_result = {"dataset_id": dataset.id, **result}
        item_result = ItemResult(item.job_id, item.id, workspace.worker_id, result=stored_result)
        await retry_while_unavailable(lambda: workspace.run(self._datasets.imported, dataset.id, item_result, found))
        if item.storage_key is not None:
            await asyncio.to_thread(workspace.store.delete, item.storage_key)

    async def _refused(self, item: ClaimedItem, dataset: Dataset, folder: Path, failed: ChildFailed) -> None:
        """Store the report with the dataset, and fail the item."""
        workspace, report = self._workspace, _report(folder)
        preview = folder / "preview.png"
        if preview.is_file():
            await workspace.put(file_key(dataset, "preview"), preview, "image/png")
        found = {"state": "refused", "samples": report["samples"], "files": report["files"], "report": report}
        error = {"code": failed.code, "message": failed.message}
        item_result = ItemResult(item.job_id, item.id, workspace.worker_id, error=error)
        await retry_while_unavailable(lambda: workspace.run(self._datasets.imported, dataset.id, item_result, found))


def _free_share() -> int:
    """The limit in MiB where none is set; 0 where it is not known what is free."""
    free = free_mb()
    return max(_LEAST_MB, int(_FREE_SHARE * free)) if free else 0


def _report(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = orjson.loads((folder / "report.json").read_bytes())
    return report
