"""(c) LitServe: two worker processes, batch 1, its faster queue, two API processes.

Its batching (2 and 4 images, 1 and 2 ms) gave no more answers on two cores and took 0.2 cores without requests; one
API process or two, and its other queue, were the same within the noise.
"""

import os
from typing import Annotated

import litserve
import onnxruntime
from fastapi import Body

from bench.peers.bare import Answer, classify, open_session

Jpeg = Annotated[bytes, Body(media_type="image/jpeg")]


class Classifier(litserve.LitAPI):
    """One image per call of ``predict``."""

    session: onnxruntime.InferenceSession

    def setup(self, device: str) -> None:
        """Open the session of this worker."""
        self.session = open_session(os.environ["BENCH_MODEL"])

    # The annotation makes FastAPI pass the raw body; without it LitServe takes JSON and forms only.
    def decode_request(self, request: Jpeg) -> bytes:
        """The raw body."""
        return request

    def predict(self, x: bytes) -> Answer:
        """The five best classes of an encoded image."""
        return classify(self.session, x)

    def encode_response(self, output: Answer) -> Answer:
        """The answer unchanged."""
        return output


if __name__ == "__main__":
    server = litserve.LitServer(Classifier(), accelerator="cpu", devices=1, workers_per_device=2, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(os.environ["BENCH_PORT"]),
        num_api_servers=2,
        generate_client_file=False,
        log_level="warning",
        loop="uvloop",
        http="httptools",
        access_log=False,
    )
