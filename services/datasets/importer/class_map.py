"""From mask values to classes: one map for the whole dataset, decided from the statistics of all masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.artifact import voc_palette
from services.datasets.importer.mask_values import WHITE, MaskPixels, MaskStatistics

_VOC = np.array(voc_palette(256), np.int64) @ np.array([1 << 16, 1 << 8, 1], np.int64)
VOC_BORDER: Final = 255

# Distinct at half opacity on grey images and on stained tissue; VOC's own palette begins with three dark ones.
_COLORS: Final = (
    (0, 0, 0),
    *((230, 57, 70), (46, 196, 110), (255, 200, 40), (58, 134, 255), (255, 127, 20), (162, 70, 220)),
    *((30, 210, 220), (245, 80, 200), (190, 220, 60), (255, 160, 170), (0, 128, 128), (150, 90, 40)),
)

_BAND_PIXELS = 1 << 20

Color = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class ClassMap:
    """A map from mask value to class index. ``kind`` is its name in the report.

    ``keys`` ascending, ``classes`` beside it; keys are 0xrrggbb where ``by_color``. ``snapped``: values below 128 are
    class ``classes[0]``, the others ``classes[-1]``.
    """

    kind: str
    keys: NDArray[np.int64]
    classes: NDArray[np.int64]
    names: tuple[str, ...]
    colors: tuple[Color, ...]
    by_color: bool = False
    snapped: bool = False

    def apply(self, mask: MaskPixels) -> NDArray[np.uint8]:
        """uint8 [h, w]: the class of each pixel."""
        if self.snapped:
            bright = np.asarray(mask.levels()) >= 128
            return np.where(bright, np.uint8(self.classes[-1]), np.uint8(self.classes[0]))
        data = mask.colors() if self.by_color else mask.data
        if data.dtype.kind == "u" and data.dtype.itemsize <= 2:
            table = np.zeros(1 << 8 * data.dtype.itemsize, np.uint8)
            inside = self.keys < len(table)
            table[self.keys[inside]] = self.classes[inside]
            return np.asarray(table[data])
        found = np.empty(data.shape, np.uint8)
        rows = max(1, _BAND_PIXELS // data.shape[1])
        for top in range(0, len(data), rows):  # in bands: searchsorted needs 8 bytes for each value
            found[top : top + rows] = self.classes[np.searchsorted(self.keys, data[top : top + rows])]
        return found

    def class_of(self, key: int) -> int:
        """The class index of one key."""
        if self.snapped:
            return int(self.classes[-1 if key >= 128 else 0])
        return int(self.classes[np.searchsorted(self.keys, key)])

    def pixels_of(self, info: MaskStatistics) -> list[int]:
        """Pixels of each class in a mask, from its statistics."""
        pixels = np.zeros(len(self.names), np.int64)
        if self.snapped:
            np.add.at(pixels, self.classes[[0, -1]], [info.dark, info.bright])
        else:
            np.add.at(pixels, self.classes[np.searchsorted(self.keys, self.keys_of(info))], info.counts)
        return [int(n) for n in pixels]

    def keys_of(self, info: MaskStatistics) -> NDArray[np.int64]:
        """The values of a mask as keys of this map, beside ``info.counts``."""
        return keys_of(info, self.by_color)

    def value(self, key: int) -> int | str:
        """A key as the report shows it: a number, or a colour as #rrggbb."""
        return f"#{key:06x}" if self.by_color and self.kind == "colors" else key & 0xFF if self.by_color else key


def keys_of(info: MaskStatistics, by_color: bool) -> NDArray[np.int64]:
    """The values of a mask as keys: 0xrrggbb where ``by_color``, where a grey level is a grey colour."""
    if not by_color:
        return info.keys
    if info.key_colors is not None:
        return info.key_colors.astype(np.int64)
    return info.keys if info.kind == "colors" else np.clip(info.keys, 0, 255) * 0x010101


def counted(masks: Iterable[MaskStatistics], by_color: bool) -> tuple[Counter[int], Counter[int]]:
    """By key, its pixels and the masks that have it."""
    pixels: Counter[int] = Counter()
    having: Counter[int] = Counter()
    for info in masks:
        keys = keys_of(info, by_color).tolist()
        for key, count in zip(keys, info.counts.tolist(), strict=True):
            pixels[key] += count
        having.update(set(keys))
    return pixels, having


def colors_decide(masks: Sequence[MaskStatistics]) -> bool:
    """Whether colours are the classes: some mask has colours, the palettes are black and white only, or they disagree.

    Indices of palettes are labels as long as an index has one colour everywhere, and black is index 0 where it is used;
    and wherever a mask has two of them in one colour, which would merge classes.
    """
    if any(info.kind == "colors" for info in masks):
        return True
    if any(merged_by_color(info) for info in masks):
        return False
    if black_and_white(masks):
        return True
    meanings: dict[int, set[int]] = {}
    for info in masks:
        if info.key_colors is not None:
            for index, color in zip(info.keys.tolist(), info.key_colors.tolist(), strict=True):
                meanings.setdefault(index, set()).add(color)
    if any(len(colors) > 1 for colors in meanings.values()):
        return True
    black = [index for index, colors in meanings.items() if 0 in colors]
    return bool(black) and 0 not in black


def merged_by_color(info: MaskStatistics) -> bool:
    """Whether two indices of the mask have one colour, as in a palette of black only or one that is too short."""
    return info.key_colors is not None and len(np.unique(info.key_colors)) < len(info.key_colors)


def black_and_white(masks: Sequence[MaskStatistics]) -> bool:
    """Whether the palettes of all masks that have one are black and white, and so are read as they look.

    By index, a mask whose palette begins with white would be inverted.
    """
    if any(info.kind == "colors" for info in masks):
        return False
    palettes = [info for info in masks if info.key_colors is not None]
    return all(info.black_and_white for info in palettes) and any(
        WHITE in palette_of([info]).values() for info in palettes
    )


def palette_of(masks: Iterable[MaskStatistics]) -> dict[int, int]:
    """By index, the colour 0xrrggbb of the masks' palettes."""
    found: dict[int, int] = {}
    for info in masks:
        if info.key_colors is not None:
            found.update(zip(info.keys.tolist(), info.key_colors.tolist(), strict=True))
    return found


def is_voc(palette: dict[int, int]) -> bool:
    """Whether ``palette`` is Pascal VOC's colour map, with at least one colour besides black."""
    return any(color for color in palette.values()) and all(_VOC[index] == c for index, c in palette.items())


def voc_index(code: int) -> int | None:
    """The index of a colour, 0xrrggbb, in Pascal VOC's colour map; None where it is not in it."""
    found = np.flatnonzero(code == _VOC)
    return int(found[0]) if len(found) else None


@dataclass(slots=True)
class Decision:
    """A map, and how it was decided.

    ``gaps``: the values, where they are not 1, 2, 3, ...; ``inverted``: 0 is the object.
    """

    map: ClassMap
    background_values: list[int] = field(default_factory=list)
    voc: bool = False
    voc_border: bool = False
    gaps: list[int] = field(default_factory=list)
    inverted: bool = False
    has_background: bool = True


def decide(
    masks: Sequence[MaskStatistics],
    *,
    by_color: bool,
    snapped: bool,
    background: Sequence[int] | None,
    names: Sequence[str] | None,
) -> Decision:
    """The map for masks whose values are few enough. Value 0 (black) is class 0, and so are those of ``background``."""
    keys = [0, 255] if snapped else sorted(counted(masks, by_color)[0])
    palette = palette_of(masks)
    voc = bool(keys) and (is_voc(palette) if not by_color else _voc_colors(keys))
    grey = by_color and all(key % 0x010101 == 0 for key in keys)
    border = int(_VOC[VOC_BORDER]) if by_color else VOC_BORDER
    dropped = {value * 0x010101 for value in background or ()} if grey else set(background or ())
    zero = {0} & set(keys)
    rest = [key for key in keys if key not in dropped and key != 0]
    inverted = not rest and bool(zero) and 0 not in dropped and len(keys) > 1
    if inverted:  # all values but 0 were given as background: then 0 is the object
        rest, zero = [0], set()
    voc_border = voc and border in rest
    if voc_border:
        rest.remove(border)
    if by_color and voc:
        rest.sort(key=lambda key: voc_index(key) or 0)
    index_of = dict.fromkeys(keys, 0) | {key: i for i, key in enumerate(rest, 1)}
    count = len(rest) + 1
    kind = _kind(keys, by_color=by_color and not grey, palette=bool(palette) and not by_color and not snapped)
    shown = [key & 0xFF for key in rest] if grey else rest
    given = list(names) if names is not None and len(names) == count else None
    class_map = ClassMap(
        kind=kind,
        keys=np.array(keys, np.int64),
        classes=np.array([index_of[key] for key in keys], np.int64),
        names=tuple(given or _names(shown, kind)),
        colors=_colors(rest, palette, by_color=by_color and not grey, count=count),
        by_color=by_color,
        snapped=snapped,
    )
    plain = kind in ("labels", "palette")
    return Decision(
        class_map,
        background_values=sorted(int(key) for key in keys if index_of[key] == 0 and key not in zero),
        voc=voc,
        voc_border=voc_border,
        gaps=shown if plain and shown != list(range(1, count)) else [],
        inverted=inverted,
        has_background=0 in index_of.values(),
    )


def _voc_colors(keys: Sequence[int]) -> bool:
    indices = [voc_index(key) for key in keys]
    return len(keys) > 1 and any(indices) and None not in indices


def _kind(keys: Sequence[int], *, by_color: bool, palette: bool) -> str:
    if by_color:
        return "colors"
    if palette:
        return "palette"
    levels = {key & 0xFF if key % 0x010101 == 0 else key for key in keys}
    if levels == {0, 255}:
        return "binary_0_255"
    return "binary_0_1" if levels == {0, 1} else "labels"


def _names(rest: Sequence[int], kind: str) -> list[str]:
    if len(rest) == 1:
        return ["background", "foreground"]
    if kind == "colors":
        return ["background", *(f"#{key:06x}" for key in rest)]
    return ["background", *(f"class_{key}" for key in rest)]


def _colors(rest: Sequence[int], palette: dict[int, int], *, by_color: bool, count: int) -> tuple[Color, ...]:
    codes = list(rest) if by_color else [palette.get(key, 0) for key in rest]
    own = [(code >> 16 & 255, code >> 8 & 255, code & 255) for code in codes]
    # A class drawn in black could not be seen on an overlay.
    if all(codes) and len(set(codes)) == len(codes):
        return ((0, 0, 0), *own)
    spare = voc_palette(256)
    return tuple(_COLORS[i] if i < len(_COLORS) else spare[i] for i in range(count))
