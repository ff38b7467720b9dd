"""Requests and responses of trainings."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from ekiben.training import TrainingOptions
from services.schemas.body import EXAMPLE_ID, Body, ModelRef
from services.schemas.jobs import JobBody
from services.schemas.validation import NAME


class CurvePoint(Body):
    """One epoch of one fold."""

    model_config = ConfigDict(extra="allow")

    epoch: int
    train_loss: float
    validation_loss: float | None
    dice: float | None
    iou: float | None

    def json_fields(self) -> dict[str, Any]:
        """The fields, and the other figures of the epoch, such as its fold."""
        return {**self.__dict__, **(self.__pydantic_extra__ or {})}


class TrainingBody(Body):
    """A training is a job: cancel, retry, events and removal are those of /v1/jobs/{id}."""

    id: str = Field(examples=[EXAMPLE_ID])
    job: JobBody
    dataset_id: str
    name: str = Field(description="Of the model.")
    options: dict[str, Any]
    epochs: list[CurvePoint]
    now: dict[str, Any] | None = Field(description="The last event of kind step.")
    previews: list[str] = Field(
        description="URLs of images that show validation images, truth and prediction; the newest last."
    )
    model: ModelRef | None = Field(description="The version that was published; null unless it has succeeded.")
    metrics: dict[str, Any] | None = Field(description="On the test images alone.")
    training: dict[str, Any] | None
    artifacts: dict[str, str] = Field(description="The evaluation of every image; the curves for TensorBoard, as ZIP.")


class ComparedRow(Body):
    """One of the compared trainings."""

    id: str
    model: ModelRef
    dataset_id: str
    dataset: str | None
    options: dict[str, Any]
    metrics: dict[str, Any]
    common_dice: float | None = Field(description="Mean over the test images that all of them share.")
    training: dict[str, Any] = Field(description="Parameters, bytes, time of one tile, epochs, seconds.")


class ComparisonBody(Body):
    """Trainings side by side."""

    same_split: bool = Field(description="All have identical test images.")
    common_images: int
    items: list[ComparedRow]


class TrainingRequest(TrainingOptions):
    """A training: the dataset, the name of the model, and the options."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset_id: str = Field(description="A dataset that is ready.")
    name: str = Field(pattern=NAME, description="Of the model; a known name gets a new version.")

    @property
    def options(self) -> dict[str, Any]:
        """The options that were given; the others get the defaults of the version of Ekiben that trains."""
        return self.model_dump(mode="json", exclude_unset=True, exclude={"dataset_id", "name"})
