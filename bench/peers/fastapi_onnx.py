"""(b) Plain FastAPI, uvicorn and ONNX Runtime: the raw body, classified in a pool of two threads.

Two processes (of one or two threads) were no faster when the kernel spread the connections evenly between them, and up
to half slower when it did not.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse

from bench.peers.bare import classify, open_session

THREADS = 2
session = open_session(os.environ["BENCH_MODEL"])


@asynccontextmanager
async def two_threads(_: FastAPI) -> AsyncIterator[None]:
    """Limit the thread pool to THREADS."""
    anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
    yield


app = FastAPI(lifespan=two_threads)


@app.get("/health")
async def health() -> JSONResponse:
    """Answers when the server is ready."""
    return JSONResponse("ok")


@app.post("/classify")
async def post_classify(request: Request) -> JSONResponse:
    """The five best classes of the image in the body."""
    return JSONResponse(await run_in_threadpool(classify, session, await request.body()))


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
