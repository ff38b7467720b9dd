"""Job handlers: jobs of one long piece of work, such as a dataset import or a training, done by a child process."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import mimetypes
import os
import shutil
import sys
from collections.abc import Callable, Collection
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from db.blobs import BlobStore, new_key
from db.job_states import ClaimedItem
from db.jobs import JobRecords
from db.stored_files import check_path
from db.tables import Artifact, Job, now
from ekiben.errors import Unavailable
from ekiben.ids import derived_id, new_id
from ekiben.settings import PREFIX, Settings
from services.concurrency.retry import retry_while_unavailable
from services.concurrency.run_in_executor import run_in_executor

T = TypeVar("T")

_HERE = Path(__file__).parents[2]


class JobHandler(Protocol):
    """The work of jobs that are no inference."""

    async def __call__(self, job: Job, item: ClaimedItem) -> None:
        """Do the work of ``job``, and settle ``item`` in the transaction that stores the result.

        A Temporary refusal lets the item be tried again, any other fails it. Cancelled, it leaves nothing running.
        """
        ...


@dataclass(frozen=True, slots=True)
class JobWorkspace:
    """What the job handlers of one worker share: working folders, events and files of their jobs.

    ``threads`` run the database calls.
    """

    settings: Settings
    store: BlobStore
    jobs: JobRecords
    worker_id: str
    threads: Executor

    def folder(self, job: Job) -> Path:
        """An empty folder for the work on ``job``."""
        folder = self._folder(job)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def clear(self, job: Job) -> None:
        """Remove the folder of ``job``."""
        folder = self._folder(job)
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # not empty: other jobs use it
            folder.parent.rmdir()

    def tidy(self, workers: Callable[[], Collection[str]]) -> None:
        """Remove the folders that killed workers left: all but those of ``workers``, by id."""
        # Listed before: a worker that signs on between the two has made its folder only after that.
        folders = list(self._root.iterdir()) if self._root.is_dir() else []
        known = workers() if folders else ()
        for folder in folders:
            if folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)

    async def emit_event(
        self, item: ClaimedItem, kind: str, data: dict[str, Any], progress: float | None = None
    ) -> None:
        """Record an event of the job, and its ``progress`` (0-1).

        Conflict (LOST) when another worker has the item now.
        """
        await retry_while_unavailable(lambda: self.run(self.jobs.note, item, self.worker_id, kind, data, progress))

    async def store_file(self, item: ClaimedItem, kind: str, path: Path) -> Artifact:
        """Store a file as an artifact of the job, in place of an earlier one of its name and kind.

        Conflict (LOST) when another worker has the item now.
        """
        return await retry_while_unavailable(lambda: asyncio.to_thread(self._store_file, item, kind, path))

    async def put(self, key: str, path: Path, mime_type: str) -> None:
        """Write a file into the store."""
        await retry_while_unavailable(lambda: asyncio.to_thread(self.store.put_file, key, path, mime_type))

    async def fetch(self, key: str, path: Path, size: int, sha256: str | None = None) -> None:
        """Write a blob into a file, or hard-link it where the store is on this disk. NotFound; Damaged where it has not
        that size or, if it is known, SHA-256."""
        await retry_while_unavailable(lambda: asyncio.to_thread(self._fetch, key, path))
        await asyncio.to_thread(check_path, path, size, sha256, key, sys.maxsize)

    async def run(self, work: Callable[..., T], *given: Any) -> T:
        """The result of the blocking ``work(*given)``, called in one of ``threads``."""
        return await run_in_executor(self.threads, work, *given)

    @property
    def _root(self) -> Path:
        return self.settings.home.absolute() / "work"

    def _folder(self, job: Job) -> Path:
        # One for each worker: the child of a worker declared dead may still write when another takes over.
        return self._root / self.worker_id / job.id

    def _store_file(self, item: ClaimedItem, kind: str, path: Path) -> Artifact:
        # The child may replace the file meanwhile: the link keeps this version.
        held = path.with_name(f".{path.name}.kept")
        held.unlink(missing_ok=True)
        os.link(path, held)
        try:
            mime_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            # The id of the row follows from the name; the key of the blob is new each time: a worker that lost the item
            # must not overwrite it.
            ident = derived_id(item.id, f"{kind}/{path.name}")
            with held.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            artifact = Artifact(
                id=ident,
                owner=item.owner,
                job_id=item.job_id,
                kind=kind,
                storage_key=new_key("artifacts", new_id(), path.suffix, now()),
                mime_type=mime_type,
                bytes=held.stat().st_size,
                sha256=sha256,
            )
            self.store.put_file(artifact.storage_key, held, mime_type)
        finally:
            held.unlink(missing_ok=True)
        try:
            replaced = self.jobs.keep_file(item, self.worker_id, artifact)
        except Unavailable:  # it may have been committed
            raise
        except Exception:
            self.store.delete(artifact.storage_key)
            raise
        if replaced is not None:
            self.store.delete(replaced)
        return artifact

    def _fetch(self, key: str, path: Path) -> None:
        local = self.store.local_path(key)
        if local is not None:
            try:
                os.link(local, path)
            except OSError:  # another file system, or one without links
                shutil.copyfile(local, path)
            return
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("wb") as file:
            for chunk in self.store.stream(key):
                file.write(chunk)
        partial.replace(path)


def child_environ() -> dict[str, str]:
    """The environment of a child: this process's, without Ekiben's settings, which hold keys and database URLs.

    PYTHONPATH leads to the code of this process: in a Bento it is not installed, and the child works in another folder.
    Where it is installed the child finds it too; its Python may be another one, which must not import the packages of
    this one.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    if _HERE.name in ("site-packages", "dist-packages"):
        return environ
    path = [str(_HERE), environ.get("PYTHONPATH", "")]
    return {**environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
