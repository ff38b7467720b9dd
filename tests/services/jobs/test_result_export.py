"""All results of a job at once: the lines, the files, and what becomes of a download that is broken off."""

from __future__ import annotations

import asyncio
import io
import os
import threading
import time
import zipfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from ekiben.ids import LOCAL_OWNER
from models.engine import engine
from services.concurrency.threaded_iterator import iterate_in_thread
from services.jobs import result_export
from services.jobs.result_export import json_lines, zip_archive
from services.schemas.body import to_dict
from services.schemas.jobs import item_body, job_body
from tests import toy_models
from tests.services.jobs.job_homes import AtWork, at_work, make_home
from tests.waiting import async_eventually

IMAGES = [toy_models.encoded(toy_models.noise(40, 30, seed=n)) for n in range(3)]
AREAS = {"model": "areas"}

Run = Callable[[Callable[[AtWork], Awaitable[None]]], None]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("template"))


@pytest.fixture
def run(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(engine, "reclaim_memory", lambda: None)
    monkeypatch.setattr(os, "fsync", lambda handle: None)

    def run(main: Callable[[AtWork], Awaitable[None]]) -> None:
        async def whole() -> None:
            async with at_work(template, tmp_path) as bench:
                await asyncio.wait_for(main(bench), 60)

        asyncio.run(whole())

    return run


async def lines_of(bench: AtWork, job_id: str) -> list[dict[str, Any]]:
    jobs, store = bench.app_state.jobs, bench.app_state.store
    body = b"".join(
        [piece async for piece in iterate_in_thread(json_lines(jobs, store, LOCAL_OWNER, bench.job(job_id)))]
    )
    assert body.endswith(b"\n")
    return [orjson.loads(line) for line in body.splitlines()]


async def archive_of(bench: AtWork, job_id: str) -> tuple[zipfile.ZipFile, int]:
    """The archive, and in how many pieces it came."""
    jobs, store = bench.app_state.jobs, bench.app_state.store
    pieces = [piece async for piece in iterate_in_thread(zip_archive(jobs, store, LOCAL_OWNER, bench.job(job_id)))]
    assert all(pieces)
    return zipfile.ZipFile(io.BytesIO(b"".join(pieces))), len(pieces)


def test_lines_and_archive_of_a_job(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_export, "_PAGE", 2)

    async def main(bench: AtWork) -> None:
        job = await bench.finish((await bench.submit("segment", [*IMAGES, b"no image"], AREAS)).id)
        items, results = bench.items(job.id), await bench.results(job.id)
        lines = await lines_of(bench, job.id)
        wanted = [
            orjson.loads(orjson.dumps(to_dict(item_body(item, result)), option=orjson.OPT_UTC_Z))
            for item, result in zip(items, results, strict=True)
        ]
        assert lines == wanted
        assert [line["position"] for line in lines] == [0, 1, 2, 3]
        assert [line["state"] for line in lines] == ["succeeded"] * 3 + ["failed"]
        assert lines[3]["result"] is None and lines[3]["error"]["code"] == "bad_image"
        assert lines[0]["started_at"].endswith("Z")

        archive, pieces = await archive_of(bench, job.id)
        assert pieces > 5  # as it is read, not at the end
        assert archive.testzip() is None
        names = archive.namelist()
        assert len(names) == len(set(names))
        images = {f"0000{n}-{n}/{kind}.png" for n in range(3) for kind in ("mask", "color", "overlay")}
        assert set(names) == {"job.json", "results.jsonl"} | images
        assert [orjson.loads(line) for line in archive.read("results.jsonl").splitlines()] == lines
        said = orjson.loads(archive.read("job.json"))
        assert said == orjson.loads(orjson.dumps(to_dict(job_body(bench.job(job.id), 0)), option=orjson.OPT_UTC_Z))
        assert said["counts"] == {"total": 4, "done": 4, "failed": 1, "running": 0}
        files = bench.records.artifacts(LOCAL_OWNER, items)
        for item in items[:3]:
            for file in files[item.id]:
                data = archive.read(f"{item.position:05d}-{item.position}/{file.kind}.png")
                assert data == bench.app_state.store.get(file.storage_key)

    run(main)


def test_a_job_without_stored_files(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        job = await bench.finish((await bench.submit("segment", IMAGES[:2], AREAS, store=False)).id)
        lines = await lines_of(bench, job.id)
        assert [line["result"]["artifacts"] for line in lines] == [None, None]
        assert all(line["result"]["classes"] and line["prediction_id"] is None for line in lines)
        archive, _ = await archive_of(bench, job.id)
        assert (archive.testzip(), archive.namelist()) == (None, ["job.json", "results.jsonl"])

    run(main)


def test_files_of_one_kind_and_a_file_that_is_gone(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        image = toy_models.encoded(toy_models.noise(60, 40))
        boxes = [{"box": [5, 5, 30, 20]}, {"box": [10, 5, 50, 30]}]
        parameters = {"model": "sam_toy", "prompts": boxes, "format": "png", "multimask": False}
        job = await bench.finish((await bench.submit("masks", [image], parameters)).id)
        archive, _ = await archive_of(bench, job.id)
        assert archive.testzip() is None
        named = {name.rpartition("/")[2] for name in archive.namelist()} - {"job.json", "results.jsonl"}
        assert named == {"logits.npy", "logits-001.npy", "mask.png", "mask-001.png"}
        [files] = bench.records.artifacts(LOCAL_OWNER, bench.items(job.id)).values()
        gone = next(file for file in files if file.kind == "mask")
        bench.app_state.store.delete(gone.storage_key)
        archive, _ = await archive_of(bench, job.id)
        assert archive.testzip() is None
        assert {name.rpartition("/")[2] for name in archive.namelist()} >= {"logits.npy", "logits-001.npy"}
        assert sum("mask" in name for name in archive.namelist()) == 1

    run(main)


@pytest.mark.parametrize(
    ("filename", "folder"),
    [
        ("street.png", "00000-street"),
        ("b\\c.tar.gz", "00000-b_c.tar"),
        ("..", "00000-image"),
        ("größe 1.png", "00000-gr_e_1"),
        (".hidden", "00000-hidden"),
        ("no ending", "00000-no_ending"),
        ("x" * 250 + ".png", "00000-" + "x" * 80),
    ],
)
def test_a_folder_is_called_after_its_image(filename: str, folder: str) -> None:
    from db.tables import JobItem

    item = JobItem(job_id="job", position=0, filename=filename)
    assert f"00000-{result_export._stem(item)}" == folder


def test_a_job_that_is_larger_than_a_page(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result_export, "_PAGE", 3)

    async def main(bench: AtWork) -> None:
        for count in (3, 4, 6):
            job = await bench.submit("classify", IMAGES[:1] * count, {"model": "colours"})
            assert [line["position"] for line in await lines_of(bench, job.id)] == list(range(count))

    run(main)


# ---- a download that is broken off ----


class Slow:
    """A generator that blocks, and says whether it was closed, and on which thread it runs."""

    def __init__(self, pause_s: float) -> None:
        self.pause_s = pause_s
        self.started, self.closed = threading.Event(), threading.Event()

    def __call__(self) -> Iterator[bytes]:
        try:
            while True:
                self.started.set()
                time.sleep(self.pause_s)
                yield b"piece"
        finally:
            self.closed.set()


def test_a_download_that_ends_between_two_pieces_closes_its_source() -> None:
    async def main() -> None:
        slow = Slow(0.0)
        pieces = iterate_in_thread(slow())
        assert await anext(pieces) == b"piece"
        await pieces.aclose()  # type: ignore[attr-defined]
        assert slow.closed.is_set()

    asyncio.run(main())


def test_a_download_that_ends_within_a_piece_closes_its_source() -> None:
    """The caller leaves while a thread makes the next piece: no other error than the cancellation comes of it."""

    async def main() -> None:
        slow = Slow(0.2)

        async def download() -> None:
            async for _ in iterate_in_thread(slow()):
                pass

        task = asyncio.create_task(download())
        await async_eventually(slow.started.is_set)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled(), task.exception()
        await async_eventually(slow.closed.is_set)

    asyncio.run(main())


def test_an_archive_that_is_broken_off_leaves_no_thread(run: Run) -> None:
    async def main(bench: AtWork) -> None:
        job = await bench.finish((await bench.submit("segment", IMAGES, AREAS)).id)
        before = set(threading.enumerate())
        source = zip_archive(bench.app_state.jobs, bench.app_state.store, LOCAL_OWNER, job)
        pieces = iterate_in_thread(source)
        assert (await anext(pieces)).startswith(b"PK")
        await pieces.aclose()  # type: ignore[attr-defined]
        with pytest.raises(StopIteration):
            next(source)
        left = {thread for thread in threading.enumerate() if thread.is_alive()} - before
        assert all(thread.name.startswith("asyncio_") for thread in left)  # those of the loop's pool, idle
        assert await asyncio.wait_for(asyncio.to_thread(lambda: 1), 1) == 1

    run(main)


def test_an_error_of_the_source_is_told() -> None:
    def broken() -> Iterator[bytes]:
        yield b"1"
        raise OSError("gone")

    async def main() -> None:
        got = []
        with pytest.raises(OSError, match="gone"):
            async for piece in iterate_in_thread(broken()):
                got.append(piece)
        assert got == [b"1"]

    asyncio.run(main())
