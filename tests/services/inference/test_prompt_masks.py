"""Masks without a transport, on the toy: what is answered, what is kept, and what is left behind."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from PIL import Image
from shapely.geometry import shape

from ekiben.errors import BadInput, DeadlineExceeded, NotFound, TooLarge
from ekiben.settings import Settings
from models.engine import engine
from models.masks.cut_style import CutStyle
from models.masks.cutouts import cut
from models.masks.rle import encode, from_coco, from_uncompressed
from models.sam.auto_options import AutoOptions
from services.app_state import AppState
from services.inference import mask_encoding as masks_module
from services.inference.context import RequestContext
from services.inference.pipeline import ImageSource
from services.inference.sam_model import earlier_logits
from tests import toy_sam
from tests.conftest import publish
from tests.operations import automatic, cut_out, prompt

SIZE = (320, 240)
BOXES = toy_sam.boxes_of(*SIZE)
PHOTO = toy_sam.shapes(*SIZE)
POINTS = [[*toy_sam.middle(box), 1] for box in BOXES]


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


SOURCE = ImageSource(png(PHOTO), "shapes.png")
OTHER = ImageSource(png(toy_sam.shapes(121, 160)), "other.png")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("masks")
    toy_sam.sam(folder / "toy")
    publish(folder / "var", "sam_toy", folder / "toy")
    return folder / "var"


Main = Callable[[AppState], Awaitable[None]]


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setattr(engine, "reclaim_memory", lambda: None)  # takes longer than most of these tests

    def run(main: Main, **settings: Any) -> None:
        async def whole() -> None:
            app_state = await AppState.start(Settings(home=home, threads=2, device="cpu", **settings))
            try:
                await main(app_state)
            finally:
                await app_state.stop()

        asyncio.run(whole())

    return run


def twin(points: Any = (), box: Any = None, **more: Any) -> list[toy_sam.Expected]:
    return toy_sam.expected_masks(PHOTO, points=points, box=box, **more)


def mask_of(body: dict[str, Any]) -> NDArray[np.bool_]:
    return from_uncompressed(body["segmentation"]).decode()


def kept(app_state: AppState) -> tuple[int, int, int]:
    """Images, predictions and files that are stored."""
    blobs = Path(app_state.settings.resolved_store_url)
    files = [path for path in blobs.rglob("*") if path.is_file() and "models" not in path.relative_to(blobs).parts]
    return app_state.records.images("local").total, app_state.records.predictions("local").total, len(files)


# ---- prompted ----


def test_masks_and_their_record(run: Callable[..., None]) -> None:
    async def main(app_state: AppState) -> None:
        prompts = [{"points": [POINTS[0]]}, {"box": list(BOXES[1])}]
        body = await prompt(app_state, SOURCE, prompts, model="sam_toy")
        for number, (result, expected) in enumerate(
            zip(body["results"], [twin([POINTS[0]]), twin(box=BOXES[1])], strict=True)
        ):
            assert result["prompt"] == number
            for one, want in zip(result["masks"], expected, strict=True):
                ys, xs = np.nonzero(want.mask)
                assert np.array_equal(mask_of(one), want.mask)
                assert one["area"] == want.mask.sum() > 0
                assert one["bbox"] == [xs.min(), ys.min(), xs.max() - xs.min(), ys.max() - ys.min()]
                assert one["predicted_iou"] == pytest.approx(want.predicted_iou, abs=1e-5)
                inner, outer = (want.logits > 1).sum(), (want.logits > -1).sum()
                assert one["stability_score"] == pytest.approx(inner / outer, abs=1e-3)
        row = app_state.records.prediction("local", body["id"])
        assert (row.task, row.model_name) == ("masks", "sam_toy")
        assert row.parameters == {"prompts": prompts, "multimask": True, "format": "rle"}
        assert row.result == {"results": body["results"]}
        assert row.top_confidence == max(m["predicted_iou"] for r in body["results"] for m in r["masks"])
        artifacts = {a.id: a for a in app_state.records.artifacts_of("local", body["id"])}
        assert set(artifacts) == {m["id"] for r in body["results"] for m in r["masks"]} and len(artifacts) == 6
        first = artifacts[body["results"][0]["masks"][0]["id"]]
        assert (first.kind, first.mime_type) == ("logits", "application/x-npy")
        logits = np.load(io.BytesIO(await app_state.recorder.read(first.storage_key, first.bytes, first.sha256)))
        cells, tokens = toy_sam.cells_of(PHOTO), toy_sam.tokens_of(SIZE, [POINTS[0]])
        assert logits.dtype == np.float32
        assert np.abs(logits - toy_sam.logits_of(cells, tokens)[1]).max() < 1e-3

    run(main)


def test_a_mask_is_refined(run: Callable[..., None]) -> None:
    async def main(app_state: AppState) -> None:
        first = await prompt(app_state, SOURCE, [{"points": [POINTS[0]]}], model="sam_toy")
        chosen = first["results"][0]["masks"][2]["id"]
        prompts = [{"points": [POINTS[1]]}, {"points": [POINTS[0]], "mask_input": chosen}, {"mask_input": chosen}]
        second = await prompt(app_state, SOURCE, prompts, model="sam_toy")
        cells, tokens = toy_sam.cells_of(PHOTO), toy_sam.tokens_of(SIZE, [POINTS[0]])
        earlier = toy_sam.logits_of(cells, tokens)[3]
        wanted = [twin([POINTS[1]]), twin([POINTS[0]], mask_input=earlier), twin(mask_input=earlier)]
        for result, expected in zip(second["results"], wanted, strict=True):
            for one, want in zip(result["masks"], expected, strict=True):
                differing = mask_of(one) != want.mask
                assert np.abs(want.logits[differing]).max(initial=0) < 1e-3
        assert second["embedding"]["cached"]

    run(main)


def test_mask_inputs_that_are_none(run: Callable[..., None]) -> None:
    async def main(app_state: AppState) -> None:
        body = await prompt(app_state, SOURCE, [{"points": [POINTS[0]]}], format="png", model="sam_toy")
        mask = body["results"][0]["masks"][0]
        image = mask["segmentation"].rsplit("/", 1)[-1]
        assert image != mask["id"]
        other = await prompt(app_state, OTHER, [{"points": [[60, 60, 1]]}], model="sam_toy")
        before = kept(app_state)
        wrong = [image, body["id"], body["image"]["id"], "", "../../x", "0"]
        for ident in wrong:
            with pytest.raises(NotFound, match=r"^prompt 1: there is no mask") as refused:
                await prompt(app_state, SOURCE, [{"points": [POINTS[0]]}, {"mask_input": ident}], model="sam_toy")
            assert len(refused.value.message) < 200
        for ident in ("x" * 5000, "\0", "\u00e9"):
            with pytest.raises(BadInput, match=r"^prompt 0: mask_input is the id"):
                await prompt(app_state, SOURCE, [{"mask_input": ident}], model="sam_toy")
        with pytest.raises(BadInput, match=r"^prompt 0: mask_input is of an image of 121 x 160, not 320 x 240$"):
            await prompt(app_state, SOURCE, [{"mask_input": other["results"][0]["masks"][0]["id"]}], model="sam_toy")
        with pytest.raises(NotFound, match="prompt 3"):
            await earlier_logits(RequestContext(app_state.inference, owner="somebody-else"), 3, mask["id"])
        logits, size = await earlier_logits(RequestContext(app_state.inference), 3, mask["id"])
        assert logits.shape == (256, 256) and size == SIZE
        assert kept(app_state) == before

    run(main)


def test_a_deleted_answer_s_masks_are_gone(run: Callable[..., None]) -> None:
    async def main(app_state: AppState) -> None:
        body = await prompt(app_state, SOURCE, [{"points": [POINTS[0]]}], model="sam_toy")
        app_state.records.delete_prediction("local", body["id"])
        with pytest.raises(NotFound, match="prompt 0"):
            await prompt(app_state, SOURCE, [{"mask_input": body["results"][0]["masks"][0]["id"]}], model="sam_toy")

    run(main)


def test_nothing_is_kept_where_nothing_is_to_be_stored(run: Callable[..., None]) -> None:
    async def main(app_state: AppState) -> None:
        before = kept(app_state)
        body = await prompt(app_state, SOURCE, [{"points": [POINTS[2]]}], format="png", store=False, model="sam_toy")
        assert (body["id"], body["image"]["id"]) == (None, None)
        for one, want in zip(body["results"][0]["masks"], twin([POINTS[2]]), strict=True):
            head, data = one["segmentation"].split(",")
            assert (one["id"], head) == (None, "data:image/png;base64")
            image = Image.open(io.BytesIO(base64.b64decode(data)))
            assert np.array_equal(np.asarray(image.convert("L")), want.mask * 255)
        auto = await automatic(app_state, SOURCE, AutoOptions(points_per_side=4), store=False, model="sam_toy")
        assert auto["id"] is None and auto["artifacts"] is None and auto["masks"]
        cutouts, files = await cut_out(app_state, SOURCE, [{"points": [POINTS[0]]}], store=False, model="sam_toy")
        assert [(c["id"], c["url"]) for c in cutouts["cutouts"]] == [(None, None)] and len(files) == 1
        assert kept(app_state) == before

    run(main)


def test_no_logits_no_ids(run: Callable[..., None]) -> None:
    async def main(app_state: AppState) -> None:
        body = await prompt(app_state, SOURCE, [{"points": [POINTS[2]]}], logits=False, model="sam_toy")
        assert [mask["id"] for mask in body["results"][0]["masks"]] == [None] * 3
        assert app_state.records.artifacts_of("local", body["id"]) == [] and body["id"]

    run(main)


def test_formats_say_the_same(run: Callable[..., None]) -> None:
    async def main(app_state: AppState) -> None:
        prompts = [{"points": [POINTS[0], [5, 5, 0]]}]
        want = twin(prompts[0]["points"])[0].mask
        drawn: dict[str, Any] = {}
        for format in ("rle", "coco", "polygons", "geojson", "png"):
            body = await prompt(app_state, SOURCE, prompts, format=format, store=format == "png", model="sam_toy")
            drawn[format] = body["results"][0]["masks"][0]["segmentation"]
        assert np.array_equal(from_uncompressed(drawn["rle"]).decode(), want)
        assert np.array_equal(from_coco(drawn["coco"]).decode(), want)
        rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
        assert np.array_equal(shapely.contains_xy(shape(drawn["geojson"]), columns + 0.5, rows + 0.5), want)
        assert isinstance(drawn["polygons"], list) and len(drawn["polygons"]) >= 1
        artifact = app_state.records.artifact("local", drawn["png"].rsplit("/", 1)[-1])
        image = Image.open(
            io.BytesIO(await app_state.recorder.read(artifact.storage_key, artifact.bytes, artifact.sha256))
        )
        assert np.array_equal(np.asarray(image.convert("L")) > 0, want) and artifact.kind == "mask"

    run(main)


@pytest.mark.parametrize(
    "wrong", [{"points": [[0, 240, 1]]}, {"box": [5, 5, 5, 9]}, {}, {"points": [[0, 0, 7]]}], ids=str
)
def test_a_refusal_leaves_nothing(run: Callable[..., None], wrong: Any) -> None:
    async def main(app_state: AppState) -> None:
        before = kept(app_state)
        with pytest.raises(BadInput, match=r"^prompt 1"):
            await prompt(app_state, SOURCE, [{"points": [POINTS[0]]}, wrong], model="sam_toy")
        with pytest.raises(BadInput, match=r"^prompt 0"):
            await cut_out(app_state, SOURCE, [wrong], model="sam_toy")
        assert kept(app_state) == before

    run(main)


def test_a_failure_after_the_inference_leaves_nothing(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of ink")

    async def main(app_state: AppState) -> None:
        before = kept(app_state)
        monkeypatch.setattr(masks_module, "segmentation", broken)
        monkeypatch.setattr(masks_module, "cut", broken)
        for format in ("rle", "png"):
            with pytest.raises(RuntimeError, match="out of ink"):
                await prompt(app_state, SOURCE, [{"points": [POINTS[0]]}], format=format, model="sam_toy")
        with pytest.raises(RuntimeError, match="out of ink"):
            await automatic(app_state, SOURCE, AutoOptions(points_per_side=4), model="sam_toy")
        with pytest.raises(RuntimeError, match="out of ink"):
            await cut_out(app_state, SOURCE, [{"points": [POINTS[0]]}], model="sam_toy")
        assert kept(app_state) == before

    run(main)


# ---- automatic ----


def test_automatic_masks_and_their_images(run: Callable[..., None]) -> None:
    async def main(app_state: AppState) -> None:
        options = AutoOptions(preset="fast", points_per_side=8)
        body = await automatic(app_state, SOURCE, options, model="sam_toy")
        assert body["parameters"] == options.parameters and body["parameters"]["points_per_side"] == 8
        areas = [mask["area"] for mask in body["masks"]]
        assert areas == sorted(areas, reverse=True)
        masks = [mask_of(mask) for mask in body["masks"]]
        for box in BOXES:  # each rectangle is found
            x, y = toy_sam.middle(box)
            expected = [one.mask for one in twin([[x, y, 1]])]
            assert any(np.array_equal(mask, want) for mask in masks for want in expected), box
        for mask, body_mask in zip(masks, body["masks"], strict=True):
            ((x, y),) = body_mask["point_coords"]
            assert mask[int(y), int(x)] and body_mask["crop_box"] == [0, 0, *SIZE]
            assert body_mask["predicted_iou"] > 0.88 and body_mask["stability_score"] >= 0.95
        row = app_state.records.prediction("local", body["id"])
        assert row.task == "auto_masks" and row.parameters == {**options.parameters, "format": "rle"}
        artifacts = {a.kind: a for a in app_state.records.artifacts_of("local", body["id"])}
        assert set(artifacts) == {"color", "overlay"}
        assert body["artifacts"] == {kind: f"/v1/artifacts/{a.id}" for kind, a in artifacts.items()}
        color = Image.open(
            io.BytesIO(
                await app_state.recorder.read(
                    artifacts["color"].storage_key, artifacts["color"].bytes, artifacts["color"].sha256
                )
            )
        )
        assert color.size == SIZE
        assert np.array_equal(np.asarray(color).any(axis=2), np.any(masks, axis=0))

    run(main)


def test_automatic_masks_have_a_deadline_of_their_own(run: Callable[..., None]) -> None:
    async def main(app_state: AppState) -> None:
        before = kept(app_state)
        await prompt(app_state, SOURCE, store=False, model="sam_toy")
        with pytest.raises(DeadlineExceeded):
            await automatic(app_state, SOURCE, AutoOptions(points_per_side=128), model="sam_toy")
        with pytest.raises(DeadlineExceeded):
            await cut_out(app_state, SOURCE, None, AutoOptions(points_per_side=128), model="sam_toy")
        assert kept(app_state) == before

    run(main, auto_timeout_s=0.15)


# ---- cut-outs ----


def test_the_best_mask_of_each_prompt_is_cut(run: Callable[..., None]) -> None:
    async def main(app_state: AppState) -> None:
        prompts = [{"points": [POINTS[n]]} for n in (3, 0, 2)]
        style = CutStyle("box", 3)
        for multimask in (True, False):
            body, files = await cut_out(app_state, SOURCE, prompts, style=style, multimask=multimask, model="sam_toy")
            assert [one["prompt"] for one in body["cutouts"]] == [0, 1, 2]
            for one, file, number in zip(body["cutouts"], files, (3, 0, 2), strict=True):
                best = max(twin([POINTS[number]], multimask=multimask), key=lambda mask: mask.predicted_iou)
                made = cut(PHOTO, encode(best.mask), style)
                read = Image.open(io.BytesIO(file))
                assert (read.size, read.tobytes()) == (made.size, made.tobytes())
                assert (one["width"], one["height"]) == made.size and one["area"] == best.mask.sum()
                ys, xs = np.nonzero(best.mask)
                assert one["bbox"][:2] == [max(0, xs.min() - 3), max(0, ys.min() - 3)]
                assert one["url"] == f"/v1/artifacts/{one['id']}"
                stored = app_state.records.artifact("local", one["id"])
                assert (
                    stored.kind,
                    await app_state.recorder.read(stored.storage_key, stored.bytes, stored.sha256),
                ) == ("cutout", file)
        row = app_state.records.prediction("local", body["id"])
        assert row.task == "cutouts" and row.parameters["prompts"] == prompts and row.parameters["padding_px"] == 3

    run(main)


def test_cutouts_of_everything(run: Callable[..., None]) -> None:
    async def main(app_state: AppState) -> None:
        options = AutoOptions(points_per_side=8)
        auto = await automatic(app_state, SOURCE, options, store=False, model="sam_toy")
        body, files = await cut_out(app_state, SOURCE, None, options, model="sam_toy")
        assert [one["area"] for one in body["cutouts"]] == [mask["area"] for mask in auto["masks"]]
        assert {one["prompt"] for one in body["cutouts"]} == {None} and len(files) == len(auto["masks"]) > 3
        third = body["cutouts"][2]["area"]
        some, _ = await cut_out(app_state, SOURCE, None, options, min_pixels=third, model="sam_toy")
        assert [one["area"] for one in some["cutouts"]] == [a for a in (m["area"] for m in auto["masks"]) if a >= third]
        two, _ = await cut_out(app_state, SOURCE, None, options, limit=2, model="sam_toy")
        assert [one["area"] for one in two["cutouts"]] == [mask["area"] for mask in auto["masks"][:2]]
        none, files = await cut_out(app_state, SOURCE, None, options, min_pixels=64_000_000, model="sam_toy")
        assert none["cutouts"] == files == [] and none["id"] is not None

    run(main)


def test_cutouts_are_bounded_together(run: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks_module, "MAX_CUT_PIXELS", 2 * SIZE[0] * SIZE[1])

    async def main(app_state: AppState) -> None:
        prompts = [{"points": [point]} for point in POINTS[:3]]
        full = CutStyle("full")
        before = kept(app_state)
        with pytest.raises(TooLarge, match="3 cut-outs of this size"):
            await cut_out(app_state, SOURCE, prompts, style=full, model="sam_toy")
        assert kept(app_state) == before
        _, files = await cut_out(app_state, SOURCE, prompts[:2], style=full, model="sam_toy")
        assert [Image.open(io.BytesIO(file)).size for file in files] == [SIZE] * 2

    run(main)


def test_the_model_that_is_meant_is_named(run: Callable[..., None]) -> None:
    async def main(app_state: AppState) -> None:
        with pytest.raises(
            NotFound, match=r"^there is no model sam_vit_b; there is: sam_toy; POST /v1/models/sam_vit_b/provision "
        ):
            await prompt(app_state, SOURCE)
        with pytest.raises(NotFound, match=r"^there is no model other; there is: sam_toy$"):
            await prompt(app_state, SOURCE, model="other")

    run(main)
