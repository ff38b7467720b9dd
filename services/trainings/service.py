"""Trainings: submitting, reading and comparing them. Free of any transport."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from db.blobs import BlobStore
from db.datasets import Datasets
from db.jobs import JobRecords
from db.pages import Page
from db.stored_files import read_whole
from db.tables import Artifact, Job, JobEvent
from ekiben.errors import BadInput, Conflict, NotFound
from ekiben.ids import LOCAL_OWNER
from ekiben.settings import Settings
from services.jobs.service import JobService
from services.jobs.submission import JobTerms
from services.model_registry.index import ModelIndex
from services.schemas.trainings import TrainingRequest
from services.trainings.comparison import Comparison, compare
from services.trainings.job import EVALUATION, OPERATION

MAX_COMPARED = 20


@dataclass(frozen=True, slots=True)
class Training:
    """The job of a training, its events and its artifacts. ``result`` None: it has not succeeded.

    ``epochs``: events of kind ``epoch``; ``last``: the last event of each kind.
    """

    job: Job
    result: dict[str, Any] | None
    epochs: list[JobEvent] = field(default_factory=list)
    last: dict[str, JobEvent] = field(default_factory=dict)
    files: list[Artifact] = field(default_factory=list)


class TrainingService:
    """Submits, reads and compares trainings. All methods take ``owner``; nothing is found across owners."""

    def __init__(
        self,
        settings: Settings,
        datasets: Datasets,
        records: JobRecords,
        jobs: JobService,
        index: ModelIndex,
        store: BlobStore,
    ) -> None:
        self._settings = settings
        self._datasets = datasets
        self._records = records
        self._jobs = jobs
        self._index = index
        self._store = store

    async def submit(
        self, requested: TrainingRequest, terms: JobTerms, *, owner: str = LOCAL_OWNER
    ) -> tuple[Job, bool]:
        """Submit a training: the job, and whether it is new.

        NotFound; Conflict for a dataset that is not ready, and for a name that a model of another task has; BadInput.
        """
        dataset = await asyncio.to_thread(self._datasets.ready, owner, requested.dataset_id)
        for listed in await asyncio.to_thread(self._index.registry.models, owner):
            if listed.model.name == requested.name and listed.active is not None and listed.active.task != "segment":
                raise Conflict(f"model {requested.name} is there to {listed.active.task}: choose another name")
        start = None
        if requested.start_from is not None:
            name, _, version = requested.start_from.partition("/")
            served = await self._index.resolve(owner, name, int(version) if version else None, "segment")
            start = {"name": served.key.name, "version": served.key.version}
        parameters: dict[str, Any] = {"dataset_id": dataset.id, "dataset": dataset.name, "name": requested.name}
        parameters |= {"options": requested.options, "start_from": start}
        return await self._jobs.submit_single(
            "training",
            OPERATION,
            parameters,
            terms,
            given=[requested.dataset_id, requested.name, requested.options],
            timeout_s=self._settings.training_timeout_s,
            owner=owner,
        )

    async def trainings(self, page: int, limit: int, *, owner: str = LOCAL_OWNER) -> Page[Training]:
        """Trainings, newest first, without events and artifacts."""

        def read() -> Page[Training]:
            found = self._records.jobs(owner, None, "training", page, limit)
            items = [Training(job, self._result(owner, job)) for job in found.items]
            return Page(items, found.total, found.page, found.limit)

        return await asyncio.to_thread(read)

    async def training(self, id: str, *, owner: str = LOCAL_OWNER) -> Training:
        """A training with its events and artifacts. NotFound, also for a job that is no training."""

        def read() -> Training:
            job = self._job(owner, id)
            epochs, last = self._records.event_history(owner, id, "epoch")
            return Training(job, self._result(owner, job), epochs, last, self._records.files(owner, id))

        return await asyncio.to_thread(read)

    async def compare(self, ids: Sequence[str], *, owner: str = LOCAL_OWNER) -> Comparison:
        """Trainings side by side, over the test images that they share. BadInput for fewer than two."""
        ids = list(dict.fromkeys(ids))
        if not 2 <= len(ids) <= MAX_COMPARED:
            raise BadInput(f"ids names 2 to {MAX_COMPARED} trainings, separated by commas")

        def read() -> Comparison:
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
        last = files[-1]
        evaluation: dict[str, Any] = orjson.loads(read_whole(self._store, last.storage_key, last.bytes, last.sha256))
        return evaluation
