"""Whatever an image is given as, the same pixels are sent."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ekiben._client.image_inputs import image_file, image_files, is_medical
from tests import toy_models

PIXELS = np.random.default_rng(3).integers(0, 256, (17, 23, 3), np.uint8)
PNG = toy_models.encoded(Image.fromarray(PIXELS))


def pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_encoded_bytes_are_sent_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "bird.png"
    path.write_bytes(PNG)
    with path.open("rb") as file:
        named = image_file(file)
    assert (named.data(), named.name) == (PNG, "bird.png")
    for given in (path, str(path)):
        found = image_file(given)
        assert (found.data(), found.name, found.head()) == (PNG, "bird.png", PNG[:512])
    for raw in (PNG, bytearray(PNG), memoryview(PNG), io.BytesIO(PNG)):
        found = image_file(raw)
        assert (found.data(), found.name) == (PNG, None)


def test_pixels_are_sent_without_loss() -> None:
    made = image_file(PIXELS)
    assert made.data()[:4] == b"\x89PNG"
    assert np.array_equal(pixels(made.data()), PIXELS)
    assert image_file(Image.fromarray(PIXELS)).data() == made.data()
    assert image_file(PIXELS[::-1][::-1]).data() == made.data()  # not contiguous
    assert np.array_equal(pixels(image_file(PIXELS[:, :, 0]).data()), PIXELS[:, :, 0])
    assert image_file(PIXELS[:, :, :1]).data() == image_file(PIXELS[:, :, 0]).data()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "HSV", "F"])
def test_every_mode_of_pillow(mode: str) -> None:
    image = Image.fromarray(PIXELS).convert("L").convert(mode) if mode == "F" else Image.fromarray(PIXELS).convert(mode)
    sent = Image.open(io.BytesIO(image_file(image).data()))
    assert np.array_equal(np.asarray(sent.convert("RGB")), np.asarray(image.convert("RGB")))


def test_a_pillow_image_is_sent_as_it_lies_in_hand() -> None:
    """Its EXIF orientation has not been applied: sent along, the server's coordinates would be of another image."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.open(io.BytesIO(toy_models.encoded(Image.fromarray(PIXELS), "JPEG", exif=exif)))
    assert turned.getexif()[0x0112] == 6
    sent = Image.open(io.BytesIO(image_file(turned).data()))
    assert not sent.getexif()
    assert np.array_equal(np.asarray(sent), np.asarray(turned))


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (PIXELS.astype(np.float32), ValueError, "float32"),
        (PIXELS[:, :, :2], ValueError, "[17, 23, 2]"),
        (PIXELS[None], ValueError, "[1, 17, 23, 3]"),
        (PIXELS[:0], ValueError, "[0, 23, 3]"),
        (io.StringIO("text"), TypeError, "rb"),
        (7, TypeError, "int"),
        ("https://example.org/a.png", ValueError, "not fetched"),
        ("no/such/file.png", FileNotFoundError, "no/such/file.png"),
        (Path(__file__).parent, IsADirectoryError, "folder"),
    ],
)
def test_what_is_no_image(given: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error) as caught:
        image_file(given)
    assert said in str(caught.value)


def test_many(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.png", "a.JPG", "deep/c.tif", "notes.txt"):
        (tmp_path / name).write_bytes(PNG)
    found, archive = image_files(tmp_path)
    assert [file.name for file in found] == ["a.JPG", "b.png", "deep/c.tif"]
    assert archive is None
    packed = tmp_path / "all.zip"
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("a.png", PNG)
    for given in (packed, str(packed), packed.read_bytes()):
        found, archive = image_files(given)
        assert found == [] and archive is not None
        assert archive.data() == packed.read_bytes()
    found, archive = image_files([PNG, tmp_path / "b.png", PIXELS])
    assert [file.data() for file in found] == [PNG, PNG, image_file(PIXELS).data()]
    found, archive = image_files(np.stack([PIXELS, PIXELS[::-1]]))
    assert [file.data() for file in found] == [image_file(PIXELS).data(), image_file(PIXELS[::-1]).data()]
    found, archive = image_files(one for one in (PNG, PIXELS))
    assert [file.data() for file in found] == [PNG, image_file(PIXELS).data()]
    for single in (PNG, io.BytesIO(PNG)):
        assert image_files(single) == ([image_file(PNG)], None)
    assert image_files(PIXELS) == image_files(Image.fromarray(PIXELS)) == ([image_file(PIXELS)], None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images"):
        image_files(tmp_path / "empty")


def test_what_may_be_a_volume() -> None:
    nifti = bytes(344) + b"n+1\0" + bytes(100)
    dicom = bytes(128) + b"DICM" + bytes(100)
    bare = [b"\x08\0\x05\0CS" + bytes(100), b"\x02\0\0\0UL" + bytes(100)]  # DICOM without its preamble
    volumes = (nifti, dicom, *bare, b"\x1f\x8b" + bytes(9))
    assert [is_medical(image_file(data)) for data in (*volumes, PNG)] == [True] * 5 + [False]
