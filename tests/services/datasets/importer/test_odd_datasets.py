"""Datasets that are taken, but with something odd in them: the report says what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.models.image_formats.tiff_files import Page, tiff
from tests.services.datasets.importer import shapes
from tests.services.datasets.importer.shapes import GOOD
from tests.services.datasets.importer.uploads import SIDE, Row, blob, dataset, image, imported, png
from tests.toy_models import encoded, noise

DARK = Page(np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE), tags={281: [65535]})
"""A grey image of 16 bits, as the file says, of which 12 are used."""

ODD = [
    Row(
        "an image without a mask",
        lambda: GOOD | {"images/extra.png": image(90)},
        "images_without_mask",
        "1 image has no mask and will not be used: images/extra.png. Add masks with the same file names; an "
        "image without any object needs an all-black mask.",
    ),
    Row(
        "masks without images",
        lambda: GOOD | {f"masks/extra_{i}.png": png(blob(i)) for i in range(6)},
        "masks_without_image",
        "6 masks have no image and will not be used: masks/extra_0.png, masks/extra_1.png, masks/extra_2.png,"
        " masks/extra_3.png, masks/extra_4.png and 1 more. Add the images, or give both the same file name.",
    ),
    Row(
        "JPEG masks",
        lambda: dataset(24, lambda i: shapes.jpeg(blob(i))),
        "jpeg_artefacts",
        "24 masks have values near 0 and 255 but not exactly, as JPEG compression leaves them: 5924 pixels "
        "(15.43%) were set to the nearer of the two: img_00, img_01, img_02, img_03, img_04 and 19 more. Save"
        " masks as PNG and resize them with nearest neighbour.",
    ),
    Row(
        "enlarged masks",
        lambda: dataset(24, shapes.soft_edge) | {f"images/img_{i:02d}.png": image(i, 160, 160) for i in range(24)},
        "blurred_masks",
        "24 masks have values near 0 and 255 but not exactly, as resizing with interpolation or a blurred "
        "brush leaves them: 61440 pixels (10.00%) were set to the nearer of the two: img_00, img_01, img_02, "
        "img_03, img_04 and 19 more. Save masks as PNG and resize them with nearest neighbour.",
    ),
    Row(
        "some empty",
        lambda: shapes.altered(GOOD, masks__img_03=png(blob(3, 0)), masks__img_09=png(blob(3, 0))),
        "empty_masks",
        "2 of 24 masks are empty (only background): img_03, img_09. That is right for images without an "
        "object, and wrong otherwise. A U-Net trained on such masks learns to answer black everywhere: most "
        "all-black U-Nets come from masks like these.",
    ),
    Row(
        "one full",
        lambda: shapes.altered(GOOD, masks__img_03=png(np.full((SIDE, SIDE), 255, np.uint8))),
        "full_masks",
        "1 mask has no background at all: img_03. Check that objects are drawn, not the whole image filled.",
    ),
    Row(
        "copies",
        lambda: GOOD | {"images/copy.png": GOOD["images/img_03.png"], "masks/copy.png": GOOD["masks/img_03.png"]},
        "duplicate_images",
        "1 image is there several times, with the same mask: copy = img_03. Keep one of each. The copies stay"
        " on one side of every split.",
    ),
    Row(
        "copies that disagree",
        lambda: GOOD | {"images/copy.bmp": image(3, format="BMP"), "masks/copy.png": png(blob(90))},
        "conflicting_duplicates",
        "1 image is there several times, with different masks: copy = img_03. A network cannot learn both "
        "answers: keep the right mask. The copies stay on one side of every split.",
    ),
    Row(
        "a rare class",
        lambda: dataset(24, lambda i: png(blob(i, 2 if i == 5 else 1))),
        "rare_class",
        "The class spindle is in 1 image and 1.042% of the pixels: too few to learn and to measure it well. "
        "Add images that show it, or drop the class.",
        {"classes": ["background", "cell", "spindle"]},
    ),
    Row(
        "few",
        lambda: dataset(7),
        "few_samples",
        "There are 7 different images with masks: with fewer than 20, a training is measured by cross-"
        "validation (several networks, each tested on another part). More images make a better model.",
    ),
    Row(
        "one grey image",
        lambda: shapes.altered(GOOD, images__img_03=encoded(noise(SIDE, SIDE).convert("L"))),
        "mixed_formats",
        "The images differ in their pixel format (8-bit colour: 23, 8-bit grey: 1); all are read as 8-bit "
        "RGB. Check that 8-bit grey images look like the others: img_03.",
    ),
    Row(
        "16 bits hardly used",
        lambda: shapes.altered(GOOD, images__img_03=tiff(DARK)),
        "dark_images",
        "1 16-bit image uses only the lowest levels of the range that the file declares, and will look almost "
        "black: img_03. Stretch the levels of all images in the same way.",
    ),
    Row(
        "no zero",
        lambda: dataset(24, shapes.of(1, 2, 3)),
        "no_background",
        "No mask has the value 0 (black), the background: each value became a class of its own (1 is class 1,"
        " 2 is class 2, 3 is class 3). If one of them is the background, give it as background value.",
    ),
    Row(
        "many classes",
        lambda: dataset(24, shapes.of(*range(13))),
        "many_classes",
        "The masks have 12 values besides the background (1, 2, 3, 4, 5 and 7 more), each taken as a class. "
        "If they count objects (one number per object), set them all to 1; if they are shades, threshold the "
        "masks; if they are classes, give all class names.",
    ),
    Row(
        "small",
        lambda: GOOD | {"images/dot.png": image(1, 8, 30), "masks/dot.png": png(blob(1, 255, 8, 30))},
        "small_images",
        "1 image is smaller than 32 pixels on a side: dot.",
    ),
    Row(
        "two sizes",
        lambda: GOOD | {"images/big.png": image(1, 64, 50), "masks/big.png": png(blob(1, 255, 64, 50))},
        "mixed_sizes",
        "The images have 2 sizes: 40 x 40 (24), 64 x 50 (1).",
    ),
    Row(
        "gaps",
        lambda: dataset(24, shapes.of(0, 5, 9)),
        "gaps",
        "The values of the masks are not 0, 1, 2, ...: 0 is class 0, 5 is class 1, 9 is class 2.",
    ),
    Row(
        "0 and 1",
        lambda: dataset(24, lambda i: png(blob(i, 1))),
        "looks_black",
        "The masks use the values 0 and 1. They look black in a viewer, and are right: 1 is read as the object.",
    ),
    Row(
        "VOC",
        lambda: dataset(24, shapes.voc),
        "voc_border",
        "The colours are Pascal VOC's; its border (index 255) counts as background.",
    ),
    Row(
        "palettes that disagree",
        lambda: dataset(24, shapes.own_palette),
        "color_classes",
        "Each colour of the masks is a class: #000000 is class 0, #ff0000 is class 1.",
    ),
    Row(
        "colours",
        lambda: dataset(24, shapes.drawn((0, 0, 0), (0, 0, 255), (255, 0, 0))),
        "color_classes",
        "Each colour of the masks is a class: #000000 is class 0, #0000ff is class 1, #ff0000 is class 2.",
    ),
    Row(
        "mostly foreground",
        lambda: dataset(24, lambda i: png(255 - blob(i))),
        "mostly_foreground",
        "75% of the pixels are foreground. If the objects are the dark pixels of the masks, import again with"
        " background [255].",
    ),
    Row(
        "turned round",
        lambda: dataset(24, lambda i: png(255 - blob(i))),
        "inverted",
        "With the given background values, the value 0 is the object.",
        {"background": [255]},
    ),
    Row(
        "turned by EXIF",
        lambda: GOOD | {"images/photo.jpg": shapes.upright(3), "masks/photo.png": png(blob(2))},
        "exif_turned",
        "1 image is turned by EXIF: photo. Look at the preview: their masks must fit the turned image.",
    ),
    Row(
        "other files",
        lambda: GOOD | {"readme.txt": b"-", "images/list.csv": b"-"},
        "ignored_files",
        "2 files outside images/ and masks/ or of another kind were left out: readme.txt, images/list.csv.",
    ),
]


@pytest.mark.parametrize("row", ODD, ids=[row.name for row in ODD])
def test_an_odd_dataset_is_taken_and_it_is_said_why_it_is_odd(row: Row, tmp_path: Path) -> None:
    done = imported(tmp_path, row.make(), **row.options)
    assert done.refusal is None
    assert done.report["ok"]
    assert done.finding(row.code)["message"] == row.sentence
    assert done.archive.exists()


def test_a_good_dataset_has_nothing_said_of_it(tmp_path: Path) -> None:
    assert imported(tmp_path, GOOD).codes == {"errors": [], "warnings": [], "notes": []}
