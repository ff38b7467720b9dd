"""``python -m bench.protocols``: one image over every protocol in turn, and a raw tensor beside a call in process."""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import numpy as np
import onnx
import orjson
from onnx import TensorProto, helper
from tritonclient.grpc import service_pb2, service_pb2_grpc

from bench import sample_image
from bench.contenders import EXPORT_PYTHON, MODEL, SERVING_PYTHON, publish
from bench.report import machine, now
from bench.run import DISTURBED_CORES
from bench.servers import ROOT, Missing, Server, busy_s, clean_environ, free_port
from ekiben.settings import Settings
from ekiben.v1 import ekiben_pb2, ekiben_pb2_grpc
from services.app_state import AppState
from services.open_inference.inference import InferRequest
from services.open_inference.tensors import Tensor

MEAN = "mean_of_pixels"
"""A network with negligible cost, so that the transport is measured."""

Send = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Row:
    """The requests of one protocol. ``ms``: of each request, in their order."""

    label: str
    ms: list[float]

    @property
    def median(self) -> float:
        """The median in ms."""
        return statistics.median(self.ms)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when everything was measured; the report says which goals were missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.protocols", description=__doc__)
    parser.add_argument("--requests", type=int, default=300, help="over each protocol (default 300)")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results", help="folder of the report")
    given = parser.parse_args(arguments)
    (ROOT / "build").mkdir(exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="bench-protocols-", dir=ROOT / "build"))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started = now()
    server: Server | None = None
    try:
        home = work / "home-embedded"
        publish(work, [home])
        _publish_mean(home, work / "mean")
        server, rpc = _ekiben(work, home)
        server.start()
        before, clock = _others(server), time.monotonic()
        images = {store: _images(server, rpc, given.requests, store=store) for store in (False, True)}
        tensors = asyncio.run(_tensors(server, rpc, home, given.requests))
        busy = (_others(server) - before) / (time.monotonic() - clock)
    except Missing as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(work, ignore_errors=True)
    text = _markdown(f"{started:%Y-%m-%d %H:%M}", images, tensors, busy)
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / f"{started:%Y-%m-%d}-protocols.md"
    path.write_text(text)
    rows = {"images": [asdict(row) for row in images[False]], "storing": [asdict(row) for row in images[True]]}
    info = {"machine": machine(), "others_cores": busy, **rows, "tensors": [asdict(row) for row in tensors]}
    path.with_suffix(".json").write_text(json.dumps(info) + "\n")
    print(text)
    return 0


def _images(server: Server, rpc: str, requests: int, *, store: bool) -> list[Row]:
    data, flag = sample_image.jpeg(), str(store).lower()
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port or 80)
    channel = grpc.insecure_channel(rpc)
    vision, protocol = ekiben_pb2_grpc.VisionStub(channel), service_pb2_grpc.GRPCInferenceServiceStub(channel)
    tensor = len(data).to_bytes(4, "little") + data
    info = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(tensor)}}
    wanted = [{"name": "probs", "parameters": {"classification": 5}}]
    head = orjson.dumps({"parameters": {"store": store}, "inputs": [info], "outputs": wanted})
    typed = ekiben_pb2.ClassifyRequest(image={"data": data}, model=MODEL, top_k=5, store=store)
    infer = service_pb2.ModelInferRequest(
        model_name=MODEL,
        parameters={"store": service_pb2.InferParameter(bool_param=store)},
        inputs=[{"name": "image", "datatype": "BYTES", "shape": [1]}],
        outputs=[{"name": "probs", "parameters": {"classification": service_pb2.InferParameter(int64_param=5)}}],
        raw_input_contents=[tensor],
    )
    length = {"Inference-Header-Content-Length": str(len(head))}
    senders: dict[str, Send] = {
        "HTTP /v1/classify": lambda: _post(connection, f"/v1/classify?model={MODEL}&top_k=5&store={flag}", data, {}),
        "HTTP /v2 infer, BYTES": lambda: _post(connection, f"/v2/models/{MODEL}/infer", head + tensor, length),
        "gRPC ekiben.v1 Classify": lambda: vision.Classify(typed),
        "gRPC ModelInfer, BYTES": lambda: protocol.ModelInfer(infer),
    }
    return _in_turn(senders, requests)


async def _tensors(server: Server, rpc: str, home: Path, requests: int) -> list[Row]:
    """A [1, 3, 224, 224] float32 tensor, 602 kB, over the protocols, and by the call in process that they make."""
    values = np.random.Generator(np.random.PCG64(1)).random((1, 3, 224, 224), np.float32)
    raw = values.tobytes()
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port or 80)
    protocol = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(rpc))
    info = {
        "name": "image",
        "datatype": "FP32",
        "shape": [1, 3, 224, 224],
        "parameters": {"binary_data_size": len(raw)},
    }
    head = orjson.dumps({"parameters": {"binary_data_output": True}, "inputs": [info]})
    length = {"Inference-Header-Content-Length": str(len(head))}

    def over_grpc() -> Any:
        # Made anew each time, as a client does.
        request = service_pb2.ModelInferRequest(
            model_name=MEAN,
            inputs=[{"name": "image", "datatype": "FP32", "shape": [1, 3, 224, 224]}],
            raw_input_contents=[values.tobytes()],
        )
        return protocol.ModelInfer(request)

    def over_http() -> Any:
        return _post(connection, f"/v2/models/{MEAN}/infer", head + values.tobytes(), length)

    settings = Settings.from_environ({"EKIBEN_HOME": str(home)})
    platform = await AppState.start(settings)
    loop = asyncio.get_running_loop()
    try:
        request = InferRequest(MEAN, "", [Tensor("image", values)])
        rows: dict[str, list[float]] = {"in process": [], "HTTP /v2": [], "gRPC ModelInfer": []}
        for number in range(requests + 20):
            began = time.perf_counter()
            await platform.open_inference.infer(request)
            took = {"in process": time.perf_counter() - began}
            for label, send in (("HTTP /v2", over_http), ("gRPC ModelInfer", over_grpc)):
                took[label] = await loop.run_in_executor(None, _timed, send)
            if number >= 20:
                for label, seconds in took.items():
                    rows[label].append(seconds * 1e3)
    finally:
        await platform.stop()
    return [Row(label, ms) for label, ms in rows.items()]


def _in_turn(senders: dict[str, Send], requests: int) -> list[Row]:
    """One request over each protocol in turn, so that a disturbance affects all of them."""
    rows: dict[str, list[float]] = {label: [] for label in senders}
    for number in range(requests + 20):
        for label, send in senders.items():
            seconds = _timed(send)
            if number >= 20:
                rows[label].append(seconds * 1e3)
    return [Row(label, ms) for label, ms in rows.items()]


def _timed(send: Send) -> float:
    began = time.perf_counter()
    send()
    return time.perf_counter() - began


def _post(connection: http.client.HTTPConnection, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    connection.request("POST", path, body, {"Content-Type": "application/octet-stream", **headers})
    answer = connection.getresponse()
    data = answer.read()
    if answer.status != 200:
        raise Missing(f"{path} answered {answer.status}: {data[:200].decode(errors='replace')}")
    return data


def _publish_mean(home: Path, folder: Path) -> None:
    folder.mkdir()
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["image"], ["scores"], axes=[2, 3], keepdims=0)],
        "mean",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 224, 224])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.save(model, folder / "mean.onnx")
    (folder / "labels.txt").write_text("red\ngreen\nblue\n")
    command = [str(EXPORT_PYTHON), "-m", "export", "import", str(folder / "mean.onnx"), "--name", MEAN]
    command += ["--task", "classify", "--labels", str(folder / "labels.txt")]
    environ = {**clean_environ(), "EKIBEN_HOME": str(home)}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Missing(f"the network of the raw tensor was not imported: {done.stderr.strip()[-300:]}")


def _ekiben(work: Path, home: Path) -> tuple[Server, str]:
    """Ekiben with the settings that it ships with, and the address of its gRPC port."""
    port, grpc_port = free_port(), free_port()
    own = {"EKIBEN_HOME": str(home), "EKIBEN_PORT": str(port), "EKIBEN_GRPC_PORT": str(grpc_port)}
    command = [str(SERVING_PYTHON), "-m", "services"]
    server = Server("ekiben", command, {**clean_environ(), **own}, "/readyz", port, work / "server.log")
    return server, f"127.0.0.1:{grpc_port}"


def _others(server: Server) -> float:
    """CPU seconds so far of all processes but this one and the server's."""
    own = os.times()
    return busy_s() - own.user - own.system - server.cpu_s()


def _markdown(when: str, images: dict[bool, list[Row]], tensors: list[Row], busy: float) -> str:
    lines = [f"# Protocols: {when} UTC", ""]
    info = machine()
    lines += [f"{info['cpu']}, {info['cores']} cores, {info['system']}; {info['versions']}; {info['commit']}", ""]
    note = "undisturbed" if busy < DISTURBED_CORES else "DISTURBED"
    lines += [f"Others used {busy:.2f} cores ({note}). One request at a time, each protocol in turn.", ""]
    for store, rows in images.items():
        first = rows[0].median
        lines += [f"## An encoded image, {'stored' if store else 'not stored'}", ""]
        lines += ["| protocol | median ms | to /v1 | p90 ms |", "|---|---|---|---|"]
        for row in rows:
            p90 = statistics.quantiles(row.ms, n=10)[8]
            lines.append(f"| {row.label} | {row.median:.2f} | {row.median / first:.3f} | {p90:.2f} |")
        lines += ["", "Goal: within 10 % of /v1.", ""]
    lines += ["## A raw tensor of 602 kB", "", "| way | median ms | over in process |", "|---|---|---|"]
    lines += [f"| {row.label} | {row.median:.2f} | {row.median - tensors[0].median:+.2f} |" for row in tensors]
    return "\n".join([*lines, "", "Goal: at most 2 ms over the call in process.", ""])


if __name__ == "__main__":
    sys.exit(main())
