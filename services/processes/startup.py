"""What keeps a hosted process from starting, in one line instead of a traceback."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

from db.schema.version import NewerDatabase
from ekiben.errors import Refusal

log = logging.getLogger(__name__)


@contextlib.contextmanager
def exit_in_words(process: str) -> Iterator[None]:
    """End this process with status 1 where the block raises a refusal, or the database is a newer one's."""
    try:
        yield
    except (Refusal, NewerDatabase) as error:
        log.critical("the %s cannot start: %s", process, error)
        logging.shutdown()
        # BentoML and uvicorn would each write a traceback first; nothing was started that would have to be ended.
        os._exit(1)
