"""Records: images, predictions and their artifacts, stored, found and removed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import defer
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.sql.base import ExecutableOption
from sqlmodel import Session, SQLModel, col, func, select

from db.group_commit import GroupCommit, Values
from db.job_states import ItemResult
from db.session import reading, writing
from db.tables import Artifact, Image, Installation, JobItem, ModelVersion, Owned, Prediction, now
from ekiben.errors import Conflict, NotFound
from ekiben.ids import new_id

MAX_PAGE = 1000
BULKY = ("masks", "auto_masks", "cutouts")
"""Tasks whose results are not in lists."""
_WAITING = ("queued", "running")
_KEYS_PER_QUERY = 500  # SQLite takes 32,766 parameters; plans get slow long before

T = TypeVar("T", bound=Owned)
P = TypeVar("P")


@dataclass(frozen=True)
class Page(Generic[P]):
    """``items`` of page ``page`` (from 1) with at most ``limit`` a page; ``total`` over all pages."""

    items: Sequence[P]
    total: int
    page: int
    limit: int


class Records:
    """The records of every owner. Every method but ``save`` blocks on the database: call it in a thread.

    They raise NotFound for an id that this owner does not have, and Unavailable.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._writer = GroupCommit(engine)

    def save(self, rows: Sequence[SQLModel | Values], then: ItemResult | None = None) -> Future[None]:
        """Store the rows of one unit, all or none, together with whatever else waits: see ``Writer.save``."""
        return self._writer.save(rows, then)

    def delay(self, seconds: float, more_to_come: Callable[[], bool]) -> None:
        """Store what belongs together in fewer transactions; see ``Writer.linger``."""
        self._writer.delay(seconds, more_to_come)

    def start(self) -> None:
        """Start the thread that writes; see ``Writer.start``."""
        self._writer.start()

    def close(self) -> None:
        """Store what waits, then stop."""
        self._writer.close()

    def image(self, owner: str, id: str) -> Image:
        with reading(self._engine) as session:
            return _one(session, Image, owner, id)

    def image_ids(self, owner: str, ids: Sequence[str]) -> set[str]:
        """Those of the ids that are images of this owner."""
        found: set[str] = set()
        with reading(self._engine) as session:
            for start in range(0, len(ids), _KEYS_PER_QUERY):
                some = ids[start : start + _KEYS_PER_QUERY]
                found.update(session.exec(select(Image.id).where(col(Image.id).in_(some), Image.owner == owner)))
        return found

    def images(self, owner: str, page: int = 1, limit: int = 50) -> Page[Image]:
        """Newest first."""
        return self._page(Image, [col(Image.owner) == owner], page, limit)

    def prediction(self, owner: str, id: str) -> Prediction:
        with reading(self._engine) as session:
            return _one(session, Prediction, owner, id)

    def predictions(
        self,
        owner: str,
        task: str | None = None,
        model: str | None = None,
        page: int = 1,
        limit: int = 50,
        *,
        job_id: str | None = None,
    ) -> Page[Prediction]:
        """Newest first. ``result`` is None for tasks of which one alone may have megabytes (BULKY)."""
        conditions = [col(Prediction.owner) == owner]
        if task is not None:
            conditions.append(col(Prediction.task) == task)
        if model is not None:
            conditions.append(col(Prediction.model_name) == model)
        if job_id is not None:
            conditions.append(col(Prediction.job_id) == job_id)
        found = self._page(Prediction, conditions, page, limit, defer(Prediction.result))  # type: ignore[arg-type]
        small = [row.id for row in found.items if row.task not in BULKY]
        with reading(self._engine) as session:
            chosen_results = select(Prediction.id, Prediction.result).where(col(Prediction.id).in_(small))
            results = dict(session.exec(chosen_results).all())
        for row in found.items:
            set_committed_value(row, "result", results.get(row.id))
        return found

    def artifact(self, owner: str, id: str) -> Artifact:
        with reading(self._engine) as session:
            return _one(session, Artifact, owner, id)

    def image_of(self, owner: str, prediction_id: str) -> Image:
        """The image that a prediction is about."""
        chosen = (
            select(Image)
            .join(Prediction, col(Prediction.image_id) == col(Image.id))
            .where(Prediction.id == prediction_id, Prediction.owner == owner)
        )
        with reading(self._engine) as session:
            if (image := session.exec(chosen).first()) is None:
                raise NotFound(f"there is no prediction {prediction_id}")
            return image

    def artifacts_of(self, owner: str, prediction_id: str) -> list[Artifact]:
        """In the order in which they were made; empty too when there is no such prediction."""
        chosen = select(Artifact).where(Artifact.owner == owner, Artifact.prediction_id == prediction_id)
        with reading(self._engine) as session:
            return list(session.exec(chosen.order_by(col(Artifact.created_at), col(Artifact.id))))

    def parts_of(self, predictions: Sequence[Prediction]) -> dict[str, tuple[Image, list[Artifact]]]:
        """By prediction id: its image, and its artifacts in the order in which they were made. Two queries in all."""
        parts: dict[str, tuple[Image, list[Artifact]]] = {}
        if not predictions:
            return parts
        ids = [each.id for each in predictions]
        with reading(self._engine) as session:
            chosen = select(Image).where(col(Image.id).in_({each.image_id for each in predictions}))
            images = {image.id: image for image in session.exec(chosen)}
            made = select(Artifact).where(col(Artifact.prediction_id).in_(ids))
            artifacts = list(session.exec(made.order_by(col(Artifact.created_at), col(Artifact.id))))
        for each in predictions:
            if each.image_id in images:  # else it was deleted since the predictions were read
                own = [row for row in artifacts if row.prediction_id == each.id]
                parts[each.id] = (images[each.image_id], own)
        return parts

    def delete_prediction(self, owner: str, id: str) -> list[str]:
        """Remove a prediction, its artifacts, and its image if that was not kept and no other prediction needs it.

        Gives the blob keys that nothing refers to any more: delete those blobs now, after the commit.
        """
        with writing(self._engine) as session:
            image = _locked_image(session, _one(session, Prediction, owner, id).image_id)
            keys = remove_predictions(session, [col(Prediction.id) == id, col(Prediction.owner) == owner])
            if keys is None:  # somebody was faster, between the look and the lock
                raise NotFound(f"there is no prediction {id}")
            if not image.kept and not is_needed(session, image.id):
                session.delete(image)
                session.flush()
                keys.append(image.storage_key)
            return unreferenced(session, keys)

    def delete_image(self, owner: str, id: str, cascade: bool = False) -> list[str]:
        """Remove an image; with ``cascade`` its predictions and their artifacts too. Gives the blob keys to delete.

        Raises Conflict when predictions refer to it and ``cascade`` is off.
        """
        with writing(self._engine) as session:
            image = _locked_image(session, _one(session, Image, owner, id).id)
            keys = []
            if count := _predictions_of(session, id):
                if not cascade:
                    plural = "prediction refers" if count == 1 else "predictions refer"
                    raise Conflict(f"{count} {plural} to this image: delete with cascade, or delete them first")
                keys = remove_predictions(session, [col(Prediction.image_id) == id]) or []
            session.delete(image)
            session.flush()
            return unreferenced(session, [*keys, image.storage_key])

    def remove_unused_images(self, before: datetime, limit: int = 200) -> list[str]:
        """Remove images stored before then that are not kept for themselves, and that neither a prediction nor a job
        that is not over needs. Gives the blob keys to delete; call it again until there are none.
        """
        predictions = select(Prediction.id).where(Prediction.image_id == Image.id)
        waiting = select(JobItem.id).where(JobItem.image_id == Image.id, col(JobItem.state).in_(_WAITING))
        with writing(self._engine) as session:
            unused = (col(Image.created_at) < before, ~col(Image.kept), ~sa.exists(predictions), ~sa.exists(waiting))
            chosen = select(Image).where(*unused).order_by(col(Image.id)).limit(limit).with_for_update()
            images = list(session.exec(chosen))
            for image in images:
                # Somebody may have asked about it while its lock was waited for.
                if not is_needed(session, image.id):
                    session.delete(image)
            session.flush()
            return unreferenced(session, [image.storage_key for image in images])

    def installation(self) -> Installation:
        """This database's name, and since when it keeps records."""
        with reading(self._engine) as session:
            if (found := session.get(Installation, 1)) is not None:
                return found
            first = session.exec(select(func.min(Image.created_at))).one()
        with contextlib.suppress(Conflict), writing(self._engine) as session:  # another process may be faster
            session.add(Installation(name=new_id(), since=first or now()))
            session.flush()
        with reading(self._engine) as session:
            return session.get_one(Installation, 1)

    def known_keys(self, keys: Iterable[str]) -> set[str]:
        """Those of the blob keys that a row refers to; for files of a model the row is that of its version.

        A blob is written before its row: whoever sweeps spares young blobs.
        """
        with reading(self._engine) as session:
            return _known(session, list(keys))

    def _page(
        self,
        table: type[T],
        conditions: list[sa.ColumnElement[bool]],
        page: int,
        limit: int,
        *options: ExecutableOption,
    ) -> Page[T]:
        page, limit = max(page, 1), min(max(limit, 1), MAX_PAGE)
        newest = (col(table.created_at).desc(), col(table.id).desc())
        chosen = select(table).where(*conditions).order_by(*newest).offset((page - 1) * limit).limit(limit)
        chosen = chosen.options(*options)
        with reading(self._engine) as session:
            total = session.exec(select(func.count()).select_from(table).where(*conditions)).one()
            return Page(session.exec(chosen).all(), total, page, limit)


def _one(session: Session, table: type[T], owner: str, id: str) -> T:
    found = session.exec(select(table).where(table.id == id, table.owner == owner)).first()
    if found is None:
        raise NotFound(f"there is no {table.__name__.lower()} {id}")
    return found


def _locked_image(session: Session, id: str) -> Image:
    """The image, which until the commit gains no prediction and loses none: whoever inserts one shares this lock.

    Every removal locks the image first and nothing before it, so two of them cannot wait for each other.
    """
    found = session.exec(select(Image).where(Image.id == id).with_for_update()).first()
    if found is None:
        raise NotFound(f"there is no image {id}")
    return found


def _predictions_of(session: Session, image_id: str) -> int:
    return session.exec(select(func.count()).where(col(Prediction.image_id) == image_id)).one()


def is_needed(session: Session, image_id: str) -> bool:
    """Whether a prediction is about the image, or a job waits with it."""
    waiting = select(JobItem.id).where(JobItem.image_id == image_id, col(JobItem.state).in_(_WAITING)).limit(1)
    return _predictions_of(session, image_id) > 0 or session.exec(waiting).first() is not None


def remove_predictions(session: Session, conditions: list[sa.ColumnElement[bool]]) -> list[str] | None:
    """Remove predictions with their artifacts and give the artifacts' blob keys; None when there was no prediction."""
    chosen = sa.select(col(Prediction.id)).where(*conditions)
    keys = list(session.exec(select(Artifact.storage_key).where(col(Artifact.prediction_id).in_(chosen))))
    unsynced = {"synchronize_session": False}
    session.execute(sa.delete(Artifact).where(col(Artifact.prediction_id).in_(chosen)), execution_options=unsynced)
    removed = session.execute(
        sa.delete(Prediction).where(*conditions).returning(col(Prediction.id)), execution_options=unsynced
    ).all()
    return keys if removed else None


def unreferenced(session: Session, keys: list[str]) -> list[str]:
    known = _known(session, keys)
    return [key for key in dict.fromkeys(keys) if key not in known]


def _known(session: Session, keys: list[str]) -> set[str]:
    known: set[str] = set()
    for start in range(0, len(keys), _KEYS_PER_QUERY):
        some = keys[start : start + _KEYS_PER_QUERY]
        for table in (Image, Artifact, JobItem):
            known.update(
                key for key in session.exec(select(table.storage_key).where(col(table.storage_key).in_(some))) if key
            )
        owners = {place: key for key in some for place in _model_places(key)}
        if owners:
            places = set(
                session.exec(select(ModelVersion.location).where(col(ModelVersion.location).in_(list(owners))))
            )
            known.update(key for key in some if places.intersection(_model_places(key)))
    return known


def _model_places(key: str) -> list[str]:
    """Where the version would lie whose file this is: models/NAME/VERSION/ or models/OWNER/NAME/VERSION/."""
    parts = key.split("/")
    if parts[0] != "models":
        return []
    return ["/".join(parts[:depth]) + "/" for depth in (3, 4) if len(parts) > depth]
