"""``python -m services``: the processes of this machine, started in order and stopped in reverse."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from types import FrameType

from ekiben.settings import Settings
from services.processes.shutdown import FORCE_S, STOP_S

GATEWAY, RUNNER = "services.gateway:Gateway", "services.runner_service:Runner"
_READY_S = 120.0
_PR_SET_PDEATHSIG = 1


class _Stop(Exception):
    """A signal asked this process to end."""


def main() -> int:
    """Start the runner (split topology) and the gateway, and wait. 0 after a signal, else the status of the process
    that ended first."""
    settings = Settings.from_environ()
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
    processes: list[subprocess.Popen[bytes]] = []
    try:
        # In a process of its own: this one lives as long as the server, and should stay small.
        if subprocess.run([sys.executable, "-m", "services.processes.preflight"], check=False).returncode != 0:
            return 1
        return _serve_until_one_ends(settings, processes)
    except _Stop:
        return 0
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        # The gateway first: its requests in flight still need the runner, which has little to do then.
        begun = time.monotonic()
        for process, end_s in zip(reversed(processes), (FORCE_S + 1, STOP_S - 1), strict=False):
            _stop(process, max(0.1, begun + end_s - time.monotonic()))


def _serve_until_one_ends(settings: Settings, processes: list[subprocess.Popen[bytes]]) -> int:
    environ = {"BENTOML_HOME": str(settings.home.absolute() / "bentoml"), "BENTOML_DO_NOT_TRACK": "True", **os.environ}
    if settings.topology == "split" and not settings.runner_url:
        port = _free_port()
        environ["EKIBEN_RUNNER_URL"] = f"http://127.0.0.1:{port}"
        # One BENTOML_HOME per server: a second server that shares it wipes the first one's metrics.
        home = {"BENTOML_HOME": environ["BENTOML_HOME"] + "-runner"}
        processes.append(_serve(RUNNER, "127.0.0.1", port, {**environ, **home}))
        if not _wait_ready(f"http://127.0.0.1:{port}/readyz", processes[0]):
            print("the runner did not become ready; its log is above", file=sys.stderr)
            return 1
    gateway = _serve(GATEWAY, settings.host, settings.port, environ)
    processes.append(gateway)
    # A server that listens on every address is probed on the loopback address.
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)
    address = f"http://{host}:{settings.port}"
    if not _wait_ready(f"{address}/readyz", gateway):
        print("the gateway did not become ready; its log is above", file=sys.stderr)
        return 1
    grpc = f", gRPC on {host}:{settings.grpc_port}" if settings.grpc_port else ""
    print(f"Ekiben serves on {address} (API at {address}/docs){grpc}", file=sys.stderr, flush=True)
    while all(process.poll() is None for process in processes):
        time.sleep(0.5)
    return next(process.returncode for process in processes if process.returncode is not None)


def _ask_to_stop(_signal: int, _frame: FrameType | None) -> None:
    raise _Stop


def _serve(service: str, host: str, port: int, environ: dict[str, str]) -> subprocess.Popen[bytes]:
    os.makedirs(environ["BENTOML_HOME"], exist_ok=True)
    command = [sys.executable, "-m", "bentoml", "serve", service, "--host", host, "--port", str(port)]
    # A session of its own: Ctrl-C reaches only this process, which then stops the others in order.
    return subprocess.Popen(command, env=environ, start_new_session=True, preexec_fn=_end_with_parent)


def _end_with_parent() -> None:
    """In the child: get SIGTERM when this launcher is killed, so that nothing is left on the port."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _stop(process: subprocess.Popen[bytes], seconds: float) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _wait_ready(url: str, process: subprocess.Popen[bytes]) -> bool:
    # Never through a proxy: the address is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + _READY_S
    while time.monotonic() < end and process.poll() is None:
        try:
            with opener.open(url, timeout=5) as response:
                if response.status == 200:
                    return True
        except (urllib.error.URLError, http.client.HTTPException, OSError):
            time.sleep(0.1)
    return False


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
