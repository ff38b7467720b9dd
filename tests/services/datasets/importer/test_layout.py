"""Which files belong together, whatever the folders around them and their endings are."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.datasets.importer.layout import UploadLayout, find_pairs


def found(tmp_path: Path, *names: str, head: bytes = b"-") -> UploadLayout:
    file = tmp_path / "file"
    file.write_bytes(head)
    return find_pairs([(name, file) for name in names])


@pytest.mark.parametrize(
    ("image", "mask", "key"),
    [
        ("images/a.png", "masks/a.png", "a"),
        ("images/a.jpg", "masks/a.png", "a"),
        ("cells/images/a.png", "cells/masks/a.png", "a"),
        ("images/images/a.png", "images/masks/a.png", "a"),
        ("x/dataset/Images/a.PNG", "x/dataset/MASKS/a.tif", "a"),
        ("imgs/a.bmp", "labels/a.webp", "a"),
        ("img/a.jpeg", "annotations/a.gif", "a"),
        ("images/a.png", "masks/a_mask.png", "a"),
        ("images/a.png", "masks/A_Mask.png", "a"),
        ("images/IMG_7.JPG", "masks/img_7.png", "IMG_7"),
        ("images/a.b.png", "masks/a.b.png", "a.b"),
        ("imagesTr/case_01_0000.nii.gz", "labelsTr/case_01.nii.gz", "case_01_0000"),
        ("images/left/a.png", "masks/a.png", "left/a"),
        ("images/a.png", "masks/a_Segmentation.png", "a"),
        ("images/a.png", "masks/a-GroundTruth.png", "a"),
        ("images/a_mask.png", "masks/a.png", "a_mask"),
        ("images/frame_0000.png", "masks/frame_0000_mask.png", "frame_0000"),
        ("images/frame_0000.png", "masks/Frame_0000.png", "frame_0000"),
        ("images/a.ome.tif", "masks/a.png", "a"),
        ("images/a.OME.TIFF", "masks/a.ome.tif", "a"),
        ("images/a.ome.tiff", "masks/a_mask.ome.tiff", "a"),
        ("images/a.ome.tif", "masks/a.ome.png", "a"),
        ("images/a.jpg", "masks/a.jpg.png", "a"),
        ("images/a.jpg", "masks/a.jpg_mask.png", "a"),
        ("images/a.nii.gz", "masks/a.nii.gz.tif", "a"),
        ("images/M\u00fcll.png", "masks/Mu\u0308ll.png", "M\u00fcll"),
        ("images/Mu\u0308ll.png", "masks/M\u00dcLL_Mask.png", "Mu\u0308ll"),
        ("\u00e4/images/a.png", "a\u0308/masks/a.png", "\u00e4/a"),
    ],
)
def test_a_pair(image: str, mask: str, key: str, tmp_path: Path) -> None:
    layout = found(tmp_path, image, mask)
    assert [(pair.key, pair.image.name, pair.mask.name) for pair in layout.pairs] == [(key, image, mask)]
    assert not layout.findings.errors


def test_parts_that_were_split_beforehand_come_together_under_their_folders(tmp_path: Path) -> None:
    layout = found(tmp_path, "d/train/images/a.png", "d/train/masks/a.png", "d/val/images/a.png", "d/val/masks/a.png")
    assert [(pair.key, pair.mask.name) for pair in layout.pairs] == [
        ("train/a", "d/train/masks/a.png"),
        ("val/a", "d/val/masks/a.png"),
    ]
    other = found(tmp_path, "images/train/a.png", "masks/train/a.png", "images/val/a.png", "masks/val/a.png")
    assert [pair.key for pair in other.pairs] == ["train/a", "val/a"]


def test_names_that_differ_only_in_case_keep_their_own_masks(tmp_path: Path) -> None:
    layout = found(tmp_path, "images/a.png", "images/A.png", "masks/A.png", "masks/a.png")
    assert [(pair.image.name, pair.mask.name) for pair in layout.pairs] == [
        ("images/A.png", "masks/A.png"),
        ("images/a.png", "masks/a.png"),
    ]


def test_numbers_of_frames_are_not_those_of_channels(tmp_path: Path) -> None:
    frames = [f"frame_{n:04d}" for n in range(3)]
    names = [name for frame in frames for name in (f"images/{frame}.png", f"masks/{frame}_mask.png")]
    layout = found(tmp_path, *names)
    assert [(pair.key, pair.mask.name) for pair in layout.pairs] == [(f, f"masks/{f}_mask.png") for f in frames]
    assert layout.findings.warnings == []


def test_names_that_are_written_in_two_ways_keep_their_own_masks(tmp_path: Path) -> None:
    layout = found(tmp_path, "images/\u00e4.png", "images/a\u0308.png", "masks/a\u0308.png", "masks/\u00e4.png")
    assert [(pair.image.name[7:], pair.mask.name[6:]) for pair in layout.pairs] == [
        ("a\u0308.png", "a\u0308.png"),
        ("\u00e4.png", "\u00e4.png"),
    ]


def test_a_name_that_is_only_an_ending(tmp_path: Path) -> None:
    assert found(tmp_path, "images/a.png", "masks/a.png", "images/.ome.tif", "masks/.nii.gz").findings.warnings == []


def test_an_ending_is_not_taken_for_a_mask_of_another(tmp_path: Path) -> None:
    """Two masks that could both be meant: neither is."""
    layout = found(tmp_path, "images/a.png", "images/b.png", "masks/a_mask.png", "masks/a_seg.png", "masks/b.png")
    assert [pair.key for pair in layout.pairs] == ["b"]
    assert [(f.code, f.samples) for f in layout.findings.warnings] == [
        ("images_without_mask", ("images/a.png",)),
        ("masks_without_image", ("masks/a_mask.png", "masks/a_seg.png")),
    ]


def test_what_systems_leave_behind_is_not_mentioned(tmp_path: Path) -> None:
    layout = found(
        tmp_path, "images/a.png", "masks/a.png", "__MACOSX/images/._a.png", "images/.DS_Store", "masks/Thumbs.db"
    )
    assert len(layout.pairs) == 1
    assert not layout.findings.notes
    assert not layout.findings.warnings


def test_a_dicom_file_needs_no_ending(tmp_path: Path) -> None:
    bare = b"\x08\0\x05\0CS\x0a\0ISO_IR 100" + b"\x08\0\x16\0UI\x04\x001.2\0"
    for head in (bytes(128) + b"DICM", bare):
        layout = found(tmp_path, "images/IM0001", "masks/IM0001", head=head)
        assert [pair.key for pair in layout.pairs] == ["IM0001"]
    assert found(tmp_path, "images/IM0001", "masks/IM0001").findings.errors[0].code == "no_images"


def test_five_files_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    names = [f"images/{i}.png" for i in range(9)]
    (warning,) = found(tmp_path, *names, "images/x.png", "masks/x.png").findings.warnings
    assert warning.count == 9
    assert warning.samples == tuple(names[:5])
    assert f"{', '.join(names[:5])} and 4 more" in warning.message
