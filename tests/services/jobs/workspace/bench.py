"""A worker with one job handler, ``paint``, that does what the test says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sqlmodel import Session

from db.job_states import OVER, ClaimedItem, ItemResult
from db.publishing import publish_folder
from db.tables import Job, JobEvent, ModelVersion
from ekiben.ids import LOCAL_OWNER
from models.artifact import read_manifest
from services.jobs.executor import JobExecutor
from services.jobs.submission import JobTerms
from services.jobs.workspace import JobWorkspace
from tests import toy_models
from tests.services.jobs.job_homes import AtWork

Run = Callable[..., None]
Work = Callable[["Bench", Job, ClaimedItem], Awaitable[None]]


class Bench:
    """A worker whose only job handler, ``paint``, is whatever the test says."""

    def __init__(self, at: AtWork, threads: ThreadPoolExecutor, folder: Path) -> None:
        self.at, self.app_state, self.records, self.folder = at, at.app_state, at.records, folder
        self._threads = threads
        self.does: Work = nothing
        self.attempts = 0
        self.trainings = 16
        self.wrong: list[AssertionError] = []
        self.workspace, self.work = self.another_worker()

    def another_worker(self) -> tuple[JobWorkspace, JobExecutor]:
        at = self.at
        at.another_worker()
        own = JobWorkspace(self.app_state.settings, self.app_state.store, self.records, at.worker_id, self._threads)
        work = JobExecutor(
            self.app_state.inference,
            self.records,
            self.app_state.job_queue,
            at.worker_id,
            max_items=1,
            max_heavy=1,
            handlers={"paint": self._job_handler(own)},
            limits={"training": self.trainings},
        )
        return own, work

    def _job_handler(self, own: JobWorkspace) -> Any:
        async def handler(job: Job, item: ClaimedItem) -> None:
            self.attempts += 1
            self.workspace = own
            try:
                await self.does(self, job, item)
            except AssertionError as error:  # it would end the item with an internal error, and nobody would see it
                self.wrong.append(error)
                raise

        return handler

    async def submit(self, timeout_s: float | None = None, **given: Any) -> Job:
        terms = JobTerms(timeout_s=timeout_s)
        job, created = await self.app_state.jobs.submit_single(
            "training", "paint", {"wide": 3}, terms, given="x", **given
        )
        assert created
        return job

    async def finish(self, job_id: str, seconds: float = 60.0) -> Job:
        """Work on entry after entry until it is over."""
        end = time.monotonic() + seconds
        while (job := self.at.job(job_id)).state not in OVER:
            assert time.monotonic() < end, self.at.items(job_id)
            await self.work.work(job_id)
            await asyncio.sleep(0.01)
        return job

    def told(self, job_id: str) -> list[JobEvent]:
        return self.records.events(LOCAL_OWNER, job_id, 0)[0]

    def file(self, name: str, content: str) -> Path:
        path = self.folder / "made" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        return path

    def item_result(self, item: ClaimedItem, **result: Any) -> ItemResult:
        return ItemResult(item.job_id, item.id, self.workspace.worker_id, result=result)


async def nothing(bench: Bench, job: Job, item: ClaimedItem) -> None:
    """It ends well."""
    await asyncio.wrap_future(bench.app_state.records.save([], bench.item_result(item, painted=True)))


async def never(bench: Bench, job: Job, item: ClaimedItem) -> None:
    await asyncio.Event().wait()


def publishing(bench: Bench, item: ClaimedItem, also: Callable[[Session, ModelVersion], None]) -> Callable[[], object]:
    folder = bench.folder / "colours"
    if not folder.is_dir():
        toy_models.classifier(folder)
    manifest = read_manifest(folder)
    return lambda: publish_folder(
        bench.app_state.registry,
        bench.app_state.store,
        folder,
        name="painted",
        manifest=manifest.model_dump(mode="json"),
        digest=manifest.digest,
        lineage={},
        also=also,
    )
