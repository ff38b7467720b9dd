"""Operations: what can be asked of an image, by the names that jobs and batches use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from db.records import Records
from ekiben.errors import BadInput
from models.classifier import check_top_k
from models.sam.prompts import read_prompts
from services.inference.masks import Masks
from services.inference.pipeline import ImageSource
from services.inference.recording import Recorder
from services.inference.vision import Vision, check_segment
from services.model_registry.index import ModelIndex
from services.schemas.inference import ClassifyOptions, InferenceOptions, SegmentOptions
from services.schemas.masks import AutoMasksOptions, CutoutsOptions, MasksOptions
from services.schemas.validation import check

Answer = dict[str, Any]


class Core(Protocol):
    """What answers: the same whichever process it is in."""

    @property
    def vision(self) -> Vision: ...
    @property
    def masks(self) -> Masks: ...
    @property
    def index(self) -> ModelIndex: ...
    @property
    def records(self) -> Records: ...
    @property
    def recorder(self) -> Recorder: ...


@dataclass(frozen=True, slots=True)
class Operation:
    """``window``: images that a worker takes at once. ``heavy``: one image keeps a machine busy for long."""

    name: str
    task: str
    options: type[InferenceOptions]
    run: Callable[[Core, ImageSource, Any, bool, str], Awaitable[Answer]]
    claim_size: int
    heavy: bool = False


async def _classify(core: Core, source: ImageSource, options: ClassifyOptions, store: bool, owner: str) -> Answer:
    pending = {"model": options.model, "version": options.version, "top_k": options.top_k}
    return (await core.vision.classify(source, **pending, store=store, owner=owner)).body  # type: ignore[arg-type]


async def _segment(core: Core, source: ImageSource, options: SegmentOptions, store: bool, owner: str) -> Answer:
    outcome = await core.vision.segment(
        source,
        model=options.model,
        version=options.version,
        flips=options.flips,
        probability=options.wants_probability,
        store=store,
        owner=owner,
    )
    return outcome.body


async def _masks(core: Core, source: ImageSource, options: MasksOptions, store: bool, owner: str) -> Answer:
    return await core.masks.prompted(
        source,
        _prompts(options.prompts),
        model=options.model,
        version=options.version,
        multimask=options.multimask,
        format=options.format,
        logits=options.logits,
        store=store,
        owner=owner,
    )


async def _auto_masks(core: Core, source: ImageSource, options: AutoMasksOptions, store: bool, owner: str) -> Answer:
    return await core.masks.automatic(
        source,
        options.auto,
        model=options.model,
        version=options.version,
        format=options.format,
        store=store,
        owner=owner,
    )


async def _cutouts(core: Core, source: ImageSource, options: CutoutsOptions, store: bool, owner: str) -> Answer:
    body, _ = await core.masks.cutouts(
        source,
        _prompts(options.prompts),
        options.auto,
        style=options.style,
        min_pixels=options.min_pixels,
        limit=options.limit,
        multimask=options.multimask,
        model=options.model,
        version=options.version,
        store=store,
        owner=owner,
    )
    return body


OPERATIONS: dict[str, Operation] = {
    one.name: one
    for one in (
        Operation("classify", "classify", ClassifyOptions, _classify, claim_size=32),
        Operation("segment", "segment", SegmentOptions, _segment, claim_size=8),
        Operation("masks", "masks", MasksOptions, _masks, claim_size=4),
        Operation("auto_masks", "masks", AutoMasksOptions, _auto_masks, claim_size=1, heavy=True),
        Operation("cutouts", "masks", CutoutsOptions, _cutouts, claim_size=1, heavy=True),
    )
}


def operation(name: str) -> Operation:
    """BadInput says which there are."""
    if name not in OPERATIONS:
        raise BadInput(f"there is no operation {name[:40]!r}; there are {', '.join(OPERATIONS)}")
    return OPERATIONS[name]


def read_parameters(operation: Operation, given: Mapping[str, Any]) -> InferenceOptions:
    """The options of an operation as JSON gives them: prompts may be a list. BadInput names what is wrong."""
    text = {"prompts": orjson.dumps(given["prompts"]).decode()} if isinstance(given.get("prompts"), list) else {}
    return check(operation.options, {**given, **text})


async def settle_parameters(core: Core, operation: Operation, options: InferenceOptions, owner: str) -> dict[str, Any]:
    """The parameters of a job: those given, checked as far as that goes without an image, and the model's version.

    A job keeps to one version, whichever is the active one when its turn comes.
    """
    model: str = options.model  # type: ignore[attr-defined]
    if isinstance(options, SegmentOptions):
        served = await core.vision.segmenter(owner, options.model, options.version)
        check_segment(served, flips=options.flips, probability=options.wants_probability)
    elif operation.task == "masks":
        served = await core.masks.served(owner, model, options.version)
    else:
        served = await core.index.resolve(owner, model, options.version, operation.task)
    if isinstance(options, ClassifyOptions) and options.top_k is not None:
        check_top_k(options.top_k, served.classes)
    parameters = options.model_dump(mode="json", exclude_unset=True, exclude={"image_id", "store"})
    if isinstance(options, MasksOptions | CutoutsOptions) and options.prompts is not None:
        parameters["prompts"] = _prompts(options.prompts)
        if parameters["prompts"] is not None:
            read_prompts(parameters["prompts"])
    return {**parameters, "model": served.key.name, "version": served.key.version}


def _prompts(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"prompts is not JSON: {error.msg} at character {error.pos}") from None
