"""The transports of LoadGen's queries: ModelInfer over gRPC, the protocol over HTTP, and /v1, the reference."""

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
    """Used by many threads."""

    name: str

    def prepare(self, photo: bytes) -> Any:
        """The body of a request, made before the clock starts."""

    def request(self, prepared: Any) -> Top5:
        """Send a request and return its answer. Raises any error of the client library."""

    def leave(self) -> None:
        """Called by each thread when it has sent its last request."""

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
        """The body of a request."""
        return [_filled(tritonclient.grpc.InferInput("image", [1], "BYTES"), photo)]

    def request(self, prepared: list[tritonclient.grpc.InferInput]) -> Top5:
        """Send a request and return its answer."""
        answer = self._client.infer(
            MODEL, prepared, outputs=self._outputs, client_timeout=TIMEOUT_S, parameters={"store": False}
        )
        return _top5(answer.as_numpy("probs"))

    def leave(self) -> None:
        """Called by each thread after its last request."""
        pass  # the channel belongs to all threads

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()


class _Connections:
    """POST on one connection per thread: a common client for both HTTP transports."""

    def __init__(self, server: Ekiben) -> None:
        self._address, self._mine = http_address(server), threading.local()

    def post(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[bytes, http.client.HTTPResponse]:
        """The body and the response. Raises ConnectionError when its status is not 200."""
        if (connection := getattr(self._mine, "connection", None)) is None:
            connection = self._mine.connection = http.client.HTTPConnection(self._address, timeout=TIMEOUT_S)
        try:
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException):
            self.leave()
            raise
        if answer.status != 200:
            raise ConnectionError(f"status {answer.status}: {data[:200].decode(errors='replace')}")
        return data, answer

    def leave(self) -> None:
        """Called by each thread after its last request."""
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
        """The body of a request."""
        image = _filled(tritonclient.http.InferInput("image", [1], "BYTES"), photo)
        outputs = [tritonclient.http.InferRequestedOutput("probs")]
        body, json_size = tritonclient.http.InferenceServerClient.generate_request_body(
            [image], outputs=outputs, parameters={"store": False}
        )
        return bytes(body), {"Inference-Header-Content-Length": str(json_size)}

    def request(self, prepared: tuple[bytes, dict[str, str]]) -> Top5:
        """Send a request and return its answer."""
        data, head = self.post(self.PATH, *prepared)
        json_size = head.getheader("Inference-Header-Content-Length")
        answer = tritonclient.http.InferenceServerClient.parse_response_body(
            data, header_length=int(json_size) if json_size else None
        )
        return _top5(answer.as_numpy("probs"))


class V1(_Connections):
    """Ekiben's own route, with which the transports of the protocol are compared."""

    name = "v1"
    PATH: ClassVar[str] = f"/v1/classify?model={MODEL}&top_k=5&store=false"

    def prepare(self, photo: bytes) -> bytes:
        """The body of a request."""
        return photo

    def request(self, prepared: bytes) -> Top5:
        """Send a request and return its answer."""
        data, _ = self.post(self.PATH, prepared, {"Content-Type": "image/jpeg"})
        return read_top5(json.loads(data))


TRANSPORTS: dict[str, Callable[[Ekiben], Transport]] = {"v1": V1, "http": Http, "grpc": Grpc}


def _filled(image: Any, photo: bytes) -> Any:
    return image.set_data_from_numpy(np.array([photo], dtype=object))


def _top5(probs: NDArray[np.float32]) -> Top5:
    """Of ``probs`` [1, classes]."""
    row = probs[0]
    best = np.argsort(-row, kind="stable")[:5]
    return [int(each) for each in best], [float(each) for each in row[best]]
