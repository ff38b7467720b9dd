"""Metadata of the Open Inference Protocol: names, datatypes and shapes of each family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from google.protobuf.json_format import ParseDict
from tritonclient.grpc import model_config_pb2

from models.artifact import Manifest
from models.model_key import ModelKey
from models.results import TensorInfo
from services.model_registry.index import ServableModel
from services.open_inference.metadata import (
    EXTENSIONS,
    config,
    graph_input,
    metadata,
    output_info,
    server_metadata,
    tensors_of,
)
from tests import toy_models, toy_sam

Served = Callable[..., ServableModel]

BYTES_IN = {"name": "image", "datatype": "BYTES", "shape": [-1]}


@pytest.fixture
def served(tmp_path: Path) -> Served:
    """A version of a toy family; its digest is the folder."""

    def serve(make: Callable[..., Manifest], **options: object) -> ServableModel:
        folder = tmp_path / make.__name__
        manifest = make(folder, **options)
        key = ModelKey("local", make.__name__, 3)
        info = manifest.model_dump(mode="json")
        return ServableModel(key, manifest.task, len(manifest.labels), manifest.family, str(folder), info)

    return serve


def test_a_classifier_gives_its_confidences(served: Served) -> None:
    model = served(toy_models.classifier)
    classes = len(toy_models.CLASSES)
    assert metadata(model, [1, 3, 12]) == {
        "name": "classifier",
        "versions": ["1", "3", "12"],
        "platform": "onnxruntime_onnx",
        "inputs": [BYTES_IN],
        "outputs": [{"name": "probs", "datatype": "FP32", "shape": [-1, classes]}],
    }
    own = Manifest.model_validate(model.manifest).only_output.name
    assert output_info(model) == {
        "probs": TensorInfo("probs", "float32", (classes,)),
        own: TensorInfo(own, "float32", (classes,), usual=False),
    }


def test_segmentation_gives_a_class_map_of_any_size(served: Served) -> None:
    class_map = {"name": "class_map", "datatype": "UINT8", "shape": [-1, -1, -1]}
    assert metadata(served(toy_models.segmenter), [])["outputs"] == [class_map]
    binary = served(toy_models.unet, binary=True)
    assert metadata(binary, [])["outputs"] == [class_map]
    assert output_info(binary) == {
        "class_map": TensorInfo("class_map", "uint8", (-1, -1)),
        "probability": TensorInfo("probability", "float32", (-1, -1), usual=False),
    }


def test_segment_anything_gives_masks_and_their_predicted_iou(served: Served) -> None:
    model = served(toy_sam.sam)
    assert metadata(model, [3]) == {
        "name": "sam",
        "versions": ["3"],
        "platform": "onnxruntime_onnx",
        "inputs": [BYTES_IN],
        "outputs": [
            {"name": "masks", "datatype": "BOOL", "shape": [-1, -1, -1, -1]},
            {"name": "iou_predictions", "datatype": "FP32", "shape": [-1, -1]},
        ],
    }
    assert [(one.name, one.shape) for one in tensors_of(model) if not one.usual] == [
        ("stability_scores", (-1, -1)),
        ("low_res_masks", (-1, -1, 256, 256)),
    ]


@pytest.mark.parametrize("make", [toy_models.classifier, toy_models.segmenter, toy_models.unet, toy_sam.sam])
def test_the_configuration_is_one_that_triton_knows(make: Callable[..., Manifest], served: Served) -> None:
    """Read as Triton's own message; it says what the metadata say."""
    model = served(make)
    given = config(model)
    info = metadata(model, [])
    message = ParseDict(given, model_config_pb2.ModelConfig())
    assert (message.name, message.platform, message.backend) == (make.__name__, "onnxruntime_onnx", "onnxruntime")
    assert message.max_batch_size == 0
    assert message.version_policy.WhichOneof("policy_choice") == "all"
    types = {"BYTES": "TYPE_STRING", "BOOL": "TYPE_BOOL", "FP32": "TYPE_FP32", "UINT8": "TYPE_UINT8"}
    for ours, theirs in ((info["inputs"], message.input), (info["outputs"], message.output)):
        assert [(one.name, model_config_pb2.DataType.Name(one.data_type), list(one.dims)) for one in theirs] == [
            (one["name"], types[one["datatype"]], one["shape"]) for one in ours
        ]


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_the_input_of_the_graph_is_the_manifests(dtype: str, layout: str, served: Served) -> None:
    model = served(toy_models.classifier, dtype=dtype, layout=layout)
    graph = graph_input(model)
    (file,) = Path(model.digest).glob("*.onnx")
    (given,) = onnx.load(file).graph.input
    assert graph.name == given.name
    assert graph.dtype == dtype == onnx.helper.tensor_dtype_to_np_dtype(given.type.tensor_type.elem_type)
    dims = [dim.dim_value for dim in given.type.tensor_type.shape.dim][1:]
    assert dims == ([graph.height, graph.width, 3] if layout == "NHWC" else [3, graph.height, graph.width])
    assert graph.layout == layout


def test_the_server_names_the_extensions_that_it_has() -> None:
    given = server_metadata("1.2.3")
    assert given == {"name": "ekiben", "version": "1.2.3", "extensions": sorted(given["extensions"])}
    assert set(given["extensions"]) == set(EXTENSIONS)
    assert {"binary_tensor_data", "classification"} <= set(given["extensions"])
    assert not {"shared_memory", "system_shared_memory", "cuda_shared_memory", "sequence"} & set(given["extensions"])
