"""``python -m services.worker``: a process that works on jobs, with an engine of its own. Any number of them."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import uvloop

from db.changes import DatabaseChanges
from db.datasets import Datasets
from db.jobs import JobRecords
from db.schema.version import NewerDatabase
from db.workers import Workers
from ekiben import logs
from ekiben.child_protocol import on_parent_exit
from ekiben.errors import Refusal
from ekiben.ids import new_id
from ekiben.private_files import set_umask
from ekiben.settings import Settings
from models.engine.session_options import cores
from services.app_state import AppState
from services.concurrency.run_in_executor import run_in_executor
from services.concurrency.thread_priority import be_nice, steady_threads
from services.datasets import import_job
from services.datasets.import_job import DatasetImportHandler
from services.jobs.dbos_queue import QUEUES, QueueConsumer
from services.jobs.executor import JobExecutor
from services.jobs.heartbeat import BEAT_S, Heartbeat
from services.jobs.maintenance import Maintenance
from services.jobs.queue_standby import QueueStandby
from services.jobs.workspace import JobWorkspace
from services.processes.loop_watchdog import LoopWatchdog
from services.processes.open_files import OpenFilesWatch
from services.processes.shutdown import end_within
from services.provisioning import job as provisioning
from services.provisioning.job import ProvisionHandler
from services.trainings import job
from services.trainings.job import TrainingHandler

T = TypeVar("T")

log = logging.getLogger(__name__)

FINISH_S = 10.0
"""Seconds that claimed items have to end after SIGTERM; then they are given back."""

IDLE_S = 120.0
"""Seconds without a job after which the models are unloaded."""

DELAY_S = 0.25
"""Seconds that the end of an item waits for others while any is computed: a commit of many costs little more than of
one."""

ITEMS_PER_CORE = 4
"""Concurrent items per core: while one is computed another is read, and more wait so that no core idles."""

WATCH_LOOP_S = 0.1
"""Seconds between looks of the loop's watchdog: half as often as in a gateway, where clients wait for the loop."""

DATABASE_THREADS = 3

BURIED = 3
"""Exit status of a worker that was declared dead: others have its work, so it must not go on."""

_CONCURRENCY = {"request": 16, "batch": 4, "import": 1}
"""Queue entries worked on at once, by kind of job. Together they claim more items than run at once, so that the next
item is there when a permit is free."""


def main() -> int:
    """Work until SIGTERM or SIGINT; 0 then, 1 where it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m services.worker", description="Work on jobs.")
    parser.add_argument("--with-parent", action="store_true", help="end when the standard input is closed")
    # The supervisor chooses the id, to know which worker ended.
    parser.add_argument("--id", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    settings = Settings.from_environ()
    set_umask(settings)
    logs.configure(settings.log_level, settings.log_name)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_work(settings, given.id or new_id(), with_parent=given.with_parent))
    except (Refusal, NewerDatabase) as error:
        print(f"the worker cannot start: {error}", file=sys.stderr)
        return 1


async def _work(settings: Settings, worker_id: str, *, with_parent: bool) -> int:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    if with_parent:
        on_parent_exit(lambda: loop.call_soon_threadsafe(ended.set))
    threads = steady_threads(DATABASE_THREADS)
    be_nice(settings.worker_nice)
    # An engine of its own, whatever the topology; and no model is loaded before a job needs it.
    own = settings.model_copy(update={"topology": "embedded", "preload": ""})
    app_state = await AppState.start(own, for_jobs=True)

    async def steadily(work: Callable[..., T], *given: Any) -> T:
        return await run_in_executor(threads, work, *given)

    workers, records, queue = Workers(app_state.database), JobRecords(app_state.database), app_state.job_queue
    workspace = JobWorkspace(own, app_state.store, records, worker_id, threads)
    datasets = Datasets(app_state.database)
    max_items = settings.items_at_once or ITEMS_PER_CORE * cores()
    executor = JobExecutor(
        app_state.inference,
        records,
        queue,
        worker_id,
        max_items=max_items,
        max_heavy=settings.items_at_once or max(1, cores() // 2),
        threads=threads,
        grace_s=settings.job_grace_s,
        limits={"training": own.trainings_at_once, "provision": min(1, own.trainings_at_once)},
        handlers={
            import_job.OPERATION: DatasetImportHandler(workspace, datasets),
            job.OPERATION: TrainingHandler(workspace, datasets, app_state.index),
            provisioning.OPERATION: ProvisionHandler(workspace, app_state.index),
        },
    )
    app_state.records.delay(DELAY_S, lambda: executor.computing)
    heartbeat = Heartbeat(workers, worker_id, lambda: executor.busy, lambda: os._exit(BURIED))
    maintenance = Maintenance(
        settings,
        app_state.records,
        records,
        datasets,
        workers,
        queue,
        app_state.store,
        heartbeat,
        tidy=lambda: workspace.tidy(workers.known),
    )
    concurrency = {
        **_CONCURRENCY,
        **({"training": own.trainings_at_once, "provision": 1} if own.trainings_at_once else {}),
    }
    consumer = QueueConsumer(
        settings.resolved_database_url,
        worker_id,
        lambda job_id: asyncio.run_coroutine_threadsafe(executor.work(job_id), loop).result(),
        concurrency,
    )
    changes = DatabaseChanges(app_state.database)
    not_mine = QUEUES.keys() - concurrency.keys()
    standby = QueueStandby(consumer, lambda: records.any_open(not_mine), changes.look)
    await steadily(workers.enter, worker_id)
    await steadily(lambda: workspace.tidy(workers.known))
    for start in (app_state.records.start, heartbeat.start, maintenance.start, standby.start):
        await steadily(start)
    gc.freeze()  # what was imported stays: full collections need not visit it
    watching = asyncio.create_task(executor.watch())
    watchdog = LoopWatchdog(also=(OpenFilesWatch().look, app_state.disk_space.look), every_s=WATCH_LOOP_S)
    watchdog.start()
    log.info("worker ready", extra={"worker": worker_id, "items_at_once": max_items})
    try:
        await _until(ended, app_state, executor)
    finally:
        end_within()
        begun = time.monotonic()
        watchdog.stop()
        await executor.stop(FINISH_S)
        watching.cancel()
        await asyncio.to_thread(standby.stop, 2)
        changes.close()
        await asyncio.to_thread(maintenance.stop)
        await asyncio.to_thread(heartbeat.stop)
        try:
            await steadily(workers.leave, worker_id)
        except Refusal as error:
            log.warning("not signed off: %s", error)  # claimed items are taken over as from a dead worker
        await app_state.stop()
        threads.shutdown(wait=False)
        log.info("worker stopped", extra={"worker": worker_id, "seconds": round(time.monotonic() - begun, 1)})
    return 0


async def _until(ended: asyncio.Event, app_state: AppState, executor: JobExecutor) -> None:
    """Return once ``ended`` is set; unload the models after IDLE_S without work."""
    while not ended.is_set():
        try:
            await asyncio.wait_for(ended.wait(), BEAT_S * 5)
        except TimeoutError:
            if time.monotonic() - executor.last_busy > IDLE_S and not executor.busy:
                await _unload_all(app_state)


async def _unload_all(app_state: AppState) -> None:
    for state in await app_state.runner.states():
        if state.state == "ready":
            await app_state.runner.unload(state.key)


if __name__ == "__main__":
    sys.exit(main())
