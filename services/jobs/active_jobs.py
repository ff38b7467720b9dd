"""What a worker works on: how far each job is, and how many jobs of a kind it takes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class JobProgress:
    """What this worker does for one job. ``share``: of the computation of its only item, 0-1."""

    slices: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    ended: int = 0
    share: float | None = None
    reported: tuple[int, float | None] = (0, None)

    @property
    def changed(self) -> bool:
        """Whether there is progress since the last report."""
        return (self.ended, self.share) != self.reported

    def advance(self, share: float) -> None:
        """``share`` of the only item is computed."""
        self.share = share


class JobPlaces:
    """At most so many jobs of a kind at once in this worker, whatever the queue gives. Thread-safe.

    DBOS has one limit per worker for all workers, that of the one which was started last; they may have different
    settings. ``limits``: by kind; 0 takes none, and a kind that is not named has no limit.
    """

    def __init__(self, limits: Mapping[str, int]) -> None:
        self._limits = limits
        self._taken: dict[str, str] = {}
        self._lock = threading.Lock()

    def take(self, job_id: str, kind: str) -> bool:
        """Whether the job has a place, or gets one now."""
        with self._lock:
            if job_id in self._taken or kind not in self._limits:
                return True
            if sum(taken == kind for taken in self._taken.values()) >= self._limits[kind]:
                return False
            self._taken[job_id] = kind
            return True

    def leave(self, job_id: str) -> None:
        """Give the place of the job back, if it has one."""
        with self._lock:
            self._taken.pop(job_id, None)
