"""The contenders: a loop in a process of its own, and Ekiben over HTTP, with one interface of four requests."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.servers import ROOT, Missing, Server, clean_environ

MODEL = "sam_vit_b"
IDLE_S = 2.0
"""A connection that was not used for longer is made anew, before the clock starts: servers close idle ones."""

Masks = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Answer:
    """Masks and times of a request.

    ``seconds``: as the client measures them; ``encode_s``, ``decode_s``: of the networks.
    """

    seconds: float
    masks: Masks
    encode_s: float | None = None
    decode_s: float | None = None


class Loop:
    """A peer in a process of its own (``peer_loop.py``)."""

    def __init__(self, module: str, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, str(folder)],
            cwd=ROOT,
            env=clean_environ(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / f"{module}.log").open("wb"),
            text=True,
            start_new_session=True,
        )
        self._log = folder / f"{module}.log"
        self.note = str(self._read()["note"])

    def processes(self) -> list[psutil.Process]:
        """The processes to measure."""
        return [psutil.Process(self._process.pid)]

    def point(self, image: Path, x: float, y: float) -> Answer:
        """One mask of a foreground point, x and y in pixels."""
        return self._send({"do": "point", "image": str(image), "point": [x, y]})

    def boxes(self, image: Path, boxes: Sequence[Sequence[float]]) -> Answer:
        """One mask of each box (x0, y0, x1, y1)."""
        return self._send({"do": "boxes", "image": str(image), "boxes": boxes})

    def automatic(self, image: Path, options: dict[str, Any]) -> Answer:
        """Automatic masks; ``options`` as of the reference\'s generator."""
        return self._send({"do": "automatic", "image": str(image), "options": options})

    def forget(self, other: Path) -> None:
        """Nothing to do: automatic masks of a loop always begin with the image."""

    def stop(self) -> None:
        """End its processes."""
        self._process.kill()
        self._process.wait()

    def _send(self, request: dict[str, Any]) -> Answer:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        found = self._read()
        return Answer(found["seconds"], found["masks"], found["encode_s"] or None)

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            lines = self._log.read_text(errors="replace").strip().splitlines() or ["no output"]
            status = self._process.wait()
            raise Missing(f"its process ended with status {status} (-9: perhaps for want of memory): {lines[-1][:300]}")
        found: dict[str, Any] = json.loads(line)
        return found


class Http:
    """Ekiben, over one connection that is kept."""

    note = ""

    def __init__(self, server: Server) -> None:
        before = psutil.Process().children()
        server.start()
        self._server = server
        self._started = [each for each in psutil.Process().children() if each not in before]
        self._connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=600)
        self._used = 0.0

    def processes(self) -> list[psutil.Process]:
        """The processes to measure."""
        return [*self._started, *(child for each in self._started for child in each.children(recursive=True))]

    def point(self, image: Path, x: float, y: float) -> Answer:
        """One mask of a foreground point, x and y in pixels."""
        return self._prompts(image, [{"points": [[x, y, 1]]}])

    def boxes(self, image: Path, boxes: Sequence[Sequence[float]]) -> Answer:
        """One mask of each box (x0, y0, x1, y1)."""
        return self._prompts(image, [{"box": list(box)} for box in boxes])

    def automatic(self, image: Path, options: dict[str, Any]) -> Answer:
        """Automatic masks; ``options`` as of the reference\'s generator."""
        seconds, body = self._post("/v1/masks/auto", image, options)
        return Answer(seconds, body["masks"], body["embedding"]["encode_ms"] / 1e3)

    def forget(self, other: Path) -> None:
        """Drop what the server keeps of images: automatic masks of a loop begin with the image too.

        The model is warm again afterwards, by a prompt on another image.
        """
        self._connection.close()
        for verb in ("unload", "load"):
            self._request("POST", f"/v1/models/{MODEL}/{verb}", b"")
        self.point(other, 10, 10)

    def stop(self) -> None:
        """End its processes."""
        self._connection.close()
        self._server.stop()

    def _prompts(self, image: Path, prompts: list[dict[str, Any]]) -> Answer:
        given = {"prompts": json.dumps(prompts), "multimask": "false"}
        seconds, body = self._post("/v1/masks", image, given)
        masks = [mask for row in body["results"] for mask in row["masks"]]
        encode_s = None if body["embedding"]["cached"] else body["embedding"]["encode_ms"] / 1e3
        decode_s = body["timing"]["inference_ms"] / 1e3 if encode_s is None else None
        return Answer(seconds, masks, encode_s, decode_s)

    def _post(self, path: str, image: Path, options: dict[str, Any]) -> tuple[float, dict[str, Any]]:
        query = urllib.parse.urlencode({"model": MODEL, "format": "rle", "store": "false", **options})
        data = image.read_bytes()
        if time.perf_counter() - self._used > IDLE_S:
            self._connection.close()
            self._connection.connect()
        start = time.perf_counter()
        body = self._request("POST", f"{path}?{query}", data)
        found: dict[str, Any] = json.loads(body)
        return time.perf_counter() - start, found

    def _request(self, verb: str, path: str, body: bytes) -> bytes:
        self._connection.request(verb, path, body, {"Content-Type": "image/jpeg"})
        answer = self._connection.getresponse()
        data = answer.read()
        self._used = time.perf_counter()
        if answer.status >= 300:
            raise Missing(f"{path.split('?')[0]}: status {answer.status}: {data[:300].decode(errors='replace')}")
        return data


SamContender = Loop | Http
