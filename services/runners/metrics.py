"""Prometheus metrics of a runner: batches, queues and memory of models. To be imported in its process only."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from services import metric_files

metric_files.install()

_SIZES = (1, 2, 4, 8, 16, 32, 64)

batch_size = Histogram("ekiben_batch_size", "Images per run.", ["model"], buckets=_SIZES)
queue_depth = Gauge("ekiben_queue_depth", "Images waiting.", ["model"], multiprocess_mode="livesum")
queue_bytes = Gauge("ekiben_queue_bytes", "Bytes of the images waiting.", multiprocess_mode="livesum")
image_memory_bytes = Gauge(
    "ekiben_image_memory_bytes", "Memory that large images may take now.", multiprocess_mode="livesum"
)
model_memory_bytes = Gauge(
    "ekiben_model_memory_bytes", "Memory of a loaded model; 0 once unloaded.", ["model"], multiprocess_mode="livesum"
)
model_budget_bytes = Gauge(
    "ekiben_model_memory_budget_bytes", "Memory budget of loaded models.", multiprocess_mode="livesum"
)
embedding_lookups = Counter(
    "ekiben_embedding_lookups_total", "Look-ups of an image's embedding: held (hit) or to be made (miss).", ["outcome"]
)
embedding_bytes = Gauge("ekiben_embedding_bytes", "Bytes of the embeddings held.", multiprocess_mode="livesum")
decoded_images = Counter("ekiben_decoded_images_total", "Images decoded in order to be encoded.", ["model"])
encoder_runs = Counter("ekiben_encoder_runs_total", "Runs of an image encoder.", ["model"])
decoder_prompts = Counter("ekiben_decoder_prompts_total", "Prompts run through a mask decoder.", ["model"])


def saw_embedding(hit: bool | None, used_bytes: int) -> None:
    """Count a look-up (``hit`` None: there was none, the cache has changed), and set the bytes held now."""
    if hit is not None:
        embedding_lookups.labels("hit" if hit else "miss").inc()
    embedding_bytes.set(used_bytes)
