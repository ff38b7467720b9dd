"""What a serving process costs before it has done anything."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.pace import seconds_to_import
from tests.serving import serving


def proportional_bytes(pid: int) -> int:
    """PSS of a process: shared pages are counted by their share."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Pss line")


@pytest.mark.acceptance
def test_the_serving_process_idles_small_and_is_ready_soon(tmp_path: Path) -> None:
    """Ready within five times what Python needs to import what serves: the launcher, its supervisor and the worker are
    started one after the other."""
    ratios = []
    for run in range(3):
        import_s = seconds_to_import("bentoml", "onnxruntime", "sqlmodel", "fastapi", "grpc")
        began = time.monotonic()
        with serving(tmp_path / f"var-{run}") as server:
            ratios.append((time.monotonic() - began) / import_s)
            time.sleep(2)
            (worker,) = server.worker_pids()
            assert proportional_bytes(worker) < 250e6
            assert sum(proportional_bytes(pid) for pid in server.pids()) < 250e6  # launcher and supervisor too
            maps = Path(f"/proc/{worker}/maps").read_text()
            assert "libtorch" not in maps
    assert sorted(ratios)[1] < 5, ratios
