"""Progress and time left of a training by a clock that the tests set, its events, and its TensorBoard curves."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training.discs import Said
from tests.waiting import eventually
from training import progress
from training.progress import ProgressReporter, ProgressTicker


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def said() -> Said:
    return Said()


def reporter(said: Said, folder: Path, clock: Clock, fits: int) -> ProgressReporter:
    return ProgressReporter(said, folder, fits=fits, clock=clock)


def test_before_the_first_fit_there_is_nothing_to_say(said: Said, clock: Clock, tmp_path: Path) -> None:
    assert reporter(said, tmp_path, clock, 1).state() is None


def test_one_fit(said: Said, clock: Clock, tmp_path: Path) -> None:
    """A quarter of the fit in 60 s: fitting is 96 % of the whole, so that 0.24 of 250 s are done."""
    report = reporter(said, tmp_path, clock, 1)
    report.begin_fit(0, elapsed_s=0.0, epochs=8)
    assert report.state() == (
        {"phase": "prepare", "fold": 0, "folds": 1, "epochs": 8, "time_left_s": None},
        0.0,
    )
    clock.now_s += 60
    report.update(share=0.25, phase="train", epoch=2)
    assert report.state() == (
        {"phase": "train", "fold": 0, "folds": 1, "epochs": 8, "epoch": 2, "time_left_s": 190.0},
        0.24,
    )
    clock.now_s += 10  # the estimate follows the clock: 70 s / 0.24 * 0.76
    report.update(loss=0.5)
    state = report.state()
    assert state is not None
    assert (state[0]["time_left_s"], state[0]["loss"], state[1]) == (221.7, 0.5, 0.24)
    clock.now_s = 1240.0
    report.end_fit()
    assert (report.progress, report.time_left_s()) == (0.96, 10.0)


def test_the_first_percent_is_no_basis(said: Said, clock: Clock, tmp_path: Path) -> None:
    report = reporter(said, tmp_path, clock, 1)
    report.begin_fit(0, elapsed_s=0.0)
    clock.now_s += 5
    report.update(share=0.01)
    assert report.time_left_s() is None
    report.update(share=0.0125)
    assert report.time_left_s() == pytest.approx(5 / 0.012 * 0.988, abs=0.05)


def test_several_fits_are_equal_parts(said: Said, clock: Clock, tmp_path: Path) -> None:
    """The first of three takes 100 s; the second one's first percent is estimated by it."""
    report = reporter(said, tmp_path, clock, 3)
    report.begin_fit(0, elapsed_s=0.0, epochs=8)
    clock.now_s += 100
    report.end_fit()
    assert report.progress == pytest.approx(0.96 / 3)
    # 100 s are 0.96 of a fit of 104.17 s, of which 4.17 s are left; and two more fits.
    assert report.time_left_s() == 212.5
    report.begin_fit(1, elapsed_s=0.0)
    assert report.state() == ({"phase": "prepare", "fold": 1, "folds": 3, "time_left_s": 200.0}, pytest.approx(1 / 3))
    clock.now_s += 30
    report.update(share=0.5)
    # 30 s are 0.48 of a fit of 62.5 s: 32.5 s are left, and one more fit.
    assert (report.time_left_s(), report.progress) == (95.0, pytest.approx(1.48 / 3))
    report.end_fit()
    report.begin_fit(2, elapsed_s=0.0)
    assert report.time_left_s() == 30.0  # as long as the latest one


def test_time_of_earlier_processes_counts(said: Said, clock: Clock, tmp_path: Path) -> None:
    report = reporter(said, tmp_path, clock, 2)
    report.begin_fit(0, elapsed_s=90.0)
    clock.now_s += 10
    report.update(share=0.5)
    assert report.time_left_s() == pytest.approx(100 / 0.48 * 0.52 + 100 / 0.48, abs=0.05)
    report.end_fit()
    report.begin_fit(1, elapsed_s=0.0)
    assert report.time_left_s() == 100.0


def test_progress_is_below_one_until_the_end(said: Said, clock: Clock, tmp_path: Path) -> None:
    report = reporter(said, tmp_path, clock, 1)
    report.begin_fit(1, elapsed_s=0.0)
    assert report.progress == 0.999


def epoch(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "fold": 0,
        "epoch": number,
        "train_loss": 1.0 / number,
        "validation_loss": None,
        "dice": 0.1 * number,
        "iou": 0.05 * number,
        "learning_rate": 0.001,
        "images_per_s": 12.5,
        "per_class": [{"class_name": "disc", "dice": 0.1 * number, "iou": None}],
        **changes,
    }


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    return {name: [(e.step, round(e.value, 4)) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_epochs_are_events_and_curves(said: Said, clock: Clock, tmp_path: Path) -> None:
    """What is not a number is no point of a curve."""
    report = reporter(said, tmp_path, clock, 1)
    report.plan({"split": 1})
    report.begin_fit(0, elapsed_s=0.0)
    for number in (1, 2):
        report.update(share=number / 4)
        report.epoch(epoch(number))
    report.preview({"file": "previews/1.png"})
    report.close()
    assert said.lines == [
        {"event": "plan", "data": {"split": 1}, "progress": 0.0},
        {"event": "epoch", "data": epoch(1), "progress": 0.24},
        {"event": "epoch", "data": epoch(2), "progress": 0.48},
        {"event": "preview", "data": {"file": "previews/1.png"}, "progress": 0.48},
        {"file": "previews/1.png"},
    ]
    assert curves(tmp_path) == {
        "train_loss": [(1, 1.0), (2, 0.5)],
        "dice": [(1, 0.1), (2, 0.2)],
        "iou": [(1, 0.05), (2, 0.1)],
        "learning_rate": [(1, 0.001), (2, 0.001)],
        "images_per_s": [(1, 12.5), (2, 12.5)],
        "dice_disc/0": [(1, 0.1), (2, 0.2)],
    }


def test_folds_have_curves_of_their_own(said: Said, clock: Clock, tmp_path: Path) -> None:
    report = reporter(said, tmp_path, clock, 2)
    for fold in (0, 1):
        report.begin_fit(fold, elapsed_s=0.0)
        report.epoch(epoch(1, fold=fold, dice=0.5 + fold))
    report.close()
    found = curves(tmp_path)
    assert (found["dice/fold0"], found["dice/fold1"]) == ([(1, 0.5)], [(1, 1.5)])
    assert {"dice_disc/0", "dice_disc/1"} <= set(found)


def test_curves_begin_with_what_earlier_processes_finished(said: Said, clock: Clock, tmp_path: Path) -> None:
    """Epoch 3 was told, and its process killed before it was in the checkpoint: it is trained, and drawn, once."""
    earlier = reporter(said, tmp_path, clock, 1)
    for number in (1, 2, 3):
        earlier.epoch(epoch(number))
    later = Said()
    report = reporter(later, tmp_path, clock, 1)
    report.resume([epoch(1), epoch(2)])
    report.epoch(epoch(3, dice=0.7))
    assert curves(tmp_path)["dice"] == [(1, 0.1), (2, 0.2), (3, 0.7)]  # on disk without being closed
    assert [event["epoch"] for event in later.events("epoch")] == [3]


def test_a_reporter_without_epochs_closes(said: Said, clock: Clock, tmp_path: Path) -> None:
    reporter(said, tmp_path, clock, 1).close()
    assert list(tmp_path.iterdir()) == []


def test_the_ticker_reports_while_it_is_open_and_only_what_there_is(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "TICK_S", 0.005)
    numbers = itertools.count()

    def state() -> tuple[dict[str, Any], float] | None:
        number = next(numbers)
        return None if number < 2 else ({"step": number}, number / 100)

    with ProgressTicker(said, state):
        eventually(lambda: len(said.events("step")) >= 3)
    seen = said.lines
    assert seen[:2] == [
        {"event": "step", "data": {"step": 2}, "progress": 0.02},
        {"event": "step", "data": {"step": 3}, "progress": 0.03},
    ]
    asked = next(numbers)
    assert (len(said.lines), next(numbers)) == (len(seen), asked + 1)
