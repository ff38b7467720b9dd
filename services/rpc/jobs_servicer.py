"""ekiben.v1.Jobs: work that outlives a request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from ekiben.errors import BadInput
from ekiben.v1 import ekiben_pb2 as pb
from ekiben.v1 import ekiben_pb2_grpc
from services.inference.context import RequestContext
from services.inference.operations import OPERATIONS, operation, read_parameters
from services.jobs.event_stream import follow
from services.jobs.submission import JobTerms
from services.rpc import converters
from services.rpc.method_wrappers import ServicerState, required, streaming, unary
from services.schemas.jobs import IDEMPOTENCY_KEY, JobBody, JobOptions, Kind, State, item_body, job_body
from services.schemas.validation import check


class ListJobsOptions(BaseModel):
    """Filters and page of a list of jobs or items."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    state: State | None = None
    kind: Kind | None = None
    page: int = Field(default=1, ge=1, le=1_000_000)
    limit: int = Field(default=50, ge=1, le=500)


class SubmitJobOptions(JobOptions):
    """The terms of a job, with the idempotency key, which is a header over HTTP."""

    idempotency_key: str | None = Field(default=None, pattern=f"^{IDEMPOTENCY_KEY}$")


class JobsServicer(ekiben_pb2_grpc.JobsServicer):
    """Submits, reads, cancels and watches jobs."""

    NAME = "ekiben.v1.Jobs"

    def __init__(self, state: ServicerState) -> None:
        self.state = state
        self._jobs = state.app_state.jobs

    @unary
    async def SubmitJob(self, request: Any, timeout_s: float | None) -> Any:
        name = request.WhichOneof("request")
        if name is None:
            raise BadInput(f"what is asked is missing: one of {', '.join(OPERATIONS)}")
        requested = getattr(request, name)
        given = converters.options(requested)
        source = converters.source(requested)
        if source.image_id is not None:
            given["image_id"] = source.image_id
        options = read_parameters(operation(name), given)
        context = RequestContext(self.state.app_state.inference)
        own = {key: value for key, value in converters.options(request).items() if key not in OPERATIONS}
        job = check(SubmitJobOptions, own)
        terms = JobTerms(job.priority, job.timeout_s, webhook=job.webhook, idempotency_key=job.idempotency_key)
        row, created = await self._jobs.submit_image(context, name, options, source, terms)
        return pb.SubmitJobResponse(job_id=row.id, replayed=not created)

    @unary
    async def GetJob(self, request: Any, timeout_s: float | None) -> Any:
        return _job(job_body(*await self._jobs.job(required(request.id, "id"))))

    @unary
    async def ListJobs(self, request: Any, timeout_s: float | None) -> Any:
        options = check(ListJobsOptions, converters.options(request))
        found, running = await self._jobs.jobs(options.state, options.kind, options.page, options.limit)
        items = [converters.jsonable(job_body(job, running.get(job.id, 0))) for job in found.items]
        return pb.ListJobsResponse(items=items, total=found.total, page=options.page, limit=options.limit)

    @unary
    async def ListJobItems(self, request: Any, timeout_s: float | None) -> Any:
        options = check(ListJobsOptions, converters.options(request))
        found, results = await self._jobs.items(required(request.id, "id"), options.state, options.page, options.limit)
        items = [converters.jsonable(item_body(item, results.get(item.id))) for item in found.items]
        return pb.ListJobItemsResponse(items=items, total=found.total, page=options.page, limit=options.limit)

    @unary
    async def CancelJob(self, request: Any, timeout_s: float | None) -> Any:
        return _job(job_body(await self._jobs.cancel(required(request.id, "id")), 0))

    @streaming
    async def WatchJob(self, request: Any, timeout_s: float | None) -> AsyncIterator[Any]:
        id, after = required(request.id, "id"), max(0, request.after)
        await self._jobs.job(id)  # NotFound before the stream begins
        async for found in follow(self._jobs, id, after):
            for event in found:
                yield pb.JobEvent(number=event.number, kind=event.kind, data=converters.jsonable(event.data))


def _job(body: JobBody) -> Any:
    return pb.Job(**converters.jsonable(body))
