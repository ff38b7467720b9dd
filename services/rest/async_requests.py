"""Prefer: respond-async: an inference request becomes a job, and its response is 202 with the id of the job."""

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
from services.schemas.jobs import IDEMPOTENCY_KEY, AcceptedBody, JobOptions
from services.schemas.validation import OptionsT, check, read_json_options

# The closing quote may be missing: a match that could fail at the end would be tried again from every quote.
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"?')
_RESPOND_ASYNC = re.compile(r'respond-async(\s*=\s*"")?')  # an empty value is no value (RFC 7240)
_KEY = re.compile(IDEMPOTENCY_KEY)


class AsyncRequestOptions(JobOptions):
    """The terms of a job as query or form fields; the idempotency key is a header."""

    def terms(self, request: Request) -> JobTerms:
        """The terms of the job. BadInput for a wrong Idempotency-Key."""
        return JobTerms(self.priority, self.timeout_s, webhook=self.webhook, idempotency_key=idempotency_key(request))


def wants_job(request: Request) -> bool:
    """Whether the header Prefer has respond-async (RFC 7240)."""
    stated = _QUOTED.sub(lambda text: '""' if text[0] == '""' else "_", ",".join(request.headers.getlist("prefer")))
    wanted = (part.split(";")[0].strip().lower() for part in stated.split(","))
    return any(_RESPOND_ASYNC.fullmatch(part) for part in wanted)


def idempotency_key(request: Request) -> str | None:
    """The header Idempotency-Key, or None. BadInput unless it is 1 to 255 visible ASCII characters."""
    key = request.headers.get("idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        raise BadInput("Idempotency-Key is 1 to 255 visible ASCII characters")
    return key


async def split(
    request: Request, kind: type[OptionsT], fields: dict[str, str]
) -> tuple[OptionsT, AsyncRequestOptions | None]:
    """The options of an operation, and those of its job; None where the request is no job. BadInput."""
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
    """Submit the request as a job of one image; a response 202."""
    app_state: AppState = request.app.state.app_state
    terms = own.terms(request)
    source = ImageSource(upload.data, upload.filename, options.image_id)
    job, created = await app_state.jobs.submit_image(
        RequestContext(app_state.inference), operation, options, source, terms
    )
    return accepted(job, created, {"Preference-Applied": "respond-async"})


def accepted(job: Job, created: bool, headers: dict[str, str] | None = None) -> Response:
    """A response 202 with the id and address of the job. Not ``created``: Idempotency-Replayed says that it is an
    earlier one."""
    headers = {"Location": f"/v1/jobs/{job.id}", **(headers or {})}
    if not created:
        headers["Idempotency-Replayed"] = "true"
    return json_response(AcceptedBody(job_id=job.id), 202, headers)
