"""Prefer: respond-async: an inference request becomes a job, and is answered at once."""

from __future__ import annotations

import re

from fastapi import Request
from starlette.responses import Response

from db.tables import Job
from ekiben.errors import BadInput
from services.app_state import AppState
from services.inference.context import RequestContext
from services.inference.pipeline import ImageSource
from services.jobs.submission import JobTerms
from services.rest.query_options import gather
from services.rest.responses import json_response
from services.rest.uploads.multipart import Upload
from services.schemas.inference import InferenceOptions
from services.schemas.jobs import IDEMPOTENCY_KEY, JobOptions
from services.schemas.validation import OptionsT, check, read_json_options

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_RESPOND_ASYNC = re.compile(r'respond-async(\s*=\s*"")?')  # with an empty value it means the same
_KEY = re.compile(IDEMPOTENCY_KEY)


class AsyncRequestOptions(JobOptions):
    """As a request gives them; the idempotency key is a header."""

    def terms(self, request: Request) -> JobTerms:
        return JobTerms(self.priority, self.timeout_s, webhook=self.webhook, idempotency_key=idempotency_key(request))


def wants_job(request: Request) -> bool:
    """Whether the caller asks for a job (RFC 7240)."""
    stated = _QUOTED.sub(lambda text: '""' if text[0] == '""' else "_", ",".join(request.headers.getlist("prefer")))
    wanted = (part.split(";")[0].strip().lower() for part in stated.split(","))
    return any(_RESPOND_ASYNC.fullmatch(part) for part in wanted)


def idempotency_key(request: Request) -> str | None:
    """BadInput for one that is not 1 to 255 visible ASCII characters."""
    key = request.headers.get("idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        raise BadInput("Idempotency-Key is 1 to 255 visible ASCII characters")
    return key


async def split(
    request: Request, kind: type[OptionsT], fields: dict[str, str]
) -> tuple[OptionsT, AsyncRequestOptions | None]:
    """The options of an operation, and those of its job if it is to be one."""
    given = await read_json_options(kind, gather(request.query_params, fields))
    if not wants_job(request):
        if early := [name for name in AsyncRequestOptions.model_fields if name in given]:
            raise BadInput(f"{early[0]} is for jobs: send the header Prefer: respond-async")
        return check(kind, given), None
    own = {name: given.pop(name) for name in list(given) if name in AsyncRequestOptions.model_fields}
    return check(kind, given), check(AsyncRequestOptions, own)


async def submit(
    request: Request, operation: str, options: InferenceOptions, own: AsyncRequestOptions, upload: Upload
) -> Response:
    """202 with the job of one image."""
    app_state: AppState = request.app.state.app_state
    terms = own.terms(request)
    source = ImageSource(upload.data, upload.filename, options.image_id)
    job, created = await app_state.jobs.submit_image(
        RequestContext(app_state.inference), operation, options, source, terms
    )
    return accepted(job, created, {"Preference-Applied": "respond-async"})


def accepted(job: Job, created: bool, headers: dict[str, str] | None = None) -> Response:
    """202: where to ask for the job. A job that was submitted before with the same key is said to be replayed."""
    headers = {"Location": f"/v1/jobs/{job.id}", **(headers or {})}
    if not created:
        headers["Idempotency-Replayed"] = "true"
    return json_response({"job_id": job.id}, 202, headers)
