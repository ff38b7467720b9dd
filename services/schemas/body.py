"""Bodies of requests and responses: the base class, and the parts that several of them share."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from models.results import Timing

T = TypeVar("T")

Moment = Annotated[datetime, WithJsonSchema({"type": "string"})]
"""A moment with time zone; the JSON has it in UTC, as ISO 8601 with Z."""

EXAMPLE_ID = "01984f6e-5b7a-7c3e-9d1f-2a64c0f3b8aa"


class Body(BaseModel):
    """A request or a response, or a part of one."""

    model_config = ConfigDict(extra="forbid")

    def json_fields(self) -> dict[str, Any]:
        """The fields that the JSON has, by name."""
        return self.__dict__


def to_dict(value: Any) -> Any:
    """A body as dicts and lists for orjson.

    Values that are no bodies are not copied: run lengths may have megabytes. So a list is converted only where its
    first element is a body.
    """
    if isinstance(value, Body):
        return {name: to_dict(each) for name, each in value.json_fields().items()}
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], Body):
        return [to_dict(each) for each in value]
    if isinstance(value, dict) and any(isinstance(each, Body) for each in value.values()):
        return {name: to_dict(each) for name, each in value.items()}
    return value


class ErrorFacts(Body):
    """What is wrong."""

    code: str = Field(examples=["bad_image"])
    message: str = Field(examples=["the bytes are not an image; JPEG, PNG, WebP, BMP and TIFF are read"])
    request_id: str = Field(examples=[EXAMPLE_ID])
    job_id: str = Field(default="", description="Of model_loading, where a job provides the model; else absent.")


class ErrorBody(Body):
    """Every error has this shape."""

    error: ErrorFacts


class ModelRef(Body):
    """A model version."""

    name: str = Field(examples=["efficientnet_b0"])
    version: int = Field(examples=[1])


class ImageRef(Body):
    """The image of a prediction."""

    id: str | None = Field(description="None when nothing was stored.", examples=[EXAMPLE_ID])
    width: int = Field(description="Pixels, as the user sees the image (EXIF-turned).", examples=[500])
    height: int = Field(examples=[375])
    range: list[float] = Field(
        default=[],
        description="The pixel values that became black and white; empty where more than a range decides, as in DICOM, "
        "and of predictions from before it was kept.",
        examples=[[0, 255]],
    )


class TimingBody(Body):
    """Times in milliseconds."""

    queue_ms: float = Field(description="Wait in the queue; of automatic masks, that of the encoder.", examples=[0.1])
    inference_ms: float = Field(
        description="Run of the network, of the whole batch. Of prompts, the sum of their runs; of automatic masks, "
        "and of an image in tiles, from the first run to the last.",
        examples=[7.9],
    )
    batch_size: int = Field(
        description="Images in that batch; of masks, the prompts or grid points; of an image in tiles, the tiles.",
        examples=[1],
    )


def timing_body(timing: Timing) -> TimingBody:
    """The timing of a response, rounded to microseconds."""
    return TimingBody(
        queue_ms=round(timing.queue_ms, 3), inference_ms=round(timing.inference_ms, 3), batch_size=timing.batch_size
    )


class PageBody(Body, Generic[T]):
    """One page of a list."""

    items: list[T]
    total: int = Field(examples=[1])
    page: int = Field(examples=[1])
    limit: int = Field(examples=[50])
