"""The recorder under a slow store and callers who leave: never a file without a row, never a refusal that waits."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from db.folder_store import FolderStore
from db.migrate import migrate
from db.records import Records
from db.session import connect
from ekiben.ids import new_id
from models.results import ImageInfo
from services.inference.recording import PNG, NewFile, Recorder

INFO = ImageInfo(4, 3, "image/png")
COLUMNS = {
    "task": "classify",
    "model_name": "m",
    "model_version": 1,
    "parameters": {},
    "result": {},
    "top_class": "a",
    "top_confidence": 1.0,
    "queue_ms": 0.0,
    "inference_ms": 1.0,
    "batch_size": 1,
}


class SlowStore(FolderStore):
    """A folder behind a slow line."""

    def put(self, key: str, data: bytes, mime_type: str) -> None:
        time.sleep(0.3)
        super().put(key, data, mime_type)


class HeldStore(FolderStore):
    """A folder that takes nothing before ``open``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.open = threading.Event()

    def put(self, key: str, data: bytes, mime_type: str) -> None:
        assert self.open.wait(20)
        super().put(key, data, mime_type)


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    url = f"sqlite:///{tmp_path / 'x.db'}"
    migrate(url)
    engine = connect(url)
    made = Records(engine)
    yield made
    made.close()
    engine.dispose()


def files(tmp_path: Path) -> list[Path]:
    return [p for p in (tmp_path / "blobs").rglob("*") if p.is_file()]


def rows(tmp_path: Path) -> int:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'x.db'}")
    with engine.connect() as connection:
        count: int = connection.execute(
            sa.text("SELECT (SELECT count(*) FROM images) + (SELECT count(*) FROM predictions)")
        ).scalar_one()
    engine.dispose()
    return count


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.2, 0.29, 0.31, 0.4])
def test_a_caller_who_leaves_leaves_all_or_nothing(records: Records, tmp_path: Path, after_s: float) -> None:
    async def main() -> None:
        recorder = Recorder(records, SlowStore(tmp_path / "blobs"))

        async def request() -> None:
            record = recorder.begin(b"image", "image/png", None, "local")
            await recorder.finish(record, INFO, [NewFile(new_id(), "mask", b"mask", PNG)], COLUMNS)

        task = asyncio.create_task(request())
        await asyncio.sleep(after_s)
        task.cancel()
        await asyncio.wait({task})
        await recorder.close()

    asyncio.run(main())
    assert (len(files(tmp_path)), rows(tmp_path)) in ((0, 0), (2, 2))


def test_a_refusal_does_not_wait_for_a_slow_store(records: Records, tmp_path: Path) -> None:
    async def main() -> None:
        store = HeldStore(tmp_path / "blobs")
        recorder = Recorder(records, store)
        record = recorder.begin(b"image", "image/png", None, "local")
        await asyncio.wait_for(recorder.abandon(record), 10)
        closing = asyncio.create_task(recorder.close())  # but a stop waits until it is removed
        await asyncio.sleep(0.05)
        assert not closing.done()
        store.open.set()
        await closing

    asyncio.run(main())
    assert files(tmp_path) == []
    assert rows(tmp_path) == 0
