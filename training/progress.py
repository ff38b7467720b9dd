"""What is told while a training runs: where it is, how fast, how long it will take; and the same curves on disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ekiben.child_protocol import MessageWriter

TENSORBOARD = "tensorboard"

TICK_S = 1.0
"""Whoever follows a training hears of it at least every 2 s."""

EVALUATION_SHARE = 0.04
"""Of one fit's length, what exporting and judging it is taken to last; it only shapes the progress bar."""


class ProgressReporter:
    """The state of a training for those who watch. ``state`` is read by the pulse's thread; the rest is the loop's.

    ``fits``: how many times a network is fitted (1, or the folds and the final fit).
    """

    def __init__(self, writer: MessageWriter, folder: Path, *, fits: int, clock: Callable[[], float] = time.monotonic):
        self._out, self._clock, self._fits = writer, clock, fits
        self._folder = folder
        self._writer: Any = None
        self._data: dict[str, Any] = {}
        self._fit, self._share = 0, 0.0
        self._fit_elapsed_s, self._since = 0.0, clock()
        self._fit_seconds: list[float] = []

    def begin_fit(self, number: int, *, elapsed_s: float, **data: Any) -> None:
        """``elapsed_s``: what an earlier process has spent on this fit already."""
        self._fit, self._share = number, 0.0
        self._fit_elapsed_s, self._since = elapsed_s, self._clock()
        self._data = {"phase": "prepare", "fold": number, "folds": self._fits, **data}

    def end_fit(self) -> None:
        self._fit_seconds.append(self._fit_elapsed_s + self._clock() - self._since)
        self._share = 1 - EVALUATION_SHARE

    def update(self, *, share: float | None = None, **data: Any) -> None:
        """``share``: of the fit that is done, 0-1."""
        if share is not None:
            self._share = share * (1 - EVALUATION_SHARE)
        self._data = {**self._data, **data}

    def state(self) -> tuple[dict[str, Any], float] | None:
        """The data of a step event and the progress of the whole training; None before it has begun."""
        if not self._data:
            return None
        return {**self._data, "time_left_s": self.time_left_s()}, self.progress

    @property
    def progress(self) -> float:
        return min((self._fit + self._share) / self._fits, 0.999)

    def time_left_s(self) -> float | None:
        """None until something can be said."""
        here = self._fit_elapsed_s + self._clock() - self._since
        # A fit that is done tells more of the next ones than the beginning of this one.
        if self._share > 0.01:
            whole = here / self._share
        elif self._fit_seconds:
            whole = self._fit_seconds[-1]
        else:
            return None
        return round(max(0.0, whole * (1 - self._share)) + whole * (self._fits - self._fit - 1), 1)

    def plan(self, data: dict[str, Any]) -> None:
        self._out.event("plan", data, 0.0)

    def epoch(self, data: dict[str, Any], count: int) -> None:
        """``count``: epochs so far over all fits."""
        self._out.event("epoch", data, self.progress)
        for name in ("train_loss", "validation_loss", "dice", "iou", "learning_rate", "images_per_s"):
            if data[name] is not None:
                self._curve(f"{name}/fold{data['fold']}" if self._fits > 1 else name, data[name], data["epoch"])
        for row in data["per_class"]:
            for name in ("dice", "iou"):
                if row[name] is not None:
                    self._curve(f"{name}_{row['class_name']}/{data['fold']}", row[name], data["epoch"])
        self._writer.flush()

    def preview(self, data: dict[str, Any]) -> None:
        self._out.event("preview", data, self.progress)
        self._out.file(data["file"])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _curve(self, name: str, value: float, epoch: int) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder / TENSORBOARD))
        self._writer.add_scalar(name, value, epoch)


class ProgressTicker:
    """Reports the state of a long piece of work once a second, from a thread of its own."""

    def __init__(self, writer: MessageWriter, state: Callable[[], tuple[dict[str, Any], float] | None]) -> None:
        """``state``: the data of a ``step`` event and the progress, 0-1; None while there is nothing to report."""
        self._writer, self._state = writer, state
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def __enter__(self) -> ProgressTicker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stop.wait(TICK_S):
            state = self._state()
            if state is not None:
                self._writer.event("step", *state)
