"""Display of DICOM frames: from stored values to the grey or colour levels that a viewer shows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from ekiben.errors import BadImage, UnsupportedImage
from models.medical.dicom_lut import first_mapped, read_table, stored_range, stored_value
from models.medical.volume import Values, bands, levels, spread

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# Functional groups of multi-frame files, and the attributes that are read from them (PS3.3, C.7.6.16).
_GROUPS: Final = {
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    "PixelMeasuresSequence": ("PixelSpacing",),
}
# What a group has in place of others: a look-up table instead of a window, slope and intercept instead of a table.
_INSTEAD: Final = {
    "VOILUTSequence": ("WindowCenter", "WindowWidth"),
    "RescaleSlope": ("ModalityLUTSequence",),
    "RescaleIntercept": ("ModalityLUTSequence",),
}
_PLAIN: Final = (
    "BitsStored",
    "PixelRepresentation",
    "PhotometricInterpretation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "ModalityLUTSequence",
    "ImagerPixelSpacing",
)
_SAMPLED_VALUES = 4_000_000  # of a frame, for its percentiles


def frame_attributes(dataset: Dataset, index: int) -> Dataset:
    """The attributes that decide how frame ``index`` is displayed, as a data set.

    Its own functional groups come before the shared ones, and these before the attributes of the file.
    """
    from pydicom.dataset import Dataset

    out = Dataset()
    out.file_meta = dataset.file_meta
    out.set_original_encoding(*dataset.original_encoding)
    for name in (*_PLAIN, *(name for names in _GROUPS.values() for name in names)):
        if name in dataset:
            out[name] = dataset[name]
    own = dataset.get("PerFrameFunctionalGroupsSequence")
    shared = dataset.get("SharedFunctionalGroupsSequence")
    for groups in (shared[0] if shared else None, own[index] if own and index < len(own) else None):
        for sequence, names in _GROUPS.items():
            if groups is not None and groups.get(sequence):
                group = groups[sequence].value[0]
                given = [name for name in names if name in group]
                for name in given:
                    for other in _INSTEAD.get(name, ()):
                        if other not in group and other in out:
                            del out[other]
                    out[name] = group[name]
    return out


def spacing(attributes: Dataset) -> tuple[float, float] | None:
    """Millimetres from row to row and from column to column; None where the file does not give them."""
    for name in ("PixelSpacing", "ImagerPixelSpacing"):
        try:
            rows, columns = (float(value) for value in attributes.get(name) or ())
        except (TypeError, ValueError):
            continue
        if 0 < rows < math.inf and 0 < columns < math.inf:
            return rows, columns
    return None


def grey_levels(stored: Values, attributes: Dataset) -> NDArray[np.uint8]:
    """uint8 [height, width] from stored values: rescaled, then mapped to grey levels; MONOCHROME1 is inverted.

    By the first DICOM window; else by the VOI LUT; else, for at most 8 bits that are not rescaled, unchanged; else
    from the 0.5 to the 99.5 percentile of the frame (padding left out). BadImage for a damaged VOI LUT.
    """
    inverted = attributes.get("PhotometricInterpretation") == "MONOCHROME1"
    out = np.empty(stored.shape, np.uint8)
    window = _window(attributes)
    low, high = (0.0, 0.0) if window or attributes.get("VOILUTSequence") else _range(stored, attributes)
    for band in bands(stored):
        real = rescaled(stored[band], attributes)
        if window:
            part = np.rint(_windowed(real, *window) * 255).astype(np.uint8)
        elif attributes.get("VOILUTSequence"):
            part = _looked_up(real, attributes)
        else:
            part = levels(real, low, high)
        out[band] = 255 - part if inverted else part
    return out


def rescaled(stored: Values, attributes: Dataset) -> Values:
    """Stored values after the modality LUT, or after slope and intercept."""
    if attributes.get("ModalityLUTSequence"):
        table = read_table(attributes.ModalityLUTSequence[0], *stored_range(attributes), _big_endian(attributes))
        return table.apply(stored)
    slope, intercept = _number(attributes, "RescaleSlope", 1.0), _number(attributes, "RescaleIntercept", 0.0)
    if slope == 1 and intercept == 0:
        return stored
    return np.asarray(stored * np.float64(slope) + intercept)


def _windowed(values: Values, center: float, width: float, function: str) -> NDArray[np.float64]:
    """float64 in 0-1: the values through a DICOM window. PS3.3, C.11.2.1.2 and C.11.2.1.3."""
    values = values.astype(np.float64)
    if function == "SIGMOID":
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700))))
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if width == 0:
        return (values > center).astype(np.float64)
    return np.clip((values - center) / width + 0.5, 0, 1)


def _window(attributes: Dataset) -> tuple[float, float, str] | None:
    center, width = _number(attributes, "WindowCenter", math.nan), _number(attributes, "WindowWidth", math.nan)
    function = str(attributes.get("VOILUTFunction") or "LINEAR")
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        function = "LINEAR"
    if math.isnan(center) or not width >= (1 if function == "LINEAR" else math.ulp(1.0)):
        return None
    return center, width, function


def _looked_up(values: Values, attributes: Dataset) -> NDArray[np.uint8]:
    table = read_table(attributes.VOILUTSequence[0], *_rescaled_range(attributes), _big_endian(attributes))
    if not 8 <= table.bits <= 16:
        raise BadImage(f"the VOI LUT of the DICOM file has entries of {table.bits} bits")
    return levels(table.apply(values), 0, 2**table.bits - 1)


def _rescaled_range(attributes: Dataset) -> tuple[float, float]:
    """The lowest and the highest value that a pixel may have after the modality LUT or slope and intercept."""
    if attributes.get("ModalityLUTSequence"):
        return 0, 0xFFFF
    ends = rescaled(np.array(stored_range(attributes), np.int64), attributes)
    return float(ends.min()), float(ends.max())


def _big_endian(attributes: Dataset) -> bool:
    return attributes.original_encoding[1] is False


def _range(stored: Values, attributes: Dataset) -> tuple[float, float]:
    bits = int(attributes.get("BitsStored") or 16)
    plain = not any(name in attributes for name in ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"))
    if plain and bits <= 8 and not attributes.get("PixelRepresentation"):
        return 0.0, float(2**bits - 1)
    sample = stored.ravel()[:: max(1, stored.size // _SAMPLED_VALUES)]
    padding = _padding(sample, attributes)
    return spread(rescaled(sample if padding.all() else sample[~padding], attributes))


def _padding(stored: Values, attributes: Dataset) -> NDArray[np.bool_]:
    """Which stored values are padding: one value, or a range with both ends. PS3.3, C.7.5.1.1.2."""
    value = stored_value(attributes.get("PixelPaddingValue"), attributes)
    limit = stored_value(attributes.get("PixelPaddingRangeLimit"), attributes)
    if value is None:
        return np.zeros(stored.shape, np.bool_)
    low, high = sorted((value, value if limit is None else limit))
    return np.asarray((stored >= low) & (stored <= high))


def color_levels(stored: Values, dataset: Dataset, photometric: str) -> NDArray[np.uint8]:
    """uint8 [height, width, 3], RGB, from a colour frame or from palette indices [height, width].

    UnsupportedImage for a photometric interpretation other than RGB and PALETTE COLOR, BadImage where a pixel has
    another number of samples than it says.
    """
    if photometric in ("RGB", "PALETTE COLOR") and (stored.ndim == 3) is not (photometric == "RGB"):
        samples = stored.shape[2] if stored.ndim == 3 else 1
        raise BadImage(f"the DICOM file says {photometric}, but its SamplesPerPixel is {samples}")
    if photometric == "PALETTE COLOR":
        from pydicom.pixels.processing import apply_color_lut

        out = np.empty((*stored.shape, 3), np.uint8)
        tables = _palette(dataset)
        for band in bands(stored):
            colors = np.asarray(apply_color_lut(stored[band], tables))
            out[band] = (colors >> 8 if colors.dtype.itemsize > 1 else colors)[..., :3]
        return out
    if photometric != "RGB":
        raise UnsupportedImage(f"DICOM images of the photometric interpretation {photometric} are not read")
    surplus = int(dataset.get("BitsStored") or 8) - 8
    return np.asarray(np.right_shift(stored, surplus) if surplus > 0 else stored).astype(np.uint8)


def _palette(dataset: Dataset) -> Dataset:
    """The attributes of the palette; the descriptor with the numbers that were meant (pydicom reads the red one)."""
    from pydicom.dataelem import DataElement

    out = dataset.group_dataset(0x0028)
    name = "RedPaletteColorLookupTableDescriptor"
    entries, first, bits = (int(number) for number in out[name].value)
    first = first_mapped(first, entries & 0xFFFF or 1 << 16, *stored_range(dataset))
    out[name] = DataElement(out[name].tag, "SL", [entries & 0xFFFF, first, bits])
    return out


def _number(attributes: Dataset, name: str, default: float) -> float:
    """The attribute as a finite number, or the first of its values; else ``default``."""
    value: Any = attributes.get(name)
    try:
        number = float(value[0] if not isinstance(value, (str, int, float)) and value else value)
    except (TypeError, ValueError, IndexError):
        return default
    return number if math.isfinite(number) else default
