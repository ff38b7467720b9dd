"""The training loop: one network, some epochs, the weights of the best epoch.

Lightning Fabric provides devices, precision, DDP and launchers, and leaves the loop to this module. Lightning's Trainer
would own the loop; the time limit of the schedule, the known content of a checkpoint, events at fixed intervals and
equal patches on any number of processes would then have to be callbacks into its order of steps.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from ekiben.errors import Refusal
from ekiben.training import TrainingOptions
from training import metrics
from training.augmentation import PRESETS, augment
from training.checkpoint import FitProgress, copied, random_state, restore_random
from training.losses import Criterion
from training.networks import parameter_groups
from training.patches import PatchSampler
from training.progress import ProgressReporter
from training.validation import Normalization, Validation

WARM_UP = 0.03  # share of the schedule in which the learning rate rises linearly
GRADIENT_NORM = 12.0  # as in nnU-Net; steps of a stable training stay far below it
AVERAGE = 0.99  # decay of the moving average of the weights: about the last hundred steps
EXPLODED = 10.0
"""A loss of this many times the first one counts as exploded."""
EXPLODED_STEPS = 30
"""Diverged is raised when the loss stays exploded for more than this many steps, and for more than an epoch."""


class Diverged(Refusal):
    """The loss is not finite, or has risen far above its first value and stayed there."""

    code = "diverged"


@dataclass(frozen=True)
class Fit:
    """Inputs of one fit. Without ``validation`` no epoch is chosen: the last weights are kept.

    ``seconds``: time limit, counted over all processes that worked at the fit; None: no limit. ``save`` is called after
    every epoch with the progress; ``preview`` with the number (from 1) and the averaged network of an epoch whose
    validation Dice is the best so far.
    """

    fabric: Fabric
    options: TrainingOptions
    fold: int
    epochs: int
    seconds: float | None
    labels: list[str]
    normalization: Normalization
    criterion: Criterion
    patches: PatchSampler
    validation: Validation | None
    reporter: ProgressReporter
    save: Callable[[FitProgress], None]
    preview: Callable[[int, nn.Module], None]


def fit(work: Fit, network: nn.Module, progress: FitProgress) -> FitProgress:
    """Train ``network`` from ``progress`` to the end and load its best weights; return the updated ``progress``.

    The learning rate rises linearly over WARM_UP and falls along a cosine. Raises Diverged, with the epoch and step.
    """
    fabric, options, reporter = work.fabric, work.options, work.reporter
    # Moved before the optimizer's state is loaded: Fabric moves weights, but not the moments of a loaded state.
    network.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    groups = parameter_groups(network)
    optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, weight_decay=options.weight_decay)
    if progress.network:
        network.load_state_dict(progress.network)
        optimizer.load_state_dict(progress.optimizer)
        fabric.strategy.precision.load_state_dict(progress.scaler)
        restore_random(progress.random)
    plain = network  # the wrapper below shares its weights
    averaged = copy.deepcopy(plain).eval()
    if progress.averaged:
        averaged.load_state_dict(progress.averaged)
    wrapped, stepper = fabric.setup(network, optimizer)
    preset = PRESETS[options.augmentation]
    steps, began, earlier_s = work.patches.steps, time.monotonic(), progress.elapsed_s
    exploded = 0

    def share_done(step: int) -> float:
        """Share of the fit that is done, 0-1: of the epochs or of the time limit, the larger one."""
        done = step / (work.epochs * steps)
        if work.seconds is not None:
            spent = (earlier_s + time.monotonic() - began) / work.seconds
            done = max(done, fabric.broadcast(spent) if fabric.world_size > 1 else spent)
        return min(done, 1.0)

    while not progress.finished:
        epoch, started = progress.epoch + 1, time.monotonic()
        losses: list[Tensor] = []
        seen = 0
        wrapped.train()
        for step, batch in enumerate(work.patches.epoch(epoch)):
            done = share_done((epoch - 1) * steps + step + 1)
            rate = options.learning_rate * min(1.0, done / WARM_UP) * 0.5 * (1 + math.cos(math.pi * done))
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate_factor"]
            # torch takes seeds of 64 bits, which the largest seeds of an option would exceed.
            seed = (((options.seed * 31 + work.fold) * 100_003 + epoch) * 10_007 + step) % 2**63
            images, classes = augment(
                fabric.to_device(batch.images),
                fabric.to_device(batch.classes),
                preset,
                seed,
                part=(fabric.global_rank, fabric.world_size),
            )
            loss = work.criterion(wrapped(work.normalization(images)), classes)
            fabric.backward(loss)
            fabric.clip_gradients(network, optimizer, max_norm=GRADIENT_NORM, error_if_nonfinite=False)
            stepper.step()
            stepper.zero_grad()
            _update_average(averaged, plain, (epoch - 1) * steps + step)

            losses.append(loss.detach())
            seen += len(images) * fabric.world_size
            if fabric.device.type == "cpu" or step % 10 == 9 or step + 1 == steps:  # reading the loss waits for the GPU
                value = float(loss.detach())
                progress.first_loss = progress.first_loss or value
                exploded = exploded + 1 if value > EXPLODED * progress.first_loss else 0
                if not math.isfinite(value) or exploded > max(EXPLODED_STEPS, steps):
                    raise _diverged(value, epoch, step + 1, rate)
                seconds = time.monotonic() - started
                reporter.update(
                    share=done, phase="train", epoch=epoch, epochs=work.epochs, step=step + 1, steps=steps,
                    loss=value, learning_rate=rate, images_per_s=round(seen / seconds, 2),
                )  # fmt: skip
            if done >= 1.0:
                break

        seconds = time.monotonic() - started
        train_loss = float(_summed(fabric, torch.stack(losses).mean()[None])[0]) / fabric.world_size
        if not math.isfinite(train_loss):
            raise _diverged(train_loss, epoch, len(losses), rate)
        reporter.update(phase="validate")
        scores = _validate(work, averaged)
        is_best = scores["dice"] is None or scores["dice"] > progress.best_dice
        if is_best:
            progress.best, progress.best_epoch = copied(averaged.state_dict()), epoch
            progress.best_dice = scores["dice"] if scores["dice"] is not None else progress.best_dice
        epochs_since_best = epoch - progress.best_epoch
        event = {
            "epoch": epoch, "epochs": work.epochs, "fold": work.fold, "train_loss": train_loss, **scores,
            "learning_rate": rate, "seconds": round(time.monotonic() - started, 3), "best": is_best,
            "images_per_s": round(seen / seconds, 2),
        }  # fmt: skip
        progress.epoch = epoch
        progress.history.append(event)
        progress.elapsed_s = earlier_s + time.monotonic() - began
        progress.finished = fabric.broadcast(
            epoch >= work.epochs or done >= 1.0 or (options.patience > 0 and epochs_since_best >= options.patience)
        )
        progress.network, progress.averaged = copied(plain.state_dict()), copied(averaged.state_dict())
        progress.optimizer = optimizer.state_dict()
        progress.scaler, progress.random = fabric.strategy.precision.state_dict(), random_state()
        work.save(progress)
        if is_best and work.validation is not None:
            work.preview(epoch, averaged)
    plain.load_state_dict(progress.best)
    return progress


@torch.no_grad()
def _update_average(averaged: nn.Module, network: nn.Module, step: int) -> None:
    """Update the exponential moving average of the weights, which is validated, kept and exported. ``step`` from 0.

    While the learning rate is high, an average over about a hundred steps scores better than the weights of any one
    step. Its validation Dice also varies less, so that chance decides less about the best epoch and early stopping.
    """
    weight = 1 - min(AVERAGE, (1 + step) / (10 + step))
    averages, values = list(averaged.state_dict().values()), list(network.state_dict().values())
    floats = [place for place, average in enumerate(averages) if average.is_floating_point()]
    torch._foreach_lerp_([averages[place] for place in floats], [values[place] for place in floats], weight)
    for average, value in zip(averages, values, strict=True):
        if not average.is_floating_point():  # BatchNorm's count of batches
            average.copy_(value)


def _validate(work: Fit, network: nn.Module) -> dict[str, Any]:
    """Loss, Dice and IoU over the validation images, for the epoch event; each process evaluates a share of them."""
    nothing: dict[str, Any] = {"validation_loss": None, "dice": None, "iou": None, "per_class": []}
    if work.validation is None:
        return nothing
    fabric, classes = work.fabric, len(work.labels)
    indices = work.validation.indices
    tables = np.zeros((len(indices), classes, 3), np.int64)
    losses = np.zeros(len(indices))
    for place in range(fabric.global_rank, len(indices), fabric.world_size):
        with fabric.autocast():
            (image,) = work.validation.evaluate(
                network, work.criterion, indices[place : place + 1], work.options.batch_size
            )
        tables[place] = metrics.counts(image.classes(0.5), image.truth, classes)
        losses[place] = image.loss
    tables = _summed(fabric, torch.from_numpy(tables)).numpy()
    dice, iou = metrics.dice(tables), metrics.iou(tables)
    rows = [
        {
            "class_index": index,
            "class_name": work.labels[index],
            "dice": metrics.mean(dice[:, index]),
            "iou": metrics.mean(iou[:, index]),
        }
        for index in range(1, classes)
    ]
    overall = {name: metrics.mean(np.array([row[name] for row in rows], np.float64)) or 0.0 for name in ("dice", "iou")}
    loss = float(_summed(fabric, torch.from_numpy(losses)).mean())
    return {"validation_loss": loss, **overall, "per_class": rows}


def _summed(fabric: Fabric, values: Tensor) -> Tensor:
    """The sum over all processes, on the CPU."""
    if fabric.world_size == 1:
        return values.cpu()
    total = fabric.all_reduce(values.to(fabric.device), reduce_op="sum")
    return torch.as_tensor(total).cpu()


def _diverged(loss: float, epoch: int, step: int, rate: float) -> Diverged:
    what = f"rose to {loss:.3g} and stayed there" if math.isfinite(loss) else "is no longer a number"
    return Diverged(
        f"the training diverged: in epoch {epoch}, step {step}, at a learning rate of {rate:.3g} the loss {what}; "
        "try a tenth of the learning_rate"
    )
