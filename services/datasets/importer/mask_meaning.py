"""Findings on how mask values became classes, and on the balance of the classes."""

from __future__ import annotations

from collections.abc import Sequence

from services.datasets.importer.class_map import Decision
from services.datasets.importer.report import Findings, listed, several
from services.datasets.importer.survey import SampleInfo

ALL_BLACK = (
    "A U-Net trained on such masks learns to answer black everywhere: most all-black U-Nets come from masks like these."
)
RARE_IMAGES = 3
RARE_SHARE = 0.001  # of all pixels
MANY_CLASSES = 10
_MOSTLY = 0.6  # of all pixels


def explain(samples: Sequence[SampleInfo], decision: Decision, findings: Findings, *, named: bool) -> None:
    """Add to ``findings`` how values became classes. ``named``: class names were given."""
    class_map = decision.map
    if class_map.snapped:
        changed = [s for s in samples if s.mask.exact < s.mask.pixels]
        pixels = sum(s.mask.pixels - s.mask.exact for s in changed)
        share = pixels / sum(s.mask.pixels for s in samples)
        names = [s.name for s in changed]
        lossy = any(s.mask.lossy for s in changed)
        cause = "JPEG compression leaves" if lossy else "resizing with interpolation or a blurred brush leaves"
        findings.warning(
            "jpeg_artefacts" if lossy else "blurred_masks",
            f"{several(len(changed), 'mask has', 'masks have')} values near 0 and 255 but not exactly, as {cause} "
            f"them: {pixels} pixels ({share:.2%}) were set to the nearer of the two: {listed(names)}. "
            "Save masks as PNG and resize them with nearest neighbour.",
            names,
        )
    if class_map.kind == "binary_0_1":
        findings.note(
            "looks_black",
            "The masks use the values 0 and 1. They look black in a viewer, and are right: 1 is read as the object.",
        )
    if decision.gaps:
        findings.note(
            "gaps",
            f"The values of the masks are not 0, 1, 2, ...: {_pairs(decision)}.",
        )
    if class_map.kind == "colors":
        findings.note("color_classes", f"Each colour of the masks is a class: {_pairs(decision)}.")
    elif class_map.by_color and class_map.kind != "binary_0_255":
        findings.note(
            "palette_colors",
            "The palettes of the masks disagree, or show black by another index than 0: their colours were used, not "
            "the indices.",
        )
    if decision.voc_border:
        findings.note("voc_border", "The colours are Pascal VOC's; its border (index 255) counts as background.")
    if decision.inverted:
        findings.note("inverted", "With the given background values, the value 0 is the object.")
    if not decision.has_background:
        findings.warning(
            "no_background",
            f"No mask has the value 0 (black), the background: each value became a class of its own "
            f"({_pairs(decision)}). If one of them is the background, give it as background value.",
        )
    values = sorted(
        key for key, index in zip(class_map.keys.tolist(), class_map.classes.tolist(), strict=True) if index
    )
    if class_map.kind == "labels" and len(values) >= MANY_CLASSES and not named:
        findings.warning(
            "many_classes",
            f"The masks have {len(values)} values besides the background ({listed([str(v) for v in values])}), each "
            "taken as a class. If they count objects (one number per object), set them all to 1; if they are shades, "
            "threshold the masks; if they are classes, give all class names.",
        )


def check_balance(samples: Sequence[SampleInfo], decision: Decision, findings: Findings) -> None:
    """Add to ``findings`` empty and full masks, and rare classes."""
    class_map = decision.map
    pixels = [class_map.pixels_of(s.mask) for s in samples]
    empty = [s.name for s, counts in zip(samples, pixels, strict=True) if not any(counts[1:])]
    if empty:
        findings.warning(
            "empty_masks",
            f"{len(empty)} of {several(len(samples), 'mask')} {'is' if len(empty) == 1 else 'are'} empty (only "
            f"background): {listed(empty)}. That is right for images without an object, and wrong otherwise. "
            f"{ALL_BLACK}",
            empty,
        )
    full = [s.name for s, counts in zip(samples, pixels, strict=True) if not counts[0]]
    if full and decision.has_background:
        findings.warning(
            "full_masks",
            f"{several(len(full), 'mask has', 'masks have')} no background at all: {listed(full)}. Check that objects "
            "are drawn, not the whole image filled.",
            full,
        )
    total = sum(map(sum, pixels))
    for index, name in enumerate(class_map.names):
        images = sum(counts[index] > 0 for counts in pixels)
        share = sum(counts[index] for counts in pixels) / total
        if index and (images < RARE_IMAGES or share < RARE_SHARE):
            findings.warning(
                "rare_class",
                f"The class {name} is in {several(images, 'image')} and {share:.3%} of the pixels: too few to learn "
                "and to measure it well. Add images that show it, or drop the class.",
                [s.name for s, counts in zip(samples, pixels, strict=True) if counts[index]],
                images,
            )
        elif index and len(class_map.names) == 2 and share > _MOSTLY:
            findings.note(
                "mostly_foreground",
                f"{share:.0%} of the pixels are {name}. If the objects are the dark pixels of the masks, import again "
                f"with background [{values_of(decision, only=1)}].",
            )


def values_of(decision: Decision, only: int | None = None) -> str:
    """The values of the masks, or those of the class ``only``, separated by commas."""
    class_map = decision.map
    pairs = zip(class_map.keys.tolist(), class_map.classes.tolist(), strict=True)
    shown = [str(class_map.value(key)) for key, index in pairs if only in (None, index)]
    return listed(shown, len(shown)) if len(shown) > 40 else ", ".join(shown)


def _pairs(decision: Decision) -> str:
    class_map = decision.map
    known = zip(class_map.keys.tolist(), class_map.classes.tolist(), strict=True)
    return ", ".join(f"{class_map.value(key)} is class {index}" for key, index in known)
