"""The findings on a dataset: on its files, its images and, with mask_checks, its masks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ekiben.training import FEW_IMAGES
from models.limits import MAX_PIXELS
from services.datasets.importer.class_map import Decision
from services.datasets.importer.import_options import DatasetImportOptions
from services.datasets.importer.mask_checks import check_masks
from services.datasets.importer.report import Findings, listed, several
from services.datasets.importer.survey import SampleInfo, Survey

FEWEST = 3  # different images: for training, validation and test
SMALL_SIDE = 32  # pixels
DARK = 32  # of 255: the brightest level of a 16-bit image that uses only the lowest ones

_TROUBLES = {
    "unreadable_image": (
        "image cannot be read",
        "images cannot be read",
        "Save them again as PNG or TIFF, or take them and their masks out.",
    ),
    "unreadable_mask": (
        "mask cannot be read",
        "masks cannot be read",
        "Save them again as PNG, or take them and their images out.",
    ),
    "image_too_large": (
        "file is too large",
        "files are too large",
        f"Cut images and masks into parts of at most {MAX_PIXELS // 1_000_000} megapixels.",
    ),
    "size_mismatch": (
        "mask has another size than its image",
        "masks have another size than their images",
        "Make each mask as large as its image (nearest neighbour, not smoothed); if a program turned the images, "
        "export image and mask from the same one.",
    ),
    "slice_mismatch": (
        "mask has another number of slices than its image",
        "masks have another number of slices than their images",
        "A volume and its mask need the same shape; the pages of a TIFF are slices, not channels.",
    ),
    "geometry_mismatch": (
        "label volume is not where its image is",
        "label volumes are not where their images are",
        "Their affines (origin, spacing, axes) must give the same voxels, in any order of axes: resample the labels "
        "into the space of the image (nearest neighbour), or export both from the same program.",
    ),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """``decision``: None where the meaning of the mask values could not be decided. ``groups``: by sample, which split
    keeps together."""

    decision: Decision | None
    groups: list[str]


def check(survey: Survey, options: DatasetImportOptions, findings: Findings) -> Verdict:
    """What mask values mean, and the groups of the samples; adds to ``findings``."""
    for code, (one, many, advice) in _TROUBLES.items():
        found = [t for t in survey.troubles if t.what == code]
        if found:
            each = [f"{t.name} ({t.why})" for t in found]
            findings.error(code, f"{several(len(found), one, many)}: {listed(each)}. {advice}", [t.name for t in found])
    _check_places(survey, findings)
    samples = survey.samples
    decision = check_masks(samples, options, findings)
    groups = _groups(samples)
    if not survey.troubles:
        _check_count(samples, groups, findings)
    _check_duplicates(samples, decision, findings)
    _check_images(samples, findings)
    return Verdict(decision, groups)


def _check_places(survey: Survey, findings: Findings) -> None:
    one, many = "label volume", "label volumes"
    if survey.unplaced:
        findings.warning(
            "geometry_unknown",
            f"{several(len(survey.unplaced), one, many)} cannot be compared with the image in space, since one of both "
            f"does not say where it is: {listed(survey.unplaced)}. Slices, rows and columns are taken in the order of "
            "the file: look at the preview, or save image and labels with the same affine.",
            survey.unplaced,
        )
    if survey.turned:
        findings.note(
            "geometry_turned",
            f"{several(len(survey.turned), one + ' has', many + ' have')} the axes in another order or direction than "
            f"the image, and {'was' if len(survey.turned) == 1 else 'were'} turned by the affines: "
            f"{listed(survey.turned)}.",
            survey.turned,
        )


def _check_count(samples: Sequence[SampleInfo], groups: Sequence[str], findings: Findings) -> None:
    count = len(set(groups))
    volumes = any(s.in_volume for s in samples)
    one, many = "different image", "different images"
    if volumes:
        one, many = "different image or volume", "different images or volumes"
    same = f" ({len(samples)} images, but copies and slices of one volume count once)" if count < len(samples) else ""
    if count < FEWEST:
        findings.error(
            "too_few",
            f"There {'is' if count == 1 else 'are'} only {several(count, one, many)} with masks{same}: at least "
            f"{FEWEST} are needed, to train on, to choose with and to test on. Add more pairs.",
        )
    elif count < FEW_IMAGES:
        findings.warning(
            "few_samples",
            f"There are {count} {many} with masks{same}: with fewer than {FEW_IMAGES}, a training is measured by "
            "cross-validation (several networks, each tested on another part). More images make a better model.",
        )


def _check_duplicates(samples: Sequence[SampleInfo], decision: Decision | None, findings: Findings) -> None:
    alike: dict[str, list[SampleInfo]] = defaultdict(list)
    for sample in samples:
        if not (sample.in_volume and sample.blank):
            alike[sample.sha256].append(sample)
    copies = [found for found in alike.values() if len(found) > 1]
    same = [f for f in copies if len({s.mask_sha256 for s in f}) == 1]
    differing = [f for f in copies if len({s.mask_sha256 for s in f}) > 1]
    for code, found, what, advice in (
        ("duplicate_images", same, "several times, with the same mask", "Keep one of each."),
        (
            "conflicting_duplicates",
            differing,
            "several times, with different masks",
            "A network cannot learn both answers: keep the right mask.",
        ),
    ):
        if found:
            names = [" = ".join(s.name for s in group[:5]) for group in found]
            findings.warning(
                code,
                f"{several(len(found), 'image is', 'images are')} there {what}: {listed(names)}. {advice} The copies "
                "stay on one side of every split.",
                [s.name for group in found for s in group],
            )


def _check_images(samples: Sequence[SampleInfo], findings: Findings) -> None:
    formats = Counter(s.format for s in samples if s.format)
    if len(formats) > 1:
        rare = min(formats, key=lambda kind: formats[kind])
        findings.warning(
            "mixed_formats",
            "The images differ in their pixel format ("
            + ", ".join(f"{kind}: {count}" for kind, count in formats.most_common())
            + f"); all are read as 8-bit RGB. Check that {rare} images look like the others: "
            f"{listed([s.name for s in samples if s.format == rare])}.",
            [s.name for s in samples if s.format == rare],
        )
    dark = [s.name for s in samples if s.format.startswith("16") and s.brightest < DARK]
    if dark:
        findings.warning(
            "dark_images",
            f"{several(len(dark), '16-bit image uses', '16-bit images use')} only the lowest levels of the "
            f"range that the file declares, and will look almost black: {listed(dark)}. Stretch the levels of all "
            "images in the same way.",
            dark,
        )
    turned = [s.name for s in samples if s.turned]
    if turned:
        findings.note(
            "exif_turned",
            f"{several(len(turned), 'image is', 'images are')} turned by EXIF: {listed(turned)}. Look at the preview: "
            "their masks must fit the turned image.",
            turned,
        )
    small = [s.name for s in samples if min(s.width, s.height) < SMALL_SIDE]
    if small:
        findings.note(
            "small_images",
            f"{several(len(small), 'image is', 'images are')} smaller than {SMALL_SIDE} pixels on a side: "
            f"{listed(small)}.",
            small,
        )
    sizes = Counter((s.width, s.height) for s in samples)
    if len(sizes) > 1:
        shown = [f"{width} x {height} ({count})" for (width, height), count in sizes.most_common()]
        findings.note("mixed_sizes", f"The images have {len(sizes)} sizes: {listed(shown)}.")


def _groups(samples: Sequence[SampleInfo]) -> list[str]:
    """The group of each sample: its volume or itself; groups with an identical image are merged.

    A blank slice does not merge groups: most volumes begin with black ones.
    """
    parent: dict[str, str] = {}

    def root(group: str) -> str:
        while parent.setdefault(group, group) != group:
            parent[group] = group = parent[parent[group]]
        return group

    first: dict[str, str] = {}
    for sample in samples:
        here = root(sample.group)
        if not (sample.in_volume and sample.blank):
            parent[here] = root(first.setdefault(sample.sha256, here))
    return [root(sample.group) for sample in samples]
