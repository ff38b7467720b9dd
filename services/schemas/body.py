"""Bodies: what JSON answers look like, for the doors and for OpenAPI."""

from __future__ import annotations

from typing import Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")


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
    width: int = Field(description="Pixels, as the user sees the image (EXIF-turned).", examples=[500])
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
        description="Images in that batch; of masks, the prompts or grid points; of a U-Net that reads an image in "
        "windows, those.",
        examples=[1],
    )


class PageBody(Body, Generic[T]):
    items: list[T]
    total: int = Field(examples=[1])
    page: int = Field(examples=[1])
    limit: int = Field(examples=[50])
