"""The gateway: the BentoML service that hosts Ekiben's HTTP application. ``bentoml serve services.gateway:Gateway``.

BentoML imports this module in its supervising process too, which never serves a request; so what a worker needs is
imported when a worker starts (in ``middleware`` and ``open``), but for the table of operations. Over HTTP the
endpoints are served by services/rest/routers/bento.py, for the reasons given there.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING

import bentoml

from ekiben import logs
from ekiben.private_files import set_umask
from ekiben.settings import Settings
from services.bento.bundled_models import BundledModels
from services.bento.connection_limits import ConnectionLimits
from services.bento.endpoints import with_endpoints
from services.bento.hosting import HOSTING, App, HostedService, access_line
from services.inference.operations import OPERATIONS

if TYPE_CHECKING:
    from services.app_state import AppState
    from services.processes.loop_watchdog import LoopWatchdog
    from services.processes.worker_supervisor import WorkerSupervisor
    from services.rpc.server import GrpcServer

SETTINGS = Settings.from_environ()


class GatewayService(HostedService):
    """The BentoML service behind Ekiben's middleware."""

    @staticmethod
    def middleware(inner: App) -> App:
        """The ASGI application of the gateway around BentoML's own (``inner``)."""
        from services.rest.app import APP
        from services.rest.middleware import RequestMiddleware

        access = access_line if SETTINGS.access_log else None
        # Queued images may take a quarter of this; the rest is being received, computed or stored.
        return RequestMiddleware(inner, APP, access, max_body_bytes=4 * SETTINGS.queue_mb * 1_000_000)

    @staticmethod
    def connection_limits() -> ConnectionLimits:
        """Those of the settings, as far as the limit of open files has room for them."""
        from services.processes.open_files import most_connections, raise_open_files

        most = most_connections(raise_open_files(), SETTINGS.max_connections)
        return ConnectionLimits(SETTINGS.header_timeout_s, SETTINGS.keep_alive_s, most)


@bentoml.service(name="ekiben", service_class=GatewayService, workers=SETTINGS.gateways, **HOSTING)
@with_endpoints(OPERATIONS.values())
class Gateway:
    """Classify and segment images, mask prompted objects. The HTTP API under /v1 is documented at /docs."""

    bundled = BundledModels()
    app_state: AppState
    supervisor: WorkerSupervisor | None = None
    grpc: GrpcServer | None = None
    watchdog: LoopWatchdog

    def __init__(self) -> None:
        set_umask(SETTINGS)
        logs.configure(SETTINGS.log_level, SETTINGS.log_name)

    @bentoml.on_deployment
    def supervise() -> None:  # BentoML makes it a static method
        """BentoML calls it in its supervising process, before that starts the processes that serve."""
        from services.bento.process_supervision import supervise_closely

        set_umask(SETTINGS)
        logs.configure(SETTINGS.log_level, SETTINGS.log_name)
        supervise_closely()

    @bentoml.on_startup
    async def open(self) -> None:
        """Start everything this process serves. BentoML calls it in each worker process."""
        from services.app_state import AppState
        from services.bento.http_protocol import GuardedProtocol
        from services.bento.model_store import bundled_folder
        from services.processes.loop_watchdog import LoopWatchdog
        from services.processes.open_files import OpenFilesWatch, raise_open_files, warn_of_low_limit
        from services.processes.shutdown import IN_FLIGHT_S, end_after_signal, on_shutdown_signal
        from services.processes.startup import exit_in_words
        from services.processes.worker_supervisor import WorkerSupervisor
        from services.rest.app import APP

        end_after_signal()
        warn_of_low_limit(raise_open_files(), GuardedProtocol.limits.max_connections)
        bento = Gateway.bento  # type: ignore[attr-defined]
        with exit_in_words("gateway"):
            self.app_state = await AppState.start(SETTINGS, bundled_folder(bento))
        APP.state.app_state = self.app_state
        APP.title = SETTINGS.app_name
        on_shutdown_signal(self.app_state.jobs.stopping.set)
        on_shutdown_signal(lambda: self.app_state.inference.pipeline.until_stop.end_within(IN_FLIGHT_S))
        if SETTINGS.grpc_port:
            from services.rpc.server import GrpcServer

            self.grpc = GrpcServer(self.app_state, SETTINGS)
            await self.grpc.start()
            on_shutdown_signal(self.grpc.begin_stop)
        if SETTINGS.workers:
            self.supervisor = WorkerSupervisor(
                SETTINGS.home.absolute(), SETTINGS.workers, self.app_state.jobs.worker_ended, _worker_environ()
            )
            self.supervisor.start()
            on_shutdown_signal(self.supervisor.ask_to_stop)
        self.watchdog = LoopWatchdog(also=(OpenFilesWatch().look, self.app_state.disk_space.look))
        self.watchdog.start()
        logging.getLogger(__name__).info("ready", extra={"topology": SETTINGS.topology})

    @bentoml.on_shutdown
    async def close(self) -> None:
        """Refuse new calls, finish those under way, stop the workers."""
        self.watchdog.stop()
        if self.grpc is not None:
            await self.grpc.stop()
        if self.supervisor is not None:
            await asyncio.to_thread(self.supervisor.stop)
        await self.app_state.stop()


def _worker_environ() -> dict[str, str]:
    """The environment of job workers. Their metrics are merged with the gateway's, but not in the split topology: the
    runner process defines these families there."""
    split = SETTINGS.topology == "split"
    return {name: value for name, value in os.environ.items() if not (split and name == "PROMETHEUS_MULTIPROC_DIR")}
