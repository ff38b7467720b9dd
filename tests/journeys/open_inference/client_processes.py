"""The clients of tritonclient in a process of their own: what they are asked, what they saw, and what is right."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests import toy_models
from tests.serving import Server

EACH_CLIENT = [
    pytest.mark.usefixtures("sam_server"),  # for its id to come first: tests go by topology to the processes
    pytest.mark.parametrize("oip", ["http", "http_aio", "grpc", "grpc_aio"], indirect=True),
]


class Refused(Exception):
    """A client raised InferenceServerException. ``code``: of HTTP as text, or of gRPC."""

    def __init__(self, status: str | None, message: str) -> None:
        super().__init__(message)
        self.code = "" if status is None else status.removeprefix("StatusCode.")
        self.message = message


@dataclass(frozen=True)
class Said:
    """An answer. ``json``: names of the outputs that came as JSON."""

    model: str
    version: str
    id: str
    parameters: dict[str, Any]
    datatypes: dict[str, str]
    json: set[str]
    tensors: dict[str, NDArray[Any]]


class Clients:
    """The process. One call at a time."""

    def __init__(self, server: Server, folder: Path) -> None:
        script = Path(__file__).with_name("client_process.py")
        self._process = subprocess.Popen(
            [sys.executable, script, server.url.removeprefix("http://"), server.grpc],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def request(self, kind: str, call: str, **args: Any) -> Any:
        """What the client gave back. Refused."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps({"kind": kind, "call": call, "args": args}), file=self._process.stdin, flush=True)
        seen = json.loads(self._process.stdout.readline())
        assert "crashed" not in seen, seen["crashed"]
        if "refused" in seen:
            raise Refused(**seen["refused"])
        return seen["answer"]

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(20)


class Client:
    """One of the four."""

    def __init__(self, clients: Clients, kind: str) -> None:
        self._clients = clients
        self.kind = kind
        self.http = kind.startswith("http")

    def request(self, call: str, **args: Any) -> Any:
        return self._clients.request(self.kind, call, **args)

    def infer(self, model: str, *inputs: dict[str, Any], call: str = "infer", **more: Any) -> Said:
        return said(self.request(call, model_name=model, inputs=inputs, **more))

    def refusal(self, model: str, *inputs: dict[str, Any], **more: Any) -> tuple[str, str]:
        """Code and message of an infer request that is refused."""
        with pytest.raises(Refused) as refused:
            self.infer(model, *inputs, **more)
        return refused.value.code, refused.value.message

    def refused(self, call: str, **args: Any) -> tuple[str, str]:
        with pytest.raises(Refused) as refused:
            self.request(call, **args)
        return refused.value.code, refused.value.message

    def code(self, http: int, grpc: str) -> str:
        """The one of this protocol. tritonclient gives the HTTP status as text."""
        return str(http) if self.http else grpc


def tensor(name: str, datatype: str, array: Any, **more: Any) -> dict[str, Any]:
    """An input. ``binary``: False for JSON (HTTP only). ``shape``: another than the array's."""
    if array.dtype == object:
        data: Any = [base64.b64encode(one).decode() for one in array.ravel()]
    else:
        data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {
        "name": name,
        "datatype": datatype,
        "values": {"dtype": str(array.dtype), "shape": array.shape, "data": data},
        **more,
    }


def files(*images: bytes, **more: Any) -> dict[str, Any]:
    """The input ``image`` of encoded images."""
    array = np.empty(len(images), object)
    array[:] = images
    return tensor("image", "BYTES", array, **more)


def said(answer: dict[str, Any]) -> Said:
    response = answer["response"]
    tensors = {name: _array(one) for name, one in answer["tensors"].items()}
    assert [list(tensors[one["name"]].shape) for one in response["outputs"]] == [
        one["shape"] for one in response["outputs"]
    ]
    return Said(
        response["model_name"],
        response["model_version"],
        response["id"],
        response["parameters"],
        {one["name"]: one["datatype"] for one in response["outputs"]},
        {one["name"] for one in response["outputs"] if one["json"]},
        tensors,
    )


def _array(given: dict[str, Any]) -> NDArray[Any]:
    if given["dtype"] == "object":
        array = np.empty(len(given["data"]), object)
        array[:] = [base64.b64decode(one) for one in given["data"]]
        return array.reshape(given["shape"])
    return np.frombuffer(base64.b64decode(given["data"]), given["dtype"]).reshape(given["shape"])


# ---- the right answers ----


def softmax(pixels: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """[images, 4]: what the toy classifier must say of images that need no resizing."""
    logits = np.stack([toy_models.logits_of(one) for one in pixels])
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def areas(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The toy segmenter's class map: the strongest channel where it is above one half, else background."""
    levels = pixels.astype(np.float64) / 255
    return np.where(levels.max(axis=-1) > 0.5, levels.argmax(axis=-1) + 1, 0).astype(np.uint8)
