"""Bodies: what JSON answers look like, for the doors and for OpenAPI."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from models.results import ClassArea, ClassScore, Timing

T = TypeVar("T")

Operation = Literal["classify", "segment", "masks", "auto_masks", "cutouts"]

_ID = "01984f6e-5b7a-7c3e-9d1f-2a64c0f3b8aa"


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ErrorFacts(_Body):
    code: str = Field(examples=["bad_image"])
    message: str = Field(examples=["the bytes are not an image; JPEG, PNG, WebP, BMP and TIFF are read"])
    request_id: str = Field(examples=[_ID])


class ErrorBody(_Body):
    """Every error has this shape."""

    error: ErrorFacts


class ModelRef(_Body):
    name: str = Field(examples=["efficientnet_b0"])
    version: int = Field(examples=[1])


class ImageRef(_Body):
    id: str | None = Field(description="None when nothing was stored.", examples=[_ID])
    width: int = Field(description="Pixels, as the user sees the picture (EXIF-turned).", examples=[500])
    height: int = Field(examples=[375])


class TimingBody(_Body):
    queue_ms: float = Field(description="Wait until a slot was free.", examples=[0.1])
    inference_ms: float = Field(description="Run of the network, of the whole batch.", examples=[7.9])
    batch_size: int = Field(description="Pictures in that batch.", examples=[1])


class Score(_Body):
    class_index: int = Field(examples=[13])
    class_name: str = Field(examples=["junco"])
    confidence: float = Field(description="0-1", examples=[0.97])


class ClassifyBody(_Body):
    """The best classes, highest confidence first."""

    id: str | None = Field(description="The prediction's id; None when nothing was stored.", examples=[_ID])
    model: ModelRef
    image: ImageRef
    predictions: list[Score]
    timing: TimingBody


class Area(_Body):
    class_index: int = Field(examples=[3])
    class_name: str = Field(examples=["bird"])
    color: tuple[int, int, int] = Field(description="RGB, 0-255", examples=[[128, 128, 0]])
    pixels: int = Field(examples=[61250])
    share: float = Field(description="Of all pixels, 0-1", examples=[0.327])


class SegmentArtifacts(_Body):
    """URLs of the pictures that were stored: grey level = class index; palette colours; tinted photo."""

    mask: str = Field(examples=[f"/v1/artifacts/{_ID}"])
    color: str = Field(examples=[f"/v1/artifacts/{_ID}"])
    overlay: str = Field(examples=[f"/v1/artifacts/{_ID}"])


class SegmentBody(_Body):
    """The classes that occur, most pixels first."""

    id: str | None = Field(description="The prediction's id; None when nothing was stored.", examples=[_ID])
    model: ModelRef
    image: ImageRef
    classes: list[Area]
    artifacts: SegmentArtifacts | None = Field(description="None when nothing was stored.")
    timing: TimingBody


class EmbeddingBody(_Body):
    """What was made of the picture before the prompts: the dear part, done once per picture."""

    cached: bool = Field(description="It was there: neither was the picture decoded nor did the encoder run.")
    encode_ms: float = Field(description="What making it took, now or then.", examples=[3900.0])


_RLE = {"size": [534, 800], "counts": [128034, 12, 522, 14, 298618]}

Segmentation = Annotated[
    Any,
    Field(
        description="By format. rle: size [height, width] and counts, column by column; coco: the same as "
        "COCO's compressed text; polygons: parts with outer ring and holes, flat lists x0, y0, x1, ... on pixel edges; "
        "geojson: a MultiPolygon or Polygon; png: URL of a 1-bit picture (a data: URL when nothing is stored).",
        examples=[_RLE],
    ),
]
_BBOX = Field(description="x, y, width, height; width is the last column minus the first, as in the reference.")


class MaskFacts(_Body):
    segmentation: Segmentation
    predicted_iou: float = Field(description="The network's own guess of its IoU; may exceed 1.", examples=[0.98])
    stability_score: float | None = Field(
        description="IoU of the mask at logits shifted by 1 up and down; null for an empty one.", examples=[0.97]
    )
    area: int = Field(description="Pixels.", examples=[18422])
    bbox: tuple[int, int, int, int] = _BBOX


class PromptMaskBody(MaskFacts):
    id: str | None = Field(description="For mask_input of a next prompt. null when it was not stored.", examples=[_ID])


class PromptResult(_Body):
    prompt: int = Field(description="Number of the prompt in the request, from 0.", examples=[0])
    masks: list[PromptMaskBody]


class MasksBody(_Body):
    """The masks of each prompt: three (whole, part, part of a part) or one, in the reference's order."""

    id: str | None = Field(description="The prediction's id; None when nothing was stored.", examples=[_ID])
    model: ModelRef
    image: ImageRef
    results: list[PromptResult]
    embedding: EmbeddingBody
    timing: TimingBody


class AutoMaskBody(MaskFacts):
    point_coords: list[tuple[float, float]] = Field(description="The grid point it answers: x, y.")
    crop_box: tuple[int, int, int, int] = Field(description="x, y, width, height of the crop it was found in.")


class AutoArtifacts(_Body):
    """URLs: every mask in a colour of its own; the same over the photo."""

    color: str = Field(examples=[f"/v1/artifacts/{_ID}"])
    overlay: str = Field(examples=[f"/v1/artifacts/{_ID}"])


class AutoMasksBody(_Body):
    """The masks of everything, the largest first. They may lie in each other: wholes and their parts."""

    id: str | None = Field(description="The prediction's id; None when nothing was stored.", examples=[_ID])
    model: ModelRef
    image: ImageRef
    masks: list[AutoMaskBody]
    parameters: dict[str, Any] = Field(description="As they were used, presets and defaults filled in.")
    artifacts: AutoArtifacts | None = Field(description="None when nothing was stored.")
    embedding: EmbeddingBody
    timing: TimingBody


class CutoutBody(_Body):
    id: str | None = Field(description="The artifact's id; None when nothing was stored.", examples=[_ID])
    url: str | None = Field(examples=[f"/v1/artifacts/{_ID}"])
    prompt: int | None = Field(description="Number of the prompt; null for an automatic mask.", examples=[0])
    bbox: tuple[int, int, int, int] = Field(description="x, y, width, height of the cut-out in the picture.")
    width: int = Field(examples=[212])
    height: int = Field(examples=[190])
    area: int = Field(description="Pixels of the object.", examples=[18422])
    predicted_iou: float = Field(examples=[0.98])
    stability_score: float | None = Field(examples=[0.97])


class CutoutsBody(_Body):
    """Objects as RGBA PNGs: the order of the prompts, or the largest automatic mask first."""

    id: str | None = Field(description="The prediction's id; None when nothing was stored.", examples=[_ID])
    model: ModelRef
    image: ImageRef
    cutouts: list[CutoutBody]
    embedding: EmbeddingBody
    timing: TimingBody


class ImageBody(_Body):
    id: str = Field(examples=[_ID])
    filename: str | None = Field(examples=["bird.png"])
    mime_type: str = Field(examples=["image/png"])
    bytes: int = Field(examples=[304998])
    width: int = Field(examples=[640])
    height: int = Field(examples=[480])
    sha256: str
    url: str = Field(description="The bytes as they were uploaded.", examples=[f"/v1/images/{_ID}/content"])
    created_at: str = Field(examples=["2026-11-20T09:30:00.000000Z"])


class ArtifactBody(_Body):
    id: str = Field(examples=[_ID])
    kind: Literal["mask", "color", "overlay", "cutout", "logits", "archive"] = Field(examples=["mask"])
    url: str = Field(examples=[f"/v1/artifacts/{_ID}"])
    mime_type: str = Field(examples=["image/png"])
    bytes: int
    sha256: str


class PredictionBody(_Body):
    id: str = Field(examples=[_ID])
    task: Operation
    status: Literal["succeeded", "failed"]
    model: ModelRef
    image: ImageRef
    job_id: str | None
    parameters: dict[str, Any] = Field(examples=[{"top_k": 3}])
    result: dict[str, Any] = Field(
        description="predictions, classes, results, masks or cutouts, as they were answered."
    )
    top_class: str | None = Field(examples=["junco"])
    top_confidence: float | None = Field(examples=[0.97])
    timing: TimingBody
    error: str | None
    artifacts: list[ArtifactBody]
    created_at: str


class PageBody(_Body, Generic[T]):
    items: list[T]
    total: int = Field(examples=[1])
    page: int = Field(examples=[1])
    limit: int = Field(examples=[50])


class ReplicaBody(_Body):
    """What one process says of a model version."""

    process_id: str
    host: str
    version: int
    state: Literal["ready", "loading", "unloaded", "failed"]
    reason: str | None
    memory_bytes: int


class VersionBody(_Body):
    version: int
    active: bool
    digest: str
    bytes: int
    metrics: dict[str, Any]
    lineage: dict[str, Any]
    created_at: str


class ModelBody(_Body):
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


class HealthPart(_Body):
    ok: bool
    detail: str


class HealthBody(_Body):
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
