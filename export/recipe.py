"""Networks in memory, from a row of the zoo and a choice of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ekiben.errors import BadInput
from export import classifier, segmenter
from export.zoo import ZooRow
from models.artifact import Weights, sha256_of

BUILDERS: dict[str, Callable[[str, int], nn.Module]] = {
    "classifier": classifier.build,
    "segmenter": segmenter.build,
}
"""Family -> function from an architecture and a number of classes to a network that returns logits."""

# Parts of published files that no exported graph contains: DeepLabV3's second head exists for training only.
TRAINING_ONLY = ("aux_classifier.",)
_CALIBRATION_IMAGES = 8  # seeded; their median sets the scale of each layer


@dataclass(frozen=True)
class Recipe:
    """A network in eval mode, from pixels float32 [N, 3, H, W] to logits, and the origin of its weights.

    ``labels``: one per class, in the order of the logits.
    """

    row: ZooRow
    network: nn.Module
    labels: tuple[str, ...]
    weights: Weights


def published(row: ZooRow, file: Path, labels: tuple[str, ...] | None = None) -> Recipe:
    """The network with its published weights, read from ``file``. ``labels`` renames the classes.

    Raises BadInput when the file is no checkpoint of the network or the number of labels is wrong.
    """
    labels = _labels_for(row, labels, len(row.labels))
    network = BUILDERS[row.family](row.architecture, len(labels))
    load_state(network, read_checkpoint(file), file)
    return Recipe(row, network, labels, Weights(kind="published", detail=row.file, sha256=sha256_of(file)))


def random(row: ZooRow, seed: int, labels: tuple[str, ...] | None = None) -> Recipe:
    """The network with seeded random weights: for tests of shape, parity and speed; its predictions mean nothing."""
    labels = labels or row.labels
    torch.manual_seed(seed)
    network = BUILDERS[row.family](row.architecture, len(labels))
    _calibrate(network, row.height or 96)
    return Recipe(row, network, labels, Weights(kind="random", detail=f"seed {seed}"))


def checkpoint(row: ZooRow, file: Path, labels: tuple[str, ...] | None = None) -> Recipe:
    """The network with the weights of ``file``: a state_dict, bare or under "state_dict" or "model".

    The number of classes is that of the head in the file; when it is not the row's, ``labels`` is needed. Raises
    BadInput with what does not fit.
    """
    state = read_checkpoint(file)
    head = (classifier.HEADS | segmenter.HEADS)[row.architecture]
    if head not in state:
        raise BadInput(f"{file} is no checkpoint of {row.architecture}: it has no {head}")
    labels = _labels_for(row, labels, len(state[head]))
    network = BUILDERS[row.family](row.architecture, len(labels))
    load_state(network, state, file)
    return Recipe(row, network, labels, Weights(kind="checkpoint", detail=file.name, sha256=sha256_of(file)))


def images(count: int, height: int, width: int, seed: int) -> Tensor:
    """Seeded images, float32 [count, 3, height, width]: blobs and grain of mixed contrast and brightness.

    Their values are distributed like those of normalised photographs.
    """
    source = torch.Generator().manual_seed(seed)
    result = 0.3 * torch.randn(count, 3, height, width, generator=source)
    for cells in (2, 4, 8, 16):
        blobs = torch.randn(count, 3, cells, cells, generator=source)
        result += 0.5 * nn.functional.interpolate(blobs, size=(height, width), mode="bilinear")
    contrast = 0.3 + 1.2 * torch.rand(count, 1, 1, 1, generator=source)
    return result * contrast + torch.randn(count, 3, 1, 1, generator=source)


def _labels_for(row: ZooRow, labels: tuple[str, ...] | None, classes: int) -> tuple[str, ...]:
    labels = labels or row.labels
    if len(labels) != classes:
        raise BadInput(
            f"the weights have {classes} classes, but there are {len(labels)} labels; give --labels with {classes}"
        )
    return labels


def read_checkpoint(file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by parameter name, on the CPU. No code in the file is run.

    Raises BadInput when the file does not exist or is no checkpoint.
    """
    try:
        loaded: Any = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadInput(f"{file} does not exist") from None
    except Exception as error:  # torch raises pickle, zip, runtime and key errors for a file that is no checkpoint
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BadInput(f"{file} cannot be read as a checkpoint of tensors: {reason[0][:200]}") from None
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise BadInput(f"{file} holds no state_dict: names of parameters with a tensor each are expected")
    # DataParallel puts "module." before every name.
    return {str(name).removeprefix("module."): value for name, value in loaded.items()}


def load_state(network: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    """Load the tensors of ``file`` into the network. Raises BadInput with what is missing, unexpected or misshapen."""
    state = {name: value for name, value in state.items() if not name.startswith(TRAINING_ONLY)}
    wanted = network.state_dict()
    problems = []
    # Files from before PyTorch 0.4.1 lack BatchNorm's counters, which inference does not read.
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    for what, names in (("missing", missing), ("unexpected", [name for name in state if name not in wanted])):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems.append(f"{what} {', '.join(names[:3])}{more}")
    for name in wanted:
        if name in state and state[name].shape != wanted[name].shape:
            problems.append(f"{name} is {list(state[name].shape)}, not {list(wanted[name].shape)}")
            break
    if problems:
        raise BadInput(f"{file} does not fit the network: {'; '.join(problems)}")
    network.load_state_dict(wanted | state)


def _calibrate(network: nn.Module, side: int) -> None:
    """Set the statistics of every BatchNorm so that activations neither vanish nor explode from layer to layer.

    With those of a new network (mean 0, variance 1) EfficientNet-B0's logits are below 1e-13, where a comparison of
    runtimes is meaningless. The variance is one number per layer, not one per channel as after training: in an
    untrained network a division by the small variance of a channel magnifies rounding errors a thousandfold. It is set
    by the median image. Random biases with deviation 0.3 keep the activations of images of low contrast from vanishing;
    with smaller ones bright photographs reach logits of 100, with larger ones all images get nearly equal logits.
    """

    def keep_size(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        norm.get_buffer("running_var").fill_(inputs[0].square().mean(dim=(1, 2, 3)).median())

    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.normal_(norm.bias, 0.0, 0.3)
    hooks = [norm.register_forward_pre_hook(keep_size) for norm in norms]
    with torch.no_grad():
        network(images(_CALIBRATION_IMAGES, side, side, seed=0))
    for hook in hooks:
        hook.remove()
