"""(d) BentoML's own adaptive batching: one worker, whose two threads share the images of a batch.

The batch is not stacked into one run: on two cores that was no faster. Two worker processes were as fast when the
kernel spread the connections evenly between them, and half as fast when it did not.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import bentoml
from _bentoml_sdk.io_models import IODescriptor

from bench.peers.bare import Answer, classify, open_session

MAX_BATCH = 32


class Images(IODescriptor):
    """A batch of one: the raw body. BentoML by itself reads a list of bytes from JSON text only."""

    images: list[bytes]

    @classmethod
    async def from_http_request(cls, request: Any, serde: Any) -> "Images":
        """The body of a request as a batch of one image."""
        return cls.model_construct(images=[await request.body()])


# uvloop and httptools are taken when they are installed, which they are.
@bentoml.service(workers=1, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class Classifier:
    """The service: a batch is divided between two threads."""

    def __init__(self) -> None:
        self.classify_one = partial(classify, open_session(os.environ["BENCH_MODEL"]))
        self.pool = ThreadPoolExecutor(2)

    # BentoML refuses the oldest request when it expects to exceed max_latency_ms; here none is to be refused.
    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=60_000, input_spec=Images)
    def classify(self, images: list[bytes]) -> list[Answer]:
        """The answers of a batch, in its order."""
        return list(self.pool.map(self.classify_one, images))
