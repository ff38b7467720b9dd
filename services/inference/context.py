"""What an operation needs besides the image and its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ekiben.ids import LOCAL_OWNER
from models.inference_requests import AutoMaskResponse, MaskResponse
from services.inference.pipeline import InferencePipeline
from services.model_registry.index import ModelIndex, ServableModel
from services.runners.interface import ModelRunner
from services.runners.progress import NO_PROGRESS, ProgressSink
from services.schemas.body import Body
from services.schemas.default_models import DEFAULT_MODELS

BodyT_co = TypeVar("BodyT_co", bound=Body, covariant=True)


@dataclass(frozen=True, slots=True)
class InferenceCore:
    """The parts of a process that all inference shares. ``timeout_s`` bounds a request, ``auto_timeout_s`` automatic
    masks. ``default_models``: by task, for requests that name none, in order of preference."""

    index: ModelIndex
    runner: ModelRunner
    pipeline: InferencePipeline
    timeout_s: float
    auto_timeout_s: float
    default_models: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: DEFAULT_MODELS)

    async def resolve(self, owner: str, name: str | None, version: int | None, task: str) -> ServableModel:
        """The version of a model that does ``task``; for None the first of the task's default models that there is.

        NotFound, Unavailable, BadInput as ``ModelIndex.resolve``.
        """
        if name is None:
            return await self.index.resolve_first(owner, self.default_models[task], version, task)
        return await self.index.resolve(owner, name, version, task)


@dataclass(frozen=True, slots=True)
class RequestContext:
    """One request: for whom it is answered, and what its caller wants besides the answer.

    ``timeout_s``: how long the caller waits, where that is known; the limits of the core hold besides. ``progress``:
    who is told how far it is. ``arrays``: names of ``Family.tensors`` to give back as arrays, of Segment Anything
    ``low_res_masks``. ``on_recorded``: takes the id of the prediction before it is committed, so that a caller of many
    can take it back.
    """

    core: InferenceCore
    owner: str = LOCAL_OWNER
    timeout_s: float | None = None
    progress: ProgressSink = NO_PROGRESS
    arrays: tuple[str, ...] = ()
    on_recorded: Callable[[str], None] | None = None


@dataclass(frozen=True, slots=True)
class Outcome(Generic[BodyT_co]):
    """``body``: the answer as JSON has it. ``images``: encoded images besides it, by name. ``arrays``: those that the
    context asked for. ``masks``: of Segment Anything, the masks themselves."""

    body: BodyT_co
    images: Mapping[str, bytes] = field(default_factory=dict)
    arrays: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)
    masks: MaskResponse | AutoMaskResponse | None = None
