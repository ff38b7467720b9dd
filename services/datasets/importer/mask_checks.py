"""The findings on the masks of a dataset, and the decision what their values mean."""

from __future__ import annotations

from collections.abc import Sequence

from services.datasets.importer.class_map import (
    Decision,
    black_and_white,
    colors_decide,
    counted,
    decide,
    keys_of,
    merged_by_color,
)
from services.datasets.importer.import_options import DatasetImportOptions
from services.datasets.importer.mask_meaning import ALL_BLACK, check_balance, explain, values_of
from services.datasets.importer.mask_values import MAX_NAMED_VALUES, MAX_VALUES, WHITE, Fault, MaskStatistics
from services.datasets.importer.report import Findings, listed, several
from services.datasets.importer.survey import SampleInfo

_NOISE_SHARE = 0.02  # of the pixels: values between 0 and 255 that are more frequent are a class, not noise

_FAULTS: dict[Fault, tuple[str, str]] = {
    "photo": (
        "too_many_values",
        "{masks} too many different values and {looks} like a photo or a grey-scale image, not labels: {names}. "
        "A mask has one value per class (such as 0 for background and 255 for the object): put the drawn masks into "
        "masks/, not the images.",
    ),
    "soft": (
        "soft_masks",
        "{masks} a smooth ramp of values and {looks} like probabilities or blurred edges, not labels: {names}. "
        "Threshold them, so that each pixel has the value of one class.",
    ),
    "instances": (
        "instance_labels",
        "{masks} more than {most} values in even patches and {looks} like one number per object: {names}. Give all "
        "objects of a class the same value (mask > 0 becomes 1); for real classes give all class names.",
    ),
    "jpeg": (
        "jpeg_masks",
        "{masks} values blurred by JPEG compression which cannot be told apart any more: {names}. Export the masks "
        "again as PNG from where they were drawn; converting the JPEG files does not bring the values back.",
    ),
    "blends": (
        "too_many_colors",
        "{masks} a few main colours and many blends between them: {names}. Draw and resize masks without "
        "anti-aliasing (nearest neighbour), one exact colour per class.",
    ),
    "colors": (
        "too_many_colors",
        "{masks} more than {most} colours: {names}. Use one exact colour per class, and save as PNG.",
    ),
}


def check_masks(samples: Sequence[SampleInfo], options: DatasetImportOptions, findings: Findings) -> Decision | None:
    """What the values of all masks mean; None where there is an error. Adds to ``findings``."""
    known = len(findings.errors)
    copies = [s.name for s in samples if s.mask_is_image]
    if copies:
        findings.error(
            "same_as_image",
            f"{several(len(copies), 'mask is the image itself', 'masks are the images themselves')}: {listed(copies)}. "
            "Images were put into masks/ as well: put the drawn masks there.",
            copies,
        )
    samples = [s for s in samples if not s.mask_is_image]
    masks = [s.mask for s in samples]
    fits = options.classes is not None and len(options.classes) > MAX_VALUES
    for fault, (code, sentence) in _FAULTS.items():
        if fault == "instances" and fits:
            continue
        names = [s.name for s in samples if s.mask.fault == fault]
        if names:
            one = len(names) == 1
            text = sentence.format(
                masks=several(len(names), "mask has", "masks have"),
                looks="looks" if one else "look",
                names=listed(names),
                most=MAX_VALUES,
            )
            findings.error(code, text, names)
    if len(findings.errors) > known or not samples:
        return None
    by_color = colors_decide(masks)
    snapped = (not by_color or black_and_white(masks)) and is_noisy_binary(masks)
    by_color = by_color and not snapped
    _check_mixture(samples, findings, by_color=by_color, snapped=snapped, background=options.background or ())
    if len(findings.errors) == known:
        _check_values(samples, options, findings, by_color=by_color, snapped=snapped)
    if len(findings.errors) > known:
        return None
    decision = decide(masks, by_color=by_color, snapped=snapped, background=options.background, names=options.classes)
    _check_names(decision, options, findings)
    if len(findings.errors) > known:
        return None
    explain(samples, decision, findings, named=options.classes is not None)
    check_balance(samples, decision, findings)
    return decision


def is_noisy_binary(masks: Sequence[MaskStatistics]) -> bool:
    """Whether the masks are black and white but for noise, so that each value is rounded to the nearer of the two."""
    if any(m.near_binary and (m.distinct > MAX_VALUES or (m.lossy and m.distinct > 2)) for m in masks):
        return True
    by_look = black_and_white(masks)
    pixels = {key & 0xFF if by_look else key: count for key, count in counted(masks, by_look)[0].items()}
    noise = sum(count for key, count in pixels.items() if key not in (0, 255))
    return (
        len(pixels) > 2
        and all(m.near_binary for m in masks)
        and any(192 <= key < 255 for key in pixels)
        and noise <= _NOISE_SHARE * sum(pixels.values())
    )


def _check_mixture(
    samples: Sequence[SampleInfo], findings: Findings, *, by_color: bool, snapped: bool, background: Sequence[int]
) -> None:
    wide = [
        s.name for s in samples if s.mask.kind == "values" and s.mask.distinct and s.mask.keys[-1:].max(initial=0) > 255
    ]
    if by_color and wide:
        findings.error(
            "mixed_masks",
            f"Some masks are colours, others labels above 255: {listed(wide)}. Save all masks the same way.",
            wide,
        )
        return
    merged = [s.name for s in samples if merged_by_color(s.mask)]
    if by_color and merged:
        findings.error(
            "mixed_masks",
            f"Some masks are colours, others have a palette with one colour for several indices: {listed(merged)}. "
            "Save all masks the same way.",
            merged,
        )
        return
    odd: list[str] = []
    one, white = (0x010101, WHITE) if by_color else (1, 255)
    if snapped:
        odd = [s.name for s in samples if not s.mask.near_binary]
    elif 255 not in background and set(counted([s.mask for s in samples], by_color)[0]) == {0, one, white}:
        keys = [set(keys_of(s.mask, by_color).tolist()) for s in samples]
        if not any({one, white} <= found for found in keys):
            odd = [s.name for s, found in zip(samples, keys, strict=True) if one in found]
    if odd:
        findings.error(
            "mixed_conventions",
            f"{several(len(odd), 'mask marks', 'masks mark')} objects with small numbers (0, 1, ...), the others with "
            f"255: {listed(odd)}. Save all masks the same way, or give background [255] if 255 is no class.",
            odd,
        )


def _check_values(
    samples: Sequence[SampleInfo], options: DatasetImportOptions, findings: Findings, *, by_color: bool, snapped: bool
) -> None:
    masks = [s.mask for s in samples]
    keys = [0, 255] if snapped else sorted(counted(masks, by_color)[0])
    if keys == [0]:
        findings.error(
            "all_empty",
            f"All {len(samples)} masks are empty: every pixel is 0 (black), so there is nothing to learn. {ALL_BLACK} "
            "Check the program that wrote them.",
            [s.name for s in samples],
        )
    elif len(keys) == 1:
        findings.error(
            "one_value",
            f"All masks have one value only ({_shown(keys, by_color)}) in every pixel: there is no background to tell "
            "objects from. Draw objects on 0 (black).",
            [s.name for s in samples],
        )
    most = MAX_NAMED_VALUES if options.classes and len(options.classes) > MAX_VALUES else MAX_VALUES
    if len(keys) > most:
        code, advice = _too_many(masks, by_color)
        findings.error(
            code,
            f"The masks have {len(keys)} different {'colours' if by_color else 'values'} together "
            f"({_shown(keys, by_color)}); at most {most} are taken for classes. {advice}",
            [s.name for s in samples],
        )


def _too_many(masks: Sequence[MaskStatistics], by_color: bool) -> tuple[str, str]:
    """Code and advice where no mask, but all together, have too many values."""
    if by_color:
        return "too_many_colors", "Use one exact colour per class, without anti-aliasing."
    pixels, _ = counted(masks, by_color)
    bright = sum(count for key, count in pixels.items() if key >= 239)
    if max(pixels) <= 255 and bright > 0.01 * sum(pixels.values()):
        return "soft_masks", "If they are probabilities or blurred edges, threshold them: one value per class."
    if len(pixels) > 0.9 * max(pixels):
        return (
            "instance_labels",
            "If the numbers count objects, give all objects of a class the same value (mask > 0 becomes 1); if they "
            "are classes, give all class names.",
        )
    return "too_many_values", "A mask has one value per class; if these are classes, give all class names."


def _check_names(decision: Decision, options: DatasetImportOptions, findings: Findings) -> None:
    class_map = decision.map
    count = len(class_map.names)
    if count == 1:
        findings.error(
            "all_empty",
            f"All values of the masks ({values_of(decision)}) count as background, so there is nothing to learn. "
            f"{ALL_BLACK} Give other background values.",
        )
    elif options.classes is not None and len(options.classes) != count:
        empty = "" if decision.has_background else " (and the background, which no pixel has)"
        findings.error(
            "class_names",
            f"The masks have {count} classes, for the values {values_of(decision)}{empty}, but "
            f"{several(len(options.classes), 'class name is', 'class names are')} given "
            f"({', '.join(options.classes[:40])}): give one name for each class, the background first.",
        )


def _shown(keys: Sequence[int], by_color: bool) -> str:
    return listed([f"#{key:06x}" if by_color else str(key) for key in keys])
