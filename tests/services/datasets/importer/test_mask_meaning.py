"""What is said of mask values and of the balance of classes, for pixels that are counted by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from services.datasets.importer.class_map import Decision
from services.datasets.importer.mask_meaning import check_balance, explain, values_of
from services.datasets.importer.report import Findings
from services.datasets.importer.survey import SampleInfo
from tests.services.datasets.importer.samples import decided, paletted, sample

RED, GREEN = (255, 0, 0), (0, 255, 0)
BLACK, GREY, WHITE = (0, 0, 0), (128, 128, 128), (255, 255, 255)


def said(samples: Sequence[SampleInfo], decision: Decision, *, named: bool = False) -> Findings:
    findings = Findings()
    explain(samples, decision, findings, named=named)
    assert findings.errors == []
    return findings


def codes(findings: Findings) -> list[str]:
    return [entry.code for entry in (*findings.errors, *findings.warnings, *findings.notes)]


def balance(samples: Sequence[SampleInfo], **options: Any) -> Findings:
    findings = Findings()
    check_balance(samples, decided(samples, **options), findings)
    assert findings.errors == []
    return findings


# ---- values ----


def test_of_plain_black_and_white_nothing_is_said() -> None:
    samples = [sample("a"), sample("b")]
    assert codes(said(samples, decided(samples))) == []


@pytest.mark.parametrize(("lossy", "code"), [(True, "jpeg_artefacts"), (False, "blurred_masks")])
def test_rounded_pixels_are_counted_in_the_masks_that_have_them(lossy: bool, code: str) -> None:
    """3 + 5 pixels of 400 are neither 0 nor 255; the third and fourth mask are exact."""
    samples = [
        sample("a", {0: 50, 2: 3, 255: 47}, lossy=lossy),
        sample("b", {0: 50, 250: 5, 255: 45}),
        sample("c"),
        sample("d"),
    ]
    (warning,) = said(samples, decided(samples, snapped=True)).warnings
    assert (warning.code, warning.count, warning.samples) == (code, 2, ("a", "b"))
    assert "2 masks have values near 0 and 255" in warning.message
    assert " 8 pixels (2.00%) were set to the nearer of the two: a, b. " in warning.message
    assert ("JPEG compression leaves" in warning.message) == lossy
    assert ("interpolation or a blurred brush leaves" in warning.message) == (not lossy)


def test_gaps_name_every_value_and_its_class() -> None:
    samples = [sample("a", {0: 9, 4: 1}), sample("b", {0: 9, 200: 1})]
    (note,) = said(samples, decided(samples)).notes
    assert note.code == "gaps"
    assert note.message == "The values of the masks are not 0, 1, 2, ...: 0 is class 0, 4 is class 1, 200 is class 2."
    without = [sample("a", {0: 9, 1: 1, 2: 1})]
    assert codes(said(without, decided(without))) == []


def test_background_values_count_as_class_0() -> None:
    samples = [sample("a", {0: 5, 7: 5, 9: 5})]
    (note,) = said(samples, decided(samples, background=[9])).notes
    assert note.message.endswith(": 0 is class 0, 7 is class 1, 9 is class 0.")


def test_colours_are_named_as_in_the_file() -> None:
    samples = [paletted("a", {0: 5, 1: 5}, [BLACK, RED]), paletted("b", {0: 5, 1: 5}, [BLACK, GREEN])]
    (note,) = said(samples, decided(samples, by_color=True)).notes
    assert (note.code, note.message) == (
        "color_classes",
        "Each colour of the masks is a class: #000000 is class 0, #00ff00 is class 1, #ff0000 is class 2.",
    )


def test_palettes_of_greys_that_disagree_are_read_by_their_levels() -> None:
    samples = [paletted("a", {0: 5, 1: 5}, [BLACK, GREY, RED]), paletted("b", {0: 5, 1: 5}, [GREY, BLACK, RED])]
    findings = said(samples, decided(samples, by_color=True))
    assert codes(findings) == ["gaps", "palette_colors"]
    assert findings.notes[0].message.endswith(": 0 is class 0, 128 is class 1.")
    assert findings.notes[1].message == (
        "The palettes of the masks disagree, or show black by another index than 0: their colours were used, not the "
        "indices."
    )


def test_of_palettes_in_black_and_white_nothing_is_said() -> None:
    samples = [paletted("a", {0: 5, 1: 5}, [BLACK, WHITE]), paletted("b", {0: 5, 1: 5}, [WHITE, BLACK])]
    decision = decided(samples, by_color=True)
    assert decision.map.kind == "binary_0_255"
    assert codes(said(samples, decision)) == []


def test_without_a_background_each_value_is_a_class() -> None:
    samples = [sample("a", {1: 5, 2: 5})]
    decision = decided(samples)
    (warning,) = said(samples, decision).warnings
    assert decision.map.names == ("background", "class_1", "class_2")
    assert (warning.code, warning.message) == (
        "no_background",
        "No mask has the value 0 (black), the background: each value became a class of its own (1 is class 1, 2 is "
        "class 2). If one of them is the background, give it as background value.",
    )
    with_one = decided(samples, background=[1])
    assert codes(said(samples, with_one)) == ["gaps"]


@pytest.mark.parametrize(
    ("values", "named", "warned"), [(10, False, True), (9, False, False), (10, True, False)], ids=str
)
def test_ten_values_besides_the_background_are_many(values: int, named: bool, warned: bool) -> None:
    samples = [sample("a", dict.fromkeys(range(values + 1), 2))]
    findings = said(samples, decided(samples), named=named)
    assert codes(findings) == (["many_classes"] if warned else [])
    if warned:
        start = f"The masks have {values} values besides the background (1, 2, 3, 4, 5 and {values - 5} more), each "
        assert findings.warnings[0].message.startswith(start)


# ---- balance ----


def test_empty_and_full_masks_are_named() -> None:
    samples = [sample("a"), sample("none", {0: 100}), sample("b"), sample("all", {255: 100}), sample("c")]
    findings = balance(samples)
    assert codes(findings) == ["empty_masks", "full_masks"]
    empty, full = findings.warnings
    assert (empty.count, empty.samples) == (1, ("none",))
    assert empty.message.startswith("1 of 5 masks is empty (only background): none. That is right for images without ")
    assert (full.count, full.samples) == (1, ("all",))
    assert full.message.startswith("1 mask has no background at all: all. ")


def test_without_a_background_no_mask_is_full() -> None:
    assert codes(balance([sample(name, {1: 50, 2: 50}) for name in "abc"])) == []


@pytest.mark.parametrize(
    ("images", "pixels", "rare"),
    [
        pytest.param(3, 30, False, id="three images"),
        pytest.param(2, 300, True, id="two images, however many pixels"),
        pytest.param(4, 1, False, id="a thousandth of the pixels"),
    ],
)
def test_a_class_in_fewer_than_three_images_is_rare(images: int, pixels: int, rare: bool) -> None:
    """Four masks of 1000 pixels: value 2 has ``pixels`` in each of ``images``."""
    samples = [
        sample(
            f"s{number}", {0: 700 - has, 1: 300, 2: has} if (has := pixels * (number < images)) else {0: 700, 1: 300}
        )
        for number in range(4)
    ]
    findings = balance(samples, names=["background", "cell", "spindle"])
    assert codes(findings) == (["rare_class"] if rare else [])
    if rare:
        (warning,) = findings.warnings
        assert (warning.count, warning.samples) == (2, ("s0", "s1"))
        assert warning.message.startswith(
            "The class spindle is in 2 images and 15.000% of the pixels: too few to learn"
        )


def test_a_class_of_less_than_a_thousandth_of_the_pixels_is_rare() -> None:
    samples = [sample(f"s{number}", {0: 1400, 1: 599, 2: 1}) for number in range(8)]
    (warning,) = balance(samples).warnings
    assert (warning.code, warning.count) == ("rare_class", 8)
    assert warning.samples == ("s0", "s1", "s2", "s3", "s4")
    assert "The class class_2 is in 8 images and 0.050% of the pixels" in warning.message


@pytest.mark.parametrize(("bright", "noted"), [(60, False), (61, True)])
def test_more_than_six_tenths_of_foreground_are_noted(bright: int, noted: bool) -> None:
    samples = [sample(name, {0: 100 - bright, 255: bright}) for name in "abc"]
    findings = balance(samples)
    assert codes(findings) == (["mostly_foreground"] if noted else [])
    if noted:
        assert findings.notes[0].message == (
            "61% of the pixels are foreground. If the objects are the dark pixels of the masks, import again with "
            "background [255]."
        )


def test_of_several_classes_none_is_mostly_foreground() -> None:
    assert codes(balance([sample(name, {0: 10, 1: 20, 2: 70}) for name in "abc"])) == []


def test_values_of_a_class_and_of_all() -> None:
    decision = decided([sample("a", {0: 1, 3: 1, 5: 1, 9: 1})], background=[5])
    assert (values_of(decision), values_of(decision, only=0), values_of(decision, only=2)) == (
        "0, 3, 5, 9",
        "0, 5",
        "9",
    )
    forty = decided([sample("a", dict.fromkeys(range(40), 1))])
    assert values_of(forty).endswith(", 38, 39")
    more = decided([sample("a", dict.fromkeys(range(41), 1))])
    assert values_of(more) == "0, 1, 2, 3, 4 and 36 more"
