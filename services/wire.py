"""Bodies: what JSON answers look like, for the doors and for OpenAPI."""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from models.results import ClassArea, ClassScore, Timing

T = TypeVar("T")

Operation = Literal["classify", "segment", "masks", "auto_masks", "cutouts"]

EXAMPLE_ID = "01984f6e-5b7a-7c3e-9d1f-2a64c0f3b8aa"


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorFacts(Body):
    code: str = Field(examples=["bad_image"])
    message: str = Field(examples=["the bytes are not an image; JPEG, PNG, WebP, BMP and TIFF are read"])
    request_id: str = Field(examples=[EXAMPLE_ID])


class ErrorBody(Body):
    """Every error has this shape."""

    error: ErrorFacts


class ModelRef(Body):
    name: str = Field(examples=["efficientnet_b0"])
    version: int = Field(examples=[1])


class ImageRef(Body):
    id: str | None = Field(description="None when nothing was stored.", examples=[EXAMPLE_ID])
    width: int = Field(description="Pixels, as the user sees the picture (EXIF-turned).", examples=[500])
    height: int = Field(examples=[375])


class TimingBody(Body):
    queue_ms: float = Field(
        description="Wait until a slot was free; of automatic masks, that of the encoder.", examples=[0.1]
    )
    inference_ms: float = Field(
        description="Run of the network, of the whole batch. Of prompts, the sum of their runs; of automatic masks, "
        "and of windows, from the first run to the last.",
        examples=[7.9],
    )
    batch_size: int = Field(
        description="Pictures in that batch; of masks, the prompts or grid points; of a U-Net that reads a picture in "
        "windows, those.",
        examples=[1],
    )


class Score(Body):
    class_index: int = Field(examples=[13])
    class_name: str = Field(examples=["junco"])
    confidence: float = Field(description="0-1", examples=[0.97])


class ClassifyBody(Body):
    """The best classes, highest confidence first."""

    id: str | None = Field(description="The prediction's id; None when nothing was stored.", examples=[EXAMPLE_ID])
    model: ModelRef
    image: ImageRef
    predictions: list[Score]
    timing: TimingBody


class Area(Body):
    class_index: int = Field(examples=[3])
    class_name: str = Field(examples=["bird"])
    color: tuple[int, int, int] = Field(description="RGB, 0-255", examples=[[128, 128, 0]])
    pixels: int = Field(examples=[61250])
    share: float = Field(description="Of all pixels, 0-1", examples=[0.327])


class SegmentArtifacts(Body):
    """URLs of what was stored. Of a picture: grey level = class index; palette colours; tinted photo; where it was
    asked for, the probability of class 1, 16-bit grey. Of a volume only the mask in its own format."""

    mask: str | None = Field(default=None, examples=[f"/v1/artifacts/{EXAMPLE_ID}"])
    color: str | None = Field(default=None, examples=[f"/v1/artifacts/{EXAMPLE_ID}"])
    overlay: str | None = Field(default=None, examples=[f"/v1/artifacts/{EXAMPLE_ID}"])
    probability: str | None = Field(default=None, description="Absent unless it was asked for.")
    nifti: str | None = Field(default=None, description="Of a NIfTI volume: level = class index, the same affine.")
    dicom_seg: str | None = Field(default=None, description="Of a DICOM file, where it has what a SEG refers to.")


class SegmentBody(Body):
    """The classes that occur, most pixels first."""

    id: str | None = Field(description="The prediction's id; None when nothing was stored.", examples=[EXAMPLE_ID])
    model: ModelRef
    image: ImageRef
    classes: list[Area]
    artifacts: SegmentArtifacts | None = Field(
        description="None when nothing was stored; but what `render` asks for is there then, as a data: URL."
    )
    timing: TimingBody


class ImageBody(Body):
    id: str = Field(examples=[EXAMPLE_ID])
    filename: str | None = Field(examples=["bird.png"])
    mime_type: str = Field(examples=["image/png"])
    bytes: int = Field(examples=[304998])
    width: int = Field(examples=[640])
    height: int = Field(examples=[480])
    sha256: str
    url: str = Field(description="The bytes as they were uploaded.", examples=[f"/v1/images/{EXAMPLE_ID}/content"])
    created_at: str = Field(examples=["2026-11-20T09:30:00.000000Z"])


class ArtifactBody(Body):
    id: str = Field(examples=[EXAMPLE_ID])
    kind: Literal["mask", "color", "overlay", "probability", "nifti", "dicom_seg", "cutout", "logits", "archive"] = (
        Field(examples=["mask"])
    )
    url: str = Field(examples=[f"/v1/artifacts/{EXAMPLE_ID}"])
    mime_type: str = Field(examples=["image/png"])
    bytes: int
    sha256: str


class PredictionBody(Body):
    id: str = Field(examples=[EXAMPLE_ID])
    task: Operation
    status: Literal["succeeded", "failed"]
    model: ModelRef
    image: ImageRef
    job_id: str | None
    parameters: dict[str, Any] = Field(examples=[{"top_k": 3}])
    result: dict[str, Any] | None = Field(
        description="predictions, classes, results, masks or cutouts, as they were answered; null in lists for masks, "
        "auto_masks and cutouts, of which one alone may have megabytes."
    )
    top_class: str | None = Field(examples=["junco"])
    top_confidence: float | None = Field(examples=[0.97])
    timing: TimingBody
    error: str | None
    artifacts: list[ArtifactBody]
    created_at: str


class PageBody(Body, Generic[T]):
    items: list[T]
    total: int = Field(examples=[1])
    page: int = Field(examples=[1])
    limit: int = Field(examples=[50])


class ReplicaBody(Body):
    """What one process says of a model version."""

    process_id: str
    host: str
    version: int
    state: Literal["ready", "loading", "unloaded", "failed"]
    reason: str | None
    memory_bytes: int


class VersionBody(Body):
    version: int
    active: bool
    digest: str
    bytes: int
    metrics: dict[str, Any]
    lineage: dict[str, Any]
    created_at: str


class ModelBody(Body):
    name: str = Field(examples=["efficientnet_b0"])
    task: Literal["classify", "segment", "masks"] | None
    version: int | None = Field(description="The active version.")
    state: Literal["ready", "unloaded", "loading", "unavailable"]
    reason: str | None = Field(description="Why it is unavailable.")
    desired: Literal["auto", "loaded", "unloaded"]
    memory_bytes: int
    weights: str | None = Field(
        description="Where the numbers come from; random weights say so.", examples=["random (seed 0)"]
    )
    licence: str | None
    source: str | None
    precision: str | None
    classes: int | None
    counters: dict[str, int] = Field(
        description="Of the process that answers: predictions, batches, loads; waiting now; batch_size learned."
    )
    replicas: list[ReplicaBody]
    versions: list[VersionBody]


class HealthPart(Body):
    ok: bool
    detail: str


class HealthBody(Body):
    ok: bool
    version: str
    parts: dict[str, HealthPart]


def score(row: ClassScore) -> dict[str, Any]:
    return {"class_index": row.class_index, "class_name": row.class_name, "confidence": row.confidence}


def area(row: ClassArea) -> dict[str, Any]:
    return {
        "class_index": row.class_index,
        "class_name": row.class_name,
        "color": row.color,
        "pixels": row.pixels,
        "share": row.share,
    }


def timing(value: Timing) -> dict[str, Any]:
    return {
        "queue_ms": round(value.queue_ms, 3),
        "inference_ms": round(value.inference_ms, 3),
        "batch_size": value.batch_size,
    }


def json_response(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body, option=orjson.OPT_UTC_Z), status, headers, "application/json")
