"""What is done once before the processes are started."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from ekiben.settings import Settings
from ekiben.temporary_files import FOLDER, temporary_name
from services.processes.preflight import preflight


def test_a_disk_that_is_full_of_abandoned_files_frees_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(home=tmp_path / "var")
    name = re.sub(r"-\d+-\d+-", "-1-1-", temporary_name())  # process 1 began at another time
    left = [tmp_path / "var" / "blobs" / FOLDER / name, tmp_path / "var" / "downloads" / name]
    for path in left:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half of it")
    fsync = os.fsync

    def full(handle: int) -> None:
        if any(path.exists() for path in left):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    assert preflight(settings) is None
    assert "nothing can be stored" not in capfd.readouterr().err
    assert not any(path.exists() for path in left)
