"""Datasets: their rows, the outcome of their imports, and the keys of their files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlmodel import Session, col, func, select

from db.job_states import ItemResult, finish_items
from db.keys import new_key
from db.pages import Page, page_bounds
from db.session import reading, writing
from db.tables import OVER, Dataset, Job, JobItem, JobState, now
from ekiben.errors import Conflict, NotFound
from ekiben.ids import derived_id

State = Literal["importing", "ready", "refused", "failed"]

_FILES = {"archive": "zip", "preview": "png", "upload": "zip"}


def file_key(dataset: Dataset, which: Literal["archive", "preview", "upload"]) -> str:
    """The blob key of a file of the dataset.

    ``archive``: the prepared samples; ``preview``: an image of some of them; ``upload``: the uploaded archive, which is
    deleted once it is imported.
    """
    ident = dataset.id if which == "archive" else derived_id(dataset.id, which)
    return new_key("datasets", ident, _FILES[which], dataset.created_at)


@dataclass(frozen=True)
class DatasetView:
    """A dataset and its state. ``error`` (code and message) of an import that was refused or failed, else None."""

    dataset: Dataset
    state: State
    error: dict[str, Any] | None


class Datasets:
    """The datasets of every owner. Every method blocks on the database: call it in a thread.

    They raise Unavailable, and NotFound for an id that this owner does not have.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def dataset(self, owner: str, id: str) -> DatasetView:
        """One dataset with its state. NotFound."""
        with reading(self._engine) as session:
            dataset = _one(session, owner, id)
            return _shown(dataset, session.get(Job, dataset.job_id))

    def datasets(self, owner: str, page: int = 1, limit: int = 50) -> Page[Dataset]:
        """The datasets of an owner, newest first; pages count from 1."""
        page, limit = page_bounds(page, limit)
        newest = (col(Dataset.created_at).desc(), col(Dataset.id).desc())
        with reading(self._engine) as session:
            total = session.exec(select(func.count()).select_from(Dataset).where(Dataset.owner == owner)).one()
            chosen = select(Dataset).where(Dataset.owner == owner).order_by(*newest)
            return Page(session.exec(chosen.offset((page - 1) * limit).limit(limit)).all(), total, page, limit)

    def shown(self, datasets: Sequence[Dataset]) -> list[DatasetView]:
        """Each dataset with its state, in order; one query for all of them."""
        with reading(self._engine) as session:
            ids = [each.job_id for each in datasets]
            jobs = {job.id: job for job in session.exec(select(Job).where(col(Job.id).in_(ids)))}
        return [_shown(each, jobs.get(each.job_id)) for each in datasets]

    def ready(self, owner: str, id: str) -> Dataset:
        """A dataset that can be trained on. NotFound; Conflict, with the reason, for one that is not ready."""
        shown = self.dataset(owner, id)
        if shown.state == "importing":
            raise Conflict(f"the dataset is being imported by job {shown.dataset.job_id}", code="dataset_not_ready")
        if shown.state != "ready":
            reason = shown.error["message"] if shown.error else "its import failed"
            raise Conflict(f"the dataset cannot be used: {reason}", code="dataset_not_ready")
        return shown.dataset

    def imported(self, id: str, result: ItemResult, found: dict[str, Any]) -> None:
        """Finish the item of an import and store what was ``found`` (columns of Dataset by name), in one transaction.

        Conflict (LOST) when its worker has not claimed the item any more; NotFound when the dataset was deleted.
        """
        with writing(self._engine) as session:
            finish_items(session.connection(), [result])
            dataset = session.get(Dataset, id)
            if dataset is None:
                raise NotFound("the dataset was deleted")
            for name, value in found.items():
                setattr(dataset, name, value)
            dataset.updated_at = now()
            session.add(dataset)
            if result.error is None:  # the upload is not needed any more; the retry of a refused import needs it
                own = sa.update(JobItem).where(col(JobItem.id) == result.item_id).values(storage_key=None)
                session.execute(own)

    def known_keys(self, keys: Iterable[str]) -> set[str]:
        """Those of the blob keys that are files of a dataset of any owner."""
        wanted = set(keys)
        with reading(self._engine) as session:
            found = session.exec(select(Dataset)).all()
        whole = {file_key(each, which) for each in found for which in ("archive", "preview", "upload")}
        return wanted & whole

    def delete(self, owner: str, id: str) -> list[str]:
        """Remove a dataset; gives the keys of its blobs, to be deleted.

        NotFound. Conflict while it is being imported or a training that is not over needs it.
        """
        with writing(self._engine) as session:
            dataset = session.exec(
                select(Dataset).where(Dataset.id == id, Dataset.owner == owner).with_for_update()
            ).first()
            if dataset is None:
                raise NotFound(f"there is no dataset {id}")
            importing = session.get(Job, dataset.job_id)
            if importing is not None and importing.state not in OVER:
                raise Conflict(f"the dataset is being imported: cancel job {importing.id} first")
            active = select(Job).where(Job.owner == owner, Job.kind == "training", col(Job.state).not_in(OVER))
            for job in session.exec(active):
                if job.parameters.get("dataset_id") == id:
                    raise Conflict(f"the dataset is needed by training {job.id}: cancel it first")
            session.delete(dataset)
            return [file_key(dataset, "archive"), file_key(dataset, "preview"), file_key(dataset, "upload")]


def _one(session: Session, owner: str, id: str) -> Dataset:
    dataset = session.exec(select(Dataset).where(Dataset.id == id, Dataset.owner == owner)).first()
    if dataset is None:
        raise NotFound(f"there is no dataset {id}")
    return dataset


def _shown(dataset: Dataset, job: Job | None) -> DatasetView:
    if dataset.state == "ready":
        return DatasetView(dataset, "ready", None)
    if job is not None and job.state not in OVER:
        return DatasetView(dataset, "importing", None)  # also when a refused import is retried
    error = job.error if job is not None else None
    if dataset.state == "refused":
        first = (dataset.report or {}).get("errors") or [{"code": "bad_dataset", "message": "it was refused"}]
        return DatasetView(dataset, "refused", {"code": first[0]["code"], "message": first[0]["message"]})
    gone = {"code": "import_failed", "message": "its import ended early, and is not remembered any more"}
    if job is not None and job.state == JobState.CANCELLED:
        gone = {"code": "cancelled", "message": "its import was cancelled"}
    return DatasetView(dataset, "failed", error or gone)
