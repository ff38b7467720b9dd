"""What all layers of tests share: real data where it is, homes with models, servers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import ROOT, TOPOLOGIES, Server, environ, serving

SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real models and pictures beside the checkout."""
    if not (SHARED / "README.md").is_file():
        pytest.skip("needs the real data in ../shared/data, which is not here")
    return SHARED


def export(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``python -m export`` as a user runs it."""
    return subprocess.run(
        [sys.executable, "-m", "export", *arguments],
        cwd=ROOT,
        env=environ(home),
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="session")
def home_with_real_models(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home into which mobilenet_v2 and deeplabv3_voc were imported by the command line."""
    home = tmp_path_factory.mktemp("home") / "var"
    models = shared_data / "models"
    half = ["--mean", "0.501961", "--std", "0.501961"]
    for name, task, more in (
        ("mobilenet_v2", "classify", ["--crop", "0.875", "--output", "probabilities"]),
        ("deeplabv3_voc", "segment", []),
    ):
        labels = str(models / name / "labels.txt")
        done = export(
            home, "import", str(models / name / "model.onnx"), "--name", name, "--task", task, "--labels", labels, *half, *more
        )
        assert done.returncode == 0, done.stderr
    return home


@pytest.fixture(scope="session")
def real_server(home_with_real_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One embedded server with the real models, for tests that leave no state that others would mind."""
    home = tmp_path_factory.mktemp("served") / "var"
    shutil.copytree(home_with_real_models, home)
    with serving(home) as server:
        yield server


@pytest.fixture(scope="session", params=list(TOPOLOGIES))
def topology_server(
    request: pytest.FixtureRequest, home_with_real_models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """The same in every topology: embedded, split, two gateways."""
    home = tmp_path_factory.mktemp("topology") / "var"
    shutil.copytree(home_with_real_models, home)
    with serving(home, **TOPOLOGIES[request.param]) as server:
        yield server
