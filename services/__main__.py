"""``python -m services``: the processes of this machine, started in order and stopped in reverse."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from types import FrameType

from ekiben.parent_process import terminate_with_parent
from ekiben.private_files import set_umask
from ekiben.settings import Settings
from services.concurrency.restart_delay import RestartDelay
from services.processes.shutdown import FORCE_S, STOP_S

GATEWAY, RUNNER = "services.gateway:Gateway", "services.runner_service:Runner"
_READY_S = 120.0
_WAIT_FOR_SPACE_S = 5.0
_FULL = 75  # services.processes.preflight, which imports more than this process should hold


class _Stop(Exception):
    """A signal asked this process to end."""


def main() -> int:
    """Start the runner (split topology) and the gateway, and wait. 0 after a signal, else the status of the process
    that ended first by itself; one that is killed is started again."""
    settings = Settings.from_environ()
    set_umask(settings)  # of all processes that are started here
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _ask_to_stop)
    if not _is_free(settings.host, settings.port):
        print(
            f"port {settings.port} on {settings.host} is taken; choose another: make serve PORT=3100", file=sys.stderr
        )
        return 1
    if settings.grpc_port and not _is_free(settings.host, settings.grpc_port):
        print(
            f"the gRPC port {settings.grpc_port} on {settings.host} is taken; EKIBEN_GRPC_PORT chooses another, 0 none",
            file=sys.stderr,
        )
        return 1
    servers: list[_Server] = []
    try:
        if not _checked():
            return 1
        return _serve_until_one_ends(settings, servers)
    except _Stop:
        return 0
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        # The gateway first: its requests in flight still need the runner, which has little to do then.
        begun = time.monotonic()
        for server, end_s in zip(reversed(servers), (FORCE_S + 1, STOP_S - 1), strict=False):
            server.stop(max(0.1, begun + end_s - time.monotonic()))


def _checked() -> bool:
    """Whether the processes can be started; waits while there is no space left."""
    said = False
    while True:
        # In a process of its own: this one lives as long as the server, and should stay small.
        output = subprocess.DEVNULL if said else None
        status = subprocess.run(
            [sys.executable, "-m", "services.processes.preflight"], check=False, stderr=output
        ).returncode
        if status != _FULL:
            return status == 0
        if not said:
            said = True
            print("waiting for space on the disk", file=sys.stderr, flush=True)
        time.sleep(_WAIT_FOR_SPACE_S)


def _serve_until_one_ends(settings: Settings, servers: list[_Server]) -> int:
    environ = {"BENTOML_HOME": str(settings.home.absolute() / "bentoml"), "BENTOML_DO_NOT_TRACK": "True", **os.environ}
    if settings.topology == "split" and not settings.runner_url:
        port = _free_port()
        environ["EKIBEN_RUNNER_URL"] = f"http://127.0.0.1:{port}"
        # One BENTOML_HOME per server: a second server that shares it wipes the first one's metrics.
        home = {"BENTOML_HOME": environ["BENTOML_HOME"] + "-runner"}
        servers.append(_Server(RUNNER, "127.0.0.1", (port,), {**environ, **home}))
        if not _wait_ready("127.0.0.1", port, servers[0].process):
            print("the runner did not become ready; its log is above", file=sys.stderr)
            return 1
    ports = (settings.port, settings.grpc_port) if settings.grpc_port else (settings.port,)
    gateway = _Server(GATEWAY, settings.host, ports, environ)
    servers.append(gateway)
    # A server that listens on every address is probed on the loopback address.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{settings.port}"
    if not _wait_ready(host, settings.port, gateway.process):
        print("the gateway did not become ready; its log is above", file=sys.stderr)
        return 1
    grpc = f", gRPC on {shown}:{settings.grpc_port}" if settings.grpc_port else ""
    print(f"Ekiben serves on {address} (API at {address}/docs){grpc}", file=sys.stderr, flush=True)
    while True:
        for server in servers:
            if (status := server.keep_running()) is not None:
                return status
        time.sleep(0.5)


def _ask_to_stop(_signal: int, _frame: FrameType | None) -> None:
    raise _Stop


class _Server:
    """``bentoml serve`` of one service: a supervising process and, in its process group, those that serve."""

    def __init__(self, service: str, host: str, ports: tuple[int, ...], environ: dict[str, str]) -> None:
        """Start it. ``ports``: that of HTTP, and others that it needs."""
        os.makedirs(environ["BENTOML_HOME"], exist_ok=True)
        self._service, self._host, self._ports = service, host, ports
        self._command = [
            *(sys.executable, "-m", "bentoml", "serve", service),
            *("--host", host, "--port", str(ports[0])),
        ]
        self._environ = environ
        self._delay = RestartDelay()
        self._ended = False
        self._start()

    def keep_running(self) -> int | None:
        """Start it again once it is due, if a signal killed it; else its exit status, None while it runs."""
        status = self.process.poll()
        if status is None or status >= 0:
            return status  # one that ended by itself has said why
        if not self._ended:
            self._ended = True
            in_s = self._delay.ended(time.monotonic() - self._started)
            said = f"{self._service} was killed by signal {-status}, and is started again in {in_s:g} s"
            print(said, file=sys.stderr, flush=True)
        # The processes that served for it end by themselves (ekiben/parent_process.py), after their last response.
        elif self._delay.is_due() and all(_is_free(self._host, port) for port in self._ports):
            self._start()
        return None

    def stop(self, seconds: float) -> None:
        """End it and what it started: SIGTERM, and SIGKILL after ``seconds``."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)

    def _start(self) -> None:
        # A session of its own: Ctrl-C reaches only the launcher, which then stops the others in order.
        self.process = subprocess.Popen(
            self._command, env=self._environ, start_new_session=True, preexec_fn=terminate_with_parent
        )
        self._started = time.monotonic()
        self._ended = False


def _wait_ready(host: str, port: int, process: subprocess.Popen[bytes]) -> bool:
    end = time.monotonic() + _READY_S
    while time.monotonic() < end and process.poll() is None:
        if _status(host, port) == b"200":
            return True
        time.sleep(0.1)
    return False


def _status(host: str, port: int) -> bytes:
    """Of GET /readyz; empty without a response. By hand: urllib takes 4 MB of a process that should stay small."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5) as connection:
        connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return connection.makefile("rb").readline(100)[9:12]
    return b""


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
