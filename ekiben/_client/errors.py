"""What a client raises. The tree: EkibenError, and of it Unreachable, TimedOut and JobFailed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ekiben._client.records import Job


BEFORE_ANY_WORK = frozenset({"overloaded", "model_loading", "memory_budget", "stopping"})
"""Refusals that come before anything is computed or kept; others that ask to come back may come after."""


class EkibenError(Exception):
    """What the server refused, in its words.

    ``code``: one of docs/reference/http.md, to act on. ``status``: the HTTP status, or the name of the gRPC code.
    ``request_id``: finds the request in the server's log. ``retry_after_s``: when the server says that another try
    may succeed. ``safe_to_retry``: nothing was computed or kept, so that another try does nothing twice.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "refused",
        status: int | str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
        safe_to_retry: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.status = status
        self.request_id = request_id
        self.retry_after_s = retry_after_s
        self.safe_to_retry = safe_to_retry

    def __str__(self) -> str:
        after = f" (request {self.request_id})" if self.request_id else ""
        return f"{self.code}: {self.message}{after}"


class Unreachable(EkibenError, ConnectionError):
    """There is no connection, or it broke off. ``safe_to_retry``: nothing was sent."""


class TimedOut(EkibenError, TimeoutError):
    """The server's deadline passed, or this client's own (``timeout_s``)."""


class JobFailed(EkibenError):
    """A job that was waited for has failed or was cancelled. ``job``: what became of it."""

    def __init__(self, job: Job) -> None:
        error = job.error
        super().__init__(
            error.message if error is not None else f"job {job.id} was {job.state}",
            code=error.code if error is not None else job.state,
        )
        self.job = job
        self.args = (job,)  # what pickle makes it of again, between processes
