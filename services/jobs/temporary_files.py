"""Where a killed process may have left temporary files; ekiben/temporary_files.py says which are abandoned."""

from __future__ import annotations

from pathlib import Path

from db.blobs import BlobStore
from ekiben.settings import Settings
from ekiben.temporary_files import OLD_CACHES, sweep, sweep_scratch


def sweep_temporary_files(settings: Settings, store: BlobStore) -> int:
    """Remove the abandoned ones of the store, of the home's caches and of the system's temporary folder; how many.

    The working folders of jobs are those of workers, and the workspace removes them (``JobWorkspace.tidy``). Uploads
    are spooled into files without a name, which the kernel removes.
    """
    return store.remove_abandoned() + sweep(_caches(settings), old=OLD_CACHES) + sweep_scratch()


def _caches(settings: Settings) -> list[Path]:
    models = settings.cache_folder / "models"  # OWNER/NAME/VERSION
    datasets = settings.home.absolute() / "cache" / "datasets"
    return [settings.cache_folder / "downloads", datasets, *models.glob("*/*")]
