"""Progress of a running training: events with phase, speed and time left, and TensorBoard curves."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ekiben.child_protocol import MessageWriter

TENSORBOARD = "tensorboard"

TICK_S = 1.0
"""Period of the step events. Clients are promised an event at least every 2 s."""

EVALUATION_SHARE = 0.04
"""Assumed share of export and evaluation in the duration of a fit; it affects the reported progress alone."""


class ProgressReporter:
    """Collects the state of a training and sends its events. The thread of ProgressTicker calls ``state``.

    ``fits``: number of fits (1, or the folds and the final fit). ``folder``: gets the TensorBoard files.
    """

    def __init__(self, writer: MessageWriter, folder: Path, *, fits: int, clock: Callable[[], float] = time.monotonic):
        self._events, self._clock, self._fits = writer, clock, fits
        self._folder = folder
        self._curves: Any = None
        self._data: dict[str, Any] = {}
        self._fit, self._share = 0, 0.0
        self._fit_elapsed_s, self._since = 0.0, clock()
        self._fit_seconds: list[float] = []

    def begin_fit(self, number: int, *, elapsed_s: float, **data: Any) -> None:
        """Start fit ``number``, from 0. ``elapsed_s``: seconds that earlier processes spent on it.

        ``data``: of step events.
        """
        self._fit, self._share = number, 0.0
        self._fit_elapsed_s, self._since = elapsed_s, self._clock()
        self._data = {"phase": "prepare", "fold": number, "folds": self._fits, **data}

    def end_fit(self) -> None:
        """Record the duration of the fit; export and evaluation follow."""
        self._fit_seconds.append(self._fit_elapsed_s + self._clock() - self._since)
        self._share = 1 - EVALUATION_SHARE

    def update(self, *, share: float | None = None, **data: Any) -> None:
        """Merge ``data`` into that of the step events. ``share``: part of the fit that is done, 0-1."""
        if share is not None:
            self._share = share * (1 - EVALUATION_SHARE)
        self._data = {**self._data, **data}

    def state(self) -> tuple[dict[str, Any], float] | None:
        """The data of a step event and the progress of the whole training, 0-1; None before the first fit."""
        if not self._data:
            return None
        return {**self._data, "time_left_s": self.time_left_s()}, self.progress

    @property
    def progress(self) -> float:
        """Share of the whole training that is done, below 1 until it has ended."""
        return min((self._fit + self._share) / self._fits, 0.999)

    def time_left_s(self) -> float | None:
        """Estimated seconds to the end of the training; None while there is nothing to estimate from."""
        here = self._fit_elapsed_s + self._clock() - self._since
        # The duration of a finished fit is a better estimate than the first percent of this one.
        if self._share > 0.01:
            whole = here / self._share
        elif self._fit_seconds:
            whole = self._fit_seconds[-1]
        else:
            return None
        return round(max(0.0, whole * (1 - self._share)) + whole * (self._fits - self._fit - 1), 1)

    def plan(self, data: dict[str, Any]) -> None:
        """Send the plan event, the first one: split, network, device and sizes."""
        self._events.event("plan", data, 0.0)

    def resume(self, history: Sequence[dict[str, Any]]) -> None:
        """Begin the curves with the epochs that earlier processes finished, in order; their events were sent.

        Files of curves in the folder are replaced: what they have beyond ``history`` is trained again.
        """
        shutil.rmtree(self._folder / TENSORBOARD, ignore_errors=True)
        for data in history:
            self._add_epoch(data)

    def epoch(self, data: dict[str, Any]) -> None:
        """Send an epoch event and add it to the curves, which are on disk then."""
        self._events.event("epoch", data, self.progress)
        self._add_epoch(data)
        if self._curves is not None:
            self._curves.flush()

    def _add_epoch(self, data: dict[str, Any]) -> None:
        for name in ("train_loss", "validation_loss", "dice", "iou", "learning_rate", "images_per_s"):
            if data[name] is not None:
                self._add_scalar(f"{name}/fold{data['fold']}" if self._fits > 1 else name, data[name], data["epoch"])
        for row in data["per_class"]:
            for name in ("dice", "iou"):
                if row[name] is not None:
                    self._add_scalar(f"{name}_{row['class_name']}/{data['fold']}", row[name], data["epoch"])

    def preview(self, data: dict[str, Any]) -> None:
        """Send a preview event and announce its file, ``data["file"]``."""
        self._events.event("preview", data, self.progress)
        self._events.file(data["file"])

    def close(self) -> None:
        """Close the TensorBoard files."""
        if self._curves is not None:
            self._curves.close()

    def _add_scalar(self, name: str, value: float, epoch: int) -> None:
        if self._curves is None:
            from torch.utils.tensorboard import SummaryWriter

            self._curves = SummaryWriter(str(self._folder / TENSORBOARD))
        self._curves.add_scalar(name, value, epoch)


class ProgressTicker:
    """Context manager: reports the state of long work as step events every TICK_S, from its own thread."""

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
