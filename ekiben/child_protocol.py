"""How a child process reports to the worker that started it: one JSON object a line on standard output.

- ``{"event": kind, "data": {...}, "progress": 0-1}``: an event of the job;
- ``{"file": path}``: a file in the folder was replaced, and is to be kept;
- ``{"refusal": {"code", "message"}}``: the reason for an end without a result;
- ``{"result": {...}}``: the last line of a child that succeeded.

The child exits when its standard input closes. The reader is services/jobs/child_process.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import IO, Any

EXIT_DONE = 0  # a result was written
EXIT_REFUSED = 2  # a refusal was written
EXIT_ORPHANED = 3  # the parent has ended


class MessageWriter:
    """Writes the messages to ``stream``. Thread-safe. A failed write ends the process: the parent has ended."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._progress = 0.0

    @classmethod
    def take_stdout(cls) -> MessageWriter:
        """A writer on this process's standard output; what libraries print there later goes to standard error."""
        sys.stdout.flush()
        real = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        return cls(real)

    def event(self, kind: str, data: dict[str, Any], progress: float | None = None) -> None:
        """Write an event. ``progress``: of the whole job, 0-1; it never decreases: the highest value so far is sent."""
        line: dict[str, Any] = {"event": kind, "data": data}
        if progress is not None:
            self._progress = max(self._progress, min(max(progress, 0.0), 1.0))
            line["progress"] = round(self._progress, 4)
        self._write(line)

    def file(self, name: str) -> None:
        """Announce that the file ``name``, relative to the folder, was replaced atomically and is to be kept."""
        self._write({"file": name})

    def refusal(self, code: str, message: str) -> None:
        """Write the reason for an end without a result: a stable code and a sentence for the user."""
        self._write({"refusal": {"code": code, "message": message}})

    def result(self, result: dict[str, Any]) -> None:
        """Write the result: the last message of a child that succeeded."""
        self._write({"result": result})

    def _write(self, line: dict[str, Any]) -> None:
        # JSON has no NaN, and strict readers reject it.
        text = json.dumps(_finite(line), allow_nan=False)
        with self._lock:
            try:
                self._stream.write(text + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                os._exit(EXIT_ORPHANED)


class SilentWriter(MessageWriter):
    """Writes nothing: for all processes of a distributed training but the first."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def _write(self, line: dict[str, Any]) -> None:
        return


def on_parent_exit(callback: Callable[[], object]) -> None:
    """Call ``callback``, in a new thread, when standard input ends.

    Standard input is a pipe that the parent holds open; the system closes it when the parent ends in any way.
    """

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 65536):
                pass
        callback()

    threading.Thread(target=wait, name="parent", daemon=True).start()


def end_with_parent() -> None:
    """End this process at once, with EXIT_ORPHANED, when its parent ends."""
    on_parent_exit(lambda: os._exit(EXIT_ORPHANED))


def end_on_sigterm() -> None:
    """Let SIGTERM end the process at once, whatever handler it inherited; the parent cleans up its folder.

    A Python handler would run only after the current native operation, which may take long.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def log(message: str) -> None:
    """Write a line with the time to standard error, which the parent keeps as the log."""
    print(f"{time.strftime('%H:%M:%S')} {message}", file=sys.stderr, flush=True)


def _finite(value: Any) -> Any:
    """``value`` with null in place of numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value
