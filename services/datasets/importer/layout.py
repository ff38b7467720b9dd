"""The layout of an upload: which files are images, which are masks, and which form pairs."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from models.medical.formats import is_dicom
from services.datasets.importer.report import Findings, listed, several

IMAGE_FOLDERS: Final = frozenset({"images", "image", "imgs", "img", "jpegimages", "imagestr", "inputs"})
MASK_FOLDERS: Final = frozenset(
    {
        *("masks", "mask", "labels", "label", "annotations", "annotation", "segmentations", "segmentation"),
        *("segmentationclass", "labelstr", "groundtruth", "ground_truth", "gt", "targets"),
    }
)
READ: Final = frozenset({"png", "jpg", "jpeg", "jpe", "tif", "tiff", "bmp", "webp", "dcm", "nii", "gif"})

# Files that operating systems add to archives.
_CLUTTER = frozenset({"__macosx", "thumbs.db", "desktop.ini", ".ds_store"})
_MASK_SUFFIX = re.compile(r"[-_. ](masks?|labels?|label-?map|seg|segmentations?|gt|ground_?truth|annotations?)$")
_INNER_ENDING = re.compile(rf"\.({'|'.join(sorted(READ))}|nii\.gz|ome)$")  # the mask of a.jpg may be called a.jpg.png
_CHANNEL_SUFFIX = re.compile(r"_0000$")  # nnU-Net writes the first channel of case_1 as case_1_0000

Role = Literal["image", "mask"]


@dataclass(frozen=True, slots=True)
class File:
    """A file of the upload.

    ``name``: its path there; ``key``: that without the folder of its role and the extension.
    """

    name: str
    path: Path
    key: str


@dataclass(frozen=True, slots=True)
class Pair:
    """An image (or volume) and its mask; ``key``: that of the image, which names the sample."""

    key: str
    image: File
    mask: File


@dataclass(slots=True)
class UploadLayout:
    """The pairs, in the order of their keys, and the findings on files without a pair."""

    pairs: list[Pair] = field(default_factory=list)
    findings: Findings = field(default_factory=Findings)


def find_pairs(entries: Iterable[tuple[str, Path]]) -> UploadLayout:
    """Pairs of ``entries``, which are (path within the upload, file on disk).

    A file's role is that of the deepest folder above it with a known name (``images``, ``masks`` or a synonym, in any
    case). ``train/images/a.png`` and ``images/train/a.jpg`` both have the key ``train/a``. Keys are compared exactly
    first; then without case, accents composed; then without suffixes such as ``_mask`` and ``_0000``; then by the file
    name alone.
    """
    layout = UploadLayout()
    images: list[File] = []
    masks: list[File] = []
    ignored: list[str] = []
    folders: set[Role] = set()
    for name, path in entries:
        pure = PurePosixPath(name)
        if any(part.lower() in _CLUTTER or part.startswith(".") for part in pure.parts):
            continue
        role, rest = _role(pure.parts)
        if role is None:
            ignored.append(name)
            continue
        folders.add(role)
        stem = _readable_stem(pure.name, path)
        if stem is None:
            ignored.append(name)
        else:
            (images if role == "image" else masks).append(File(name, path, "/".join([*rest, stem])))
    _missing(layout.findings, folders, images, masks, ignored)
    if layout.findings.errors:
        return layout
    images, masks = _without_wrapper(images, masks)
    _ambiguous(layout.findings, images, "images")
    _ambiguous(layout.findings, masks, "masks")
    if layout.findings.errors:
        return layout
    _pair(layout, sorted(images, key=lambda f: f.key), sorted(masks, key=lambda f: f.key))
    if ignored:
        layout.findings.note(
            "ignored_files",
            f"{several(len(ignored), 'file')} outside images/ and masks/ or of another kind "
            f"{'was' if len(ignored) == 1 else 'were'} left out: {listed(ignored)}.",
            ignored,
        )
    return layout


def _role(parts: Sequence[str]) -> tuple[Role | None, list[str]]:
    """The role of a file by its folders, and its folders without that one."""
    for depth in range(len(parts) - 2, -1, -1):
        folder = parts[depth].lower()
        if folder in IMAGE_FOLDERS or folder in MASK_FOLDERS:
            rest = [*parts[:depth], *parts[depth + 1 : -1]]
            return ("image" if folder in IMAGE_FOLDERS else "mask"), rest
    return None, []


def _readable_stem(name: str, path: Path) -> str | None:
    """The file name without its extension, or None where the file is no image or volume by its name and first bytes."""
    lower = name.lower()
    for double in (".nii.gz", ".ome.tif", ".ome.tiff"):
        if lower.endswith(double) and len(name) > len(double):
            return name[: -len(double)]
    stem, dot, ending = name.rpartition(".")
    if dot and stem and ending.lower() in READ:
        return stem
    # Scanners write DICOM files without an extension, or with numbers after a dot.
    with path.open("rb") as file:
        return name if is_dicom(file.read(4096)) else None


def _missing(
    findings: Findings, folders: set[Role], images: Sequence[File], masks: Sequence[File], ignored: Sequence[str]
) -> None:
    found = f" Found instead: {listed(ignored)}." if ignored else " The archive is empty."
    if "image" not in folders:
        findings.error(
            "no_images_folder",
            "There is no folder images/ in the archive: put the images into images/ and their masks, "
            f"with the same file names, into masks/.{'' if masks else found}",
        )
    if "mask" not in folders:
        findings.error(
            "no_masks_folder",
            "There is no folder masks/ in the archive: each image of images/ needs a mask with the same file name "
            "in masks/, or there is nothing to learn from.",
        )
    kinds = "PNG, JPEG, TIFF, BMP, WebP, DICOM or NIfTI"
    for role, files, folder in (("image", images, "images"), ("mask", masks, "masks")):
        if role in folders and not files:
            findings.error(
                f"no_{folder}",
                f"The folder {folder}/ holds no file that is read: put {kinds} files there."
                + (f" It holds: {listed(ignored)}." if ignored else ""),
                ignored,
            )


def _without_wrapper(images: list[File], masks: list[File]) -> tuple[list[File], list[File]]:
    """Keys without the folders that all of them share, such as one folder around the whole dataset."""
    shared: list[str] | None = None
    for file in (*images, *masks):
        folders = file.key.split("/")[:-1]
        if shared is None:
            shared = folders
        else:
            same = next((i for i, (a, b) in enumerate(zip(shared, folders, strict=False)) if a != b), None)
            shared = shared[: min(len(shared), len(folders)) if same is None else same]
    cut = len(shared or [])
    return tuple(  # type: ignore[return-value]
        [File(f.name, f.path, "/".join(f.key.split("/")[cut:])) for f in files] for files in (images, masks)
    )


def _ambiguous(findings: Findings, files: Sequence[File], folder: str) -> None:
    by_key: dict[str, list[str]] = defaultdict(list)
    for file in files:
        by_key[file.key].append(file.name)
    twice = [names for names in by_key.values() if len(names) > 1]
    if twice:
        findings.error(
            "ambiguous_names",
            f"Several files of {folder}/ have the same name but for the ending, so that it is not clear which belongs "
            f"to a pair: {listed([' and '.join(sorted(names)) for names in twice])}. Keep one of each.",
            [sorted(names)[0] for names in twice],
        )


def _composed(key: str) -> str:
    """One spelling of letters with accents (macOS writes them in two characters), and of upper and lower case."""
    return unicodedata.normalize("NFC", key).casefold()


def _without_suffix(key: str) -> str:
    return _INNER_ENDING.sub("", _MASK_SUFFIX.sub("", _composed(key)))


def _without_channel(key: str) -> str:
    return _without_suffix(_CHANNEL_SUFFIX.sub("", _composed(key)))


def _file_name(key: str) -> str:
    return _without_channel(key).rpartition("/")[2]


# Of images and of masks, tried in this order: the number of a frame may look like the number of a channel.
_SPELLINGS: Final = (
    (str, str),
    (_composed, _composed),
    (_composed, _without_suffix),
    (_without_suffix, _without_suffix),
    (_without_channel, _without_suffix),
    (_without_channel, _without_channel),
    (_file_name, _file_name),
)


def _pair(layout: UploadLayout, images: list[File], masks: list[File]) -> None:
    for spell_image, spell_mask in _SPELLINGS:
        here: dict[str, list[File]] = defaultdict(list)
        there: dict[str, list[File]] = defaultdict(list)
        for image in images:
            here[spell_image(image.key)].append(image)
        for mask in masks:
            there[spell_mask(mask.key)].append(mask)
        paired: set[str] = set()
        for spelling, found in here.items():
            other = there.get(spelling, [])
            if len(found) == len(other) == 1:
                layout.pairs.append(Pair(found[0].key, found[0], other[0]))
                paired |= {found[0].name, other[0].name}
        images = [image for image in images if image.name not in paired]
        masks = [mask for mask in masks if mask.name not in paired]
    layout.pairs.sort(key=lambda pair: pair.key)
    _orphans(layout, [image.name for image in images], [mask.name for mask in masks])


def _orphans(layout: UploadLayout, images: list[str], masks: list[str]) -> None:
    findings = layout.findings
    if not layout.pairs:
        hint = ""
        if len(masks) > 3 * len(images):
            hint = " There are many more masks than images: if each object has a mask of its own, merge them into one."
        findings.error(
            "no_pairs",
            f"No image has a mask of the same name: images/ holds {listed(images)}; masks/ holds {listed(masks)}. "
            f"Give each mask the file name of its image (img_1.jpg and img_1.png).{hint}",
            images,
        )
        return
    if images:
        findings.warning(
            "images_without_mask",
            f"{several(len(images), 'image has', 'images have')} no mask and will not be used: {listed(images)}. "
            "Add masks with the same file names; an image without any object needs an all-black mask.",
            images,
        )
    if masks:
        findings.warning(
            "masks_without_image",
            f"{several(len(masks), 'mask has', 'masks have')} no image and will not be used: {listed(masks)}. "
            "Add the images, or give both the same file name.",
            masks,
        )
