"""Units of rows to store, how many rows are stored, and a lock that blocks the writer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, func, select

from db.tables import Artifact, Image, Prediction
from tests.db import rows


def unit(**given: Any) -> list[Any]:
    """An image, a prediction about it, and its mask."""
    image = rows.image(**given)
    prediction = rows.prediction(image.id)
    return [image, prediction, rows.artifact(prediction.id)]


def counts(engine: sa.Engine) -> list[int]:
    with Session(engine) as session:
        return [session.exec(select(func.count()).select_from(table)).one() for table in (Image, Prediction, Artifact)]


@contextmanager
def locked(engine: sa.Engine) -> Iterator[None]:
    """Nobody else can write to images meanwhile."""
    with engine.execution_options(immediate=True).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("LOCK TABLE images IN ACCESS EXCLUSIVE MODE")
        else:
            connection.exec_driver_sql("SELECT 1")
        yield
