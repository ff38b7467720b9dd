"""Which model segments when none is named, and which of its options are refused or recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from ekiben.errors import BadInput, NotFound, Refusal
from ekiben.ids import LOCAL_OWNER
from models.engine import engine
from models.inference_requests import PROBABILITY, RENDERS
from services.inference import operations
from services.inference.context import RequestContext
from services.inference.operations import read_parameters, resolve_parameters
from services.inference.pipeline import ImageSource
from services.schemas import default_models
from tests import toy_models
from tests.conftest import publish
from tests.operations import ask
from tests.services.jobs.job_homes import AtWork, at_work

IMAGE = toy_models.encoded(toy_models.noise(150, 90))


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts")
    toy_models.segmenter(folder / "areas")
    toy_models.unet(folder / "nuclei_unet", binary=True, overlap=0.5)
    toy_models.unet(folder / "areas_tiled", overlap=0.25)
    return folder


@pytest.fixture(scope="module")
def template(artifacts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with ``areas`` (a segmenter), ``nuclei_unet`` (tiled, of two classes) and ``areas_tiled``."""
    home = tmp_path_factory.mktemp("template") / "var"
    for name in ("areas", "nuclei_unet", "areas_tiled"):
        publish(home, name, artifacts / name)
    return home


@pytest.fixture
def work(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setattr(engine, "reclaim_memory", lambda: None)

    def work(main: Callable[[AtWork], Awaitable[None]]) -> None:
        async def whole() -> None:
            async with at_work(template, tmp_path) as bench:
                await asyncio.wait_for(main(bench), 30)

        asyncio.run(whole())

    return work


async def settle(bench: AtWork, **given: Any) -> dict[str, Any]:
    segment = operations.operation("segment")
    return await resolve_parameters(RequestContext(bench.app_state.inference), segment, read_parameters(segment, given))


def test_the_default_model_is_the_first_that_is_there(
    work: Callable[..., None], artifacts: Path, tmp_path: Path
) -> None:
    assert default_models.SEGMENT == ("deeplabv3_resnet50", "nuclei_unet")

    async def main(bench: AtWork) -> None:
        outcome = await ask(bench.app_state, "segment", ImageSource(IMAGE), store=False)
        assert outcome.body["model"] == {"name": "nuclei_unet", "version": 1}
        pinned = await settle(bench)
        assert pinned == {"model": "nuclei_unet", "version": 1}
        with pytest.raises(NotFound, match="nuclei_unet"):
            await settle(bench, version=2)
        # Another one comes that is preferred: what was settled stays.
        await asyncio.to_thread(publish, tmp_path / "var", "deeplabv3_resnet50", artifacts / "areas")
        await asyncio.to_thread(bench.app_state.index.refresh)
        outcome = await ask(bench.app_state, "segment", ImageSource(IMAGE), store=False)
        assert outcome.body["model"] == {"name": "deeplabv3_resnet50", "version": 1}
        assert await settle(bench) == {"model": "deeplabv3_resnet50", "version": 1}
        job = await bench.submit("segment", [IMAGE], {**pinned, "probability": True})
        await bench.finish(job.id)
        (answer,) = await bench.results(job.id)
        assert answer is not None
        assert answer["model"] == {"name": "nuclei_unet", "version": 1}
        assert sorted(answer["artifacts"]) == ["color", "mask", "overlay", "probability"]

    work(main)


def test_without_any_model_the_first_default_is_named(tmp_path: Path) -> None:
    async def main() -> None:
        async with at_work(tmp_path / "nothing", tmp_path) as bench:
            with pytest.raises(NotFound, match="deeplabv3_resnet50"):
                await ask(bench.app_state, "segment", ImageSource(IMAGE), store=False)

    (tmp_path / "nothing").mkdir()
    asyncio.run(main())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": "areas", "flips": True}, "areas is a segmenter"),
        ({"model": "areas", "probability": True}, "areas is a segmenter"),
        ({"model": "areas", "render": "probability"}, "areas is a segmenter"),
        ({"model": "areas_tiled", "probability": True}, "a unet of 4 classes"),
        ({"model": "nuclei_unet", "render": "logits"}, "render"),
    ],
)
def test_what_a_model_does_not_support_is_refused(work: Callable[..., None], given: dict[str, Any], said: str) -> None:
    async def main(bench: AtWork) -> None:
        refusals: list[Refusal] = []
        for request in (ask(bench.app_state, "segment", ImageSource(IMAGE), **given), settle(bench, **given)):
            with pytest.raises(BadInput, match=said) as refused:
                await request
            refusals.append(refused.value)
        assert bench.rows() == {"images": 0, "predictions": 0, "artifacts": 0}

    work(main)


def test_options_are_recorded(work: Callable[..., None]) -> None:
    async def main(bench: AtWork) -> None:
        outcome = await ask(bench.app_state, "segment", ImageSource(IMAGE), flips=True, render="probability")
        assert tuple(outcome.images) == (*RENDERS, PROBABILITY)
        row = await asyncio.to_thread(bench.app_state.records.prediction, LOCAL_OWNER, outcome.body["id"])
        assert row.parameters == {"flips": True, "probability": True}
        plain = await ask(bench.app_state, "segment", ImageSource(IMAGE))
        assert plain.body["classes"] == outcome.body["classes"]
        assert sorted(plain.body["artifacts"]) == ["color", "mask", "overlay"]
        unstored = await ask(bench.app_state, "segment", ImageSource(IMAGE), render="probability", store=False)
        assert tuple(unstored.images) == (PROBABILITY,)
        assert unstored.images[PROBABILITY] == outcome.images[PROBABILITY]

    work(main)
