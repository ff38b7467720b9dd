"""What a new job is made of: its terms, its items and its row."""

from __future__ import annotations

import asyncio
import hashlib
import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import orjson

from db.tables import Job, now
from ekiben.errors import BadInput, Overloaded, Refusal
from ekiben.ids import new_id
from ekiben.settings import Settings
from services.inference import operations
from services.inference.context import RequestContext
from services.jobs.webhooks import LOOK_UP_S, check_url
from services.schemas.inference import InferenceOptions

MAX_ITEMS = 100_000
MAX_ENTRIES = 8
"""Queue entries of one job, and so workers that share it; a worker with free permits takes several of them."""

LOOK_UPS = 8
"""Webhooks whose host is looked up at once, each for up to LOOK_UP_S."""

_look_ups = ThreadPoolExecutor(LOOK_UPS, thread_name_prefix="webhook-look-up")
_places = threading.BoundedSemaphore(LOOK_UPS)


@dataclass(frozen=True, slots=True)
class JobTerms:
    """How a job is to be run. ``priority`` 0-9, the highest first. ``timeout_s`` None: EKIBEN_JOB_TIMEOUT_S.

    ``items_at_once``: of the job, in all workers together; None: as many as they run.
    """

    priority: int = 5
    timeout_s: float | None = None
    items_at_once: int | None = None
    webhook: str | None = None
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class NewItem:
    """An item of a job that is about to be submitted. ``columns``: of its row. ``digest``: what identifies its image
    in the fingerprint of the request."""

    columns: dict[str, Any]
    digest: str


def failed_item(filename: str | None, error: Refusal) -> NewItem:
    """An item that has failed before it could be tried."""
    stored = {"code": error.code, "message": error.message}
    columns = {"id": new_id(), "filename": filename, "state": "failed", "finished_at": now(), "error": stored}
    return NewItem(columns, error.message)


async def inference_job(
    context: RequestContext,
    settings: Settings,
    kind: str,
    operation: str,
    options: InferenceOptions,
    items: Sequence[NewItem],
    terms: JobTerms,
    *,
    store: bool,
) -> Job:
    """The row of a job that runs ``operation`` on ``items``.

    BadInput where it cannot be run, or every item has failed. Overloaded while too many webhooks are checked.
    """
    chosen = operations.operation(operation)
    if not items:
        raise BadInput("there is no image: send files, an archive or image_ids")
    if len(items) > MAX_ITEMS:
        raise BadInput(f"{len(items)} images; a batch has at most {MAX_ITEMS}")
    failed = [item for item in items if item.columns.get("state") == "failed"]
    if len(failed) == len(items):
        raise BadInput(f"no image can be tried; the first: {failed[0].columns['error']['message']}")
    if terms.webhook is not None:
        await _check_webhook(terms.webhook, settings)
    parameters = await operations.resolve_parameters(context, chosen, options)
    given = options.model_dump(mode="json", exclude_unset=True, exclude={"image_id", "store"})
    if isinstance(given.get("prompts"), list):  # as text, so that fingerprints equal those of earlier versions
        given["prompts"] = orjson.dumps(given["prompts"]).decode()
    return Job(
        owner=context.owner,
        kind=kind,
        operation=operation,
        priority=terms.priority,
        parameters=parameters,
        store=store,
        total=len(items),
        failed=len(failed),
        timeout_s=terms.timeout_s or settings.job_timeout_s,
        items_at_once=terms.items_at_once,
        idempotency_key=terms.idempotency_key,
        fingerprint=_fingerprint(kind, operation, given, store, items),
        webhook_url=terms.webhook,
    )


async def single_job(
    settings: Settings,
    kind: str,
    operation: str,
    parameters: dict[str, Any],
    terms: JobTerms,
    *,
    owner: str,
    given: Any,
    job_id: str | None,
    timeout_s: float | None,
) -> Job:
    """The row of a job of one long piece of work. BadInput for a webhook that is none, or Overloaded.

    ``given``: the request as JSON, by which a repeated one is recognized. ``timeout_s``: where ``terms`` has none.
    """
    if terms.webhook is not None:
        await _check_webhook(terms.webhook, settings)
    return Job(
        id=job_id or new_id(),
        owner=owner,
        kind=kind,
        operation=operation,
        priority=terms.priority,
        parameters=parameters,
        store=False,
        total=1,
        timeout_s=terms.timeout_s or timeout_s or settings.job_timeout_s,
        idempotency_key=terms.idempotency_key,
        fingerprint=_fingerprint(kind, operation, given, False, ()),
        webhook_url=terms.webhook,
    )


async def _check_webhook(url: str, settings: Settings) -> None:
    """Overloaded while LOOK_UPS others are checked: names that nobody answers for must not take every thread."""
    if not _places.acquire(blocking=False):
        raise Overloaded("the addresses of too many webhooks are being looked up", retry_after_s=math.ceil(LOOK_UP_S))
    check = partial(check_url, url, settings.webhook_secret, allow_private=settings.private_urls)
    try:
        checking = _look_ups.submit(check)
    except BaseException:
        _places.release()
        raise
    checking.add_done_callback(lambda done: _places.release())
    await asyncio.wrap_future(checking)


def entry_count(items: int, claim_size: int) -> int:
    """Queue entries of a job of ``items``, of which a worker claims ``claim_size`` at a time."""
    return min(MAX_ENTRIES, -(-items // claim_size))


def _fingerprint(kind: str, operation: str, given: Any, store: bool, items: Sequence[NewItem]) -> str:
    requested = [kind, operation, given, store, [[item.columns.get("filename"), item.digest] for item in items]]
    return hashlib.sha256(orjson.dumps(requested, option=orjson.OPT_SORT_KEYS)).hexdigest()
