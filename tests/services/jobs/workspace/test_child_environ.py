"""The environment variables that child processes get."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import services
from services.jobs import workspace
from services.jobs.workspace import child_environ


def test_children_are_told_nothing_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EKIBEN_S3_SECRET_KEY", "hidden")
    monkeypatch.setenv("EKIBEN_DATABASE_URL", "postgresql://user:hidden@db/ekiben")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    given = child_environ()
    assert not [name for name in given if name.startswith("EKIBEN_")]
    assert "hidden" not in repr(given)
    assert (given["CUDA_VISIBLE_DEVICES"], given["PATH"]) == ("1", os.environ["PATH"])


@pytest.mark.parametrize("path", [None, "/somewhere"])
def test_children_find_ekiben_where_it_is_not_installed(
    path: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if path is not None:
        monkeypatch.setenv("PYTHONPATH", path)
    code = "import services, sys; print(services.__file__, '/somewhere' in sys.path)"
    command = [sys.executable, "-S", "-c", code]  # without what is installed
    said = subprocess.run(command, cwd=tmp_path, env=child_environ(), capture_output=True, text=True, check=True)
    assert said.stdout.split() == [services.__file__, str(path is not None)]


def test_children_of_an_installed_ekiben_see_their_own_packages_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(workspace, "_HERE", Path("/opt/ekiben/lib/python3.11/site-packages"))
    assert "PYTHONPATH" not in child_environ()
