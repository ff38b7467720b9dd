"""The catalog: what a row decides, what is refused, and a family of one module and one row that is served."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ekiben.errors import BadModelFile
from models.artifact import read_manifest, write_manifest
from models.catalog import FAMILIES, build_family, family_row, row_of
from models.engine.loader import load_model
from models.engine.session_options import SessionOptions
from models.model_key import ModelKey
from services.inference.pipeline import ImageSource
from services.open_inference.inference import InferRequest
from services.open_inference.tensors import Tensor
from tests import toy_models
from tests.conftest import publish
from tests.models.toy_family import CONTRARY
from tests.operations import ask
from tests.services.jobs.job_homes import at_work, make_home

RED = toy_models.encoded(Image.new("RGB", (16, 12), (220, 10, 10)))


def test_every_family_is_built_or_loaded() -> None:
    for name, row in FAMILIES.items():
        assert (row.build is None) != (row.load is None), name
        assert family_row(name) is row
    with pytest.raises(BadModelFile, match="no model family 'detector'; there are classifier, segmenter, unet, sam"):
        family_row("detector")


def test_a_task_of_another_family_and_a_family_of_several_graphs(tmp_path: Path) -> None:
    toy_models.segmenter(tmp_path)
    manifest = read_manifest(tmp_path)
    with pytest.raises(BadModelFile, match="a classifier does not segment"):
        row_of(manifest.model_copy(update={"family": "classifier"}))
    with pytest.raises(BadModelFile, match="a sam is not one graph"):
        build_family(manifest.model_copy(update={"family": "sam", "task": "masks"}))


def test_an_unknown_family_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    toy_models.classifier(tmp_path)
    write_manifest(tmp_path, read_manifest(tmp_path).model_copy(update={"family": "detector"}))
    with pytest.raises(BadModelFile, match="no model family 'detector'"):
        load_model(ModelKey("local", "toy", 1), tmp_path, SessionOptions("cpu"))


def test_a_family_of_one_module_and_one_row_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "contrary", CONTRARY)
    folder = tmp_path / "artifact"
    toy_models.classifier(folder)
    write_manifest(folder, read_manifest(folder).model_copy(update={"family": "contrary"}))

    async def main() -> None:
        async with at_work(make_home(tmp_path / "template"), tmp_path) as bench:
            await asyncio.to_thread(publish, bench.app_state.settings.home, "contrary", folder)
            bench.app_state.index.refresh()
            usual = (await ask(bench.app_state, "classify", ImageSource(RED), model="colours", top_k=4)).body
            turned = (await ask(bench.app_state, "classify", ImageSource(RED), model="contrary", top_k=4)).body
            names = [[row["class_name"] for row in body["predictions"]] for body in (usual, turned)]
            assert names[0][0] == "red" == names[1][-1]
            tensor = Tensor("image", np.array([RED], object))
            answer = await bench.app_state.open_inference.infer(InferRequest("contrary", "", [tensor]))
            assert answer.outputs[0].name == "probs"
            job = await bench.finish((await bench.submit("classify", [RED], {"model": "contrary", "top_k": 1})).id)
            assert job.state == "succeeded"

    asyncio.run(main())
