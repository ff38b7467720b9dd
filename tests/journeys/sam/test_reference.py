"""What Segment Anything answers over HTTP is what the package answers in this process, with the same weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
pytest.importorskip("cv2")  # the package's small regions need it

from export.sam.recipe import random_sam  # noqa: E402
from export.sam.reference_package import Sam  # noqa: E402
from tests.conftest import publish  # noqa: E402
from tests.export.narrow_export import narrow_export  # noqa: E402
from tests.journeys.process_memory import MB, many_images, metrics, pss_mb, rss_mb, with_peak  # noqa: E402
from tests.journeys.sam.comparison import MODEL, compare_automatic, compare_prompts, forms, jpeg  # noqa: E402
from tests.journeys.sam.mask_answers import request  # noqa: E402
from tests.serving import Server, serving  # noqa: E402

PHOTOS = ("dog.jpg", "dogs.jpg", "groceries.jpg", "truck.jpg")


@dataclass(frozen=True)
class Served:
    """A network, its artifact, and a server that has it."""

    sam: Sam
    artifact: Path
    server: Server

    def client(self) -> httpx.Client:
        return self.server.client(timeout=600.0)


@contextmanager
def served(sam: Sam, artifact: Path, folder: Path) -> Iterator[Served]:
    publish(folder / "var", MODEL, artifact)
    with serving(folder / "var", EKIBEN_TIMEOUT_S="300", EKIBEN_AUTO_TIMEOUT_S="600") as server:
        yield Served(sam, artifact, server)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The real decoder behind a small encoder."""
    export = narrow_export(tmp_path_factory)
    with served(export.network, export.artifact, tmp_path_factory.mktemp("narrow")) as running:
        yield running


@pytest.fixture(scope="module")
def vit_b(vit_b_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The published architecture with the random weights that the export gives it."""
    with served(random_sam("vit_b", 0), vit_b_artifact, tmp_path_factory.mktemp("vit_b")) as running:
        yield running


@pytest.mark.parametrize("form", ["landscape", "portrait"])
def test_prompts(narrow: Served, shared_data: Path, form: str) -> None:
    data = forms((shared_data / "photos" / "dog.jpg").read_bytes())[form]
    with narrow.client() as client:
        seen = compare_prompts(client, narrow.sam, data)
    print(f"dog.jpg, {form}: {seen}")
    assert (seen.masks, seen.off) == (32, [])


@pytest.mark.acceptance
@pytest.mark.parametrize(
    ("form", "options", "least"),
    [
        ("landscape", {"points_per_side": 5, "min_mask_region_area": 400}, 5),
        ("portrait", {"points_per_side": 4, "crop_n_layers": 1, "crop_n_points_downscale_factor": 2}, 5),
    ],
    ids=["small regions", "crops of a turned image"],
)
def test_automatic_masks(narrow: Served, shared_data: Path, form: str, options: dict[str, int], least: int) -> None:
    data = forms((shared_data / "photos" / "dog.jpg").read_bytes())[form]
    with narrow.client() as client:
        seen = compare_automatic(client, narrow.sam, data, **options)
    print(f"dog.jpg, {form}, {options}: {seen}")
    assert seen.off == []
    assert seen.masks >= least


@pytest.mark.acceptance
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("photo", PHOTOS)
def test_every_photo_in_every_form(vit_b: Served, shared_data: Path, photo: str) -> None:
    off = []
    with vit_b.client() as client:
        for form, data in forms((shared_data / "photos" / photo).read_bytes()).items():
            seen = compare_prompts(client, vit_b.sam, data)
            print(f"{photo}, {form}: {seen}")
            off += [f"{form}: {line}" for line in seen.off]
            assert seen.masks == 32
    assert off == []


@pytest.mark.acceptance
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "options",
    [{}, {"crop_n_layers": 1}, {"min_mask_region_area": 500}],
    ids=["whole image", "a layer of crops", "small regions"],
)
def test_every_automatic_mask(vit_b: Served, shared_data: Path, options: dict[str, int]) -> None:
    data = (shared_data / "photos" / "dog.jpg").read_bytes()
    with vit_b.client() as client:
        seen = compare_automatic(client, vit_b.sam, data, points_per_side=16, **options)
    print(f"dog.jpg, 16 x 16, {options}: {seen}")
    assert seen.off == []
    assert seen.masks >= 10


CACHE_MB = 48
NOISE_MB = 80
"""One level differs from the next by up to 50 MB without a trend."""
OTHER_MB = 250
"""What a serving process has besides the model's sessions and the embeddings it keeps: the interpreter and its
libraries (about 120), requests under way. An encoder's run takes 300 more, which are to go back at its end."""


@pytest.mark.acceptance
@pytest.mark.timeout(1800)
def test_a_hundred_images_do_not_pile_up(vit_b: Served, shared_data: Path, tmp_path: Path) -> None:
    images = many_images(shared_data / "photos", 100)
    assert len(set(images)) == 100
    publish(tmp_path / "var", MODEL, vit_b.artifact)
    with serving(tmp_path / "var", EKIBEN_CACHE_MB=str(CACHE_MB), EKIBEN_TIMEOUT_S="300") as server:

        def ask_all(some: Sequence[bytes]) -> None:
            with server.client(timeout=600.0) as client:
                for data in some:
                    for x in (150, 350):
                        request(client, "/v1/masks", [{"points": [[x, 200, 1]]}], params={"model": MODEL}, content=data)

        levels = []
        for part in (images[:20], images[20:]):
            with ThreadPoolExecutor(2) as two:
                list(two.map(ask_all, (part[::2], part[1::2])))
            levels.append(sum(pss_mb(pid) for pid in server.worker_pids()))
        with server.client() as client:
            model = client.get(f"/v1/models/{MODEL}").json()["memory_bytes"] / MB
            numbers = metrics(client)
    held, runs = numbers["ekiben_embedding_bytes"] / MB, numbers[f'ekiben_encoder_runs_total{{model="{MODEL}"}}']
    print(f"PSS after 20 and 100 images {levels} MB; model {model:.0f} MB, embeddings {held:.1f} MB, {runs} runs")
    assert runs == 100
    assert 0 < held <= CACHE_MB * 1.048576
    assert levels[1] - levels[0] <= NOISE_MB
    assert levels[1] <= model + CACHE_MB + OTHER_MB


@pytest.mark.acceptance
@pytest.mark.timeout(1800)
def test_automatic_masks_of_a_large_image_need_little_memory(vit_b: Served, shared_data: Path) -> None:
    """The reference makes full-size logits of 64 points at once: 2.6 GB here."""
    with Image.open(shared_data / "photos" / "truck.jpg") as opened:
        data = jpeg(opened.convert("RGB").resize((2250, 1500), Image.Resampling.BICUBIC))
    (pid,) = vit_b.server.worker_pids()
    with vit_b.client() as client:
        small = (shared_data / "photos" / "dog.jpg").read_bytes()
        request(client, "/v1/masks", params={"model": MODEL, "store": False}, content=small)  # all sessions have run

        def automatic() -> Any:
            return request(client, "/v1/masks/auto", params={"model": MODEL, "preset": "fast"}, content=data)

        before = rss_mb(pid)
        answer, peak = with_peak(pid, automatic)
        between = rss_mb(pid)
        _, second = with_peak(pid, automatic)
    print(
        f"{len(answer['masks'])} masks; {peak - before:.0f} MB above {before:.0f} MB with a run of the encoder, then "
        f"{second - between:.0f} MB above {between:.0f} MB without"
    )
    assert (answer["image"]["width"], answer["image"]["height"]) == (2250, 1500)
    assert len(answer["masks"]) >= 10
    assert peak - before < 600
    assert second - between < 600
