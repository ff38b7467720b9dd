"""How a child process speaks to the worker that started it: one JSON object a line on stdout."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

EXIT_DONE = 0
EXIT_REFUSED = 2
EXIT_ORPHANED = 3

REPEAT_S = 0.9
"""So often the last word on progress is said again where nothing new is known: silence would look like a hang."""

_LEAST_S = 0.2


class Speaker:
    """Writes the lines. What else is printed to stdout, by any library, goes to stderr instead."""

    def __init__(self, fd: int) -> None:
        self._out = os.fdopen(fd, "w", encoding="utf-8")
        self._lock = threading.Lock()

    @classmethod
    def take_stdout(cls) -> Speaker:
        """A speaker on this process's real stdout; from now on file descriptor 1 is stderr."""
        sys.stdout.flush()
        real = os.dup(1)
        os.dup2(2, 1)
        return cls(real)

    def event(self, kind: str, data: dict[str, Any], progress: float | None = None) -> None:
        line: dict[str, Any] = {"event": kind, "data": data}
        if progress is not None:
            line["progress"] = round(min(max(progress, 0.0), 1.0), 4)
        self._say(line)

    def refusal(self, code: str, message: str) -> None:
        self._say({"refusal": {"code": code, "message": message}})

    def result(self, result: dict[str, Any]) -> None:
        self._say({"result": result})

    def _say(self, line: dict[str, Any]) -> None:
        with self._lock:
            self._out.write(json.dumps(line) + "\n")
            self._out.flush()


class Progress:
    """Where the import stands, as events of kind ``import``: at most five a second, at least one."""

    def __init__(self, speaker: Speaker, spans: dict[str, tuple[float, float]]) -> None:
        """``spans``: phase -> the share of the whole, 0-1, at its start and its end."""
        self._speaker = speaker
        self._spans = spans
        self._lock = threading.Lock()
        self._state: tuple[str, int, int] | None = None
        self._said_at = 0.0
        self._said: tuple[str, int, int] | None = None

    def __call__(self, phase: str, done: int, total: int) -> None:
        """``done`` of ``total`` (0: not known) bytes, entries or samples of this phase."""
        with self._lock:
            before, self._state = self._state, (phase, done, total)
            # The first and the last word of a phase are always said.
            telling = before is None or before[0] != phase or (done == total and self._said != self._state)
            if telling or time.monotonic() - self._said_at >= _LEAST_S:
                self._tell()

    @contextlib.contextmanager
    def repeated(self) -> Iterator[None]:
        """Within it, a thread repeats the last state where nothing new was said for REPEAT_S."""
        ended = threading.Event()

        def repeat() -> None:
            while not ended.wait(REPEAT_S / 3):
                with self._lock:
                    if self._state is not None and time.monotonic() - self._said_at >= REPEAT_S * 2 / 3:
                        self._tell()

        thread = threading.Thread(target=repeat, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _tell(self) -> None:
        if self._state is None:
            return
        phase, done, total = self._state
        low, high = self._spans.get(phase, (0.0, 1.0))
        share = min(done / total, 1.0) if total else 0.0
        self._speaker.event("import", {"phase": phase, "done": done, "total": total}, low + (high - low) * share)
        self._said_at, self._said = time.monotonic(), self._state


def end_with_parent() -> None:
    """Leave at once when stdin ends: it is a pipe that the parent holds open as long as it lives."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 65536):
                pass
        os._exit(EXIT_ORPHANED)

    threading.Thread(target=wait, name="parent", daemon=True).start()


def end_on_sigterm() -> None:
    """SIGTERM ends the process at once, whatever it inherited; what it leaves behind is its folder, the parent's."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
