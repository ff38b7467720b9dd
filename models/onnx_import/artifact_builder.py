"""Builds an artifact folder from an ONNX file, after a child process with limits has read and run it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ekiben.errors import BadInput, BadModelFile, Conflict
from ekiben.temporary_files import temporary_name
from models.artifact import (
    MAX_MASK_CLASSES,
    ONNX,
    GraphInput,
    GraphOutput,
    Layout,
    Manifest,
    Parity,
    Preprocess,
    Trial,
    Weights,
    sha256_of,
    voc_palette,
    write_manifest,
)
from models.onnx_import.graph_metadata import DEFAULT_LIMITS, GraphInfo, Limits, OutputInfo, read_graph
from models.onnx_import.options import ImportOptions

__all__ = ["GraphInfo", "ImportOptions", "Limits", "Provenance", "build_artifact", "read_graph", "whole_folder"]

BACKGROUND = "background"
_SLACK = 0.01  # tolerance of probabilities: quantised graphs are that inexact


@dataclass(frozen=True)
class Provenance:
    """Where an ONNX file comes from that Ekiben converted, and its parity with what it was converted from."""

    weights: Weights
    parity: Parity


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill, which becomes ``folder`` at the end, or is removed when the block raises.

    Conflict when ``folder`` exists and is not empty.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise Conflict(f"{folder} exists; remove it or name another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.parent / temporary_name()
    staging.mkdir()
    try:
        yield staging
        try:
            os.replace(staging, folder)
        except OSError as error:
            raise Conflict(f"{folder} cannot be made: {error.strerror}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def build_artifact(
    model_file: Path,
    folder: Path,
    options: ImportOptions,
    *,
    file_name: str = "",
    limits: Limits = DEFAULT_LIMITS,
    provenance: Provenance | None = None,
) -> Manifest:
    """Make ``folder`` the artifact of an ONNX file; gives its manifest.

    ``file_name``: the user's name of the file, where ``model_file`` is an upload under another name. ``provenance``: of
    a file that was converted; otherwise the file itself is the source, and parity is not measured. BadModelFile when
    the file cannot become a model, BadInput when it contradicts ``options``, Conflict when the folder exists.
    """
    name = file_name or model_file.name
    with whole_folder(folder) as staging:
        copy = staging / ONNX
        try:
            shutil.copyfile(model_file, copy)
        except OSError as error:
            raise BadModelFile(f"{name} cannot be read: {error.strerror}") from None
        # The copy is read, which nothing can change between the check and its use.
        try:
            info = read_graph(
                copy,
                layout=options.layout,
                size=_trial_size(options),
                pixel_range=_pixel_range(options),
                limits=limits,
            )
        except BadInput as error:
            raise type(error)(error.message.replace(ONNX, name, 1)) from None
        weights = provenance.weights if provenance else Weights(kind="imported", detail=name, sha256=sha256_of(copy))
        manifest = _manifest(info, options, weights)
        if provenance is not None:
            manifest = manifest.model_copy(update={"parity": provenance.parity})
        return write_manifest(staging, manifest)


def _trial_size(options: ImportOptions) -> tuple[int, int] | None:
    if options.size is None and options.shorter_side is not None:
        # Not a square, so that a network that takes only multiples of 32 fails the trial run.
        return options.shorter_side, options.shorter_side * 4 // 3
    return options.size


def _pixel_range(options: ImportOptions) -> tuple[float, float]:
    """The lowest and the highest value that a channel of a black and of a white pixel has after normalisation."""
    channels = list(zip(options.mean, options.std, strict=True))
    return min(-mean / std for mean, std in channels), max((1 - mean) / std for mean, std in channels)


def _manifest(info: GraphInfo, options: ImportOptions, weights: Weights) -> Manifest:
    output, layout, classes = _choose_output(info, options)
    labels, palette = _labels_and_palette(classes, options)
    _check_values(output, classes, options)
    height, width = _input_size(info, options)
    normalised = options.mean != (0.0, 0.0, 0.0) or options.std != (1.0, 1.0, 1.0)
    if info.dtype == "uint8" and normalised:
        raise BadInput("the graph takes uint8 pixels, which are not normalised: leave out mean and std")
    return Manifest(
        family="classifier" if options.task == "classify" else "segmenter",
        task=options.task,
        input=GraphInput(
            name=info.input_name,
            layout=options.layout,
            color=options.color,
            dtype=info.dtype,
            batch=1 if info.batch is None and not output.batched else info.batch,
            height=height,
            width=width,
        ),
        output=GraphOutput(name=output.name, activation=options.output, layout=layout),
        preprocess=Preprocess(
            crop_share=options.crop,
            shorter_side=options.shorter_side,
            center_crop=_center_crop(height, width, options),
            interpolation=options.interpolation,
            mean=options.mean,
            std=options.std,
            value_range=options.range,
        ),
        labels=labels,
        palette=palette,
        weights=weights,
        licence=options.licence,
        source=options.source,
        precision=info.precision,
        opset=info.opset,
        trial=Trial(
            seconds=info.cost.seconds,
            memory_bytes=info.cost.memory_bytes,
            height=info.trial_height,
            width=info.trial_width,
        ),
    )


def _choose_output(info: GraphInfo, options: ImportOptions) -> tuple[OutputInfo, Layout, int]:
    """The output to read, its layout and its number of classes: the only one that fits the task, or fits the labels.

    BadModelFile where none fits; BadInput where several do.
    """
    names = ", ".join(output.name for output in info.outputs)
    outputs = [output for output in info.outputs if options.output_name in (None, output.name)]
    if not outputs:
        raise BadInput(f"output_name: the graph has no output {options.output_name!r}; it has {names}")
    fitting, misfits = [], []
    for output in outputs:
        try:
            fitting.append((output, *_read_as(output, info, options)))
        except BadModelFile as error:
            misfits.append(error.message)
    if not fitting:
        raise BadModelFile(f"no output suits {options.task}: " + "; ".join(misfits[:3]))
    if len(fitting) > 1:
        labelled = [one for one in fitting if len(options.labels) in _label_counts(one[2], options)]
        if len(labelled) != 1:
            fit = ", ".join(one[0].name for one in fitting)
            raise BadInput(f"several outputs suit {options.task} ({fit}); say which with output_name")
        return labelled[0]
    return fitting[0]


def _read_as(output: OutputInfo, info: GraphInfo, options: ImportOptions) -> tuple[Layout, int]:
    """Layout and number of classes of an output that suits the task. BadModelFile where it does not."""
    shape, name = output.shape, f"output {output.name} of shape {list(output.shape)}"
    if not output.dtype.startswith("float"):
        raise BadModelFile(f"output {output.name} is of type {output.dtype}; a score per class, in floats, is read")
    if len(shape) < 2 or shape[0] != (info.batch or 1) or 0 in shape:
        raise BadModelFile(f"{name} has no batch axis in front")
    if options.task == "classify":
        if sum(side > 1 for side in shape[1:]) > 1:
            raise BadModelFile(f"{name} is not [batch, classes]")
        return "NCHW", max(shape[1:])
    if len(shape) != 4 or shape[1:].count(1) > 1:
        raise BadModelFile(f"{name} is not [batch, classes, height, width]")
    counts: dict[Layout, int] = {"NCHW": shape[1], "NHWC": shape[3]}
    other: Layout = "NHWC" if options.layout == "NCHW" else "NCHW"
    # A graph may take one layout and give the other: the number of labels decides.
    for layout in (options.layout, other):
        if len(options.labels) in _label_counts(counts[layout], options):
            return layout, counts[layout]
    return options.layout, counts[options.layout]


def _label_counts(classes: int, options: ImportOptions) -> tuple[int, ...]:
    """Numbers of labels that fit ``classes`` output channels: for sigmoid masks, background may be named or not."""
    return (classes + 1, classes) if options.task == "segment" and options.output == "sigmoid" else (classes,)


def _labels_and_palette(
    classes: int, options: ImportOptions
) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    given, palette = options.labels, options.palette
    if len(given) not in _label_counts(classes, options):
        raise BadInput(f"labels: the graph gives {classes} classes, but there are {len(given)} labels")
    if options.task == "classify":
        return given, ()
    labels = given
    if options.output == "sigmoid" and len(given) == classes:
        labels = (BACKGROUND, *given)
        palette = ((0, 0, 0), *palette) if palette is not None and len(palette) == classes else palette
    if len(labels) > MAX_MASK_CLASSES:
        raise BadInput(f"labels: a mask holds {MAX_MASK_CLASSES} classes at most; there are {len(labels)}")
    if palette is not None and len(palette) != len(labels):
        raise BadInput(f"palette: {len(labels)} classes, but {len(palette)} colours")
    return labels, palette if palette is not None else voc_palette(len(labels))


def _check_values(output: OutputInfo, classes: int, options: ImportOptions) -> None:
    """BadInput or BadModelFile where the values of the trial run contradict ``options.output``."""
    low, high, mean = output.low, output.high, output.mean
    if low is None or high is None or mean is None:
        raise BadModelFile(f"output {output.name} is not a finite number everywhere in a trial run on a black image")
    shares = low >= -_SLACK and high <= 1 + _SLACK
    if options.output != "logits" and not shares:
        raise BadInput(f"output: {options.output} lie in 0-1, but a trial run gave {low:.3g} to {high:.3g}")
    if classes == 1 and options.output != "sigmoid":
        raise BadInput(f"output: one class as {options.output} would always win; a single channel is read as sigmoid")
    # Softmax of softmax would give the right class with a wrong confidence, which is hard to notice.
    if options.output == "logits" and shares and abs(mean * classes - 1) < _SLACK:
        raise BadInput("output: a trial run gave values that add up to 1; say probabilities, not logits")


def _input_size(info: GraphInfo, options: ImportOptions) -> tuple[int | None, int | None]:
    """Height and width that every image is resized to, or None, None where only the shorter side is fixed."""
    fixed = (info.height, info.width)
    if options.task == "segment" and options.shorter_side is not None:
        if fixed != (None, None):
            raise BadInput(f"shorter_side: the graph's size is fixed at {_sides(fixed)}")
        return None, None
    if None in fixed and options.size is None:
        raise BadInput(f"size: the graph's size is {_sides(fixed)}; say which height and width to bring images to")
    size = options.size or fixed
    if any(side not in (None, wanted) for side, wanted in zip(fixed, size, strict=True)):
        raise BadInput(f"size: the graph's size is fixed at {_sides(fixed)}")
    return size


def _center_crop(height: int | None, width: int | None, options: ImportOptions) -> int | None:
    if options.task == "segment" or options.shorter_side is None or height is None:
        return None
    if height != width or options.shorter_side < height:
        raise BadInput(f"shorter_side: at least the side of a square input is needed; the input is {height} x {width}")
    return height


def _sides(size: tuple[int | None, int | None]) -> str:
    return " x ".join("any" if side is None else str(side) for side in size)
