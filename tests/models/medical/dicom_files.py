"""Small DICOM files of given pixels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset

EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
RLE = "1.2.840.10008.1.2.5"
GRADIENT = np.arange(-600, 600, dtype=np.int16).reshape(30, 40)
LABELS = ("background", "liver", "spleen", "リンパ節")
PALETTE = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))


def file(name: str) -> Path:
    return Path(str(get_testdata_file(name, download=False)))


def dicom(pixels: NDArray[Any] | bytes, syntax: str = EXPLICIT, **attributes: Any) -> bytes:
    """A file of these pixels; ``attributes`` change what it says of them."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    data.SOPInstanceUID = data.StudyInstanceUID = data.SeriesInstanceUID = "1.2.3"
    data.PhotometricInterpretation, data.SamplesPerPixel = "MONOCHROME2", 1
    if isinstance(pixels, bytes):
        data.PixelData = pixels
    else:
        data.Rows, data.Columns = pixels.shape[-2:]
        data.BitsAllocated = data.BitsStored = pixels.dtype.itemsize * 8
        data.HighBit, data.PixelRepresentation = data.BitsStored - 1, int(pixels.dtype.kind == "i")
        if pixels.ndim == 3:
            data.NumberOfFrames = len(pixels)
        data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OW"
    for name, value in attributes.items():
        setattr(data, name, value)
    out = io.BytesIO()
    pydicom.dcmwrite(out, data, enforce_file_format=True)
    return out.getvalue()


PLAIN = dicom(GRADIENT)
