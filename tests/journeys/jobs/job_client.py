"""Asking for jobs as a caller does: submit, wait, read what came out and what happened."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from tests.pace import pace
from tests.serving import TOPOLOGIES

T = TypeVar("T")

ASYNC = {"Prefer": "respond-async"}
OVER = ("succeeded", "failed", "cancelled")
SECRET = "journeys-secret"
EVERY_TOPOLOGY = pytest.mark.parametrize("sam_server", list(TOPOLOGIES), indirect=True)

LONG = {
    "model": "sam_toy",
    "points_per_side": "100",
    "pred_iou_thresh": "0",
    "stability_score_thresh": "1",
    "store": "false",
}
"""Automatic masks of ten thousand points: all are looked at in full size, next to none is left. Some twenty seconds of
an image of 900 x 700."""

Images = Iterable[tuple[str, bytes]]


def submit(client: httpx.Client, path: str, *, headers: dict[str, str] | None = None, **more: Any) -> str:
    """The id of the job that the request became."""
    answer = client.post(path, headers={**ASYNC, **(headers or {})}, **more)
    return accepted(answer)


def batch(
    client: httpx.Client, images: Images, operation: str = "classify", model: str = "colours", **fields: Any
) -> str:
    """The id of a batch of files. ``fields``: of the form, but those that are the operation's own parameters."""
    own = {name: fields.pop(name) for name in list(fields) if name in ("priority", "timeout_s", "webhook", "store")}
    parameters = json.dumps({"model": model, **fields})
    files = [("files", image) for image in images]
    return accepted(
        client.post("/v1/batches", data={"operation": operation, "parameters": parameters, **own}, files=files)
    )


def accepted(answer: httpx.Response) -> str:
    """The job's id from a 202."""
    assert answer.status_code == 202, answer.text
    body: dict[str, str] = answer.json()
    assert set(body) == {"job_id"}
    assert answer.headers["location"] == f"/v1/jobs/{body['job_id']}"
    return body["job_id"]


def get(client: httpx.Client, path: str, status: int = 200, **more: Any) -> dict[str, Any]:
    answer = client.get(path, **more)
    assert answer.status_code == status, answer.text
    body: dict[str, Any] = answer.json()
    return body


def refusal(answer: httpx.Response, status: int) -> tuple[str, str]:
    """Code and message."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    return error["code"], error["message"]


def eventually(look: Callable[[], T | None], what: str, seconds: float = 30.0, every_s: float = 0.05) -> T:
    """The first of what ``look`` gives that is true, within ``seconds`` of a machine that is as fast as most."""
    seconds *= pace()
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(every_s)
    return found


def finished(
    client: httpx.Client, job_id: str, seconds: float = 30.0, state: str | None = "succeeded"
) -> dict[str, Any]:
    """The job once it is over, in ``state`` unless that is None."""

    def over() -> bool:
        return get(client, f"/v1/jobs/{job_id}/status")["state"] in OVER

    eventually(over, f"job {job_id} is over", seconds)
    job = get(client, f"/v1/jobs/{job_id}")
    assert state in (None, job["state"]), job
    return job


def running(client: httpx.Client, job_id: str, seconds: float = 30.0) -> None:
    """Wait until a worker has claimed an item of the job."""
    eventually(
        lambda: get(client, f"/v1/jobs/{job_id}")["counts"]["running"], f"an item of job {job_id} is claimed", seconds
    )


def all_items(client: httpx.Client, job_id: str, **params: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        page = len(found) // 200 + 1
        body = get(client, f"/v1/jobs/{job_id}/items", params={"limit": 200, "page": page, **params})
        found += body["items"]
        if len(found) >= body["total"]:
            return found


@dataclass(frozen=True)
class Event:
    """One server-sent event."""

    number: int
    kind: str
    data: dict[str, Any]


def read_events(lines: Iterable[str]) -> Iterator[Event]:
    """Events out of the lines of a stream, by the rules of the HTML standard (9.2.6)."""
    fields: dict[str, list[str]] = {}
    for line in lines:
        if not line:
            if "data" in fields:
                yield Event(int(fields["id"][-1]), fields["event"][-1], json.loads("\n".join(fields["data"])))
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            fields.setdefault(name, []).append(value.removeprefix(" "))


def events(client: httpx.Client, job_id: str, after: int | None = None) -> list[Event]:
    """All events, to the end of the stream."""
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as answer:
        if answer.status_code == 204:
            return []
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        return list(read_events(answer.iter_lines()))


def blobs(home: Path) -> set[str]:
    """Keys of the images, and of the files that answers made, in the store of a home."""
    folder = home / "blobs"
    files = (path for area in ("images", "artifacts") for path in (folder / area).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix() for path in files}


def plain(answer: Any) -> Any:
    """An answer without what differs from one time to the next: ids, addresses, times, whether the cache was used."""
    if isinstance(answer, dict):
        kept = {
            name: plain(value) for name, value in answer.items() if name not in ("id", "url", "timing", "embedding")
        }
        if isinstance(kept.get("artifacts"), dict):
            kept["artifacts"] = sorted(kept["artifacts"])
        return kept
    return [plain(one) for one in answer] if isinstance(answer, list) else answer
