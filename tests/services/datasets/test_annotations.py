"""Corrected masks, packed as a dataset: every pixel is where the user saw it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Images
from pycocotools import mask as coco_mask

from db.blobs import BlobStore, open_store
from db.keys import new_key
from db.migrate import migrate
from db.records import Records
from db.session import connect
from db.tables import Artifact, Image, now
from ekiben.errors import BadInput, NotFound, Refusal
from ekiben.ids import new_id
from services.datasets.annotations import MAX_CLASSES, Annotation, classes_of, pack
from tests.models.peak import peak_growth_bytes

Mask = NDArray[np.bool_]
WIDTH, HEIGHT = 7, 5
CLASSES = ["background", "cell", "ring"]


class Shelf:
    """Stored images and masks of an owner."""

    def __init__(self, records: Records, store: BlobStore) -> None:
        self.records, self.store = records, store

    def _keep(self, data: bytes, ext: str, row: Image | Artifact) -> str:
        row.storage_key = new_key("images" if isinstance(row, Image) else "artifacts", row.id, ext, now())
        self.store.put(row.storage_key, data, row.mime_type)
        self.records.save([row]).result()
        return row.id

    def image(self, data: bytes, mime_type: str = "image/png", size: tuple[int, int] = (WIDTH, HEIGHT)) -> str:
        info: dict[str, Any] = {"bytes": len(data), "sha256": sha256(data).hexdigest(), "storage_key": ""}
        row = Image(id=new_id(), mime_type=mime_type, width=size[0], height=size[1], **info)
        return self._keep(data, mime_type.rpartition("/")[2], row)

    def artifact(self, image: Images.Image, mime_type: str = "image/png", **given: Any) -> str:
        data = encoded(image)
        info = {"kind": "mask", "mime_type": mime_type, "storage_key": ""}
        info |= {"bytes": len(data), "sha256": sha256(data).hexdigest()}
        return self._keep(data, "png", Artifact(id=new_id(), **{**info, **given}))

    def packed(self, samples: Sequence[Annotation], classes: Sequence[str] = CLASSES) -> list[tuple[str, bytes, Mask]]:
        """Per image its entry's name, its bytes and the mask's levels, as the archive has them."""
        out = io.BytesIO()
        count = pack(samples, classes, self.records, self.store, "local", out)
        found = []
        with zipfile.ZipFile(out) as archive:
            assert archive.testzip() is None
            images = [name for name in archive.namelist() if name.startswith("images/")]
            masks = [name for name in archive.namelist() if name.startswith("masks/")]
            assert len(images) == len(masks) == count == len(archive.namelist()) / 2
            for image, mask in zip(images, masks, strict=True):
                assert Path(image).stem == Path(mask).stem and mask.endswith(".png")
                read = Images.open(io.BytesIO(archive.read(mask)))
                assert read.mode == "L"
                found.append((image, archive.read(image), np.asarray(read)))
        return found

    def refusal(self, samples: Sequence[Annotation], classes: Sequence[str] = CLASSES) -> Refusal:
        with pytest.raises(Refusal) as refused:
            pack(samples, classes, self.records, self.store, "local", io.BytesIO())
        return refused.value


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    migrate(url)
    engine = connect(url)
    records = Records(engine)
    records.start()
    yield Shelf(records, open_store(str(tmp_path / "blobs")))
    records.close()
    engine.dispose()


def encoded(image: Images.Image, format: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def noise(width: int = WIDTH, height: int = HEIGHT, seed: int = 0) -> Images.Image:
    return Images.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def some_mask(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> Mask:
    return np.random.default_rng(seed).random((height, width)) > 0.5


def compressed(mask: Mask) -> dict[str, Any]:
    """As pycocotools writes it."""
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def uncompressed(mask: Mask) -> dict[str, Any]:
    """Run lengths down the columns, the first of zeros, counted one by one."""
    counts, value = [0], False
    for pixel in mask.ravel(order="F"):
        if pixel != value:
            counts.append(0)
            value = bool(pixel)
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


@pytest.mark.parametrize("form", [compressed, uncompressed])
def test_run_lengths(shelf: Shelf, form: Any) -> None:
    data, mask = encoded(noise()), some_mask(1)
    [(name, image, levels)] = shelf.packed([Annotation(shelf.image(data), form(mask), "ring")])
    assert (name, image) == ("images/000000.png", data)  # bytes as they came
    np.testing.assert_array_equal(levels, 2 * mask)


@pytest.mark.parametrize("mode", ["1", "L", "P", "grey levels"])
@pytest.mark.parametrize("prefix", ["", "/v1/artifacts/"])
def test_stored_masks(shelf: Shelf, mode: str, prefix: str) -> None:
    mask = some_mask(2)
    image = Images.fromarray(mask)
    if mode == "L":
        image = Images.fromarray((mask * 255).astype(np.uint8))
    elif mode == "grey levels":
        image = Images.fromarray((mask * 3).astype(np.uint8))
    elif mode == "P":
        image = Images.fromarray((mask * 4).astype(np.uint8))
        image.putpalette([0, 0, 0] * 5)  # all black to look at: the index counts
    ident = shelf.artifact(image)
    [(_, _, levels)] = shelf.packed([Annotation(shelf.image(encoded(noise())), prefix + ident, "cell")])
    np.testing.assert_array_equal(levels, mask.astype(np.uint8))


def test_several_masks_of_one_image(shelf: Shelf) -> None:
    """Laid over each other in the order given; background takes away."""
    first, second = shelf.image(encoded(noise(seed=1))), shelf.image(encoded(noise(seed=2)))
    cell, ring, nothing = some_mask(3), some_mask(4), some_mask(5)
    samples = [
        Annotation(second, uncompressed(ring), "ring"),
        Annotation(first, uncompressed(cell), "cell"),
        Annotation(first, compressed(ring), "ring"),
        Annotation(first, uncompressed(nothing), "background"),
        Annotation(second, shelf.artifact(Images.fromarray(cell)), "cell"),
    ]
    (name, image, levels), (_, _, others) = shelf.packed(samples)
    assert (name, image) == ("images/000000.png", encoded(noise(seed=2)))
    np.testing.assert_array_equal(levels, np.where(cell, 1, np.where(ring, 2, 0)))
    np.testing.assert_array_equal(others, np.where(nothing, 0, np.where(ring, 2, np.where(cell, 1, 0))))


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_a_turned_image(shelf: Shelf, orientation: int) -> None:
    """The mask is of the image as the user sees it; the bytes stay as they came."""
    exif = Images.Exif()
    exif[0x0112] = orientation
    data = encoded(noise(), "JPEG", exif=exif)
    size = (HEIGHT, WIDTH) if orientation in (6, 8) else (WIDTH, HEIGHT)
    mask = some_mask(6, height=size[1], width=size[0])
    mask[0, 0], mask[-1, -1] = True, False
    ident = shelf.image(data, "image/jpeg", size)
    [(name, image, levels)] = shelf.packed([Annotation(ident, uncompressed(mask), "cell")])
    assert (name, image) == ("images/000000.jpg", data)
    assert levels.shape == (size[1], size[0])
    np.testing.assert_array_equal(levels, mask.astype(np.uint8))
    if size != (WIDTH, HEIGHT):
        wrong = shelf.refusal([Annotation(ident, uncompressed(some_mask()), "cell")])
        assert "samples[0].mask is 7 x 5, but the image is 5 x 7" in wrong.message


@pytest.mark.parametrize(
    ("mime_type", "ending"),
    [("image/jpeg", "jpg"), ("image/webp", "webp"), ("image/bmp", "bmp"), ("image/tiff", "tiff")],
)
def test_images_of_every_kind_keep_their_ending(shelf: Shelf, mime_type: str, ending: str) -> None:
    data = encoded(noise(), mime_type.rpartition("/")[2].upper())
    [(name, image, _)] = shelf.packed([Annotation(shelf.image(data, mime_type), uncompressed(some_mask()), "cell")])
    assert Path(name).suffix in (f".{ending}", ".tif" if ending == "tiff" else f".{ending}")
    assert image == data


def test_what_is_refused_says_where(shelf: Shelf) -> None:
    image = shelf.image(encoded(noise()))
    good = Annotation(image, uncompressed(some_mask()), "cell")
    other = "01890000-0000-7000-8000-000000000000"

    def said(kind: type[Refusal], *words: str, image_id: str = image, mask: Any = None) -> None:
        refused = shelf.refusal([good, Annotation(image_id, mask if mask is not None else good.mask, "cell")])
        assert isinstance(refused, kind), refused
        for word in words:
            assert word in refused.message, refused.message

    said(NotFound, "samples[1]", f"no image {other}", image_id=other)
    said(NotFound, "samples[1].mask", mask=other)
    said(NotFound, "samples[1].mask", mask=f"/v1/artifacts/{other}")
    said(BadInput, "samples[1].mask is 5 x 7, but the image is 7 x 5", mask=uncompressed(some_mask().T))
    said(BadInput, "samples[1].mask", "7 x 5", mask=shelf.artifact(Images.new("L", (8, 5))))
    said(BadInput, "samples[1].mask", "colours", mask=shelf.artifact(Images.new("RGB", (WIDTH, HEIGHT))))
    said(BadInput, "samples[1].mask", "zip", mask=shelf.artifact(Images.new("L", (1, 1)), "application/zip"))
    for broken in ({}, {"size": [5, 7]}, {"size": [5, 7], "counts": [34]}, {"size": [5, 7], "counts": "\x00"}):
        said(BadInput, "samples[1].mask", mask=broken)
    said(BadInput, "samples[1].mask", mask={"size": [5, 7], "counts": [35.0]})
    said(BadInput, "samples[1].mask", mask={"size": [0, 0], "counts": []})
    said(Refusal, "samples[1].mask", "pixels", mask={"size": [2**20, 2**20], "counts": [2**40]})


def test_the_size_is_compared_before_anything_is_made(shelf: Shelf) -> None:
    """Neither run lengths nor pixels of a mask that is not of the image's size."""
    image = shelf.image(encoded(noise()))
    for counts in ([64_000_000], "0" * 10_000_000, ["no number"] * 1_000_000, None):
        sample = Annotation(image, {"size": [8000, 8000], "counts": counts}, "cell")
        said: list[str] = []
        assert peak_growth_bytes(lambda s=sample, to=said: to.append(shelf.refusal([s]).message)) < 16 << 20
        assert said == ["samples[0].mask is 8000 x 8000, but the image is 7 x 5"]
    large = shelf.artifact(Images.new("1", (8000, 8000)))
    assert peak_growth_bytes(lambda: shelf.refusal([Annotation(image, large, "cell")])) < 4 << 20


def test_nobody_elses(shelf: Shelf) -> None:
    image = shelf.image(encoded(noise()))
    theirs = shelf.artifact(Images.fromarray(some_mask()), owner="someone")
    assert isinstance(shelf.refusal([Annotation(image, theirs, "cell")]), NotFound)
    sample = Annotation(image, uncompressed(some_mask()), "cell")
    with pytest.raises(NotFound, match=image):
        pack([sample], CLASSES, shelf.records, shelf.store, "someone", io.BytesIO())


def test_classes_in_the_order_in_which_they_come() -> None:
    def named(*names: str) -> list[str]:
        return classes_of([Annotation("x", "y", name) for name in names])

    assert named("ring", "cell", "ring") == ["background", "ring", "cell"]
    assert named("background", "cell") == ["background", "cell"]
    assert len(named(*map(str, range(MAX_CLASSES)))) == MAX_CLASSES + 1
    with pytest.raises(BadInput, match="256 classes"):
        named(*map(str, range(MAX_CLASSES + 1)))
