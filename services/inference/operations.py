"""The table of operations: what can be asked of an image, over every protocol and as a job."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ekiben.errors import BadInput
from services.inference import auto_masks, classify, cutouts, prompt_masks, sam_model, segment
from services.inference.context import Outcome, RequestContext
from services.inference.pipeline import ImageSource
from services.inference.representations import Representation
from services.model_registry.index import ServableModel
from services.schemas.body import Body
from services.schemas.inference import ClassifyBody, ClassifyOptions, InferenceOptions, SegmentBody, SegmentOptions
from services.schemas.masks import (
    AutoMasksBody,
    AutoMasksOptions,
    CutoutsBody,
    CutoutsOptions,
    MasksBody,
    MasksOptions,
)
from services.schemas.validation import check


def _anything_goes(_options: Any) -> None:
    return


@dataclass(frozen=True, slots=True)
class Operation:
    """One row. Over HTTP it is POST ``path`` and, for BentoML's clients, POST ``/name``; in ekiben.v1 ``rpc``.

    ``request`` and ``response``: its options and its JSON answer. ``run`` answers one image. ``resolve`` finds the
    model version that is meant, and checks the options against it. ``validate`` refuses options that are wrong
    whatever the model is. ``claim_size``: images that a worker claims at once. ``heavy``: one image keeps a machine
    busy for long. ``volumes``: NIfTI and DICOM volumes are taken, too. ``representations``: other forms of the answer.
    """

    name: str
    request: type[InferenceOptions]
    response: type[Body]
    run: Callable[[RequestContext, ImageSource, Any], Awaitable[Outcome[Any]]]
    resolve: Callable[[RequestContext, Any], Awaitable[ServableModel]]
    path: str
    rpc: str
    claim_size: int
    summary: str
    tag: str
    heavy: bool = False
    volumes: bool = False
    validate: Callable[[Any], None] = _anything_goes
    representations: tuple[Representation[Any, Any], ...] = ()


OPERATIONS: dict[str, Operation] = {
    one.name: one
    for one in (
        Operation(
            "classify", ClassifyOptions, ClassifyBody, classify.run, classify.resolve, "/v1/classify", "Classify",
            claim_size=32, summary="The best classes of an image", tag="vision",
        ),
        Operation(
            "segment", SegmentOptions, SegmentBody, segment.run, segment.resolve, "/v1/segment", "Segment",
            claim_size=8, summary="The class of every pixel", tag="vision", volumes=True,
            representations=segment.REPRESENTATIONS,
        ),
        Operation(
            "masks", MasksOptions, MasksBody, prompt_masks.run, sam_model.resolve, "/v1/masks", "PromptMasks",
            claim_size=4, summary="Segment Anything: masks of points and boxes", tag="masks",
            validate=prompt_masks.validate,
        ),
        Operation(
            "auto_masks", AutoMasksOptions, AutoMasksBody, auto_masks.run, sam_model.resolve, "/v1/masks/auto",
            "AutoMasks", claim_size=1, summary="Segment Anything: masks of everything in the image", tag="masks",
            heavy=True,
        ),
        Operation(
            "cutouts", CutoutsOptions, CutoutsBody, cutouts.run, sam_model.resolve, "/v1/cutouts", "Cutouts",
            claim_size=1, summary="Segment Anything: objects with a transparent background", tag="masks", heavy=True,
            validate=prompt_masks.validate, representations=cutouts.REPRESENTATIONS,
        ),
    )
}  # fmt: skip


def operation(name: str) -> Operation:
    """The row of that name. BadInput lists those that there are."""
    if name not in OPERATIONS:
        raise BadInput(f"there is no operation {name[:40]!r}; there are {', '.join(OPERATIONS)}")
    return OPERATIONS[name]


def read_parameters(operation: Operation, given: Mapping[str, Any]) -> InferenceOptions:
    """The options of an operation out of a job's parameters. BadInput names what is wrong."""
    return check(operation.request, given)


async def resolve_parameters(
    context: RequestContext, operation: Operation, options: InferenceOptions
) -> dict[str, Any]:
    """The parameters of a job: those given, checked as far as that goes without an image, and the model's version.

    A job keeps to one version, whichever is the active one when its turn comes.
    """
    servable = await operation.resolve(context, options)
    operation.validate(options)
    parameters = options.model_dump(mode="json", exclude_unset=True, exclude={"image_id", "store"})
    return {**parameters, "model": servable.key.name, "version": servable.key.version}
