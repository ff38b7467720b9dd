"""One run of the Segment Anything benchmark: equal requests to each contender in turn, with their answers compared."""

from __future__ import annotations

import http.client
import io
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from bench.sam.contenders import Masks, SamContender
from bench.servers import Missing, busy_s
from tests.reference_sam import match

PACKAGE, LOOP, EKIBEN = "package", "ONNX loop", "Ekiben"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes of a run. ``grid``: points per side of automatic masks."""

    rounds: int
    repeats: int
    """Of what takes less than a second, in each round."""
    crops: bool
    grid: int = 16


@dataclass(slots=True)
class Row:
    """A contender: seconds of every answer by kind of request; ``wrong``: why it is invalid."""

    name: str
    label: str
    wrong: str = ""
    times: dict[str, list[float]] = field(default_factory=dict)
    peak_mb: float | None = None
    other_cores: float = 0.0

    def median(self, what: str) -> float | None:
        """Median seconds of a kind of request; None without answers."""
        times = self.times.get(what)
        return statistics.median(times) if times else None

    def as_json(self) -> dict[str, object]:
        """The row with every time, for the JSON file."""
        return {**asdict(self), "medians": {what: self.median(what) for what in self.times}}


class Run:
    """``rows`` are filled in; ``remarks`` are for the report."""

    def __init__(
        self, contenders: dict[str, SamContender], rows: dict[str, Row], plan: Plan, photo: Path, say: Say
    ) -> None:
        self.contenders, self.rows, self.plan, self.photo, self.say = contenders, rows, plan, photo, say
        self.remarks = [contender.note for contender in contenders.values() if contender.note]
        with Image.open(photo) as opened:
            self._image = opened.convert("RGB")
        self.width, self.height = self._image.size

    def measure(self) -> None:
        """Measure in rounds. A contender whose answers differ from the package's is invalid and left out after it."""
        expected: dict[str, Masks] = {}
        names = list(self.contenders)
        warm = self._shifted(-3)
        for name in names:
            self._guarded(name, partial(self.contenders[name].point, warm, 10, 10))
        for number in range(self.plan.rounds):
            fresh = self._shifted(number)
            # The package is first in the first round: its answers are what the others' are held against.
            for name in (*names[number % len(names) :], *names[: number % len(names)]) if number else names:
                if not self.rows[name].wrong:
                    self._guarded(name, partial(self._round, name, fresh, expected))
        if self.plan.crops:
            for name in (PACKAGE, EKIBEN):
                if name in self.rows and not self.rows[name].wrong:
                    self._guarded(name, partial(self._automatic, name, "crops", expected, {"crop_n_layers": 1}))
        for name, contender in self.contenders.items():
            if not self.rows[name].wrong:
                self.rows[name].peak_mb = sum(_peak_mb(process.pid) for process in contender.processes())

    def _guarded(self, name: str, call: Callable[[], object]) -> None:
        busy, own, start = busy_s(), self._cpu_s(name), time.perf_counter()
        try:
            call()
        except (Missing, OSError, http.client.HTTPException) as error:
            self.rows[name].wrong = f"invalid: {error}"
            self.say(f"{name}: {self.rows[name].wrong}")
            return
        used = busy_s() - busy - (self._cpu_s(name) - own)
        row = self.rows[name]
        row.other_cores = max(row.other_cores, used / (time.perf_counter() - start))

    def _round(self, name: str, fresh: Path, expected: dict[str, Masks]) -> None:
        contender, width, height = self.contenders[name], self.width, self.height
        first = contender.point(fresh, width * 0.5, height * 0.6)
        self._took(name, "first prompt", first.seconds)
        self._took(name, "encode", first.encode_s)
        contender.point(self.photo, width * 0.5, height * 0.6)
        for number in range(self.plan.repeats):
            x, y = width * (0.3 + 0.4 * number / self.plan.repeats), height * 0.55
            again = contender.point(self.photo, x, y)
            self._took(name, "next prompt", again.seconds)
            self._took(name, "decode", again.decode_s)
            self._check(name, f"point {number}", again.masks, expected)
        boxes = [[width * (0.05 + 0.06 * n), height * 0.2, width * (0.3 + 0.06 * n), height * 0.8] for n in range(10)]
        for _ in range(max(1, self.plan.repeats // 5)):
            ten = contender.boxes(self.photo, boxes)
            self._took(name, "ten boxes", ten.seconds)
        self._check(name, "ten boxes", ten.masks, expected)
        self._automatic(name, "automatic", expected, {})
        medians = ", ".join(
            f"{what} {(self.rows[name].median(what) or 0) * 1e3:.0f} ms" for what in self.rows[name].times
        )
        self.say(f"{name}: {medians}")

    def _automatic(self, name: str, what: str, expected: dict[str, Masks], more: dict[str, Any]) -> None:
        contender = self.contenders[name]
        contender.forget(self._shifted(-2))
        answer = contender.automatic(self.photo, {"points_per_side": self.plan.grid, **more})
        self._took(name, what, answer.seconds)
        self._check(name, what, answer.masks, expected)

    def _took(self, name: str, what: str, seconds: float | None) -> None:
        if seconds is not None:
            self.rows[name].times.setdefault(what, []).append(seconds)

    def _check(self, name: str, what: str, masks: Masks, expected: dict[str, Masks]) -> None:
        """Raises Missing unless masks and predicted IoUs are those of the first contender."""
        masks = [{**mask, "segmentation": compressed(mask["segmentation"])} for mask in masks]
        if what not in expected:
            expected[what] = masks
            return
        theirs = expected[what]
        least = 0.99 if what in ("automatic", "crops") else 0.999
        pairs = match([m["segmentation"] for m in masks], [m["segmentation"] for m in theirs], least=least)
        if not len(pairs) == len(masks) == len(theirs):
            raise Missing(f"{what}: {len(masks)} masks where {len(theirs)} are expected; {len(pairs)} are the same")
        off = max((abs(masks[a]["predicted_iou"] - theirs[b]["predicted_iou"]) for a, b, _ in pairs), default=0.0)
        if off > 1e-4:
            raise Missing(f"{what}: a predicted IoU differs by {off:.1e}")

    def _shifted(self, number: int) -> Path:
        """The photo, moved: another image of the same size and kind for every round."""
        moved = np.roll(np.asarray(self._image), 16 * (number + 1), axis=1)
        out = io.BytesIO()
        Image.fromarray(moved).save(out, "JPEG", quality=92)
        path = self.photo.with_name(f"moved{number}.jpg")
        path.write_bytes(out.getvalue())
        return path

    def _cpu_s(self, name: str) -> float:
        own = psutil.Process().cpu_times()
        total = own.user + own.system
        for process in self.contenders[name].processes():
            times = process.cpu_times()
            total += times.user + times.system
        return float(total)


def compressed(segmentation: dict[str, Any]) -> dict[str, Any]:
    """COCO's form of run lengths that are already that, or a list of counts."""
    if isinstance(segmentation["counts"], list):
        from pycocotools import mask as coco

        return dict(coco.frPyObjects(segmentation, *segmentation["size"]))
    return segmentation


def _peak_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0
