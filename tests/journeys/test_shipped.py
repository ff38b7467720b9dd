"""The model that comes with Ekiben: the first answer of a machine without internet."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from db.registry import Registry
from db.session import connect
from ekiben.settings import Settings
from export.provision import SHIPPED
from models.artifact import read_manifest, verify
from tests import toy_models
from tests.conftest import publish, run_module
from tests.serving import ROOT, serving

NAME = "nuclei_unet"
CELLS = ROOT / "docs" / "images" / "cells.png"


def drawn() -> Any:
    """The script that drew the README's image."""
    spec = importlib.util.spec_from_file_location("cells", CELLS.with_suffix(".py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def versions(home: Path, name: str) -> list[tuple[int, bool, str | None]]:
    engine = connect(Settings.from_environ({"EKIBEN_HOME": str(home)}).resolved_database_url)
    rows = Registry(engine).versions(name)
    engine.dispose()
    return [(row.version, row.active, row.lineage.get("source")) for row in rows]


def test_the_artifact_is_whole_small_and_says_where_it_is_from() -> None:
    folder = SHIPPED / NAME
    manifest = read_manifest(folder)
    verify(folder, manifest)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4_000_000
    assert manifest.weights.kind == "trained"
    assert "CC0" in manifest.source
    assert manifest.metrics["protocol"] == "holdout"
    assert manifest.metrics["dice"] > 0.88
    assert manifest.parity is not None and manifest.parity.onnx_max_abs < 1e-3
    assert "/v1/trainings" in (folder / "README.md").read_text()  # the exact command


def test_it_is_published_once_and_never_over_a_person_s_own(tmp_path: Path) -> None:
    home = tmp_path / "var"
    for _ in range(2):
        done = run_module(home, "export.provision", "--no-download")
        assert done.returncode == 0, done.stderr
        assert versions(home, NAME) == [(1, True, "shipped")]
    toy_models.segmenter(tmp_path / "own")
    publish(home, NAME, tmp_path / "own")
    assert run_module(home, "export.provision", "--no-download").returncode == 0
    assert versions(home, NAME) == [(2, True, None), (1, False, "shipped")]


def test_it_answers_when_no_model_is_named(tmp_path: Path) -> None:
    home = tmp_path / "var"
    assert run_module(home, "export.provision", "--no-download").returncode == 0
    truth = np.asarray(drawn().draw()[1]) > 0
    with serving(home) as server, server.client() as client:
        answer = client.post("/v1/segment", files={"file": CELLS.read_bytes()})
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"] == {"name": NAME, "version": 1}
        mask = np.asarray(Image.open(io.BytesIO(client.get(answer.json()["artifacts"]["mask"]).content)))
    assert mask.shape == truth.shape
    iou = (truth & (mask == 1)).sum() / (truth | (mask == 1)).sum()
    assert iou > 0.8, iou


def test_the_image_is_what_its_script_draws() -> None:
    assert np.array_equal(np.asarray(drawn().draw()[0]), np.asarray(Image.open(CELLS)))


@pytest.mark.parametrize("name", ["model.onnx", "model.torchscript.pt"])
def test_both_exports_are_there(name: str) -> None:
    assert name in read_manifest(SHIPPED / NAME).files
