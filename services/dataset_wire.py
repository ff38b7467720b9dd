"""Bodies of datasets and trainings, for the doors and for OpenAPI."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from db.datasets import Shown
from db.tables import Artifact, JobEvent
from services.comparing import Compared
from services.job_wire import JobBody, JobError, job_body
from services.training_requests import Training
from services.wire import EXAMPLE_ID, Body, ModelRef

State = Literal["importing", "ready", "refused", "failed"]


class BroughtBody(Body):
    """The dataset is being imported by that job."""

    dataset_id: str = Field(examples=[EXAMPLE_ID])
    job_id: str = Field(examples=[EXAMPLE_ID])


class Finding(Body):
    code: str = Field(examples=["image_without_mask"])
    message: str = Field(examples=["3 images have no mask: cat.png, dog.png, hen.png. Add masks of the same names."])
    count: int
    samples: list[str] = Field(description="Names, the first few.")


class DatasetClass(Body):
    class_index: int
    name: str = Field(examples=["background"])
    color: tuple[int, int, int]
    pixels: int
    share: float
    images: int


class ValueBody(Body):
    value: int | str = Field(description="In the masks as they came; a colour as #rrggbb.")
    pixels: int
    masks: int
    class_index: int | None


class SizeBody(Body):
    width: int
    height: int
    images: int


class ReportBody(Body):
    """What was found. Errors refuse; warnings stay to be read."""

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
    id: str = Field(examples=[EXAMPLE_ID])
    name: str = Field(examples=["nuclei"])
    state: State
    error: JobError | None
    job_id: str
    source: dict[str, Any] = Field(examples=[{"kind": "upload", "url": None, "filename": "nuclei.zip"}])
    storage: str = Field(description="Where its prepared samples lie in the store.")
    samples: int
    files: int = Field(description="In what was uploaded.")
    total_mb: float = Field(description="Of the prepared samples, 1,000,000 bytes each.")
    classes: list[DatasetClass]
    report: ReportBody | None = Field(description="null while it is imported.")
    preview: str | None = Field(description="A sheet of some samples: picture, mask, both.")
    created_at: str


class SampleBody(Body):
    position: int
    name: str
    group: str = Field(description="Samples of one group stay on one side of a split: slices of one volume.")
    width: int
    height: int
    class_pixels: list[int] = Field(description="By class index.")
    image: str = Field(description="The picture.")
    mask: str = Field(description="Grey level = class index.")


class CurvePoint(Body):
    """One epoch of one fold."""

    model_config = ConfigDict(extra="allow")

    epoch: int
    train_loss: float
    validation_loss: float | None
    dice: float | None
    iou: float | None


class TrainingBody(Body):
    """A training is a job: cancel, retry, events and removal are those of /v1/jobs/{id}."""

    id: str = Field(examples=[EXAMPLE_ID])
    job: JobBody
    dataset_id: str
    name: str = Field(description="Of the model.")
    options: dict[str, Any]
    epochs: list[CurvePoint]
    now: dict[str, Any] | None = Field(description="The last step that it told of.")
    previews: list[str] = Field(description="Pictures of validation images, truth and prediction; the newest last.")
    model: ModelRef | None = Field(description="The version that was published; null unless it has succeeded.")
    metrics: dict[str, Any] | None = Field(description="On the test images alone.")
    training: dict[str, Any] | None
    artifacts: dict[str, str] = Field(description="The evaluation of every image; the curves for TensorBoard, as ZIP.")


class ComparedRow(Body):
    id: str
    model: ModelRef
    dataset_id: str
    dataset: str | None
    options: dict[str, Any]
    metrics: dict[str, Any]
    common_dice: float | None = Field(description="Mean over the test images that all of them share.")
    training: dict[str, Any] = Field(description="Parameters, bytes, time of one window, epochs, seconds.")


class ComparisonBody(Body):
    same_split: bool = Field(description="All have the very same test images.")
    common_images: int
    items: list[ComparedRow]


def dataset_body(shown: Shown, storage: str, preview: bool) -> dict[str, Any]:
    dataset = shown.dataset
    return {
        "id": dataset.id,
        "name": dataset.name,
        "state": shown.state,
        "error": shown.error,
        "job_id": dataset.job_id,
        "source": dataset.source,
        "storage": storage,
        "samples": dataset.samples,
        "files": dataset.files,
        "total_mb": round(dataset.bytes / 1e6, 3),
        "classes": dataset.classes,
        "report": dataset.report,
        "preview": f"/v1/datasets/{dataset.id}/preview" if preview else None,
        "created_at": dataset.created_at,
    }


def training_body(training: Training) -> dict[str, Any]:
    job, result = training.job, training.result or {}
    step = training.last.get("step")
    return {
        "id": job.id,
        "job": job_body(job, 1 if job.state == "running" else 0),
        "dataset_id": job.parameters["dataset_id"],
        "name": job.parameters["name"],
        "options": job.parameters["options"],
        "epochs": [event.data for event in _once(training.epochs)],
        "now": step.data if step is not None else None,
        "previews": [_url(file) for file in training.files if file.kind == "preview"],
        "model": result.get("model"),
        "metrics": result.get("metrics"),
        "training": result.get("training"),
        "artifacts": {file.kind: _url(file) for file in training.files if file.kind in ("evaluation", "tensorboard")},
    }


def comparison_body(compared: Compared) -> dict[str, Any]:
    return {
        "same_split": compared.same_split,
        "common_images": compared.common_images,
        "items": compared.rows,
    }


def _once(events: list[JobEvent]) -> list[JobEvent]:
    """Each epoch of each fold once: one that was interrupted was told of twice, the later word counts."""
    return list({(event.data.get("fold"), event.data.get("epoch")): event for event in events}.values())


def _url(file: Artifact) -> str:
    return f"/v1/artifacts/{file.id}"
