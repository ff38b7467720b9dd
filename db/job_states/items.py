"""Transitions of items that a worker has claimed: finished, queued again, or one step further."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlmodel import Session, col

from db.job_states.claims import LOST, ClaimedItem, require_claimed
from db.job_states.events import add_event
from db.job_states.jobs import count_ended
from db.job_states.locks import UNSYNCED, lock_all, lock_job
from db.tables import ItemState, Job, JobItem, now
from ekiben.errors import Conflict


class ItemResult(NamedTuple):
    """The end of one item, stored in the transaction of the rows that it made (see ``finish_items``).

    ``error`` None: it succeeded. ``image_id``: the images row that now owns its bytes.
    """

    job_id: str
    item_id: str
    worker_id: str
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    image_id: str | None = None


_ITEMS: sa.Table = JobItem.__table__  # type: ignore[attr-defined]
_END = (
    sa.update(_ITEMS)
    .where(_ITEMS.c.id == sa.bindparam("item_id"))
    .values({name: sa.bindparam(f"new_{name}") for name in ("state", "finished_at", "result", "error")})
    .values(worker_id=None, not_before=None)
)
_END_AS_IMAGE = _END.values(image_id=sa.bindparam("new_image_id"), storage_key=None)


def finish_items(db: sa.Connection, results: Sequence[ItemResult]) -> None:
    """Make the items succeeded or failed, and end the jobs of which these were the last ones.

    Conflict (LOST) when one of them is not claimed by its worker any more: roll the transaction back then.
    """
    moment = now()
    for job_id in sorted({one.job_id for one in results}):
        own = [one for one in results if one.job_id == job_id]
        holders = {one.item_id: one.worker_id for one in own}
        job = lock_job(db, job_id)
        chosen = sa.select(col(JobItem.id), col(JobItem.worker_id)).where(
            col(JobItem.id).in_(holders), col(JobItem.state) == ItemState.RUNNING
        )
        held = {row[0]: row[1] for row in db.execute(chosen)}
        if job is None or held != holders or len(own) != len(holders):
            raise Conflict("this item is not claimed by this worker any more", code=LOST)
        # One statement for all items: one each would cost more than the rows that it writes.
        ends = [
            {
                "item_id": one.item_id,
                "new_state": ItemState.FAILED if one.error else ItemState.SUCCEEDED,
                "new_finished_at": moment,
                "new_result": one.result,
                "new_error": one.error,
                "new_image_id": one.image_id,
            }
            for one in own
        ]
        # Bytes that became a stored image belong to the row of that image from now on.
        for statement, of_image in ((_END, False), (_END_AS_IMAGE, True)):
            if values := [end for end in ends if (end["new_image_id"] is not None) == of_image]:
                db.execute(statement, values)
        failed = sum(one.error is not None for one in own)
        count_ended(db, job_id, failed=failed, succeeded=len(own) - failed, deaths=0)


def requeue(db: Session, worker_id: str, item_ids: Collection[str], not_before: datetime | None = None) -> None:
    """Items that ``worker_id`` has claimed wait again.

    With ``not_before`` they wait until then, and a try is counted: they ended with a temporary error.
    """
    own = (col(JobItem.id).in_(item_ids), col(JobItem.worker_id) == worker_id, col(JobItem.state) == ItemState.RUNNING)
    lock_all(db, db.execute(sa.select(col(JobItem.job_id)).where(*own).distinct()).scalars().all())
    values: dict[str, Any] = {"state": ItemState.QUEUED, "worker_id": None, "not_before": not_before}
    if not_before is not None:
        values["tries"] = col(JobItem.tries) + 1
    db.execute(sa.update(JobItem).where(*own).values(**values), execution_options=UNSYNCED)


def note(
    db: Session, item: ClaimedItem, worker_id: str, kind: str, data: dict[str, Any], progress: float | None
) -> None:
    """Add an event of the work on the only item of a job, of which the share ``progress`` is done, 0-1.

    Conflict (LOST) when ``worker_id`` has not claimed the item any more.
    """
    require_claimed(db, item, worker_id)
    values: dict[str, Any] = {"updated_at": now()}
    if progress is not None:
        values["progress"] = progress
    db.execute(sa.update(Job).where(col(Job.id) == item.job_id).values(**values), execution_options=UNSYNCED)
    add_event(db, item.job_id, kind, data)


def reset_deaths(db: Session, item: ClaimedItem, worker_id: str) -> None:
    """Count the deaths of workers anew: the work on an item reached a step from which it can go on.

    Conflict (LOST) when ``worker_id`` has not claimed the item any more.
    """
    require_claimed(db, item, worker_id)
    for table, ident in ((Job, item.job_id), (JobItem, item.id)):
        statement = sa.update(table).where(col(table.id) == ident, col(table.deaths) > 0).values(deaths=0)
        db.execute(statement, execution_options=UNSYNCED)
