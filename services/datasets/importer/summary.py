"""The numbers of a report: classes, values and sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from services.datasets.importer.class_map import Decision, colors_decide, counted
from services.datasets.importer.report import ClassReport, Report, SizeReport, ValueReport
from services.datasets.importer.survey import SampleInfo

MOST_VALUES = 64
MOST_SIZES = 20


def summarize(report: Report, samples: Sequence[SampleInfo], groups: Sequence[str], decision: Decision | None) -> None:
    """Fill in the numbers of ``report``; without a decision there are values, but no classes."""
    report.samples = len(samples)
    report.groups = len(set(groups))
    sizes = Counter((s.width, s.height) for s in samples)
    report.sizes = [SizeReport(w, h, count) for (w, h), count in sizes.most_common(MOST_SIZES)]
    report.values = _values(samples, decision)
    if decision is None:
        return
    class_map = decision.map
    report.class_map = class_map.kind
    by_sample = [class_map.pixels_of(s.mask) for s in samples]
    total = sum(map(sum, by_sample))
    for index, (name, color) in enumerate(zip(class_map.names, class_map.colors, strict=True)):
        pixels = sum(counts[index] for counts in by_sample)
        images = sum(counts[index] > 0 for counts in by_sample)
        report.classes.append(ClassReport(index, name, color, pixels, pixels / total, images))


def _values(samples: Sequence[SampleInfo], decision: Decision | None) -> list[ValueReport]:
    masks = [s.mask for s in samples]
    by_color = decision.map.by_color if decision else colors_decide(masks)
    pixels, having = counted(masks, by_color)
    found = []
    for key, count in pixels.most_common(MOST_VALUES):
        shown: int | str = f"#{key:06x}" if by_color else key
        index = None
        if decision is not None:
            shown = decision.map.value(key)
            index = decision.map.class_of(key)
        found.append(ValueReport(shown, count, having[key], index))
    return found
