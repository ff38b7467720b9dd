"""What a person says of an ONNX file, from the text of a form, a command line or a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ekiben.errors import BadInput
from models.onnx_import.options import parse_labels, read_labels, read_palette
from tests.models.onnx_import.onnx_files import options


def test_options_read_the_text_of_a_form() -> None:
    given = options("segment", "\ufeffroad\nsky\n\nprose\n", mean="0.5", std="0.1, 0.2 0.3", size="480x640", crop="")
    assert given.labels == ("road", "sky")
    assert (given.mean, given.std, given.size, given.crop) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3), (480, 640), None)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"task": "detect"}, "task: Input should be 'classify' or 'segment'"),
        ({"labels": ""}, "labels: no labels; one per line is expected, from the first line on"),
        ({"mean": "1,2"}, "mean: one number, or one for each of the three channels, is expected"),
        ({"mean": "123.7"}, "mean is of pixels scaled to 0-1: divide one of 0-255 by 255"),
        ({"mean": "nan"}, "mean: Input should be a finite number"),
        ({"std": "0"}, "std must be positive"),
        ({"std": "58.4"}, "std is of pixels scaled to 0-1: divide one of 0-255 by 255"),
        ({"crop": "1.5"}, "crop: Input should be less than or equal to 1"),
        ({"task": "segment", "crop": "0.9"}, "crop is only for classify: a mask covers the whole image"),
        ({"crop": "0.9", "shorter_side": "256"}, "crop and shorter_side exclude each other"),
        ({"size": "1,2,3"}, "size: one number, or height and width, is expected"),
        ({"palette": "#000000"}, "a palette is only for segment"),
        ({"task": "segment", "palette": "1 2 300"}, "palette: line 1 of the palette is neither #rrggbb nor"),
        ({"sise": "3"}, "sise: Extra inputs are not permitted"),
    ],
)
def test_wrong_options_say_which_field_is_wrong(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput) as refused:
        options(**given)
    assert sentence in refused.value.message


def test_label_and_palette_files(tmp_path: Path) -> None:
    assert parse_labels("a\r\n b \n\n\n") == ("a", "b")
    file = tmp_path / "labels.txt"
    for content, sentence in ((b"\n", "no labels"), (b"\xff\xfe\xfa", "it is not UTF-8 text")):
        file.write_bytes(content)
        with pytest.raises(BadInput, match=sentence):
            read_labels(file)
    with pytest.raises(BadInput, match="No such file"):
        read_labels(tmp_path / "missing.txt")
    file.write_text("#0a0b0c\n1,2,3\n4 5 6\n")
    assert read_palette(file) == ((10, 11, 12), (1, 2, 3), (4, 5, 6))
    file.write_text("red\n")
    with pytest.raises(BadInput, match="line 1 of the palette"):
        read_palette(file)
