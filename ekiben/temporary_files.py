"""Temporary files and folders: names that say who writes them, and the removal of those that nobody writes any more.

A name has the mark ``.tmp-MACHINE-PID-START-``: MACHINE is this boot of this machine and the process-id namespace
(container) of the writer, START when its process was started, 0 where that cannot be known. One rule decides, for
several processes on one home, for containers with a shared volume, and for folders that several machines share: what a
process of this MACHINE with a START wrote is abandoned once that process has ended; anything else once it has not been
changed for ABANDONED_S.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path

log = logging.getLogger(__name__)

TEMPORARY = ".tmp-"
"""Start of the mark. No part of a blob's key starts with it."""

FOLDER = f"{TEMPORARY}files"
"""Folder for temporary files where others are to be spared a look at them; a sweep need not walk what is around it."""

ABANDONED_S = 86_400.0
"""Seconds without a change after which nobody writes a file any more: a writer is never silent for so long."""

SCRATCH = "ekiben"
"""Start of the names in the system's folder for temporary files, which has those of other programs too."""

_MARK = re.compile(r"\.tmp-(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)-")
OLD_CACHES = re.compile(r"\.partial-|.*\.part$|\.[0-9a-f-]{36}$")
"""Temporary names in downloads and caches before they had a mark; a store's began with TEMPORARY always."""


def temporary_name(prefix: str = "", suffix: str = "") -> str:
    """A new name for a file or folder that this process is going to write."""
    return f"{prefix}{mark()}{uuid.uuid4().hex}{suffix}"


def mark() -> str:
    """The mark of this process, to be followed by what makes a name unique."""
    pid, machine = os.getpid(), _machine()
    start = _start(pid) if machine is not None else None
    return f"{TEMPORARY}{machine or 8 * '0'}-{pid}-{start or 0}-"


def scratch(kind: str) -> tempfile.TemporaryDirectory[str]:
    """A new folder in the system's folder for temporary files, removed at the end of the block."""
    return tempfile.TemporaryDirectory(prefix=f"{SCRATCH}-{kind}{mark()}")


def is_abandoned(path: Path, now: Callable[[], float] = time.time, old: re.Pattern[str] | None = None) -> bool:
    """Whether nobody writes the temporary file or folder ``path`` any more. False for other names.

    ``old``: matches further names of temporary files, which have no mark.
    """
    if not path.name.startswith((TEMPORARY, f"{SCRATCH}-")) and not (old is not None and old.match(path.name)):
        return False
    found = _MARK.search(path.name)
    known = found is not None and found["machine"] == _machine() and int(found["start"]) > 0
    # A process of another user may be hidden (hidepid): it counts as one of another machine.
    if found is not None and known and os.getuid() in (0, _owner(path)):
        return _start(int(found["pid"])) != int(found["start"])
    if found is None and path.name.startswith(SCRATCH):
        return False
    return now() - _changed(path) > ABANDONED_S


def sweep(folders: Iterable[Path], now: Callable[[], float] = time.time, old: re.Pattern[str] | None = None) -> int:
    """Remove the abandoned files and folders that lie directly in ``folders``; how many. Missing folders are none.

    ``old``: see ``is_abandoned``.
    """
    removed = 0
    for folder in folders:
        try:
            names = os.listdir(folder)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            log.warning("temporary files cannot be listed", extra={"folder": str(folder), "cause": str(error)})
            continue
        removed += sum(_remove(folder / name, now, old) for name in names if name != FOLDER)
    if removed:
        log.info("temporary files of processes that have ended were removed", extra={"n": removed})
    return removed


def sweep_scratch(now: Callable[[], float] = time.time) -> int:
    """``sweep`` for what ``scratch`` made for this user."""
    folder = Path(tempfile.gettempdir())
    own = [path for path in folder.glob(f"{SCRATCH}-*{TEMPORARY}*") if _owner(path) == os.getuid()]
    return sum(_remove(path, now) for path in own)


def _remove(path: Path, now: Callable[[], float], old: re.Pattern[str] | None = None) -> bool:
    try:
        if not is_abandoned(path, now, old):
            return False
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:  # somebody else was faster
        return False
    except OSError as error:
        log.warning("a temporary file cannot be removed", extra={"path": str(path), "cause": str(error)})
        return False
    return True


def _changed(path: Path) -> float:
    """When the file, or the last of what is in the folder, was changed: Unix time in seconds."""
    latest = path.lstat().st_mtime
    for folder, folders, names in os.walk(path):
        for name in (*folders, *names):
            try:
                latest = max(latest, os.lstat(os.path.join(folder, name)).st_mtime)
            except FileNotFoundError:
                continue
    return latest


def _owner(path: Path) -> int:
    try:
        return path.lstat().st_uid
    except OSError:
        return -1


@lru_cache(maxsize=1)
def _machine() -> str | None:
    """None where ids of processes say nothing, so that only age counts: not Linux, or /proc is that of others."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):  # of another process-id namespace (unshare, sandboxes)
            return None
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return None
    return hashlib.sha256(f"{boot} {space}".encode()).hexdigest()[:8]


def _start(pid: int) -> int | None:
    """When the process was started, in ticks since the start of the machine; None where it has ended."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(rest[18])
