"""Every architecture and every loss trains a step; every architecture exports with parity."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from ekiben.training import Architecture, Loss, TrainingOptions
from export.verify import ParityError, measure_parity
from export.writer import write_onnx, write_torchscript
from training.artifact import PROBE_BATCHES, probe_export
from training.losses import criterion
from training.networks import build, channels_of, parameter_count, read_state


def small(**options: Any) -> TrainingOptions:
    return TrainingOptions(width=4, depth=3, tile=64, **options)


@pytest.mark.parametrize(("architecture", "classes"), [(name, 2) for name in get_args(Architecture)] + [("unet", 3)])
def test_an_architecture_steps_and_exports(architecture: Architecture, classes: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build(small(architecture=architecture), classes)
    images = torch.randn(2, 3, 64, 64)
    truth = torch.randint(0, classes, (2, 64, 64))
    loss = _step(network, "dice_ce", images, truth)
    assert _step(network, "dice_ce", images, truth) < loss
    network.eval()
    write_onnx(network, images, tmp_path / "m.onnx", classes=channels_of(classes), dynamic_size=False)
    write_torchscript(network, images, tmp_path / "m.pt")
    batches = [torch.randn(batch, 3, 64, 64) for batch in PROBE_BATCHES]
    parity = measure_parity(network, tmp_path / "m.onnx", tmp_path / "m.pt", (), real=batches, real_from="here")
    assert 0 < parity.onnx_max_abs <= 1e-3 and parity.inputs == "here"
    state = read_state(tmp_path / "m.pt")
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in state.items())


class _Baked(nn.Module):
    """A network whose exports work for the batch size of their example alone."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels[:, :1] + torch.zeros(int(pixels.shape[0]), 1, 64, 64)


def test_what_cannot_be_exported_is_found_out_before_the_first_epoch(tmp_path: Path) -> None:
    with pytest.raises(ParityError):
        probe_export(_Baked(), small(), 2, tmp_path / "probe")
    assert list(tmp_path.iterdir()) == []


def test_the_padded_shortcut_is_monais_and_passes_the_gradient() -> None:
    torch.manual_seed(0)
    network = build(TrainingOptions(width=4, tile=64, architecture="resnet34_unet"), 2)
    shortcuts = [module for module in network.modules() if type(module).__name__ == "_PaddedShortcut"]
    assert [(each.channels, each.stride) for each in shortcuts] == [(128, 2), (256, 2), (512, 2)]
    x = torch.randn(2, 64, 8, 8, requires_grad=True)
    out = shortcuts[0](x)
    expected = torch.cat([x[:, :, ::2, ::2], torch.zeros(2, 64, 4, 4)], dim=1)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    assert x.grad is not None and float(x.grad.sum()) == 2 * 64 * 4 * 4


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", get_args(Loss))
def test_a_loss_falls_and_knows_the_truth(name: Loss, classes: int) -> None:
    torch.manual_seed(0)
    network = build(small(), classes)
    images, truth = torch.randn(2, 3, 64, 64), torch.randint(0, classes, (2, 64, 64))
    losses = [_step(network, name, images, truth) for _ in range(4)]
    assert losses[-1] < losses[0]
    of = criterion(name, channels_of(classes))
    certain = nn.functional.one_hot(truth, classes).permute(0, 3, 1, 2).float() * 40 - 20
    right, wrong = (certain[:, 1:], -certain[:, 1:]) if classes == 2 else (certain, -certain)
    assert float(of(right, truth)) == pytest.approx(0, abs=1e-3)
    assert float(of(wrong, truth)) > 0.5


def test_the_default_has_the_size_that_its_description_says() -> None:
    assert parameter_count(build(TrainingOptions(), 2)) == 1_625_420


@pytest.mark.parametrize("options", [{"tile": 32, "depth": 6}, {"tile": 32, "architecture": "resnet34_unet"}])
def test_a_window_must_be_large_enough_for_the_depth(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="64"):
        TrainingOptions(**options)


@pytest.mark.parametrize("options", [{"tile": 64, "depth": 6}, {"tile": 64, "architecture": "resnet34_unet"}])
def test_the_smallest_window_of_the_deepest_network_trains(options: dict[str, Any]) -> None:
    network = build(TrainingOptions(width=4, **options), 2)
    assert _step(network, "dice_ce", torch.randn(1, 3, 64, 64), torch.randint(0, 2, (1, 64, 64))) > 0


def _step(network: nn.Module, name: Loss, images: torch.Tensor, truth: torch.Tensor) -> float:
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    channels = network(images).shape[1]
    loss = criterion(name, channels)(network(images), truth)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in network.parameters())
    optimizer.step()
    return float(loss.detach())
