"""(e) FastAPI, uvicorn and PyTorch eager: the same weights, two threads of one core each.

channels_last was no faster.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from bench.peers.bare import Answer, preprocess, top5
from export.torchvision_ops import declare_missing

declare_missing()
from torchvision.models import efficientnet_b0  # noqa: E402

THREADS = 2
torch.set_num_threads(1)
network = efficientnet_b0(weights=None).eval()
# The weights of the ONNX file, under torchvision's own names, out of the TorchScript file beside it.
network.load_state_dict(torch.jit.load(os.environ["BENCH_TORCHSCRIPT"]).state_dict())


@asynccontextmanager
async def two_threads(_: FastAPI) -> AsyncIterator[None]:
    """Limit the thread pool to THREADS."""
    anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
    yield


app = FastAPI(lifespan=two_threads)


def classify(data: bytes) -> Answer:
    """The five best classes of an encoded image."""
    with torch.inference_mode():
        return top5(network(torch.from_numpy(preprocess(data))[None])[0].numpy())


@app.get("/health")
async def health() -> JSONResponse:
    """Answers when the server is ready."""
    return JSONResponse("ok")


@app.post("/classify")
async def post_classify(request: Request) -> JSONResponse:
    """The five best classes of the image in the body."""
    return JSONResponse(await run_in_threadpool(classify, await request.body()))


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(os.environ["BENCH_PORT"]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
