"""The course of a whole training: the split, each fit, its export and judgement, and what is handed back."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from ekiben.child_protocol import MessageWriter
from ekiben.training import TrainingOptions
from models.artifact import read_manifest, write_manifest
from training import metrics, networks, previews
from training.artifact import ARTIFACT, ServingMetadata, write_artifact
from training.checkpoint import CHECKPOINT, Progress, identity_of, read
from training.data import TrainingData, normalisation
from training.evaluation import EVALUATION, Evaluation, evaluate, write_evaluation
from training.fit import Fit, fit
from training.losses import Criterion, criterion
from training.patches import PatchSampler
from training.previews import PreviewSheets
from training.progress import ProgressReporter, ProgressTicker
from training.split import Parts, Split, split_dataset
from training.validation import Normalization, ThresholdSearch, Validation

START = "start"

_ALL = -1
"""The fold of the final fit: all images train."""


@dataclass
class Trainer:
    """One training in one process (of ``fabric.world_size``). ``run`` does all of it."""

    folder: Path
    options: TrainingOptions
    archive: TrainingData
    fabric: Fabric
    writer: MessageWriter
    began: float

    def run(self) -> dict[str, Any] | None:
        """The result line's content, in the first process; None in the others."""
        options, archive = self.options, self.archive
        split = split_dataset(archive.samples, options)
        identity = identity_of(options, [sample.sha256 for sample in archive.samples], split.digest)
        self._checkpoint = read(self.folder, identity)
        self._cross = split.protocol == "cross_validation"
        self._fits = len(split.folds) + self._cross
        self._live = ProgressReporter(self.writer, self.folder, fits=self._fits)
        self._earlier_s = self._checkpoint.elapsed_s
        self._sheets = PreviewSheets(self.folder, self.archive.palette)
        with ProgressTicker(self.writer, self._live.state):
            self._plan(split)
            for parts in split.folds[len(self._checkpoint.outcomes) :]:
                self._fold(parts)
            return self._finish(split)

    def _plan(self, split: Split) -> None:
        options, first = self.options, split.folds[0]
        patches = self._patches(first.train, 0)
        resumed = self._checkpoint.fit.epoch if self._checkpoint.outcomes or self._checkpoint.fit.epoch else None
        self._live.plan(
            {
                **split.info(options.seed),
                "classes": self.archive.labels,
                "architecture": networks.describe(options),
                "parameters": networks.parameter_count(networks.build(options, len(self.archive.labels))),
                "device": str(self.fabric.device),
                "processes": self.fabric.world_size,
                "threads": torch.get_num_threads(),
                "precision": self.fabric.strategy.precision.precision,
                "epochs": options.epochs,
                "steps_per_epoch": patches.steps,
                "windows_per_epoch": patches.count,
                "resumed_epoch": resumed,
            }
        )

    def _fold(self, parts: Parts) -> None:
        """Fit one fold, export it and judge it by its test part; the checkpoint then knows the outcome."""
        network, normal, progress = self._fit(parts.fold, parts.train, parts.validation, self.options.epochs)
        threshold = self._threshold(network, self._validation(parts.validation, normal))
        outcome: dict[str, Any] = {"fold": parts.fold, "threshold": threshold, "best_epoch": progress.best_epoch,
                                   "epochs": progress.epoch, "fit_s": progress.elapsed_s,
                                   "history": progress.history}  # fmt: skip
        if self.fabric.is_global_zero:
            target = self.folder / (f"fold-{parts.fold}" if self._cross else ARTIFACT)
            self._live.update(phase="export", step=0, steps=len(parts.test))
            served = self._served(normal, threshold, progress)
            manifest = write_artifact(network, target, served, self.archive, parts.test)
            self._live.update(phase="evaluate")
            judged = evaluate(target, manifest, self.archive, parts.test, lambda done: self._live.update(step=done))
            outcome |= {"tables": torch.from_numpy(judged.tables), "hd95": torch.from_numpy(judged.hd95),
                        "window_ms": judged.window_ms}  # fmt: skip
            if self._cross:
                shutil.rmtree(target)
        self._checkpoint.outcomes.append(outcome)
        if self._cross:  # of a single split the last epoch's checkpoint says enough, and judging takes seconds
            self._checkpoint.fit = Progress()
            self._save()

    def _finish(self, split: Split) -> dict[str, Any] | None:
        """Fit all images where the folds have judged, and write what is handed back."""
        outcomes, options = self._checkpoint.outcomes, self.options
        thresholds = [outcome["threshold"] for outcome in outcomes if outcome["threshold"] is not None]
        threshold = round(statistics.median(thresholds), 2) if thresholds else None
        target = self.folder / ARTIFACT
        every = range(len(self.archive.samples))
        if self._cross:
            epochs = round(statistics.median(outcome["best_epoch"] for outcome in outcomes))
            network, normal, progress = self._fit(_ALL, every, (), epochs)
            if self.fabric.is_global_zero:
                self._live.update(phase="export")
                served = self._served(normal, threshold, progress)
                write_artifact(network, target, served, self.archive, every)
        if not self.fabric.is_global_zero:
            return None
        tables = np.concatenate([outcome["tables"].numpy() for outcome in outcomes])
        hd95 = np.concatenate([outcome["hd95"].numpy() for outcome in outcomes])
        indices = [index for parts in split.folds for index in parts.test]
        window_ms = statistics.median(outcome["window_ms"] for outcome in outcomes)
        labels = self.archive.labels
        summary = metrics.summary(tables, hd95, labels, seed=options.seed, threshold=threshold, protocol=split.protocol)
        judgement = Evaluation(tuple(indices), tables, hd95, window_ms)
        write_evaluation(self.folder, self.archive, split, judgement, summary)
        self.writer.file(EVALUATION)
        manifest = read_manifest(target)
        manifest = write_manifest(target, manifest.model_copy(update={"metrics": summary}))
        self._live.close()
        network = networks.build(options, len(labels))
        return {
            "metrics": summary,
            "split": split.info(options.seed),
            "training": {
                "architecture": manifest.architecture,
                "parameters": networks.parameter_count(network),
                "onnx_bytes": manifest.graph_bytes,
                "artifact_bytes": sum(info.bytes for info in manifest.files.values()),
                "onnx_ms": window_ms,
                "side": options.side,
                "device": str(self.fabric.device),
                "processes": self.fabric.world_size,
                "threads": torch.get_num_threads(),
                "precision": self.fabric.strategy.precision.precision,
                "seconds": round(self._elapsed_s(), 1),
                "folds": [{key: outcome[key] for key in ("fold", "best_epoch", "epochs", "fit_s", "threshold")}
                          for outcome in outcomes],
                "options": options.model_dump(),
            },
        }  # fmt: skip

    def _fit(
        self, fold: int, train: Sequence[int], validation: Sequence[int], epochs: int
    ) -> tuple[nn.Module, Normalization, Progress]:
        """A network fitted to the images in ``train``, with its best weights; goes on where the checkpoint is."""
        options, labels = self.options, self.archive.labels
        number = self._fits - 1 if fold == _ALL else fold
        torch.manual_seed(options.seed * 1000 + number)
        network = networks.build(options, len(labels))
        progress = self._checkpoint.fit
        self._live.begin_fit(number, elapsed_s=progress.elapsed_s, epoch=progress.epoch, epochs=epochs)
        normal = Normalization(*normalisation(self.archive, train))
        start = self.folder / START
        if options.start_from is not None:
            manifest = read_manifest(start)
            networks.start_from(network, start, manifest, options, labels)
            # What the weights are used to.
            normal = Normalization(manifest.preprocess.mean, manifest.preprocess.std)
        judge_by = self._validation(validation, normal) if validation else None

        def save(now: Progress) -> None:
            if self.fabric.is_global_zero:
                self._live.epoch(now.history[-1], self._epochs_before() + now.epoch)
            self._checkpoint.fit = now
            self._save()

        work = Fit(
            fabric=self.fabric,
            options=options,
            fold=number,
            epochs=epochs,
            seconds=self._seconds(),
            labels=labels,
            normal=normal,
            criterion=self._criterion(),
            patches=self._patches(train, number),
            validation=judge_by,
            reporter=self._live,
            save=save,
            preview=lambda epoch, seen: self._preview(seen, judge_by, epoch),
        )
        progress = fit(work, network, progress)
        self._live.end_fit()
        return network, normal, progress

    def _patches(self, train: Sequence[int], number: int) -> PatchSampler:
        return PatchSampler(
            self.archive,
            train,
            self.options.side,
            self.options.batch_size,
            (self.options.seed, number),
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
        )

    def _seconds(self) -> float | None:
        """What the fit that begins now may take at most: its share of what is left, without exporting and judging."""
        if self.options.max_minutes is None:
            return None
        whole = 60 * self.options.max_minutes
        reserve = min(whole / 4, 10 + 0.03 * whole)
        left = whole - reserve - self._elapsed_s()
        return self._checkpoint.fit.elapsed_s + max(1.0, left / (self._fits - len(self._checkpoint.outcomes)))

    def _elapsed_s(self) -> float:
        """Since the training began, without the times when no process worked at it."""
        return self._earlier_s + time.monotonic() - self.began

    def _epochs_before(self) -> int:
        return sum(outcome["epochs"] for outcome in self._checkpoint.outcomes)

    def _save(self) -> None:
        if self.fabric.is_global_zero:
            self._checkpoint.elapsed_s = self._elapsed_s()
            self._checkpoint.write(self.folder)
            self.writer.file(CHECKPOINT)
        self.fabric.barrier()

    def _served(self, normal: Normalization, threshold: float | None, progress: Progress) -> ServingMetadata:
        name = self.archive.description.name
        return ServingMetadata(
            options=self.options,
            labels=self.archive.labels,
            palette=self.archive.palette,
            normal=normal,
            threshold=threshold,
            dataset=name,
            detail=f"on {name}, epoch {progress.best_epoch} of {progress.epoch}",
        )

    def _validation(self, indices: Sequence[int], normal: Normalization) -> Validation:
        return Validation(self.archive, indices, self.options.side, normal, self.fabric.device)

    def _criterion(self) -> Criterion:
        return criterion(self.options.loss, networks.channels_of(len(self.archive.labels)))

    def _threshold(self, network: nn.Module, by: Validation) -> float | None:
        """Chosen on the validation images; None where the largest of several channels decides."""
        if len(self.archive.labels) != 2 or not self.fabric.is_global_zero:
            return None
        self._live.update(phase="validate")
        search = ThresholdSearch()
        for image in by.judge(network, self._criterion(), by.indices, self.options.batch_size):
            search.add(image.probabilities[0], image.truth)
        return search.best()

    def _preview(self, network: nn.Module, by: Validation | None, epoch: int) -> None:
        """Write and tell a sheet, unless the last one is too fresh."""
        if by is None or not self.fabric.is_global_zero or not self._sheets.due():
            return
        rows = by.judge(network, self._criterion(), previews.shown(by.indices), self.options.batch_size)
        name = self._sheets.write(list(rows), self._epochs_before() + epoch)
        self._live.preview({"epoch": epoch, "file": name})
