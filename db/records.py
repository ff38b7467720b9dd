"""Records: images, predictions and their artifacts, stored, found and removed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from datetime import datetime
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import defer
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.sql.base import ExecutableOption
from sqlmodel import Session, SQLModel, col, func, select

from db.group_commit import GroupCommit, Values
from db.job_states import ItemResult
from db.pages import Page, page_bounds
from db.references import KEYS_PER_QUERY, is_needed, known_keys, predictions_of, remove_predictions, unreferenced
from db.session import reading, writing
from db.tables import ACTIVE, Artifact, Image, Installation, JobItem, Owned, Prediction, now
from ekiben.errors import Conflict, NotFound
from ekiben.ids import new_id

BULKY = ("masks", "auto_masks", "cutouts")
"""Tasks whose results may have megabytes each: lists are read without them."""


T = TypeVar("T", bound=Owned)

_NOUNS: dict[type[Owned], str] = {Image: "image", Prediction: "prediction", Artifact: "artifact"}


class Records:
    """The records of every owner. Every method but ``save`` blocks on the database: call it in a thread.

    They raise Unavailable, and NotFound for an id that this owner does not have.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._writer = GroupCommit(engine)

    def save(self, rows: Sequence[SQLModel | Values], then: ItemResult | None = None) -> Future[None]:
        """Store the rows of one unit, all or none, in one commit with other units: see ``GroupCommit.save``."""
        return self._writer.save(rows, then)

    def delay(self, seconds: float, more_to_come: Callable[[], bool]) -> None:
        """Let units wait for others, so that there are fewer commits: see ``GroupCommit.delay``."""
        self._writer.delay(seconds, more_to_come)

    def start(self) -> None:
        """Start the thread that writes: see ``GroupCommit.start``."""
        self._writer.start()

    def close(self) -> None:
        """Store what waits, then stop."""
        self._writer.close()

    def image(self, owner: str, id: str) -> Image:
        """One image. NotFound."""
        with reading(self._engine) as session:
            return _one(session, Image, owner, id)

    def image_ids(self, owner: str, ids: Sequence[str]) -> set[str]:
        """Those of the ids that are images of this owner."""
        found: set[str] = set()
        with reading(self._engine) as session:
            for start in range(0, len(ids), KEYS_PER_QUERY):
                some = ids[start : start + KEYS_PER_QUERY]
                found.update(session.exec(select(Image.id).where(col(Image.id).in_(some), Image.owner == owner)))
        return found

    def images(self, owner: str, page: int = 1, limit: int = 50) -> Page[Image]:
        """The images of an owner, newest first; pages count from 1."""
        return self._page(Image, [col(Image.owner) == owner], page, limit)

    def prediction(self, owner: str, id: str) -> Prediction:
        """One prediction. NotFound."""
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
        """The predictions of an owner, newest first; pages count from 1. ``result`` is None for BULKY tasks."""
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
        """One artifact. NotFound."""
        with reading(self._engine) as session:
            return _one(session, Artifact, owner, id)

    def image_of(self, owner: str, prediction_id: str) -> Image:
        """The image that a prediction is about. NotFound when there is no such prediction."""
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
        """The artifacts of a prediction, oldest first; empty too when there is no such prediction."""
        chosen = select(Artifact).where(Artifact.owner == owner, Artifact.prediction_id == prediction_id)
        with reading(self._engine) as session:
            return list(session.exec(chosen.order_by(col(Artifact.created_at), col(Artifact.id))))

    def parts_of(self, predictions: Sequence[Prediction]) -> dict[str, tuple[Image, list[Artifact]]]:
        """By prediction id: its image, and its artifacts, oldest first. Two queries for all of them."""
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
        """Remove a prediction, its artifacts, and its image if that was not kept and nothing else needs it. NotFound.

        Gives the blob keys that no row refers to any more: the caller deletes those blobs.
        """
        with writing(self._engine) as session:
            image = _locked_image(session, _one(session, Prediction, owner, id).image_id)
            keys = remove_predictions(session, [col(Prediction.id) == id, col(Prediction.owner) == owner])
            if keys is None:  # it was removed between the look-up and the lock
                raise NotFound(f"there is no prediction {id}")
            if not image.kept and not is_needed(session, image.id):
                session.delete(image)
                session.flush()
                keys.append(image.storage_key)
            return unreferenced(session, keys)

    def delete_image(self, owner: str, id: str, cascade: bool = False) -> list[str]:
        """Remove an image; with ``cascade`` its predictions and their artifacts too. Gives the blob keys to delete.

        NotFound. Conflict when predictions refer to it and ``cascade`` is off.
        """
        with writing(self._engine) as session:
            image = _locked_image(session, _one(session, Image, owner, id).id)
            keys = []
            if count := predictions_of(session, id):
                if not cascade:
                    plural = "prediction refers" if count == 1 else "predictions refer"
                    raise Conflict(f"{count} {plural} to this image: delete with cascade, or delete them first")
                keys = remove_predictions(session, [col(Prediction.image_id) == id]) or []
            session.delete(image)
            session.flush()
            return unreferenced(session, [*keys, image.storage_key])

    def remove_unused_images(self, before: datetime, limit: int = 200) -> list[str]:
        """Remove at most ``limit`` images stored before then that are not kept and that nothing needs.

        An image is needed by its predictions and by items that have not ended. Gives the blob keys to delete; call it
        again until there are none.
        """
        predictions = select(Prediction.id).where(Prediction.image_id == Image.id)
        waiting = select(JobItem.id).where(JobItem.image_id == Image.id, col(JobItem.state).in_(ACTIVE))
        with writing(self._engine) as session:
            unused = (col(Image.created_at) < before, ~col(Image.kept), ~sa.exists(predictions), ~sa.exists(waiting))
            chosen = select(Image).where(*unused).order_by(col(Image.id)).limit(limit).with_for_update()
            images = list(session.exec(chosen))
            for image in images:
                # Another transaction may have referred to it while this one waited for the lock.
                if not is_needed(session, image.id):
                    session.delete(image)
            session.flush()
            return unreferenced(session, [image.storage_key for image in images])

    def installation(self) -> Installation:
        """The row with the name of this database and since when it keeps records; made by the first call."""
        with reading(self._engine) as session:
            if (found := session.get(Installation, 1)) is not None:
                return found
            first = session.exec(select(func.min(Image.created_at))).one()
        with contextlib.suppress(Conflict), writing(self._engine) as session:  # another process may make it first
            session.add(Installation(name=new_id(), since=first or now()))
            session.flush()
        with reading(self._engine) as session:
            return session.get_one(Installation, 1)

    def known_keys(self, keys: Iterable[str]) -> set[str]:
        """Those of the blob keys that a row refers to; for the files of a model, the row of its version.

        A blob is written before its row, so an unknown young blob may still get one: do not delete it.
        """
        with reading(self._engine) as session:
            return known_keys(session, list(keys))

    def _page(
        self,
        table: type[T],
        conditions: list[sa.ColumnElement[bool]],
        page: int,
        limit: int,
        *options: ExecutableOption,
    ) -> Page[T]:
        page, limit = page_bounds(page, limit)
        newest = (col(table.created_at).desc(), col(table.id).desc())
        chosen = select(table).where(*conditions).order_by(*newest).offset((page - 1) * limit).limit(limit)
        chosen = chosen.options(*options)
        with reading(self._engine) as session:
            total = session.exec(select(func.count()).select_from(table).where(*conditions)).one()
            return Page(session.exec(chosen).all(), total, page, limit)


def _one(session: Session, table: type[T], owner: str, id: str) -> T:
    found = session.exec(select(table).where(table.id == id, table.owner == owner)).first()
    if found is None:
        raise NotFound(f"there is no {_NOUNS[table]} {id}")
    return found


def _locked_image(session: Session, id: str) -> Image:
    """The image, locked: until the commit it gains no prediction and loses none, as inserting one needs this lock too.

    Every removal locks the image first and nothing before it, so two of them cannot wait for each other.
    """
    found = session.exec(select(Image).where(Image.id == id).with_for_update()).first()
    if found is None:
        raise NotFound(f"there is no image {id}")
    return found
