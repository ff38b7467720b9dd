"""The errors of the client: EkibenError and its subclasses Unreachable, TimedOut and JobFailed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ekiben._client.records import Job


BEFORE_ANY_WORK = frozenset({"overloaded", "model_loading", "memory_budget", "stopping"})
"""Codes of refusals that come before anything is computed or stored. Others with retry_after_s may come later."""


class EkibenError(Exception):
    """A request failed; ``message`` is the server's sentence.

    ``code``: stable, one of docs/reference/http.md. ``status``: the HTTP status, or the name of the gRPC code.
    ``request_id``: identifies the request in the server's log. ``retry_after_s``: seconds after which the server
    expects another attempt to succeed. ``safe_to_retry``: nothing was computed or stored, so that another attempt
    repeats nothing.
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
    """No connection could be made, or it was lost. ``safe_to_retry``: nothing was sent."""


class TimedOut(EkibenError, TimeoutError):
    """The deadline of the server or of this client (``timeout_s``) passed."""


class JobFailed(EkibenError):
    """The job has failed or was cancelled. ``job``: in its final state."""

    def __init__(self, job: Job) -> None:
        error = job.error
        super().__init__(
            error.message if error is not None else f"job {job.id} was {job.state}",
            code=error.code if error is not None else job.state,
        )
        self.job = job
        self.args = (job,)  # pickle calls the class with these
