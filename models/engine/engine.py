"""The engine: loaded models by version, within a memory budget."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from ekiben.errors import Damaged, ModelDisabled, Refusal, Unavailable
from models.engine.load_gate import LoadGate
from models.engine.loaded_model import LoadedModel
from models.engine.memory import reclaim_memory
from models.engine.model_state import EngineEntry, ModelState, State
from models.model_key import ModelKey

log = logging.getLogger(__name__)

__all__ = ["Engine", "ModelKey", "ModelState", "State"]

M = TypeVar("M", bound=LoadedModel)


class Engine(Generic[M]):
    """Loads models on demand, each once however many threads request it; evicts the least recently used ones.

    A model that is leased or pinned is never evicted. ``open_model`` reads the artifact and gives a warm model;
    ``estimate`` gives its bytes before that. ``on_close`` is called with a model before its sessions are closed.
    """

    RETRY_FAILED_S = 5.0
    """Seconds until a failed load is tried again: a broken file must not cost a load per request."""

    def __init__(
        self,
        open_model: Callable[[ModelKey], M],
        estimate: Callable[[ModelKey], int],
        budget_bytes: int,
        on_close: Callable[[M], None] | None = None,
    ) -> None:
        self.budget_bytes = budget_bytes
        self._open = open_model
        self._estimate = estimate
        self._on_close = on_close
        self._entries: dict[ModelKey, EngineEntry[M]] = {}
        self._lock = threading.RLock()
        self._disabled: dict[ModelKey, str] = {}
        self._gate = LoadGate()

    @property
    def used_bytes(self) -> int:
        """Bytes that all loaded models take together."""
        with self._lock:
            return sum(e.loaded.memory_bytes for e in self._entries.values() if e.loaded is not None)

    def states(self) -> list[ModelState]:
        """The states of every version that was ever requested and not forgotten."""
        with self._lock:
            return [
                ModelState(e.key, e.state, e.reason, e.loaded.memory_bytes if e.loaded else 0, e.pinned, e.loads)
                for e in self._entries.values()
            ]

    def try_lease(self, key: ModelKey) -> M | None:
        """A lease on a model that is ready, else None; never blocks. End it with ``release``."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry.loaded is None or entry.state != "ready":
                return None
            entry.users += 1
            entry.last_used = time.monotonic()
            return entry.loaded

    def lease(self, key: ModelKey) -> M:
        """A lease on a model, which is loaded first if need be. Blocks; raises the refusal that the load ended in."""
        while True:
            if (loaded := self.try_lease(key)) is not None:
                return loaded
            self.load(key)

    def share(self, loaded: M) -> None:
        """Take one more lease on a model of which the caller holds one. Unavailable once it is closed."""
        with self._lock:
            if loaded.closed:
                raise Unavailable(f"{loaded.key} was unloaded meanwhile", code="model_loading", retry_after_s=1)
            if loaded.detached:
                loaded.users_left += 1
            elif (entry := self._entries.get(loaded.key)) is not None:
                entry.users += 1

    def release(self, loaded: M) -> None:
        """End a lease. The end of the last lease of an unloaded model closes it."""
        with self._lock:
            loaded.users_left -= 1 if loaded.detached else 0
            entry = self._entries.get(loaded.key)
            if entry is not None and entry.loaded is loaded:
                entry.users -= 1
            close = loaded.detached and loaded.users_left == 0
        if close:
            self._close(loaded)

    @contextmanager
    def using(self, key: ModelKey) -> Iterator[M]:
        """A lease for the time of a block. Raises as ``lease``."""
        loaded = self.lease(key)
        try:
            yield loaded
        finally:
            self.release(loaded)

    def load(self, key: ModelKey, *, pin: bool = False) -> None:
        """Make a model ready; waits if another thread is loading it. With ``pin`` it is not evicted until ``unpin``.

        Raises the refusal that the load ended in: BadModelFile, or Unavailable where the memory budget is too small or
        a load failed in the last RETRY_FAILED_S; ModelDisabled after ``disable``, which does not wait for its end.
        """
        with self._lock:
            if reason := self._disabled.get(key):
                raise ModelDisabled(f"{key} is disabled: {reason}")
            entry = self._entries.setdefault(key, EngineEntry(key))
            entry.pinned = entry.pinned or pin
            if entry.state == "ready":
                return
            if entry.state == "failed" and time.monotonic() - entry.failed_at < self.RETRY_FAILED_S and not pin:
                raise entry.refusal(self.RETRY_FAILED_S)
            mine = entry.state != "loading"
            if mine:
                entry.state = "loading"
                entry.settled = threading.Event()  # a new one: that of a load that was given up stays set
            settled, errors = entry.settled, list[BaseException]()
        if mine:  # on a thread of its own: one that hangs must not keep who began it
            threading.Thread(target=self._load, args=(entry, errors), name="load", daemon=True).start()
        settled.wait()
        with self._lock:
            if reason := self._disabled.get(key):
                raise ModelDisabled(f"{key} is disabled: {reason}")
            if errors:
                raise errors[0]
            if entry.state == "failed":
                raise entry.refusal(self.RETRY_FAILED_S)

    def unload(self, key: ModelKey) -> bool:
        """Take a model out of memory; requests that hold a lease finish first. False when it was not loaded.

        Blocks while it is being loaded: otherwise it would be ready right after it was unloaded.
        """
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return False
            loading = entry.state == "loading"
        if loading:
            entry.settled.wait()
        with self._lock:
            entry.pinned = False
            if entry.loaded is None:
                if entry.state == "failed":
                    entry.state, entry.reason = "unloaded", ""
                return False
            idle = self._detach(entry)
        if idle is not None:
            self._close(idle)
        return True

    def unpin(self, key: ModelKey) -> None:
        """Let a model be evicted again."""
        with self._lock:
            if entry := self._entries.get(key):
                entry.pinned = False

    def disable(self, key: ModelKey, reason: str) -> None:
        """Take a model out of memory and refuse to load it, until ``enable``. Does not wait for runs or a load."""
        with self._lock:
            self._disabled[key] = reason
            entry = self._entries.setdefault(key, EngineEntry(key))
            idle = self._detach(entry)
            entry.pinned, entry.state, entry.reason = False, "failed", reason
            entry.settled.set()
        if idle is not None:
            self._close(idle)

    def is_disabled(self, key: ModelKey) -> bool:
        """Whether ``disable`` holds."""
        return key in self._disabled

    def enable(self, key: ModelKey) -> None:
        """Let a model be loaded again that was disabled."""
        with self._lock:
            if self._disabled.pop(key, None) is not None and (entry := self._entries.get(key)):
                entry.state, entry.reason = "unloaded", ""

    def pass_on(self, thread_id: int) -> None:
        """Let other models be loaded while this thread still loads one."""
        self._gate.pass_on(thread_id)

    def forget(self, key: ModelKey) -> None:
        """Unload a model whose version was deleted, and do not list it any more."""
        self.unload(key)
        with self._lock:
            self._entries.pop(key, None)

    def close(self) -> None:
        """Unload every model but those that are being loaded: a load cannot be stopped."""
        for state in self.states():
            if state.state != "loading":
                self.unload(state.key)

    def _load(self, entry: EngineEntry[M], errors: list[BaseException]) -> None:
        settled = entry.settled
        try:
            with self._gate.turn():
                self._make_room(self._estimate(entry.key), entry.key)
                started = time.monotonic()
                loaded = self._open(entry.key)
                with self._lock:
                    given_up = settled.is_set()
                    if not given_up:
                        entry.loaded, entry.state, entry.reason = loaded, "ready", ""
                        entry.loads += 1
                        entry.users = 0
                        entry.last_used = time.monotonic()
                if given_up:
                    self._close(loaded)
                    raise ModelDisabled(f"{entry.key} is disabled: {self._disabled.get(entry.key, entry.reason)}")
                log.info(
                    "model loaded",
                    extra={
                        "model": entry.key.name,
                        "version": entry.key.version,
                        "seconds": round(time.monotonic() - started, 3),
                        "memory_bytes": loaded.memory_bytes,
                    },
                )
                # The measured size can be larger than the estimate: idle models are evicted then.
                self._make_room(0, entry.key, refuse=False)
        except BaseException as error:
            with self._lock:
                if not settled.is_set():
                    entry.state = "failed"
                    entry.reason = error.message if isinstance(error, Refusal) else "internal error"
                    entry.damaged = isinstance(error, Damaged)
                    entry.failed_at = time.monotonic()
            log.warning("model not loaded: %s", error, extra={"model": entry.key.name, "version": entry.key.version})
            errors.append(error)
        finally:
            settled.set()

    def _make_room(self, need: int, for_key: ModelKey, *, refuse: bool = True) -> None:
        """Evict idle models, least recently used first, until ``need`` more bytes fit.

        Where they could not fit even then no model is evicted: Unavailable, if ``refuse``.
        """
        closing: list[M] = []
        with self._lock:
            held = [(e, e.loaded) for e in self._entries.values() if e.loaded is not None]
            idle = [(e, model) for e, model in held if e.users == 0 and not e.pinned and e.key != for_key]
            over = sum(model.memory_bytes for _, model in held) + need - self.budget_bytes
            short = over - sum(model.memory_bytes for _, model in idle)
            if short > 0 and refuse:
                kept = {e.key for e, _ in held} - {e.key for e, _ in idle}
                raise Unavailable(
                    f"{for_key} needs about {need / 1e6:.0f} MB, {short / 1e6:.0f} MB more than the memory budget of "
                    f"{self.budget_bytes / 1e6:.0f} MB leaves (in use or pinned: "
                    f"{', '.join(sorted({key.name for key in kept})) or 'none'}); "
                    "unload a model or raise EKIBEN_MODEL_MEMORY_MB",
                    code="memory_budget",
                    retry_after_s=5,
                )
            for victim, model in sorted(idle, key=lambda pair: pair[0].last_used):
                if over <= 0:
                    break
                log.info("model evicted", extra={"model": victim.key.name, "version": victim.key.version})
                over -= model.memory_bytes
                self._detach(victim)
                closing.append(model)
        for loaded in closing:
            self._close(loaded)

    def _detach(self, entry: EngineEntry[M]) -> M | None:
        """Make the entry unloaded, under the lock; gives its model if no lease is held, to be closed."""
        loaded = entry.loaded
        if loaded is None:
            return None
        loaded.detached, loaded.users_left = True, entry.users
        entry.loaded, entry.state, entry.users = None, "unloaded", 0
        return loaded if loaded.users_left == 0 else None

    def _close(self, loaded: M) -> None:
        with self._lock:
            if loaded.closed:
                return
            loaded.closed = True
        if self._on_close is not None:
            self._on_close(loaded)
        loaded.close()
        reclaim_memory()
