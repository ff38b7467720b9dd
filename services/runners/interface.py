"""The interface of a runner, which computes requests wherever the models are loaded."""

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
    """A response, and the times that it took."""

    answer: InferenceResponse
    timing: Timing


class ModelRunner(Protocol):
    """Computes requests in this process (local.py), or in a runner process (remote.py).

    Deadlines are in ``time.monotonic()`` seconds. Cancelling a call cancels its computation. Calls raise
    DeadlineExceeded, Overloaded, Unavailable, and BadInput for a request that does not fit the model.
    """

    async def infer(
        self, key: ModelKey, request: InferenceRequest, deadline: float, progress: ProgressSink = NO_PROGRESS
    ) -> TimedAnswer:
        """The response of a model that classifies or segments."""
        ...

    async def masks(self, key: ModelKey, request: MaskRequest, deadline: float) -> tuple[MaskResponse, Timing]:
        """The masks of prompts, by a Segment Anything model."""
        ...

    async def auto_masks(
        self, key: ModelKey, request: AutoMaskRequest, deadline: float, progress: ProgressSink = NO_PROGRESS
    ) -> tuple[AutoMaskResponse, Timing]:
        """The masks of everything in an image, by a Segment Anything model."""
        ...

    async def load(self, key: ModelKey, *, pin: bool = False) -> None:
        """Return when the model is ready; raises the refusal that the load ended in. ``pin``: it is not evicted."""
        ...

    async def enable(self, key: ModelKey) -> None:
        """Let a model be loaded again that was disabled."""
        ...

    async def unload(self, key: ModelKey) -> bool:
        """Take a model out of memory; False when it was not loaded."""
        ...

    async def states(self) -> list[ModelState]:
        """The states of the models that the engine knows."""
        ...

    async def counters(self, key: ModelKey) -> dict[str, int]:
        """``predictions``, ``batches``, ``loads`` since the start; ``waiting`` items now; ``batch_size`` learned so
        far."""
        ...

    async def metrics_text(self) -> bytes:
        """Prometheus lines of the runner process; empty where the models are in this one."""
        ...

    async def check(self) -> None:
        """Unavailable where it cannot compute requests."""
        ...

    async def close(self) -> None:
        """Release threads, models and connections."""
        ...
