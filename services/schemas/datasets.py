"""Requests and responses of datasets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from services.schemas.body import EXAMPLE_ID, Body, Moment
from services.schemas.jobs import JobError

State = Literal["importing", "ready", "refused", "failed"]


class CreatedDatasetBody(Body):
    """The dataset, and the job that imports it."""

    dataset_id: str = Field(examples=[EXAMPLE_ID])
    job_id: str = Field(examples=[EXAMPLE_ID])


class Finding(Body):
    """One finding on a dataset."""

    code: str = Field(examples=["image_without_mask"])
    message: str = Field(examples=["3 images have no mask: cat.png, dog.png, hen.png. Add masks of the same names."])
    count: int
    samples: list[str] = Field(description="Names, the first few.")


class DatasetClass(Body):
    """A class of a dataset, and its pixels in all masks."""

    class_index: int
    name: str = Field(examples=["background"])
    color: tuple[int, int, int]
    pixels: int
    share: float
    images: int


class ValueBody(Body):
    """A value of the masks, and the class that it became."""

    value: int | str = Field(description="In the uploaded masks; a colour as #rrggbb.")
    pixels: int
    masks: int
    class_index: int | None


class SizeBody(Body):
    """How many images have this size."""

    width: int
    height: int
    images: int


class ReportBody(Body):
    """The report of an import. A dataset with errors is refused; warnings and notes are for its owner to read."""

    ok: bool
    samples: int
    files: int
    bytes: int
    errors: list[Finding]
    warnings: list[Finding]
    notes: list[Finding]
    classes: list[DatasetClass]
    values: list[ValueBody]
    class_map: str | None = Field(examples=["binary_0_255"])
    sizes: list[SizeBody]
    groups: int


class DatasetBody(Body):
    """A dataset."""

    id: str = Field(examples=[EXAMPLE_ID])
    name: str = Field(examples=["nuclei"])
    state: State
    error: JobError | None
    job_id: str
    source: dict[str, Any] = Field(examples=[{"kind": "upload", "url": None, "filename": "nuclei.zip"}])
    storage: str = Field(description="Key of its prepared samples in the store.")
    samples: int
    files: int = Field(description="In what was uploaded.")
    total_mb: float = Field(description="Of the prepared samples, 1,000,000 bytes each.")
    classes: list[DatasetClass]
    report: ReportBody | None = Field(description="null while it is imported.")
    preview: str | None = Field(description="A sheet of some samples: image, mask, both.")
    created_at: Moment


class SampleBody(Body):
    """One image with its mask."""

    position: int
    name: str
    group: str = Field(description="Samples of one group stay on one side of a split: slices of one volume.")
    width: int
    height: int
    class_pixels: list[int] = Field(description="By class index.")
    image: str = Field(description="The image.")
    mask: str = Field(description="Grey level = class index.")


Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]
"""Databases cannot store NUL."""


ClassName = Annotated[Text, StringConstraints(strip_whitespace=True, min_length=1, max_length=100)]


class SampleOptions(BaseModel):
    """A stored image and its corrected mask."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_id: Text = Field(description="A stored image.")
    mask: dict[str, Any] | Text = Field(
        description="The corrected mask: run lengths {size, counts} as /v1/masks returns them, or the id of a stored "
        "mask, of which every level above 0 counts."
    )
    class_name: ClassName = Field(default="foreground", description="What the mask shows.")


class DatasetOptions(BaseModel):
    """The options of a dataset, besides its file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Text = Field(min_length=1, max_length=200, description="What the dataset is called.")
    url: Text | None = Field(default=None, max_length=2000, description="Where the server fetches the ZIP itself.")
    classes: list[ClassName] | None = Field(
        default=None,
        min_length=2,
        max_length=256,
        description="JSON: names by class index, the first is the background.",
    )
    background: list[int] | None = Field(
        default=None, max_length=256, description="JSON: mask values that count as background, as VOC's border 255."
    )
    samples: list[SampleOptions] | None = Field(
        default=None,
        min_length=1,
        max_length=100_000,
        description="Instead of a file: stored images and corrected masks; several of one image are put together.",
    )

    @field_validator("classes")
    @classmethod
    def _different(cls, classes: list[str] | None) -> list[str] | None:
        if classes is not None and len(set(classes)) < len(classes):
            raise ValueError("two classes have the same name")
        return classes
