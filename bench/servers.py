"""Servers under test: started, measured and stopped, each with all of its processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
READY_S = 120.0
STOP_S = 20.0
SETTLE_S = 10.0
IDLE_CORES = 0.02
"""A server that takes more than this share of a core without requests is stopped between its measurements."""


class Missing(Exception):
    """A contender cannot take part; the text is the reason that the report gives."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """One server process and its children, on a port of its own, with its log in a file."""

    def __init__(
        self, name: str, command: Sequence[str], environ: Mapping[str, str], ready_path: str, port: int, log: Path
    ) -> None:
        self.name, self.url = name, f"http://127.0.0.1:{port}"
        self.stays = True
        self._command, self._environ, self._log = list(command), dict(environ), log
        self._ready = self.url + ready_path
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether its process is alive."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> float:
        """Seconds until it answered that it is ready. Missing, with the log's last line, when it does not get there."""
        if not Path(self._command[0]).exists():
            raise Missing(f"{self._command[0]} does not exist")
        start = time.perf_counter()
        with self._log.open("ab") as log:
            # A session of its own: Ctrl-C reaches the bench only, which then stops every server in order.
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while time.perf_counter() - start < READY_S:
            if self._process.poll() is not None:
                status = self._process.returncode
                self.stop()
                raise Missing(f"ended with status {status} while starting: {self._last_line()}")
            if _answers_200(self._ready):
                return time.perf_counter() - start
            time.sleep(0.05)
        self.stop()
        raise Missing(f"was not ready after {READY_S:.0f} s: {self._last_line()}")

    def stop(self) -> None:
        """End it and all of its processes: politely, then not."""
        process, self._process = self._process, None
        if process is None:
            return
        family = _family(process.pid)
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        # Some have children that outlive them, in sessions of their own.
        _, alive = psutil.wait_procs(family, timeout=2)
        for each in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(signal.SIGKILL)
        process.wait()

    def cpu_s(self) -> float:
        """CPU seconds that its living processes have used so far."""
        total = 0.0
        for each in _family(self._process.pid if self._process else None):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = each.cpu_times()
                total += times.user + times.system
        return total

    def idle_cores(self, seconds: float) -> float:
        """Share of a core that it takes without requests, over ``seconds``."""
        before = self.cpu_s()
        time.sleep(seconds)
        return max(0.0, self.cpu_s() - before) / seconds

    def settle(self) -> None:
        """Wait until it is idle: many servers go on computing for clients that have disconnected."""
        end = time.perf_counter() + SETTLE_S
        while self.idle_cores(0.1) > 0.2 and time.perf_counter() < end:
            pass

    def pss_mb(self) -> float:
        """Proportional set size of all of its processes, in MiB: shared pages are divided among their users."""
        total = 0
        for each in _family(self._process.pid if self._process else None):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += each.memory_full_info().pss
        return total / 2**20

    def _last_line(self) -> str:
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:300] if lines else "it logged nothing"


def busy_s() -> float:
    """CPU seconds that the whole machine has used so far."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def clean_environ() -> dict[str, str]:
    """This process's environment without variables that would change a contender."""
    own = ("EKIBEN_", "BENTOML_", "BENCH_", "OMP_", "MKL_", "UVICORN_", "LIT_")
    return {name: value for name, value in os.environ.items() if not name.startswith(own)}


def _family(pid: int | None) -> list[psutil.Process]:
    if pid is None:
        return []
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _answers_200(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
