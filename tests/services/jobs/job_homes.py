"""A home with the toys, a platform on it and a worker's executor, in this process: what the tests of jobs share."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, func, select

from db.job_states import OVER
from db.jobs import JobRecords
from db.tables import Artifact, Image, Job, JobItem, Prediction
from ekiben.ids import LOCAL_OWNER, new_id
from ekiben.settings import Settings
from services.app_state import AppState
from services.inference import operations
from services.inference.context import RequestContext
from services.jobs.executor import JobExecutor
from services.jobs.submission import JobTerms
from tests import toy_models, toy_sam
from tests.conftest import publish

VARYING = ("id", "url", "timing", "embedding")
"""What two answers about one image need not have in common."""


def make_home(folder: Path) -> Path:
    """A home that knows ``colours``, ``areas`` and ``sam_toy``, to be copied for each test."""
    toy_models.classifier(folder / "colours")
    toy_models.segmenter(folder / "areas")
    toy_sam.sam(folder / "sam_toy")
    for name in ("colours", "areas", "sam_toy"):
        publish(folder / "var", name, folder / name)
    return folder / "var"


def comparable(answer: Any) -> Any:
    """An answer without ids and timings; of its files, which there are."""
    if isinstance(answer, list | tuple):
        return [comparable(each) for each in answer]
    if not isinstance(answer, dict):
        return answer
    made = answer.get("artifacts")
    rest = {name: comparable(value) for name, value in answer.items() if name not in (*VARYING, "artifacts")}
    return rest if made is None else {**rest, "artifacts": sorted(made)}


class AtWork:
    """A platform as a worker has it, and its executor."""

    def __init__(self, app_state: AppState, max_items: int, max_heavy: int) -> None:
        self.app_state = app_state
        self.records = JobRecords(app_state.database)
        self._max_items = (max_items, max_heavy)
        self.worker_id = ""
        self.work = self.another_worker()

    def another_worker(self) -> JobExecutor:
        """The executor of one more worker."""
        self.worker_id = new_id()
        max_items, max_heavy = self._max_items
        return JobExecutor(
            self.app_state.inference,
            self.records,
            self.app_state.job_queue,
            self.worker_id,
            max_items=max_items,
            max_heavy=max_heavy,
        )

    async def submit(
        self,
        operation: str,
        images: Sequence[bytes],
        parameters: dict[str, Any],
        *,
        image_ids: Sequence[str] = (),
        kind: str = "batch",
        store: bool = True,
        timeout_s: float | None = None,
    ) -> Job:
        jobs = self.app_state.jobs
        items = [await jobs.new_item(data, f"{number}.png") for number, data in enumerate(images)]
        items += await jobs.stored_items(image_ids)
        options = operations.read_parameters(operations.operation(operation), parameters)
        job, created = await jobs.submit(
            RequestContext(self.app_state.inference),
            kind,
            operation,
            options,
            items,
            JobTerms(timeout_s=timeout_s),
            store=store,
        )
        assert created
        return self.job(job.id)

    async def finish(self, job_id: str, entries: int = 10) -> Job:
        """Work on entry after entry of the job until it is over."""
        for _ in range(entries):
            await self.work.work(job_id)
            if (job := self.job(job_id)).state in OVER:
                return job
        raise AssertionError(f"{job_id} is {job.state} after {entries} entries: {self.items(job_id)}")

    def job(self, job_id: str) -> Job:
        return self.records.job(LOCAL_OWNER, job_id)

    def items(self, job_id: str) -> list[JobItem]:
        return list(self.records.items(LOCAL_OWNER, job_id).items)

    def states(self, job_id: str) -> list[str]:
        return [item.state for item in self.items(job_id)]

    async def results(self, job_id: str) -> list[dict[str, Any] | None]:
        """The items' answers in their order."""
        found, answers = await self.app_state.jobs.items(job_id, None, 1, 50)
        return [answers.get(item.id) for item in found.items]

    def rows(self) -> dict[str, int]:
        """How many images, predictions and artifacts the database has."""
        with Session(self.app_state.database) as session:
            return {
                table.__tablename__: session.exec(select(func.count()).select_from(table)).one()
                for table in (Image, Prediction, Artifact)
            }

    def blobs(self) -> set[str]:
        """Keys of what is stored, but for the models."""
        store = self.app_state.store
        return {*store.list("images/"), *store.list("artifacts/")}

    def change_item(self, item_id: str, **values: Any) -> None:
        with Session(self.app_state.database) as session:
            session.execute(sa.update(JobItem).where(col(JobItem.id) == item_id).values(**values))
            session.commit()

    def change_job(self, job_id: str, **values: Any) -> None:
        with Session(self.app_state.database) as session:
            session.execute(sa.update(Job).where(col(Job.id) == job_id).values(**values))
            session.commit()


@asynccontextmanager
async def at_work(
    template: Path, folder: Path, *, max_items: int = 4, max_heavy: int = 1, **settings: Any
) -> AsyncIterator[AtWork]:
    """A worker on a copy of ``template`` in ``folder``."""
    home = folder / "var"
    shutil.copytree(template, home, dirs_exist_ok=True)
    given = {"home": home, "threads": 2, "device": "cpu"} | settings
    app_state = await AppState.start(Settings(**given), for_jobs=True)
    try:
        yield AtWork(app_state, max_items, max_heavy)
    finally:
        await app_state.stop()
