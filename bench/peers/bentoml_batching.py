"""(d) BentoML's own adaptive batching over the raw body."""

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import bentoml
import numpy as np
from _bentoml_sdk.io_models import IODescriptor

from bench.peers.bare import Answer, open_session, preprocess, top5

V = os.environ.get("V", "w2")


class Pictures(IODescriptor):
    """A batch of one: the raw body. BentoML itself reads lists of bytes from JSON text only."""

    images: list[bytes]

    @classmethod
    async def from_http_request(cls, request: Any, serde: Any) -> "Pictures":
        return cls.model_construct(images=[await request.body()])


@bentoml.service(
    workers=2 if "w2" in V else 1,
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Classifier:
    def __init__(self) -> None:
        self.session = open_session(os.environ["BENCH_MODEL"], 1 if "w2" in V else 2)
        self.pool = ThreadPoolExecutor(2)

    @bentoml.api(batchable=True, max_batch_size=int(os.environ.get("MB", "16")), max_latency_ms=10_000, input_spec=Pictures)
    def classify(self, images: list[bytes]) -> list[Answer]:
        if "w2" in V:
            tensors = [preprocess(each) for each in images]
            if "l" in V:
                return [top5(self.session.run(None, {"input": each[None]})[0][0]) for each in tensors]
        else:
            tensors = list(self.pool.map(preprocess, images))
        logits = self.session.run(None, {"input": np.stack(tensors)})[0]
        return [top5(each) for each in logits]
