"""The report on a dataset: what is wrong with it, and what is in it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMED = 5
"""Files that a sentence names; the rest is a number."""


@dataclass(frozen=True, slots=True)
class ReportEntry:
    """One finding on a dataset: a stable code, a sentence, and the samples or files it is about.

    ``count`` is how many there are; ``samples`` names the first few.
    """

    code: str
    message: str
    count: int = 1
    samples: tuple[str, ...] = ()


@dataclass(slots=True)
class Findings:
    """Errors refuse a dataset, warnings are to be looked at, notes explain."""

    errors: list[ReportEntry] = field(default_factory=list)
    warnings: list[ReportEntry] = field(default_factory=list)
    notes: list[ReportEntry] = field(default_factory=list)

    def error(self, code: str, message: str, names: Sequence[str] = (), count: int | None = None) -> None:
        """Add an error. ``names``: of the samples or files; ``count``: how many, by default all of ``names``."""
        self.errors.append(_finding(code, message, names, count))

    def warning(self, code: str, message: str, names: Sequence[str] = (), count: int | None = None) -> None:
        """Add a warning; parameters as of ``error``."""
        self.warnings.append(_finding(code, message, names, count))

    def note(self, code: str, message: str, names: Sequence[str] = (), count: int | None = None) -> None:
        """Add a note; parameters as of ``error``."""
        self.notes.append(_finding(code, message, names, count))


@dataclass(frozen=True, slots=True)
class ClassReport:
    """The pixels of one class in all masks; ``share`` of all pixels, 0-1."""

    class_index: int
    name: str
    color: tuple[int, int, int]
    pixels: int
    share: float
    images: int


@dataclass(frozen=True, slots=True)
class ValueReport:
    """One value of the uploaded masks: a number, or a colour as #rrggbb. ``class_index`` None: not decided."""

    value: int | str
    pixels: int
    masks: int
    class_index: int | None


@dataclass(frozen=True, slots=True)
class SizeReport:
    """How many images have this size in pixels."""

    width: int
    height: int
    images: int


@dataclass(slots=True)
class Report:
    """The report on a dataset.

    ``files`` and ``bytes``: of the unpacked upload. ``values`` and ``sizes``: the most frequent first.
    """

    findings: Findings = field(default_factory=Findings)
    samples: int = 0
    files: int = 0
    bytes: int = 0
    classes: list[ClassReport] = field(default_factory=list)
    values: list[ValueReport] = field(default_factory=list)
    class_map: str | None = None
    sizes: list[SizeReport] = field(default_factory=list)
    groups: int = 0

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.findings.errors

    def as_json(self) -> dict[str, Any]:
        """The report as ``report.json`` holds it."""
        body = dataclasses.asdict(self)
        findings = body.pop("findings")
        return {"ok": self.ok, **findings, **body}

    def write(self, path: Path) -> None:
        """Write ``report.json`` to ``path``, whole or not at all."""
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(self.as_json(), ensure_ascii=False), encoding="utf-8")
        os.replace(part, path)


def listed(names: Sequence[str], count: int | None = None) -> str:
    """``a, b, c, d, e and 7 more``."""
    count = len(names) if count is None else count
    shown = ", ".join(names[:NAMED])
    more = count - min(len(names), NAMED)
    return f"{shown} and {more} more" if more > 0 else shown


def several(count: int, one: str, many: str = "") -> str:
    """``1 image``, ``3 images``."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def _finding(code: str, message: str, names: Sequence[str], count: int | None) -> ReportEntry:
    return ReportEntry(code, message, max(1, len(names)) if count is None else count, tuple(names[:NAMED]))
