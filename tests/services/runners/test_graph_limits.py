"""A user's graph that does not end holds up nobody but those who asked for it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ekiben.errors import ModelDisabled, Unavailable
from ekiben.settings import Settings
from models.engine import graph_limits
from models.inference_requests import InferenceRequest
from models.model_key import ModelKey
from services import metrics
from services.runners.interface import TimedAnswer
from services.runners.local import LocalRunner
from tests import toy_hostile, toy_models
from tests.waiting import async_eventually

AT_LOADING, ON_WHITE, COLOURS, AREAS = (
    ModelKey("local", name, 1) for name in ("at_loading", "on_white", "colours", "areas")
)
WHITE, BLACK = (toy_models.encoded(toy_models.solid((level,) * 3)) for level in (255, 0))


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts")
    for key, above in ((AT_LOADING, 0.0), (ON_WHITE, 0.9)):
        file = toy_hostile.looping(folder / f"{key.name}.onnx", above=above)
        toy_hostile.artifact(folder / key.name, file)
    toy_models.classifier(folder / COLOURS.name)
    toy_models.segmenter(folder / AREAS.name)
    return folder


@pytest.fixture
def run(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[LocalRunner], Awaitable[None]]], None]:
    """Runs a coroutine with a runner of one thread: whatever waits for the graph waits for all of it."""
    monkeypatch.setattr(graph_limits, "LEAST_S", 3.0)
    monkeypatch.setattr(graph_limits, "LOAD_S", 3.0)  # bounds a first run too, of what was never tried
    monkeypatch.setattr(graph_limits, "OVERDUE_S", 0.2)

    async def started(main: Callable[[LocalRunner], Awaitable[None]]) -> None:
        runner = LocalRunner(Settings(home=artifacts, threads=1, device="cpu"), lambda key: artifacts / key.name)
        try:
            await main(runner)
        finally:
            await runner.close()

    return lambda main: asyncio.run(started(main))


async def _ask(runner: LocalRunner, key: ModelKey, image: bytes = BLACK) -> TimedAnswer:
    return await runner.infer(key, InferenceRequest(image, top_k=1), time.monotonic() + 120)


def test_other_models_load_while_one_hangs(run: Callable[..., None]) -> None:
    async def main(runner: LocalRunner) -> None:
        disabled: list[ModelKey] = []
        runner.on_disabled = lambda key, _: disabled.append(key)
        # More than there ever were threads that load.
        hanging = [asyncio.create_task(_ask(runner, AT_LOADING)) for _ in range(12)]
        await asyncio.sleep(0.1)
        for key in (COLOURS, AREAS):
            await _ask(runner, key)
        assert not any(task.done() for task in hanging)  # they were answered before its limit
        answers = await asyncio.gather(*hanging, return_exceptions=True)
        assert {type(answer) for answer in answers} == {ModelDisabled}
        assert disabled == [AT_LOADING]
        states = {state.key: state for state in await runner.states()}
        assert states[AT_LOADING].state == "failed" and "took more than 3 s" in states[AT_LOADING].reason
        with pytest.raises(ModelDisabled):
            await runner.load(AT_LOADING, pin=True)

    run(main)


def test_other_models_answer_while_a_run_hangs(run: Callable[..., None]) -> None:
    async def main(runner: LocalRunner) -> None:
        await _ask(runner, COLOURS)
        await _ask(runner, ON_WHITE)
        before = _counted()
        hanging = [asyncio.create_task(_ask(runner, ON_WHITE, WHITE)) for _ in range(4)]
        await asyncio.sleep(0.1)
        for _ in range(3):
            await _ask(runner, COLOURS)
        assert not any(task.done() for task in hanging)
        answers = await asyncio.gather(*hanging, return_exceptions=True)
        assert {type(answer) for answer in answers} == {ModelDisabled}
        with pytest.raises(ModelDisabled, match="on_white version 1 is disabled: a run on 1 image took more than 3 s"):
            await _ask(runner, ON_WHITE)
        assert _counted() == before + 1
        await _ask(runner, COLOURS)
        await runner.enable(ON_WHITE)
        await _ask(runner, ON_WHITE)

    run(main)


def test_who_gives_up_on_a_load_that_hangs_leaves_no_thread(run: Callable[..., None]) -> None:
    async def main(runner: LocalRunner) -> None:
        begun, end = threading.Event(), threading.Event()

        def hang(_: ModelKey) -> object:
            begun.set()
            end.wait(60)
            raise Unavailable("it never opened")

        runner.engine._open = hang  # type: ignore[assignment]
        before = threading.active_count()
        for _ in range(20):
            with pytest.raises(Unavailable, match="is still being loaded"):
                await runner.infer(AREAS, InferenceRequest(BLACK, top_k=1), time.monotonic() + 0.02)
        assert begun.wait(20)
        assert threading.active_count() <= before + 3
        end.set()
        await async_eventually(lambda: threading.active_count() <= before + 1)

    run(main)


def test_a_version_that_is_disabled_keeps_nobody_who_waits_behind_its_run(run: Callable[..., None]) -> None:
    async def main(runner: LocalRunner) -> None:
        await _ask(runner, ON_WHITE)
        loaded = runner.engine.lease(ON_WHITE)
        entered, end = threading.Event(), threading.Event()

        def hang(*_: object) -> None:  # as a node that does not end, which nothing stops
            entered.set()
            end.wait(60)

        loaded.session.run = hang  # type: ignore[attr-defined]
        hanging = asyncio.create_task(_ask(runner, ON_WHITE))
        await asyncio.to_thread(entered.wait, 20)
        waiting = [asyncio.create_task(_ask(runner, ON_WHITE)) for _ in range(4)]
        await async_eventually(lambda: runner.batcher.depth(ON_WHITE) == 4)
        await asyncio.to_thread(runner.disable, ON_WHITE, "another process says so")
        answers = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 20)
        assert {type(answer) for answer in answers} == {ModelDisabled}
        assert not end.is_set() and runner.batcher.waiting_bytes == 0
        assert loaded.users_left == 2  # of the run that hangs, and of this test
        runner.engine.release(loaded)
        end.set()
        await asyncio.gather(hanging, return_exceptions=True)

    run(main)


def test_a_stop_does_not_wait_for_it(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_limits, "LEAST_S", 600.0)

    async def main(runner: LocalRunner) -> None:
        await _ask(runner, ON_WHITE)
        tasks = [asyncio.create_task(_ask(runner, key, WHITE)) for key in (ON_WHITE, AT_LOADING)]
        await asyncio.sleep(0.5)
        await asyncio.wait_for(runner.close(), 60)
        answers = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
        assert {getattr(answer, "code", None) for answer in answers} == {"stopping"}

    run(main)


def _counted() -> float:
    return float(metrics.models_disabled.labels(ON_WHITE.name, "1", "time")._value.get())
