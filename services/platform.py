"""The platform: the parts of one serving process, made in order and taken down in reverse."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from db.blobs import BlobStore, open_store
from db.datasets import Datasets
from db.jobs import JobRecords
from db.migrate import migrate
from db.records import Records
from db.registry import Registry
from db.session import connect, ping
from db.workers import Workers
from ekiben.settings import Settings
from services.bento_models import publish_carried
from services.dataset_requests import DatasetRequests
from services.health import Health
from services.job_queue import JobQueue
from services.jobs import Jobs
from services.masks import Masks
from services.model_index import ModelIndex
from services.model_requests import ModelRequests
from services.oip.catalogue import Catalogue
from services.oip.inference import Inference
from services.recording import Recorder
from services.remote_runner import RemoteRunner
from services.requests import Requests
from services.runner import Runner
from services.training_requests import TrainingRequests
from services.vision import Vision
from services.watch import Watch

if TYPE_CHECKING:
    from services.local_runner import LocalRunner

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Platform:
    """Everything a door may use."""

    settings: Settings
    database: sa.Engine
    store: BlobStore
    registry: Registry
    records: Records
    recorder: Recorder
    index: ModelIndex
    runner: Runner
    vision: Vision
    masks: Masks
    models: ModelRequests
    inference: Inference
    catalogue: Catalogue
    job_queue: JobQueue
    jobs: Jobs
    datasets: DatasetRequests
    trainings: TrainingRequests
    watch: Watch
    health: Health

    @classmethod
    async def start(cls, settings: Settings, carried: Path | None = None, *, for_jobs: bool = False) -> Platform:
        """Migrate, connect, warm the pinned models. ``carried``: artifact folders that the Bento brought along.

        ``for_jobs``: no model is loaded before a job needs it, and what is cancelled is broken off.
        """
        await asyncio.to_thread(migrate, settings.resolved_database_url)
        job_queue = JobQueue(settings.resolved_database_url)
        await asyncio.to_thread(job_queue.migrate)
        database = connect(settings.resolved_database_url)
        store = await asyncio.to_thread(
            open_store, settings.resolved_store_url, settings.s3_access_key, settings.s3_secret_key
        )
        registry = Registry(database)
        if carried is not None:
            await asyncio.to_thread(publish_carried, carried, registry, store)
        records = Records(database)
        recorder = Recorder(records, store)
        index = ModelIndex(registry, store, settings.home.absolute() / "models")
        local: LocalRunner | None = None
        if settings.topology == "embedded":
            # Imported here: in the split topology a runner's metrics are those of its own process alone.
            from services.local_runner import LocalRunner

            local = LocalRunner(settings, index.locate, break_off=for_jobs)
        runner: Runner = local if local is not None else RemoteRunner(settings.runner_url)
        watch = Watch(index, local, settings.preloaded, eager=not for_jobs)
        await watch.start()
        requests = Requests(records, recorder)
        vision = Vision(index, runner, requests, settings.timeout_s)
        masks = Masks(index, runner, requests, settings.timeout_s, settings.auto_timeout_s)
        job_records = JobRecords(database)
        jobs = Jobs(settings, job_records, Workers(database), job_queue, recorder)
        datasets = DatasetRequests(settings, Datasets(database), records, store, jobs)
        trainings = TrainingRequests(settings, Datasets(database), job_records, jobs, index, store)
        health = Health(
            {"database": lambda: ping(database), "store": store.check}, {"runner": runner.check, "pinned": watch.check}
        )
        models = ModelRequests(registry, index, runner, watch.process_id)
        inference = Inference(index, vision, masks, settings.timeout_s)
        return cls(
            settings=settings,
            database=database,
            store=store,
            registry=registry,
            records=records,
            recorder=recorder,
            index=index,
            runner=runner,
            vision=vision,
            masks=masks,
            models=models,
            inference=inference,
            catalogue=Catalogue(models, inference, health),
            job_queue=job_queue,
            jobs=jobs,
            datasets=datasets,
            trainings=trainings,
            watch=watch,
            health=health,
        )

    async def stop(self) -> None:
        """Answer what is under way, write what waits, close."""
        self.health.close()
        await self.watch.stop()
        await self.runner.close()
        await self.recorder.close()
        await asyncio.to_thread(self.records.close)
        await asyncio.to_thread(self.job_queue.close)
        self.store.close()
        self.database.dispose()
