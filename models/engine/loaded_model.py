"""A model in memory, as the engine keeps it."""

from __future__ import annotations

from dataclasses import dataclass

from models.artifact import Manifest
from models.model_key import ModelKey


@dataclass(slots=True, eq=False, kw_only=True)
class LoadedModel:
    """``slots``: runs at once that suit it. ``warmup_s``: one run. The engine keeps the last two fields."""

    key: ModelKey
    manifest: Manifest
    slots: int
    memory_bytes: int
    warmup_s: float
    detached: bool = False
    users_left: int = 0

    def close(self) -> None:
        """Give the sessions' memory back. Nobody runs the model any more."""
        raise NotImplementedError
