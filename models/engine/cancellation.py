"""Halting: a run of a network is broken off once nobody waits for any of its answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_CURRENT = threading.local()


class RunCancellation:
    """The runs of one batch, all of them on one thread. ``deserted`` says whether nobody waits for it any more."""

    def __init__(self, deserted: Callable[[], bool]) -> None:
        self._deserted = deserted
        self._options: Any = None
        self._lock = threading.Lock()

    @property
    def deserted(self) -> bool:
        """Nobody waits for the batch any more."""
        return self._deserted()

    def look(self) -> None:
        """Break off the present run if nobody waits for it. From any thread, after somebody left."""
        with self._lock:
            if self._options is not None and self._deserted():
                self._options.terminate = True

    @contextmanager
    def present(self) -> Iterator[None]:
        """Sessions that run on this thread meanwhile can be broken off."""
        _CURRENT.halt = self
        try:
            yield
        finally:
            _CURRENT.halt = None

    def _begin(self, options: Any) -> None:
        with self._lock:
            self._options = options
            if self._deserted():
                options.terminate = True

    def _end(self) -> None:
        with self._lock:
            self._options = None


def run_session(session: Any, outputs: list[str], feeds: dict[str, Any]) -> list[Any]:
    """``session.run`` of ONNX Runtime, which looks between two nodes of the graph whether it is to stop.

    A run that is broken off raises ONNX Runtime's own error, which nobody waits for.
    """
    halt: RunCancellation | None = getattr(_CURRENT, "halt", None)
    if halt is None:
        return list(session.run(outputs, feeds))
    import onnxruntime as ort

    options = ort.RunOptions()
    options.log_severity_level = 4  # that it was broken off is no error
    halt._begin(options)
    try:
        return list(session.run(outputs, feeds, options))
    finally:
        halt._end()
