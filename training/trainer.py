"""A whole training: the split, each fit with its export and evaluation, and the result."""

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
from training.artifact import ARTIFACT, ServingMetadata, probe_export, write_artifact
from training.checkpoint import CHECKPOINT, FitProgress, identity_of, read
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
"""The fold of the final fit of a cross-validation, which trains on all images."""


@dataclass
class Trainer:
    """One training, in one of ``fabric.world_size`` processes.

    ``folder``: has the checkpoint to resume from and the artifact to start from, if any; gets all files of the
    training. ``began``: time.monotonic() at the start of the process.
    """

    folder: Path
    options: TrainingOptions
    archive: TrainingData
    fabric: Fabric
    writer: MessageWriter
    began: float

    def run(self) -> dict[str, Any] | None:
        """Run or resume the training. Returns the result in the first process, None in the others.

        Raises BadDataset, BadStart, Diverged or ParityError.
        """
        options, archive = self.options, self.archive
        split = split_dataset(archive.samples, options)
        identity = identity_of(options, [sample.sha256 for sample in archive.samples], split.digest)
        self._checkpoint = read(self.folder, identity)
        self._cross = split.protocol == "cross_validation"
        self._fits = len(split.folds) + self._cross
        self._reporter = ProgressReporter(self.writer, self.folder, fits=self._fits)
        self._earlier_s = self._checkpoint.elapsed_s
        self._previews = PreviewSheets(self.folder, self.archive.palette)
        if self.fabric.is_global_zero:
            histories = [*(outcome["history"] for outcome in self._checkpoint.outcomes), self._checkpoint.fit.history]
            self._reporter.resume([epoch for history in histories for epoch in history])
        with ProgressTicker(self.writer, self._reporter.state):
            self._plan(split)
            self._probe()
            for parts in split.folds[len(self._checkpoint.outcomes) :]:
                self._fold(parts)
            return self._finish(split)

    def _plan(self, split: Split) -> None:
        options, first = self.options, split.folds[0]
        patches = self._patches(first.train, 0)
        resumed = self._checkpoint.fit.epoch if self._checkpoint.outcomes or self._checkpoint.fit.epoch else None
        self._reporter.plan(
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

    def _probe(self) -> None:
        """See ``probe_export``; a training that goes on has passed it."""
        if self.fabric.is_global_zero and not self._checkpoint.outcomes and not self._checkpoint.fit.epoch:
            network = networks.build(self.options, len(self.archive.labels))
            probe_export(network, self.options, len(self.archive.labels), self.folder / "probe")
        self.fabric.barrier()

    def _fold(self, parts: Parts) -> None:
        """Fit one fold, export it, evaluate it on its test part, and add the outcome to the checkpoint."""
        network, normalization, progress = self._fit(parts.fold, parts.train, parts.validation, self.options.epochs)
        threshold = self._threshold(network, self._validation(parts.validation, normalization))
        outcome: dict[str, Any] = {"fold": parts.fold, "threshold": threshold, "best_epoch": progress.best_epoch,
                                   "epochs": progress.epoch, "fit_s": progress.elapsed_s,
                                   "history": progress.history}  # fmt: skip
        if self.fabric.is_global_zero:
            target = self.folder / (f"fold-{parts.fold}" if self._cross else ARTIFACT)
            self._reporter.update(phase="export", step=0, steps=len(parts.test))
            metadata = self._metadata(normalization, threshold, progress)
            manifest = write_artifact(network, target, metadata, self.archive, parts.test)
            self._reporter.update(phase="evaluate")
            found = evaluate(target, manifest, self.archive, parts.test, lambda done: self._reporter.update(step=done))
            outcome |= {"tables": torch.from_numpy(found.tables), "hd95": torch.from_numpy(found.hd95),
                        "window_ms": found.window_ms}  # fmt: skip
            if self._cross:
                shutil.rmtree(target)
        self._checkpoint.outcomes.append(outcome)
        if self._cross:  # a single split resumes from its last epoch instead: evaluation takes seconds
            self._checkpoint.fit = FitProgress()
            self._save()

    def _finish(self, split: Split) -> dict[str, Any] | None:
        """After cross-validation fit all images; write the evaluation, complete the manifest, return the result."""
        outcomes, options = self._checkpoint.outcomes, self.options
        thresholds = [outcome["threshold"] for outcome in outcomes if outcome["threshold"] is not None]
        threshold = round(statistics.median(thresholds), 2) if thresholds else None
        target = self.folder / ARTIFACT
        every = range(len(self.archive.samples))
        if self._cross:
            epochs = round(statistics.median(outcome["best_epoch"] for outcome in outcomes))
            network, normalization, progress = self._fit(_ALL, every, (), epochs)
            if self.fabric.is_global_zero:
                self._reporter.update(phase="export")
                metadata = self._metadata(normalization, threshold, progress)
                write_artifact(network, target, metadata, self.archive, every)
        if not self.fabric.is_global_zero:
            return None
        tables = np.concatenate([outcome["tables"].numpy() for outcome in outcomes])
        hd95 = np.concatenate([outcome["hd95"].numpy() for outcome in outcomes])
        indices = [index for parts in split.folds for index in parts.test]
        window_ms = statistics.median(outcome["window_ms"] for outcome in outcomes)
        labels = self.archive.labels
        summary = metrics.summary(tables, hd95, labels, seed=options.seed, threshold=threshold, protocol=split.protocol)
        evaluation = Evaluation(tuple(indices), tables, hd95, window_ms)
        write_evaluation(self.folder, self.archive, split, evaluation, summary)
        self.writer.file(EVALUATION)
        manifest = read_manifest(target)
        manifest = write_manifest(target, manifest.model_copy(update={"metrics": summary}))
        self._reporter.close()
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
    ) -> tuple[nn.Module, Normalization, FitProgress]:
        """A network fitted to the images ``train``, with its best weights; resumes the fit in the checkpoint."""
        options, labels = self.options, self.archive.labels
        number = self._fits - 1 if fold == _ALL else fold
        torch.manual_seed(options.seed * 1000 + number)
        network = networks.build(options, len(labels))
        progress = self._checkpoint.fit
        self._reporter.begin_fit(number, elapsed_s=progress.elapsed_s, epoch=progress.epoch, epochs=epochs)
        normalization = Normalization(*normalisation(self.archive, train))
        start = self.folder / START
        if options.start_from is not None:
            manifest = read_manifest(start)
            networks.start_from(network, start, manifest, options, labels)
            # The weights were trained with this normalisation.
            normalization = Normalization(manifest.preprocess.mean, manifest.preprocess.std)
        validator = self._validation(validation, normalization) if validation else None

        def save(now: FitProgress) -> None:
            if self.fabric.is_global_zero:
                self._reporter.epoch(now.history[-1])
            self._checkpoint.fit = now
            self._save()

        inputs = Fit(
            fabric=self.fabric,
            options=options,
            fold=number,
            epochs=epochs,
            seconds=self._seconds(),
            labels=labels,
            normalization=normalization,
            criterion=self._criterion(),
            patches=self._patches(train, number),
            validation=validator,
            reporter=self._reporter,
            save=save,
            preview=lambda epoch, seen: self._preview(seen, validator, epoch),
        )
        progress = fit(inputs, network, progress)
        self._reporter.end_fit()
        return network, normalization, progress

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
        """Time limit in seconds of the fit that starts now, None without max_minutes.

        An equal share of what is left of max_minutes, less a reserve for export and evaluation, plus the time that
        earlier processes spent on this fit.
        """
        if self.options.max_minutes is None:
            return None
        whole = 60 * self.options.max_minutes
        reserve = min(whole / 4, 10 + 0.03 * whole)
        left = whole - reserve - self._elapsed_s()
        return self._checkpoint.fit.elapsed_s + max(1.0, left / (self._fits - len(self._checkpoint.outcomes)))

    def _elapsed_s(self) -> float:
        """Seconds of the training so far, over all processes that worked at it in turn."""
        return self._earlier_s + time.monotonic() - self.began

    def _epochs_before(self) -> int:
        return sum(outcome["epochs"] for outcome in self._checkpoint.outcomes)

    def _save(self) -> None:
        if self.fabric.is_global_zero:
            self._checkpoint.elapsed_s = self._elapsed_s()
            self._checkpoint.write(self.folder)
            self.writer.file(CHECKPOINT)
        self.fabric.barrier()

    def _metadata(
        self, normalization: Normalization, threshold: float | None, progress: FitProgress
    ) -> ServingMetadata:
        name = self.archive.name
        return ServingMetadata(
            options=self.options,
            labels=self.archive.labels,
            palette=self.archive.palette,
            normalization=normalization,
            threshold=threshold,
            dataset=name,
            detail=f"on {name}, epoch {progress.best_epoch} of {progress.epoch}",
        )

    def _validation(self, indices: Sequence[int], normalization: Normalization) -> Validation:
        return Validation(self.archive, indices, self.options.side, normalization, self.fabric.device)

    def _criterion(self) -> Criterion:
        return criterion(self.options.loss, networks.channels_of(len(self.archive.labels)))

    def _threshold(self, network: nn.Module, validator: Validation) -> float | None:
        """The threshold chosen on the validation images; None with more than two classes, and in other processes."""
        if len(self.archive.labels) != 2 or not self.fabric.is_global_zero:
            return None
        self._reporter.update(phase="validate")
        search = ThresholdSearch()
        for image in validator.evaluate(network, self._criterion(), validator.indices, self.options.batch_size):
            search.add(image.probabilities[0], image.truth)
        return search.best()

    def _preview(self, network: nn.Module, validator: Validation | None, epoch: int) -> None:
        """Write a preview sheet and send its event, unless the last one was written less than PAUSE_S ago."""
        if validator is None or not self.fabric.is_global_zero or not self._previews.due():
            return
        rows = validator.evaluate(
            network, self._criterion(), previews.shown(validator.indices), self.options.batch_size
        )
        name = self._previews.write(list(rows), self._epochs_before() + epoch)
        self._reporter.preview({"epoch": epoch, "file": name})
