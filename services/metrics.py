"""What Prometheus sees. Labels are bounded: routes are templates, models are those of the registry."""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)

requests = Counter("ekiben_requests_total", "Requests answered.", ["method", "route", "status"])
request_seconds = Histogram(
    "ekiben_request_seconds", "From the first byte of a request to the last of its answer.", ["route"], buckets=_SECONDS
)
in_progress = Gauge("ekiben_requests_in_progress", "Requests being answered.", multiprocess_mode="livesum")
queue_seconds = Histogram("ekiben_queue_seconds", "Wait before a slot took the picture.", ["model"], buckets=_SECONDS)
inference_seconds = Histogram(
    "ekiben_inference_seconds", "Run of the network, whole batch.", ["model"], buckets=_SECONDS
)
refused = Counter("ekiben_refused_total", "Requests refused, by code of the refusal.", ["code"])
stored = Counter("ekiben_stored_predictions_total", "Predictions recorded.")
registry_cache = Counter(
    "ekiben_registry_lookups_total",
    "Look-ups of a model, answered by this process's copy (hit) or the database (miss).",
    ["outcome"],
)

job_items = Counter("ekiben_job_items_total", "Items of jobs that ended, by outcome.", ["operation", "outcome"])
jobs = Gauge(
    "ekiben_jobs", "Jobs that are not over, of all processes.", ["kind", "state"], multiprocess_mode="livemostrecent"
)
workers = Gauge("ekiben_workers", "Workers that live, on all machines.", multiprocess_mode="livemostrecent")


def render() -> tuple[bytes, str]:
    """The exposition text of all processes that share PROMETHEUS_MULTIPROC_DIR (BentoML sets it), else of this one."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not folder or not os.path.isdir(folder):
        return generate_latest(REGISTRY), CONTENT_TYPE_LATEST
    _drop_dead(Path(folder))
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry), CONTENT_TYPE_LATEST


def other_families(text: bytes, own: bytes) -> bytes:
    """The families of ``text`` (another process's exposition) that ``own`` does not have: a family must stand once."""
    mine = {line.split()[2] for line in own.splitlines() if line.startswith(b"# HELP ")}
    kept: list[bytes] = []
    keep = False
    for line in text.splitlines(keepends=True):
        if line.startswith(b"# HELP "):
            keep = line.split()[2] not in mine
        if keep:
            kept.append(line)
    return b"".join(kept)


def _drop_dead(folder: Path) -> None:
    # A killed process leaves its live gauges behind, and its queue would be counted for ever.
    for path in folder.glob("gauge_live*_*.db"):
        pid = path.stem.rsplit("_", 1)[-1]
        if pid.isdigit() and not Path("/proc", pid).exists():
            mark_process_dead(int(pid))  # type: ignore[no-untyped-call]
