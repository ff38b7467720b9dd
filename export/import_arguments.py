"""Arguments of ``python -m export`` for a model that a user brings: what its file does not contain."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, get_args

from models.artifact import Activation, Color, Interpolation, Task
from models.onnx_import.options import ImportOptions, parse_options, read_labels, read_palette

_FIELDS = (
    "task",
    "mean",
    "std",
    "crop",
    "shorter_side",
    "size",
    "interpolation",
    "range",
    "layout",
    "color",
    "output",
    "output_name",
    "licence",
    "source",
)


def add_import_arguments(parser: argparse.ArgumentParser, *, output: str = "logits") -> None:
    """Add the arguments that ``import_options`` reads, ``--layout`` excepted. ``output``: the default of --output."""
    parser.add_argument("--task", required=True, choices=get_args(Task))
    parser.add_argument(
        "--labels", required=True, type=Path, metavar="FILE", help="one name per line, to the first blank one"
    )
    parser.add_argument("--output", choices=get_args(Activation), help=f"what the output holds; default: {output}")
    parser.add_argument("--output-name", metavar="NAME", help="which output to read, where several suit")
    parser.add_argument(
        "--mean",
        nargs="+",
        metavar="X",
        help="of pixels scaled to 0-1: one or three, in the order of --color; default: 0",
    )
    parser.add_argument("--std", nargs="+", metavar="X", help="standard deviation, in the form of --mean; default: 1")
    parser.add_argument(
        "--crop", metavar="SHARE", help="classify: keep a central square of this share of the shorter side, as 0.875"
    )
    parser.add_argument(
        "--shorter-side", metavar="N", help="resize the shorter side to this; classify then keeps the central square"
    )
    parser.add_argument(
        "--size", nargs="+", metavar="N", help="height and width, or one number, of a graph that takes any size"
    )
    parser.add_argument("--interpolation", choices=get_args(Interpolation), help="default: bilinear")
    parser.add_argument(
        "--range",
        metavar="LOW,HIGH",
        help="values that are black and white in images of more than 8 bits; default: as each image says",
    )
    parser.add_argument("--color", choices=get_args(Color), help="order of the channels; default: RGB")
    parser.add_argument("--palette", type=Path, metavar="FILE", help="segment: a colour per line, #rrggbb or R,G,B")
    parser.add_argument("--licence", metavar="TEXT", help="of the weights, listed with the model")
    parser.add_argument("--source", metavar="TEXT", help="where the model comes from, listed with it")


def import_options(given: argparse.Namespace, **more: Any) -> ImportOptions:
    """The options that were given, and ``more``. BadInput, with the reason, where they are wrong or a file is."""
    values = {field: getattr(given, field) for field in _FIELDS if getattr(given, field, None) is not None} | more
    for field in ("mean", "std", "size"):
        if isinstance(values.get(field), list):
            values[field] = " ".join(values[field])  # given with spaces or commas
    values["labels"] = read_labels(given.labels)
    if given.palette is not None:
        values["palette"] = read_palette(given.palette)
    return parse_options(values)
