"""Files for the owner of the home alone: the umask of Ekiben's processes, and the modes of what lies there already."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ekiben.settings import Settings

MADE = frozenset(
    [
        "ekiben.db",
        "ekiben.db-wal",
        "ekiben.db-shm",
        "ekiben.db-journal",
        "workers.lock",
        "blobs",
        "models",
        "downloads",
        "work",
        "cache",
        "bentoml",
        "bentoml-runner",
    ]
)
"""Names of what Ekiben makes in its home."""

log = logging.getLogger(__name__)


def set_umask(settings: Settings) -> None:
    """Have this process and those that it starts make files with 0600 and folders with 0700.

    With ``settings.group_access`` 0660 and 0770.
    """
    os.umask(_denied(settings))


def narrow_home(settings: Settings) -> int:
    """Make the home folder, and take from it and from what Ekiben made in it the access that ``set_umask`` denies.

    Only where the home folder itself gave such access: otherwise nobody got in, and a walk over millions of files is
    spared. Links are not followed, but for the home itself. The number of files and folders that were changed; what
    belongs to another user stays as it is, with a line in the log.
    """
    home, denied = settings.home.resolve(), _denied(settings)
    home.mkdir(parents=True, exist_ok=True)
    if not stat.S_IMODE(home.stat().st_mode) & denied:
        return 0
    changed = 0
    refused: list[str] = []
    # The home itself comes last: a walk that is broken off is done again.
    for path in (*_made_in(home), home):
        try:
            changed += _narrow(path, denied)
        except FileNotFoundError:
            continue  # of another process, meanwhile
        except OSError as error:
            refused.append(f"{path}: {error.strerror}")
    if changed:
        log.warning("the home folder was open to others, and is not any more", extra={"home": str(home), "n": changed})
    if refused:
        log.warning("not all of the home folder could be closed to others", extra={"first": refused[0]})
    return changed


def _made_in(home: Path) -> Iterator[Path]:
    """What Ekiben made in the home, which may be a folder that has other files too."""
    for made in sorted(home.iterdir()):
        if made.name not in MADE:
            continue
        yield made
        if made.is_dir() and not made.is_symlink():
            for folder, folders, names in os.walk(made):
                yield from (Path(folder, name) for name in (*folders, *names))


def _narrow(path: Path, denied: int) -> bool:
    found = os.lstat(path).st_mode
    if stat.S_ISLNK(found) or not stat.S_IMODE(found) & denied:
        return False
    os.chmod(path, stat.S_IMODE(found) & ~denied)
    return True


def _denied(settings: Settings) -> int:
    return 0o007 if settings.group_access else 0o077
