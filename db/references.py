"""References between rows and blobs: what still needs an image or a blob key, and what a removal takes along."""

from __future__ import annotations

import sqlalchemy as sa
from sqlmodel import Session, col, func, select

from db.tables import ACTIVE, Artifact, Image, JobItem, ModelVersion, Prediction

KEYS_PER_QUERY = 500  # SQLite takes 32,766 parameters; plans get slow long before


def predictions_of(session: Session, image_id: str) -> int:
    """How many predictions are about an image."""
    return session.exec(select(func.count()).where(col(Prediction.image_id) == image_id)).one()


def is_needed(session: Session, image_id: str) -> bool:
    """Whether a prediction is about the image, or an item of a job that has not ended needs it."""
    waiting = select(JobItem.id).where(JobItem.image_id == image_id, col(JobItem.state).in_(ACTIVE)).limit(1)
    return predictions_of(session, image_id) > 0 or session.exec(waiting).first() is not None


def remove_predictions(session: Session, conditions: list[sa.ColumnElement[bool]]) -> list[str] | None:
    """Remove predictions and their artifacts; gives the artifacts' blob keys, or None when no prediction matched."""
    chosen = sa.select(col(Prediction.id)).where(*conditions)
    keys = list(session.exec(select(Artifact.storage_key).where(col(Artifact.prediction_id).in_(chosen))))
    unsynced = {"synchronize_session": False}
    session.execute(sa.delete(Artifact).where(col(Artifact.prediction_id).in_(chosen)), execution_options=unsynced)
    removed = session.execute(
        sa.delete(Prediction).where(*conditions).returning(col(Prediction.id)), execution_options=unsynced
    ).all()
    return keys if removed else None


def unreferenced(session: Session, keys: list[str]) -> list[str]:
    """Those of the blob keys that no row refers to any more, each once, in their order."""
    known = known_keys(session, keys)
    return [key for key in dict.fromkeys(keys) if key not in known]


def known_keys(session: Session, keys: list[str]) -> set[str]:
    """Those of the blob keys that a row refers to; for the files of a model, the row of its version."""
    known: set[str] = set()
    for start in range(0, len(keys), KEYS_PER_QUERY):
        some = keys[start : start + KEYS_PER_QUERY]
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
    """Locations of the version whose file a key may be: models/NAME/VERSION/ or models/OWNER/NAME/VERSION/."""
    parts = key.split("/")
    if parts[0] != "models":
        return []
    return ["/".join(parts[:depth]) + "/" for depth in (3, 4) if len(parts) > depth]
