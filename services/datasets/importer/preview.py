"""The preview sheet: some samples with their masks, to see at a glance whether they match."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ekiben.dataset_archive import ArchiveClass, DatasetArchive
from models.images import decode

SHOWN = 8  # samples
_SIDE = 208  # pixels, as the sizes below
_GAP, _PAIR_GAP, _MARGIN = 6, 28, 24
_CAPTION, _LEGEND = 26, 44
_PAGE, _INK, _QUIET, _BACKDROP = (255, 255, 255), (28, 32, 38), (110, 118, 128), (241, 243, 245)
_OPACITY = 0.45
_ENOUGH = 4  # times the drawn size, to which larger images are reduced before they are blended
_LEGEND_MOST = 12


def write_preview(target: Path, dataset: DatasetArchive) -> None:
    """Write a PNG of up to SHOWN samples, two in a row: image, mask in the colours of the classes, overlay."""
    chosen = choose(dataset)
    columns = 1 if len(chosen) < 2 else 2
    rows = -(-len(chosen) // columns)
    width = 3 * _SIDE + 2 * _GAP
    sheet = Image.new(
        "RGB",
        (
            2 * _MARGIN + columns * width + (columns - 1) * _PAIR_GAP,
            2 * _MARGIN + _LEGEND + rows * (_SIDE + _CAPTION + _GAP) - _GAP,
        ),
        _PAGE,
    )
    draw = ImageDraw.Draw(sheet)
    _legend(draw, dataset.classes, sheet.width)
    for position, number in enumerate(chosen):
        left = _MARGIN + position % columns * (width + _PAIR_GAP)
        top = _MARGIN + _LEGEND + position // columns * (_SIDE + _CAPTION + _GAP)
        _sample(sheet, draw, dataset, number, left, top, width)
    sheet.save(target, "PNG")


def choose(dataset: DatasetArchive) -> list[int]:
    """Numbers of up to SHOWN samples, evenly over those with an object, or over all where none has one."""
    drawn = [n for n, sample in enumerate(dataset.samples) if any(sample.class_pixels[1:])]
    if len(drawn) < min(SHOWN, len(dataset)):
        drawn = sorted({*drawn, *range(min(SHOWN, len(dataset)))})
    positions = np.linspace(0, len(drawn) - 1, min(SHOWN, len(drawn))).round().astype(int)
    return [drawn[position] for position in dict.fromkeys(positions.tolist())]


def _sample(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, dataset: DatasetArchive, number: int, left: int, top: int, width: int
) -> None:
    sample = dataset.samples[number]
    info = f"{sample.width} x {sample.height}"
    room = width - _text_width(info, _SMALL) - 12
    draw.text((left, top + 4), _shortened(sample.name, room), _INK, font=_FONT)
    draw.text((left + width, top + 5), info, _QUIET, font=_SMALL, anchor="ra")
    for column, decoded in enumerate(_images(dataset, number)):
        corner = left + column * (_SIDE + _GAP), top + _CAPTION
        draw.rectangle((*corner, corner[0] + _SIDE - 1, corner[1] + _SIDE - 1), _BACKDROP)
        sheet.paste(decoded, (corner[0] + (_SIDE - decoded.width) // 2, corner[1] + (_SIDE - decoded.height) // 2))


def _images(dataset: DatasetArchive, number: int) -> tuple[Image.Image, Image.Image, Image.Image]:
    rgb = decode(dataset.image(number)).rgb
    with Image.open(io.BytesIO(dataset.mask(number))) as file:
        mask = file.convert("L")
    scale = _SIDE / max(rgb.size)
    if scale < 1 / _ENOUGH:  # so that an image of 64 megapixels is not blended at that size
        less = max(1, round(rgb.width * scale * _ENOUGH)), max(1, round(rgb.height * scale * _ENOUGH))
        rgb, mask = rgb.resize(less, Image.Resampling.BOX), mask.resize(less, Image.Resampling.NEAREST)
    size = max(1, round(rgb.width * scale)), max(1, round(rgb.height * scale))
    smooth = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(dataset.classes)] = [entry.color for entry in dataset.classes]
    # Colours are averaged, not indices: thin lines stay visible in a small image.
    colors = Image.fromarray(palette[np.asarray(mask)])
    painted = Image.blend(rgb, colors, _OPACITY)
    painted = Image.composite(painted, rgb, mask.point(lambda level: 255 if level else 0))
    image, shown, overlay = (decoded.resize(size, smooth) for decoded in (rgb, colors, painted))
    return image, shown, overlay


def _legend(draw: ImageDraw.ImageDraw, classes: Sequence[ArchiveClass], width: int) -> None:
    left = _MARGIN
    for entry in classes[:_LEGEND_MOST]:
        name = _shortened(entry.name, 160)
        if left + 30 + _text_width(name, _FONT) > width - _MARGIN - 30:
            draw.text((left, _MARGIN), "…", _QUIET, font=_FONT)
            return
        draw.rounded_rectangle((left, _MARGIN + 1, left + 15, _MARGIN + 16), 4, entry.color)
        draw.text((left + 22, _MARGIN), name, _INK, font=_FONT)
        left += 22 + _text_width(name, _FONT) + 24
    if len(classes) > _LEGEND_MOST:
        draw.text((left, _MARGIN), f"and {len(classes) - _LEGEND_MOST} more", _QUIET, font=_FONT)


_FONT, _SMALL = ImageFont.load_default(15), ImageFont.load_default(13)


def _text_width(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    return round(font.getlength(text))


def _shortened(text: str, room: int) -> str:
    """``text`` in at most ``room`` pixels: the end of a long name, because folders come first.

    Letters that the font lacks lose their accents, or become question marks.
    """
    plain = unicodedata.normalize("NFKD", text)
    text = "".join(c if c.isascii() else "?" for c in plain if not unicodedata.combining(c))
    if _text_width(text, _FONT) <= room:
        return text
    while text and _text_width("…" + text, _FONT) > room:
        text = text[1:]
    return "…" + text
