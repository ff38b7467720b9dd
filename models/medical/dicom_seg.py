"""DICOM SEG: masks as DICOM files that refer to their source image."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from ekiben import __version__
from ekiben.errors import BadInput, Refusal, UnsupportedImage
from models.medical.dicom import DicomVolume

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

NO_SEG: Final = "no_dicom_seg"
"""Code of the refusal of a file for which no SEG can be written; its mask has other formats."""

_REQUIRED: Final = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
# Required by the standard but possibly empty, and missing from many files.
_EMPTY: Final = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)
_SERIES_NUMBER = 900
_LONGEST_LABEL = 64

# highdicom's warnings about patients' names: an operator cannot act on them.
warnings.filterwarnings("ignore", category=UserWarning, module=r"highdicom\.")
logging.getLogger("highdicom").setLevel(logging.ERROR)


def write_dicom_seg(
    data: bytes, class_map: NDArray[np.uint8], labels: Sequence[str], palette: Sequence[Sequence[int]]
) -> bytes:
    """The bytes of a DICOM SEG with a binary segment for each class but 0 (background) that occurs in ``class_map``.

    ``data``: the DICOM file that ``class_map`` uint8 [height, width] or [frames, height, width] belongs to;
    ``labels``, ``palette`` (RGB 0-255): of the classes by index. BadInput for another shape. UnsupportedImage with the
    code NO_SEG where no class occurs, or the file lacks the ids or the geometry that a SEG refers to.
    """
    with DicomVolume(data) as volume:
        source, shape = volume.dataset, (volume.depth, volume.height, volume.width)
    planes = class_map[np.newaxis] if class_map.ndim == 2 else class_map
    if planes.shape != shape:
        raise BadInput(f"the mask has the shape {planes.shape}, the DICOM file {shape}")
    present = [int(value) for value in np.unique(planes) if value > 0]
    if not present:
        raise UnsupportedImage("no DICOM SEG: there is only background in the mask", code=NO_SEG)
    for name in _REQUIRED:
        if not source.get(name):
            raise UnsupportedImage(f"no DICOM SEG: the file has no {name}", code=NO_SEG)
    for name in _EMPTY:
        if name not in source:
            setattr(source, name, "")
    if not source.get("Modality"):
        source.Modality = "OT"
    if volume.depth > 1 and not source.get("SharedFunctionalGroupsSequence"):
        raise UnsupportedImage("no DICOM SEG: the frames of the file have no functional groups", code=NO_SEG)
    if "FrameOfReferenceUID" not in source and "SliceThickness" not in source and "PixelSpacing" in source:
        # highdicom would write pixel measures without a thickness, which its own reader then refuses.
        del source.PixelSpacing
    numbers = np.zeros(256, np.uint8)
    numbers[present] = range(1, len(present) + 1)
    try:
        return _written(source, numbers[planes], [(labels[index], palette[index]) for index in present])
    except Refusal:
        raise
    except Exception as error:  # highdicom checks the rules of the standard and raises errors of any kind
        raise UnsupportedImage(f"no DICOM SEG: {error}"[:300], code=NO_SEG) from None


def _written(source: Dataset, segments: NDArray[np.uint8], named: list[tuple[str, Sequence[int]]]) -> bytes:
    from highdicom import UID
    from highdicom.seg import Segmentation, segread

    seg = Segmentation(
        source_images=[source],
        pixel_array=segments,
        segmentation_type="BINARY",
        segment_descriptions=[_description(i, *each) for i, each in enumerate(named, start=1)],
        series_instance_uid=UID(),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=UID(),
        instance_number=1,
        manufacturer="Ekiben",
        manufacturer_model_name="Ekiben",
        software_versions=__version__,
        device_serial_number="0",
        specific_character_set="ISO_IR 192",  # labels may be in any script, whatever the source's
    )
    out = io.BytesIO()
    seg.save_as(out)
    out.seek(0)
    segread(out)  # highdicom can write files that its own reader refuses
    return out.getvalue()


def _description(number: int, label: str, color: Sequence[int]) -> Any:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes

    return SegmentDescription(
        segment_number=number,
        segment_label=label.replace("\\", "/")[:_LONGEST_LABEL],
        segmented_property_category=codes.SCT.Tissue,  # all that is known of a user's classes
        segmented_property_type=codes.SCT.Tissue,
        algorithm_type="AUTOMATIC",
        algorithm_identification=AlgorithmIdentificationSequence(
            name="Ekiben", version=__version__, family=codes.DCM.ArtificialIntelligence
        ),
        display_color=CIELabColor.from_rgb(*(int(value) for value in color)),
    )
