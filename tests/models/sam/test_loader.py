"""From three graphs to a warm model, and what is refused on the way."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from ekiben.errors import BadModelFile
from models.artifact import DECODER, ENCODER, MASK_PROMPT
from models.engine.loader import load_model
from models.engine.session_options import SessionOptions
from models.model_key import ModelKey
from models.sam.graphs import Features, SamGraphs
from models.sam.loader import LoadedSam, load_sam
from tests import toy_sam

KEY = ModelKey("local", "sam_toy", 3)
CPU = SessionOptions(device="cpu", threads=2)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sam")
    toy_sam.sam(folder)
    return folder


@pytest.fixture
def copy(toy: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy, tmp_path / "sam"))


def test_a_model_is_warm_when_it_is_loaded(toy: Path) -> None:
    sam = load_model(KEY, toy, CPU)
    assert isinstance(sam, LoadedSam)
    assert (sam.key, sam.max_concurrency, sam.threads) == (KEY, 1, 2)
    assert sam.warmup_s > 0 and sam.memory_bytes > 0 and not sam.detached
    assert (sam.graphs.device, sam.encode_batch, sam.prompts_per_run, sam.points_per_run) == ("cpu", 1, 16, 4)
    assert sam.graphs.side_by_side is not sam.graphs.decoder
    sam.close()
    with pytest.raises(AttributeError):
        sam.graphs.blank()


def test_one_thread_needs_one_decoder(toy: Path) -> None:
    sam = load_sam(KEY, toy, SessionOptions(device="cpu", threads=1))
    assert sam.graphs.side_by_side is sam.graphs.decoder
    sam.close()


def test_the_runtime_must_read_onnx(toy: Path) -> None:
    with pytest.raises(BadModelFile, match="sam_toy version 3 has ONNX graphs only"):
        load_sam(KEY, toy, SessionOptions(device="cpu", runtime="torchscript"))


@pytest.mark.parametrize("name", [ENCODER, DECODER, MASK_PROMPT])
def test_each_graph_must_be_there_and_be_one(copy: Path, name: str) -> None:
    (copy / name).write_bytes(b"no graph")
    with pytest.raises(BadModelFile):
        load_sam(KEY, copy, CPU)
    (copy / name).unlink()
    with pytest.raises(BadModelFile):
        load_sam(KEY, copy, CPU)


def rename(path: Path, old: str, new: str) -> None:
    """An input or output of a graph gets another name."""
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        if value.name == old:
            value.name = new
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("graph", "name"),
    [
        (ENCODER, "pixels"),
        (ENCODER, "embedding"),
        (ENCODER, "queries"),
        (DECODER, "keys"),
        (DECODER, "min_iou"),
        (DECODER, "point_labels"),
        (DECODER, "kept"),
        (DECODER, "logits"),
        (MASK_PROMPT, "mask_input"),
        (MASK_PROMPT, "masked_tokens"),
    ],
)
def test_names_of_inputs_and_outputs(copy: Path, graph: str, name: str) -> None:
    rename(copy / graph, name, "renamed")
    with pytest.raises(BadModelFile, match=name):
        load_sam(KEY, copy, CPU)


def test_graphs_that_swapped_places(copy: Path) -> None:
    (copy / ENCODER).rename(copy / "x")
    (copy / DECODER).rename(copy / ENCODER)
    (copy / "x").rename(copy / DECODER)
    with pytest.raises(BadModelFile, match=r"the graphs in .* lack .*pixels"):
        load_sam(KEY, copy, CPU)


def test_an_image_of_several_is_an_image_alone(toy: Path) -> None:
    graphs = SamGraphs(toy, CPU, 2)
    pixels = np.random.default_rng(0).normal(0, 1, (3, 3, 1024, 1024)).astype(np.float32)
    together = graphs.encode(pixels)
    assert len(together) == 3
    for row, features in enumerate(together):
        assert [array.shape[0] for array in features.arrays] == [1] * 4
        (alone,) = graphs.encode(pixels[row : row + 1])
        for array, same in zip(features.arrays, alone.arrays, strict=True):
            assert np.allclose(array, same, atol=1e-5)
    graphs.close()


def test_the_bytes_of_features_are_all_they_hold(toy: Path) -> None:
    """What the cache counts is what it keeps alive: a row of a batch must not hold the whole batch."""
    graphs = SamGraphs(toy, CPU, 2)
    for features in graphs.encode(np.zeros((3, 3, 1024, 1024), np.float32)):
        kept = sum(array.base.nbytes if array.base is not None else array.nbytes for array in features.arrays)
        assert kept == features.nbytes
    graphs.close()


def test_rows_of_features() -> None:
    one = Features((np.ones((1, 2, 3), np.float32), np.full((1, 4), 5, np.float32)))
    assert one.nbytes == (6 + 4) * 4
    many = one.rows(3)
    assert [array.shape for array in many.arrays] == [(3, 2, 3), (3, 4)] and many.nbytes == 3 * one.nbytes
    other = Features((np.zeros((2, 2, 3), np.float32), np.array([[1] * 4, [2] * 4], np.float32)))
    mixed = many.replaced([2, 0], other)
    assert mixed.arrays[1][:, 0].tolist() == [2, 5, 1]
    assert mixed.arrays[0][:, 0, 0].tolist() == [0, 1, 0]
    assert many.arrays[1].min() == 5  # the first is left alone


def test_no_prompt_may_survive(toy: Path) -> None:
    graphs = SamGraphs(toy, CPU, 2)
    coords, labels = np.full((3, 2, 2), 512, np.float32), np.array([[1, -1]] * 3, np.float32)
    for wide in (False, True):
        none = graphs.decode(graphs.blank(), coords, labels, min_iou=5, wide=wide)
        assert (none.iou.shape, none.kept.shape, none.logits.shape) == ((3, 4), (0,), (0, 4, 256, 256))
        every = graphs.decode(graphs.blank(), coords, labels, wide=wide)
        assert every.kept.tolist() == [0, 1, 2] and every.logits.shape == (3, 4, 256, 256)
    graphs.close()
