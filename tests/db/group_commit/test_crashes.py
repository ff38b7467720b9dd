"""What was confirmed survives the death of the database and of the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlmodel import Session, col, select

from db import group_commit as writers
from db import session as sessions
from db.migrate import migrate
from db.records import Records
from db.session import connect
from db.tables import Image, Prediction
from ekiben.errors import Unavailable
from tests.db.group_commit.units import counts, locked, unit
from tests.servers import postgres
from tests.waiting import eventually


def test_a_locked_sqlite_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "BUSY_MS", 200)
    url = f"sqlite:///{tmp_path / 'ekiben.db'}"
    migrate(url)
    engine = connect(url)
    records = Records(engine)
    with locked(engine):
        futures = [records.save(unit()) for _ in range(10)]
        began = time.monotonic()
        for future in futures:
            assert isinstance(future.exception(20), Unavailable)
        assert time.monotonic() - began < 5
    records.save(unit()).result(10)
    assert counts(engine) == [1, 1, 1]
    records.close()
    engine.dispose()


def test_database_killed_under_load() -> None:
    """PostgreSQL really stops: the one that waits is told within 5 s, what was confirmed is there after the restart."""
    with postgres() as server:
        if server.stop is None or server.start is None:
            pytest.skip("the PostgreSQL of EKIBEN_TEST_PG_URL is not ours to stop")
        migrate(server.url)
        engine = connect(server.url)
        records = Records(engine)
        confirmed: list[str] = []
        refused: list[float] = []
        stop = threading.Event()

        def save() -> None:
            while not stop.is_set():
                rows_ = unit()
                began = time.monotonic()
                error = records.save(rows_).exception(30)
                if error is None:
                    confirmed.append(rows_[0].id)
                else:
                    assert isinstance(error, Unavailable), error
                    refused.append(time.monotonic() - began)
                    time.sleep(0.05)

        with ThreadPoolExecutor(4) as pool:
            savers = [pool.submit(save) for _ in range(4)]
            eventually(lambda: len(confirmed) > 10)
            server.stop()
            eventually(lambda: refused)
            server.start()
            before = len(confirmed)
            eventually(lambda: len(confirmed) > before)
            stop.set()
            for saver in savers:
                saver.result(30)
        records.save(unit()).result(10)
        assert max(refused) < 5
        with Session(engine) as session:
            there = set(session.exec(select(Image.id).where(col(Image.id).in_(confirmed))))
        assert there == set(confirmed)
        records.close()
        engine.dispose()


SAVER = """
import sys
from db.records import Records
from db.session import connect
from tests.db import rows
records = Records(connect(sys.argv[1]))
while True:
    image = rows.image()
    records.save([image, rows.prediction(image.id)]).result()
    print(image.id, flush=True)
"""


def test_what_was_confirmed_survives_kill_9(database_url: str) -> None:
    root = Path(writers.__file__).parents[1]
    saver = subprocess.Popen(
        [sys.executable, "-c", SAVER, database_url], cwd=root, env={**os.environ}, stdout=subprocess.PIPE, text=True
    )
    if saver.stdout is None:
        raise RuntimeError("no pipe")
    confirmed = [saver.stdout.readline().strip() for _ in range(20)]
    saver.send_signal(signal.SIGKILL)
    confirmed += saver.communicate()[0].split()
    engine = connect(database_url)
    with Session(engine) as session:
        there = set(session.exec(select(Image.id)))
        pairs = session.exec(select(Prediction.image_id)).all()
    engine.dispose()
    assert len(confirmed) >= 20 and set(confirmed) <= there
    assert sorted(pairs) == sorted(there)  # an image without its prediction would be half a unit
