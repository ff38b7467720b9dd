"""How long a training may take in these tests."""

from __future__ import annotations

from pathlib import Path

MINUTES = 300.0
"""More than any of these takes, on a machine that does something else besides."""


def works(home: Path, job_id: str) -> list[Path]:
    """The folders in which workers are at the job."""
    return list((home / "work").glob(f"*/{job_id}"))
