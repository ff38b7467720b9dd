"""The time limit of a job: what is left of it, and the error of a job that has passed it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from db.tables import Job, now

TIMED_OUT = "timed_out"
"""The error code."""


def seconds_left(job: Job) -> float:
    """Seconds until the limit, counted from the first claim; negative once it has passed."""
    if job.started_at is None:
        return job.timeout_s
    return (job.started_at + timedelta(seconds=job.timeout_s) - now()).total_seconds()


def timeout_error(job: Job) -> dict[str, Any]:
    """The error of a job that has passed its limit, as its row stores it."""
    return {"code": TIMED_OUT, "message": f"the job ran for more than {job.timeout_s:g} s"}
