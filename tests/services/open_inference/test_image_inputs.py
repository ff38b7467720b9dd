"""Images as tensors that are prepared for the graph: their numbers stay finite in the graph's own type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ekiben.errors import BadInput
from models.inference_requests import PreparedTensor
from models.model_key import ModelKey
from services.model_registry.index import ServableModel
from services.open_inference.image_inputs import read
from services.open_inference.tensors import Tensor


def model(dtype: str) -> ServableModel:
    manifest = {"input": {"name": "x", "dtype": dtype, "height": 2, "width": 2}}
    return ServableModel(ModelKey("local", dtype, 1), "classify", 3, "classifier", manifest=manifest)


def prepared(dtype: str, values: Any) -> np.ndarray:
    (image,), single = read(model(dtype), {"image": Tensor("image", np.broadcast_to(values, (3, 2, 2)))})
    assert single
    assert isinstance(image, PreparedTensor)
    return image.values


@pytest.mark.parametrize(
    ("dtype", "largest"), [("float32", np.float64(3e38)), ("float16", np.float32(65504)), ("float16", np.float64(-6e4))]
)
def test_numbers_are_given_in_the_type_of_the_graph(dtype: str, largest: np.floating) -> None:
    values = prepared(dtype, largest)
    assert values.dtype == dtype
    assert (values == np.dtype(dtype).type(largest)).all()


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("float32", np.float32(np.nan)),
        ("float32", np.float16(-np.inf)),
        ("float32", np.float64(3.5e38)),
        ("float16", np.float32(65520)),
        ("float16", np.float64(-1e5)),
    ],
)
def test_numbers_beyond_it_are_refused(dtype: str, value: np.floating) -> None:
    with pytest.raises(BadInput) as caught:
        prepared(dtype, value)
    assert str(caught.value) == f"image holds values that are not finite as {dtype}"
