"""A real server for tests: started as a user starts it, on a free port of 127.0.0.1, stopped at the end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).parents[1]
TOPOLOGIES = {
    "embedded": {"EKIBEN_TOPOLOGY": "embedded"},
    "split": {"EKIBEN_TOPOLOGY": "split"},
    "two gateways": {"EKIBEN_TOPOLOGY": "embedded", "EKIBEN_GATEWAYS": "2"},
}

# For what starts and stops a server of its own in each: the third adds time, and little that the second does not show.
SOME_TOPOLOGIES = [
    pytest.param(name, marks=pytest.mark.acceptance) if name == "two gateways" else name for name in TOPOLOGIES
]


def first_in(topology: str) -> list[Any]:
    """All topologies; those besides ``topology`` are acceptance tests."""
    return [name if name == topology else pytest.param(name, marks=pytest.mark.acceptance) for name in TOPOLOGIES]


@dataclass
class Server:
    url: str
    grpc: str
    process: subprocess.Popen[bytes]
    home: Path
    log: Path

    def client(self, timeout: float = 60.0) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=timeout)

    def logs(self) -> str:
        return self.log.read_text(errors="replace")

    def pids(self) -> list[int]:
        """The launcher and everything below it."""
        found = [self.process.pid]
        for pid in found:
            for task in Path(f"/proc/{pid}/task").glob("*/children"):
                try:
                    found += [int(child) for child in task.read_text().split()]
                except OSError:
                    continue
        return found

    def worker_pids(self) -> list[int]:
        """The processes that answer requests."""
        return [p for p in self.pids() if "_bentoml_impl.worker.service" in _command(p)]

    def job_worker_pids(self) -> list[int]:
        """The processes that work on jobs, started by this server."""
        return [p for p in self.pids() if "services.worker" in _command(p)]


@dataclass
class JobWorker:
    """A worker that was started by itself."""

    process: subprocess.Popen[bytes]
    log: Path

    def logs(self) -> str:
        return self.log.read_text(errors="replace")


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def environ(home: Path, **settings: str) -> dict[str, str]:
    """The environment of a server: this one without any EKIBEN_ setting of it, then ``settings``.

    No worker unless it is asked for: most tests have no job, and a worker takes a second to start. No gRPC but of a
    server that has a port for it.
    """
    base = {k: v for k, v in os.environ.items() if not k.startswith("EKIBEN_") or k.startswith("EKIBEN_TEST_")}
    base.pop("BENTOML_HOME", None)
    return {**base, "EKIBEN_HOME": str(home), "EKIBEN_WORKERS": "0", "EKIBEN_GRPC_PORT": "0", **settings}


@contextmanager
def serving(home: Path, *, wait: bool = True, **settings: str) -> Iterator[Server]:
    """``python -m services`` until the block ends; a server that does not become ready fails with its log."""
    home.mkdir(parents=True, exist_ok=True)
    port, grpc_port = free_port(), free_port()
    log = home / f"server-{port}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "services"],
            cwd=ROOT,
            env=environ(home, **{"EKIBEN_PORT": str(port), "EKIBEN_GRPC_PORT": str(grpc_port), **settings}),
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    server = Server(f"http://127.0.0.1:{port}", f"127.0.0.1:{grpc_port}", process, home, log)
    try:
        if wait:
            wait_ready(server)
        yield server
    finally:
        stop(server)


def wait_ready(server: Server, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.process.poll() is not None:
            break
        try:
            if httpx.get(server.url + "/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"the server did not become ready:\n{server.logs()[-4000:]}")


def stop(server: Server, seconds: float = 40.0) -> None:
    pids = server.pids()
    if server.process.poll() is None:
        server.process.send_signal(signal.SIGTERM)
        try:
            server.process.wait(seconds)
        except subprocess.TimeoutExpired:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            raise AssertionError(f"the server did not stop:\n{server.logs()[-4000:]}") from None


@contextmanager
def working(home: Path, **settings: str) -> Iterator[JobWorker]:
    """``python -m services.worker`` until the block ends. It may end before that; one that hangs fails with its log."""
    home.mkdir(parents=True, exist_ok=True)
    log = home / f"worker-{uuid.uuid4().hex[:8]}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.worker"],
            cwd=ROOT,
            env=environ(home, **settings),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        yield JobWorker(process, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise AssertionError(f"the worker did not stop:\n{log.read_text(errors='replace')[-4000:]}") from None
