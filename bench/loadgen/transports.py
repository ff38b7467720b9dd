"""The doors that LoadGen asks Ekiben by: gRPC, the protocol over HTTP, and /v1, which the others are compared with."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import tritonclient.grpc
import tritonclient.http
from numpy.typing import NDArray

from bench.contenders import MODEL, Top5, read_top5
from bench.jobs.server import Ekiben
from bench.protocols.setup import grpc_address, http_address

TIMEOUT_S = 60.0


class Transport(Protocol):
    """Asked by many threads. ``ask`` raises whatever went wrong; ``leave`` is called by a thread that asks no more."""

    name: str

    def prepare(self, photo: bytes) -> Any: ...

    def request(self, prepared: Any) -> Top5: ...

    def leave(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Grpc:
    """The unmodified ``tritonclient.grpc``, one channel for all threads."""

    name = "grpc"

    def __init__(self, server: Ekiben) -> None:
        self._client = tritonclient.grpc.InferenceServerClient(grpc_address(server))
        self._outputs = [tritonclient.grpc.InferRequestedOutput("probs")]

    def prepare(self, photo: bytes) -> list[tritonclient.grpc.InferInput]:
        return [_filled(tritonclient.grpc.InferInput("image", [1], "BYTES"), photo)]

    def request(self, prepared: list[tritonclient.grpc.InferInput]) -> Top5:
        answer = self._client.infer(
            MODEL, prepared, outputs=self._outputs, client_timeout=TIMEOUT_S, parameters={"store": False}
        )
        return _top5(answer.as_numpy("probs"))

    def leave(self) -> None:
        pass  # the channel belongs to all threads

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()


class _Connections:
    """POST on a connection of each thread: the same client for both HTTP doors, whatever theirs is."""

    def __init__(self, server: Ekiben) -> None:
        self._address, self._mine = http_address(server), threading.local()

    def post(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[bytes, http.client.HTTPResponse]:
        """The answer and its head. ConnectionError when its status is not 200."""
        if (connection := getattr(self._mine, "connection", None)) is None:
            connection = self._mine.connection = http.client.HTTPConnection(self._address, timeout=TIMEOUT_S)
        try:
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException):
            self.leave()
            raise
        if answer.status != 200:
            raise ConnectionError(f"status {answer.status}: {said[:200].decode(errors='replace')}")
        return said, answer

    def leave(self) -> None:
        if (connection := getattr(self._mine, "connection", None)) is not None:
            connection.close()
            del self._mine.connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


class Http(_Connections):
    """The protocol over HTTP: bodies are written and read by the unmodified ``tritonclient.http``."""

    name = "http"
    PATH: ClassVar[str] = f"/v2/models/{MODEL}/infer"

    def prepare(self, photo: bytes) -> tuple[bytes, dict[str, str]]:
        image = _filled(tritonclient.http.InferInput("image", [1], "BYTES"), photo)
        outputs = [tritonclient.http.InferRequestedOutput("probs")]
        body, json_size = tritonclient.http.InferenceServerClient.generate_request_body(
            [image], outputs=outputs, parameters={"store": False}
        )
        return bytes(body), {"Inference-Header-Content-Length": str(json_size)}

    def request(self, prepared: tuple[bytes, dict[str, str]]) -> Top5:
        said, head = self.post(self.PATH, *prepared)
        json_size = head.getheader("Inference-Header-Content-Length")
        answer = tritonclient.http.InferenceServerClient.parse_response_body(
            said, header_length=int(json_size) if json_size else None
        )
        return _top5(answer.as_numpy("probs"))


class V1(_Connections):
    """Ekiben's own route: what the doors of the protocol are compared with."""

    name = "v1"
    PATH: ClassVar[str] = f"/v1/classify?model={MODEL}&top_k=5&store=false"

    def prepare(self, photo: bytes) -> bytes:
        return photo

    def request(self, prepared: bytes) -> Top5:
        said, _ = self.post(self.PATH, prepared, {"Content-Type": "image/jpeg"})
        return read_top5(json.loads(said))


TRANSPORTS: dict[str, Callable[[Ekiben], Transport]] = {"v1": V1, "http": Http, "grpc": Grpc}


def _filled(image: Any, photo: bytes) -> Any:
    return image.set_data_from_numpy(np.array([photo], dtype=object))


def _top5(probs: NDArray[np.float32]) -> Top5:
    """Of ``probs`` [1, classes]."""
    row = probs[0]
    best = np.argsort(-row, kind="stable")[:5]
    return [int(each) for each in best], [float(each) for each in row[best]]
