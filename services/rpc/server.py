"""The gRPC server of one gateway process. Several processes share the port: the kernel distributes connections."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from pathlib import Path

# To be set before grpc is imported. This process starts others by exec, so grpc's fork handlers are not needed; and its
# own log has no information for users.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tritonclient.grpc import service_pb2_grpc

from ekiben.settings import Settings
from ekiben.v1 import ekiben_pb2_grpc
from services.app_state import AppState
from services.concurrency.byte_budget import ByteBudget
from services.inference.operations import OPERATIONS
from services.open_inference.tensors import MAX_BYTES
from services.processes.shutdown import IN_FLIGHT_S
from services.rpc.artifacts_servicer import ArtifactsServicer
from services.rpc.health_servicer import HealthServicer
from services.rpc.inference_servicer import InferenceServicer, add_inference_servicer
from services.rpc.jobs_servicer import JobsServicer
from services.rpc.message_parser import MessageParser
from services.rpc.method_wrappers import ServicerState
from services.rpc.models_servicer import ModelsServicer
from services.rpc.open_inference_servicer import OpenInferenceServicer

log = logging.getLogger(__name__)

MAX_MESSAGE = MAX_BYTES + 1024 * 1024
"""Bytes of one message, either way: 64 MiB of tensors or of a file, and 1 MiB for the rest."""

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    # Clients may ping to keep an idle connection open.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
]


_READ_S = 1.0
"""Seconds that a client has to read a response before its connection may be closed."""


class GrpcServer:
    """Serves from ``start`` until ``stop``; ``begin_stop`` refuses new calls and lets those under way finish."""

    def __init__(self, app_state: AppState, settings: Settings) -> None:
        self._settings = settings
        budget = ByteBudget(4 * settings.queue_mb * 1_000_000)
        self._state = state = ServicerState(app_state, budget, settings.access_log)
        shared = 1 if settings.gateways > 1 else 0  # of a single gateway, a port in use is an error
        self._server = grpc.aio.server(
            interceptors=[MessageParser(state)],
            options=[*_OPTIONS, ("grpc.so_reuseport", shared)],
            maximum_concurrent_rpcs=4096,
        )
        add_inference_servicer(state, self._server, OPERATIONS.values())
        ekiben_pb2_grpc.add_JobsServicer_to_server(JobsServicer(state), self._server)
        ekiben_pb2_grpc.add_ModelsServicer_to_server(ModelsServicer(state), self._server)
        ekiben_pb2_grpc.add_ArtifactsServicer_to_server(ArtifactsServicer(state), self._server)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(OpenInferenceServicer(state), self._server)
        names = [
            each.NAME
            for each in (InferenceServicer, JobsServicer, ModelsServicer, ArtifactsServicer, OpenInferenceServicer)
        ]
        self._health = HealthServicer(state, names)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection([*names, HealthServicer.NAME, reflection.SERVICE_NAME], self._server)
        self._stopping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Bind the port and serve. SystemExit says what is wrong with the port or the certificate."""
        address = f"{_bracketed(self._settings.host)}:{self._settings.grpc_port}"
        try:
            credentials = self._credentials()
            if credentials is None:
                self._server.add_insecure_port(address)
            else:
                self._server.add_secure_port(address, credentials)
        except (RuntimeError, OSError):
            message = f"gRPC cannot be served on {address}; EKIBEN_GRPC_PORT chooses another port, 0 none"
            log.error(message)
            raise SystemExit(message) from None
        await self._server.start()

    def begin_stop(self) -> None:
        """Refuse new calls with UNAVAILABLE: clients may try another server."""
        if self._stopping is None:
            self._health.stopping.set()
            self._state.calls.refuse_more()
            self._stopping = asyncio.create_task(self._finish_calls())

    async def stop(self) -> None:
        """Return when all calls have ended, or their time is over."""
        self.begin_stop()
        if self._stopping is not None:
            await self._stopping

    async def _finish_calls(self) -> None:
        # Stopped at once, gRPC would close each connection with its last response while the client still reads: the
        # flow-control messages of that client make the kernel reset the connection, and the rest is lost.
        calls = self._state.calls
        end = time.monotonic() + min(self._settings.timeout_s, IN_FLIGHT_S) + 2
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(calls.over(), end - time.monotonic())
            await asyncio.sleep(calls.ended + _READ_S - time.monotonic())
        await self._server.stop(max(1.0, end - time.monotonic()))

    def _credentials(self) -> grpc.ServerCredentials | None:
        certificate, key = self._settings.grpc_tls_cert, self._settings.grpc_tls_key
        if bool(certificate) != bool(key):
            raise SystemExit("settings: EKIBEN_GRPC_TLS_CERT and EKIBEN_GRPC_TLS_KEY go together")
        if not certificate:
            return None
        return grpc.ssl_server_credentials([(_read(key), _read(certificate))])


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SystemExit(f"settings: {path} cannot be read: {error.strerror}") from None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
