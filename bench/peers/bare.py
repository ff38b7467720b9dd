"""(a) No server at all: Pillow and ONNX Runtime in a closed loop of threads. The peers that serve use its functions."""

from __future__ import annotations

import argparse
import io
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image, ImageOps

Answer = dict[str, list[Any]]
FloatArray = NDArray[np.float32]

# torchvision's reference for EfficientNet-B0: shorter side 256 bicubic, central 224, ImageNet's mean and deviation.
RESIZE, CROP = 256, 224
# (pixel / 255 - mean) / std in one subtraction and one multiplication.
MEAN = np.array([0.485, 0.456, 0.406], np.float32) * 255
SCALE = 1 / (np.array([0.229, 0.224, 0.225], np.float32) * 255)


def open_session(model: str | Path, threads: int = 1) -> ort.InferenceSession:
    """A CPU session whose runs use ``threads`` threads; several threads may call it at once."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def preprocess(data: bytes) -> FloatArray:
    """float32 [3, 224, 224] of an encoded image: decoded fully, EXIF-turned, RGB, resized, cropped, normalised."""
    image: Image.Image = Image.open(io.BytesIO(data))
    # In place, and convert() only where needed: both would copy every pixel for nothing.
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode != "RGB":
        image = image.convert("RGB")
    width, height = image.size
    shorter = min(width, height)
    size = (int(RESIZE * width / shorter), int(RESIZE * height / shorter))
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - CROP) / 2.0), round((size[1] - CROP) / 2.0)
    pixels = np.asarray(image.crop((left, top, left + CROP, top + CROP)), np.float32)
    return np.ascontiguousarray(((pixels - MEAN) * SCALE).transpose(2, 0, 1))


def top5(logits: FloatArray) -> Answer:
    """The five best of [1000] logits: ``indices`` and ``confidences``, best first."""
    exps = np.exp(logits - logits.max())
    confidences = exps / exps.sum()
    best = np.argsort(-confidences, kind="stable")[:5]
    return {"indices": best.tolist(), "confidences": confidences[best].tolist()}


def classify(session: ort.InferenceSession, data: bytes) -> Answer:
    """The five best classes of an encoded image."""
    return top5(session.run(None, {"input": preprocess(data)[None]})[0][0])


def closed_loop(call: Callable[[], object], threads: int, seconds: float) -> list[float]:
    """Seconds of every call that ``threads`` threads made, each starting the next when one is done."""
    taken: list[list[float]] = [[] for _ in range(threads)]
    end = time.perf_counter() + seconds

    def work(mine: list[float]) -> None:
        before = time.perf_counter()
        while before < end:
            call()
            after = time.perf_counter()
            mine.append(after - before)
            before = after

    workers = [threading.Thread(target=work, args=(mine,)) for mine in taken]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [each for mine in taken for each in mine]


def main(make_call: Callable[[Path], Callable[[bytes], Answer]]) -> None:
    """Answer once, warm up, measure, and print one JSON object. ``make_call`` gets the artifact folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--warm", type=float, required=True)
    given = parser.parse_args()
    data = given.image.read_bytes()
    call = make_call(given.folder)
    answer = call(data)
    closed_loop(lambda: call(data), given.threads, given.warm)
    start, cpu = time.perf_counter(), time.process_time()
    taken = closed_loop(lambda: call(data), given.threads, given.seconds)
    elapsed, cpu = time.perf_counter() - start, time.process_time() - cpu
    p50, p75, p90, p99 = (float(each) * 1e3 for each in np.percentile(taken, (50, 75, 90, 99)))
    figures = {"requests": len(taken), "rps": len(taken) / elapsed, "cpu_ms": cpu * 1e3 / len(taken)}
    latencies = {"p50_ms": p50, "p75_ms": p75, "p90_ms": p90, "p99_ms": p99}
    print(json.dumps({"answer": answer, **figures, **latencies}))


def _make_call(folder: Path) -> Callable[[bytes], Answer]:
    session = open_session(folder / "model.onnx")
    return lambda data: classify(session, data)


if __name__ == "__main__":
    main(_make_call)
