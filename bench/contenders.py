"""The contenders: each one's command, environment and address."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.servers import ROOT, Missing, Server, clean_environ, free_port

SERVING_PYTHON = ROOT / ".venv/bin/python"
EXPORT_PYTHON = ROOT / ".venv-torch/bin/python"
MODEL = "efficientnet_b0"

Top5 = tuple[list[int], list[float]]
"""Class indices, best first, and their confidences."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A row of the table. Without a server it is a loop in a process of its own (``module``)."""

    key: str
    label: str
    server: Server | None = None
    path: str = ""
    module: str = ""

    @property
    def letter(self) -> str:
        """What ``--only`` names it by."""
        return self.key[0]


def contenders(work: Path, artifact: Path) -> list[Contender]:
    """Every row, in the table's order; nothing is started."""
    own = {
        **clean_environ(),
        "BENCH_MODEL": str(artifact / "model.onnx"),
        "BENCH_TORCHSCRIPT": str(artifact / "model.torchscript.pt"),
        "BENTOML_HOME": str(work / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
    }

    def peer(name: str, ready: str, *arguments: str) -> Server:
        port = free_port()
        command = [sys.executable, "-m", *(each.replace("PORT", str(port)) for each in arguments)]
        return Server(name, command, {**own, "BENCH_PORT": str(port)}, ready, port, work / f"{name}.log")

    fastapi = peer("fastapi", "/health", "bench.peers.fastapi_onnx")
    litserve = peer("litserve", "/health", "bench.peers.litserve_onnx")
    service = "bench.peers.bentoml_batching:Classifier"
    bentoml = peer("bentoml", "/readyz", "bentoml", "serve", service, "--host", "127.0.0.1", "--port", "PORT")
    torch = peer("torch", "/health", "bench.peers.fastapi_torch")
    rows = [
        Contender("a", "bare loop: Pillow + ONNX Runtime, in process", module="bench.peers.bare"),
        Contender("a'", "bare loop with Ekiben's preprocessing", module="bench.peers.bare_ekiben"),
        Contender("b", "FastAPI + uvicorn + ONNX Runtime", fastapi, "/classify"),
        Contender("c", "LitServe", litserve, "/predict"),
        Contender("d", "BentoML, its adaptive batching", bentoml, "/classify"),
        Contender("e", "FastAPI + PyTorch eager", torch, "/classify"),
    ]
    for topology in ("embedded", "split"):
        server = ekiben(work, topology, work / f"home-{topology}")
        path = f"/v1/classify?model={MODEL}&top_k=5"
        rows.append(Contender(f"f-{topology}", f"Ekiben {topology}", server, path + "&store=false"))
        rows.append(Contender(f"f-{topology}-stored", f"Ekiben {topology}, storing", server, path))
    return rows


def ekiben(work: Path, topology: str, home: Path) -> Server:
    """Ekiben with the settings that it ships with, on a home folder of its own."""
    port = free_port()
    environ = {
        **clean_environ(),
        "EKIBEN_HOME": str(home),
        "EKIBEN_PORT": str(port),
        "EKIBEN_GRPC_PORT": str(free_port()),
        "EKIBEN_TOPOLOGY": topology,
    }
    command = [str(SERVING_PYTHON), "-m", "services"]
    return Server(f"ekiben-{topology}", command, environ, "/readyz", port, work / f"{home.name}.log")


def export_artifact(work: Path) -> Path:
    """The artifact folder that every contender classifies with: seeded random weights, so nothing is downloaded."""
    folder = work / "artifact"
    _export(work, "--out", str(folder))
    return folder


def publish(work: Path, homes: Iterable[Path]) -> None:
    """Publish the same export in each of Ekiben's home folders."""
    first, *others = homes
    _export(work, home=first)
    for other in others:
        shutil.copytree(first, other)


def _export(work: Path, *arguments: str, home: Path | None = None) -> None:
    if not EXPORT_PYTHON.exists():
        raise Missing(f"{EXPORT_PYTHON} does not exist: the model cannot be exported")
    command = [str(EXPORT_PYTHON), "-m", "export", MODEL, "--weights", "random", "--seed", "0", *arguments]
    environ = {**clean_environ(), "EKIBEN_HOME": str(home or work / "home-export")}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise Missing(f"python -m export {MODEL} ended with status {done.returncode}: {lines[-1]}")


def request(url: str, image: bytes) -> Top5:
    """A server's answer for the image. Raises ValueError when it is not a 200 with five classes."""
    request = urllib.request.Request(url, image, {"Content-Type": "image/jpeg"}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            body, status = answer.read(), answer.status
    except urllib.error.HTTPError as error:
        body, status = error.read(), error.code
    except OSError as error:
        raise ValueError(f"no answer: {error}") from None
    if status != 200:
        raise ValueError(f"status {status}: {body[:200].decode(errors='replace')}")
    return read_top5(json.loads(body))


def read_top5(body: Any) -> Top5:
    """From a peer's ``{"indices", "confidences"}`` (BentoML: in a list of one) or from Ekiben's ``predictions``."""
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    try:
        if "predictions" in body:
            found = body["predictions"]
            return [each["class_index"] for each in found], [each["confidence"] for each in found]
        return body["indices"], body["confidences"]
    except (KeyError, TypeError):
        raise ValueError(f"an answer without classes: {str(body)[:200]}") from None


def difference(expected: Top5, got: Top5) -> str:
    """What is wrong with an answer, or an empty string. Confidences may differ by rounding in the preprocessing."""
    if got[0] != expected[0]:
        return f"other classes: {got[0]} instead of {expected[0]}"
    off = max(abs(mine - yours) for mine, yours in zip(expected[1], got[1], strict=True))
    return f"confidences differ by {off:.4f}" if off > 1e-3 else ""
