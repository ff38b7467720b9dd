"""An image is decoded and encoded once, however often and by however many it is asked about."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from PIL import Image

from tests import toy_models
from tests.journeys.jobs.job_client import EVERY_TOPOLOGY
from tests.journeys.sam.mask_answers import check_results, counted, since
from tests.journeys.sam.mask_answers import request as post_masks
from tests.serving import TOPOLOGIES, Server
from tests.toy_sam import boxes_of, middle, shapes


@EVERY_TOPOLOGY
def test_an_embedding_is_made_once(client: httpx.Client) -> None:
    image = shapes(501, 333)
    jpeg = toy_models.encoded(image, "JPEG", quality=90)
    seen = Image.open(io.BytesIO(jpeg)).convert("RGB")
    prompts = [{"points": [[*middle(boxes_of(501, 333)[1]), 1]]}]
    options: dict[str, Any] = {"params": {"store": False}}

    before = counted(client)
    first = post_masks(client, "/v1/masks", prompts, content=jpeg, **options)
    check_results(first["results"], prompts, image=seen)
    assert first["embedding"]["cached"] is False
    assert first["embedding"]["encode_ms"] > 0
    assert since(before, client) == {"hit": 0, "miss": 1, "encoder": 1, "decoded": 1, "prompts": 1}
    assert counted(client)["embedding_bytes"] > 0

    # The same file again: nothing is decoded, nothing encoded.
    before = counted(client)
    second = post_masks(client, "/v1/masks", prompts, content=jpeg, **options)
    assert second["results"] == first["results"]
    assert second["embedding"] == {"cached": True, "encode_ms": first["embedding"]["encode_ms"]}
    assert since(before, client) == {"hit": 1, "miss": 0, "encoder": 0, "decoded": 0, "prompts": 1}

    # The same pixels in another file: decoded, not encoded; from then on not even decoded.
    png = toy_models.encoded(seen)
    for decoded in (1, 0):
        before = counted(client)
        again = post_masks(client, "/v1/masks", prompts, content=png, **options)
        assert again["results"] == first["results"]
        assert again["embedding"]["cached"] is True
        assert since(before, client) == {"hit": 1, "miss": 0, "encoder": 0, "decoded": decoded, "prompts": 1}

    # Other pixels of the same size are another image.
    before = counted(client)
    seen.putpixel((0, 0), (255, 255, 255))
    other = post_masks(client, "/v1/masks", prompts, content=toy_models.encoded(seen), **options)
    assert other["embedding"]["cached"] is False
    assert since(before, client)["encoder"] == 1


@pytest.mark.parametrize(
    ("sam_server", "topology"), [(name, name) for name in TOPOLOGIES], ids=list(TOPOLOGIES), indirect=["sam_server"]
)
def test_ten_prompts_at_once_encode_once(sam_server: Server, client: httpx.Client, topology: str) -> None:
    image = shapes(412, 618)
    data, box = toy_models.encoded(image), boxes_of(412, 618)[2]
    prompts = [{"points": [[box[0] + 10 + 9 * n, box[1] + 20 + 8 * n, 1]]} for n in range(10)]
    before = counted(client)

    def one(prompt: dict[str, Any]) -> dict[str, Any]:
        with sam_server.client() as own:
            return post_masks(own, "/v1/masks", [prompt], content=data, params={"store": False})

    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(one, prompts))
    for answer, prompt in zip(answers, prompts, strict=True):
        check_results(answer["results"], [prompt], image=image)
    after = since(before, client)
    gateways = 2 if topology == "two gateways" else 1
    assert 1 <= after["encoder"] <= gateways
    assert after["decoded"] <= gateways
    assert after["prompts"] == 10
