"""Display of DICOM frames: from stored values to the grey or colour levels that a viewer shows."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from ekiben.errors import BadImage, UnsupportedImage
from models.medical.volume import Values, bands, levels, spread

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# Functional groups of multi-frame files, and the attributes that are read from them (PS3.3, C.7.6.16).
_GROUPS: Final = {
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction"),
    "PixelMeasuresSequence": ("PixelSpacing",),
}
_PLAIN: Final = (
    "BitsStored",
    "PixelRepresentation",
    "PhotometricInterpretation",
    "PixelPaddingValue",
    "ModalityLUTSequence",
    "VOILUTSequence",
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
                for name in names:
                    if name in groups[sequence].value[0]:
                        out[name] = groups[sequence].value[0][name]
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
        from pydicom.pixels.processing import apply_modality_lut

        return np.asarray(apply_modality_lut(stored, attributes))
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
    from pydicom.pixels.processing import apply_voi

    depth = int(attributes.VOILUTSequence[0].LUTDescriptor[2])
    if not 8 <= depth <= 16:
        raise BadImage(f"the VOI LUT of the DICOM file has entries of {depth} bits")
    whole = np.rint(values).astype(np.int64)
    return levels(np.asarray(apply_voi(whole, attributes)), 0, 2**depth - 1)


def _range(stored: Values, attributes: Dataset) -> tuple[float, float]:
    bits = int(attributes.get("BitsStored") or 16)
    plain = not any(name in attributes for name in ("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"))
    if plain and bits <= 8 and not attributes.get("PixelRepresentation"):
        return 0.0, float(2**bits - 1)
    sample = stored.ravel()[:: max(1, stored.size // _SAMPLED_VALUES)]
    padding = attributes.get("PixelPaddingValue")
    if isinstance(padding, int) and (sample != padding).any():
        sample = sample[sample != padding]
    return spread(rescaled(sample, attributes))


def color_levels(stored: Values, dataset: Dataset, photometric: str) -> NDArray[np.uint8]:
    """uint8 [height, width, 3], RGB, from a colour frame or from palette indices [height, width].

    UnsupportedImage for a photometric interpretation other than RGB and PALETTE COLOR.
    """
    if photometric == "PALETTE COLOR":
        from pydicom.pixels.processing import apply_color_lut

        out = np.empty((*stored.shape, 3), np.uint8)
        for band in bands(stored):
            colors = np.asarray(apply_color_lut(stored[band], dataset))
            out[band] = (colors >> 8 if colors.dtype.itemsize > 1 else colors)[..., :3]
        return out
    if photometric != "RGB":
        raise UnsupportedImage(f"DICOM images of the photometric interpretation {photometric} are not read")
    surplus = int(dataset.get("BitsStored") or 8) - 8
    return np.asarray(np.right_shift(stored, surplus) if surplus > 0 else stored).astype(np.uint8)


def _number(attributes: Dataset, name: str, default: float) -> float:
    """The attribute as a finite number, or the first of its values; else ``default``."""
    value: Any = attributes.get(name)
    try:
        number = float(value[0] if not isinstance(value, (str, int, float)) and value else value)
    except (TypeError, ValueError, IndexError):
        return default
    return number if math.isfinite(number) else default
