"""Provisioning: submitting the job that downloads and exports a known model. Free of any transport."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from db.jobs import JobRecords
from db.registry import Registry
from db.tables import OVER, Job, JobState
from ekiben.errors import Conflict, NotFound, Refusal, Unavailable
from ekiben.ids import LOCAL_OWNER
from ekiben.settings import Settings
from services.jobs.service import JobService
from services.jobs.submission import JobTerms
from services.provisioning.job import KIND, OPERATION

if TYPE_CHECKING:
    from export.zoo import ZooRow

TIMEOUT_S = 6 * 3600.0
"""Time limit of a job that names none: the largest file has 2.6 GB, and torch's environment may have to be made."""

_RETRY_AFTER_S = 30
_NOT_HERE = "this Ekiben is a Bento, which has no exporter: export models where Ekiben is installed"


class ProvisioningService:
    """Submits provisioning jobs. All methods take ``owner``."""

    def __init__(self, settings: Settings, registry: Registry, records: JobRecords, jobs: JobService) -> None:
        self._settings = settings
        self._registry = registry
        self._records = records
        self._jobs = jobs

    async def submit(self, name: str, terms: JobTerms, *, owner: str = LOCAL_OWNER) -> tuple[Job, bool]:
        """The job that provides ``name``, and whether it is new: one that waits or runs is given again.

        NotFound for a name that Ekiben cannot make; Conflict where the model has a version.
        """
        zoo = known_models()
        if name not in zoo:
            raise NotFound(
                f"Ekiben has no recipe for a model {name[:80]!r}; it has {', '.join(zoo)}" if zoo else _NOT_HERE
            )
        listed = await asyncio.to_thread(self._registry.models, owner)
        if any(each.model.name == name and each.versions for each in listed):
            raise Conflict(f"model {name} has a version already; `python -m export {name}` makes another one")
        return await self._job(name, terms, owner)

    async def on_first_use(self, owner: str, name: str, refusal: Refusal) -> Refusal:
        """The refusal for a request of a model that has no version, in place of ``refusal``.

        Of a known model it says how it is provided. With EKIBEN_PROVISION_ON_FIRST_USE the job is submitted, unless the
        last one has failed: that is for a person to look at.
        """
        if name not in known_models():
            return refusal
        address = f"POST /v1/models/{name}/provision"
        if not self._settings.provision_on_first_use:
            return type(refusal)(f"{refusal.message}; {address} downloads and exports it")
        job = await self._last(name, owner)
        if job is not None and job.state in (JobState.FAILED, JobState.CANCELLED):
            why = (job.error or {}).get("message") or "it was cancelled"
            return Unavailable(f"model {name} could not be provided: {why}; {address} tries again", job_id=job.id)
        job, _ = await self._job(name, JobTerms(), owner)
        return Unavailable(
            f"model {name} is downloaded and exported by job {job.id}; /v1/jobs/{job.id}/events says how far it is",
            code="model_loading",
            retry_after_s=_RETRY_AFTER_S,
            job_id=job.id,
        )

    async def _job(self, name: str, terms: JobTerms, owner: str) -> tuple[Job, bool]:
        last = await self._last(name, owner)
        if last is not None and last.state not in OVER:
            return last, False
        # The key follows from the job before: of requests that come at once, over any gateways, one makes the job and
        # the others get it. No caller can give it: it has blanks.
        key = f"{_key(name)}{last.id if last is not None else 'none'}"
        return await self._jobs.submit_single(
            KIND,
            OPERATION,
            {"name": name},
            replace(terms, idempotency_key=key),
            given=[name],
            timeout_s=TIMEOUT_S,
            owner=owner,
        )

    async def _last(self, name: str, owner: str) -> Job | None:
        return await asyncio.to_thread(self._records.last_keyed, owner, KIND, _key(name))


def known_models() -> dict[str, ZooRow]:
    """The models that can be provided, by name; none where the exporter is not installed, as in a Bento."""
    try:
        from export.zoo import ZOO
    except ImportError:
        return {}
    return ZOO


def _key(name: str) -> str:
    return f"provision {name} after "
