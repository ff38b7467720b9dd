"""Prompts that make no sense are refused, and the refusal says which."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.journeys.jobs.job_client import EVERY_TOPOLOGY
from tests.journeys.sam.mask_answers import DATA, PROMPTS, counted, message, request, since


@pytest.mark.parametrize(
    "prompt",
    [
        {"points": [[-0.5, 5, 1]]},
        {"points": [[640, 5, 1]]},
        {"points": [[5, 427, 1]]},
        {"points": [[5, -1, 1]]},
        {"points": [[5, 5, 2]]},
        {"points": [[5, 5, -1]]},
        {"points": [[5, 5]]},
        {"points": [[5, "5", 1]]},
        {"points": [[5, True, 1]]},
        {"points": [5, 5, 1]},
        {"box": [10, 10, 10, 20]},
        {"box": [20, 10, 10, 20]},
        {"box": [10, 20, 20, 10]},
        {"box": [-1, 0, 10, 10]},
        {"box": [0, 0, 641, 10]},
        {"box": [0, 0, 10]},
        {"box": [0, 0, 10, None]},
        {"box": "all"},
        {"point": [[5, 5, 1]]},
        {"points": [[5, 5, 1]], "masks": []},
        {"points": []},
        {},
        [],
        "click",
        {"points": [[5, 5, 1]], "mask_input": 7},
    ],
    ids=str,
)
def test_a_wrong_prompt_is_named(client: httpx.Client, prompt: Any) -> None:
    assert "prompt 1" in message(client, "/v1/masks", [PROMPTS[0], prompt], content=DATA)


@EVERY_TOPOLOGY
def test_a_wrong_prompt_spoils_the_others(client: httpx.Client) -> None:
    before = counted(client)
    for path in ("/v1/masks", "/v1/cutouts"):
        assert "prompt 2" in message(client, path, [*PROMPTS[:2], {"points": [[640, 5, 1]]}], content=DATA)
    assert since(before, client)["prompts"] == 0


def test_what_is_no_list_of_prompts(client: httpx.Client) -> None:
    for text in ("{}", '"x"', "7", "[", "", '[{"points": [[NaN, 5, 1]]}]', '[{"points": [[1e400, 5, 1]]}]', "[" * 5000):
        said = message(client, "/v1/masks", content=DATA, params={"prompts": text})
        assert "prompts" in said or "prompt 0" in said
    many = [PROMPTS[0]] * 1001
    form = {"prompts": json.dumps(many), "model": "sam_toy"}
    refused = client.post("/v1/masks", files={"file": ("shapes.png", DATA)}, data=form)
    assert refused.status_code == 400
    assert "1000" in refused.json()["error"]["message"].replace(",", "")
    assert message(client, "/v1/masks", content=b"no image")
    assert message(client, "/v1/masks", [PROMPTS[0]])
    assert "nope" in message(client, "/v1/masks", content=DATA, params={"model": "nope"}, status=404)
    request(client, "/v1/masks", content=DATA, params={"model": "colours"}, status=400)
    request(client, "/v1/classify", content=DATA, status=400)
    assert "no image" in message(client, "/v1/masks", params={"image_id": "1" * 36}, status=404).lower()
