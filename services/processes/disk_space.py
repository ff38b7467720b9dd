"""Free space of the disks that Ekiben writes to, and the warning before there is none."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from db.session import parse_url
from ekiben.settings import Settings

log = logging.getLogger(__name__)

_ENOUGH_AGAIN = 1.1
"""Times the threshold: once so much is free, a later fall below it is said again."""


class DiskSpace:
    """The file systems of the home, of a SQLite database and of a store that is a folder; others are not seen."""

    def __init__(self, settings: Settings) -> None:
        self._least = settings.min_free_mb * 1_000_000
        self._said = False
        self._folders = {"home": settings.home.absolute()}
        if (database := parse_url(settings.resolved_database_url)).get_backend_name() == "sqlite":
            self._folders["database"] = Path(database.database or "").absolute().parent
        if "://" not in settings.resolved_store_url:
            self._folders["store"] = Path(settings.resolved_store_url).absolute()

    def free_bytes(self) -> dict[str, int]:
        """Bytes that are free for this user, by what lies there: home, database, store. Blocks."""
        found = {}
        for name, folder in self._folders.items():
            if (free := _free(folder)) is not None:
                found[name] = free
        return found

    def warning(self) -> str | None:
        """What is short of EKIBEN_MIN_FREE_MB, in words; None where nothing is. Blocks."""
        return self._words(self.free_bytes())

    def summary(self) -> str:
        """How much is free, in words. Blocks."""
        free = self.free_bytes()
        return f"{min(free.values()) // 1_000_000} MB free" if free else "no disk of this machine is used"

    def look(self) -> None:
        """One line in the log where there is a warning, and again only after there was none. Blocks."""
        free = self.free_bytes()
        if (words := self._words(free)) is not None and not self._said:
            self._said = True
            log.warning("the disk is nearly full: %s", words, extra={"free_bytes": free})
        elif all(each >= self._least * _ENOUGH_AGAIN for each in free.values()):
            self._said = False

    def _words(self, free: Mapping[str, int]) -> str | None:
        short = {name: each for name, each in free.items() if each < self._least}
        if not short:
            return None
        where = ", ".join(f"{each // 1_000_000} MB free for the {name}" for name, each in short.items())
        return f"{where} ({self._folders[next(iter(short))]}); EKIBEN_MIN_FREE_MB is {self._least // 1_000_000}"


def _free(folder: Path) -> int | None:
    """Of the nearest folder that exists; None where it cannot be asked."""
    for each in (folder, *folder.parents):
        try:
            found = os.statvfs(each)
        except FileNotFoundError:
            continue
        except OSError:
            return None
        return found.f_bavail * found.f_frsize
    return None
