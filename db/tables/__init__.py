"""Tables: what the platform remembers, one class per table."""

from db.tables.datasets import Dataset
from db.tables.jobs import Job, JobEvent, JobItem
from db.tables.processes import Chore, Installation, Worker
from db.tables.records import Artifact, Image, Prediction
from db.tables.registry import Model, ModelReplica, ModelVersion, RegistryRevision
from db.tables.rows import NAMES, Owned, Row, now
from db.tables.states import ACTIVE, OVER, ItemState, JobState

__all__ = [
    "ACTIVE",
    "NAMES",
    "OVER",
    "Artifact",
    "Chore",
    "Dataset",
    "Image",
    "Installation",
    "ItemState",
    "Job",
    "JobEvent",
    "JobItem",
    "JobState",
    "Model",
    "ModelReplica",
    "ModelVersion",
    "Owned",
    "Prediction",
    "RegistryRevision",
    "Row",
    "Worker",
    "now",
]
