"""The import as the worker runs it: a process that speaks line by line, and ends when it is told to."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ekiben.child_protocol import MessageWriter
from ekiben.dataset_archive import DatasetArchive
from services.datasets.importer.progress import ImportProgress
from tests.services.datasets.importer.uploads import dataset, png, upload, zipped
from tests.serving import ROOT


def command(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "services.datasets.importer", "--folder", str(folder), "--with-parent", *more]


def run(folder: Path, *more: str) -> tuple[list[dict[str, Any]], int, float]:
    """What it said, its exit status, and seconds."""
    start = time.monotonic()
    with subprocess.Popen(
        command(folder, *more), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        lines = [json.loads(line) for line in child.stdout]
        error = child.stderr.read().decode()
        status = child.wait(60)
    assert "Traceback" not in error, error
    return lines, status, time.monotonic() - start


def pairs_of(folder: Path) -> dict[str, bytes]:
    return {
        f"{folder.name}/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in sorted(folder.rglob("*.png"))
    }


def levels(data: bytes) -> np.ndarray[Any, np.dtype[Any]]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("L"))


def test_nuclei(shared_data: Path, tmp_path: Path) -> None:
    files = pairs_of(shared_data / "nuclei")
    lines, status, seconds = run(upload(tmp_path, files, classes=["background", "nucleus"]))
    assert status == 0
    assert seconds < 30  # 3 s on two cores that nobody else uses
    phases = [line["data"]["phase"] for line in lines[:-1]]
    assert list(dict.fromkeys(phases)) == ["unpack", "read", "write"]
    progress = [line["progress"] for line in lines[:-1]]
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    size = (tmp_path / "dataset.zip").stat().st_size
    expected = {"samples": 180, "groups": 180, "classes": ["background", "nucleus"], "bytes": size, "warnings": 0}
    assert lines[-1] == {"result": expected}

    report = json.loads((tmp_path / "report.json").read_text())
    masks = {name: levels(data) for name, data in files.items() if "/masks/" in name}
    drawn = sum(int((mask == 255).sum()) for mask in masks.values())
    total = sum(mask.size for mask in masks.values())
    assert [c["pixels"] for c in report["classes"]] == [total - drawn, drawn]
    assert (report["ok"], report["class_map"], report["files"]) == (True, "binary_0_255", 360)
    sizes = Counter(mask.shape for mask in masks.values())
    assert {(s["height"], s["width"]): s["images"] for s in report["sizes"]} == dict(sizes)
    with DatasetArchive(tmp_path / "dataset.zip") as prepared:
        assert len(prepared) == 180
        for number in (0, 77, 179):
            name = prepared.samples[number].name
            assert prepared.image(number) == files[f"nuclei/images/{name}.png"]
            np.testing.assert_array_equal(levels(prepared.mask(number)) * 255, masks[f"nuclei/masks/{name}.png"])
    with Image.open(tmp_path / "preview.png") as sheet:
        assert sheet.mode == "RGB"
        assert min(sheet.size) > 800


def test_membrane_is_black_in_its_masks(shared_data: Path, tmp_path: Path) -> None:
    """With 255 as background the membrane, 22 % of the pixels, is the class."""
    files = pairs_of(shared_data / "membrane")
    options = {"classes": ["inside", "membrane"], "background": [255]}
    lines, status, _ = run(upload(tmp_path, files, **options))
    assert (status, lines[-1]["result"]["samples"]) == (0, 30)
    report = json.loads((tmp_path / "report.json").read_text())
    black = sum(int((levels(data) == 0).sum()) for name, data in files.items() if "/masks/" in name)
    assert report["classes"][1] | {"color": None} == {
        "class_index": 1,
        "name": "membrane",
        "color": None,
        "pixels": black,
        "share": pytest.approx(black / (30 * 512 * 512)),
        "images": 30,
    }
    assert [note["code"] for note in report["notes"]] == ["inverted"]
    with DatasetArchive(tmp_path / "dataset.zip") as prepared:
        assert prepared.index.grey


def test_a_refusal_is_the_last_line_and_the_report_is_there(tmp_path: Path) -> None:
    lines, status, _ = run(upload(tmp_path, dataset(4, lambda i: png(np.zeros((40, 40), np.uint8)))))
    report = json.loads((tmp_path / "report.json").read_text())
    assert status == 2
    assert lines[-1] == {"refusal": {"code": "bad_dataset", "message": report["errors"][0]["message"]}}
    assert [error["code"] for error in report["errors"]] == ["all_empty"]
    assert not (tmp_path / "dataset.zip").exists()


def test_an_archive_that_is_refused_gives_its_own_code(tmp_path: Path) -> None:
    folder = upload(tmp_path, {})
    (folder / "upload.zip").write_bytes(zipped(dataset(4))[:-40])
    lines, status, _ = run(folder)
    report = json.loads((folder / "report.json").read_text())
    assert status == 2
    assert lines[-1]["refusal"]["code"] == report["errors"][0]["code"]
    assert lines[-1]["refusal"]["code"].startswith("archive_")


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An import that takes many seconds."""
    large = dataset(1)["images/img_00.png"]
    black = io.BytesIO()
    Image.new("L", (4000, 4000)).save(black, "PNG")
    folder = upload(tmp_path_factory.mktemp("long"), {"images/a.png": large, "masks/a.png": large})
    with zipfile.ZipFile(folder / "upload.zip", "w") as archive:
        for i in range(60):
            archive.writestr(f"images/{i}.png", black.getvalue())
            archive.writestr(f"masks/{i}.png", black.getvalue())
    return folder


@pytest.mark.parametrize("how", ["SIGTERM", "the parent's pipe closes"])
def test_it_ends_at_once(how: str, long: Path) -> None:
    for made in ("unpacked", "report.json"):
        if (long / made).is_dir():
            for path in (long / made).iterdir():
                path.unlink()
    child = subprocess.Popen(
        command(long), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        while json.loads(child.stdout.readline())["data"]["phase"] != "read":
            pass
        start = time.monotonic()
        if how == "SIGTERM":
            child.send_signal(signal.SIGTERM)
        else:
            child.stdin.close()
        assert child.wait(20) == (-signal.SIGTERM if how == "SIGTERM" else 3)
        assert time.monotonic() - start < 5  # of the 20 s and more that it would take
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
        if not child.stdin.closed:
            child.stdin.close()
    assert not (long / "dataset.zip").exists()


def test_progress_is_said_again_where_nothing_is_new() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading) as lines:
        stream = os.fdopen(writing, "w", encoding="utf-8")
        progress = ImportProgress(MessageWriter(stream), {"read": (0.4, 0.8)})
        with progress.repeated():
            for done in range(1000):
                progress("read", done, 2000)
            time.sleep(1)
        progress("read", 2000, 2000)
        stream.close()
        said = [json.loads(line) for line in lines]
    first, *again, last = said
    assert first == {"event": "import", "data": {"phase": "read", "done": 0, "total": 2000}, "progress": 0.4}
    # 1,000 calls within some milliseconds are not 1,000 lines; the silence after them is broken.
    assert 1 <= len(again) <= 4
    assert again[-1]["data"] == {"phase": "read", "done": 999, "total": 2000}
    assert again[-1]["progress"] == pytest.approx(0.4 + 0.4 * 999 / 2000, abs=1e-4)
    assert last["progress"] == 0.8


def test_what_a_library_prints_does_not_reach_the_parent() -> None:
    program = (
        "import os; from ekiben.child_protocol import MessageWriter; speaker = MessageWriter.take_stdout();"
        "print('noise'); os.write(1, b'more noise'); speaker.result({'a': 1})"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=60, check=True)
    assert done.stdout == b'{"result": {"a": 1}}\n'
    assert b"noise" in done.stderr


def test_it_brings_no_torch() -> None:
    program = (
        "import sys, services.datasets.importer.__main__;"
        "print([m for m in ('torch', 'monai', 'pydicom', 'nibabel', 'bentoml', 'sqlmodel') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=60, check=True)
    assert done.stdout.strip() == b"[]"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """An address under which a good upload lies."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "cells.zip").write_bytes(zipped(dataset(4)))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            return None

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/cells.zip"
        server.shutdown()
        thread.join()


def test_an_archive_from_an_address(site: str, tmp_path: Path) -> None:
    folder = upload(tmp_path / "asked", {}, source="url", url=site, allow_private=True)
    (folder / "upload.zip").unlink()
    lines, status, _ = run(folder)
    assert status == 0
    assert lines[0]["data"]["phase"] == "fetch"
    assert lines[-1]["result"]["samples"] == 4


def test_an_address_that_may_not_be_asked(site: str, tmp_path: Path) -> None:
    folder = upload(tmp_path / "asked", {}, source="url", url=site)
    (folder / "upload.zip").unlink()
    lines, status, _ = run(folder)
    assert status == 2
    assert lines[-1]["refusal"]["code"].startswith("url_")
    assert not (folder / "upload.zip").exists()


@pytest.mark.parametrize("memory_mb", [60, 250])
def test_its_memory_is_limited_and_the_excess_is_said(memory_mb: int, tmp_path: Path) -> None:
    """An image of an allowed size; 60 MB are not enough for the program itself."""
    large = png(np.arange(56_000_000, dtype=np.uint32).reshape(7000, 8000).astype(np.uint8))
    folder = upload(tmp_path, {**dataset(3), "images/large.png": large, "masks/large.png": large})
    lines, status, _ = run(folder, "--memory-mb", str(memory_mb))
    assert status == 2
    refusal = lines[-1]["refusal"]
    assert refusal["code"] == "out_of_memory"
    assert f"{memory_mb} MB" in refusal["message"] and "EKIBEN_DATASET_MEMORY_MB" in refusal["message"]
    report = json.loads((tmp_path / "report.json").read_text())
    assert [error["code"] for error in report["errors"]] == ["out_of_memory"]
