"""The limit of open files of a process, and how many connections it leaves room for."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import sys

log = logging.getLogger(__name__)

LOW = 4096
"""Open files below which a server warns: each connection is one, and each file that is read or written."""

_ENOUGH = 65_536
_RESERVED = 512  # for the database, the store, models, logs and gRPC


def raise_open_files() -> int:
    """Raise the soft limit of open files to the hard one, to at most 65,536; the limit that holds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _ENOUGH if soft == resource.RLIM_INFINITY else soft


def most_connections(open_files: int, wanted: int) -> int:
    """Connections that ``open_files`` leave room for; ``wanted``, if it is not 0 and less. At least 16."""
    room = open_files - _RESERVED if open_files >= 2 * _RESERVED else open_files // 2
    return max(16, min(wanted, room) if wanted else room)


def warn_of_low_limit(open_files: int, connections: int) -> None:
    """One line in the log where ``open_files`` is low."""
    if open_files < LOW:
        log.warning(
            "the limit of open files is low; raise it with ulimit -Hn or LimitNOFILE",
            extra={"open_files": open_files, "connections": connections, "advised": LOW},
        )


class OpenFilesWatch:
    """Says once that nearly all open files of the process are in use, and again only after fewer were."""

    def __init__(self) -> None:
        self._said = False

    def look(self) -> None:
        """Count them; nothing where the system does not list them."""
        try:
            count = len(os.listdir("/proc/self/fd"))
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                return
            count = sys.maxsize
        limit = raise_open_files()
        if count >= 0.95 * limit and not self._said:
            self._said = True
            log.error("too many open files", extra={"limit": limit})
        elif count < 0.8 * limit:
            self._said = False
