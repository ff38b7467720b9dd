"""Transitions of jobs and items: every change of their state is made in this package.

::

    queued --claim--> running --finish_items--> succeeded, failed
      ^                  |
      |<-- requeue ------|   a worker stops, or the error is temporary
      |<-- fail_worker --|   its worker died; failed after MAX_DEATHS
      |<-- retry -------------------------- failed, cancelled
    any that is not over --cancel--> cancelled,  --fail--> failed

Every function works in the caller's transaction, and locks the row of a job before it touches the rows of its items;
of several jobs, in the order of their ids. So two transactions cannot wait for each other.
"""

from db.job_states.claims import LOST, ClaimedItem, claim, places_left
from db.job_states.dead_workers import MAX_DEATHS, fail_worker
from db.job_states.events import add_event, report
from db.job_states.items import ItemResult, finish_items, note, requeue, reset_deaths
from db.job_states.jobs import cancel, end_of_time, fail, retry
from db.job_states.locks import lock_all
from db.tables import ACTIVE, OVER, ItemState, JobState

__all__ = [
    "ACTIVE",
    "LOST",
    "MAX_DEATHS",
    "OVER",
    "ClaimedItem",
    "ItemResult",
    "ItemState",
    "JobState",
    "add_event",
    "cancel",
    "claim",
    "end_of_time",
    "fail",
    "fail_worker",
    "finish_items",
    "lock_all",
    "note",
    "places_left",
    "report",
    "requeue",
    "reset_deaths",
    "retry",
]
