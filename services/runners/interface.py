"""The interface of a runner: images in, answers out, wherever the models are."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from models.engine.engine import ModelKey, ModelState
from models.inference_requests import (
    AutoMaskRequest,
    AutoMaskResponse,
    InferenceRequest,
    InferenceResponse,
    MaskRequest,
    MaskResponse,
)
from models.results import Timing
from services.runners.progress import NO_PROGRESS, ProgressSink


class TimedAnswer(NamedTuple):
    answer: InferenceResponse
    timing: Timing


class Runner(Protocol):
    """Where inference happens: in this process (local.py), or in a runner process (remote.py)."""

    async def infer(
        self, key: ModelKey, request: InferenceRequest, deadline: float, progress: ProgressSink = NO_PROGRESS
    ) -> TimedAnswer:
        """The answer; ``deadline`` is in ``time.monotonic()`` seconds. Cancelling the call cancels the computation."""
        ...

    async def masks(self, key: ModelKey, request: MaskRequest, deadline: float) -> tuple[MaskResponse, Timing]:
        """Masks of prompts, by a Segment Anything model."""
        ...

    async def auto_masks(
        self, key: ModelKey, request: AutoMaskRequest, deadline: float, progress: ProgressSink = NO_PROGRESS
    ) -> tuple[AutoMaskResponse, Timing]:
        """Masks of everything."""
        ...

    async def load(self, key: ModelKey, *, pin: bool = False) -> None:
        """Return when the model is ready; raises the refusal that the load ended in."""
        ...

    async def unload(self, key: ModelKey) -> bool:
        """Take a model out of memory; False when it was not loaded."""
        ...

    async def states(self) -> list[ModelState]: ...

    async def counters(self, key: ModelKey) -> dict[str, int]:
        """predictions, batches, loads: since the start; waiting: now; batch_size: learned so far."""
        ...

    async def metrics_text(self) -> bytes:
        """Prometheus lines of another process, if the models are in one."""
        ...

    async def check(self) -> None:
        """Raises Unavailable where it cannot answer."""
        ...

    async def close(self) -> None: ...
