"""Batches: how the images may come, what of them fails, and the results as pages, lines and archives."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import httpx
import pytest

from tests import toy_models
from tests.journeys.jobs.job_client import (
    EVERY_TOPOLOGY,
    OVER,
    accepted,
    all_items,
    batch,
    blobs,
    finished,
    get,
    plain,
    refusal,
)
from tests.serving import Server
from tests.toy_sam import shapes

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
NAMES = list(COLOURS)
TEXT = b"this is no image"
UNKNOWN = "01890000-0000-7000-8000-000000000000"


def coloured(number: int) -> tuple[str, bytes]:
    """Image ``number``: red, green and blue in turns, each of a width of its own."""
    name = NAMES[number % 3]
    return f"{number:03d} {name}.png", toy_models.encoded(toy_models.solid(COLOURS[name], 20 + number, 16))


def archived(entries: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return out.getvalue()


def best(item: dict[str, Any]) -> str:
    return str(item["result"]["predictions"][0]["class_name"])


@EVERY_TOPOLOGY
def test_one_bad_image_among_good_ones(jobs: httpx.Client) -> None:
    """Every gateway knows of it; the bad one fails alone, with what its own request would have said."""
    images = [coloured(n) for n in range(25)]
    images[7] = ("notes.png", TEXT)
    job_id = batch(jobs, images, top_k=1)
    job = finished(jobs, job_id)
    assert (job["kind"], job["operation"], job["state"], job["progress"]) == ("batch", "classify", "succeeded", 1.0)
    assert job["counts"] == {"total": 25, "done": 25, "failed": 1, "running": 0}
    assert job["parameters"] == {"model": "colours", "version": 1, "top_k": 1}
    assert job["images_per_s"] > 0 and job["time_left_s"] is None

    items = all_items(jobs, job_id)
    assert [item["position"] for item in items] == list(range(25))
    assert [item["filename"] for item in items] == [name for name, _ in images]
    for number, item in enumerate(items):
        if number == 7:
            continue
        assert (item["state"], item["error"], item["attempts"]) == ("succeeded", None, 1)
        assert best(item) == NAMES[number % 3]
        assert item["result"]["image"] == {
            "id": item["image_id"],
            "width": 20 + number,
            "height": 16,
            "range": [0, 255],
        }
        assert item["result"]["id"] == item["prediction_id"]
    assert len({item["prediction_id"] for item in items}) == 25  # None is one of them
    bad = items[7]
    assert (bad["state"], bad["prediction_id"], bad["result"]) == ("failed", None, None)
    direct = refusal(jobs.post("/v1/classify?model=colours", content=TEXT), 400)
    assert (bad["error"]["code"], bad["error"]["message"]) == direct
    row = get(jobs, f"/v1/predictions/{items[24]['prediction_id']}")
    assert (row["job_id"], row["top_class"]) == (job_id, NAMES[24 % 3])
    assert plain(items[3]["result"]) == plain(
        jobs.post("/v1/classify?model=colours&top_k=1", content=images[3][1]).json()
    )

    # Pages and states.
    assert get(jobs, f"/v1/jobs/{job_id}/items?state=failed") == {"items": [bad], "total": 1, "page": 1, "limit": 50}
    assert get(jobs, f"/v1/jobs/{job_id}/items?state=queued")["items"] == []
    page = get(jobs, f"/v1/jobs/{job_id}/items?limit=10&page=3")
    assert (page["items"], page["total"], page["page"], page["limit"]) == (items[20:], 25, 3, 10)
    assert get(jobs, f"/v1/jobs/{job_id}/items?state=succeeded&limit=3")["items"] == items[:3]
    assert jobs.get(f"/v1/jobs/{job_id}/items?state=good").status_code == 400

    # The result is the same items, in each of its forms.
    assert get(jobs, f"/v1/jobs/{job_id}/result?limit=200") == {"items": items, "total": 25, "page": 1, "limit": 200}
    assert get(jobs, f"/v1/jobs/{job_id}/result?limit=10&page=2")["items"] == items[10:20]
    lines = jobs.get(f"/v1/jobs/{job_id}/result", headers={"accept": "application/x-ndjson"})
    assert lines.headers["content-type"] == "application/x-ndjson"
    assert lines.headers["content-disposition"] == f'attachment; filename="{job_id}.jsonl"'
    assert [json.loads(line) for line in lines.text.splitlines()] == items
    answer = jobs.get(f"/v1/jobs/{job_id}/result", headers={"accept": "application/zip"})
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == ["job.json", "results.jsonl"]
        assert json.loads(archive.read("job.json")) == job
        assert [json.loads(line) for line in archive.read("results.jsonl").splitlines()] == items


def test_the_files_are_in_the_archive(sam_server: Server, jobs: httpx.Client) -> None:
    before = blobs(sam_server.home)
    images = [("a/red.png", coloured(0)[1]), ("two words & more.png", coloured(1)[1]), ("red.png", coloured(2)[1])]
    job_id = batch(jobs, images, "segment", "areas")
    finished(jobs, job_id)
    items = all_items(jobs, job_id)
    answer = jobs.get(f"/v1/jobs/{job_id}/result", headers={"accept": "application/zip"})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        folders = ["00000-red", "00001-two_words_more", "00002-red"]
        names = [f"{folder}/{kind}.png" for folder in folders for kind in ("color", "mask", "overlay")]
        assert sorted(archive.namelist()) == [*names, "job.json", "results.jsonl"]
        for folder, item in zip(folders, items, strict=True):
            for kind, url in item["result"]["artifacts"].items():
                assert archive.read(f"{folder}/{kind}.png") == jobs.get(url).content
    # All of it goes with the job.
    assert len(blobs(sam_server.home) - before) == 3 * 4
    assert jobs.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert blobs(sam_server.home) == before
    for item in items:
        assert jobs.get(f"/v1/predictions/{item['prediction_id']}").status_code == 404
        assert jobs.get(f"/v1/images/{item['image_id']}").status_code == 404


def test_a_zip(jobs: httpx.Client) -> None:
    """By their names; what systems put beside the images, and folders, are passed over."""
    entries = {
        "holiday/b.png": coloured(1)[1],
        "holiday/a.png": coloured(0)[1],
        "holiday/": b"",
        "__MACOSX/holiday/._a.png": b"x",
        "holiday/.DS_Store": b"x",
        "notes.txt": TEXT,
        "c.png": coloured(2)[1],
    }
    parameters = {"operation": "classify", "parameters": json.dumps({"model": "colours"})}
    raw = jobs.post(
        "/v1/batches", params=parameters, content=archived(entries), headers={"content-type": "application/zip"}
    )
    form = jobs.post("/v1/batches", data=parameters, files={"archive": ("holiday.zip", archived(entries))})
    for job_id in (accepted(raw), accepted(form)):
        assert finished(jobs, job_id)["counts"]["failed"] == 1
        items = all_items(jobs, job_id)
        assert [item["filename"] for item in items] == ["c.png", "a.png", "b.png", "notes.txt"]
        assert [best(item) for item in items[:3]] == ["blue", "red", "green"]
        assert items[3]["error"]["code"] == "bad_image"


def test_a_damaged_entry_fails_alone(jobs: httpx.Client) -> None:
    data = archived(
        {"a.png": coloured(0)[1], "b.png": toy_models.encoded(toy_models.noise(64, 64)), "c.png": coloured(2)[1]}
    )
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        place = archive.getinfo("b.png").header_offset
    torn = data[: place + 200] + bytes(100) + data[place + 300 :]
    with zipfile.ZipFile(io.BytesIO(torn)) as archive:
        assert archive.testzip() == "b.png"
    job_id = accepted(
        jobs.post(
            "/v1/batches",
            params={"operation": "classify", "parameters": json.dumps({"model": "colours"})},
            content=torn,
            headers={"content-type": "application/zip"},
        )
    )
    assert finished(jobs, job_id)["counts"] == {"total": 3, "done": 3, "failed": 1, "running": 0}
    items = all_items(jobs, job_id)
    assert [item["state"] for item in items] == ["succeeded", "failed", "succeeded"]
    assert "archive" in items[1]["error"]["message"]


def test_stored_images(jobs: httpx.Client) -> None:
    ids = [jobs.post("/v1/images", content=coloured(n)[1]).json()["id"] for n in range(3)]
    wanted = [ids[2], ids[0], ids[1], ids[0]]
    body = {"operation": "classify", "image_ids": wanted, "parameters": {"model": "colours", "top_k": 1}, "priority": 7}
    job_id = accepted(jobs.post("/v1/batches", json=body))
    assert finished(jobs, job_id)["priority"] == 7
    items = all_items(jobs, job_id)
    assert [item["image_id"] for item in items] == wanted
    assert [item["result"]["image"]["id"] for item in items] == wanted
    assert [best(item) for item in items] == ["blue", "red", "green", "red"]
    assert len({item["prediction_id"] for item in items}) == 4
    form = {"operation": "classify", "image_ids": json.dumps(ids[:1]), "parameters": '{"model":"colours"}'}
    job_two = accepted(jobs.post("/v1/batches", files={name: (None, value) for name, value in form.items()}))
    finished(jobs, job_two)
    # They were there before the job, and stay.
    for one in (job_id, job_two):
        assert jobs.delete(f"/v1/jobs/{one}").status_code == 204
    assert [jobs.get(f"/v1/images/{image_id}").status_code for image_id in ids] == [200] * 3
    assert [jobs.delete(f"/v1/images/{image_id}").status_code for image_id in ids] == [204] * 3


def test_nothing_stored(sam_server: Server, jobs: httpx.Client) -> None:
    before, totals = blobs(sam_server.home), [get(jobs, f"/v1/{what}")["total"] for what in ("images", "predictions")]
    job_id = batch(jobs, [coloured(n) for n in range(5)], "segment", "areas", store="false")
    assert finished(jobs, job_id)["store"] is False
    items = all_items(jobs, job_id)
    for number, item in enumerate(items):
        assert (item["prediction_id"], item["image_id"], item["result"]["artifacts"]) == (None, None, None)
        direct = jobs.post("/v1/segment?model=areas&store=false", content=coloured(number)[1]).json()
        assert plain(item["result"]) == plain(direct)
    assert [get(jobs, f"/v1/{what}")["total"] for what in ("images", "predictions")] == totals
    assert jobs.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert blobs(sam_server.home) == before


def test_a_bound_of_its_own(jobs: httpx.Client) -> None:
    """No more of them are claimed at once, however many items a worker may run."""
    images = [(f"{n}.png", toy_models.encoded(toy_models.noise(500 + n, 400))) for n in range(6)]
    data = {"operation": "segment", "parameters": '{"model": "areas"}', "items_at_once": "2"}
    job_id = accepted(jobs.post("/v1/batches", data=data, files=[("files", image) for image in images]))
    seen = set()
    while (job := get(jobs, f"/v1/jobs/{job_id}"))["state"] not in OVER:
        seen.add(job["counts"]["running"])
    assert job["items_at_once"] == 2
    assert job["counts"] == {"total": 6, "done": 6, "failed": 0, "running": 0}
    assert max(seen) <= 2


def test_all_of_them_bad(jobs: httpx.Client) -> None:
    job = finished(jobs, batch(jobs, [("a.png", TEXT), ("b.png", TEXT)]), state="failed")
    assert job["error"]["code"] == "all_items_failed"
    assert job["counts"] == {"total": 2, "done": 2, "failed": 2, "running": 0}
    page = get(jobs, f"/v1/jobs/{job['id']}/result")
    assert [item["error"]["code"] for item in page["items"]] == ["bad_image"] * 2


def test_masks_and_cutouts_of_many(jobs: httpx.Client) -> None:
    images = [(f"{n}.png", toy_models.encoded(shapes(160 + 8 * n, 120))) for n in range(3)]
    point = [{"points": [[30, 30, 1]]}]
    requested = {
        operation: batch(jobs, images, operation, "sam_toy", **more)
        for operation, more in (
            ("masks", {"prompts": point, "multimask": False}),
            ("auto_masks", {"points_per_side": 5}),
            ("cutouts", {"prompts": point}),
        )
    }
    direct: dict[str, tuple[str, dict[str, Any]]] = {
        "masks": ("/v1/masks", {"prompts": json.dumps(point), "multimask": False}),
        "auto_masks": ("/v1/masks/auto", {"points_per_side": 5}),
        "cutouts": ("/v1/cutouts", {"prompts": json.dumps(point)}),
    }
    for operation, job_id in requested.items():
        finished(jobs, job_id)
        path, params = direct[operation]
        for item, (_, data) in zip(all_items(jobs, job_id), images, strict=True):
            first = jobs.post(path, params={"model": "sam_toy", **params}, content=data).json()
            assert plain(item["result"]) == plain(first)


def test_what_is_refused(toy_server: Server, waiting: httpx.Client) -> None:
    before, total = blobs(toy_server.home), get(waiting, "/v1/jobs")["total"]
    red, green = coloured(0), coloured(1)

    def refused(status: int, data: dict[str, Any] | None = None, images: Any = (red, green)) -> str:
        form = {"operation": "classify", "parameters": '{"model": "colours"}', **(data or {})}
        form = {name: value for name, value in form.items() if value is not None}
        parts = [(name, (None, value)) for name, value in form.items()]
        answer = waiting.post("/v1/batches", files=[*parts, *(("files", image) for image in images)])
        return refusal(answer, status)[1]

    assert "no image" in refused(400, images=())
    assert "operation" in refused(400, {"operation": "describe"})
    assert "operation is missing" in refused(400, {"operation": None})
    assert "colour" in refused(400, {"colour": "red"})
    assert "topk" in refused(400, {"parameters": '{"model": "colours", "topk": 1}'})
    assert "top_k" in refused(400, {"parameters": '{"model": "colours", "top_k": 5}'})
    assert "not JSON" in refused(400, {"parameters": "{model"})
    assert "parameters" in refused(400, {"parameters": "[1]"})
    assert "store" in refused(400, {"parameters": '{"model": "colours", "store": false}'})
    assert "image_id" in refused(400, {"parameters": f'{{"model": "colours", "image_id": "{UNKNOWN}"}}'})
    assert "not both" in refused(400, {"image_ids": f'["{UNKNOWN}"]'})
    assert UNKNOWN in refused(404, {"image_ids": f'["{UNKNOWN}"]'}, ())
    assert "nobody" in refused(404, {"parameters": '{"model": "nobody"}'})
    assert "priority" in refused(400, {"priority": "10"})
    assert "EKIBEN_WEBHOOK_SECRET" in refused(400, {"webhook": "http://127.0.0.1:1/"})
    assert "image_ids" in refused(400, {"image_ids": "7"}, ())
    answer = waiting.post("/v1/batches", files=[("file", red), ("operation", (None, b"classify"))])
    assert "'files'" in refusal(answer, 400)[1]
    zipped = {"content-type": "application/zip"}
    for data in (b"PK no zip", b"", archived({"a.png": red[1]})[:-30]):
        answer = waiting.post("/v1/batches?operation=classify", content=data, headers=zipped)
        assert "ZIP" in refusal(answer, 400)[1]
    answer = waiting.post("/v1/batches?operation=classify", content=archived({"a/": b""}), headers=zipped)
    assert refusal(answer, 400)[0] == "bad_request"
    for body in ("{", "[]", "7"):
        answer = waiting.post("/v1/batches", content=body, headers={"content-type": "application/json"})
        assert "JSON" in refusal(answer, 400)[1]
    assert refusal(waiting.post("/v1/batches", content=red[1], headers={"content-type": "image/png"}), 400)
    form = {"operation": "classify", "parameters": '{"model": "colours"}'}
    answer = waiting.post("/v1/batches", data=form, files={"files": red}, headers={"Idempotency-Key": "two words"})
    assert "Idempotency-Key" in refusal(answer, 400)[1]
    assert get(waiting, "/v1/jobs")["total"] == total
    assert blobs(toy_server.home) == before


@pytest.mark.parametrize("count", [2, 20])
def test_a_key_gives_one_batch(toy_server: Server, waiting: httpx.Client, count: int) -> None:
    before = blobs(toy_server.home)

    def request(images: list[tuple[str, bytes]]) -> httpx.Response:
        data = {"operation": "classify", "parameters": '{"model": "colours"}'}
        files = [("files", image) for image in images]
        return waiting.post("/v1/batches", data=data, files=files, headers={"Idempotency-Key": f"batch-{count}"})

    images = [coloured(n) for n in range(count)]
    first = request(images)
    again = request(images)
    assert again.json() == first.json()
    assert ("idempotency-replayed" in first.headers, again.headers["idempotency-replayed"]) == (False, "true")
    assert len(blobs(toy_server.home) - before) == count
    for other in (images[::-1], images[:-1], [("x.png", images[0][1]), *images[1:]]):
        assert refusal(request(other), 409)[0] == "idempotency_key_reused"
    assert len(blobs(toy_server.home) - before) == count
    waiting.post(f"/v1/jobs/{accepted(first)}/cancel")
    states = [item["state"] for item in all_items(waiting, accepted(first))]
    assert states == ["cancelled"] * count
    assert waiting.delete(f"/v1/jobs/{accepted(first)}").status_code == 204
    assert blobs(toy_server.home) == before
