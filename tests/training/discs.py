"""Small prepared archives whose right answer is known, and trainings of them in this process."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ekiben.child_protocol import MessageWriter
from tests.serving import ROOT
from training.__main__ import train

Pixels = NDArray[np.uint8]

SMALL: dict[str, Any] = {"width": 4, "depth": 3, "tile": 64, "learning_rate": 0.01, "batch_size": 4}
"""Options of a network that learns discs in seconds."""

COLORS = [(0, 0, 0), (255, 128, 0), (0, 128, 255)]
NAMES = ["background", "disc", "ring"]


def images(count: int, classes: int = 2, side: int = 64, seed: int = 0) -> list[tuple[Pixels, Pixels]]:
    """Grey noise with a bright disc (class 1) and, with three classes, a dark one (class 2)."""
    draws = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    made = []
    for _ in range(count):
        image = draws.normal(110, 12, (side, side))
        mask = np.zeros((side, side), np.uint8)
        for label in range(1, classes):
            y, x, radius = *draws.uniform(side * 0.25, side * 0.75, 2), draws.uniform(side / 8, side / 5)
            inside = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
            image[inside] += 70 if label == 1 else -70
            mask[inside] = label
        made.append((np.repeat(image.clip(0, 255).astype(np.uint8)[..., None], 3, 2), mask))
    return made


def write_archive(
    path: Path,
    made: Sequence[tuple[Pixels, Pixels]],
    classes: int = 2,
    *,
    groups: Sequence[str] | None = None,
    description: dict[str, Any] | None = None,
) -> None:
    """``description``: what ``dataset.json`` says otherwise."""
    samples = []
    with zipfile.ZipFile(path, "w") as archive:
        for number, (rgb, mask) in enumerate(made):
            image_name, mask_name = f"images/{number:06d}.png", f"masks/{number:06d}.png"
            archive.writestr(image_name, _png(rgb))
            archive.writestr(mask_name, _png(mask))
            digest = hashlib.sha256(rgb.tobytes()).hexdigest()
            samples.append(
                {
                    "name": f"{number}.png",
                    "group": groups[number] if groups else str(number),
                    "sha256": digest,
                    "width": rgb.shape[1],
                    "height": rgb.shape[0],
                    "image": image_name,
                    "mask": mask_name,
                    "class_pixels": np.bincount(mask.ravel(), minlength=classes).tolist(),
                    "geometry": None,
                }
            )
        said = {
            "format": 1,
            "name": "discs",
            "grey": True,
            "samples": samples,
            "classes": [
                {"name": [*NAMES, *map(str, range(3, classes))][i], "color": COLORS[i % len(COLORS)]}
                for i in range(classes)
            ],
            **(description or {}),
        }
        archive.writestr("dataset.json", json.dumps(said))


def folder_of(folder: Path, options: dict[str, Any], count: int = 24, classes: int = 2, side: int = 64) -> Path:
    """A folder that is ready to be trained in."""
    folder.mkdir(parents=True, exist_ok=True)
    write_archive(folder / "dataset.zip", images(count, classes, side), classes)
    (folder / "options.json").write_text(json.dumps({**SMALL, **options}))
    return folder


class Said(MessageWriter):
    """Keeps what was said, as the parent would read it."""

    def __init__(self) -> None:
        self.stream = io.StringIO()
        super().__init__(self.stream)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [line["data"] for line in self.lines if line.get("event") == kind]

    @property
    def said_result(self) -> dict[str, Any]:
        found: dict[str, Any] = self.lines[-1]["result"]
        return found


def trained(folder: Path) -> Said:
    """Train in this process. Refusals are raised."""
    said = Said()
    assert train(folder, None, said, time.monotonic()) == 0
    return said


def start(folder: Path, *arguments: str, before: Sequence[str] = ()) -> subprocess.Popen[str]:
    """``python -m training`` as the worker starts it."""
    return subprocess.Popen(
        [sys.executable, *before, "-m", "training", "--folder", str(folder), *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def refusal(folder: Path, *arguments: str) -> dict[str, str]:
    """The refusal with which a training ends. It has said one, and its status is 2."""
    process = start(folder, *arguments)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    found: dict[str, str] = json.loads(out.splitlines()[-1])["refusal"]
    return found


def _png(pixels: Pixels) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()
