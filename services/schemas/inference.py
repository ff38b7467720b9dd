"""Requests and responses of classify and segment."""

from __future__ import annotations

import operator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, field_validator

from models.results import ClassArea, ClassScore, ValueRange
from services.schemas import default_models
from services.schemas.body import EXAMPLE_ID, Body, ImageRef, ModelRef, TimingBody
from services.schemas.validation import NAME

RANGE = r"^-?[0-9]{1,12}(\.[0-9]{1,12})?,-?[0-9]{1,12}(\.[0-9]{1,12})?$"
"""Two numbers with a comma between them."""


def read_range(text: str) -> ValueRange:
    """The two numbers of a text that RANGE describes."""
    low, high = text.split(",")
    return float(low), float(high)


class InferenceOptions(BaseModel):
    """The options of every inference operation."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int | None = Field(default=None, ge=1, description="Version of the model; the active one by default.")
    image_id: str | None = Field(default=None, description="A stored image instead of a file.")
    store: bool = Field(default=True, description="false: neither row nor files are kept.")
    range: str | None = Field(
        default=None,
        pattern=RANGE,
        description="The pixel values that are black and white, such as 0,4095: for integers of more than 8 bits and "
        "for floating-point numbers. By default that of the bits in use; the answer's image.range has it.",
    )

    @field_validator("range")
    @classmethod
    def _rising(cls, value: str | None) -> str | None:
        if value is not None and not operator.lt(*read_range(value)):
            raise ValueError("the first value must be below the second")
        return value

    @property
    def value_range(self) -> ValueRange | None:
        """``range`` as numbers."""
        return None if self.range is None else read_range(self.range)

    @property
    def recorded_range(self) -> dict[str, str]:
        """``range`` among the parameters of a stored prediction, where it was given."""
        return {} if self.range is None else {"range": self.range}


class ClassifyOptions(InferenceOptions):
    """The options of classify."""

    model: str | None = Field(
        default=None,
        pattern=NAME,
        description=f"A model that classifies. {default_models.described(default_models.CLASSIFY)}",
    )
    top_k: int | None = Field(
        default=None, ge=1, description="How many classes to return. 5, or all where there are fewer."
    )


class SegmentOptions(InferenceOptions):
    """The options of segment."""

    model: str | None = Field(
        default=None,
        pattern=NAME,
        description=f"A model that segments. {default_models.described(default_models.SEGMENT)}",
    )
    render: Literal["mask", "color", "overlay", "probability", "nifti", "dicom_seg"] | None = Field(
        default=None,
        description="With Accept: image/png, which image to return (mask by default). A NIfTI volume is returned as "
        "nifti with Accept: application/gzip, a DICOM file as dicom_seg with Accept: application/dicom.",
    )
    flips: bool = Field(
        default=False,
        description="Average over the image and its three mirror images: 4 times the work. U-Nets only.",
    )
    probability: bool = Field(
        default=False,
        description="Store the probability of class 1 too: a 16-bit grey PNG of 65535ths. U-Nets of two classes only.",
    )

    @property
    def wants_probability(self) -> bool:
        """Whether the probability of class 1 is to be computed."""
        return self.probability or self.render == "probability"


OperationName = Annotated[str, WithJsonSchema({"type": "string", "format": "operation"})]
"""The name of an operation; the OpenAPI document lists them (services/rest/openapi.py)."""


class Score(Body):
    """A class and its confidence."""

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
    """The pixels of one class."""

    class_index: int = Field(examples=[3])
    class_name: str = Field(examples=["bird"])
    color: tuple[int, int, int] = Field(description="RGB, 0-255", examples=[[128, 128, 0]])
    pixels: int = Field(examples=[61250])
    share: float = Field(description="Of all pixels, 0-1", examples=[0.327])


class SegmentArtifacts(Body):
    """URLs of what was stored. Of an image: the mask, whose grey level is the class index; the mask in palette colours;
    the photo tinted by them; on request, the probability of class 1, 16-bit grey. Of a volume only the mask in its
    own format."""

    mask: str | None = Field(default=None, examples=[f"/v1/artifacts/{EXAMPLE_ID}"])
    color: str | None = Field(default=None, examples=[f"/v1/artifacts/{EXAMPLE_ID}"])
    overlay: str | None = Field(default=None, examples=[f"/v1/artifacts/{EXAMPLE_ID}"])
    probability: str | None = Field(default=None, description="Absent unless it was requested.")
    nifti: str | None = Field(
        default=None, description="Of a NIfTI volume: level = class index, the affine of the volume."
    )
    dicom_seg: str | None = Field(default=None, description="Of a DICOM file, where it has what a SEG refers to.")

    def json_fields(self) -> dict[str, Any]:
        """Absent ones are left out."""
        return {name: url for name, url in self.__dict__.items() if url is not None}


class SegmentBody(Body):
    """The classes that occur, most pixels first."""

    id: str | None = Field(description="The prediction's id; None when nothing was stored.", examples=[EXAMPLE_ID])
    model: ModelRef
    image: ImageRef
    classes: list[Area]
    artifacts: SegmentArtifacts | None = Field(
        description="None when nothing was stored, unless `render` is given: then its image, as a data: URL."
    )
    timing: TimingBody


def score_body(row: ClassScore) -> Score:
    """A score as responses have it."""
    return Score(class_index=row.class_index, class_name=row.class_name, confidence=row.confidence)


def area_body(row: ClassArea) -> Area:
    """An area as responses have it."""
    return Area(
        class_index=row.class_index, class_name=row.class_name, color=row.color, pixels=row.pixels, share=row.share
    )
