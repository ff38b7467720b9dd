"""Limits of time and memory of a user's graph, from what its trial and its first runs here took."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ekiben.errors import ModelDisabled, Refusal, Unavailable
from models.artifact import Manifest
from models.engine.run_watch import RunWatch, WatchedRun
from models.model_key import ModelKey

T = TypeVar("T")

log = logging.getLogger(__name__)

LEAST_S = 20.0
"""Seconds that every run may take: the machine may be busy, and a first run allocates."""

TIMES = 50.0
"""A run may take so many times what the slowest trial run, or the run at loading, took for as many pixels: a busy
machine costs a factor of ten, attention on a larger image one more."""

OVERDUE_S, OVERDUE_TIMES, MOST_OVERDUE_S = 1.0, 8.0, 5.0
"""After that, or so many times what it should take, another thread takes the turn of a run's thread; never later than
the last, since that costs a thread and nothing more."""

LOAD_S, LOAD_BYTES_PER_S = 60.0, 5e6
"""Seconds for opening a graph, and bytes of its file per further second."""


class GraphLimits:
    """What all users' graphs in this process share: who watches the runs, and one arena for their memory.

    ``on_exceeded`` is called with a version and a reason, from any thread, once a run has exceeded a limit.
    ``memory_bytes``: of all tensors of these graphs together, 0: no limit. It holds for the process, once a graph was
    opened. ``longest_s``: nobody waits longer for a run.
    """

    def __init__(
        self,
        watch: RunWatch,
        on_exceeded: Callable[[ModelKey, str, str], None],
        memory_bytes: int,
        longest_s: float = math.inf,
    ) -> None:
        self.watch = watch
        self.on_exceeded = on_exceeded
        self.memory_bytes = memory_bytes
        self.longest_s = longest_s
        self.opened = 0
        """Sessions of users' graphs that were opened so far."""

    def guard(self, key: ModelKey, manifest: Manifest) -> GraphGuard | None:
        """The guard of a version; None for one that Ekiben exported or trained: its graph is known to end."""
        return GraphGuard(self, key, manifest) if manifest.weights.kind == "imported" else None


class GraphGuard:
    """The limits of one loaded version. ``reason``: why it may not run any more; empty while it may."""

    def __init__(self, limits: GraphLimits, key: ModelKey, manifest: Manifest) -> None:
        self._limits = limits
        self._key = key
        self._bytes = manifest.graph_bytes
        trial = manifest.trial
        height = trial.height if trial else manifest.input.height or 480
        width = trial.width if trial else manifest.input.width or 640
        self._elements = 3 * height * width
        self._seconds = trial.seconds if trial else 0.0
        self.reason = ""
        self._opened_before = -1

    @property
    def memory_bytes(self) -> int:
        """Bytes of the arena that the sessions of all users' graphs share."""
        return self._limits.memory_bytes

    def note(self, seconds: float, elements: int) -> None:
        """Note what a run on ``elements`` numbers takes in this process."""
        self._seconds = max(self._seconds, seconds * self._elements / elements)
        self._opened_before = self._limits.opened

    def limit_s(self, elements: int) -> float:
        """Seconds that a run on a batch of ``elements`` numbers may take."""
        # A first run that nothing was measured for may take as long as opening the file.
        times = TIMES * self._expected_s(elements) if self._seconds else self._opening_s()
        return max(LEAST_S, min(times, self._limits.longest_s))

    def overdue_s(self, elements: int) -> float:
        """Seconds after which nobody else waits for a run on a batch of ``elements`` numbers."""
        return min(max(OVERDUE_S, OVERDUE_TIMES * self._expected_s(elements)), MOST_OVERDUE_S)

    def check(self) -> None:
        """ModelDisabled once a run has exceeded a limit."""
        if self.reason:
            raise ModelDisabled(f"{self._key} is disabled: {self.reason}")

    def run(self, batch: NDArray[np.generic], attempt: Callable[[Any], T]) -> T:
        """``attempt(run_options)``, which runs the graph on ``batch`` with these ``onnxruntime.RunOptions``.

        ModelDisabled where the run exceeds the limit of time, and from then on; or of memory, where the trial has
        needed less for as large an image. Unavailable where it exceeds that of memory otherwise.
        """
        try:
            return self._run(batch, attempt)
        except _OutOfArena:
            shrink_arena()  # it may be full of regions that others have used, and too small for this run
        try:
            return self._run(batch, attempt)
        except _OutOfArena as error:
            raise self._out_of_memory(batch, error.alone) from None

    def open(self, attempt: Callable[[], T], stop: Callable[[], None]) -> T:
        """``attempt()``, which opens the graph. ModelDisabled where that takes too long, and ONNX Runtime lets it be
        stopped by ``stop``; Unavailable where the arena has no room for its weights."""
        for last in (False, True):
            try:
                return self._open(attempt, stop)
            except _OutOfArena:
                if not last:
                    shrink_arena()
        raise _memory_budget(self._key, "its weights", self.memory_bytes)

    def _run(self, batch: NDArray[np.generic], attempt: Callable[[Any], T]) -> T:
        import onnxruntime as ort

        self.check()
        options = ort.RunOptions()
        options.log_severity_level = 4  # ONNX Runtime would log a run that is stopped as an error
        images, limit_s = len(batch), self.limit_s(batch.size)
        overdue_s = self.overdue_s(batch.size)

        def terminate() -> None:
            options.terminate = True

        def stop(run: WatchedRun) -> None:
            if not run.exceeded:  # the process is stopping
                terminate()
                return
            # Said here: a node that does not end would never say so.
            expected = f"; {self._expected_s(batch.size):.2g} s were expected" if self._seconds else ""
            took = f"a run on {images} image{'s' * (images > 1)} took more than {limit_s:.0f} s"
            self._disable("time", took + expected, terminate)

        with self._limits.watch.watching(limit_s, overdue_s, stop) as run:
            try:
                return attempt(options)
            except Exception as error:  # ONNX Runtime's own exceptions share no base
                self.check()
                if run.stopped:
                    raise Unavailable("the server is stopping", code="stopping", retry_after_s=5) from None
                if _is_memory(error):
                    raise _OutOfArena(run.alone) from None
                raise

    def _open(self, attempt: Callable[[], T], stop: Callable[[], None]) -> T:
        self.check()
        limit_s = max(self._opening_s(), min(TIMES * self._seconds, self._limits.longest_s))
        overdue_s = min(OVERDUE_S + self._bytes / LOAD_BYTES_PER_S, MOST_OVERDUE_S)

        def too_long(run: WatchedRun) -> None:
            if run.exceeded:
                self._disable("time", f"opening it took more than {limit_s:.0f} s", stop)
            else:
                stop()

        with self._limits.watch.watching(limit_s, overdue_s, too_long) as run:
            try:
                opened = attempt()
            except Exception as error:
                self.check()
                if _is_memory(error):
                    raise _OutOfArena(run.alone) from None
                raise
        self._limits.opened += 1
        return opened

    def _opening_s(self) -> float:
        return LOAD_S + self._bytes / LOAD_BYTES_PER_S

    def _expected_s(self, elements: int) -> float:
        return self._seconds * elements / self._elements

    def _out_of_memory(self, batch: NDArray[np.generic], alone: bool) -> Refusal:
        # Sessions that were opened since the run at loading take what it had: then this graph may be as it was.
        if alone and self._opened_before == self._limits.opened and batch.size <= self._elements:
            megabytes = self.memory_bytes / 1e6
            what = f"a run on one image needed more than {megabytes:.0f} MB, and one on as large an image did not"
            self._disable("memory", what)
            return ModelDisabled(f"{self._key} is disabled: {self.reason}")
        return _memory_budget(self._key, "this image" if len(batch) == 1 else "these images", self.memory_bytes)

    def _disable(self, limit: str, reason: str, stop: Callable[[], None] = lambda: None) -> None:
        first = not self.reason
        self.reason = self.reason or reason  # before the run is stopped, which asks for it
        stop()
        if first:
            self._limits.on_exceeded(self._key, limit, reason)


class _OutOfArena(Exception):
    """A tensor did not fit the arena. ``alone``: no other graph that uses it ran or was opened meanwhile."""

    def __init__(self, alone: bool) -> None:
        self.alone = alone


def _memory_budget(key: ModelKey, what: str, memory_bytes: int) -> Unavailable:
    return Unavailable(
        f"{key} needs more memory for {what} than the {memory_bytes / 1e6:.0f} MB that imported models share (twice "
        "EKIBEN_MODEL_MEMORY_MB)",
        code="memory_budget",
        retry_after_s=5,
    )


def _is_memory(error: Exception) -> bool:
    text = str(error)
    return isinstance(error, MemoryError) or any(
        sign in text for sign in ("bad_alloc", "Failed to allocate memory", "BFCArena")
    )


# An Identity of one number (opset 13), as protobuf: running it shrinks the arena.
_IDENTITY = (
    b'\x08\x07:7\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)
_arena_lock = threading.Lock()
_arena_bytes = 0


def use_arena(settings: Any, memory_bytes: int) -> None:
    """Let a session of these ``onnxruntime.SessionOptions`` allocate from the arena that users' graphs share.

    The arena is made with the first session, of ``memory_bytes``. Weights count, and may not fill it alone: ONNX
    Runtime computes what is left without a sign, so that an arena that is more than full has no limit.
    """
    import onnxruntime as ort

    global _arena_bytes
    with _arena_lock:
        if not _arena_bytes:
            # Regions as large as what is asked for: others would count half empty ones.
            arena = ort.OrtArenaCfg({"max_mem": math.ceil(memory_bytes), "arena_extend_strategy": 1})
            kind = ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR
            memory = ort.OrtMemoryInfo("Cpu", kind, 0, ort.OrtMemType.DEFAULT)
            ort.create_and_register_allocator(memory, arena)
            _arena_bytes = memory_bytes
    settings.add_session_config_entry("session.use_env_allocators", "1")


def shrink_arena() -> None:
    """Give the memory that no session uses back to the system."""
    import onnxruntime as ort

    if not _arena_bytes:
        return
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.use_env_allocators", "1")
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    try:
        session = ort.InferenceSession(_IDENTITY, settings, providers=["CPUExecutionProvider"])
        session.run(None, {"x": np.zeros(1, np.float32)}, options)
    except Exception as error:  # full of what is in use: there is nothing to give back
        log.warning("the memory of imported models could not be given back: %s", error)
