"""A model in memory, as the engine keeps it."""

from __future__ import annotations

from dataclasses import dataclass

from models.artifact import Manifest
from models.model_key import ModelKey


@dataclass(slots=True, eq=False, kw_only=True)
class LoadedModel:
    """A warm model. ``max_concurrency``: runs at once that suit it. ``warmup_s``: seconds of one run.

    The engine owns ``detached`` (it was unloaded), ``users_left`` (leases that are still held then) and ``closed``.
    """

    key: ModelKey
    manifest: Manifest
    max_concurrency: int
    memory_bytes: int
    warmup_s: float
    detached: bool = False
    users_left: int = 0
    closed: bool = False

    def close(self) -> None:
        """Free the memory of the sessions. No run may be under way. The engine calls it once."""
        raise NotImplementedError
