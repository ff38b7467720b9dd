"""Metadata by the Open Inference Protocol: inputs and outputs of models, and the extensions that are offered."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from models.artifact import GraphInput, Manifest
from models.catalog import build_family
from models.results import TensorInfo
from services.model_registry.index import ServableModel
from services.open_inference.tensors import BYTES

EXTENSIONS: Final = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "schedule_policy",
    "statistics",
)

IMAGE: Final = "image"

SAM_TENSORS: Final = (
    TensorInfo("masks", "bool", (-1, -1, -1, -1)),
    TensorInfo("iou_predictions", "float32", (-1, -1)),
    TensorInfo("stability_scores", "float32", (-1, -1), usual=False),
    TensorInfo("low_res_masks", "float32", (-1, -1, 256, 256), usual=False),
)
"""Axes: prompts, masks of each, ...; a stability score is NaN for a mask that is empty at any threshold."""

_DATATYPE: Final = {"bool": "BOOL", "float32": "FP32", "uint8": "UINT8"}


@lru_cache(256)  # a version never changes
def tensors_of(served: ServableModel) -> tuple[TensorInfo, ...]:
    """The outputs of a model. Shapes of Segment Anything are complete; the others lack the batch axis."""
    if served.family == "sam":
        return SAM_TENSORS
    return build_family(Manifest.model_validate(served.manifest)).tensors


def metadata(served: ServableModel, versions: list[int]) -> dict[str, Any]:
    """The metadata of a model, as ``GET /v2/models/{name}`` returns it: only the image input and the usual outputs."""
    return {
        "name": served.key.name,
        "versions": [str(version) for version in versions],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": IMAGE, "datatype": BYTES, "shape": [-1]}],
        "outputs": [
            {"name": one.name, "datatype": _DATATYPE[one.dtype], "shape": list(_whole(served, one))}
            for one in tensors_of(served)
            if one.usual
        ],
    }


def config(served: ServableModel) -> dict[str, Any]:
    """The configuration of a model, as ``GET /v2/models/{name}/config`` returns it: what clients need of Triton's."""
    info = metadata(served, [])
    return {
        "name": served.key.name,
        "platform": info["platform"],
        "backend": "onnxruntime",
        "version_policy": {"all": {}},
        "max_batch_size": 0,
        "input": [
            {"name": one["name"], "data_type": f"TYPE_{_config_type(one['datatype'])}", "dims": one["shape"]}
            for one in info["inputs"]
        ],
        "output": [
            {"name": one["name"], "data_type": f"TYPE_{_config_type(one['datatype'])}", "dims": one["shape"]}
            for one in info["outputs"]
        ],
    }


def server_metadata(version: str) -> dict[str, Any]:
    """The metadata of the server, as ``GET /v2`` returns it."""
    return {"name": "ekiben", "version": version, "extensions": list(EXTENSIONS)}


def output_info(served: ServableModel) -> dict[str, TensorInfo]:
    """The outputs of a model, by name."""
    return {one.name: one for one in tensors_of(served)}


@lru_cache(256)
def graph_input(served: ServableModel) -> GraphInput:
    """The input of a model's graph; not of Segment Anything."""
    return GraphInput.model_validate(served.manifest["input"])


def _whole(served: ServableModel, info: TensorInfo) -> tuple[int, ...]:
    return info.shape if served.family == "sam" else (-1, *info.shape)


def _config_type(datatype: str) -> str:
    return "STRING" if datatype == BYTES else datatype
