"""Cancellation of a run: the network is stopped once no caller waits for any of its results."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from models.engine.graph_limits import GraphGuard


class RunCancellation:
    """The cancellation token of one batch, whose runs follow each other on one thread; any thread may cancel.

    ``is_abandoned``: whether every caller of the batch has left.
    """

    def __init__(self, is_abandoned: Callable[[], bool]) -> None:
        self._is_abandoned = is_abandoned
        self._options: Any = None
        self._lock = threading.Lock()

    @property
    def abandoned(self) -> bool:
        """Whether every caller of the batch has left."""
        return self._is_abandoned()

    def cancel_if_abandoned(self) -> None:
        """Stop the current run if every caller has left. Call it from any thread, after a caller has left."""
        with self._lock:
            if self._options is not None and self._is_abandoned():
                self._options.terminate = True

    @contextmanager
    def applied_to(self, run_options: Any) -> Iterator[None]:
        """While the block runs, the run with these ``onnxruntime.RunOptions`` can be stopped."""
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
    session: Any,
    outputs: list[str],
    feeds: dict[str, Any],
    cancellation: RunCancellation | None = None,
    guard: GraphGuard | None = None,
) -> list[Any]:
    """The ``outputs`` of ``session.run`` of ONNX Runtime, in order. ``cancellation`` stops it between two nodes, also
    those of a Loop, Scan or If; so does ``guard``, which is for a graph of one input.

    A cancelled run raises ONNX Runtime's own error; for one over a limit see ``GraphGuard.run``.
    """
    if cancellation is None and guard is None:
        return list(session.run(outputs, feeds))

    def attempt(options: Any) -> list[Any]:
        with cancellation.applied_to(options) if cancellation is not None else nullcontext():
            return list(session.run(outputs, feeds, options))

    if guard is not None:
        return guard.run(next(iter(feeds.values())), attempt)
    import onnxruntime as ort

    quiet = ort.RunOptions()
    quiet.log_severity_level = 4  # ONNX Runtime would log a cancelled run as an error
    return attempt(quiet)
