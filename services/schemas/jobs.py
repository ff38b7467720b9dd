"""Requests and responses of jobs."""

from __future__ import annotations

from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field

from db.job_states import OVER
from db.tables import Job, JobEvent, JobItem, now
from services.schemas.body import EXAMPLE_ID, Body, Moment
from services.schemas.inference import OperationName

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Kind = Literal["request", "batch", "import", "training", "provision"]
WebhookState = Literal["waiting", "pending", "delivered", "failed"]


class AcceptedBody(Body):
    """The job was stored and queued."""

    job_id: str = Field(examples=[EXAMPLE_ID])


class JobError(Body):
    """Why a job or an item failed."""

    code: str = Field(examples=["bad_image"])
    message: str


class Counts(Body):
    """How many items; a request is a job of one."""

    total: int = Field(examples=[1000])
    done: int = Field(description="Ended, either way.", examples=[400])
    failed: int = Field(description="Ended with an error.", examples=[2])
    running: int = Field(description="Claimed by a worker.", examples=[16])


class WebhookBody(Body):
    """The webhook of a job, and how far its delivery is."""

    url: str
    state: WebhookState
    tries: int


class JobBody(Body):
    """A job."""

    id: str = Field(examples=[EXAMPLE_ID])
    kind: Kind
    operation: OperationName | Literal["import_dataset", "train", "provision_model"]
    state: State
    progress: float = Field(description="0-1", examples=[0.4])
    counts: Counts
    images_per_s: float | None = Field(description="Since it started.", examples=[118.2])
    time_left_s: float | None = Field(description="While it runs, at its speed so far.", examples=[5.1])
    parameters: dict[str, Any] = Field(description="With the model version, which is fixed when the job is submitted.")
    store: bool
    priority: int
    timeout_s: float
    items_at_once: int | None
    attempts: int = Field(
        description="1, and one more for each time that it went on after a worker died or was retried."
    )
    error: JobError | None
    webhook: WebhookBody | None
    created_at: Moment
    started_at: Moment | None
    finished_at: Moment | None


class StatusBody(Body):
    """State and progress of a job."""

    state: State
    progress: float


class ItemBody(Body):
    """One image of a job, and its result."""

    position: int = Field(description="From 0, in the order in which the images were given.")
    state: State
    filename: str | None
    image_id: str | None
    prediction_id: str | None = Field(description="Where its result is stored; null when nothing is.")
    attempts: int
    error: JobError | None
    result: dict[str, Any] | None = Field(
        description="The response of the operation's own route; null when it failed, or was deleted since."
    )
    started_at: Moment | None
    finished_at: Moment | None


def job_body(job: Job, running: int) -> JobBody:
    """A job as responses show it. ``running``: how many of its items are claimed."""
    done = job.succeeded + job.failed
    speed, left = _speed(job, done)
    return JobBody(
        id=job.id,
        kind=cast(Kind, job.kind),
        operation=job.operation,
        state=cast(State, job.state),
        progress=progress(job),
        counts=Counts(total=job.total, done=done, failed=job.failed, running=running),
        images_per_s=speed,
        time_left_s=left,
        parameters=job.parameters,
        store=job.store,
        priority=job.priority,
        timeout_s=job.timeout_s,
        items_at_once=job.items_at_once,
        attempts=job.attempts,
        error=error_body(job.error),
        webhook=_webhook(job),
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
    )


def status_body(job: Job) -> StatusBody:
    """State and progress of a job."""
    return StatusBody(state=cast(State, job.state), progress=progress(job))


def error_body(error: dict[str, Any] | None) -> JobError | None:
    """A stored error as responses show it."""
    return JobError(code=error["code"], message=error["message"]) if error is not None else None


def progress(job: Job) -> float:
    """The part of a job that is done, 0-1: by its items, or as its only item has reported."""
    share = (job.succeeded + job.failed) / job.total
    return round(max(share, job.progress if job.total == 1 else 0.0), 4)


def item_body(item: JobItem, result: dict[str, Any] | None) -> ItemBody:
    """An item as responses show it. ``result``: the response of its operation, where there is one."""
    return ItemBody(
        position=item.position,
        state=cast(State, item.state),
        filename=item.filename,
        image_id=item.image_id,
        prediction_id=result.get("id") if result is not None else None,
        attempts=item.attempts,
        error=error_body(item.error),
        result=result,
        started_at=item.started_at,
        finished_at=item.finished_at,
    )


def event_text(event: JobEvent, data: bytes) -> bytes:
    """One server-sent event; its id is the event's number."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.number, event.kind.encode(), data)


def _webhook(job: Job) -> WebhookBody | None:
    if job.webhook_url is None:
        return None
    state = cast(WebhookState, job.webhook_state or "waiting")
    return WebhookBody(url=job.webhook_url, state=state, tries=job.webhook_tries)


def _speed(job: Job, done: int) -> tuple[float | None, float | None]:
    """Items per second since the start, and seconds left."""
    if job.started_at is None or done <= job.head_start:
        return None, None
    seconds = ((job.finished_at or now()) - job.started_at).total_seconds()
    if seconds <= 0:
        return None, None
    speed = (done - job.head_start) / seconds
    return round(speed, 3), None if job.state in OVER else round((job.total - done) / speed, 1)


IDEMPOTENCY_KEY = r"[\x21-\x7e]{1,255}"
"""Visible ASCII characters."""


class JobOptions(BaseModel):
    """The terms of a request that becomes a job, and of batches."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    priority: int = Field(default=5, ge=0, le=9, description="As a job: 9 goes first, 0 last.")
    timeout_s: float | None = Field(
        default=None, gt=0, le=30 * 86_400, description="As a job: its time limit. EKIBEN_JOB_TIMEOUT_S otherwise."
    )
    webhook: str | None = Field(default=None, description="As a job: address that is called when it is over.")
