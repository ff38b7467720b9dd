"""What a training publishes, served by the engine: the answers are what torch computes from its checkpoint."""

from __future__ import annotations

import asyncio
import io
import json
import time
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import training.artifact
from ekiben.errors import Refusal
from ekiben.settings import Settings
from ekiben.training import Architecture, TrainingOptions
from models.artifact import read_manifest
from models.engine.loader import LoadedNetwork
from models.images import DecodedImage
from models.inference_requests import InferenceRequest
from models.model_key import ModelKey
from services.runners.local import LocalRunner
from tests.training import discs
from training.artifact import PROBE_BATCHES
from training.checkpoint import CHECKPOINT
from training.networks import build

KEY = ModelKey("local", "trained", 1)

ONE_EACH: dict[str, Any] = {"epochs": 1, "validation_share": 0.3, "test_share": 0.3}
"""Of three images one each to train, to validate and to test."""


def reference(folder: Path, made: list[tuple[discs.Pixels, discs.Pixels]], pixels: discs.Pixels) -> NDArray[np.float32]:
    """Logits float32 [N, C, side, side] of RGB ``pixels`` [N, side, side, 3], from the checkpoint and torch alone."""
    options = TrainingOptions.model_validate_json((folder / "options.json").read_text())
    kept = torch.load(folder / CHECKPOINT, weights_only=True)["fit"]
    network = build(options, len(read_manifest(folder / "artifact").labels))
    network.load_state_dict(kept["best"])
    rows = json.loads((folder / "evaluation.json").read_text())["samples"]
    trained = np.concatenate(
        [made[int(row["name"].split(".")[0])][0].reshape(-1, 3) for row in rows if row["part"] == "train"]
    )
    mean, std = trained.mean(axis=0) / 255, trained.std(axis=0) / 255
    with torch.inference_mode():
        given = torch.from_numpy(((pixels / 255 - mean) / std).astype(np.float32)).permute(0, 3, 1, 2)
        # One by one: what is asked of the engine in batches must not depend on them.
        return np.concatenate([network.eval()(row[None]).numpy() for row in given])


def ask(folder: Path, images: list[discs.Pixels]) -> tuple[list[discs.Pixels], list[NDArray[Any]]]:
    """The masks that the runner answers for ``images``, all asked at once; the logits of batches of PROBE_BATCHES."""

    async def asked() -> tuple[list[discs.Pixels], list[NDArray[Any]]]:
        settings = Settings(home=folder, device="cpu", threads=1)
        runner = LocalRunner(settings, lambda _: folder / "artifact")
        try:
            deadline = time.monotonic() + 60
            requests = [InferenceRequest(_png(image), renders=("mask",)) for image in images]
            answers = await asyncio.gather(*(runner.infer(KEY, request, deadline) for request in requests))
            masks = [np.asarray(Image.open(io.BytesIO(answer.answer.renders["mask"]))) for answer in answers]
            loaded = runner.engine.lease(KEY)
            assert isinstance(loaded, LoadedNetwork)
            inputs = np.stack([loaded.family.preprocess(_decoded(image)) for image in images])
            logits = [loaded.run(inputs[:batch]) for batch in PROBE_BATCHES]
            runner.engine.release(loaded)
            return masks, logits
        finally:
            await runner.close()

    return asyncio.run(asked())


@pytest.mark.parametrize(("architecture", "classes"), [(name, 2) for name in get_args(Architecture)] + [("unet", 3)])
def test_every_architecture_is_trained_and_served_as_torch_has_it(
    architecture: Architecture, classes: int, tmp_path: Path
) -> None:
    folder = discs.folder_of(tmp_path, {**ONE_EACH, "architecture": architecture}, count=3, classes=classes)
    discs.trained(folder)
    images = [image for image, _ in discs.images(max(PROBE_BATCHES), classes, seed=1)]
    expected = reference(folder, discs.images(3, classes), np.stack(images))
    masks, logits = ask(folder, images)
    allowed = 1e-3 * max(1.0, float(expected.std()))
    for batch, found in zip(PROBE_BATCHES, logits, strict=True):
        np.testing.assert_allclose(found, expected[:batch], rtol=0, atol=allowed)
    if classes == 2:
        threshold = read_manifest(folder / "artifact").only_output.threshold
        margin = np.abs(expected[:, 0] - np.log(threshold / (1 - threshold)))
        truth = 1 / (1 + np.exp(-expected[:, 0].astype(np.float64))) >= threshold
    else:
        ordered = np.sort(expected, axis=1)
        margin, truth = ordered[:, -1] - ordered[:, -2], expected.argmax(axis=1)
    sure = margin > 2 * allowed
    assert sure.mean() > 0.9
    assert np.array_equal(np.stack(masks)[sure], truth[sure])


DIVERGED_OR_SERVED: dict[str, dict[str, Any]] = {
    **{
        f"learning rate 1, {loss}": {"learning_rate": 1, "loss": loss, "epochs": 3}
        for loss in ("dice", "ce", "dice_ce", "tversky")
    },
    "learning rate 1, three classes": {"learning_rate": 1, "loss": "dice", "epochs": 3, "classes": 3},
    "learning rate and weight decay 1": {"learning_rate": 1, "weight_decay": 1, "epochs": 3},
    "learning rate 1, attention": {"learning_rate": 1, "architecture": "attention_unet", "epochs": 2},
    "learning rate 1, mixed precision": {"learning_rate": 1, "precision": "mixed", "epochs": 2},
}

SERVED: dict[str, dict[str, Any]] = {
    "the smallest learning rate": {"learning_rate": 5e-324},
    "batches of one": {"batch_size": 1},
    "the largest batch": {"batch_size": 256},
    "one image to train on, with normalised batches of one": {"batch_size": 1, "architecture": "attention_unet"},
    "the largest shares": {"count": 24, "validation_share": 0.8999, "test_share": 0.05},
    "the smallest shares": {"count": 24, "validation_share": 5e-324, "test_share": 5e-324},
    "the largest seed": {"seed": 2**31 - 1, "augmentation": "strong"},
    "no time": {"max_minutes": 5e-324, "epochs": 2000},
    "as many folds as images": {"folds": 3},
    "the deepest, its sides no multiple of 64": {"depth": 6, "tile": 96},
    "the smallest tile": {"tile": 32},
    "images smaller than the tile": {"side": 31},
    "images of one pixel": {"side": 1, "count": 24},
    "images larger than the tile": {"side": 75},
    "images resized": {"side": 75, "tile": None, "image_size": 96},
    "the most classes": {"classes": 256},
}

LONG = ("the most classes", "the deepest, its sides no multiple of 64")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.acceptance) if case in LONG else case
        for case in (*SERVED, *DIVERGED_OR_SERVED)
    ],
)
def test_what_is_allowed_at_the_extremes_is_served_or_said_to_diverge(case: str, tmp_path: Path) -> None:
    options = {"count": 3, "classes": 2, "side": 64, **ONE_EACH, **(SERVED | DIVERGED_OR_SERVED)[case]}
    count, classes, side = (options.pop(name) for name in ("count", "classes", "side"))
    folder = discs.folder_of(tmp_path, options, count=count, classes=classes, side=side)
    try:
        result = discs.trained(folder).said_result
    except Refusal as refused:
        assert case in DIVERGED_OR_SERVED and refused.code == "diverged", refused.message
        assert "learning_rate" in refused.message
        return
    assert result["training"]["options"]["seed"] == options.get("seed", 0)
    tile = result["training"]["side"]
    images = [image for image, _ in discs.images(max(PROBE_BATCHES), 2, side=tile, seed=1)]
    masks, logits = ask(folder, images)
    assert {mask.shape for mask in masks} == {(tile, tile)} and all(np.isfinite(part).all() for part in logits)


@pytest.mark.parametrize("level", [0, 200])
def test_images_of_one_colour_are_refused_before_the_first_epoch(level: int, tmp_path: Path) -> None:
    folder = discs.folder_of(tmp_path, {"epochs": 1})
    made = [(np.full_like(image[: 40 + n], level), mask[: 40 + n]) for n, (image, mask) in enumerate(discs.images(24))]
    discs.write_archive(folder / "dataset.zip", made)
    with pytest.raises(Refusal, match="same colour") as refused:
        discs.trained(folder)
    assert refused.value.code == "bad_dataset"
    assert not (folder / CHECKPOINT).exists()


def test_parity_is_measured_where_there_is_something_to_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the corners of scans, which have one colour."""
    measured: list[torch.Tensor] = []
    measure = training.artifact.measure_parity

    def spied(*given: Any, real: list[torch.Tensor], **more: Any) -> Any:
        measured[:] = real
        return measure(*given, real=real, **more)

    monkeypatch.setattr(training.artifact, "measure_parity", spied)
    folder = discs.folder_of(tmp_path, ONE_EACH)
    beside = ((64, 64), (64, 64))
    scans = [(np.pad(image, (*beside, (0, 0))), np.pad(mask, beside)) for image, mask in discs.images(3)]
    discs.write_archive(folder / "dataset.zip", scans)
    discs.trained(folder)
    tiles, _ = measured
    assert all(float(tile.std()) > 0.1 for tile in tiles)


def _png(pixels: discs.Pixels) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def _decoded(pixels: discs.Pixels) -> DecodedImage:
    return DecodedImage(Image.fromarray(pixels), "image/png")
