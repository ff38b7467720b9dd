"""Operations: what a job's parameters may be, and that a job keeps to what was meant when it was submitted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from ekiben.errors import BadInput, NotFound, Refusal
from ekiben.ids import LOCAL_OWNER
from models.engine import engine
from services.inference import operations
from services.inference.context import RequestContext
from services.inference.operations import operation, read_parameters, resolve_parameters
from services.inference.pipeline import ImageSource
from tests import toy_models
from tests.conftest import publish
from tests.operations import ask
from tests.services.jobs.job_homes import AtWork, at_work, make_home

POINT = {"points": [[1.5, 2, 1]]}
RED = toy_models.encoded(toy_models.solid((255, 0, 0)))

Run = Callable[[Callable[[AtWork], Awaitable[None]]], None]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("template"))


@pytest.fixture
def run(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(engine, "reclaim_memory", lambda: None)

    def run(main: Callable[[AtWork], Awaitable[None]]) -> None:
        async def whole() -> None:
            async with at_work(template, tmp_path) as bench:
                await asyncio.wait_for(main(bench), 30)

        asyncio.run(whole())

    return run


async def settle(bench: AtWork, name: str, **given: Any) -> dict[str, Any]:
    chosen = operation(name)
    return await resolve_parameters(RequestContext(bench.app_state.inference), chosen, read_parameters(chosen, given))


def test_the_operations() -> None:
    assert list(operations.OPERATIONS) == ["classify", "segment", "masks", "auto_masks", "cutouts"]
    for name, one in operations.OPERATIONS.items():
        assert (operation(name), one.name) == (one, name)
        assert one.claim_size >= 1
    assert {one.name for one in operations.OPERATIONS.values() if one.heavy} == {"auto_masks", "cutouts"}
    for name in ("", "Classify", "detect", "x" * 100):
        with pytest.raises(BadInput, match="classify, segment, masks, auto_masks, cutouts"):
            operation(name)


def test_prompts_may_be_a_list_or_text() -> None:
    chosen = operation("masks")
    as_list = read_parameters(chosen, {"prompts": [POINT], "multimask": False})
    as_text = read_parameters(chosen, {"prompts": '[{"points":[[1.5,2,1]]}]', "multimask": False})
    assert as_list == as_text
    assert read_parameters(chosen, {"prompts": None}).model_dump()["prompts"] is None


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("classify", {"topk": 3}, "topk"),
        ("classify", {"top_k": 0}, "top_k"),
        ("classify", {"top_k": "many"}, "top_k"),
        ("classify", {"model": "No Name"}, "model"),
        ("classify", {"version": 0}, "version"),
        ("classify", {"prompts": [POINT]}, "prompts"),
        ("masks", {"prompts": 3}, "prompts"),
        ("masks", {"prompts": {"points": []}}, "prompts"),
        ("masks", {"format": "gif"}, "format"),
        ("auto_masks", {"points_per_side": 1000}, "points_per_side"),
        ("auto_masks", {"preset": "slow"}, "preset"),
        ("cutouts", {"limit": 0}, "limit"),
        ("cutouts", {"frame": "round"}, "frame"),
    ],
)
def test_parameters_that_are_wrong(name: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        read_parameters(operation(name), given)


def test_parameters_are_settled(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        assert await settle(bench, "classify", model="colours", top_k=2) == {
            "model": "colours",
            "version": 1,
            "top_k": 2,
        }
        assert await settle(bench, "segment", model="areas", version=1) == {"model": "areas", "version": 1}
        masks = await settle(bench, "masks", model="sam_toy", prompts=[POINT], logits=False)
        assert masks == {"model": "sam_toy", "version": 1, "prompts": [POINT], "logits": False}
        auto = await settle(bench, "auto_masks", model="sam_toy", points_per_side=4)
        assert (auto["model"], auto["version"], auto["points_per_side"]) == ("sam_toy", 1, 4)
        # What belongs to one request alone is not among a job's parameters.
        assert await settle(bench, "classify", model="colours", image_id="x", store=False) == {
            "model": "colours",
            "version": 1,
        }
        # They can be read again as they are: that is how a worker gets them.
        for name, settled in (("masks", masks), ("auto_masks", auto)):
            again = read_parameters(operation(name), settled)
            kept = again.model_dump(exclude_unset=True)
            assert {**kept, "prompts": settled.get("prompts")} == {**settled, "prompts": settled.get("prompts")}

    run(main)


REFUSED: list[tuple[str, dict[str, Any], type[Refusal], str]] = [
    ("classify", {"model": "colours", "top_k": 5}, BadInput, "top_k"),
    ("classify", {"model": "nowhere"}, NotFound, "nowhere"),
    ("classify", {"model": "colours", "version": 2}, NotFound, "2"),
    ("classify", {"model": "areas"}, BadInput, "areas"),
    ("segment", {"model": "colours"}, BadInput, "colours"),
    ("masks", {"model": "areas"}, BadInput, "areas"),
    ("auto_masks", {"model": "colours"}, BadInput, "colours"),
    ("masks", {"model": "sam_toy", "prompts": "[{"}, BadInput, "JSON"),
    ("masks", {"model": "sam_toy", "prompts": "3"}, BadInput, "prompts"),
    ("masks", {"model": "sam_toy", "prompts": '{"points": [[1, 2, 1]]}'}, BadInput, "prompts"),
    ("masks", {"model": "sam_toy", "prompts": [{}]}, BadInput, "prompt 0"),
    ("masks", {"model": "sam_toy", "prompts": [POINT, {"points": [[1, 2, 3]]}]}, BadInput, "prompt 1"),
    ("cutouts", {"model": "sam_toy", "prompts": [{"box": [1, 2]}]}, BadInput, "prompt 0"),
]


def test_what_can_be_refused_without_an_image_is(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        for name, given, kind, said in REFUSED:
            with pytest.raises(kind, match=said):
                await settle(bench, name, **given)

    run(main)


def test_prompts_that_are_null_are_none(run: Run) -> None:
    """As for a request: null is no prompt."""

    async def main(bench: AtWork) -> None:
        settled = await settle(bench, "masks", model="sam_toy", prompts="null")
        assert settled.get("prompts") is None

    run(main)


def test_a_job_keeps_to_its_version(run: Run, tmp_path: Path) -> None:
    async def main(bench: AtWork) -> None:
        job = await bench.submit("classify", [RED], {"model": "colours"})
        assert job.parameters == {"model": "colours", "version": 1}
        toy_models.classifier(tmp_path / "other", color="BGR")  # calls red what is blue
        await asyncio.to_thread(publish, bench.app_state.settings.home, "colours", tmp_path / "other")
        await asyncio.to_thread(bench.app_state.registry.activate, "colours", 2)
        bench.app_state.index.refresh()
        answer = await ask(bench.app_state, "classify", ImageSource(RED), model="colours", store=False)
        assert answer.body["model"] == {"name": "colours", "version": 2}
        await bench.finish(job.id)
        [result] = await bench.results(job.id)
        assert result is not None and result["model"] == {"name": "colours", "version": 1}
        later = await bench.submit("classify", [RED], {"model": "colours"})
        assert later.parameters == {"model": "colours", "version": 2}

    run(main)


def test_a_refused_job_leaves_nothing(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        for parameters in ({"model": "nowhere"}, {"model": "colours", "top_k": 9}):
            with pytest.raises(Refusal):
                await bench.submit("classify", [RED, RED], parameters)
        with pytest.raises(BadInput, match="no image"):
            await bench.submit("classify", [], {"model": "colours"})
        assert bench.blobs() == set()
        assert bench.records.jobs(LOCAL_OWNER).total == 0

    run(main)


def test_run_answers_with_the_response_model(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        given = {"model": "colours", "top_k": 1}
        chosen = operations.operation("classify")
        options = operations.read_parameters(chosen, given)
        requested = await chosen.run(RequestContext(bench.app_state.inference), ImageSource(RED), options)
        assert [one.class_name for one in requested.body.predictions] == ["red"]
        with pytest.raises(BadInput, match="no operation"):
            operations.operation("paint")

    run(main)
