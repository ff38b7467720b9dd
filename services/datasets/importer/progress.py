"""The progress of an import, as events for the worker."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from ekiben.child_protocol import MessageWriter

REPEAT_S = 0.9
"""Seconds without change after which the last state is reported again: silence would look like a hang."""

_LEAST_S = 0.2  # between two events


class ImportProgress:
    """Writes events of kind ``import``: one to five a second."""

    def __init__(self, writer: MessageWriter, spans: dict[str, tuple[float, float]]) -> None:
        """``spans``: phase -> the share of the whole, 0-1, at its start and its end."""
        self._writer = writer
        self._spans = spans
        self._lock = threading.Lock()
        self._state: tuple[str, int, int] | None = None
        self._reported_at = 0.0
        self._reported: tuple[str, int, int] | None = None

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Report ``done`` of ``total`` (0: not known) bytes, entries or samples of a phase."""
        with self._lock:
            before, self._state = self._state, (phase, done, total)
            # The first and the last state of a phase are always reported.
            due = before is None or before[0] != phase or (done == total and self._reported != self._state)
            if due or time.monotonic() - self._reported_at >= _LEAST_S:
                self._report()

    @contextlib.contextmanager
    def repeated(self) -> Iterator[None]:
        """Within the block a thread repeats the last state after REPEAT_S seconds without a report."""
        ended = threading.Event()

        def repeat() -> None:
            while not ended.wait(REPEAT_S / 3):
                with self._lock:
                    if self._state is not None and time.monotonic() - self._reported_at >= REPEAT_S * 2 / 3:
                        self._report()

        thread = threading.Thread(target=repeat, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _report(self) -> None:
        if self._state is None:
            return
        phase, done, total = self._state
        low, high = self._spans.get(phase, (0.0, 1.0))
        share = min(done / total, 1.0) if total else 0.0
        self._writer.event("import", {"phase": phase, "done": done, "total": total}, low + (high - low) * share)
        self._reported_at, self._reported = time.monotonic(), self._state
