"""Logs: one JSON object per line, each with the request id where there is one."""

from __future__ import annotations

import logging
import sys
import time
from contextvars import ContextVar
from datetime import UTC, datetime

import orjson

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that this task or thread handles; empty outside of requests."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Formats records as JSON: time (UTC, ISO 8601), level, logger, message, request_id, and fields of ``extra=``.

    ``app``: name of the installation, a field of every line; empty for none.
    """

    def __init__(self, app: str = "") -> None:
        super().__init__()
        self._app = app

    def format(self, record: logging.LogRecord) -> str:
        """The line, without a newline; values that JSON lacks are written as strings."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if self._app:
            line["app"] = self._app
        if current := request_id.get():
            line["request_id"] = current
        for key, value in vars(record).items():
            if key not in _STANDARD:
                line[key] = value
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


_READERS = ("PIL", "nibabel.global", "python_multipart")
"""Loggers of the libraries that read what callers send. What is wrong with it is said by the refusal, to the caller; an
operator cannot act on it, and each request could write such lines."""


def configure(level: str, app: str = "") -> None:
    """Write the records of all loggers from ``level`` (debug, info, warning or error) up to stderr, as JSON.

    ``app`` as in JsonFormatter.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(app))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in ("bentoml", "uvicorn", "uvicorn.error", "circus", "kantoku", "alembic", "dbos"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    # uvicorn writes an access line wherever this logger has a handler to reach; Ekiben's own is written by
    # services/bento/hosting.py.
    access = logging.getLogger("uvicorn.access")
    access.handlers.clear()
    access.propagate = False
    logging.getLogger("bentoml").setLevel(max(logging.WARNING, root.level))
    # DBOS gives its logger a handler of its own, in another format, unless it has one.
    logging.getLogger("dbos").addHandler(logging.NullHandler())
    for name in _READERS:
        logging.getLogger(name).setLevel(root.level if root.level <= logging.DEBUG else logging.CRITICAL)
    for name in ("alembic", "dbos"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


class SeldomLine:
    """A line of the log that is written once a minute at most: one cause makes it with every request. Thread-safe."""

    EVERY_S = 60.0

    def __init__(self, logger: logging.Logger, level: int, line: str) -> None:
        self._logger, self._level, self._line = logger, level, line
        self._at = -self.EVERY_S

    def write(self, **extra: object) -> None:
        """Write it, with ``extra``, unless it was written within the last minute."""
        if time.monotonic() - self._at >= self.EVERY_S:
            self._at = time.monotonic()
            self._logger.log(self._level, self._line, extra=extra)
