"""A mask of an earlier answer is a prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import toy_models, toy_sam
from tests.journeys.jobs.job_client import EVERY_TOPOLOGY
from tests.journeys.sam.mask_answers import DATA, IMAGE, INNER, PROMPTS, check_mask, expected, message, request
from tests.serving import serving
from tests.toy_sam import logits_of, shapes, tokens_of


@EVERY_TOPOLOGY
def test_a_mask_is_refined(client: httpx.Client) -> None:
    first = request(client, "/v1/masks", PROMPTS[:2], content=DATA)
    prompts = [
        {**PROMPTS[3], "mask_input": first["results"][0]["masks"][2]["id"]},
        PROMPTS[0],
        {"mask_input": first["results"][1]["masks"][0]["id"]},
    ]
    body = request(client, "/v1/masks", prompts, content=DATA)
    assert body["embedding"]["cached"] is True
    _check_refined(body["results"])
    # A refined mask can be refined again.
    deeper = [{**PROMPTS[0], "mask_input": body["results"][0]["masks"][0]["id"]}]
    assert request(client, "/v1/masks", deeper, content=DATA)["results"][0]["masks"][0]["area"] >= 0

    # Of another image's size, of an artifact that is no mask, of nothing.
    small = toy_models.encoded(shapes(200, 133))
    assert "prompt 0" in message(client, "/v1/masks", prompts[:1], content=small)
    drawn = request(client, "/v1/masks", PROMPTS[:1], content=DATA, params={"format": "png"})
    url = drawn["results"][0]["masks"][0]["segmentation"]
    for ident in (url.rsplit("/", 1)[1], first["id"], "1" * 36, "../../x", ""):
        said = message(client, "/v1/masks", [{**PROMPTS[0], "mask_input": ident}], content=DATA, status=404)
        assert "prompt 0" in said


def _check_refined(results: list[dict[str, Any]]) -> None:
    """Of the three prompts of test_a_mask_is_refined."""
    cells = toy_sam.cells_of(IMAGE)
    whole = logits_of(cells, tokens_of(IMAGE.size, PROMPTS[0]["points"]))[3]
    inner = logits_of(cells, tokens_of(IMAGE.size, (), INNER))[1]
    truths = [
        expected(PROMPTS[3], mask_input=whole),
        expected(PROMPTS[0]),
        expected({}, mask_input=inner),
    ]
    for result, truth in zip(results, truths, strict=True):
        for given, one in zip(result["masks"], truth, strict=True):
            check_mask(given, one)
    plain = expected(PROMPTS[3])
    assert any((one.mask != other.mask).any() for one, other in zip(truths[0], plain, strict=True))


@pytest.mark.acceptance
def test_refining_after_a_restart(sam_home: Path) -> None:
    with serving(sam_home) as server, server.client() as client:
        first = request(client, "/v1/masks", PROMPTS[:2], content=DATA)
    prompts = [
        {**PROMPTS[3], "mask_input": first["results"][0]["masks"][2]["id"]},
        PROMPTS[0],
        {"mask_input": first["results"][1]["masks"][0]["id"]},
    ]
    with serving(sam_home) as server, server.client() as client:
        body = request(client, "/v1/masks", prompts, params={"image_id": first["image"]["id"]})
        assert body["embedding"]["cached"] is False
        _check_refined(body["results"])
        assert client.delete(f"/v1/predictions/{first['id']}").status_code == 204
        said = message(client, "/v1/masks", prompts, params={"image_id": first["image"]["id"]}, status=404)
        assert "prompt 0" in said
        _check_refined(body["results"])
