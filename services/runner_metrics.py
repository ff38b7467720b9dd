"""What Prometheus sees of a runner: batches, queues and the memory of models. Only its own process defines them."""

from __future__ import annotations

from prometheus_client import Gauge, Histogram

_SIZES = (1, 2, 4, 8, 16, 32, 64)

batch_size = Histogram("ekiben_batch_size", "Pictures per run.", ["model"], buckets=_SIZES)
queue_depth = Gauge("ekiben_queue_depth", "Pictures waiting.", ["model"], multiprocess_mode="livesum")
queue_bytes = Gauge("ekiben_queue_bytes", "Bytes of the pictures waiting.", multiprocess_mode="livesum")
model_memory_bytes = Gauge(
    "ekiben_model_memory_bytes", "Memory of a loaded model; 0 once unloaded.", ["model"], multiprocess_mode="livesum"
)
model_budget_bytes = Gauge(
    "ekiben_model_memory_budget_bytes", "Memory budget of loaded models.", multiprocess_mode="livesum"
)
