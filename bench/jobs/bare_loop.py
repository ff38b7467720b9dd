"""The bare loop that batches are compared with: every image once, on threads that read and run; no server, no rows."""

from __future__ import annotations

import argparse
import itertools
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

from bench.peers import bare
from models.artifact import read_manifest
from models.classifier import Classifier
from models.images import decode

WARM = 16


def main() -> None:
    """Print one JSON object: ``seconds`` from the first image begun to the last one done, CPU time, the answers."""
    parser = argparse.ArgumentParser()
    parser.add_argument("artifact", type=Path)
    parser.add_argument("images", type=Path, help="folder; its files by name, again and again")
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--pillow", action="store_true", help="bare.py's reading, which is EfficientNet's")
    given = parser.parse_args()
    files = [file.read_bytes() for file in sorted(given.images.iterdir())]
    images = [files[number % len(files)] for number in range(given.count)]
    call = (_pillow if given.pillow else _own)(given.artifact)
    for data in images[:WARM]:
        call(data)
    answers: list[bare.Answer | None] = [None] * len(images)
    numbers = itertools.count()  # next() on it is one step that no other thread can come between

    def work() -> None:
        while (number := next(numbers)) < len(images):
            answers[number] = call(images[number])

    threads = [threading.Thread(target=work) for _ in range(given.threads)]
    start, cpu = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(json.dumps({"seconds": seconds, "cpu_s": cpu, "answers": answers}))


def _own(artifact: Path) -> Callable[[bytes], bare.Answer]:
    """Ekiben's own reading of the image and of the output, as in peers/bare_ekiben.py, for any classifier."""
    family = Classifier(read_manifest(artifact))
    session = bare.open_session(artifact / "model.onnx")
    name = session.get_inputs()[0].name

    def call(data: bytes) -> bare.Answer:
        output = session.run(None, {name: family.preprocess(decode(data))[None]})[0][0]
        confidences = family.confidences(output)
        best = (-confidences).argsort(kind="stable")[:5]
        return {"indices": best.tolist(), "confidences": confidences[best].tolist()}

    return call


def _pillow(artifact: Path) -> Callable[[bytes], bare.Answer]:
    session = bare.open_session(artifact / "model.onnx")
    return lambda data: bare.classify(session, data)


if __name__ == "__main__":
    main()
