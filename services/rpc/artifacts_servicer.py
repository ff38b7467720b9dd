"""ekiben.v1.Artifacts: files that responses name by id."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from db.stored_files import stream_whole
from ekiben.ids import LOCAL_OWNER
from ekiben.v1 import ekiben_pb2 as pb
from ekiben.v1 import ekiben_pb2_grpc
from services.concurrency.threaded_iterator import iterate_in_thread
from services.rpc.method_wrappers import ServicerState, required, streaming


class ArtifactsServicer(ekiben_pb2_grpc.ArtifactsServicer):
    """Streams stored files."""

    NAME = "ekiben.v1.Artifacts"

    def __init__(self, state: ServicerState) -> None:
        self.state = state

    @streaming
    async def GetArtifact(self, request: Any, timeout_s: float | None) -> AsyncIterator[Any]:
        app_state = self.state.app_state
        found = await asyncio.to_thread(app_state.records.artifact, LOCAL_OWNER, required(request.id, "id"))
        # Opens it: this may block.
        pieces = await asyncio.to_thread(stream_whole, app_state.store, found.storage_key, found.bytes, found.sha256)
        info: dict[str, Any] = {"mime_type": found.mime_type, "bytes": found.bytes}
        async for data in iterate_in_thread(pieces):
            yield pb.ArtifactChunk(data=data, **info)
            info = {}
