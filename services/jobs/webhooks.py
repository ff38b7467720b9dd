"""Webhooks: signed messages to an address of the caller that a job is over, retried until one is accepted.

Headers and signature are those of Standard Webhooks (https://www.standardwebhooks.com): the HMAC-SHA256, under
EKIBEN_WEBHOOK_SECRET, of ``id.timestamp.body``.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta

import orjson

from db.jobs import JobRecords
from db.tables import Job
from ekiben.errors import BadInput
from services.outbound.http_exchange import Exchange, Network, parse

log = logging.getLogger(__name__)

MAX_TRIES = 8
FIRST_RETRY_S = 2.0
"""Seconds before the second try; three times as long before each further one: 36 minutes in all."""

TIMEOUT_S = 10.0
LOOK_UP_S = 2.0
"""Seconds that the name of a new webhook's host has to be looked up."""

MAX_URL = 2000
_LEASE = timedelta(seconds=60)  # another process may try a webhook again after so long


def check_url(url: str, secret: str, *, allow_private: bool, network: Network | None = None) -> str:
    """``url``. BadInput where it cannot be a webhook, or the server has no ``secret`` to sign with. Blocks.

    A host that is not known now may be known at the delivery, which checks the address again.
    """
    if len(url) > MAX_URL:
        raise BadInput(f"webhook: the URL has more than {MAX_URL} characters", code="url_malformed")
    try:
        parts = parse(url)
        if secret and not allow_private:
            Exchange.begin(LOOK_UP_S, allow_private=False, network=network).address(parts)
    except BadInput as error:
        if error.code not in ("url_unknown_host", "url_timeout"):
            raise BadInput(f"webhook: {error.message}", code=error.code) from None
    if not secret:
        raise BadInput("webhooks are off: the server has no EKIBEN_WEBHOOK_SECRET to sign them with")
    return url


def sign(secret: str, ident: str, timestamp: int, body: bytes) -> str:
    """The header ``webhook-signature``: ``v1,`` and the base64 of the HMAC. ``timestamp``: Unix time in seconds."""
    digest = hmac.new(_key(secret), f"{ident}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode()


def message(job: Job) -> bytes:
    """The body of a webhook: id, state and counts of the job. The receiver fetches the result."""
    return orjson.dumps(
        {
            "type": f"job.{job.state}",
            "timestamp": job.finished_at,
            "data": {
                "id": job.id,
                "kind": job.kind,
                "operation": job.operation,
                "state": job.state,
                "counts": {"total": job.total, "done": job.succeeded + job.failed, "failed": job.failed},
                "error": job.error,
                "url": f"/v1/jobs/{job.id}",
            },
        },
        option=orjson.OPT_UTC_Z,
    )


class Webhooks:
    """Delivers webhooks that are due, without proxies and redirects. Without a ``secret`` nothing is sent.

    ``allow_private``: also to addresses of this machine and of private networks.
    ``clock``: seconds that never go back.
    """

    def __init__(
        self,
        jobs: JobRecords,
        secret: str,
        *,
        allow_private: bool,
        clock: Callable[[], float] = time.monotonic,
        network: Network | None = None,
    ) -> None:
        self._jobs = jobs
        self._secret = secret
        self._allow_private = allow_private
        self._network = network
        self._clock = clock
        self._stop = threading.Event()

    def deliver_due(self, moment: datetime) -> None:
        """Try every webhook that is due at ``moment``. Blocks.

        Each is tried by one process: it takes a lease on it first.
        """
        began = self._clock()
        while not self._stop.is_set() and self._secret:
            # One at a time, and counted from now: the lease covers no more than one delivery, but all of it.
            lease = _LEASE + timedelta(seconds=self._clock() - began)
            if not (due := self._jobs.due_webhooks(moment, lease, limit=1)):
                return
            job = due[0]
            failure = self.deliver(job)
            tries = job.webhook_tries + 1
            if failure is None:
                self._jobs.webhook_tried(job, "delivered", tries, None)
            elif tries >= MAX_TRIES:
                log.error("a webhook was given up", extra={"job": job.id, "said": failure})
                self._jobs.webhook_tried(job, "failed", tries, None)
            else:
                wait_s = FIRST_RETRY_S * 3 ** (tries - 1)
                log.warning("a webhook is tried again", extra={"job": job.id, "said": failure, "in_s": wait_s})
                self._jobs.webhook_tried(job, "pending", tries, moment + timedelta(seconds=wait_s))

    def deliver(self, job: Job) -> str | None:
        """None when the address accepted it with a status 2xx, else the status or the error in words. Blocks."""
        body, timestamp = message(job), int(time.time())
        # One id for every try, so that receivers can drop repeats; a new one when the job ends again after a retry.
        ident = f"{job.id}.{job.last_event}"
        headers = {
            "content-type": "application/json",
            "webhook-id": ident,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(self._secret, ident, timestamp, body),
        }
        try:
            parts = parse(job.webhook_url or "")
            # The timeout covers the whole exchange: a slow address would delay the others.
            exchange = Exchange.begin(TIMEOUT_S, allow_private=self._allow_private, network=self._network)
            with exchange.response("POST", parts, headers, body) as response:
                return None if 200 <= response.status < 300 else f"status {response.status}"
        except BadInput as error:
            return error.message

    def stop(self) -> None:
        """Let ``deliver_due`` end after the present delivery."""
        self._stop.set()


def _key(secret: str) -> bytes:
    """The key of a secret: of ``whsec_BASE64`` the decoded bytes, as Standard Webhooks libraries take it."""
    if secret.startswith("whsec_"):
        try:
            return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except ValueError:
            pass
    return secret.encode()
