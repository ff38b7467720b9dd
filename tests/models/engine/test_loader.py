"""From an artifact folder to a warm model: threads, memory, and why one does not load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ekiben.errors import BadModelFile
from models.artifact import MANIFEST, ONNX, Manifest, Preprocess, write_manifest
from models.engine import loader
from models.engine.engine import ModelKey
from models.engine.loader import estimate_bytes, load_artifact
from models.engine.session_options import SessionOptions, cores
from models.image_batch_steps import ImageBatchSteps
from models.inference_requests import InferenceRequest
from tests import toy_models

KEY = ModelKey("local", "toy", 1)
CPU = SessionOptions(device="cpu", threads=0)


def rewritten(folder: Path, manifest: Manifest, **change: Any) -> None:
    write_manifest(folder, manifest.model_copy(update=change))


def test_a_loaded_model_is_warm_and_knows_itself(tmp_path: Path) -> None:
    manifest = toy_models.classifier(tmp_path)
    loaded = load_artifact(KEY, tmp_path, CPU)
    assert (loaded.key, loaded.manifest) == (KEY, manifest)
    assert 0 < loaded.warmup_s < 5
    assert (loaded.detached, loaded.users_left) == (False, 0)
    batch = np.ones((2, 3, toy_models.SIDE, toy_models.SIDE), np.float32)
    white = np.full((1, 1, 3), 255, np.uint8)
    assert loaded.run(batch) == pytest.approx(np.stack([toy_models.logits_of(white)] * 2), abs=1e-5)


def test_a_light_model_gets_a_thread_per_core_a_heavy_one_all_cores_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy_models.classifier(tmp_path)
    opened: list[int] = []
    open_session = loader.open_session

    def counting(folder: Path, manifest: Manifest, options: SessionOptions, guard: Any = None) -> Any:
        opened.append(options.threads)
        return open_session(folder, manifest, options, guard)

    monkeypatch.setattr(loader, "open_session", counting)
    monkeypatch.setattr(loader, "HEAVY_RUN_S", 1e9)
    assert load_artifact(KEY, tmp_path, SessionOptions(device="cpu", threads=3)).max_concurrency == 3
    assert load_artifact(KEY, tmp_path, CPU).max_concurrency == cores()
    assert opened == [1, 1]
    opened.clear()
    monkeypatch.setattr(loader, "HEAVY_RUN_S", 0.0)
    assert load_artifact(KEY, tmp_path, SessionOptions(device="cpu", threads=3)).max_concurrency == 1
    assert load_artifact(KEY, tmp_path, SessionOptions(device="cpu", threads=1)).max_concurrency == 1
    assert opened == [1, 3, 1]


@pytest.mark.parametrize("megabytes", [5, 30])
def test_memory_is_at_least_the_file_and_not_far_above(tmp_path: Path, megabytes: int) -> None:
    toy_models.classifier(tmp_path, ballast_bytes=megabytes * 1_000_000)
    size = (tmp_path / ONNX).stat().st_size
    assert size > megabytes * 1_000_000
    assert estimate_bytes(tmp_path) == int(1.3 * size)
    loaded = load_artifact(KEY, tmp_path, CPU)
    assert size <= loaded.memory_bytes <= 4 * size + 64_000_000
    loaded.session.close()


def test_the_ballast_changes_no_answer(tmp_path: Path) -> None:
    toy_models.classifier(tmp_path / "heavy", ballast_bytes=1_000_000)
    toy_models.classifier(tmp_path / "light")
    heavy, light = (load_artifact(KEY, tmp_path / name, CPU) for name in ("heavy", "light"))
    batch = np.random.default_rng(0).random((3, 3, toy_models.SIDE, toy_models.SIDE), np.float32)
    assert np.array_equal(heavy.run(batch), light.run(batch))


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    toy_models.classifier(tmp_path)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(BadModelFile, match=r"manifest\.json is missing"):
        load_artifact(KEY, tmp_path, CPU)


def test_a_folder_without_a_graph_is_refused(tmp_path: Path) -> None:
    toy_models.classifier(tmp_path)
    (tmp_path / ONNX).unlink()
    with pytest.raises(BadModelFile, match=r"model\.onnx"):
        estimate_bytes(tmp_path)
    with pytest.raises(BadModelFile, match=r"model\.onnx"):
        load_artifact(KEY, tmp_path, CPU)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda m: {"input": m.input.model_copy(update={"name": "other"})}, id="input name"),
        pytest.param(lambda m: {"output": m.output.model_copy(update={"name": "other"})}, id="output name"),
        pytest.param(lambda m: {"input": m.input.model_copy(update={"dtype": "uint8"})}, id="type"),
        pytest.param(lambda m: {"input": m.input.model_copy(update={"layout": "NHWC"})}, id="layout"),
        pytest.param(lambda m: {"input": m.input.model_copy(update={"height": 20})}, id="size"),
        pytest.param(
            lambda m: {
                "input": m.input.model_copy(update={"height": None, "width": None}),
                "preprocess": Preprocess(),
            },
            id="no size at all",
        ),
    ],
)
def test_a_graph_that_does_not_run_as_its_manifest_says_is_refused(tmp_path: Path, change: Any) -> None:
    manifest = toy_models.classifier(tmp_path)
    rewritten(tmp_path, manifest, **change(manifest))
    with pytest.raises(BadModelFile, match="does not run as its manifest says") as refused:
        load_artifact(KEY, tmp_path, CPU)
    assert "\n" not in refused.value.message


def test_work_decodes_runs_and_reads(tmp_path: Path) -> None:
    toy_models.classifier(tmp_path)
    work = ImageBatchSteps(load_artifact(KEY, tmp_path, CPU))
    asks = [
        InferenceRequest(toy_models.encoded(toy_models.solid(color, 50, 40)), top_k=2)
        for color in ((0, 0, 255), (0, 255, 0))
    ]
    keys, prepared = zip(*(work.prepare(request) for request in asks), strict=True)
    assert len(set(keys)) == 1
    outputs = work.run(prepared)
    answers = [work.finish(output, one, request) for output, one, request in zip(outputs, prepared, asks, strict=True)]
    assert [[s.class_name for s in a.scores] for a in answers] == [["blue", "dark"], ["green", "dark"]]
    assert [(a.image.width, a.image.height, a.image.mime_type) for a in answers] == [(50, 40, "image/png")] * 2
