"""Models of one process follow the registry: what is loaded, pinned, replaced, unloaded and reported."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ekiben.errors import ModelDisabled, Unavailable
from ekiben.settings import Settings
from models.engine import engine
from models.engine.engine import ModelKey
from services.model_registry import reconciler as reconciling
from services.model_registry.index import ModelIndex
from services.model_registry.reconciler import ModelReconciler
from services.runners.local import LocalRunner
from tests.services.model_registry.conftest import Shelf
from tests.waiting import async_eventually


class Process:
    """The index, the runner and the reconciler of one process."""

    def __init__(self, shelf: Shelf, cache: Path, pinned: tuple[str, ...] = (), *, eager: bool = True) -> None:
        self.registry = shelf.registry
        self.index = ModelIndex(shelf.registry, shelf.store, cache)
        self.runner = LocalRunner(Settings(home=cache, threads=1, device="cpu"), self.index.locate)
        self.reconciler = ModelReconciler(self.index, self.runner, pinned, eager=eager)

    def ready(self) -> dict[int, bool]:
        """By version of ``colours`` that is loaded, whether it is pinned."""
        states = self.runner.engine.states()
        return {s.key.version: s.pinned for s in states if s.key.name == "colours" and s.state == "ready"}

    def followed(self) -> bool:
        """Whether the present state of the registry was acted on."""
        return self.reconciler._followed == self.registry.revision() and not self.reconciler._loads

    async def follows(self, *, to: dict[int, bool]) -> None:
        await async_eventually(lambda: self.followed() and self.ready() == to, f"{to} after {self.ready()}", 10)

    def reported(self) -> dict[ModelKey, str]:
        rows = self.registry.replicas()
        assert {(row.host, row.pid) for row in rows} <= {(socket.gethostname(), os.getpid())}
        mine = [row for row in rows if row.process_id == self.reconciler.process_id]
        return {ModelKey(row.owner, row.name, row.version): row.state for row in mine}


Start = Callable[..., AsyncIterator[Process]]
Main = Callable[[Start], Awaitable[None]]


@pytest.fixture
def run(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Main], None]:
    monkeypatch.setattr(reconciling, "POLL_S", 0.01)
    monkeypatch.setattr(reconciling, "HEARTBEAT_S", 3600.0)  # what is reported is news
    monkeypatch.setattr(engine, "reclaim_memory", lambda: None)  # takes longer than most of these tests

    @asynccontextmanager
    async def start(*pinned: str, eager: bool = True) -> AsyncIterator[Process]:
        process = Process(shelf, tmp_path, pinned, eager=eager)
        await process.reconciler.start()
        try:
            yield process
        finally:
            await process.reconciler.stop()
            await process.runner.close()

    return lambda main: asyncio.run(main(start))  # type: ignore[arg-type]


# ---- at the start ----


def test_pinned_and_wanted_models_are_loaded_before_the_start_is_over(
    run: Callable[[Main], None], shelf: Shelf
) -> None:
    for name in ("colours", "wanted", "other"):
        shelf.publish(name)
    shelf.registry.set_desired("wanted", "loaded")

    async def main(start: Start) -> None:
        async with start("colours", "not there") as process:
            states = {s.key.name: (s.state, s.pinned) for s in process.runner.engine.states()}
            assert states == {"colours": ("ready", True), "wanted": ("ready", True)}

    run(main)


def test_without_eagerness_nothing_is_loaded_before_a_request(run: Callable[[Main], None], shelf: Shelf) -> None:
    key = shelf.publish()
    shelf.registry.set_desired("colours", "loaded")

    async def main(start: Start) -> None:
        async with start("colours", eager=False) as process:
            await asyncio.sleep(0.05)
            assert process.ready() == {}
            await process.runner.load(key)
            second = shelf.publish()
            await process.follows(to={second.version: False})

    run(main)


def test_a_pinned_model_that_is_not_loaded_is_not_ready(run: Callable[[Main], None], shelf: Shelf) -> None:
    keys = [shelf.publish(name) for name in ("colours", "b")]

    async def main(start: Start) -> None:
        async with start("colours", "b", "not there") as process:
            await process.reconciler.check()
            for key in keys:
                await process.runner.unload(key)
            with pytest.raises(Unavailable) as caught:
                await process.reconciler.check()
            assert str(caught.value) == "not loaded: b, colours"

    run(main)


# ---- while it runs ----


def test_a_new_version_takes_the_place_of_a_loaded_one(run: Callable[[Main], None], shelf: Shelf) -> None:
    """Pinned, and merely loaded on demand; a version of a model that is not loaded is not loaded either."""
    key = shelf.publish()
    shelf.publish("asleep")

    async def main(start: Start) -> None:
        async with start() as process:
            await process.runner.load(key)
            second = shelf.publish()
            shelf.publish("asleep")
            await process.follows(to={second.version: False})
            assert {s.key.name for s in process.runner.engine.states()} == {"colours"}
        async with start("colours") as process:
            assert process.ready() == {2: True}
            third = shelf.publish()
            await process.follows(to={third.version: True})
            shelf.registry.activate("colours", 1)
            await process.follows(to={1: True})

    run(main)


def test_a_version_that_does_not_load_leaves_the_old_one(run: Callable[[Main], None], shelf: Shelf) -> None:
    shelf.publish()

    async def main(start: Start) -> None:
        async with start("colours") as process:
            second = shelf.publish()
            await process.follows(to={2: True})
            (graph,) = (shelf.store.root / "models" / "colours" / "1").glob("*.onnx")
            graph.write_bytes(b"damaged")
            shelf.registry.activate("colours", 1)
            await async_eventually(process.followed)
            states = {s.key.version: s.state for s in process.runner.engine.states()}
            assert states == {1: "failed", second.version: "ready"}

    run(main)


def test_loaded_and_unloaded_are_followed(run: Callable[[Main], None], shelf: Shelf) -> None:
    key = shelf.publish()

    async def main(start: Start) -> None:
        async with start() as process:
            shelf.registry.set_desired("colours", "loaded")
            await process.follows(to={1: True})
            shelf.registry.set_desired("colours", "unloaded")
            await process.follows(to={})
            # An unload is done once: a request may load the model again, and other changes leave it.
            await process.runner.load(key)
            shelf.publish("other")
            await process.follows(to={1: False})
            shelf.registry.set_desired("colours", "unloaded")
            await process.follows(to={})

    run(main)


def test_a_model_that_a_request_loaded_is_kept_once_it_is_wanted(run: Callable[[Main], None], shelf: Shelf) -> None:
    """As in each process beside the one that was asked to load it: the memory budget must not evict it."""
    key = shelf.publish()

    async def main(start: Start) -> None:
        async with start() as process:
            await process.runner.load(key)
            assert process.ready() == {1: False}
            shelf.registry.set_desired("colours", "loaded")
            await process.follows(to={1: True})

    run(main)


def test_a_deleted_version_is_forgotten(run: Callable[[Main], None], shelf: Shelf) -> None:
    key = shelf.publish()
    shelf.publish()

    async def main(start: Start) -> None:
        async with start() as process:
            await process.runner.load(key)
            shelf.registry.delete_version("colours", 1)
            await async_eventually(lambda: key not in {s.key for s in process.runner.engine.states()})

    run(main)


class Hanging:
    """An opening of models that does not end before the test does."""

    def __init__(self, process: Process) -> None:
        self.begun, self.end = threading.Event(), threading.Event()
        process.runner.engine._open = self  # type: ignore[assignment]

    def __call__(self, key: ModelKey) -> object:
        self.begun.set()
        self.end.wait(60)
        raise Unavailable(f"{key} never opened")


def test_a_start_does_not_wait_for_a_load_that_hangs_and_records_what_it_disables(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciling, "POLL_S", 0.01)
    colours, other = shelf.publish("colours"), shelf.publish("other")

    async def main() -> None:
        process = Process(shelf, tmp_path, ("colours", "other"))
        hanging = Hanging(process)
        starting = asyncio.create_task(process.reconciler.start())
        assert await asyncio.to_thread(hanging.begun.wait, 20)
        await asyncio.to_thread(process.runner._disable, colours, "time", "opening it took more than 60 s")
        await async_eventually(lambda: bool(shelf.registry.resolve("colours").disabled_reason))
        assert not starting.done() and not hanging.end.is_set()
        monkeypatch.setattr(reconciling, "START_S", 0.0)
        late = Process(shelf, tmp_path, ("other",))
        Hanging(late).end = hanging.end
        await asyncio.wait_for(late.reconciler.start(), 20)
        with pytest.raises(Unavailable, match="not loaded: other"):
            await late.reconciler.check()
        hanging.end.set()
        await asyncio.wait_for(starting, 20)
        assert process.runner.engine.is_disabled(colours) and not process.runner.engine.is_disabled(other)
        for one in (process, late):
            await one.reconciler.stop()
            await one.runner.close()

    asyncio.run(main())


def test_a_deleted_version_whose_load_hangs_takes_one_thread(run: Callable[[Main], None], shelf: Shelf) -> None:
    key = shelf.publish()
    shelf.publish()

    async def main(start: Start) -> None:
        async with start() as process:
            hanging = Hanging(process)
            loading = asyncio.create_task(process.runner.load(key))
            assert await asyncio.to_thread(hanging.begun.wait, 20)
            shelf.registry.delete_version("colours", 1)
            for _ in range(5):
                shelf.registry.set_desired("colours", "unloaded")
                shelf.registry.set_desired("colours", "auto")
                revision = shelf.registry.revision()
                await async_eventually(lambda: process.reconciler._followed == revision)  # noqa: B023
            assert [thread.name for thread in threading.enumerate()].count("forget") == 1
            hanging.end.set()
            await asyncio.gather(loading, return_exceptions=True)
            await async_eventually(lambda: key not in {s.key for s in process.runner.engine.states()})

    run(main)


# ---- reports ----


def test_states_are_reported_and_removed_at_the_end(run: Callable[[Main], None], shelf: Shelf) -> None:
    key = shelf.publish()

    async def main(start: Start) -> None:
        async with start("colours") as process:
            await async_eventually(lambda: process.reported() == {key: "ready"})
            await process.runner.unload(key)
            await async_eventually(lambda: process.reported() == {key: "unloaded"}, limit_s=10)
            async with start("colours") as other:
                await async_eventually(lambda: other.reported() == {key: "ready"})
                assert process.reported() == {key: "unloaded"}
            assert (other.reported(), process.reported()) == ({}, {key: "unloaded"})
        assert shelf.registry.replicas() == []

    run(main)


def test_a_process_without_models_only_refreshes_its_index(
    shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciling, "POLL_S", 0.01)
    index = ModelIndex(shelf.registry, shelf.store, tmp_path)

    async def main() -> None:
        reconciler = ModelReconciler(index, None, ("colours",))
        await reconciler.start()
        shelf.publish()
        await async_eventually(lambda: [model.model.name for model in index.listed()] == ["colours"])
        await reconciler.check()
        await reconciler.stop()

    asyncio.run(main())
    assert shelf.registry.replicas() == []


def test_a_version_that_one_process_disables_is_run_by_none(run: Callable[[Main], None], shelf: Shelf) -> None:
    async def main(start: Start) -> None:
        key = shelf.publish()
        async with start("colours") as first, start("colours") as second:  # type: ignore[attr-defined]
            await first.follows(to={1: True})
            await second.follows(to={1: True})
            await asyncio.to_thread(first.runner._disable, key, "time", "a run took more than 20 s")
            await async_eventually(lambda: second.runner.engine.is_disabled(key) and not second.ready())
            assert first.ready() == {} and shelf.registry.resolve("colours").disabled_reason
            for process in (first, second):
                await asyncio.to_thread(process.index.refresh)
                with pytest.raises(ModelDisabled, match="colours version 1 is disabled: a run took more than 20 s"):
                    await process.index.find("local", "colours", None)
                # The others are served: the server is ready, and says what it does not serve.
                assert await process.reconciler.check() == "colours version 1 is disabled: a run took more than 20 s"
            # A change of something else does not enable it.
            shelf.publish("other")
            await first.follows(to={})
            assert first.runner.engine.is_disabled(key)
        async with start("colours") as restarted:  # type: ignore[attr-defined]
            await restarted.follows(to={})
            assert restarted.runner.engine.states()[0].loads == 0
            shelf.registry.activate("colours", 1)
            await restarted.follows(to={1: True})
            assert await restarted.reconciler.check() is None
            assert (await restarted.index.find("local", "colours", None)).key == key

    run(main)


def test_what_is_disabled_while_the_database_is_away_is_recorded_later(
    run: Callable[[Main], None], shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main(start: Start) -> None:
        key = shelf.publish()
        async with start("colours") as process:  # type: ignore[attr-defined]
            await process.follows(to={1: True})
            away = [True]
            disable = process.registry.disable

            def failing(*given: object) -> None:
                if away[0]:
                    raise Unavailable("the database is away")
                disable(*given)

            monkeypatch.setattr(process.registry, "disable", failing)
            await asyncio.to_thread(process.runner._disable, key, "time", "too long")
            with pytest.raises(ModelDisabled):
                await process.runner.load(key)
            shelf.publish("other")
            await asyncio.sleep(0.1)
            assert process.runner.engine.is_disabled(key)
            away[0] = False
            await async_eventually(lambda: shelf.registry.resolve("colours").disabled_reason == "too long")

    run(main)
