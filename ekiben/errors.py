"""The refusals: every error whose text a caller may see.

::

    Refusal
     |-- BadInput            what was sent is wrong
     |    |-- BadImage       not an image, truncated, zero-size
     |    |-- UnsupportedImage   an image, in a format or pixel type that is not read
     |    |-- TooLarge       more bytes or pixels than the limit
     |    |-- TooSlow        the body did not arrive in time
     |    `-- BadModelFile   an ONNX file that cannot become a model
     |-- NotFound            no such model, image, prediction, artifact
     |-- Conflict            the state of a thing forbids it
     |-- Unsupported         a protocol has it, Ekiben does not
     `-- Temporary           the same request may succeed later
          |-- Overloaded     the queue is full; carries retry_after_s
          |-- Unavailable    database, store or model is not there now
          |-- DeadlineExceeded   the request's own deadline passed
          `-- CallerLeft     the caller went away; nobody reads this

``services/rest/error_handlers.py`` is the one table from these classes to HTTP status and gRPC code. Anything that is
not a Refusal reaches a caller as "internal error" with the request id, never with its text.
"""

from __future__ import annotations


class Refusal(Exception):
    """An error the caller may see: a stable ``code`` and a sentence."""

    code = "refused"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


class BadInput(Refusal):
    code = "bad_request"


class BadImage(BadInput):
    code = "bad_image"


class UnsupportedImage(BadInput):
    code = "unsupported_image"


class TooLarge(BadInput):
    code = "too_large"


class TooSlow(BadInput):
    code = "upload_timeout"


class BadModelFile(BadInput):
    code = "bad_model_file"


class NotFound(Refusal):
    code = "not_found"


class Conflict(Refusal):
    code = "conflict"


class Unsupported(Refusal):
    code = "unsupported"


class Temporary(Refusal):
    """May succeed later; ``retry_after_s`` (whole seconds) is a hint, or None."""

    code = "unavailable"

    def __init__(self, message: str, *, code: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class Overloaded(Temporary):
    code = "overloaded"


class Unavailable(Temporary):
    code = "unavailable"


class DeadlineExceeded(Temporary):
    code = "deadline_exceeded"


class CallerLeft(Temporary):
    code = "caller_left"


REFUSALS: dict[str, type[Refusal]] = {
    kind.__name__: kind
    for kind in (
        Refusal,
        BadInput,
        BadImage,
        UnsupportedImage,
        TooLarge,
        TooSlow,
        BadModelFile,
        NotFound,
        Conflict,
        Unsupported,
        Temporary,
        Overloaded,
        Unavailable,
        DeadlineExceeded,
        CallerLeft,
    )
}
"""Class name -> class: how a refusal crosses a process border by name, never by pickle."""
