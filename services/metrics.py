"""Prometheus metrics of every process. Labels are bounded: routes are templates, models are those of the registry."""

from __future__ import annotations

import os
import time
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
from prometheus_client.registry import Collector

from models.results import Timing
from services import metric_files

metric_files.install()

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)

requests = Counter("ekiben_requests_total", "Requests answered.", ["method", "route", "status"])
request_seconds = Histogram(
    "ekiben_request_seconds", "From the first byte of a request to the last of its answer.", ["route"], buckets=_SECONDS
)
in_progress = Gauge("ekiben_requests_in_progress", "Requests being answered.", multiprocess_mode="livesum")
queue_seconds = Histogram(
    "ekiben_queue_seconds", "Wait of an image until a worker thread took it.", ["model"], buckets=_SECONDS
)
inference_seconds = Histogram(
    "ekiben_inference_seconds", "Run of the network, whole batch.", ["model"], buckets=_SECONDS
)
refused = Counter("ekiben_refused_total", "Requests refused, by code of the refusal.", ["code"])
stored = Counter("ekiben_stored_predictions_total", "Predictions recorded.")
connections_closed = Counter(
    "ekiben_connections_closed_total", "HTTP connections that the server closed early, by reason.", ["reason"]
)
loop_blocked = Counter("ekiben_event_loop_blocked_total", "Callbacks of an event loop that took more than 250 ms.")
loop_blocked_seconds = Counter("ekiben_event_loop_blocked_seconds_total", "The seconds that these took.")
registry_cache = Counter(
    "ekiben_registry_lookups_total",
    "Look-ups of a model, served by this process's copy (hit) or the database (miss).",
    ["outcome"],
)

models_disabled = Counter(
    "ekiben_models_disabled_total",
    "Versions that this process disabled, by the limit that a run has exceeded: time or memory.",
    ["model", "version", "limit"],
)

model_requests = Counter(
    "ekiben_model_requests_total",
    "Images that a model was asked to process, over any protocol.",
    ["model", "version", "outcome"],
)
model_seconds = Counter(
    "ekiben_model_seconds_total",
    "Seconds of requests that succeeded, by phase: all; queue, prepare, run, finish. Phase failed: of failed requests.",
    ["model", "version", "phase"],
)
model_runs = Counter("ekiben_model_runs_total", "Runs of the network; a shared run counts once.", ["model", "version"])
model_last = Gauge(
    "ekiben_model_last_answer_timestamp_seconds",
    "When a model last answered.",
    ["model", "version"],
    multiprocess_mode="max",
)

PHASES = ("all", "queue", "prepare", "run", "finish")

job_items = Counter("ekiben_job_items_total", "Items of jobs that ended, by outcome.", ["operation", "outcome"])
jobs = Gauge(
    "ekiben_jobs", "Jobs that are not over, of all processes.", ["kind", "state"], multiprocess_mode="livemostrecent"
)
disk_free_bytes = Gauge(
    "ekiben_disk_free_bytes",
    "Free space of the disk of the home, of the database (SQLite) and of the store (a folder).",
    ["of"],
    multiprocess_mode="livemostrecent",
)
workers = Gauge("ekiben_workers", "Workers that live, on all machines.", multiprocess_mode="livemostrecent")


def model_served(name: str, version: int, seconds: float, timing: Timing, share: float) -> None:
    """Count an image that a model has processed. ``share``: its part of the run of the network, 1 / batch size."""
    spent = (seconds, timing.queue_ms / 1e3, timing.prepare_ms / 1e3, timing.inference_ms / 1e3, timing.finish_ms / 1e3)
    labels = name, str(version)
    for phase, each in zip(PHASES, spent, strict=True):
        model_seconds.labels(*labels, phase).inc(max(0.0, each))
    model_requests.labels(*labels, "succeeded").inc()
    model_runs.labels(*labels).inc(share)
    model_last.labels(*labels).set(time.time())


def model_failed(name: str, version: int, seconds: float) -> None:
    """Count an image whose request ended in an error, after ``seconds``."""
    model_seconds.labels(name, str(version), "failed").inc(seconds)
    model_requests.labels(name, str(version), "failed").inc()


def model_totals() -> dict[tuple[str, str], dict[str, float]]:
    """By model and version: requests ``succeeded`` and ``failed``, seconds by phase (``failed_seconds`` too), ``runs``,
    and ``last``, the Unix time in seconds.

    Of all processes that share the metrics, since the server started. Reads files: blocks.
    """
    totals: dict[tuple[str, str], dict[str, float]] = {}
    for family in _collector().collect():
        if not family.name.startswith("ekiben_model_"):
            continue
        for sample in family.samples:
            key = sample.labels.get("model", ""), sample.labels.get("version", "")
            if sample.name == "ekiben_model_requests_total":
                totals.setdefault(key, {})[sample.labels["outcome"]] = sample.value
            elif sample.name == "ekiben_model_seconds_total":
                phase = sample.labels["phase"]
                totals.setdefault(key, {})["failed_seconds" if phase == "failed" else phase] = sample.value
            elif sample.name == "ekiben_model_runs_total":
                totals.setdefault(key, {})["runs"] = sample.value
            elif sample.name == "ekiben_model_last_answer_timestamp_seconds":
                totals.setdefault(key, {})["last"] = sample.value
    return totals


def _collector() -> Collector:
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not folder or not os.path.isdir(folder):
        return REGISTRY
    return MultiProcessCollector(CollectorRegistry())  # type: ignore[no-untyped-call]


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
    """The families of ``text`` (another process's exposition) that ``own`` lacks: a family may occur only once."""
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
    # A killed process leaves its live gauges behind; without this its queue would be counted for ever.
    for path in folder.glob("gauge_live*_*.db"):
        pid = path.stem.rsplit("_", 1)[-1]
        if pid.isdigit() and not Path("/proc", pid).exists():
            mark_process_dead(int(pid))  # type: ignore[no-untyped-call]
