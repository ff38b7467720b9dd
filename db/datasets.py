"""Datasets: what they are called, what was found in them, and where their files lie."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa
from sqlmodel import Session, col, func, select

from db.job_states import OVER, ItemResult, finish_items
from db.keys import new_key
from db.records import MAX_PAGE, Page
from db.session import reading, writing
from db.tables import Dataset, Job, JobItem, now
from ekiben.errors import Conflict, NotFound
from ekiben.ids import derived_id

State = Literal["importing", "ready", "refused", "failed"]

_FILES = {"archive": "zip", "preview": "png", "upload": "zip"}


def file_key(dataset: Dataset, which: Literal["archive", "preview", "upload"]) -> str:
    """Where a file of the dataset lies: ``archive`` the prepared samples, ``upload`` what came, until it is read."""
    ident = dataset.id if which == "archive" else derived_id(dataset.id, which)
    return new_key("datasets", ident, _FILES[which], dataset.created_at)


@dataclass(frozen=True)
class DatasetView:
    """A dataset and what has become of it. ``error``: of the import that failed."""

    dataset: Dataset
    state: State
    error: dict[str, Any] | None


class Datasets:
    """The datasets of every owner. Every method blocks on the database: call it in a thread.

    They raise NotFound for an id that this owner does not have, and Unavailable.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def dataset(self, owner: str, id: str) -> DatasetView:
        with reading(self._engine) as session:
            dataset = _one(session, owner, id)
            return _shown(dataset, session.get(Job, dataset.job_id))

    def datasets(self, owner: str, page: int = 1, limit: int = 50) -> Page[Dataset]:
        """Newest first."""
        page, limit = max(page, 1), min(max(limit, 1), MAX_PAGE)
        newest = (col(Dataset.created_at).desc(), col(Dataset.id).desc())
        with reading(self._engine) as session:
            total = session.exec(select(func.count()).select_from(Dataset).where(Dataset.owner == owner)).one()
            chosen = select(Dataset).where(Dataset.owner == owner).order_by(*newest)
            return Page(session.exec(chosen.offset((page - 1) * limit).limit(limit)).all(), total, page, limit)

    def shown(self, datasets: Sequence[Dataset]) -> list[DatasetView]:
        """What has become of each of them."""
        with reading(self._engine) as session:
            ids = [each.job_id for each in datasets]
            jobs = {job.id: job for job in session.exec(select(Job).where(col(Job.id).in_(ids)))}
        return [_shown(each, jobs.get(each.job_id)) for each in datasets]

    def ready(self, owner: str, id: str) -> Dataset:
        """One that can be trained on. Conflict for another, with the reason."""
        shown = self.dataset(owner, id)
        if shown.state == "importing":
            raise Conflict(f"the dataset is being imported by job {shown.dataset.job_id}", code="dataset_not_ready")
        if shown.state != "ready":
            reason = shown.error["message"] if shown.error else "its import failed"
            raise Conflict(f"the dataset cannot be used: {reason}", code="dataset_not_ready")
        return shown.dataset

    def imported(self, id: str, result: ItemResult, found: dict[str, Any]) -> None:
        """The end of an import, with what was ``found`` (columns). Conflict (LOST): another worker has the job now."""
        with writing(self._engine) as session:
            finish_items(session.connection(), [result])
            dataset = session.get(Dataset, id)
            if dataset is None:
                raise NotFound("the dataset was deleted")
            for name, value in found.items():
                setattr(dataset, name, value)
            dataset.updated_at = now()
            session.add(dataset)
            if result.error is None:  # what came is not needed any more; a retry of a refused one needs it
                own = sa.update(JobItem).where(col(JobItem.id) == result.item_id).values(storage_key=None)
                session.execute(own)

    def known_keys(self, keys: Iterable[str]) -> set[str]:
        """Those of the blob keys that are files of a dataset, whoever's."""
        wanted = set(keys)
        with reading(self._engine) as session:
            found = session.exec(select(Dataset)).all()
        whole = {file_key(each, which) for each in found for which in ("archive", "preview", "upload")}
        return wanted & whole

    def delete(self, owner: str, id: str) -> list[str]:
        """Forget a dataset; gives the keys of its blobs. Conflict while it is imported, or a training needs it."""
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
        return DatasetView(dataset, "importing", None)  # perhaps once more, after it was refused
    error = job.error if job is not None else None
    if dataset.state == "refused":
        first = (dataset.report or {}).get("errors") or [{"code": "bad_dataset", "message": "it was refused"}]
        return DatasetView(dataset, "refused", {"code": first[0]["code"], "message": first[0]["message"]})
    gone = {"code": "import_failed", "message": "its import ended early, and is not remembered any more"}
    if job is not None and job.state == "cancelled":
        gone = {"code": "cancelled", "message": "its import was cancelled"}
    return DatasetView(dataset, "failed", error or gone)
