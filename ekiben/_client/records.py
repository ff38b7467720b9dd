"""What the server stores, as dataclasses: jobs, items, models, images, predictions, datasets, trainings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar

from ekiben._client.results import ImageRef, ModelRef, Raw, Timing

T = TypeVar("T")

OVER = ("succeeded", "failed", "cancelled")
"""Final states of a job; only a retry leaves them."""


@dataclass(frozen=True)
class Page(Generic[T]):
    """A page of a list; iterable and indexable. ``total``: number of items over all pages."""

    items: tuple[T, ...]
    total: int
    page: int
    limit: int

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> T:
        return self.items[number]


@dataclass(frozen=True)
class JobError:
    """Why a job, an item or an import failed. ``code``: stable, see docs/reference/http.md."""

    code: str
    message: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


@dataclass(frozen=True)
class Counts:
    """Numbers of items. ``done``: ended, failed ones included; ``running``: claimed by a worker."""

    total: int
    done: int
    failed: int
    running: int


@dataclass(frozen=True)
class Webhook:
    """The webhook of a job. ``state``: of its delivery; ``tries``: attempts so far."""

    url: str
    state: str
    tries: int


@dataclass(frozen=True)
class Job:
    """A job. ``state``: queued, running, succeeded, failed or cancelled. ``kind``: request, batch, import or training.

    ``progress``: 0-1. ``priority``: from 9, the first, to 0. ``raw``: the whole response.
    """

    id: str
    kind: str
    operation: str
    state: str
    progress: float
    counts: Counts
    created_at: datetime = field(repr=False)
    parameters: dict[str, Any] = field(default_factory=dict, repr=False)
    images_per_s: float | None = None
    time_left_s: float | None = None
    store: bool = field(default=True, repr=False)
    priority: int = field(default=5, repr=False)
    timeout_s: float | None = field(default=None, repr=False)
    items_at_once: int | None = field(default=None, repr=False)
    attempts: int = field(default=1, repr=False)
    error: JobError | None = None
    webhook: Webhook | None = field(default=None, repr=False)
    started_at: datetime | None = field(default=None, repr=False)
    finished_at: datetime | None = field(default=None, repr=False)
    raw: Raw = field(default_factory=dict, repr=False, compare=False)

    @property
    def over(self) -> bool:
        """Whether the state is final."""
        return self.state in OVER

    def __str__(self) -> str:
        return f"{self.operation} {self.state}, {self.counts.done} of {self.counts.total}"


@dataclass(frozen=True)
class Item:
    """An image of a job. ``answer``: the result of its operation, None unless it succeeded; ``result``: as a dict.

    ``position``: from 0, in the order of the batch.
    """

    position: int
    state: str
    filename: str | None
    image_id: str | None
    prediction_id: str | None
    attempts: int = field(repr=False)
    error: JobError | None
    result: dict[str, Any] | None = field(repr=False)
    started_at: datetime | None = field(default=None, repr=False)
    finished_at: datetime | None = field(default=None, repr=False)
    answer: Any = field(default=None, repr=False)
    raw: Raw = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class JobEvent:
    """An event of a job. ``number``: increases by event.

    ``kind``: state, progress, worker_lost; of imports also import; of trainings also plan, step, epoch, preview.
    """

    number: int
    kind: str
    data: dict[str, Any]


@dataclass(frozen=True)
class Replica:
    """A model in one process of the server."""

    process_id: str
    host: str
    version: int
    state: str
    reason: str | None
    memory_bytes: int


@dataclass(frozen=True)
class Version:
    """A version of a model. ``digest``: SHA-256 of its files; ``bytes``: their size; ``lineage``: how it was made."""

    version: int
    active: bool
    digest: str = field(repr=False)
    bytes: int
    metrics: dict[str, Any] = field(repr=False)
    lineage: dict[str, Any] = field(repr=False)
    created_at: datetime


@dataclass(frozen=True)
class Model:
    """A model. ``state``: ready, loading, unloaded (the next request loads it) or unavailable, with the ``reason``.

    ``version``: the active one. ``classes``: their number.
    """

    name: str
    task: str | None
    version: int | None
    state: str
    reason: str | None
    desired: str = field(repr=False)
    memory_bytes: int
    weights: str | None
    licence: str | None
    source: str | None = field(repr=False)
    precision: str | None
    classes: int | None
    counters: dict[str, int] = field(repr=False)
    replicas: tuple[Replica, ...] = field(repr=False)
    versions: tuple[Version, ...] = field(repr=False)
    raw: Raw = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class StoredImage:
    """A stored image. ``width``, ``height``: of the EXIF-turned image; ``sha256``: of the file."""

    id: str
    filename: str | None
    mime_type: str
    bytes: int
    width: int
    height: int
    sha256: str = field(repr=False)
    url: str
    created_at: datetime
    raw: Raw = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Artifact:
    """A stored file of a prediction, such as a mask; ``Client.artifact`` fetches it."""

    id: str
    kind: str
    url: str
    mime_type: str
    bytes: int
    sha256: str = field(repr=False)


@dataclass(frozen=True)
class Prediction:
    """A stored prediction. ``result``: the response as a dict; None in lists for masks and cut-outs."""

    id: str
    task: str
    status: str
    model: ModelRef
    image: ImageRef
    job_id: str | None
    parameters: dict[str, Any]
    result: dict[str, Any] | None = field(repr=False)
    top_class: str | None
    top_confidence: float | None
    timing: Timing = field(repr=False)
    artifacts: tuple[Artifact, ...] = field(repr=False)
    created_at: datetime
    raw: Raw = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class DatasetClass:
    """A class of a dataset.

    ``color``: RGB, 0-255; ``share``: of all pixels, 0-1; ``images``: number that contain it.
    """

    class_index: int
    name: str
    color: tuple[int, ...]
    pixels: int
    share: float
    images: int


@dataclass(frozen=True)
class Dataset:
    """A dataset. ``state``: importing, ready, refused or failed; ``report``: findings of the import job ``job_id``."""

    id: str
    name: str
    state: str
    error: JobError | None
    job_id: str
    source: dict[str, Any] = field(repr=False)
    storage: str = field(repr=False)
    samples: int
    files: int
    total_mb: float
    classes: tuple[DatasetClass, ...] = field(repr=False)
    report: dict[str, Any] | None = field(repr=False)
    preview: str | None = field(repr=False)
    created_at: datetime
    raw: Raw = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Training:
    """A training. ``epochs``: data of its epoch events so far; ``now``: of the last step event.

    ``model``, ``metrics`` (on the test images alone): None unless it succeeded.
    """

    id: str
    job: Job
    dataset_id: str
    name: str
    options: dict[str, Any]
    epochs: tuple[dict[str, Any], ...] = field(repr=False)
    now: dict[str, Any] | None = field(repr=False)
    previews: tuple[str, ...] = field(repr=False)
    model: ModelRef | None
    metrics: dict[str, Any] | None = field(repr=False)
    training: dict[str, Any] | None = field(repr=False)
    artifacts: dict[str, str] = field(repr=False)
    raw: Raw = field(default_factory=dict, repr=False, compare=False)
