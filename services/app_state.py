"""The state of one serving process: its parts, made in order and taken down in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from db.blobs import BlobStore, open_store
from db.datasets import Datasets
from db.jobs import JobRecords
from db.records import Records
from db.registry import Registry
from db.schema.ensure import ensure_newest
from db.schema.sqlite_file import check_database_file
from db.session import check_writes, connect
from db.workers import Workers
from ekiben.private_files import narrow_home
from ekiben.settings import Settings
from models.engine.memory import trim
from models.engine.session_options import cores
from services.concurrency.memory_budget import MemoryBudget
from services.datasets.service import DatasetService
from services.inference.context import InferenceCore
from services.inference.decode_threads import DecodeThreads
from services.inference.image_limits import ImageLimits
from services.inference.pipeline import InferencePipeline
from services.inference.recording import Recorder
from services.jobs.dbos_queue import JobQueue
from services.jobs.service import JobService
from services.model_registry.bundled import publish_bundled
from services.model_registry.index import ModelIndex
from services.model_registry.reconciler import ModelReconciler
from services.model_registry.repository import ModelRepository
from services.open_inference.inference import OpenInference
from services.open_inference.management import ProtocolManagement
from services.processes.disk_space import DiskSpace
from services.processes.health_checks import HealthChecks
from services.provisioning.service import ProvisioningService
from services.runners.interface import ModelRunner
from services.schemas.default_models import DEFAULT_MODELS
from services.trainings.service import TrainingService

if TYPE_CHECKING:
    from services.runners.local import LocalRunner

log = logging.getLogger(__name__)


@dataclass(slots=True)
class AppState:
    """Everything that the transports may use."""

    settings: Settings
    database: sa.Engine
    store: BlobStore
    registry: Registry
    records: Records
    recorder: Recorder
    index: ModelIndex
    runner: ModelRunner
    inference: InferenceCore
    models: ModelRepository
    open_inference: OpenInference
    protocol_management: ProtocolManagement
    job_queue: JobQueue
    jobs: JobService
    datasets: DatasetService
    trainings: TrainingService
    provisioning: ProvisioningService
    reconciler: ModelReconciler
    health: HealthChecks
    disk_space: DiskSpace

    @classmethod
    async def start(cls, settings: Settings, bundled: Path | None = None, *, for_jobs: bool = False) -> AppState:
        """Migrate, connect, warm the pinned models. ``bundled``: artifact folders that the Bento holds.

        ``for_jobs``: no model is loaded before a job needs it, and a cancelled computation is broken off.
        """
        with contextlib.suppress(OSError):  # what keeps files from being made is said by database and store
            await asyncio.to_thread(narrow_home, settings)
        store = await asyncio.to_thread(
            open_store, settings.resolved_store_url, settings.s3_access_key, settings.s3_secret_key
        )
        await asyncio.to_thread(check_database_file, settings.resolved_database_url, store)
        await asyncio.to_thread(ensure_newest, settings.resolved_database_url)
        job_queue = JobQueue(settings.resolved_database_url)
        database = connect(settings.resolved_database_url)
        registry = Registry(database)
        if bundled is not None:
            await asyncio.to_thread(publish_bundled, bundled, registry, store)
        records = Records(database)
        recorder = Recorder(records, store)
        index = ModelIndex(registry, store, settings.cache_folder / "models")
        memory = MemoryBudget(settings.image_memory_mb * 1_000_000, trim)
        local: LocalRunner | None = None
        if settings.topology == "embedded":
            # Imported here: importing it defines the runner's metrics, which in the split topology are those of the
            # runner process alone.
            from services.runners.local import LocalRunner

            runner: ModelRunner = (local := LocalRunner(settings, index.locate, memory, break_off=for_jobs))
        else:
            from services.runners.remote import RemoteRunner

            runner = RemoteRunner(settings.runner_url)
        reconciler = ModelReconciler(index, local, settings.preloaded, eager=not for_jobs)
        await reconciler.start()
        pipeline = InferencePipeline(
            records, recorder, DecodeThreads(memory, settings.threads or cores()), limits=ImageLimits.of(settings)
        )
        inference = InferenceCore(
            index,
            runner,
            pipeline,
            settings.timeout_s,
            settings.auto_timeout_s,
            {**DEFAULT_MODELS, **settings.default_models_by_task},
        )
        job_records = JobRecords(database)
        jobs = JobService(settings, job_records, Workers(database), job_queue, recorder)
        datasets = DatasetService(settings, Datasets(database), records, store, jobs)
        trainings = TrainingService(settings, Datasets(database), job_records, jobs, index, store)
        provisioning = ProvisioningService(settings, registry, job_records, jobs)
        index.absent = provisioning.on_first_use
        health = HealthChecks(
            {"database": lambda: check_writes(database), "store": store.check},
            {"runner": runner.check, "pinned": reconciler.check},
        )
        models = ModelRepository(registry, index, runner, reconciler.process_id)
        open_inference = OpenInference(inference)
        return cls(
            settings=settings,
            database=database,
            store=store,
            registry=registry,
            records=records,
            recorder=recorder,
            index=index,
            runner=runner,
            inference=inference,
            models=models,
            open_inference=open_inference,
            protocol_management=ProtocolManagement(models, open_inference, health),
            job_queue=job_queue,
            jobs=jobs,
            datasets=datasets,
            trainings=trainings,
            provisioning=provisioning,
            reconciler=reconciler,
            health=health,
            disk_space=DiskSpace(settings),
        )

    async def stop(self) -> None:
        """Finish the requests under way, write what is still queued for the store, close."""
        self.health.close()
        await self.reconciler.stop()
        await self.runner.close()
        self.inference.pipeline.decoding.close()
        await self.recorder.close()
        await asyncio.to_thread(self.records.close)
        await asyncio.to_thread(self.job_queue.close)
        self.store.close()
        self.database.dispose()
