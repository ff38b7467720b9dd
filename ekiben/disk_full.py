"""Telling a disk without space from other errors."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

NO_SPACE = "no space is left on the disk of the server"

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NOTHING = 1 << 20  # bytes; a file system that is full may keep some blocks that no file fits into


def is_disk_full(error: BaseException) -> bool:
    """Whether ``error`` itself says that the disk has no space, or the user no quota."""
    return isinstance(error, OSError) and error.errno in _FULL


def comes_of_full_disk(error: BaseException) -> bool:
    """Whether ``error``, or one that it came of, says so."""
    return any(is_disk_full(each) for each in chain(error))


def chain(error: BaseException) -> Iterator[BaseException]:
    """``error`` and those that it came of, at most eight."""
    each: BaseException | None = error
    for _ in range(8):
        if each is None:
            return
        yield each
        each = each.__cause__ or each.__context__


def is_without_space(folder: Path | str) -> bool:
    """Whether the file system of ``folder`` has less than 1 MiB left. Libraries in C++ report a failed write without
    its reason."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < _NOTHING
