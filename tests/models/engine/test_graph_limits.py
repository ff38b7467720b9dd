"""Limits of users' graphs: where the numbers come from, and what becomes of a graph that exceeds them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from ekiben.errors import BadModelFile, ModelDisabled, Unavailable
from models.artifact import Trial, read_manifest
from models.engine import graph_limits
from models.engine.graph_limits import (
    LEAST_S,
    LOAD_BYTES_PER_S,
    LOAD_S,
    MOST_OVERDUE_S,
    TIMES,
    GraphGuard,
    GraphLimits,
)
from models.engine.loader import load_artifact
from models.engine.run_watch import RunWatch
from models.engine.session_options import SessionOptions
from models.model_key import ModelKey
from tests import toy_hostile, toy_models

KEY = ModelKey("local", "hostile", 1)
CPU = SessionOptions(device="cpu", threads=1)
SIDE = toy_hostile.SIDE


class Told:
    def __init__(self) -> None:
        self.limits_exceeded: list[tuple[ModelKey, str, str]] = []
        self.limits = GraphLimits(
            RunWatch(look_s=0.02), lambda *told: self.limits_exceeded.append(told), memory_bytes=2_000_000_000
        )


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    monkeypatch.setattr(graph_limits, "LEAST_S", 1.0)
    monkeypatch.setattr(graph_limits, "LOAD_S", 1.0)  # bounds a first run too, of what was never tried
    return Told()


def _pixels(level: float, count: int = 1) -> np.ndarray:
    return np.full((count, 3, SIDE, SIDE), level, np.float32)


def test_a_graph_that_does_not_end_at_loading_is_disabled(tmp_path: Path, told: Told) -> None:
    toy_hostile.artifact(tmp_path / "a", toy_hostile.looping(tmp_path / "l.onnx", above=0.0))
    with pytest.raises(ModelDisabled, match="hostile version 1 is disabled: a run on 1 image took more than 1 s"):
        load_artifact(KEY, tmp_path / "a", CPU, told.limits)
    assert [(key, limit) for key, limit, _ in told.limits_exceeded] == [(KEY, "time")]


def test_a_graph_that_does_not_end_on_some_image_is_not_run_again(tmp_path: Path, told: Told) -> None:
    toy_hostile.artifact(tmp_path / "a", toy_hostile.looping(tmp_path / "l.onnx", above=0.9))
    loaded = load_artifact(KEY, tmp_path / "a", CPU, told.limits)
    assert loaded.run(_pixels(0.5)).argmax() == 2
    with pytest.raises(ModelDisabled, match=r"took more than 1 s; .* s were expected"):
        loaded.run(_pixels(1.0))
    with pytest.raises(ModelDisabled):
        loaded.run(_pixels(0.5))
    assert len(told.limits_exceeded) == 1


def test_memory_that_depends_on_the_pixels_has_a_limit(tmp_path: Path, told: Told) -> None:
    """The arena belongs to the process: the first test that needed it chose its size, 8 GB at most."""
    toy_hostile.artifact(tmp_path / "a", toy_hostile.allocating(tmp_path / "a.onnx", 64 << 30, above=0.6))
    loaded = load_artifact(KEY, tmp_path / "a", CPU, told.limits)
    loaded.run(_pixels(0.5))
    with pytest.raises(Unavailable, match="needs more memory for these images") as refused:
        loaded.run(_pixels(1.0, 2))  # two images may need more than one
    assert refused.value.code == "memory_budget" and not told.limits_exceeded
    with pytest.raises(ModelDisabled, match="a run on one image needed more than 2000 MB"):
        loaded.run(_pixels(1.0))
    assert [limit for _, limit, _ in told.limits_exceeded] == ["memory"]
    other = load_artifact(KEY, toy_models_folder(tmp_path), CPU, told.limits)
    assert other.run(_pixels(0.0)).argmax() == 0  # the arena serves the others
    loaded.close()
    other.close()


def toy_models_folder(tmp_path: Path) -> Path:
    toy_models.classifier(tmp_path / "toy")
    return tmp_path / "toy"


class Full(Exception):
    """What ONNX Runtime raises when the arena is full."""

    def __str__(self) -> str:
        return "Failed to allocate memory for requested buffer of size 8"


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Told, GraphGuard, GraphGuard, list[str]]:
    """Two versions, both opened and then run at loading, and what was done to the arena."""
    told, done = Told(), []
    monkeypatch.setattr(graph_limits, "shrink_arena", lambda: done.append("shrunk"))
    manifest = toy_models.classifier(tmp_path)
    guards = [told.limits.guard(ModelKey("local", name, 1), manifest) for name in ("a", "b")]
    for guard in guards:
        guard.open(lambda: None, lambda: None)
    for guard in guards:
        guard.note(0.01, 3 * SIDE * SIDE)
    return told, guards[0], guards[1], done


def _full(_: object) -> None:
    raise Full


def test_a_run_that_finds_the_arena_full_is_repeated_when_it_was_shrunk(two: Any) -> None:
    told, guard, _, done = two

    def attempt(_: object) -> str:
        done.append("run")
        if done == ["run"]:
            raise Full
        return "an answer"

    assert guard.run(_pixels(0.5), attempt) == "an answer"
    assert done == ["run", "shrunk", "run"] and not told.limits_exceeded
    done.clear()
    assert guard.open(lambda: attempt(None), lambda: None) == "an answer"
    assert done == ["run", "shrunk", "run"]


def test_a_run_that_finds_it_full_twice_disables_its_version(two: Any) -> None:
    told, guard, _, _ = two
    with pytest.raises(ModelDisabled, match="needed more than 2000 MB"):
        guard.run(_pixels(0.5), _full)
    assert [limit for _, limit, _ in told.limits_exceeded] == ["memory"]


def test_it_does_not_where_another_graph_began_meanwhile(two: Any) -> None:
    told, guard, other, done = two

    def beside(_: object) -> None:
        begun, end = threading.Event(), threading.Event()

        def hog(_: object) -> None:
            begun.set()
            end.wait(20)

        thread = threading.Thread(target=lambda: other.run(_pixels(0.5), hog))
        thread.start()
        assert begun.wait(20)
        end.set()
        thread.join(20)  # it has begun and ended while this one ran
        raise Full

    with pytest.raises(Unavailable) as refused:
        guard.run(_pixels(0.5), beside)
    assert refused.value.code == "memory_budget" and not told.limits_exceeded and done == ["shrunk"]


def test_it_does_not_where_another_was_opened_since_its_first_run(two: Any) -> None:
    told, guard, other, _ = two
    other.open(lambda: None, lambda: None)
    with pytest.raises(Unavailable) as refused:
        guard.run(_pixels(0.5), _full)
    assert refused.value.code == "memory_budget" and not told.limits_exceeded


def test_weights_that_do_not_fit_the_arena_are_no_bad_file(two: Any) -> None:
    told, guard, _, done = two
    with pytest.raises(Unavailable, match="needs more memory for its weights than the 2000 MB") as refused:
        guard.open(lambda: _full(None), lambda: None)
    assert refused.value.code == "memory_budget" and not told.limits_exceeded and done == ["shrunk"]


def test_limits_come_from_what_was_measured(tmp_path: Path) -> None:
    manifest = toy_models.classifier(tmp_path)
    trial = Trial(seconds=2.0, memory_bytes=0, height=32, width=32)
    told = Told()
    guard = told.limits.guard(KEY, manifest.model_copy(update={"trial": trial}))
    assert guard is not None
    one = 3 * 32 * 32
    assert guard.limit_s(one) == TIMES * 2.0
    assert guard.limit_s(4 * one) == 4 * TIMES * 2.0  # more images, or a larger one
    guard.note(3.0, one)  # this machine is slower than the one that imported it
    assert guard.limit_s(one) == TIMES * 3.0
    guard.note(0.001, one)
    assert guard.limit_s(one) == TIMES * 3.0
    untried = told.limits.guard(KEY, manifest)
    assert untried is not None
    opening_s = LOAD_S + manifest.graph_bytes / LOAD_BYTES_PER_S
    assert untried.limit_s(one) == opening_s  # as long as opening, since nothing was measured
    untried.note(0.001, one)
    assert untried.limit_s(one) == LEAST_S


def test_a_limit_ends_where_nobody_waits_any_more(tmp_path: Path) -> None:
    manifest = toy_models.classifier(tmp_path)
    trial = Trial(seconds=15.0, memory_bytes=0, height=32, width=32)
    limits = GraphLimits(RunWatch(), lambda *_: None, memory_bytes=0, longest_s=300.0)
    guard = limits.guard(KEY, manifest.model_copy(update={"trial": trial}))
    assert guard is not None
    one = 3 * 32 * 32
    assert guard.limit_s(one) == guard.limit_s(300 * one) == 300.0
    assert guard.overdue_s(one) == guard.overdue_s(300 * one) == MOST_OVERDUE_S
    hasty = GraphLimits(RunWatch(), lambda *_: None, memory_bytes=0, longest_s=1.0)
    impatient = hasty.guard(KEY, manifest.model_copy(update={"trial": trial}))
    assert impatient is not None and impatient.limit_s(one) == LEAST_S


def test_a_first_run_that_was_never_tried_may_take_as_long_as_opening(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import of a version before limits existed: its first run allocates, and says what the second may take."""
    monkeypatch.setattr(graph_limits, "LOAD_S", 60.0)
    limits: list[float] = []
    watching = told.limits.watch.watching

    def watched(limit_s: float, *more: Any) -> Any:
        limits.append(limit_s)
        return watching(limit_s, *more)

    monkeypatch.setattr(told.limits.watch, "watching", watched)
    manifest = read_manifest(toy_models_folder(tmp_path))
    assert manifest.trial is None
    loaded = load_artifact(KEY, tmp_path / "toy", CPU, told.limits)
    opening, first, second = limits[:3]
    assert first == opening >= 60.0 and second < 60.0
    loaded.close()


@pytest.mark.parametrize("kind", ["published", "trained", "checkpoint", "random"])
def test_what_ekiben_exports_has_no_limit(tmp_path: Path, kind: str) -> None:
    manifest = toy_models.classifier(tmp_path)
    weights = manifest.weights.model_copy(update={"kind": kind})
    assert Told().limits.guard(KEY, manifest.model_copy(update={"weights": weights})) is None


def test_a_stop_breaks_runs_off_and_disables_nothing(tmp_path: Path, told: Told) -> None:
    loaded = load_artifact(KEY, toy_models_folder(tmp_path), CPU, told.limits)
    told.limits.watch.close()
    with pytest.raises(Unavailable, match="the server is stopping"):
        loaded.run(_pixels(0.5))
    assert not told.limits_exceeded


def test_a_graph_that_fails_otherwise_is_as_before(tmp_path: Path, told: Told) -> None:
    folder = toy_models_folder(tmp_path)
    loaded = load_artifact(KEY, folder, CPU, told.limits)
    with pytest.raises(Exception, match="Got invalid dimensions") as raised:
        loaded.run(np.zeros((1, 3, 5, 5), np.float32))
    assert not isinstance(raised.value, Unavailable) and not told.limits_exceeded
    (folder / "model.onnx").write_bytes(b"broken")
    with pytest.raises(BadModelFile, match="ONNX Runtime cannot load"):
        load_artifact(KEY, folder, CPU, told.limits)


def test_the_graph_that_shrinks_the_arena_is_an_identity() -> None:
    session = ort.InferenceSession(graph_limits._IDENTITY, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.array([3], np.float32)})[0].tolist() == [3.0]
