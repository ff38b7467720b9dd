"""Metrics of a process whose disk has no space: it goes on counting, and is not killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.serving import ROOT

# A limit of the file size fails the allocation as a full disk does.
_PROGRAM = """
import os, resource, signal, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
from services import metrics
for number in range(2000):
    metrics.refused.labels(f"code{number}").inc(2)
print(metrics.refused.labels("code1999")._value.get(), metrics.refused.labels("code0")._value.get())
print(b'ekiben_refused_total{code="code0"} 2.0' in metrics.render()[0])
"""


def counted(folder: Path, limit: int) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(limit)],
        cwd=ROOT,
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_files_have_their_blocks(tmp_path: Path) -> None:
    """Else the first write into a hole of the file kills the process where the disk is full."""
    assert counted(tmp_path, 1 << 30) == ["2.0 2.0", "True"]
    files = list(tmp_path.glob("counter_*.db"))
    assert files
    for file in files:
        assert file.stat().st_blocks * 512 >= file.stat().st_size


def test_a_file_that_cannot_grow(tmp_path: Path) -> None:
    assert counted(tmp_path, 1 << 16) == ["2.0 2.0", "True"]  # the file has the first values
