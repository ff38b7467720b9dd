"""The table of operations: what can be asked of an image, over every protocol and as a job.

It imports the schemas alone: what an operation runs is imported when it is first used, because BentoML's supervising
process reads this table, too, and never answers a request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ekiben.errors import BadInput
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

if TYPE_CHECKING:
    from services.inference.context import Outcome, RequestContext
    from services.inference.pipeline import ImageSource
    from services.inference.representations import Representation
    from services.model_registry.index import ServableModel


@dataclass(frozen=True, slots=True)
class Operation:
    """One row. Over HTTP it is POST ``path`` and, for BentoML's clients, POST ``/name``; in ekiben.v1 ``rpc``.

    ``module``: where ``run`` and ``resolve`` are and, where there are any, ``validate`` and ``REPRESENTATIONS``.
    ``request`` and ``response``: its options and its JSON answer. ``claim_size``: images that a worker claims at once.
    ``heavy``: one image keeps a machine busy for long. ``volumes``: NIfTI and DICOM volumes are taken, too.
    """

    name: str
    module: str
    request: type[InferenceOptions]
    response: type[Body]
    path: str
    rpc: str
    claim_size: int
    summary: str
    tag: str
    heavy: bool = False
    volumes: bool = False

    async def run(self, context: RequestContext, source: ImageSource, options: Any) -> Outcome[Any]:
        """The answer for one image."""
        outcome: Outcome[Any] = await import_module(self.module).run(context, source, options)
        return outcome

    async def resolve(self, context: RequestContext, options: Any) -> ServableModel:
        """The model version that is meant, and that takes these options. NotFound, Unavailable, BadInput."""
        servable: ServableModel = await import_module(self.module).resolve(context, options)
        return servable

    def validate(self, options: Any) -> None:
        """BadInput for options that are wrong whatever the model is."""
        if (validate := getattr(import_module(self.module), "validate", None)) is not None:
            validate(options)

    @property
    def representations(self) -> tuple[Representation[Any, Any], ...]:
        """Other forms of the answer than JSON."""
        forms: tuple[Representation[Any, Any], ...] = getattr(import_module(self.module), "REPRESENTATIONS", ())
        return forms


OPERATIONS: dict[str, Operation] = {
    one.name: one
    for one in (
        Operation(
            "classify", "services.inference.classify", ClassifyOptions, ClassifyBody, "/v1/classify", "Classify",
            claim_size=32, summary="The best classes of an image", tag="vision",
        ),
        Operation(
            "segment", "services.inference.segment", SegmentOptions, SegmentBody, "/v1/segment", "Segment",
            claim_size=8, summary="The class of every pixel", tag="vision", volumes=True,
        ),
        Operation(
            "masks", "services.inference.prompt_masks", MasksOptions, MasksBody, "/v1/masks", "PromptMasks",
            claim_size=4, summary="Segment Anything: masks of points and boxes", tag="masks",
        ),
        Operation(
            "auto_masks", "services.inference.auto_masks", AutoMasksOptions, AutoMasksBody, "/v1/masks/auto",
            "AutoMasks", claim_size=1, summary="Segment Anything: masks of everything in the image", tag="masks",
            heavy=True,
        ),
        Operation(
            "cutouts", "services.inference.cutouts", CutoutsOptions, CutoutsBody, "/v1/cutouts", "Cutouts",
            claim_size=1, summary="Segment Anything: objects with a transparent background", tag="masks", heavy=True,
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
