"""Refusals: all errors whose text a client may see.

::

    Refusal
     |-- BadInput            the request or its body is invalid
     |    |-- BadImage       not an image, truncated, zero-size
     |    |-- UnsupportedImage   an image, in a format or pixel type that is not read
     |    |-- UnsupportedEncoding   a body or a part of a form that is compressed or encoded
     |    |-- TooLarge       more bytes or pixels than the limit
     |    |-- TooSlow        the body did not arrive in time
     |    `-- BadModelFile   an ONNX file that cannot become a model
     |-- NotFound            no such model, image, prediction, artifact
     |-- Conflict            the state of a resource forbids it
     |-- Unsupported         part of a protocol that Ekiben does not implement
     |-- Damaged             a stored file is not what was stored
     `-- Temporary           the same request may succeed later
          |-- Overloaded     the queue is full; carries retry_after_s
          |-- Unavailable    database, store or model is unavailable now
          |    |-- ModelDisabled   a version exceeded a limit of time or memory, and is not run any more
          |    `-- StorageFull   no space is left on the disk, in the database or in the store
          |-- DeadlineExceeded   the deadline of the request passed
          `-- CallerLeft     the client has disconnected

``services/error_codes.py`` is the one table from these classes to HTTP status and gRPC code. The client
gets any other exception as "internal error" with the request id, without its text.
"""

from __future__ import annotations


class Refusal(Exception):
    """An error that the client may see: a stable ``code`` (docs/reference/http.md) and a sentence."""

    code = "refused"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


class BadInput(Refusal):
    """The request or its body is invalid."""

    code = "bad_request"


class BadImage(BadInput):
    """The body is not an image, or it is truncated or empty."""

    code = "bad_image"


class UnsupportedImage(BadInput):
    """An image in a format or pixel type that Ekiben does not read."""

    code = "unsupported_image"


class UnsupportedEncoding(BadInput):
    """A body or a part of a form that is compressed or encoded; it is to be sent as it is."""

    code = "unsupported_encoding"


class TooLarge(BadInput):
    """More bytes or pixels than the limit."""

    code = "too_large"


class OutOfMemory(TooLarge):
    """Something of an allowed size for which there is not enough memory."""


class TooSlow(BadInput):
    """The body did not arrive in time."""

    code = "upload_timeout"


class BadModelFile(BadInput):
    """An ONNX file that cannot become a model."""

    code = "bad_model_file"


class NotFound(Refusal):
    """There is no such model, image, prediction, job, dataset or artifact."""

    code = "not_found"


class Conflict(Refusal):
    """The state of a resource forbids the operation."""

    code = "conflict"


class Unsupported(Refusal):
    """Part of a protocol that Ekiben does not implement."""

    code = "unsupported"


class Damaged(Refusal):
    """A stored file is missing bytes, or has others than were stored; it is not given away."""

    code = "damaged"


class Temporary(Refusal):
    """The request may succeed later. ``retry_after_s``: whole seconds to wait, a hint, or None. ``job_id``: the
    job that it waits for, where there is one."""

    code = "unavailable"

    def __init__(
        self, message: str, *, code: str | None = None, retry_after_s: int | None = None, job_id: str | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s
        self.job_id = job_id


class Overloaded(Temporary):
    """The queue is full; ``retry_after_s`` is set."""

    code = "overloaded"


class Unavailable(Temporary):
    """The database, the store or the model is unavailable now."""

    code = "unavailable"


class ModelDisabled(Unavailable):
    """A model version exceeded a limit of time or memory; it is not run until it is activated anew."""

    code = "model_disabled"


class StorageFull(Unavailable):
    """No space is left on the disk, in the database or in the store: nothing was stored."""

    code = "storage_full"

    def __init__(self, message: str, *, code: str | None = None, retry_after_s: int | None = 10) -> None:
        super().__init__(message, code=code, retry_after_s=retry_after_s)


class DeadlineExceeded(Temporary):
    """The deadline of the request passed."""

    code = "deadline_exceeded"


class CallerLeft(Temporary):
    """The client has disconnected; it does not get this error."""

    code = "caller_left"


REFUSALS: dict[str, type[Refusal]] = {
    kind.__name__: kind
    for kind in (
        Refusal,
        BadInput,
        BadImage,
        UnsupportedImage,
        UnsupportedEncoding,
        TooLarge,
        TooSlow,
        BadModelFile,
        NotFound,
        Conflict,
        Unsupported,
        Damaged,
        Temporary,
        Overloaded,
        Unavailable,
        ModelDisabled,
        StorageFull,
        DeadlineExceeded,
        CallerLeft,
    )
}
"""Class name -> class: between processes a refusal is sent by name and never pickled."""
