"""ekiben.v1.Artifacts: files that answers name by id."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from ekiben.v1 import ekiben_pb2 as pb
from ekiben.v1 import ekiben_pb2_grpc
from services.job_results import in_thread
from services.rpc.calls import Door, required, streaming
from services.vision import LOCAL


class Artifacts(ekiben_pb2_grpc.ArtifactsServicer):
    NAME = "ekiben.v1.Artifacts"

    def __init__(self, door: Door) -> None:
        self.door = door

    @streaming
    async def GetArtifact(self, request: Any, timeout_s: float | None) -> AsyncIterator[Any]:
        platform = self.door.platform
        found = await asyncio.to_thread(platform.records.artifact, LOCAL, required(request.id, "id"))
        pieces = await asyncio.to_thread(platform.store.stream, found.storage_key)  # opens it: this may block
        facts: dict[str, Any] = {"mime_type": found.mime_type, "bytes": found.bytes}
        async for data in in_thread(pieces):
            yield pb.ArtifactChunk(data=data, **facts)
            facts = {}
