"""The state of one model version in a process."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from ekiben.errors import Damaged, Refusal, Unavailable
from models.engine.loaded_model import LoadedModel
from models.model_key import ModelKey

State = Literal["unloaded", "loading", "ready", "failed"]

M = TypeVar("M", bound=LoadedModel)


@dataclass(frozen=True, slots=True)
class ModelState:
    """State of one model version in this process. ``memory_bytes`` is 0 unless it is loaded; ``loads`` counts loads."""

    key: ModelKey
    state: State
    reason: str = ""
    memory_bytes: int = 0
    pinned: bool = False
    loads: int = 0


@dataclass(slots=True, eq=False)
class EngineEntry(Generic[M]):
    """What the engine keeps of one version. ``settled``: of the last load, set once it has ended or was given up."""

    key: ModelKey
    state: State = "unloaded"
    reason: str = ""
    damaged: bool = False
    loaded: M | None = None
    pinned: bool = False
    users: int = 0
    loads: int = 0
    last_used: float = 0.0
    failed_at: float = 0.0
    settled: threading.Event = field(default_factory=threading.Event)

    def refusal(self, retry_after_s: float) -> Refusal:
        """The refusal for a request that comes soon after a failed load."""
        if self.damaged:
            return Damaged(self.reason)
        return Unavailable(f"{self.key} could not be loaded: {self.reason}", retry_after_s=int(retry_after_s))
