"""The checkpoint: everything that a training needs to resume after its process was killed."""

from __future__ import annotations

import hashlib
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ekiben.child_protocol import log
from ekiben.training import TrainingOptions

CHECKPOINT = "checkpoint.pt"

State = dict[str, Tensor]


@dataclass
class FitProgress:
    """State of one fit after ``epoch`` epochs: tensors and plain values alone, so that it loads with ``weights_only``.

    ``network``: weights being trained; ``averaged``: their moving average; ``best``: the average at ``best_epoch``,
    counted from 1 (0: none yet). ``first_loss``: of the first step. ``history``: the data of the epoch events so far.
    ``elapsed_s``: seconds of fitting over all processes that worked at it in turn.
    """

    epoch: int = 0
    network: State = field(default_factory=dict)
    averaged: State = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    random: dict[str, Any] = field(default_factory=dict)
    best: State = field(default_factory=dict)
    best_dice: float = -1.0
    best_epoch: int = 0
    first_loss: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    elapsed_s: float = 0.0
    finished: bool = False


@dataclass
class Checkpoint:
    """State of a training. ``outcomes``: results of the finished folds; ``fit``: the fit in progress.

    ``identity``: SHA-256 of the options, images and split (``identity_of``). ``elapsed_s``: seconds of the whole
    training.
    """

    identity: str
    fit: FitProgress = field(default_factory=FitProgress)
    outcomes: list[dict[str, Any]] = field(default_factory=list)
    elapsed_s: float = 0.0

    def write(self, folder: Path) -> None:
        """Replace the checkpoint file in ``folder`` atomically."""
        target = folder / CHECKPOINT
        staging = target.with_suffix(".new")
        content = {name: getattr(self, name) for name in ("identity", "outcomes", "elapsed_s")}
        content["fit"] = vars(self.fit)
        torch.save(content, staging)
        os.replace(staging, target)


def read(folder: Path, identity: str) -> Checkpoint:
    """The checkpoint in the folder; a new one when there is none, it is damaged, or ``identity`` differs (logged)."""
    path = folder / CHECKPOINT
    if not path.exists():
        return Checkpoint(identity)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found = Checkpoint(**{**content, "fit": FitProgress(**content["fit"])})
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes can make the unpickler raise any type
        log(f"{path.name} cannot be read ({type(error).__name__}); starting from the beginning")
        return Checkpoint(identity)
    if found.identity != identity:
        log(f"{path.name} is of another training (options or images differ); starting from the beginning")
        return Checkpoint(identity)
    return found


def identity_of(options: TrainingOptions, images: list[str], split_digest: str) -> str:
    """SHA-256, hexadecimal, of a training's options, split and images (their SHA-256, in order)."""
    text = "\n".join([options.model_dump_json(), split_digest, *images])
    return hashlib.sha256(text.encode()).hexdigest()


def random_state() -> dict[str, Any]:
    """State of the global generators of Python, numpy, torch and CUDA, as tensors and plain values."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (str(kind), torch.from_numpy(np.asarray(keys, np.int64)), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random(state: dict[str, Any]) -> None:
    """Set the global generators to a ``random_state``; that of CUDA only where there is a GPU."""
    random.setstate(state["python"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def copied(state: State) -> State:
    """Copies of the tensors on the CPU, detached: later training steps do not change them."""
    return {name: value.detach().cpu().clone() for name, value in state.items()}
