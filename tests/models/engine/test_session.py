"""Sessions on toy graphs: right numbers at every batch, fixed batches, devices, TorchScript beside ONNX Runtime."""

from __future__ import annotations

import os
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from ekiben.errors import BadModelFile, Unavailable
from models.artifact import ONNX, TORCHSCRIPT, Manifest
from models.engine.session import RUNTIMES, Session, open_session
from models.engine.session_options import SessionOptions, cores
from tests import toy_models

CPU = SessionOptions(device="cpu")
WITHOUT_CUDA = "CUDAExecutionProvider" not in onnxruntime.get_available_providers()


def images(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, toy_models.SIDE, toy_models.SIDE, 3), dtype=np.uint8)


def tensors(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray((pixels / 255).astype(np.float32).transpose(0, 3, 1, 2))


def expected(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    return np.stack([toy_models.logits_of(one) for one in pixels])


def opened(folder: Path, options: SessionOptions = CPU, **toy: Any) -> Session:
    return open_session(folder, toy_models.classifier(folder, **toy), options)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_dynamic_batch_takes_any_count(tmp_path: Path, count: int) -> None:
    session = opened(tmp_path)
    assert session.max_batch is None and session.device == "cpu"
    output = session.run(tensors(images(count)))
    assert output.shape == (count, 4) and output.dtype == np.float32
    assert output == pytest.approx(expected(images(count)), abs=1e-5)


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_fixed_batch_is_filled_up_and_cut_off(tmp_path: Path, count: int) -> None:
    session = opened(tmp_path, batch=4)
    assert session.max_batch == 4
    output = session.run(tensors(images(count)))
    assert output.shape == (count, 4)
    assert output == pytest.approx(expected(images(count)), abs=1e-5)


def test_more_than_the_fixed_batch_is_a_mistake_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a batch of 5 for a graph that takes 4"):
        opened(tmp_path, batch=4).run(tensors(images(5)))


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
def test_other_input_types(tmp_path: Path, dtype: Any) -> None:
    pixels = images(3)
    session = opened(tmp_path, dtype=dtype, layout="NHWC", batch=4)
    output = session.run(pixels if dtype == "uint8" else (pixels / 255).astype(np.float16))
    assert output == pytest.approx(expected(pixels), abs=1e-5 if dtype == "uint8" else 5e-3)


def test_threads_run_one_session_at_once(tmp_path: Path) -> None:
    session = opened(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda seed: session.run(tensors(images(2, seed))), range(40)))
    for seed, output in enumerate(outputs):
        assert output == pytest.approx(expected(images(2, seed)), abs=1e-5)


def test_intra_op_threads_change_no_answer(tmp_path: Path) -> None:
    one, two = opened(tmp_path), opened(tmp_path, SessionOptions(device="cpu", threads=2))
    assert one.run(tensors(images(3))) == pytest.approx(two.run(tensors(images(3))), abs=1e-6)


def test_a_closed_session_runs_no_more(tmp_path: Path) -> None:
    session = opened(tmp_path)
    session.close()
    with pytest.raises(AttributeError):
        session.run(tensors(images(1)))


@pytest.mark.parametrize("content", [b"", b"no graph", None])
def test_a_file_that_does_not_load_is_a_bad_model_file(tmp_path: Path, content: bytes | None) -> None:
    manifest = toy_models.classifier(tmp_path)
    (tmp_path / ONNX).unlink()
    if content is not None:
        (tmp_path / ONNX).write_bytes(content)
    with pytest.raises(BadModelFile, match=r"ONNX Runtime cannot load .*model.onnx") as refused:
        open_session(tmp_path, manifest, CPU)
    assert "\n" not in refused.value.message


@pytest.mark.skipif(not WITHOUT_CUDA, reason="ONNX Runtime offers CUDA here")
def test_cuda_that_is_not_there_is_refused_and_auto_takes_the_cpu(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"EKIBEN_DEVICE=cuda.*onnxruntime-gpu"):
        opened(tmp_path, SessionOptions(device="cuda"))
    assert opened(tmp_path, SessionOptions(device="auto")).device == "cpu"


@pytest.mark.skipif(not WITHOUT_CUDA, reason="ONNX Runtime offers CUDA here")
def test_cuda_that_is_offered_but_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # onnxruntime-gpu on a machine without a GPU or its driver: the session falls back to the CPU by itself.
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert opened(tmp_path, SessionOptions(device="auto")).device == "cpu"
        with pytest.raises(Unavailable, match="CUDA does not start"):
            opened(tmp_path, SessionOptions(device="cuda"))


def test_there_are_two_runtimes() -> None:
    assert set(RUNTIMES) == {"onnx", "torchscript"}


def traced(folder: Path) -> Manifest:
    """The toy classifier with its TorchScript beside it, computed by torch alone."""
    torch: Any = pytest.importorskip("torch")

    class Toy(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("matrix", torch.from_numpy(toy_models.MATRIX))
            self.register_buffer("bias", torch.from_numpy(toy_models.BIAS))

        def forward(self, pixels: Any) -> Any:
            return pixels.mean(dim=(2, 3)) @ self.matrix + self.bias

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Toy().eval(), torch.rand(2, 3, 8, 8)), str(folder / TORCHSCRIPT))
    return toy_models.classifier(folder)


def test_torchscript_gives_what_onnx_runtime_gives(tmp_path: Path) -> None:
    manifest = traced(tmp_path)
    scripted = open_session(tmp_path, manifest, SessionOptions(device="cpu", runtime="torchscript"))
    assert scripted.device == "cpu" and scripted.max_batch is None
    for count in (1, 5):
        batch = tensors(images(count))
        output = scripted.run(batch)
        assert output.shape == (count, 4)
        assert output == pytest.approx(open_session(tmp_path, manifest, CPU).run(batch), abs=1e-5)
        assert output == pytest.approx(expected(images(count)), abs=1e-5)
    scripted.close()
    with pytest.raises(AttributeError):
        scripted.run(tensors(images(1)))


def test_torchscript_refusals(tmp_path: Path) -> None:
    torch: Any = pytest.importorskip("torch")
    options = SessionOptions(device="cpu", runtime="torchscript")
    manifest = traced(tmp_path)
    (tmp_path / TORCHSCRIPT).write_bytes(b"no module")
    with pytest.raises(BadModelFile, match=f"torch cannot load .*{TORCHSCRIPT}"):
        open_session(tmp_path, manifest, options)
    (tmp_path / TORCHSCRIPT).unlink()
    with pytest.raises(BadModelFile, match=r"no model.torchscript.pt; serve it with the onnx runtime"):
        open_session(tmp_path, manifest, options)
    if not torch.cuda.is_available():
        traced(tmp_path)
        with pytest.raises(Unavailable, match="torch sees no CUDA"):
            open_session(tmp_path, manifest, SessionOptions(device="cuda", runtime="torchscript"))


def test_torchscript_without_torch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "models.engine.torchscript_session", raising=False)
    with pytest.raises(Unavailable, match=r"needs torch, which is not installed \(torch\)"):
        opened(tmp_path, SessionOptions(runtime="torchscript"))


def test_cores_are_those_this_process_may_use() -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs CPU affinity")
def test_cores_follow_the_affinity() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
