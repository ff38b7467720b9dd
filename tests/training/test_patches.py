"""Windows and their augmentation: deterministic, aligned with their masks, and where the foreground is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training import discs
from training.augmentation import PRESETS, Preset, augment
from training.data import TrainingData, normalisation
from training.patches import MAX_PATCHES, PatchSampler, foreground_spot


def archive_of(path: Path, side: int, count: int = 3, size: int | None = None) -> TrainingData:
    made = discs.images(count, side=side)
    # The red channel tells the class, so that a window can be checked against its own mask.
    marked = [(np.dstack([mask * np.uint8(200), rgb[..., 1], rgb[..., 2]]), mask) for rgb, mask in made]
    discs.write_archive(path, marked)
    return TrainingData(path, side=size, cache_bytes=1 << 24)


@pytest.mark.parametrize(("side", "tiles"), [(64, 1), (40, 1), (100, 3), (300, MAX_PATCHES)])
def test_windows_per_image(side: int, tiles: int, tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "a.zip", side)
    epoch = PatchSampler(archive, [0, 2], 64, 4, (0, 0))
    batches = list(epoch.epoch(1))
    assert len(batches) == epoch.steps and sum(len(batch.images) for batch in batches) == epoch.count == 2 * tiles
    for batch in batches:
        assert batch.images.shape[1:] == (3, 64, 64) and batch.classes.shape[1:] == (64, 64)
        assert torch.equal(batch.images[:, 0], batch.classes * 200)


def test_an_epoch_is_the_same_again_and_another_is_another(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "a.zip", 100)

    def pixels(epoch: int, seed: int = 0) -> list[torch.Tensor]:
        return [batch.images for batch in PatchSampler(archive, [0, 1], 64, 2, (seed, 0)).epoch(epoch)]

    first = pixels(1)
    assert all(torch.equal(a, b) for a, b in zip(first, pixels(1), strict=True))
    assert not torch.equal(first[0], pixels(2)[0]) and not torch.equal(first[0], pixels(1, seed=1)[0])


def test_two_processes_share_the_windows_of_one(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "a.zip", 130)
    alone = list(PatchSampler(archive, [0, 1], 64, 4, (0, 0)).epoch(3))
    both = [list(PatchSampler(archive, [0, 1], 64, 4, (0, 0), rank=rank, world=2).epoch(3)) for rank in range(2)]
    for whole, one, two in zip(alone, *both, strict=True):
        assert torch.equal(whole.images[0::2], one.images) and torch.equal(whole.images[1::2], two.images)


def test_foreground_is_sought_in_large_images(tmp_path: Path) -> None:
    mask = np.zeros((1000, 1000), np.uint8)
    mask[900:908, 30:38] = 1
    discs.write_archive(tmp_path / "a.zip", [(np.zeros((1000, 1000, 3), np.uint8), mask)] * 3)
    tiles = PatchSampler(TrainingData(tmp_path / "a.zip", side=None, cache_bytes=0), [0], 64, 16, (0, 0))
    seen = [bool(classes.any()) for epoch in range(6) for batch in tiles.epoch(epoch) for classes in batch.classes]
    assert 0.2 < np.mean(seen) < 0.5  # by chance alone one in two hundred
    assert foreground_spot(np.zeros((8, 8), np.uint8), 0.5) is None
    assert all(mask[foreground_spot(mask, draw) or (0, 0)] == 1 for draw in (0.0, 0.3, 0.999))


def test_images_are_resized_where_asked_and_their_normalisation_follows(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "a.zip", 100, size=64)
    rgb, mask = archive.pixels(0)
    assert rgb.shape == (64, 64, 3) and set(np.unique(mask)) == {0, 1}
    mean, std = normalisation(archive, [0, 1])
    pixels = np.concatenate([archive.pixels(index)[0].reshape(-1, 3) for index in (0, 1)]) / 255
    np.testing.assert_allclose(mean, pixels.mean(0), atol=1e-6)
    np.testing.assert_allclose(std, pixels.std(0), atol=1e-6)


def batch_of(count: int = 8, side: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    made = discs.images(count, 3, side)
    images = torch.stack([torch.from_numpy(rgb).permute(2, 0, 1) for rgb, _ in made])
    return images, torch.stack([torch.from_numpy(mask) for _, mask in made])


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_keeps_shapes_classes_and_its_seed(name: str) -> None:
    images, classes = batch_of()
    preset = PRESETS[name]  # type: ignore[index]
    varied, moved = augment(images, classes, preset, seed=3)
    again, _ = augment(images, classes, preset, seed=3)
    assert torch.equal(varied, again)
    assert varied.shape == images.shape and moved.shape == classes.shape and moved.dtype == torch.int64
    assert set(moved.ravel().tolist()) <= {0, 1, 2} and bool(torch.isfinite(varied).all())
    assert torch.equal(varied, images / 255) is (name == "none")
    other, _ = augment(images, classes, preset, seed=4)
    assert torch.equal(varied, other) is (name == "none")


def test_mirroring_and_turning_by_quarters_change_no_pixel() -> None:
    images, classes = batch_of(16)
    varied, moved = augment(images, classes, PRESETS["light"], seed=0)
    found = set()
    for image, mask, was, truth in zip(varied, moved, images.float() / 255, classes.long(), strict=True):
        ways = [(turn, flip) for turn in range(4) for flip in (False, True)]
        for way in ways:
            expected = [torch.rot90(p.flip(-1) if way[1] else p, way[0], (-2, -1)) for p in (was, truth)]
            if torch.allclose(image, expected[0], atol=1e-4) and torch.equal(mask, expected[1]):
                found.add(way)
                break
        else:
            raise AssertionError("neither a quarter turn nor a mirror image")
    assert len(found) >= 5


def test_masks_move_with_their_images() -> None:
    _, classes = batch_of(8)
    images = (classes[:, None] * 100).repeat(1, 3, 1, 1)
    varied, moved = augment(images, classes, Preset(mirrored=True, turn=45, zoom=0.4), seed=1)
    agree = (varied[:, 0] * 255 / 100).round() == moved
    assert agree.float().mean() > 0.97  # but for outlines, where the image is bilinear
