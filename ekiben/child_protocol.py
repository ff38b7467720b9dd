"""How a child process reports to the worker that started it: one JSON object a line on standard output.

- ``{"event": kind, "data": {...}, "progress": 0-1}``: an event of the job;
- ``{"file": path}``: a file in the folder was replaced, and is worth keeping;
- ``{"refusal": {"code", "message"}}``: why it ends without a result;
- ``{"result": {...}}``: its last line.

The child ends when its standard input closes. The worker's side is services/jobs/child_process.py.
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

EXIT_DONE = 0
EXIT_REFUSED = 2
EXIT_ORPHANED = 3


class MessageWriter:
    """Writes the lines. Thread-safe. A line that cannot be written ends the process: its parent is gone."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._progress = 0.0

    @classmethod
    def take_stdout(cls) -> MessageWriter:
        """A writer on this process's standard output; whatever else prints, by any library, goes to standard error."""
        sys.stdout.flush()
        real = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        return cls(real)

    def event(self, kind: str, data: dict[str, Any], progress: float | None = None) -> None:
        """``progress``, 0-1, is of the whole job; a lower value than the last one is reported as that one."""
        line: dict[str, Any] = {"event": kind, "data": data}
        if progress is not None:
            self._progress = max(self._progress, min(max(progress, 0.0), 1.0))
            line["progress"] = round(self._progress, 4)
        self._write(line)

    def file(self, name: str) -> None:
        """``name``, relative to the folder, was replaced atomically and is worth keeping now."""
        self._write({"file": name})

    def refusal(self, code: str, message: str) -> None:
        """Why there is no result."""
        self._write({"refusal": {"code": code, "message": message}})

    def result(self, result: dict[str, Any]) -> None:
        """The last line of a child that has done its work."""
        self._write({"result": result})

    def _write(self, line: dict[str, Any]) -> None:
        # JSON has no NaN, and a reader that is strict would stop at one.
        text = json.dumps(_finite(line), allow_nan=False)
        with self._lock:
            try:
                self._stream.write(text + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                os._exit(EXIT_ORPHANED)


class SilentWriter(MessageWriter):
    """Writes nothing: for the processes of a distributed training beside the first one."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def _write(self, line: dict[str, Any]) -> None:
        return


def on_parent_exit(callback: Callable[[], object]) -> None:
    """Call ``callback``, on a thread of its own, when standard input ends.

    It is a pipe that the parent holds open: it closes when the parent ends, however that happens.
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
    """SIGTERM ends the process at once, whatever handler it inherited; its folder belongs to the parent.

    A handler of Python's would wait for the operation that runs now, which may be a long one.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def log(message: str) -> None:
    """One line on standard error, which the parent keeps."""
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
