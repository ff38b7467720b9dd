"""What all layers of tests share: real data where it is, homes with models, servers."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

from db.blobs import open_store
from db.migrate import migrate
from db.publishing import publish_folder
from db.registry import Registry
from db.session import connect
from ekiben.settings import Settings
from models.artifact import read_manifest
from tests import toy_models
from tests.serving import ROOT, TOPOLOGIES, Server, environ, serving

# How fast examples are made and run says more of the machine, and of what else it does, than of the code.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


SERVER_FOLDERS = ("tests/journeys/datasets/", "tests/journeys/trainings/")
"""Their conftest starts one server for all of their files."""


class ByServer(LoadScopeScheduling):
    """Tests that share a server go to one of the processes that run the tests; of others a file does."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        parameters = test.partition("[")[2].removesuffix("]").split("-")
        if topology := next((name for name in TOPOLOGIES if name in parameters), None):
            return topology
        return next((folder for folder in SERVER_FOLDERS if file.startswith(folder)), file)


def pytest_collection_finish() -> None:
    """What is imported and collected stays: a full collection of garbage, which the engine makes after each model that
    it unloads, need not visit it."""
    gc.collect()
    gc.freeze()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByServer:
    return ByServer(config, log)


SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def umask_of_its_own() -> Iterator[None]:
    """Programs of Ekiben set the umask of their process; called in a test they must not set it for the next one."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real models and images beside the checkout."""
    if not (SHARED / "README.md").is_file():
        pytest.skip("needs the real data in ../shared/data, which is not here")
    return SHARED


def export(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``python -m export`` as a user runs it."""
    return run_module(home, "export", *arguments)


def run_module(home: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=environ(home),
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )


def publish(home: Path, name: str, artifact: Path, **settings: str) -> None:
    """Publish an artifact folder as a new version, as the export room does."""
    configured = Settings.from_environ({"EKIBEN_HOME": str(home), **settings})
    migrate(configured.resolved_database_url)
    engine = connect(configured.resolved_database_url)
    store = open_store(configured.resolved_store_url, configured.s3_access_key, configured.s3_secret_key)
    manifest = read_manifest(artifact)
    publish_folder(
        Registry(engine),
        store,
        artifact,
        name=name,
        manifest=manifest.model_dump(mode="json"),
        digest=manifest.digest,
        lineage={},
    )
    store.close()
    engine.dispose()


@pytest.fixture(scope="session")
def toy_artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Artifact folders by name: ``colours`` classifies, ``areas`` segments."""
    folder = tmp_path_factory.mktemp("toys")
    toy_models.classifier(folder / "colours")
    toy_models.segmenter(folder / "areas")
    return {"colours": folder / "colours", "areas": folder / "areas"}


@pytest.fixture
def toy_home(toy_artifacts: dict[str, Path], tmp_path: Path) -> Path:
    """A fresh home with the two toys."""
    home = tmp_path / "var"
    for name, artifact in toy_artifacts.items():
        publish(home, name, artifact)
    return home


@pytest.fixture(scope="session")
def toy_server(toy_artifacts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One embedded server with the two toys, for tests that leave no state that others would mind."""
    home = tmp_path_factory.mktemp("toy-server") / "var"
    for name, artifact in toy_artifacts.items():
        publish(home, name, artifact)
    with serving(home) as server:
        yield server


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
            home,
            "import",
            str(models / name / "model.onnx"),
            "--name",
            name,
            "--task",
            task,
            "--labels",
            labels,
            *half,
            *more,
        )
        assert done.returncode == 0, done.stderr
    return home
