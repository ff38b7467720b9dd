"""The findings on samples and unusable files on both sides of each bound, and which samples form a group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from services.datasets.importer.checks import Verdict, check
from services.datasets.importer.import_options import DatasetImportOptions
from services.datasets.importer.report import Findings, ReportEntry
from services.datasets.importer.survey import SampleInfo, Survey, Trouble
from tests.services.datasets.importer.samples import sample

OPTIONS = DatasetImportOptions(name="toy", source="upload")


def checked(samples: Sequence[SampleInfo], troubles: Sequence[Trouble] = ()) -> tuple[Verdict, Findings]:
    findings = Findings()
    return check(Survey(list(samples), list(troubles)), OPTIONS, findings), findings


def many(count: int, **changes: Any) -> list[SampleInfo]:
    return [sample(f"s{number:02d}", **changes) for number in range(count)]


def only(entries: Sequence[ReportEntry], code: str) -> ReportEntry:
    (found,) = (entry for entry in entries if entry.code == code)
    return found


def groups(*samples: SampleInfo) -> list[set[str]]:
    """The names of the samples of each group, in the order of the samples."""
    verdict, _ = checked(samples)
    together: dict[str, set[str]] = {}
    for one, group in zip(samples, verdict.groups, strict=True):
        together.setdefault(group, set()).add(one.name)
    return list(together.values())


# ---- groups ----


def test_groups_with_an_image_in_common_are_one() -> None:
    """b has the image of a and of the volume of c, and d that of another slice of this volume: all are one."""
    assert groups(
        sample("a", sha256="1"),
        sample("d", sha256="2"),
        sample("c/0", sha256="1", in_volume=True, group="c"),
        sample("c/1", sha256="2", in_volume=True, group="c"),
        sample("e", sha256="3"),
    ) == [{"a", "d", "c/0", "c/1"}, {"e"}]


def test_a_chain_of_copies_is_one_group_whatever_the_order() -> None:
    volumes = [
        sample(f"{volume}/{place}", sha256=image, in_volume=True, group=volume)
        for volume, images in {"p": "12", "q": "34", "r": "23", "s": "56"}.items()
        for place, image in enumerate(images)
    ]
    expected = {frozenset({"p/0", "p/1", "q/0", "q/1", "r/0", "r/1"}), frozenset({"s/0", "s/1"})}
    assert {frozenset(group) for group in groups(*volumes)} == expected
    assert {frozenset(group) for group in groups(*volumes[::-1])} == expected


def test_a_slice_that_is_repeated_after_its_volume_was_merged() -> None:
    """The group that the image was first seen in is no longer one of its own."""
    slices = [("h", "2"), ("g", "1"), ("g", "2"), ("g", "1"), ("k", "3")]
    samples = [
        sample(f"{volume}/{place}", sha256=image, in_volume=True, group=volume)
        for place, (volume, image) in enumerate(slices)
    ]
    assert groups(*samples) == [{"h/0", "g/1", "g/2", "g/3"}, {"k/4"}]


def test_blank_slices_are_no_copies_but_blank_images_are() -> None:
    blank: dict[str, Any] = {"sha256": "0", "blank": True}
    slices = [sample(f"{name}/0", in_volume=True, group=name, **blank) for name in "ab"]
    images = [sample(name, **blank) for name in "cd"]
    assert groups(*slices, *images) == [{"a/0"}, {"b/0"}, {"c", "d"}]
    _, findings = checked([*slices, *images])
    assert only(findings.warnings, "conflicting_duplicates").samples == ("c", "d")


# ---- how many ----


@pytest.mark.parametrize(("count", "code"), [(2, "too_few"), (3, "few_samples"), (19, "few_samples"), (20, None)])
def test_from_twenty_images_on_nothing_is_said_of_their_number(count: int, code: str | None) -> None:
    _, findings = checked(many(count))
    found = [entry.code for entry in (*findings.errors, *findings.warnings) if entry.code != "rare_class"]
    assert found == ([code] if code else [])


def test_slices_of_a_volume_count_once() -> None:
    slices = [sample(f"{v}/{z}", in_volume=True, group=v) for v in "ab" for z in range(15)]
    _, findings = checked(slices)
    (error,) = findings.errors
    assert (error.code, error.count, error.samples) == ("too_few", 1, ())
    assert error.message == (
        "There are only 2 different images or volumes with masks (30 images, but copies and slices of one volume count "
        "once): at least 3 are needed, to train on, to choose with and to test on. Add more pairs."
    )
    _, findings = checked([*slices, sample("c")])
    assert only(findings.warnings, "few_samples").message.startswith(
        "There are 3 different images or volumes with masks (31 images, but copies and slices of one volume count once"
    )


def test_files_that_cannot_be_used_are_said_and_their_number_is_not() -> None:
    """With these files repaired there may be enough images."""
    troubles = [
        *(Trouble("unreadable_image", f"images/{i}.png", "damaged") for i in range(6)),
        Trouble("slice_mismatch", "case", "image 4 slices, mask 3"),
        Trouble("image_too_large", "masks/x.png", "9000 x 9000"),
    ]
    _, findings = checked(many(1), troubles)
    assert [entry.code for entry in findings.errors] == ["unreadable_image", "image_too_large", "slice_mismatch"]
    first = findings.errors[0]
    assert (first.count, first.samples) == (6, tuple(f"images/{i}.png" for i in range(5)))
    assert first.message == (
        "6 images cannot be read: images/0.png (damaged), images/1.png (damaged), images/2.png (damaged), images/3.png "
        "(damaged), images/4.png (damaged) and 1 more. Save them again as PNG or TIFF, or take them and their masks "
        "out."
    )
    assert findings.errors[2].message.startswith("1 mask has another number of slices than its image: case (image 4 ")


def test_no_sample_at_all_has_no_decision() -> None:
    verdict, findings = checked([])
    assert (verdict.decision, verdict.groups) == (None, [])
    assert [entry.code for entry in findings.errors] == ["too_few"]
    assert findings.errors[0].message.startswith("There are only 0 different images with masks: at least 3 are needed")


# ---- copies ----


def test_copies_are_named_by_whether_their_masks_agree() -> None:
    samples = [
        *many(20),
        sample("a1", sha256="a", mask_sha256="m"),
        sample("b1", sha256="b", mask_sha256="m"),
        sample("a2", sha256="a", mask_sha256="m"),
        sample("b2", sha256="b", mask_sha256="n"),
        sample("b3", sha256="b", mask_sha256="m"),
    ]
    _, findings = checked(samples)
    same, differing = findings.warnings
    assert (same.code, same.count, same.samples) == ("duplicate_images", 2, ("a1", "a2"))
    assert same.message.startswith("1 image is there several times, with the same mask: a1 = a2. Keep one of each. ")
    assert (differing.code, differing.count) == ("conflicting_duplicates", 3)
    assert ", with different masks: b1 = b2 = b3. A network cannot learn both answers" in differing.message


# ---- images ----


@pytest.mark.parametrize(
    ("changes", "dark"),
    [
        ({"format": "16-bit grey", "brightest": 31}, True),
        ({"format": "16-bit grey", "brightest": 32}, False),
        ({"format": "8-bit grey", "brightest": 31}, False),
    ],
)
def test_an_image_of_16_bits_below_an_eighth_of_the_range_is_dark(changes: dict[str, Any], dark: bool) -> None:
    _, findings = checked([*many(20, format=changes["format"]), sample("low", **changes)])
    assert [(entry.code, entry.samples) for entry in findings.warnings] == ([("dark_images", ("low",))] if dark else [])


@pytest.mark.parametrize(("size", "small"), [((31, 64), True), ((64, 31), True), ((32, 32), False)])
def test_an_image_with_a_side_below_32_pixels_is_small(size: tuple[int, int], small: bool) -> None:
    _, findings = checked([*many(20, width=99, height=99), sample("dot", width=size[0], height=size[1])])
    assert [entry.code for entry in findings.notes] == (["small_images"] if small else []) + ["mixed_sizes"]
    shown = f"The images have 2 sizes: 99 x 99 (20), {size[0]} x {size[1]} (1)."
    assert only(findings.notes, "mixed_sizes").message == shown


def test_the_rarest_format_is_looked_at_and_volumes_have_none() -> None:
    samples = [
        *many(18),
        *(sample(f"grey {number}", format="8-bit grey") for number in range(3)),
        *(sample(f"palette {number}", format="palette") for number in range(2)),
        sample("slice", format=""),
    ]
    _, findings = checked(samples)
    (warning,) = findings.warnings
    assert (warning.code, warning.count, warning.samples) == ("mixed_formats", 2, ("palette 0", "palette 1"))
    assert "(8-bit colour: 18, 8-bit grey: 3, palette: 2)" in warning.message
    assert warning.message.endswith("Check that palette images look like the others: palette 0, palette 1.")


def test_turned_images_are_noted() -> None:
    _, findings = checked([*many(20), sample("photo", turned=True)])
    assert [(entry.code, entry.count, entry.samples) for entry in findings.notes] == [("exif_turned", 1, ("photo",))]
