"""The reconciler: it follows the registry, loads and unloads models of this process, and reports their states."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Coroutine
from datetime import datetime
from typing import TYPE_CHECKING, Any

from db.model_listing import Listed
from db.replicas import ReplicaReport
from ekiben.errors import NotFound, Refusal, Unavailable
from ekiben.ids import new_id
from models.engine.engine import ModelKey, ModelState
from services.concurrency.daemon_threads import run_in_daemon
from services.model_registry.index import ModelIndex

if TYPE_CHECKING:
    from services.runners.local import LocalRunner

log = logging.getLogger(__name__)

POLL_S = 0.5
"""Seconds between looks at the registry. A look is a query only where anybody has written since the last."""

HEARTBEAT_S = 5.0
"""Seconds after which unchanged states are reported again."""

START_S = 600.0
"""Seconds that a start waits for its models: longer than any of them takes to load, unless its load hangs."""


class ModelReconciler:
    """Reconciles the models of one process with the registry. Runs on its event loop.

    ``runner`` None: the models are in another process, and only the index is refreshed. Not ``eager``: nothing is
    loaded before a request needs it, as in a worker without a job.
    """

    def __init__(
        self, index: ModelIndex, runner: LocalRunner | None, pinned: tuple[str, ...], *, eager: bool = True
    ) -> None:
        self.process_id = new_id()
        self._index = index
        self._changes = index.registry.changes()
        self._runner = runner
        self._pinned = pinned
        self._eager = eager
        self._reported: list[ModelState] | None = None
        self._reported_at = 0.0
        self._seen: dict[tuple[str, str], tuple[str, datetime]] = {}
        self._followed = -1
        self._unread = False
        self._quiet = False
        self._task: asyncio.Task[None] | None = None
        self._loads: set[asyncio.Task[Any]] = set()
        self._forgetting: set[ModelKey] = set()
        self._exceeded: dict[ModelKey, str] = {}  # versions that this process disabled, not yet recorded
        if runner is not None:
            runner.on_disabled = self._exceeded.__setitem__

    async def start(self) -> None:
        """Read the registry and load the pinned models, then follow it in a task.

        Unavailable if the first read fails. After START_S what is still being loaded goes on meanwhile.
        """
        await asyncio.to_thread(self._index.refresh)
        if self._runner is not None and self._eager:
            present = {m.model.name for m in self._index.listed() if m.active is not None}
            for name in set(self._pinned) - present:
                log.warning("model to preload is not there", extra={"model": name})
            wanted = [
                _key(m)
                for m in self._index.listed()
                if m.active is not None
                and not m.active.disabled_reason
                and (m.model.name in self._pinned or m.model.desired == "loaded")
            ]
            # The engine loads one at a time, but lets the next one pass where a load takes long.
            await self._load_first(wanted)
            with contextlib.suppress(Refusal):  # else the task follows
                await asyncio.to_thread(self._index.refresh)  # what was read before does not know what is disabled now
                self._follow()
        self._task = asyncio.create_task(self._run())

    async def _load_first(self, wanted: list[ModelKey]) -> None:
        """Load these models, and record what is disabled meanwhile: a restart must not try it again."""
        loads: set[asyncio.Task[bool]] = {asyncio.create_task(self._load(key, pin=True)) for key in wanted}
        end = time.monotonic() + START_S
        while loads and time.monotonic() < end:
            _, loads = await asyncio.wait(loads, timeout=POLL_S)
            with contextlib.suppress(Refusal):  # it is tried again as long as this process runs
                await self._record_disabled()
        if loads:
            log.warning("models are still being loaded", extra={"n": len(loads)})
            self._loads |= loads
            for task in loads:
                task.add_done_callback(self._loads.discard)

    async def check(self) -> str | None:
        """Unavailable while a pinned model that exists is not loaded in this process. Else a remark on active versions
        that are disabled: they do not keep the server from serving the others."""
        disabled = [
            f"{_key(m)} is disabled: {m.active.disabled_reason}"
            for m in self._index.listed()
            if m.active is not None and m.active.disabled_reason
        ]
        remark = "; ".join(disabled) or None
        if self._runner is None:
            return remark
        ready = {s.key for s in self._runner.engine.states() if s.state == "ready"}
        cold = [
            m.model.name
            for m in self._index.listed()
            if m.active is not None
            and m.model.name in self._pinned
            and not m.active.disabled_reason
            and _key(m) not in ready
        ]
        if cold:
            raise Unavailable(f"not loaded: {', '.join(sorted(cold))}" + (f"; {remark}" if remark else ""))
        return remark

    async def stop(self) -> None:
        """Stop following, and remove what this process has reported."""
        if self._task is not None:
            self._task.cancel()
        await asyncio.to_thread(self._changes.close)
        if self._runner is not None:
            try:
                await asyncio.to_thread(self._index.registry.forget, self.process_id)
            except Refusal:
                log.warning("replica rows not removed; they expire by themselves")

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            try:
                await self._record_disabled()
                await asyncio.to_thread(self._refresh)
                # Requests refresh the index too, so ``refresh`` does not tell whether this revision was followed.
                if self._index.revision != self._followed and self._runner is not None:
                    self._follow()
                if self._runner is not None:
                    self._runner.observe_gauges()
                    await self._report(self._runner)
                self._quiet = False
            except Refusal as error:
                if not self._quiet:
                    log.warning("registry not reachable: %s", error)
                self._quiet = True
            except Exception:
                log.exception("reconciler")

    def _refresh(self) -> None:
        if self._unread or self._changes.look():
            self._unread = True  # until a refresh succeeds
            self._index.refresh()
            self._unread = False

    def _follow(self) -> None:
        """Load and unload as the registry demands: a new version is loaded before the old one is unloaded."""
        runner = self._runner
        if runner is None:
            return
        self._followed = self._index.revision
        self._follow_disabled(runner)
        held = {s.key: s for s in runner.engine.states()}
        wanted = {_key(m): m for m in self._index.listed() if m.active is not None and not m.active.disabled_reason}
        for key, listed in wanted.items():
            others = [k for k, s in held.items() if k[:2] == key[:2] and k != key and s.state == "ready"]
            # An unload is done once per change of the row: the next request may load the model again.
            requested = (listed.model.desired, listed.model.updated_at)
            fresh = self._seen.get(key[:2]) != requested
            self._seen[key[:2]] = requested
            if listed.model.desired == "unloaded":
                if fresh:
                    self._spawn(self._unload([k for k in (key, *others) if k in held]))
                continue
            pin = listed.model.desired == "loaded" or key.name in self._pinned
            for other in others:
                runner.engine.unpin(other)  # else a memory budget for one version would never admit the next one
            absent = key not in held or held[key].state in ("unloaded", "failed")
            pin = pin and self._eager
            # A request may have loaded it: the memory budget could evict it until it is pinned.
            loose = pin and not absent and not held[key].pinned
            if loose or (absent and (pin or others)):
                self._spawn(self._replace(key, others, pin))
            elif others:
                self._spawn(self._unload(others))
        known = {ModelKey(r.owner, r.name, r.version) for m in self._index.listed() for r in m.versions}
        for key in held:
            if key.owner == "local" and key not in known:
                self._spawn(self._forget(runner, key))

    async def _forget(self, runner: LocalRunner, key: ModelKey) -> None:
        """Forget a version that was deleted. It may be one whose load hangs, and is asked for at every change."""
        if key in self._forgetting:
            return
        self._forgetting.add(key)
        try:
            await run_in_daemon("forget", runner.engine.forget, key)
        finally:
            self._forgetting.discard(key)

    def _follow_disabled(self, runner: LocalRunner) -> None:
        """Let go of the versions that any process has disabled; what was activated since may be loaded again."""
        for listed in self._index.listed():
            for row in listed.versions:
                key = ModelKey(row.owner, row.name, row.version)
                if row.disabled_reason and not runner.engine.is_disabled(key):
                    self._spawn(run_in_daemon("unload", runner.disable, key, row.disabled_reason))
                elif not row.disabled_reason and key not in self._exceeded:
                    runner.engine.enable(key)

    async def _record_disabled(self) -> None:
        """Tell the other processes, and those that will be started, what this one has disabled."""
        for key, reason in list(self._exceeded.items()):
            with contextlib.suppress(NotFound):  # deleted meanwhile
                await asyncio.to_thread(self._index.registry.disable, key.name, key.version, reason, key.owner)
            del self._exceeded[key]

    async def _replace(self, key: ModelKey, others: list[ModelKey], pin: bool) -> None:
        if await self._load(key, pin=pin):
            await self._unload(others)

    async def _load(self, key: ModelKey, *, pin: bool) -> bool:
        if self._runner is None:
            return False
        try:
            await self._runner.load(key, pin=pin)
        except Exception as error:
            log.warning("model not loaded: %s", error, extra={"model": key.name, "version": key.version})
            return False
        return True

    async def _unload(self, keys: list[ModelKey]) -> None:
        for key in keys:
            if self._runner is not None:
                await self._runner.unload(key)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._loads.add(task)
        task.add_done_callback(self._loads.discard)

    async def _report(self, runner: LocalRunner) -> None:
        states = runner.engine.states()
        now = time.monotonic()
        if states == self._reported and now - self._reported_at < HEARTBEAT_S:
            return
        if not states and not self._reported:
            return
        holdings = [
            ReplicaReport(s.key.name, s.key.version, s.state, s.reason or None, s.memory_bytes, s.key.owner)
            for s in states
        ]
        await asyncio.to_thread(
            self._index.registry.report, self.process_id, socket.gethostname(), os.getpid(), holdings
        )
        self._reported, self._reported_at = states, now


def _key(listed: Listed) -> ModelKey:
    row = listed.active
    if row is None:
        raise ValueError(f"{listed.model.name} has no active version")
    return ModelKey(row.owner, row.name, row.version)
