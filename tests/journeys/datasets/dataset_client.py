"""Datasets and trainings as a caller asks for them, with small images whose right answer is known."""

from __future__ import annotations

import io
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.journeys.jobs.job_client import Event, accepted, eventually, finished, get, read_events
from tests.serving import Server

Pixels = NDArray[np.uint8]

SMALL: dict[str, Any] = {"width": 4, "depth": 3, "tile": 64, "learning_rate": 0.01, "batch_size": 4, "patience": 0}
"""Options of a network that learns discs in seconds."""

LONG: dict[str, Any] = {**SMALL, "epochs": 2000}
"""A training that somebody has to end."""


def disc(number: int, side: int = 64, *, lift: int = 70) -> tuple[Pixels, Pixels]:
    """Grey noise with a disc that is ``lift`` brighter: image uint8 [side, side, 3] and its mask of 0 and 255."""
    draws = np.random.default_rng(number)
    rows, columns = np.mgrid[:side, :side]
    y, x = draws.uniform(side * 0.3, side * 0.7, 2)
    inside = (rows - y) ** 2 + (columns - x) ** 2 <= draws.uniform(side / 8, side / 5) ** 2
    image = draws.normal(110, 12, (side, side)) + lift * inside
    grey = image.clip(0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, 2), (255 * inside).astype(np.uint8)


def png(pixels: Pixels) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def zipped(entries: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return out.getvalue()


def discs(numbers: Sequence[int], side: int = 64) -> bytes:
    """A ZIP of images/ and masks/."""
    entries = {}
    for number in numbers:
        image, mask = disc(number, side)
        entries[f"images/{number:03d}.png"], entries[f"masks/{number:03d}.png"] = png(image), png(mask)
    return zipped(entries)


def bring(client: httpx.Client, data: bytes, name: str = "discs", **more: Any) -> dict[str, str]:
    """``dataset_id`` and ``job_id`` of an upload."""
    answer = client.post("/v1/datasets", data={"name": name, **more}, files={"file": ("discs.zip", data)})
    return brought(answer)


def brought(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 202, answer.text
    body: dict[str, str] = answer.json()
    assert set(body) == {"dataset_id", "job_id"}
    assert answer.headers["location"] == f"/v1/datasets/{body['dataset_id']}"
    return body


def ready(client: httpx.Client, data: bytes, seconds: float = 120.0, **more: Any) -> str:
    """The id of a dataset, once it is imported."""
    body = bring(client, data, **more)
    finished(client, body["job_id"], seconds)
    return body["dataset_id"]


def train(client: httpx.Client, dataset_id: str, name: str, **options: Any) -> str:
    """The id of a training."""
    return accepted(client.post("/v1/trainings", json={"dataset_id": dataset_id, "name": name, **options}))


def segmented(client: httpx.Client, model: str, image: Pixels, **params: Any) -> Pixels:
    """uint8 [height, width]: class indices that /v1/segment answers."""
    answer = client.post(
        "/v1/segment",
        params={"model": model, "store": "false", **params},
        content=png(image),
        headers={"accept": "image/png"},
    )
    assert answer.status_code == 200, answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content)))


def dice(found: NDArray[Any], truth: NDArray[Any]) -> float:
    a, b = found > 0, truth > 0
    return float(2 * (a & b).sum() / max(1, a.sum() + b.sum()))


def as_openapi_says(openapi: dict[str, Any], path: str, body: Any, method: str = "get", status: int = 200) -> None:
    """The body is what ``/openapi.json`` promises."""
    stated = openapi["paths"][path][method]["responses"][str(status)]["content"]["application/json"]["schema"]
    jsonschema.validate(body, {**stated, "components": openapi["components"]})


def training_pids(server: Server) -> list[int]:
    """Processes of this server that train."""
    return [pid for pid in server.pids() if trains(pid)]


def trains(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return b"training" in words and state != "Z"


class Heard:
    """The events of a job, each with the moment in which it came."""

    def __init__(self) -> None:
        self.events: list[tuple[float, Event]] = []

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event.data for _, event in self.events if event.kind == kind]

    @property
    def silence_s(self) -> float:
        """The longest time between two events."""
        moments = [moment for moment, _ in self.events]
        return max((b - a for a, b in pairwise(moments)), default=0.0)


@contextmanager
def listening(client: httpx.Client, job_id: str) -> Iterator[Heard]:
    """Hear what happens to a job, live, until the block ends; wait there for the job's end."""
    heard = Heard()

    def hear() -> None:
        address = f"{client.base_url}".rstrip("/") + f"/v1/jobs/{job_id}/events"
        with httpx.stream("GET", address, timeout=600) as answer:
            for event in read_events(answer.iter_lines()):
                heard.events.append((time.monotonic(), event))

    thread = threading.Thread(target=hear, daemon=True)
    thread.start()
    yield heard
    thread.join(30)


def until_epoch(client: httpx.Client, job_id: str, epoch: int, seconds: float = 180.0) -> None:
    def there() -> bool:
        body = get(client, f"/v1/trainings/{job_id}")
        assert body["job"]["state"] in ("queued", "running"), body["job"]
        return any(point["epoch"] >= epoch for point in body["epochs"])

    eventually(there, f"epoch {epoch} of training {job_id}", seconds, 0.1)
