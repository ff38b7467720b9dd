"""Requests and responses of models and their versions."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from models.onnx_import.options import ImportOptions
from services.schemas.body import Body, Moment

Task = Literal["classify", "segment", "masks"]
State = Literal["ready", "unloaded", "loading", "unavailable"]
Desired = Literal["auto", "loaded", "unloaded"]
ReplicaState = Literal["ready", "loading", "unloaded", "failed"]


class ModelUploadOptions(ImportOptions):
    """The options of an upload, besides the file."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$", description="Name of the model; a known name gets a new version."
    )


class ReplicaBody(Body):
    """The state of a model version in one process."""

    process_id: str
    host: str
    version: int
    state: ReplicaState
    reason: str | None
    memory_bytes: int


class VersionBody(Body):
    """A version of a model."""

    version: int
    active: bool
    disabled_reason: str | None = Field(description="Why it is not run any more; activating it clears this.")
    digest: str
    bytes: int
    metrics: dict[str, Any]
    lineage: dict[str, Any]
    created_at: Moment


class ModelBody(Body):
    """A model, its state and its versions."""

    name: str = Field(examples=["efficientnet_b0"])
    task: Task | None
    version: int | None = Field(description="The active version.")
    state: State
    reason: str | None = Field(description="Why it is unavailable.")
    desired: Desired
    memory_bytes: int
    weights: str | None = Field(
        description="Where the numbers come from; random weights say so.", examples=["random (seed 0)"]
    )
    licence: str | None
    source: str | None
    precision: str | None
    classes: int | None
    counters: dict[str, int] = Field(
        description="Of the responding process: predictions, batches, loads; waiting now; batch_size learned."
    )
    replicas: list[ReplicaBody]
    versions: list[VersionBody]
