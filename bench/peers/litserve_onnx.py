"""(c) LitServe: two worker processes, batch 1."""

import os
from typing import Annotated

import litserve
import onnxruntime
from fastapi import Body

from bench.peers.bare import Answer, classify, open_session

Jpeg = Annotated[bytes, Body(media_type="image/jpeg")]


class Classifier(litserve.LitAPI):
    session: onnxruntime.InferenceSession

    def setup(self, device: str) -> None:
        self.session = open_session(os.environ["BENCH_MODEL"])

    # The annotation makes FastAPI hand over the raw body; without it LitServe takes JSON and forms only.
    def decode_request(self, request: Jpeg) -> bytes:
        return request

    def predict(self, x: bytes) -> Answer:
        return classify(self.session, x)

    def encode_response(self, output: Answer) -> Answer:
        return output


if __name__ == "__main__":
    V=os.environ.get("V","")
    server = litserve.LitServer(Classifier(), accelerator="cpu", devices=1, workers_per_device=2, fast_queue="z" in V)
    server.run(
        host="127.0.0.1",
        port=int(os.environ["BENCH_PORT"]),
        num_api_servers=2 if "2" in V else 1,
        generate_client_file=False,
        log_level="warning",
        loop="uvloop",
        http="httptools",
        access_log=False,
    )
