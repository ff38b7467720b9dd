"""Every bad dataset is refused with a sentence of its own: what is wrong, with which files, what to do about it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.services.datasets.importer import shapes
from tests.services.datasets.importer.shapes import GOOD
from tests.services.datasets.importer.uploads import SIDE, Row, blob, dataset, image, imported, png
from tests.toy_models import noise

BAD = [
    Row(
        "empty",
        dict,
        "no_images_folder",
        "There is no folder images/ in the archive: put the images into images/ and their masks, with the "
        "same file names, into masks/. The archive is empty.",
    ),
    Row(
        "no folder images",
        lambda: shapes.only("masks", GOOD) | {"readme.txt": b"-"},
        "no_images_folder",
        "There is no folder images/ in the archive: put the images into images/ and their masks, with the "
        "same file names, into masks/.",
    ),
    Row(
        "no folder masks",
        lambda: shapes.only("images", GOOD),
        "no_masks_folder",
        "There is no folder masks/ in the archive: each image of images/ needs a mask with the same file "
        "name in masks/, or there is nothing to learn from.",
    ),
    Row(
        "flat",
        lambda: {"a.png": image(1), "a_mask.png": png(blob(1))},
        "no_images_folder",
        "There is no folder images/ in the archive: put the images into images/ and their masks, with the "
        "same file names, into masks/. Found instead: a.png, a_mask.png.",
    ),
    Row(
        "nothing read in images",
        lambda: {"images/notes.txt": b"-"} | shapes.only("masks", GOOD),
        "no_images",
        "The folder images/ holds no file that is read: put PNG, JPEG, TIFF, BMP, WebP, DICOM or NIfTI files "
        "there. It holds: images/notes.txt.",
    ),
    Row(
        "nothing read in masks",
        lambda: {"masks/labels.json": b"-"} | shapes.only("images", GOOD),
        "no_masks",
        "The folder masks/ holds no file that is read: put PNG, JPEG, TIFF, BMP, WebP, DICOM or NIfTI files "
        "there. It holds: masks/labels.json.",
    ),
    Row(
        "no pairs",
        lambda: {"images/a.png": image(1), "masks/b.png": png(blob(1))},
        "no_pairs",
        "No image has a mask of the same name: images/ holds images/a.png; masks/ holds masks/b.png. Give "
        "each mask the file name of its image (img_1.jpg and img_1.png).",
    ),
    Row(
        "a mask per object",
        lambda: {"images/a.png": image(1)} | {f"masks/nucleus_{i}.png": png(blob(i)) for i in range(7)},
        "no_pairs",
        "No image has a mask of the same name: images/ holds images/a.png; masks/ holds masks/nucleus_0.png, "
        "masks/nucleus_1.png, masks/nucleus_2.png, masks/nucleus_3.png, masks/nucleus_4.png and 2 more. Give "
        "each mask the file name of its image (img_1.jpg and img_1.png). There are many more masks than "
        "images: if each object has a mask of its own, merge them into one.",
    ),
    Row(
        "two images of one name",
        lambda: GOOD | {"images/img_03.jpg": image(3, format="JPEG")},
        "ambiguous_names",
        "Several files of images/ have the same name but for the ending, so that it is not clear which "
        "belongs to a pair: images/img_03.jpg and images/img_03.png. Keep one of each.",
    ),
    Row(
        "sizes",
        lambda: shapes.altered(GOOD, masks__img_02=png(blob(2, 255, 31, 33)), masks__img_05=png(blob(2, 255, 20, 20))),
        "size_mismatch",
        "2 masks have another size than their images: img_02 (image 40 x 40, mask 31 x 33), img_05 (image 40 "
        "x 40, mask 20 x 20, one of them was resized). Make each mask as large as its image (nearest "
        "neighbour, not smoothed); if a program turned the images, export image and mask from the same one.",
    ),
    Row(
        "drawn before EXIF",
        lambda: GOOD | shapes.turned_pair(),
        "size_mismatch",
        "1 mask has another size than its image: img_99 (image 30 x 60, mask 60 x 30, drawn before EXIF "
        "turned the image). Make each mask as large as its image (nearest neighbour, not smoothed); if a "
        "program turned the images, export image and mask from the same one.",
    ),
    Row(
        "transposed",
        lambda: shapes.altered(GOOD, images__img_02=image(2, 60, 30), masks__img_02=png(blob(2, 255, 30, 60))),
        "size_mismatch",
        "1 mask has another size than its image: img_02 (image 60 x 30, mask 30 x 60, width and height "
        "exchanged). Make each mask as large as its image (nearest neighbour, not smoothed); if a program "
        "turned the images, export image and mask from the same one.",
    ),
    Row(
        "not an image",
        lambda: shapes.altered(GOOD, images__img_04=b"hello"),
        "unreadable_image",
        "1 image cannot be read: images/img_04.png (the bytes are not an image; JPEG, PNG, WebP, BMP, TIFF "
        "and DICOM are read). Save them again as PNG or TIFF, or take them and their masks out.",
    ),
    Row(
        "truncated",
        lambda: shapes.altered(GOOD, images__img_04=image(4)[:2000]),
        "unreadable_image",
        "1 image cannot be read: images/img_04.png (the image/png is truncated). Save them again as PNG or "
        "TIFF, or take them and their masks out.",
    ),
    Row(
        "truncated mask",
        lambda: shapes.altered(GOOD, masks__img_04=png(blob(4))[:60]),
        "unreadable_mask",
        "1 mask cannot be read: masks/img_04.png (the mask is truncated). Save them again as PNG, or take "
        "them and their images out.",
    ),
    Row(
        "too large",
        lambda: shapes.altered(GOOD, images__img_04=shapes.huge()),
        "image_too_large",
        "1 file is too large: images/img_04.png (the image is 9000 x 8000; at most 64000000 pixels are "
        "accepted). Cut images and masks into parts of at most 64 megapixels.",
    ),
    Row(
        "slices",
        lambda: shapes.volumes(3),
        "slice_mismatch",
        "1 mask has another number of slices than its image: case (image 4 slices, mask 3). A volume and its "
        "mask need the same shape; the pages of a TIFF are slices, not channels.",
    ),
    Row(
        "photos as masks",
        lambda: dataset(24, lambda i: png(np.asarray(noise(SIDE, SIDE, 50 + i).convert("L")))),
        "too_many_values",
        "24 masks have too many different values and look like a photo or a grey-scale image, not labels: "
        "img_00, img_01, img_02, img_03, img_04 and 19 more. A mask has one value per class (such as 0 for "
        "background and 255 for the object): put the drawn masks into masks/, not the images.",
    ),
    Row(
        "one photo as a mask",
        lambda: shapes.altered(GOOD, masks__img_07=image(70)),
        "too_many_values",
        "1 mask has too many different values and looks like a photo or a grey-scale image, not labels: "
        "img_07. A mask has one value per class (such as 0 for background and 255 for the object): put the "
        "drawn masks into masks/, not the images.",
    ),
    Row(
        "the images in masks",
        lambda: dataset(24, image),
        "same_as_image",
        "24 masks are the images themselves: img_00, img_01, img_02, img_03, img_04 and 19 more. Images were "
        "put into masks/ as well: put the drawn masks there.",
    ),
    Row(
        "probabilities",
        lambda: dataset(24, lambda i: png(shapes.ramp(i))),
        "soft_masks",
        "The masks have 50 different values together (0, 1, 2, 3, 5 and 45 more); at most 32 are taken for "
        "classes. If they are probabilities or blurred edges, threshold them: one value per class.",
    ),
    Row(
        "fractions",
        lambda: shapes.float_masks(),
        "soft_masks",
        "24 masks have a smooth ramp of values and look like probabilities or blurred edges, not labels: "
        "img_00, img_01, img_02, img_03, img_04 and 19 more. Threshold them, so that each pixel has the value"
        " of one class.",
    ),
    Row(
        "objects numbered",
        lambda: dataset(24, lambda i: png(shapes.instances())),
        "instance_labels",
        "24 masks have more than 32 values in even patches and look like one number per object: img_00, "
        "img_01, img_02, img_03, img_04 and 19 more. Give all objects of a class the same value (mask > 0 "
        "becomes 1); for real classes give all class names.",
    ),
    Row(
        "objects numbered, few in each",
        lambda: dataset(
            24, lambda i: png(np.where(shapes.instances() % 24 == i, shapes.instances(), 0).astype(np.uint16))
        ),
        "instance_labels",
        "The masks have 50 different values together (0, 1, 2, 3, 4 and 45 more); at most 32 are taken for "
        "classes. If the numbers count objects, give all objects of a class the same value (mask > 0 becomes "
        "1); if they are classes, give all class names.",
    ),
    Row(
        "JPEG labels",
        lambda: dataset(24, lambda i: shapes.jpeg(shapes.three_levels(i))),
        "jpeg_masks",
        "24 masks have values blurred by JPEG compression which cannot be told apart any more: img_00, "
        "img_01, img_02, img_03, img_04 and 19 more. Export the masks again as PNG from where they were "
        "drawn; converting the JPEG files does not bring the values back.",
    ),
    Row(
        "smoothed colours",
        lambda: dataset(24, shapes.smeared),
        "too_many_colors",
        "24 masks have a few main colours and many blends between them: img_00, img_01, img_02, img_03, "
        "img_04 and 19 more. Draw and resize masks without anti-aliasing (nearest neighbour), one exact "
        "colour per class.",
    ),
    Row(
        "40 colours",
        lambda: dataset(24, lambda i: png(np.repeat(np.arange(SIDE * 3, dtype=np.uint8).reshape(1, SIDE, 3), SIDE, 0))),
        "too_many_colors",
        "24 masks have more than 32 colours: img_00, img_01, img_02, img_03, img_04 and 19 more. Use one "
        "exact colour per class, and save as PNG.",
    ),
    Row(
        "colours and large numbers",
        lambda: dataset(12, shapes.drawn((0, 0, 0), (255, 0, 0))) | dataset(12, shapes.numbers(700), first=12),
        "mixed_masks",
        "Some masks are colours, others labels above 255: img_12, img_13, img_14, img_15, img_16 and 7 more. "
        "Save all masks the same way.",
    ),
    Row(
        "0/1 and 0/255",
        lambda: dataset(12) | dataset(12, lambda i: png(blob(i, 1)), first=12),
        "mixed_conventions",
        "12 masks mark objects with small numbers (0, 1, ...), the others with 255: img_12, img_13, img_14, "
        "img_15, img_16 and 7 more. Save all masks the same way, or give background [255] if 255 is no class.",
    ),
    Row(
        "all black",
        lambda: dataset(24, lambda i: png(blob(i, 0))),
        "all_empty",
        "All 24 masks are empty: every pixel is 0 (black), so there is nothing to learn. A U-Net trained on "
        "such masks learns to answer black everywhere: most all-black U-Nets come from masks like these. "
        "Check the program that wrote them.",
    ),
    Row(
        "all white",
        lambda: dataset(24, lambda i: png(np.full((SIDE, SIDE), 255, np.uint8))),
        "one_value",
        "All masks have one value only (255) in every pixel: there is no background to tell objects from. "
        "Draw objects on 0 (black).",
    ),
    Row(
        "all background",
        lambda: dataset(24, shapes.of(0, 9)),
        "all_empty",
        "All values of the masks (0, 9) count as background, so there is nothing to learn. A U-Net trained on"
        " such masks learns to answer black everywhere: most all-black U-Nets come from masks like these. "
        "Give other background values.",
        {"background": [0, 9]},
    ),
    Row(
        "too few names",
        lambda: dataset(24, shapes.of(0, 1, 2)),
        "class_names",
        "The masks have 3 classes, for the values 0, 1, 2, but 2 class names are given (background, cell): "
        "give one name for each class, the background first.",
        {"classes": ["background", "cell"]},
    ),
    Row(
        "too many names",
        lambda: GOOD,
        "class_names",
        "The masks have 2 classes, for the values 0, 255, but 3 class names are given (background, cell, "
        "wall): give one name for each class, the background first.",
        {"classes": ["background", "cell", "wall"]},
    ),
    Row(
        "two pairs",
        lambda: dataset(2),
        "too_few",
        "There are only 2 different images with masks: at least 3 are needed, to train on, to choose with and"
        " to test on. Add more pairs.",
    ),
    Row(
        "copies of one",
        lambda: {name.replace("00", f"{i:02d}"): data for i in range(5) for name, data in dataset(1).items()},
        "too_few",
        "There is only 1 different image with masks (5 images, but copies and slices of one volume count "
        "once): at least 3 are needed, to train on, to choose with and to test on. Add more pairs.",
    ),
]


@pytest.mark.parametrize("row", BAD, ids=[row.name for row in BAD])
def test_a_bad_dataset_is_refused_with_its_own_sentence(row: Row, tmp_path: Path) -> None:
    done = imported(tmp_path, row.make(), **row.options)
    assert (done.report["errors"][0]["code"], done.report["errors"][0]["message"]) == (row.code, row.sentence)
    assert done.refusal is not None
    assert (done.refusal.code, done.refusal.message) == ("bad_dataset", row.sentence)
    assert not done.report["ok"]
    assert not done.archive.exists()


def test_no_two_rows_share_a_sentence() -> None:
    assert len({row.sentence for row in BAD}) == len(BAD)
