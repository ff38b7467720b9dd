"""Requests and responses of the Open Inference Protocol over HTTP, as OpenAPI describes them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from services.schemas.body import Body


class ProtocolError(Body):
    """An error."""

    error: str


class ServerMetadata(Body):
    """The server, and the extensions that it offers."""

    name: str = Field(examples=["ekiben"])
    version: str
    extensions: list[str]


class ServerReady(Body):
    """Whether requests can be served."""

    ready: bool


class ServerLive(Body):
    """Whether the server is alive."""

    live: bool


class ModelReady(Body):
    """Whether a model is ready."""

    name: str
    ready: bool


class TensorMetadata(Body):
    """An input or output of a model."""

    name: str = Field(examples=["image"])
    datatype: str = Field(examples=["BYTES"])
    shape: list[int] = Field(description="-1 where it varies.", examples=[[-1]])


class ModelMetadata(Body):
    """Inputs and outputs of a model."""

    name: str = Field(examples=["efficientnet_b0"])
    versions: list[str]
    platform: str = Field(examples=["onnxruntime_onnx"])
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class InferTensor(Body):
    """A tensor."""

    name: str = Field(examples=["image"])
    datatype: str = Field(examples=["BYTES"])
    shape: list[int] = Field(examples=[[1]])
    parameters: dict[str, Any] = Field(default_factory=dict)
    data: list[Any] | None = Field(default=None, description="Flat or nested, row-major; absent for binary data.")


class WantedOutput(Body):
    """A requested output."""

    name: str = Field(examples=["probs"])
    parameters: dict[str, Any] = Field(default_factory=dict, examples=[{"classification": 5}])


class InferBody(Body):
    """Binary tensors follow the JSON, in the order of the inputs; Inference-Header-Content-Length is its length."""

    id: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)
    inputs: list[InferTensor]
    outputs: list[WantedOutput] = Field(default_factory=list)


class InferAnswerBody(Body):
    """The outputs; binary tensors follow the JSON."""

    model_name: str
    model_version: str
    id: str = ""
    parameters: dict[str, Any] = Field(default_factory=dict)
    outputs: list[InferTensor]


class IndexedModel(Body):
    """A version of a model in the repository."""

    name: str
    version: str = ""
    state: Literal["READY", "LOADING", "UNAVAILABLE"]
    reason: str


class LoadBody(Body):
    """A request to load or unload a model."""

    parameters: dict[str, Any] = Field(default_factory=dict)


class IndexBody(Body):
    """A request for the repository index."""

    ready: bool = False
