"""The runner in another process, called over HTTP by the gateway of the split topology."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import aiohttp
import orjson

from ekiben.errors import DeadlineExceeded, Temporary, Unavailable
from ekiben.logs import request_id
from models.engine.engine import ModelKey, ModelState
from models.inference_requests import AutoMaskRequest, AutoMaskResponse, InferenceRequest, MaskRequest, MaskResponse
from models.results import Timing
from services.runners.interface import TimedAnswer
from services.runners.message_format import REFUSAL_PART, UPDATE_PART, PartReader
from services.runners.messages import (
    decode_auto_mask_response,
    decode_mask_response,
    decode_mask_update,
    decode_refusal,
    decode_response,
    decode_states,
    encode_auto_mask_request,
    encode_key,
    encode_mask_request,
    encode_request,
)
from services.runners.progress import NO_PROGRESS, ProgressSink

DEADLINE_HEADER = "x-ekiben-deadline-s"
"""Seconds that the gateway waits; monotonic clocks of two machines cannot be compared."""


class RemoteRunner:
    """Calls a runner process through one pool of HTTP connections.

    All methods raise the refusals of the runner, Unavailable where it cannot be reached, and DeadlineExceeded.
    """

    def __init__(self, url: str) -> None:
        if not url:
            raise SystemExit(
                "settings: EKIBEN_TOPOLOGY=split needs EKIBEN_RUNNER_URL (make serve starts a runner itself)"
            )
        self._url = url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    async def infer(
        self, key: ModelKey, request: InferenceRequest, deadline: float, progress: ProgressSink = NO_PROGRESS
    ) -> TimedAnswer:
        """See ``Runner.infer``. The deadline is sent as seconds from now."""
        left = deadline - time.monotonic()
        body = await self._post("/infer", encode_request(key, request), max(left, 0.001))
        return decode_response(body)

    async def masks(self, key: ModelKey, request: MaskRequest, deadline: float) -> tuple[MaskResponse, Timing]:
        """See ``Runner.masks``."""
        left = deadline - time.monotonic()
        return decode_mask_response(await self._post("/masks", encode_mask_request(key, request), max(left, 0.001)))

    async def auto_masks(
        self, key: ModelKey, request: AutoMaskRequest, deadline: float, progress: ProgressSink = NO_PROGRESS
    ) -> tuple[AutoMaskResponse, Timing]:
        """See ``Runner.auto_masks``. Updates are streamed only where ``progress`` wants masks."""
        left, on_masks = deadline - time.monotonic(), progress.on_masks
        if on_masks is None:
            return decode_auto_mask_response(
                await self._post("/auto_masks", encode_auto_mask_request(key, request), max(left, 0.001))
            )
        parts, response = PartReader(), b""

        def receive(data: bytes) -> None:
            nonlocal response
            for kind, body in parts.feed(data):
                if kind == UPDATE_PART:
                    on_masks(decode_mask_update(body))
                elif kind == REFUSAL_PART:
                    raise decode_refusal(body)
                else:
                    response = body

        await self._post("/auto_masks?updates=1", encode_auto_mask_request(key, request), max(left, 0.001), receive)
        if not response:
            raise Unavailable("the runner broke its answer off", retry_after_s=2)
        return decode_auto_mask_response(response)

    async def load(self, key: ModelKey, *, pin: bool = False) -> None:
        """See ``Runner.load``. DeadlineExceeded after 600 s."""
        await self._post(f"/load?pin={int(pin)}", encode_key(key), 600.0)

    async def enable(self, key: ModelKey) -> None:
        """See ``Runner.enable``. DeadlineExceeded after 5 s."""
        await self._post("/enable", encode_key(key), 5.0)

    async def unload(self, key: ModelKey) -> bool:
        """See ``Runner.unload``. DeadlineExceeded after 60 s."""
        return await self._post("/unload", encode_key(key), 60.0) == b"true"

    async def states(self) -> list[ModelState]:
        """See ``Runner.states``. DeadlineExceeded after 5 s."""
        return decode_states(await self._post("/states", b"", 5.0))

    async def counters(self, key: ModelKey) -> dict[str, int]:
        """See ``Runner.counters``. DeadlineExceeded after 5 s."""
        counts: dict[str, int] = orjson.loads(await self._post("/counters", encode_key(key), 5.0))
        return counts

    async def metrics_text(self) -> bytes:
        """The runner's Prometheus lines; empty where it cannot be reached."""
        try:
            return await self._post("/metrics", b"", 5.0)
        except Temporary:
            return b""

    async def check(self) -> None:
        """Unavailable or DeadlineExceeded where the runner does not respond within 5 s."""
        await self._post("/states", b"", 5.0)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _post(
        self, path: str, body: bytes, timeout_s: float, on_piece: Callable[[bytes], None] | None = None
    ) -> bytes:
        """The body of the response. With ``on_piece`` b"": that is called with its pieces as they arrive."""
        if self._session is None or self._session.closed:
            # The runner closes idle connections after 5 s. They are closed here before that: a request must not be sent
            # on a connection that the runner is closing.
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=3.0)
            self._session = aiohttp.ClientSession(
                connector=connector, auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None)
            )
        headers = {DEADLINE_HEADER: f"{timeout_s:.3f}", "content-type": "application/octet-stream"}
        if ident := request_id.get():
            headers["x-request-id"] = ident
        try:
            async with asyncio.timeout(timeout_s):
                async with self._session.post(self._url + path, data=body, headers=headers) as response:
                    if on_piece is not None and response.status == 200:
                        async for piece in response.content.iter_any():
                            on_piece(piece)
                        return b""
                    content = await response.read()
        except TimeoutError:
            raise DeadlineExceeded("the request took longer than its deadline", retry_after_s=1) from None
        except aiohttp.ClientError as error:
            raise Unavailable(f"the runner is not reachable ({type(error).__name__})", retry_after_s=2) from None
        if response.status == 200:
            return content
        raise decode_refusal(content)
