"""Corrected masks: stored images and masks that a person has corrected, packed as the archive of a dataset."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Images

from db.blobs import BlobStore
from db.records import Records
from db.stored_files import read_whole
from db.tables import Image
from ekiben.errors import BadInput, NotFound
from models.image_formats.sniffing import EXTENSIONS
from models.images import encode_png
from models.masks.rle import check_size, from_coco, from_uncompressed

BACKGROUND = "background"
MAX_CLASSES = 255


@dataclass(frozen=True, slots=True)
class Annotation:
    """One object of an image. ``mask``: run lengths as /v1/masks returns them, or the id of a stored mask."""

    image_id: str
    mask: dict[str, Any] | str
    class_name: str


def classes_of(samples: Sequence[Annotation]) -> list[str]:
    """Names by class index: background, then the others in the order in which they first occur. BadInput beyond
    MAX_CLASSES."""
    names = [BACKGROUND, *dict.fromkeys(sample.class_name for sample in samples if sample.class_name != BACKGROUND)]
    if len(names) > MAX_CLASSES + 1:
        raise BadInput(f"there are {len(names) - 1} classes; at most {MAX_CLASSES} are trained")
    return names


def pack(
    samples: Sequence[Annotation],
    classes: Sequence[str],
    records: Records,
    store: BlobStore,
    owner: str,
    out: IO[bytes],
) -> int:
    """Write ``images/`` and ``masks/`` of all samples into a ZIP; how many images. Blocks.

    Masks of one image are painted over each other in the order of ``samples``. BadInput and NotFound name the sample.
    """
    by_image: dict[str, list[tuple[int, Annotation]]] = {}
    for number, sample in enumerate(samples):
        by_image.setdefault(sample.image_id, []).append((number, sample))
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for position, (image_id, own) in enumerate(by_image.items()):
            try:
                image = records.image(owner, image_id)
            except NotFound:
                raise NotFound(f"samples[{own[0][0]}]: there is no image {image_id[:80]}") from None
            levels = np.zeros((image.height, image.width), np.uint8)
            for number, sample in own:
                levels[_mask(number, sample, image, records, store, owner)] = classes.index(sample.class_name)
            name = f"{position:06d}"
            data = read_whole(store, image.storage_key, image.bytes, image.sha256)
            archive.writestr(f"images/{name}.{EXTENSIONS.get(image.mime_type, 'png')}", data)
            archive.writestr(f"masks/{name}.png", encode_png(Images.fromarray(levels)))
    return len(by_image)


def _mask(
    number: int, sample: Annotation, image: Image, records: Records, store: BlobStore, owner: str
) -> NDArray[np.bool_]:
    """bool [height, width] of the image as the user sees it."""
    try:
        return _decoded(sample.mask, image, records, store, owner)
    except _OtherSize as other:
        raise BadInput(
            f"samples[{number}].mask is {other.width} x {other.height}, but the image is {image.width} x {image.height}"
        ) from None
    except (BadInput, NotFound) as error:
        raise type(error)(f"samples[{number}].mask: {error.message}") from None


class _OtherSize(Exception):
    """A mask of another size than its image."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__(width, height)
        self.width, self.height = width, height


def _decoded(
    mask: dict[str, Any] | str, image: Image, records: Records, store: BlobStore, owner: str
) -> NDArray[np.bool_]:
    """The pixels, made only where the mask has the size of ``image``."""
    if isinstance(mask, dict):
        height, width = check_size(mask)
        if (height, width) != (image.height, image.width):
            raise _OtherSize(width, height)
        read = from_coco if isinstance(mask.get("counts"), str) else from_uncompressed
        return read(mask).decode()
    artifact = records.artifact(owner, mask.removeprefix("/v1/artifacts/"))
    if artifact.mime_type != "image/png":
        raise BadInput(f"artifact {artifact.id} is no image of a mask but {artifact.mime_type}")
    stored = Images.open(io.BytesIO(read_whole(store, artifact.storage_key, artifact.bytes, artifact.sha256)))
    if stored.mode not in ("1", "L", "P"):
        raise BadInput(f"artifact {artifact.id} is an image in colours, not a mask (kind mask is one)")
    if stored.size != (image.width, image.height):
        raise _OtherSize(*stored.size)
    return np.asarray(stored) > 0
