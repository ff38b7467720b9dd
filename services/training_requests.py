"""Trainings as their owners see them: asked for, followed, compared. Transport-free, beside Jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from pydantic import ConfigDict, Field

from db.blobs import BlobStore
from db.datasets import Datasets
from db.jobs import JobRecords
from db.records import Page
from db.tables import Artifact, Job, JobEvent
from ekiben.errors import BadInput, Conflict, NotFound
from ekiben.settings import Settings
from ekiben.training import TrainingOptions
from services.comparing import Compared, compare
from services.jobs import Asking, Jobs
from services.model_index import ModelIndex
from services.options import NAME
from services.trainings import EVALUATION, OPERATION
from services.vision import LOCAL

MAX_COMPARED = 20


class TrainingRequest(TrainingOptions):
    """A training: what on, what it is to be called, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset_id: str = Field(description="A dataset that is ready.")
    name: str = Field(pattern=NAME, description="Of the model; a known name gets a new version.")

    @property
    def options(self) -> dict[str, Any]:
        """Those given; the rest keeps the defaults of the version of Ekiben that trains."""
        return self.model_dump(mode="json", exclude_unset=True, exclude={"dataset_id", "name"})


@dataclass(frozen=True, slots=True)
class Training:
    """A training's job and what it has told so far. ``result`` None: it has not succeeded."""

    job: Job
    result: dict[str, Any] | None
    epochs: list[JobEvent] = field(default_factory=list)
    last: dict[str, JobEvent] = field(default_factory=dict)
    files: list[Artifact] = field(default_factory=list)


class TrainingRequests:
    """Submits, shows and compares trainings. All methods take ``owner``; nothing is found across owners."""

    def __init__(
        self,
        settings: Settings,
        datasets: Datasets,
        records: JobRecords,
        jobs: Jobs,
        index: ModelIndex,
        store: BlobStore,
    ) -> None:
        self._settings = settings
        self._datasets = datasets
        self._records = records
        self._jobs = jobs
        self._index = index
        self._store = store

    async def submit(self, asked: TrainingRequest, asking: Asking, *, owner: str = LOCAL) -> tuple[Job, bool]:
        """The job, and whether it is new. NotFound, Conflict for a dataset that is not ready, BadInput."""
        dataset = await asyncio.to_thread(self._datasets.ready, owner, asked.dataset_id)
        for listed in await asyncio.to_thread(self._index.registry.models, owner):
            if listed.model.name == asked.name and listed.active is not None and listed.active.task != "segment":
                raise Conflict(f"model {asked.name} is there to {listed.active.task}: choose another name")
        start = None
        if asked.start_from is not None:
            name, _, version = asked.start_from.partition("/")
            served = await self._index.resolve(owner, name, int(version) if version else None, "segment")
            start = {"name": served.key.name, "version": served.key.version}
        parameters: dict[str, Any] = {"dataset_id": dataset.id, "dataset": dataset.name, "name": asked.name}
        parameters |= {"options": asked.options, "start_from": start}
        return await self._jobs.undertake(
            "training",
            OPERATION,
            parameters,
            asking,
            given=[asked.dataset_id, asked.name, asked.options],
            timeout_s=self._settings.training_timeout_s,
            owner=owner,
        )

    async def trainings(self, page: int, limit: int, *, owner: str = LOCAL) -> Page[Training]:
        """Newest first, without what they told."""

        def read() -> Page[Training]:
            found = self._records.jobs(owner, None, "training", page, limit)
            items = [Training(job, self._result(owner, job)) for job in found.items]
            return Page(items, found.total, found.page, found.limit)

        return await asyncio.to_thread(read)

    async def training(self, id: str, *, owner: str = LOCAL) -> Training:
        """NotFound for what is no training."""

        def read() -> Training:
            job = self._job(owner, id)
            epochs, last = self._records.told(owner, id, "epoch")
            return Training(job, self._result(owner, job), epochs, last, self._records.files(owner, id))

        return await asyncio.to_thread(read)

    async def compare(self, ids: Sequence[str], *, owner: str = LOCAL) -> Compared:
        """Trainings side by side, over the test images that they share. BadInput for fewer than two."""
        ids = list(dict.fromkeys(ids))
        if not 2 <= len(ids) <= MAX_COMPARED:
            raise BadInput(f"ids names 2 to {MAX_COMPARED} trainings, separated by commas")

        def read() -> Compared:
            found = []
            for id in ids:
                job = self._job(owner, id)
                result = self._result(owner, job)
                if result is None:
                    raise BadInput(f"training {id} has {job.state}: only those that succeeded are compared")
                found.append((job, result, self._evaluation(owner, id)))
            return compare(found)

        return await asyncio.to_thread(read)

    def _job(self, owner: str, id: str) -> Job:
        job = self._records.job(owner, id)
        if job.kind != "training":
            raise NotFound(f"job {id} is no training")
        return job

    def _result(self, owner: str, job: Job) -> dict[str, Any] | None:
        if job.state != "succeeded":
            return None
        items = self._records.items(owner, job.id).items
        return items[0].result if items else None

    def _evaluation(self, owner: str, id: str) -> dict[str, Any]:
        files = self._records.files(owner, id, EVALUATION)
        if not files:
            raise NotFound(f"training {id} has no evaluation any more")
        evaluation: dict[str, Any] = orjson.loads(self._store.get(files[-1].storage_key))
        return evaluation
