"""``python -m export keras``: its own arguments, and what they mean."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from ekiben.errors import BadInput
from export.import_arguments import import_options
from export.keras.conversion import PREPROCESS, build, keras_python
from models.artifact import Manifest


def add_keras_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what only a Keras or TensorFlow model has."""
    parser.add_argument(
        "--preprocess",
        choices=list(PREPROCESS),
        help="how pixels are prepared: raw (0 to 255), unit (0 to 1), or as preprocess_input of keras.applications "
        "does: tf (-1 to 1), torch, caffe; default: raw where the model begins with a Rescaling layer",
    )
    parser.add_argument("--signature", metavar="NAME", help="of a SavedModel; default: serving_default")
    parser.add_argument(
        "--python", type=Path, metavar="FILE", help="the Python that has TensorFlow; default: that of .venv-keras"
    )


def keras_writer(given: argparse.Namespace) -> Callable[[Path], Manifest]:
    """A function that writes the artifact of ``given.file`` to a folder; what is noted goes to stderr.

    BadInput, or KerasMissing, where what was given is wrong: before the conversion, which takes a minute.
    """
    if not given.file.exists():
        raise BadInput(f"{given.file} cannot be read: No such file or directory")
    prepared = given.preprocess is not None or given.mean is not None or given.std is not None
    if given.preprocess is None:
        options = import_options(given)
    else:
        for name in ("mean", "std", "color"):
            if getattr(given, name) is not None:
                raise BadInput(f"preprocess says {name}, too: leave out --{name}, or --preprocess")
        steps = PREPROCESS[given.preprocess]
        options = import_options(given, mean=steps.mean, std=steps.std, color=steps.color)
    python = keras_python(given.python)

    def write(folder: Path) -> Manifest:
        manifest, notes = build(
            given.file,
            folder,
            options,
            python=python,
            prepared=prepared,
            activation=given.output,
            signature=given.signature,
        )
        for note in notes:
            print(f"export: {given.file.name}: {note}", file=sys.stderr)
        return manifest

    return write
