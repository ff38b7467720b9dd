"""Jobs whose items are over, with the rows of their answers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from db import job_states
from db.job_states import ItemResult
from db.records import Records
from db.session import writing
from tests.db import rows
from tests.db.job_rows import (
    claimed,
)

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
BAD = {"code": "bad_image", "message": "not an image"}
MINUTE = timedelta(minutes=1)


def settle(engine: sa.Engine, *settlings: ItemResult) -> None:
    with writing(engine) as session:
        job_states.finish_items(session.connection(), settlings)


def answered(records: Records, engine: sa.Engine, job_id: str, **given: Any) -> dict[str, list[str]]:
    """Settle all that can be claimed with an image, a prediction and a mask each; the masks' keys by item."""
    masks: dict[str, list[str]] = {}
    for item in claimed(engine, job_id, limit=1000):
        image = rows.image(storage_key=item.storage_key)
        prediction = rows.prediction(item.image_id or image.id, id=item.id, job_id=job_id, **given)
        mask = rows.artifact(item.id)
        masks[item.id] = [mask.storage_key]
        own = [] if item.image_id else [image]
        item_result = ItemResult(
            job_id, item.id, "worker-1", result={"n": item.position}, image_id=image.id if own else None
        )
        records.save([*own, prediction, mask], item_result).result(20)
    return masks
