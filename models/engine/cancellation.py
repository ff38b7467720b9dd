"""Cancellation of a run: the network is stopped once nobody waits for any of its answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class RunCancellation:
    """The cancellation token of one batch. Its runs follow each other on one thread; any thread may cancel.

    ``is_abandoned``: whether every caller of the batch has left.
    """

    def __init__(self, is_abandoned: Callable[[], bool]) -> None:
        self._is_abandoned = is_abandoned
        self._options: Any = None
        self._lock = threading.Lock()

    @property
    def abandoned(self) -> bool:
        """Nobody waits for the batch any more."""
        return self._is_abandoned()

    def cancel_if_abandoned(self) -> None:
        """Stop the run that is under way if nobody waits for it. From any thread, after a caller has left."""
        with self._lock:
            if self._options is not None and self._is_abandoned():
                self._options.terminate = True

    @contextmanager
    def applied_to(self, run_options: Any) -> Iterator[None]:
        """The run inside, which was given these ``onnxruntime.RunOptions``, can be stopped."""
        with self._lock:
            self._options = run_options
            if self._is_abandoned():
                run_options.terminate = True
        try:
            yield
        finally:
            with self._lock:
                self._options = None


def run_session(
    session: Any, outputs: list[str], feeds: dict[str, Any], cancellation: RunCancellation | None = None
) -> list[Any]:
    """``session.run`` of ONNX Runtime, which looks between two nodes of the graph whether it is to stop.

    A run that is cancelled raises ONNX Runtime's own error, which nobody waits for.
    """
    if cancellation is None:
        return list(session.run(outputs, feeds))
    import onnxruntime as ort

    options = ort.RunOptions()
    options.log_severity_level = 4  # that it was cancelled is no error
    with cancellation.applied_to(options):
        return list(session.run(outputs, feeds, options))
