"""What reaches the log: nothing that the libraries which read files write about a caller's file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom.encaps import encapsulate

from tests.models.image_formats.tiff_files import Page, tiff
from tests.models.medical.dicom_files import RLE, dicom
from tests.models.medical.test_dicom_refusals import says
from tests.models.medical.test_nifti import spoiled
from tests.serving import ROOT

READ = """
import sys
from pathlib import Path
from ekiben import logs
from ekiben.errors import Refusal
from models.images import decode
from models.medical.formats import open_volume
logs.configure(sys.argv[2])
try:
    if sys.argv[1].endswith(".nii"):
        open_volume(Path(sys.argv[1]))
    else:
        decode(Path(sys.argv[1]).read_bytes())
except Refusal as refusal:
    print("refused")
"""


def bad_files() -> dict[str, bytes]:
    samples = Page(np.zeros((4, 4, 3), np.uint8), 2, {277: [32]})
    frame = dicom(encapsulate([bytes(10)]), RLE, **says(4, 4))
    return {"samples.tif": tiff(samples), "type.nii": spoiled(70, "<h", 1536), "frame.dcm": frame}


@pytest.mark.parametrize(
    ("name", "level", "lines"),
    [
        ("samples.tif", "info", False),
        ("type.nii", "info", False),
        ("frame.dcm", "info", False),
        ("samples.tif", "debug", True),
        ("type.nii", "debug", True),
    ],
)
def test_a_bad_file_is_refused_and_not_logged(name: str, level: str, lines: bool, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(bad_files()[name])
    command = [sys.executable, "-c", READ, str(file), level]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "refused"
    assert bool(done.stderr) is lines


DBOS = """
import logging
from dbos._logger import init_logger
from ekiben import logs
logs.configure("info")
init_logger()
logging.getLogger("dbos").error("something")
"""


def test_the_queue_logs_in_the_same_format() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DBOS], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True
    )
    (line,) = done.stderr.splitlines()
    assert json.loads(line)["message"] == "something"
