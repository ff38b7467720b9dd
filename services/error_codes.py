"""The one table from refusals to HTTP statuses and gRPC codes."""

from __future__ import annotations

import errno
import logging

from sqlalchemy.exc import SQLAlchemyError

from db.session import as_refusal
from ekiben.disk_full import NO_SPACE, chain, is_disk_full
from ekiben.errors import (
    BadInput,
    CallerLeft,
    Conflict,
    Damaged,
    DeadlineExceeded,
    NotFound,
    Overloaded,
    Refusal,
    StorageFull,
    Temporary,
    TooLarge,
    TooSlow,
    Unavailable,
    Unsupported,
    UnsupportedEncoding,
    UnsupportedImage,
)
from ekiben.logs import SeldomLine
from services import metrics

log = logging.getLogger(__name__)

# Class, HTTP status, gRPC code. The first row whose class fits wins, so subclasses stand before their parents.
STATUS: tuple[tuple[type[Refusal], int, str], ...] = (
    (TooLarge, 413, "INVALID_ARGUMENT"),
    (TooSlow, 408, "DEADLINE_EXCEEDED"),
    (UnsupportedImage, 415, "INVALID_ARGUMENT"),
    (UnsupportedEncoding, 415, "INVALID_ARGUMENT"),
    (BadInput, 400, "INVALID_ARGUMENT"),
    (NotFound, 404, "NOT_FOUND"),
    (Conflict, 409, "FAILED_PRECONDITION"),
    (Unsupported, 501, "UNIMPLEMENTED"),
    (Damaged, 500, "DATA_LOSS"),  # it does not mend itself: to ask again does not help
    (CallerLeft, 499, "CANCELLED"),  # nginx's number for it; only logs and metrics see it
    (DeadlineExceeded, 504, "DEADLINE_EXCEEDED"),
    (Overloaded, 503, "UNAVAILABLE"),  # clients may retry UNAVAILABLE, but not RESOURCE_EXHAUSTED
    (Unavailable, 503, "UNAVAILABLE"),
    (Temporary, 503, "UNAVAILABLE"),
    (Refusal, 400, "INVALID_ARGUMENT"),
)

# Error codes of what the web framework refuses before a route is reached.
ROUTING_CODES = {
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "unsupported_media_type",
    416: "range_not_satisfiable",
}


_too_many_files = SeldomLine(log, logging.ERROR, "too many open files")
_no_space = SeldomLine(log, logging.ERROR, NO_SPACE)


def presentable(error: BaseException) -> BaseException:
    """``error``; or a refusal, where it is or comes of a process that has too many files open, a disk without space, or
    a database that cannot work now. Of the first two the log says one line a minute, instead of a traceback for each
    request."""
    for cause in chain(error):
        if isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE):
            _too_many_files.write(what=str(error)[:400])
            return Unavailable("the server has too many files open", retry_after_s=1)
        if is_disk_full(cause):
            _no_space.write(what=str(error)[:400])
            return error if isinstance(error, StorageFull) else StorageFull(NO_SPACE)
    if not isinstance(error, Refusal):
        for cause in chain(error):
            refusal = as_refusal(cause) if isinstance(cause, SQLAlchemyError) else None
            if isinstance(refusal, Unavailable):
                return refusal
    return error


def status_of(refusal: Refusal) -> int:
    """The HTTP status of a refusal."""
    return next(status for kind, status, _ in STATUS if isinstance(refusal, kind))


def grpc_code_of(refusal: Refusal) -> str:
    """The name of a grpc.StatusCode."""
    return next(code for kind, _, code in STATUS if isinstance(refusal, kind))


def code_and_message(error: BaseException) -> tuple[str, str]:
    """The error code and the message for the caller. A refusal is counted; any other error is logged, and its text kept
    from the caller."""
    if isinstance(error, Refusal):
        metrics.refused.labels(error.code).inc()
        return error.code, error.message
    log.error("internal error", exc_info=error)
    return "internal_error", "internal error; the log has it under this request id"
