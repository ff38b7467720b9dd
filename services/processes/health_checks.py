"""Health checks of the parts of a process, each on a thread of its own: one that hangs does not delay the others."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from ekiben.errors import Refusal
from services.schemas.health import HealthPart

log = logging.getLogger(__name__)

PATIENCE_S = 5.0
KEPT_S = 0.5
"""Seconds that a verdict is cached: probes are frequent, and the check of the store writes."""


class HealthChecks:
    """``blocking`` checks run on one thread each; ``awaited`` ones on the event loop. A check raises the refusal
    that says what is wrong; an awaited one may return a remark."""

    def __init__(
        self, blocking: Mapping[str, Callable[[], None]], awaited: Mapping[str, Callable[[], Awaitable[str | None]]]
    ) -> None:
        self._blocking = blocking
        self._awaited = awaited
        self._threads = {name: ThreadPoolExecutor(1, thread_name_prefix=f"check-{name}") for name in blocking}
        self._under_way: dict[str, asyncio.Future[HealthPart]] = {}
        self._known: dict[str, tuple[float, HealthPart]] = {}

    async def parts(self) -> dict[str, HealthPart]:
        """The verdict on every part, at most KEPT_S old; a part whose check takes over PATIENCE_S is not ok."""
        names = [*self._blocking, *self._awaited]
        return dict(zip(names, await asyncio.gather(*(self._part(name) for name in names)), strict=True))

    def close(self) -> None:
        """Stop the threads; does not wait for checks under way."""
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)

    async def _part(self, name: str) -> HealthPart:
        known = self._known.get(name)
        if known is not None and time.monotonic() - known[0] < KEPT_S:
            return known[1]
        under_way = self._under_way.get(name)
        if under_way is None:
            under_way = asyncio.ensure_future(self._check(name))
            self._under_way[name] = under_way
            under_way.add_done_callback(lambda _: self._under_way.pop(name, None))
        try:
            return await asyncio.wait_for(asyncio.shield(under_way), PATIENCE_S)
        except TimeoutError:
            return HealthPart(ok=False, detail=f"no answer within {PATIENCE_S:.0f} s")

    async def _check(self, name: str) -> HealthPart:
        verdict = HealthPart(ok=True, detail="ok")
        try:
            if name in self._blocking:
                await asyncio.get_running_loop().run_in_executor(self._threads[name], self._blocking[name])
            else:
                remark = await self._awaited[name]()
                verdict = HealthPart(ok=True, detail=remark or "ok")
        except Refusal as error:
            verdict = HealthPart(ok=False, detail=error.message)
        except Exception:
            log.exception("health check of %s", name)
            verdict = HealthPart(ok=False, detail="internal error; the log has it")
        self._known[name] = (time.monotonic(), verdict)
        return verdict
