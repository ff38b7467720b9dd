"""The trial runs of a user's graph: on pixels that bring out what depends on them, each with a time limit."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.onnx_import.checks import Refused, first_line

OTHER_RUN_S, TIMES_FIRST = 10.0, 20.0
"""Processor seconds of every run but the first, an image: this, or so many times the first one, which is of black.

Denormal numbers, which some pixels produce, slow a convolution down by less than ten.
"""

MANY = 5
"""Images of the largest trial batch; a graph that would need more than OTHER_RUN_S for them is tried with two."""

MEMORY_TIMES, MEMORY_SPARE = 4, 512 << 20
"""Bytes that a run on one image may take: so many times as many as on a black one, and the spare."""

_ALWAYS = 2  # images that are tried of every graph: white ones and noise
_UNSCALED = "pixels of 255"  # no images: a graph may refuse them, but not stop at nothing
_LOOK_S = 0.02
_STUCK_S = 2.0  # a node that does not end that long after the run was told to


class TrialRuns:
    """Runs a session on images of ``shape`` (batch, 3, height, width) and keeps what they cost.

    ``seconds``: processor time of the slowest run on one image; ``memory_bytes``: by how much the runs on one image
    grew the process. ``give_up`` ends the process with a reason, where a node cannot be stopped.
    ``cpu_s``: of all runs together; no run gets more than a quarter. ``clock``: processor seconds of the process.
    """

    def __init__(
        self,
        session: Any,
        info: dict[str, Any],
        shape: list[int],
        give_up: Callable[[str], None],
        cpu_s: float,
        clock: Callable[[], float] = time.process_time,
    ) -> None:
        self._session = session
        self._info = info
        self._shape = shape
        self._give_up = give_up
        self._cpu_s = cpu_s
        self._most_s = cpu_s / 4
        self._clock = clock
        _forget_peak()  # reading the file took more than what is resident now
        self._before = _peak_bytes()
        self.first_s = 0.0
        self.seconds = 0.0
        self.memory_bytes = 0

    def black(self, count: int) -> list[Any]:
        """The outputs for ``count`` black images (zeros). Refused where the run fails or takes too long."""
        shape = [count, *self._shape[1:]]
        limit = self._most_s if not self.first_s else self._limit(count)
        outputs = self._run(f"zeros of shape {shape}", np.zeros(shape, self._info["dtype"]), limit)
        if not self.first_s:
            self.first_s, self.memory_bytes = self.seconds, _peak_bytes() - self._before
        return outputs

    def bright(self, low: float, high: float) -> None:
        """Run on the other images: ``low`` and ``high`` are the input's values of a black and a white pixel.

        Refused where a run fails, or takes much more time or memory than that on a black image. Of a slow graph, whose
        runs have taken half of the time, only the first images are tried.
        """
        black = self.memory_bytes
        for number, (what, pixels) in enumerate(_images(self._shape, self._info["dtype"], low, high)):
            if number >= _ALWAYS and self._clock() > self._cpu_s / 2:
                return
            self._run(what, pixels, self._limit(self._shape[0]), may_fail=what == _UNSCALED)
            self.memory_bytes = max(self.memory_bytes, _peak_bytes() - self._before)
            if self.memory_bytes > MEMORY_TIMES * black + MEMORY_SPARE:
                raise Refused(
                    f"a trial run on {what} takes {self.memory_bytes >> 20} MB of memory, on black ones {black >> 20}: "
                    "how much it needs depends on the pixels, which cannot be served safely"
                )

    def batches(self) -> tuple[int, ...]:
        """The batches that are cheap enough to be tried; none of a graph that is so slow that little time is left."""
        left = self._cpu_s - self._clock() - _STUCK_S
        if 2 * self.first_s > self._most_s or min(self._limit(2), self._most_s) > left:
            return ()
        return (2, MANY) if MANY * self.first_s < OTHER_RUN_S else (2,)

    def _limit(self, count: int) -> float:
        return max(OTHER_RUN_S, TIMES_FIRST * self.first_s) * count

    def _run(self, what: str, pixels: NDArray[Any], limit_s: float, *, may_fail: bool = False) -> list[Any]:
        import onnxruntime as ort

        if self._info["layout"] == "NHWC":
            pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
        options = ort.RunOptions()
        options.log_severity_level = 4
        limit_s = min(limit_s, self._most_s)
        slow = f"a trial run on {what} takes more than {limit_s:g} s of processor time" + (
            f", on black ones {self.first_s:.2g}: how long it runs depends on the pixels, which cannot be served safely"
            if self.first_s
            else ""
        )
        outputs: list[Any] = []
        started = self._clock()
        with _stopping(options, limit_s, lambda: self._give_up(slow)):
            try:
                outputs = list(self._session.run(None, {self._info["input_name"]: pixels}, options))
            except Exception as error:  # ONNX Runtime's own exception types share no base but Exception
                if options.terminate:
                    raise Refused(slow) from None
                failed = failure(f"a trial run on {what} fails", error)
                if isinstance(failed, MemoryError) or not may_fail:
                    raise failed from None
        self.seconds = max(self.seconds, (self._clock() - started) / len(pixels))
        return outputs


def failure(what: str, error: Exception) -> Exception:
    """Refused, or MemoryError where the message of ONNX Runtime says so."""
    text = str(error)
    if isinstance(error, MemoryError) or "bad_alloc" in text or "Failed to allocate memory" in text:
        return MemoryError(what)
    return Refused(f"{what}: {first_line(error)}")


def _images(shape: list[int], dtype: str, low: float, high: float) -> Iterator[tuple[str, NDArray[Any]]]:
    """What the images show, and their values; the noise is the same in every trial."""
    random = np.random.default_rng(0)
    span = high - low

    def cast(values: NDArray[Any]) -> NDArray[Any]:
        return values.round().astype(dtype) if dtype == "uint8" else values.astype(dtype)

    yield "white pixels", cast(np.full(shape, high))
    yield "noise", cast(low + span * random.random(shape, np.float32))
    yield "black and white pixels at random", cast(low + span * random.integers(0, 2, shape))
    lone = np.full(shape, low)
    lone[..., shape[-2] // 2, shape[-1] // 2] = high
    yield "one white pixel in black ones", cast(lone)
    if dtype != "uint8":  # a tensor that a client prepared, and did not scale
        yield _UNSCALED, cast(np.full(shape, 255.0))


@contextmanager
def _stopping(options: Any, limit_s: float, stuck: Callable[[], None]) -> Iterator[None]:
    """While the block runs, its run is stopped after ``limit_s`` seconds of processor time.

    Not of the clock, so that a busy machine refuses no graph. ``stuck`` is called where the run goes on.
    """
    ended = threading.Event()
    start = time.process_time()

    def watch() -> None:
        while not ended.wait(_LOOK_S):
            spent = time.process_time() - start
            if spent > limit_s:
                options.terminate = True
            if spent > limit_s + _STUCK_S:
                stuck()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _peak_bytes() -> int:
    """The largest resident set of this process, since ``_forget_peak`` where the system has that."""
    with contextlib.suppress(OSError, StopIteration):
        # Not getrusage: that begins with the size of the process that started this one.
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) << 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def _forget_peak() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def end_process(report: Callable[[str], str]) -> Callable[[str], None]:
    """A function that writes ``report`` of a reason and ends the process at once, whatever its threads do."""

    def end(reason: str) -> None:
        sys.stdout.write(report(reason))
        sys.stdout.flush()
        os._exit(0)

    return end
