"""The progress bar of ``Client.wait``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from ekiben._client.records import Job, JobEvent


class Bar(Protocol):
    """Shows the progress of a job."""

    def show(self, event: JobEvent) -> None:
        """Update the bar."""


class NoBar:
    """Shows nothing."""

    def show(self, event: JobEvent) -> None:
        """Do nothing."""


class RichBar:
    """A line with progress, total and time left, drawn with rich. ``console``: of rich, on stderr by default."""

    def __init__(self, job: Job, console: Any = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._counts_items = job.counts.total > 1
        count = [MofNCompleteColumn()] if self._counts_items else [TextColumn("{task.percentage:>3.0f} %")]
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            *count,
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console or Console(stderr=True),
        )
        self._total = job.counts.total if self._counts_items else 1.0
        done = job.counts.done if self._counts_items else job.progress
        self._task = self.progress.add_task(_name(job), total=self._total, note=job.state)
        self.progress.update(self._task, completed=done)

    def show(self, event: JobEvent) -> None:
        """Update the bar."""
        data = event.data
        done = data.get("done") if self._counts_items else data.get("progress")
        if event.kind == "state" and data.get("state") == "succeeded":
            done = self._total
        if event.kind in ("step", "epoch") and data.get("epochs"):
            done = (data.get("epoch", 0) - (event.kind == "step")) / data["epochs"]
        self.progress.update(self._task, completed=done, note=_note(event, data), refresh=True)


@contextmanager
def bar_of(job: Job, progress: bool) -> Iterator[Bar]:
    """A bar during the block; a NoBar without ``progress``."""
    if not progress:
        yield NoBar()
        return
    bar = RichBar(job)
    with bar.progress:
        yield bar


def _name(job: Job) -> str:
    return str(job.parameters.get("name") or job.parameters.get("model") or "") + " " + job.operation


def _note(event: JobEvent, data: dict[str, Any]) -> str:
    if event.kind == "state":
        failed = f", {data['failed']} failed" if data.get("failed") else ""
        return f"{data.get('state', '')}{failed}"
    if event.kind == "step":
        return f"epoch {data.get('epoch')}/{data.get('epochs')} loss {data.get('loss', 0):.3f}"
    if event.kind == "epoch":
        dice = data.get("dice")
        return f"epoch {data.get('epoch')}/{data.get('epochs')}" + (f" Dice {dice:.3f}" if dice is not None else "")
    return f"{data['failed']} failed" if data.get("failed") else ""
