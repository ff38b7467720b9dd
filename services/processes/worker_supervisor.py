"""The worker supervisor: one gateway process of a machine keeps the workers of its home running, and ends them."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from ekiben.ids import new_id
from services.concurrency.restart_delay import RestartDelay
from services.processes.shutdown import FORCE_S

log = logging.getLogger(__name__)

LOOK_S = 0.5
STOP_S = FORCE_S + 1
"""Seconds that a worker has to end after SIGTERM."""


class WorkerSupervisor:
    """A thread of a gateway process. Of several gateways the one that holds the lock of the home does the work.

    ``ended`` is called with the id of each worker whose process has ended. ``environ``: of the workers; None: that of
    this process.
    ``clock``: seconds that never go back.
    """

    def __init__(
        self,
        home: Path,
        count: int,
        ended: Callable[[str], object],
        environ: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._environ = environ
        self._clock = clock
        self._lock_path = home / "workers.lock"
        self._count = count
        self._ended = ended
        self._lock: IO[bytes] | None = None
        self._children: list[_Child] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Begin to end the workers: they finish or give back their claimed items."""
        self._stop.set()

    def stop(self) -> None:
        """End the workers, and return when they have ended."""
        self._stop.set()
        self._thread.join(STOP_S + 1)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    self.look()
                except OSError as error:  # a disk without space, for the lock
                    log.warning("workers are not supervised yet: %s", error)
                self._stop.wait(LOOK_S if self._lock is not None else 2.0)
        except Exception:
            log.exception("workers are not supervised any more")
        finally:
            for child in self._children:
                child.ask_to_end()
            end = time.monotonic() + STOP_S
            for child in self._children:
                child.end(max(0.1, end - time.monotonic()))
            if self._lock is not None:
                self._lock.close()

    def look(self) -> None:
        """Start every worker that does not run and is due, if this supervisor holds the lock of the home."""
        if self._lock is not None or self._take_lock():
            self._keep_running()

    def _take_lock(self) -> bool:
        self._lock_path.parent.mkdir(parents=True, exist_ok=True)
        lock = self._lock_path.open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            return False
        self._lock = lock
        self._children = [_Child(self._ended, self._environ, self._clock) for _ in range(self._count)]
        return True

    def _keep_running(self) -> None:
        for child in self._children:
            try:
                child.keep_running()
            except Exception:  # no process or memory to spare now: retried at the next look
                log.exception("a worker could not be supervised")


class _Child:
    """One worker process. It ends with this process: the pipe to its standard input closes then."""

    def __init__(
        self, ended: Callable[[str], object], environ: Mapping[str, str] | None, clock: Callable[[], float]
    ) -> None:
        self._ended = ended
        self._clock = clock
        self._environ = environ
        self._id = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._delay = RestartDelay(clock)

    def keep_running(self) -> None:
        """Start it if it does not run and is due (services/concurrency/restart_delay.py)."""
        if self._process is not None:
            status = self._process.poll()
            if status is None:
                return
            extra = {"pid": self._process.pid, "status": status}
            in_s = self._delay.ended(self._clock() - self._started)
            log.warning("a worker ended", extra={**extra, "in_s": in_s})
            self._close_pipe(self._process)
            self._process = None
            self._ended(self._id)
        if not self._delay.is_due():
            return
        self._delay.not_started()  # until it was
        self._started = self._clock()
        # A session of its own: Ctrl-C reaches the launcher alone, which stops the processes in order.
        self._id = new_id()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "services.worker", "--with-parent", "--id", self._id],
            stdin=subprocess.PIPE,
            env=self._environ,
            start_new_session=True,
            cwd=Path(__file__).parents[2],
        )
        log.info("a worker was started", extra={"pid": self._process.pid})

    def ask_to_end(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def end(self, patience_s: float) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            log.warning("a worker did not end, and is killed", extra={"pid": self._process.pid})
            os.killpg(self._process.pid, 9)
            self._process.wait()
        self._close_pipe(self._process)

    def _close_pipe(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdin is not None:
            process.stdin.close()
