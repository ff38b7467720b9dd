"""Datasets and trainings. Over HTTP."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack
from uuid import uuid4

from ekiben._client.decoding import read
from ekiben._client.image_inputs import FileSource, stored_file
from ekiben._client.jobs_operations import job, page_of
from ekiben._client.records import Dataset, Job, Page, Training
from ekiben._client.requests import ClientRequest, Steps, given, one_id


class TrainOptions(TypedDict, total=False):
    """The options of a training and of its job; docs/howto/train.md has their meanings and defaults."""

    architecture: Literal["unet", "attention_unet", "resnet34_unet"]
    width: int
    depth: int
    epochs: int
    max_minutes: float
    learning_rate: float
    weight_decay: float
    batch_size: int
    tile: int
    image_size: int
    loss: str
    augmentation: str
    validation_share: float
    test_share: float
    folds: int
    seed: int
    patience: int
    precision: Literal["auto", "float32", "mixed"]
    start_from: str
    priority: int
    timeout_s: float
    webhook: str


def upload_dataset(
    path: str | Path | None = None,
    *,
    name: str | None = None,
    url: str | None = None,
    samples: Iterable[Mapping[str, Any]] | None = None,
    classes: Sequence[str] | None = None,
    background: Sequence[int] | None = None,
    priority: int | None = None,
    timeout_s: float | None = None,
    webhook: str | None = None,
    idempotency_key: str | None = None,
) -> Steps[Dataset]:
    """Upload a dataset. Its import is a job: ``wait`` accepts the dataset.

    ``path``: a ZIP, or a folder with ``images/`` and ``masks/`` of equal file names; or a ``url`` that the server
    fetches; or ``samples`` of stored images: ``{"image_id", "mask", "class_name"}``. ``name``: that of the file by
    default. ``classes``: names by class index, the first is the background. ``background``: mask values that count as
    background.
    """
    if (path is not None) + (url is not None) + (samples is not None) != 1:
        raise ValueError("give one of path, url and samples")
    if name is None:
        if path is None:
            raise ValueError("give the dataset a name")
        name = Path(path).stem
    fields = given(name=name, url=url, classes=classes, background=background, webhook=webhook)
    fields |= given(priority=priority, timeout_s=timeout_s, samples=None if samples is None else list(samples))
    headers = {"Idempotency-Key": idempotency_key or str(uuid4())}
    if path is None:
        reply = yield ClientRequest("POST", "/v1/datasets", json=fields, headers=headers, repeatable=True)
    else:
        with zipped(Path(path)) as archive:
            files = (("file", archive),)
            reply = yield ClientRequest(
                "POST", "/v1/datasets", fields=fields, files=files, headers=headers, repeatable=True
            )
    return (yield from dataset(reply["dataset_id"]))


def dataset(dataset: Dataset | str) -> Steps[Dataset]:
    """A dataset with the report of its import."""
    return read(Dataset, (yield ClientRequest(path=f"/v1/datasets/{one_id(dataset)}")))


def datasets(*, page: int | None = None, limit: int | None = None) -> Steps[Page[Dataset]]:
    """Datasets, newest first."""
    return page_of(Dataset, (yield ClientRequest(path="/v1/datasets", query=given(page=page, limit=limit))))


def dataset_preview(dataset: Dataset | str) -> Steps[bytes]:
    """Some samples as one image, PNG."""
    data: bytes = yield ClientRequest(path=f"/v1/datasets/{one_id(dataset)}/preview", read=bytes)
    return data


def delete_dataset(dataset: Dataset | str) -> Steps[None]:
    """Delete a dataset with its files; models that were trained on it are kept."""
    yield ClientRequest("DELETE", f"/v1/datasets/{one_id(dataset)}")


def train(
    dataset: Dataset | str, name: str, *, idempotency_key: str | None = None, **options: Unpack[TrainOptions]
) -> Steps[Job]:
    """Train a U-Net on a dataset that is ready, as a job. ``name``: of the model; an existing model gets a new version.

    After ``wait(job, progress=True)``, ``result(job)`` is the Training, and ``segment(image, model=name)`` uses the
    model.
    """
    body = {"dataset_id": one_id(dataset), "name": name, **given(**options)}
    headers = {"Idempotency-Key": idempotency_key or str(uuid4())}
    reply = yield ClientRequest("POST", "/v1/trainings", json=body, headers=headers, repeatable=True)
    return (yield from job(reply["job_id"]))


def training(training: Training | Job | str) -> Steps[Training]:
    """A training, with the metrics of its epochs so far and, when it has succeeded, its model."""
    return read(Training, (yield ClientRequest(path=f"/v1/trainings/{one_id(training)}")))


def trainings(*, page: int | None = None, limit: int | None = None) -> Steps[Page[Training]]:
    """Trainings, newest first, without the metrics of their epochs."""
    return page_of(Training, (yield ClientRequest(path="/v1/trainings", query=given(page=page, limit=limit))))


def compare_trainings(trainings: Iterable[Training | Job | str]) -> Steps[dict[str, Any]]:
    """A comparison of trainings: metrics, parameters, size, speed, and Dice over their common test images."""
    ids = ",".join(one_id(each) for each in trainings)
    compared: dict[str, Any] = yield ClientRequest(path="/v1/trainings/compare", query={"ids": ids})
    return compared


@contextmanager
def zipped(path: Path) -> Iterator[FileSource]:
    """A file unchanged; a folder as a temporary ZIP, which is deleted when the block ends."""
    if not path.is_dir():
        yield stored_file(path)
        return
    with tempfile.TemporaryDirectory(prefix="ekiben-") as scratch:
        packed = Path(scratch, path.name + ".zip")
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:  # images are compressed already
            for file in sorted(path.rglob("*")):
                if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts):
                    archive.write(file, file.relative_to(path))
        yield FileSource(packed, packed.name)
