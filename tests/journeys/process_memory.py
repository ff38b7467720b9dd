"""What another process holds in memory, and images to fill it with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
from PIL import Image

from tests.journeys.sam.comparison import jpeg

T = TypeVar("T")

MB = 1e6


def pss_mb(pid: int) -> float:
    """Proportional set size: shared pages are counted by their share."""
    return _field(Path(f"/proc/{pid}/smaps_rollup"), "Pss")


def rss_mb(pid: int) -> float:
    return _field(Path(f"/proc/{pid}/status"), "VmRSS")


def with_peak(pid: int, call: Callable[[], T]) -> tuple[T, float]:
    """What ``call()`` gives back, and the process's resident memory at the highest point of it."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
    except OSError:
        pytest.skip("needs /proc/PID/clear_refs to measure a peak")
    answer = call()
    return answer, _field(Path(f"/proc/{pid}/status"), "VmHWM")


def _field(file: Path, name: str) -> float:
    for line in file.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / MB
    raise AssertionError(f"no {name} in {file}")


def metrics(client: httpx.Client) -> dict[str, float]:
    """Every series of /metrics with its value."""
    lines = [line for line in client.get("/metrics").text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def many_images(folder: Path, count: int) -> list[bytes]:
    """JPEGs of 512 x 384, each another part of a photo in ``folder``."""
    photos = []
    for file in sorted(folder.glob("*.jpg")):
        with Image.open(file) as opened:
            photos.append(opened.convert("RGB"))
    images = []
    for number in range(count):
        photo = photos[number % len(photos)]
        step = number // len(photos)
        left, top = 11 * step % (photo.width - 512), 7 * step % (photo.height - 384)
        images.append(jpeg(photo.crop((left, top, left + 512, top + 384))))
    return images
