"""The progress bar: what it says while a batch, a request and a training go on."""

from __future__ import annotations

import io
import pickle
from typing import Any

from rich.console import Console

from ekiben._client.decoding import read
from ekiben._client.progress_bar import RichBar
from ekiben._client.records import Job, JobEvent
from ekiben.client import EkibenError, JobFailed, TimedOut
from tests.ekiben.bodies import job


def shown(body: dict[str, Any], *events: tuple[str, dict[str, Any]]) -> list[str]:
    """The bar's line after each event, without the bar."""
    out = io.StringIO()
    console = Console(file=out, width=100, color_system=None)
    bar, lines = RichBar(read(Job, body), console), []
    for number, (kind, data) in enumerate(events):
        bar.show(JobEvent(number, kind, data))
        console.print(bar.progress.get_renderable())
        lines.append(
            " ".join(out.getvalue().split("\n")[-2].replace("━", "").replace("╸", "").replace("╺", "").split())
        )
    return lines


def test_a_batch() -> None:
    body = job("running", kind="batch", counts={"total": 40, "done": 10, "failed": 0, "running": 2})
    lines = shown(
        body,
        ("state", {"state": "running"}),
        ("progress", {"progress": 0.5, "total": 40, "done": 20, "failed": 3}),
        ("state", {"state": "succeeded", "total": 40, "done": 40, "failed": 3}),
    )
    assert "10/40" in lines[0] and lines[0].startswith("colours classify") and lines[0].endswith("running")
    assert "20/40" in lines[1] and lines[1].endswith("3 failed")
    assert "40/40" in lines[2] and lines[2].endswith("succeeded, 3 failed")


def test_one_image() -> None:
    lines = shown(job("running"), ("progress", {"progress": 0.25}), ("state", {"state": "succeeded"}))
    assert "25 %" in lines[0] and "100 %" in lines[1]


def test_a_training() -> None:
    body = job("running", kind="training", operation="train", parameters={"name": "cells"})
    lines = shown(
        body,
        ("plan", {"images": 3}),
        ("step", {"phase": "train", "epoch": 3, "epochs": 10, "loss": 0.4444}),
        ("epoch", {"epoch": 3, "epochs": 10, "dice": 0.91234}),
        ("epoch", {"epoch": 4, "epochs": 10, "dice": None}),
        ("preview", {"url": "/v1/artifacts/1"}),
    )
    assert lines[0].startswith("cells train 0 %")
    assert "20 %" in lines[1] and lines[1].endswith("epoch 3/10 loss 0.444")
    assert "30 %" in lines[2] and lines[2].endswith("epoch 3/10 Dice 0.912")
    assert "40 %" in lines[3] and lines[3].endswith("epoch 4/10")
    assert "40 %" in lines[4]


def test_errors_travel_between_processes() -> None:
    failed = JobFailed(read(Job, job("failed", error={"code": "bad_image", "message": "torn"})))
    for error in (
        failed,
        TimedOut("late", code="wait_timeout"),
        EkibenError("no", code="x", status=400, request_id="r"),
    ):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))
