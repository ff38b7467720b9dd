"""States of jobs and of their items. ``db.job_states`` owns every transition between them."""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    """State of a job; the value is what the database and the API hold."""

    QUEUED = "queued"
    """Stored and queued, and no item was ever claimed. Left by ``claim``, ``cancel`` and ``fail``."""

    RUNNING = "running"
    """An item was claimed; items may wait again meanwhile. Left when the last item ends, by ``cancel`` and ``fail``."""

    SUCCEEDED = "succeeded"
    """Every item ended, at least one of them succeeded. Left by ``retry``, where an item failed."""

    FAILED = "failed"
    """No item succeeded, or ``fail`` ended the job: its time was up, or workers died with it. Left by ``retry``."""

    CANCELLED = "cancelled"
    """Its owner ended it by ``cancel``; items that had succeeded keep their results. Left by ``retry``."""


class ItemState(StrEnum):
    """State of an item of a job; the value is what the database and the API hold."""

    QUEUED = "queued"
    """Waits for a worker, perhaps until ``not_before``. Left by ``claim``, and when the job ends early."""

    RUNNING = "running"
    """Claimed by ``worker_id``. Left by ``finish_items``; ``requeue`` and ``fail_worker`` let it wait again."""

    SUCCEEDED = "succeeded"
    """Its result is stored. Final: ``retry`` leaves it alone."""

    FAILED = "failed"
    """It ended with ``error``, or MAX_DEATHS workers died with it. Left by ``retry``."""

    CANCELLED = "cancelled"
    """Its job ended before it did, cancelled or failed. Left by ``retry``."""


OVER = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)
"""States of a job of which no item is claimed any more."""

ACTIVE = (ItemState.QUEUED, ItemState.RUNNING)
"""States of an item that has not ended."""
