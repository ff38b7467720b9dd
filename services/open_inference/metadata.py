"""What the Open Inference Protocol says of models: their inputs and outputs, and the names of its extensions."""

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
"""Of [prompts, masks of each]; stability is NaN for a mask that is empty at any threshold."""

_DATATYPE: Final = {"bool": "BOOL", "float32": "FP32", "uint8": "UINT8"}


@lru_cache(256)  # a version never changes
def tensors_of(served: ServableModel) -> tuple[TensorInfo, ...]:
    """What a model can answer. Shapes of Segment Anything are whole; those of the others lack the batch axis."""
    if served.family == "sam":
        return SAM_TENSORS
    return build_family(Manifest.model_validate(served.manifest)).tensors


def metadata(served: ServableModel, versions: list[int]) -> dict[str, Any]:
    """As ``GET /v2/models/{name}`` answers it. Only what every client may send and every answer has is declared."""
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
    """As ``GET /v2/models/{name}/config`` answers it: what clients need of Triton's message."""
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
    return {"name": "ekiben", "version": version, "extensions": list(EXTENSIONS)}


def output_info(served: ServableModel) -> dict[str, TensorInfo]:
    return {one.name: one for one in tensors_of(served)}


@lru_cache(256)
def graph_input(served: ServableModel) -> GraphInput:
    """What the graph of a model takes; not of Segment Anything."""
    return GraphInput.model_validate(served.manifest["input"])


def _whole(served: ServableModel, info: TensorInfo) -> tuple[int, ...]:
    return info.shape if served.family == "sam" else (-1, *info.shape)


def _config_type(datatype: str) -> str:
    return "STRING" if datatype == BYTES else datatype
