"""Requests for datasets that are refused at once: options, bodies, forms, sizes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.masks.rle import encode, to_coco
from tests.journeys.datasets.dataset_client import disc, png
from tests.journeys.datasets.stored_files import NOWHERE, SIX, ZIP, publish_toys, settled, stored
from tests.journeys.jobs.job_client import get, refusal
from tests.serving import Server, serving


@pytest.mark.parametrize(
    "options",
    [
        {"classes": '["background", " "]'},
        {"classes": json.dumps(["background", "x" * 101])},
        {"classes": '["background", "a", "a"]'},
        {"classes": json.dumps([str(n) for n in range(257)])},
        {"classes": '["background"]'},
        {"classes": '["background", 7]'},
        {"classes": "background, disc"},
        {"classes": '["background", "a\\u0000b"]'},
        {"background": "[1.5]"},
        {"background": '{"a": 1}'},
        {"name": ""},
        {"name": "a\0b"},
        {"name": "x" * 201},
        {"colour": "red"},
        {"priority": "11"},
        {"timeout_s": "-1"},
        {"webhook": "http://127.0.0.1:1/"},
        {"url": "http://example.org/a.zip"},
        {"samples": f'[{{"image_id": "{NOWHERE}", "mask": "x"}}]'},
        {"samples": '[{"image_id": "\\u0000", "mask": "x"}]'},
    ],
    ids=str,
)
def test_options_that_are_wrong_are_said_at_once(
    server: Server, client: httpx.Client, options: dict[str, str], six: str
) -> None:
    """Not by the job, later, and never as an internal error."""
    before, total = stored(server.home), get(client, "/v1/datasets")["total"]
    answer = client.post("/v1/datasets", data={"name": "wrong", **options}, files={"file": ("a.zip", SIX)})
    assert next(iter(options)) in refusal(answer, 400)[1] or "one of" in refusal(answer, 400)[1]
    assert get(client, "/v1/datasets")["total"] == total
    assert stored(server.home) == before


def test_nothing_or_too_much(server: Server, client: httpx.Client, six: str) -> None:
    before = settled(server.home)
    image_id = client.post("/v1/images", content=png(disc(0)[0])).json()["id"]
    rle = to_coco(encode(disc(0)[1]))

    def refused(status: int, **body: Any) -> str:
        return refusal(client.post("/v1/datasets", json={"name": "x", **body}), status)[1]

    assert "one of" in refused(400)
    assert "one of" in refused(400, url="http://example.org/a.zip", samples=[{"image_id": image_id, "mask": rle}])
    assert "samples" in refused(400, samples=[])
    assert "samples" in refused(400, samples=[{"image_id": image_id}])
    assert "samples" in refused(400, samples=[{"image_id": image_id, "mask": 7}])
    assert f"no image {NOWHERE}" in refused(404, samples=[{"image_id": NOWHERE, "mask": rle}])
    assert "samples[0].mask" in refused(404, samples=[{"image_id": image_id, "mask": NOWHERE}])
    wrong = {"size": [32, 128], "counts": [4096]}
    assert "samples[0].mask is 128 x 32" in refused(400, samples=[{"image_id": image_id, "mask": wrong}])
    lacks = {"samples": [{"image_id": image_id, "mask": rle, "class_name": "cell"}], "classes": ["no", "disc"]}
    assert "cell" in refused(400, **lacks)
    for odd in (" ", "x" * 101, ""):
        assert "class_name" in refused(400, samples=[{"image_id": image_id, "mask": rle, "class_name": odd}]), odd
    assert "NUL" in refused(400, samples=[{"image_id": image_id, "mask": rle, "class_name": "a\0b"}])
    assert "NUL" in refused(400, **{"a\0b": 1})
    answer = client.post("/v1/trainings", json={"dataset_id": "\0", "name": "x"})
    assert "NUL" in refusal(answer, 400)[1]
    assert "name" in refusal(client.post("/v1/datasets", json={"url": "http://example.org/"}), 400)[1]
    for body in (b"", b"[]", b"{", b"nothing", b"null"):
        answer = client.post("/v1/datasets", content=body, headers={"content-type": "application/json"})
        refusal(answer, 400)
    assert "JSON" in refusal(client.post("/v1/datasets", content=b"x", headers={"content-type": "text/plain"}), 400)[1]
    assert "JSON" in refusal(client.post("/v1/datasets"), 400)[1]
    assert stored(server.home) == before


FORM = {"content-type": "multipart/form-data; boundary=b"}
NAME = b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nx\r\n'
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.zip"\r\n\r\nPK\r\n'


@pytest.mark.parametrize(
    "body",
    [
        NAME + FILE,  # no end
        NAME + FILE + FILE + b"--b--\r\n",
        NAME + NAME + FILE + b"--b--\r\n",
        NAME + FILE.replace(b'"file"', b'"upload"') + b"--b--\r\n",
        NAME + b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n",
        NAME + b"--b\r\nContent-Disposition: attachment; name=x\r\n\r\nx\r\n--b--\r\n",
        NAME.replace(b"\r\nx\r\n", b"\r\n\xff\xfe\r\n") + FILE + b"--b--\r\n",
        b"no form at all",
        b"",
        b"--b--\r\n",
        NAME + b"--b--\r\n",
    ],
    ids=range(11),
)
def test_hostile_forms(server: Server, client: httpx.Client, body: bytes, six: str) -> None:
    before = settled(server.home)
    refusal(client.post("/v1/datasets", content=body, headers=FORM), 400)
    assert stored(server.home) == before


def test_a_form_with_too_much_in_its_fields(server: Server, client: httpx.Client, six: str) -> None:
    before = settled(server.home)
    answer = client.post("/v1/datasets", data={"name": "x" * 4_100_000}, files={"file": ("a.zip", SIX)})
    assert "fields" in refusal(answer, 413)[1]
    assert stored(server.home) == before


@pytest.mark.acceptance
def test_more_than_may_be_uploaded(tmp_path: Path, toy_artifacts: dict[str, Path]) -> None:
    home = publish_toys(tmp_path / "var", toy_artifacts)
    with serving(home, EKIBEN_DATASET_MB="1") as small, small.client() as client:
        before = settled(home)

        def endless() -> Iterator[bytes]:
            for _ in range(80):
                yield bytes(100_000)

        for more in ({"content": bytes(7_000_000)}, {"content": endless()}):  # by what it declares, and by what comes
            answer = client.post("/v1/datasets?name=x", headers=ZIP, **more)
            assert "EKIBEN_DATASET_MB" in refusal(answer, 413)[1]
        assert stored(home) == before
