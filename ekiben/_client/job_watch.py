"""Follows a job: its events, each once, over as many connections as needed."""

from __future__ import annotations

import time
from typing import Any

from ekiben._client.errors import EkibenError, TimedOut, Unreachable
from ekiben._client.jobs_operations import JobLike, job_id
from ekiben._client.records import OVER, JobEvent
from ekiben._client.requests import ClientRequest, Rpc

_SILENCE_S = 45.0
"""Over HTTP, the longest wait for a line: servers send a comment every 15 s. Over gRPC, the duration of a stream."""

_PATIENCE_S = 60.0
"""How long a server may be unreachable, for example while it restarts."""

_LONGEST_PAUSE_S = 5.0


class JobWatch:
    """The position in the events of a job. ``after``: number of the last event that was read.

    ``timeout_s``: of the whole watch; then methods raise TimedOut.
    """

    def __init__(self, job: JobLike, after: int = 0, timeout_s: float | None = None) -> None:
        self.id = job_id(job)
        self.after = after
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s if timeout_s is not None else None
        self._over = False
        self._lost_at: float | None = None
        self._pause_s = 0.0
        self._opened_at = 0.0
        self._silence_s = _SILENCE_S

    def request(self) -> ClientRequest:
        """The request for the events after the last one."""
        self._opened_at = time.monotonic()
        self._silence_s = min(_SILENCE_S, self._left_s())
        return ClientRequest(
            path=f"/v1/jobs/{self.id}/events",
            headers={"Last-Event-ID": str(self.after), "Accept": "text/event-stream"},
            rpc=Rpc("Jobs", "WatchJob", {"id": self.id, "after": self.after}),
            timeout_s=self._silence_s,
        )

    def take(self, message: dict[str, Any]) -> JobEvent:
        """The event of a message; advances the position."""
        event = JobEvent(int(message["number"]), message["kind"], message["data"] or {})
        self.after = event.number
        self._lost_at, self._pause_s = None, 0.0
        if event.kind == "state":
            self._over = event.data.get("state") in OVER
        return event

    @property
    def stale(self) -> bool:
        """Whether to reconnect, because waiting for this connection would exceed the deadline."""
        return self._left_s() < self._silence_s and time.monotonic() - self._opened_at > 1

    @property
    def over(self) -> bool:
        """Whether the last state event says that the job is over. When a stream ends without it, get the job."""
        return self._over

    def pause_s(self, error: EkibenError | None = None) -> float:
        """Seconds to wait before reconnecting. Raises ``error`` when it is final, TimedOut at the deadline."""
        if isinstance(error, TimedOut) and time.monotonic() - self._opened_at > self._silence_s / 2:
            # The silence limit, or the deadline. An immediate timeout comes from something in between, such as a proxy.
            self._left_s()
            return 0.0
        temporary = isinstance(error, Unreachable | TimedOut) or (error is not None and error.retry_after_s is not None)
        if error is not None and not temporary and not error.safe_to_retry:
            raise error
        now = time.monotonic()
        if self._lost_at is None:
            self._lost_at = now
        if error is not None and now - self._lost_at > _PATIENCE_S:
            raise error
        self._pause_s = min(max(0.2, 2 * self._pause_s), _LONGEST_PAUSE_S)
        return min(self._pause_s, self._left_s())

    def _left_s(self) -> float:
        """Seconds left to the deadline. Raises TimedOut when it has passed."""
        if self._deadline is None:
            return float("inf")
        if (left := self._deadline - time.monotonic()) <= 0:
            raise TimedOut(f"job {self.id} was not over within {self._timeout_s:g} s", code="wait_timeout")
        return left
