"""The report's numbers against numpy on the same files, and which samples are kept together."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ekiben.dataset_archive import DatasetArchive
from tests.services.datasets.importer.uploads import SIDE, blob, dataset, image, imported, png
from tests.toy_models import encoded, noise


def test_the_numbers_of_the_report(tmp_path: Path) -> None:
    masks = [np.where(blob(i) > 0, (3, 7)[i % 2], 0).astype(np.uint8) for i in range(24)]
    files = dataset(24, lambda i: png(masks[i])) | {"images/big.bmp": image(50, 64, 48, "BMP")}
    masks.append(np.zeros((48, 64), np.uint8))
    files["masks/big.png"] = png(masks[-1])
    report = imported(tmp_path, files, classes=["background", "cell", "wall"]).report

    pixels = [sum(int((mask == value).sum()) for mask in masks) for value in (0, 3, 7)]
    images = [sum(bool((mask == value).any()) for mask in masks) for value in (0, 3, 7)]
    assert [(c["name"], c["class_index"], c["pixels"], c["images"]) for c in report["classes"]] == [
        (name, i, pixels[i], images[i]) for i, name in enumerate(["background", "cell", "wall"])
    ]
    assert [c["share"] for c in report["classes"]] == pytest.approx([n / sum(pixels) for n in pixels])
    expected = [
        {"value": value, "pixels": pixels[i], "masks": images[i], "class_index": i} for i, value in enumerate((0, 3, 7))
    ]
    assert sorted(report["values"], key=lambda v: int(v["value"])) == expected
    assert [v["pixels"] for v in report["values"]] == sorted(pixels, reverse=True)
    assert report["class_map"] == "labels"
    assert report["sizes"] == [
        {"width": SIDE, "height": SIDE, "images": 24},
        {"width": 64, "height": 48, "images": 1},
    ]
    assert (report["samples"], report["files"], report["groups"]) == (25, 50, 25)
    assert report["bytes"] == sum(map(len, files.values()))
    assert report["ok"] is True


def test_a_refused_dataset_has_its_values_in_the_report(tmp_path: Path) -> None:
    """Who is told that the names do not fit sees which values there are."""
    report = imported(tmp_path, dataset(24), classes=["a", "b", "c"]).report
    assert not report["ok"]
    assert [(v["value"], v["masks"], v["class_index"]) for v in report["values"]] == [(0, 24, None), (255, 24, None)]
    assert report["class_map"] is None
    assert report["classes"] == []


def test_the_changed_pixels_of_jpeg_masks_are_counted(tmp_path: Path) -> None:
    raw = [encoded(Image.fromarray(blob(i)), "JPEG", quality=70) for i in range(24)]
    levels = [np.asarray(Image.open(io.BytesIO(data))) for data in raw]
    changed = sum(int((~np.isin(level, (0, 255))).sum()) for level in levels)
    share = changed / sum(level.size for level in levels)
    done = imported(tmp_path, dataset(24, lambda i: raw[i]))
    assert f" {changed} pixels ({share:.2%}) " in done.finding("jpeg_artefacts")["message"]
    with DatasetArchive(done.archive) as prepared:
        counts = [sample.class_pixels for sample in prepared.samples]
    assert counts == [(int((blob(i) == 0).sum()), int((blob(i) > 0).sum())) for i in range(24)]


def test_copies_stay_together(tmp_path: Path) -> None:
    """The same pixels, whatever the file: one group; the rest have groups of their own."""
    files = dataset(24) | {
        "images/copy.png": dataset(1)["images/img_00.png"],
        "masks/copy.png": png(blob(0)),
        "images/other.bmp": image(0, format="BMP"),
        "masks/other.png": png(blob(7)),
    }
    done = imported(tmp_path, files)
    with DatasetArchive(done.archive) as prepared:
        groups = {sample.name: sample.group for sample in prepared.samples}
    assert groups["copy"] == groups["other"] == groups["img_00"]
    assert len(set(groups.values())) == 24 == done.report["groups"]
    warning = done.finding("conflicting_duplicates")
    assert (warning["count"], warning["samples"]) == (3, ["copy", "img_00", "other"])


def test_a_turned_image_and_its_turned_mask_make_a_sample(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    files = dataset(24) | {
        "images/photo.jpg": encoded(noise(60, 30), "JPEG", exif=exif),
        "masks/photo.png": png(blob(3, 255, 30, 60)),
    }
    done = imported(tmp_path, files)
    with DatasetArchive(done.archive) as prepared:
        sample = prepared.samples[-1]
    assert (sample.name, sample.width, sample.height) == ("photo", 30, 60)
    assert done.finding("exif_turned")["samples"] == ["photo"]
