"""Responses for stored images, artifacts and predictions."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from services.schemas.body import EXAMPLE_ID, Body, ImageRef, ModelRef, Moment, TimingBody
from services.schemas.inference import OperationName

ArtifactKind = Literal["mask", "color", "overlay", "probability", "nifti", "dicom_seg", "cutout", "logits", "archive"]


class ImageBody(Body):
    """A stored image."""

    id: str = Field(examples=[EXAMPLE_ID])
    filename: str | None = Field(examples=["bird.png"])
    mime_type: str = Field(examples=["image/png"])
    bytes: int = Field(examples=[304998])
    width: int = Field(examples=[640])
    height: int = Field(examples=[480])
    sha256: str
    url: str = Field(description="The bytes as they were uploaded.", examples=[f"/v1/images/{EXAMPLE_ID}/content"])
    created_at: Moment = Field(examples=["2026-11-20T09:30:00.000000Z"])


class ArtifactBody(Body):
    """A stored file of a prediction."""

    id: str = Field(examples=[EXAMPLE_ID])
    kind: ArtifactKind = Field(examples=["mask"])
    url: str = Field(examples=[f"/v1/artifacts/{EXAMPLE_ID}"])
    mime_type: str = Field(examples=["image/png"])
    bytes: int
    sha256: str


class PredictionBody(Body):
    """A stored prediction."""

    id: str = Field(examples=[EXAMPLE_ID])
    task: OperationName
    status: Literal["succeeded"] = Field(description="A request that fails leaves no prediction, but its response.")
    model: ModelRef
    image: ImageRef
    job_id: str | None
    parameters: dict[str, Any] = Field(examples=[{"top_k": 3}])
    result: dict[str, Any] | None = Field(
        description="predictions, classes, results, masks or cutouts, as in the response; null in lists for masks, "
        "auto_masks and cutouts, of which one alone may have megabytes."
    )
    top_class: str | None = Field(examples=["junco"])
    top_confidence: float | None = Field(examples=[0.97])
    timing: TimingBody
    artifacts: list[ArtifactBody]
    created_at: Moment
